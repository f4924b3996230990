"""`ew convert-trt`: Hugging Face checkpoint -> TensorRT-LLM package."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from builder.convert import convert
from builder.families import MODEL_TYPES
from builder.gpus import parse_bytes
from builder.quantization import SCHEMES
from builder.request import DTYPES, RUNTIMES, STAGES, ConvertRequest, ConvertResult
from cli.output import emit, json_option, report_errors
from cli.plan_table import print_plan
from cli.progress import progress_display
from cli.sizes import shown_bytes
from common.paths import home


def default_output(model: str) -> Path:
    """models/<name of the model> of the installation."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model.rstrip("/")).name).strip("-.") or "model"
    return home().models / name


@click.command(
    "convert-trt",
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@click.option("--model", required=True, help="Hugging Face folder or hub id.")
@click.option("--output", type=click.Path(path_type=Path), help="Package folder.  [default: models/NAME]")
@click.option(
    "--model-type", help=f"Checked against the checkpoint: {', '.join(MODEL_TYPES)}.  [default: detected]"
)
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float16", show_default=True, help="Type of the weights."
)
@click.option("--tp-size", type=int, default=1, show_default=True, help="GPUs that share each layer.")
@click.option("--pp-size", type=int, default=1, show_default=True, help="Groups of layers on separate GPUs.")
@click.option(
    "--moe-tp-size", type=int, default=0, help="Tensor parallel size of experts.  [default: tp-size]"
)
@click.option(
    "--moe-ep-size", type=int, default=0, help="Expert parallel size.  [default: the rest of tp-size]"
)
@click.option(
    "--use-parallel-embedding", is_flag=True, help="Cut the embedding too, instead of repeating it."
)
@click.option(
    "--embedding-sharding-dim", type=click.Choice(["0", "1"]), default="0", show_default=True,
    help="With --use-parallel-embedding: 0 cuts the vocabulary, 1 the hidden size.",
)  # fmt: skip
@click.option("--max-batch-size", type=int, default=64, show_default=True, help="Requests in flight at once.")
@click.option("--max-input-len", type=int, default=4096, show_default=True, help="Longest prompt, in tokens.")
@click.option(
    "--max-output-len", type=int, default=2048, show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--stage", type=click.Choice(STAGES), default="engine", show_default=True,
    help="How far to go: plan writes nothing, checkpoint needs no GPU, engine builds where it can.",
)  # fmt: skip
@click.option(
    "--runtime", type=click.Choice(RUNTIMES), default="auto", show_default=True,
    help="engine: trtllm-build (TensorRT-LLM up to 1.2). pytorch: no build, LLM arguments instead.",
)  # fmt: skip
@click.option(
    "--trtllm-version",
    help="TensorRT-LLM to build for.  [default: the one at hand, else the newest container's]",
)
@click.option("--quantization", metavar="NAME", help=f"{', '.join(SCHEMES)}; made in the GPU container.")
@click.option(
    "--calibration", type=click.Path(path_type=Path),
    help="Folder of the calibration data set; its path must contain cnn_dailymail or lambada.",
)  # fmt: skip
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option("--gpu", help="Plan for this GPU type, for example L40S.  [default: the one in this machine]")
@click.option("--gpu-memory", metavar="SIZE", help="Plan for a GPU with this memory, for example 24GiB.")
@click.option("--workers", type=int, default=0, help="Threads of the conversion.  [default: one a core]")
@click.option("--dry-run", is_flag=True, help="Same as --stage plan.")
@click.option("--force", is_flag=True, help="Replace a package that is there, and do not reuse others.")
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on where an interrupted conversion stopped.",
)
@click.option("--allow-pickle", is_flag=True, help="Read .bin weights too; only from makers you trust.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
@json_option
@click.pass_context
@report_errors
def command(ctx: click.Context, as_json: bool, **options: Any) -> None:
    """Convert a Hugging Face checkpoint to a TensorRT-LLM package.

    Any other option goes to trtllm-build (engine) or tensorrt_llm.LLM (pytorch) and is checked first.
    Exit code 0 also when the engine is still to be built on a GPU machine; the command for that is printed,
    and "engine" is "pending" with --json.

    \b
    Examples:
      ./ew convert-trt --model ./Qwen2.5-7B-Instruct --output models/qwen --tp-size 2
      ./ew convert-trt --model meta-llama/Llama-3.1-8B-Instruct --dtype bfloat16 --stage checkpoint
      ./ew convert-trt --model ./llama --gemm_plugin auto --multiple_profiles enable
    """
    request = _request(ctx, options)
    with _term_interrupts(), progress_display(quiet=as_json) as progress:
        result = convert(request, progress=progress)
    if request.stage == "plan" and not as_json:
        print_plan(result.plan)
    emit(result.as_dict(), as_json=as_json, text=_summary(result))


@contextlib.contextmanager
def _term_interrupts() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: cleanly, and resumable."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _request(ctx: click.Context, options: dict[str, Any]) -> ConvertRequest:
    memory = options.pop("gpu_memory")
    dry_run = options.pop("dry_run")
    options["embedding_sharding_dim"] = int(options["embedding_sharding_dim"])
    output = options.pop("output") or default_output(options["model"])
    if dry_run:
        options["stage"] = "plan"
    own = tuple(name for parameter in ctx.command.params for name in parameter.opts if name.startswith("--"))
    return ConvertRequest(
        **options, output=output, gpu_memory=parse_bytes(memory) if memory else None, own_options=own
    )


def _summary(result: ConvertResult) -> str | None:
    if result.manifest is None:
        return None
    manifest = result.manifest
    size = sum(entry.bytes for entry in manifest.files.values())
    lines = [f"{_ACTIONS[result.action]} {result.folder} ({shown_bytes(size)}, {result.seconds:.1f} s)"]
    lines += [f"Note: {warning}" for warning in result.warnings]
    engine = manifest.engine
    if engine.state == "built":
        lines.append(
            f"Engine: TensorRT-LLM {engine.tensorrt_llm} for {engine.gpu or 'the GPU it was built on'}."
        )
    if engine.command:
        lines.append(
            "To build the engine, run this on a GPU machine, then the same convert-trt command again:"
        )
        lines.append(f"  {shlex.join(engine.command)}")
    return "\n".join(lines)


_ACTIONS = {
    "converted": "Made",
    "resumed": "Finished the interrupted",
    "linked": "Made from an equal package, without converting:",
    "reused": "Already there:",
}
