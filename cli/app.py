"""The `ew` command. Verbs are imported only when used, so that --help stays fast."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from cli.output import show_error
from common.errors import EwError, Interrupted, ResourceError, UsageError

# verb -> (module, one line for the overview); the module defines `command`
VERBS: dict[str, tuple[str, str]] = {
    "setup": ("cli.setup", "Make or repair an engine's environment."),
    "env": ("cli.env", "List, show and remove the engines' environments."),
    "demo": ("cli.demo", "Set up, convert, render, serve and stream one answer."),
    "plan": ("cli.plan", "What a model needs and what fits, before any byte moves."),
    "convert-trt": ("cli.convert_trt", "Hugging Face checkpoint -> TensorRT-LLM package."),
    "package": ("cli.package", "Show, list and verify packages."),
    "render": ("cli.render", "Write the Triton model repository."),
    "lint": ("cli.lint", "Check a Triton model repository without starting it."),
    "migrate": ("cli.migrate", "An upstream Triton repository -> a model entry."),
    "k8s": ("cli.k8s", "Kubernetes manifests: render and check."),
    "start": ("cli.start", "Start tritonserver and the proxy."),
    "stop": ("cli.stop", "Drain and stop the service."),
    "restart": ("cli.restart", "Stop the service and start it again as it was."),
    "status": ("cli.status", "What is running, where and how well."),
    "logs": ("cli.logs", "Show or follow the service's logs."),
    "keys": ("cli.keys", "Add, list, rotate and revoke API keys."),
    "infer": ("cli.infer", "Ask the running service once."),
    "chat": ("cli.chat", "Talk with the running service."),
    "bench": ("cli.bench", "Measure the running service under load."),
    "doctor": ("cli.doctor", "What is wrong here, why, and what to type."),
    "test": ("cli.test", "Run the project's tests."),
}


RESUMING = ("setup", "demo", "convert-trt")
SHOW_TRACEBACK = "EW_TRACEBACK"


class LazyGroup(click.Group):
    """A group whose commands are modules, loaded on first use. All its errors look like `report_errors`'."""

    def main(  # type: ignore[override]  # click's own signature has overloads that only differ in their result
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            result = super().main(arguments, prog_name, standalone_mode=False, **extra)
        except click.UsageError as error:
            _refuse_usage(error, as_json="--json" in arguments)
        except click.Abort:
            _fail(_interrupted(arguments), as_json="--json" in arguments)
        except Exception as error:  # the process boundary: people get words, never a traceback
            if SHOW_TRACEBACK in os.environ:
                raise
            _fail(_expected(error), as_json="--json" in arguments)
        sys.exit(result if isinstance(result, int) else 0)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            near = difflib.get_close_matches(name, VERBS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"There is no verb {name!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(VERBS[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, summary) for verb, (_, summary) in VERBS.items()])


def _refuse_usage(error: click.UsageError, *, as_json: bool) -> NoReturn:
    """Usage line and help for people; the one document for scripts."""
    if as_json:
        command = error.ctx.command_path if error.ctx else "ew"
        _fail(UsageError(error.format_message(), hint=f"See ./{command} --help."), as_json=True)
    error.show()
    sys.exit(error.exit_code)


def _interrupted(arguments: Sequence[str]) -> Interrupted:
    """Some verbs keep what is done; the others begin anew."""
    return Interrupted() if arguments[0] in RESUMING else Interrupted(hint="Run the same command again.")


def _expected(error: Exception) -> EwError:
    """What a verb did not foresee, in the words of the exception tree."""
    if isinstance(error, EwError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" ({error.filename})" if error.filename else ""
        return ResourceError(
            f"The disk is full{where}.", hint="Free space, then run the same again.", code="disk_full"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return ResourceError(
            f"{error.filename} cannot be used.",
            why=f"{error.strerror}.",
            hint="Check its owner and permissions (was ew run as another user before?) and the free space.",
            code="file_unusable",
        )
    return EwError(
        f"ew met an error that it does not know: {type(error).__name__}: {error}",
        why="This is a mistake in ew.",
        hint=f"Report it with what {SHOW_TRACEBACK}=1 shows when the same command runs again.",
        code="unknown",
    )


def _fail(error: EwError, *, as_json: bool) -> NoReturn:
    show_error(error, as_json=as_json)
    sys.exit(error.exit_code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option("0.1.0", prog_name="ew")
def main() -> None:
    """From a Hugging Face checkpoint to a streaming endpoint on Triton with TensorRT-LLM.

    \b
    Examples:
      ./ew demo
      ./ew convert-trt --model ./Qwen2.5-7B-Instruct --output models/qwen --tp-size 2
      ./ew start --engine cpu --model smollm2-135m-trt
    """
