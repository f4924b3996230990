"""`ew lint`: find what is wrong with a model repository."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import emit, json_option, report_errors

if TYPE_CHECKING:
    from builder.lint import Options


@click.command(name="lint")
@click.argument("repository", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option("--trtllm-version", metavar="VERSION", help="TensorRT-LLM of the container that will serve.")
@click.option(
    "--container", metavar="TAG", help="Triton container that will serve, such as 26.03-trtllm-python-py3."
)
@click.option(
    "--import-check", is_flag=True, help="Import every Python model: this runs the repository's code."
)
@click.option(
    "--python",
    "python",
    type=click.Path(dir_okay=False),
    help="Python for --import-check: that of the server.",
)
@click.option("--no-paths", is_flag=True, help="Do not look for tokenizers, engines and packages.")
@click.option("--fix", "fix", is_flag=True, help="Repair what can be repaired safely.")
@click.option("--strict", is_flag=True, help="Exit 1 on warnings too.")
@click.option("--sarif", "as_sarif_log", is_flag=True, help="Print SARIF 2.1.0 for code-scanning tools.")
@json_option
@report_errors
def command(
    repository: Path | None,
    trtllm_version: str | None,
    container: str | None,
    import_check: bool,
    python: str | None,
    no_paths: bool,
    fix: bool,
    strict: bool,
    as_sarif_log: bool,
    as_json: bool,
) -> None:
    """Check a Triton model repository, ew's or any other, without starting it.

    Without REPOSITORY it checks model_repository/. Exit code 1 if there are errors. Each rule has a page in
    docs/lint/. Nothing in the repository is executed, unless you ask for --import-check.

    \b
    Examples:
      ./ew lint
      ./ew lint /srv/triton_model_repo --no-paths --container 26.03-trtllm-python-py3
    """
    from builder.lint import lint
    from builder.lint.fix import apply_fixes
    from builder.lint.report import as_document, as_sarif, as_text, has_errors
    from common.paths import home
    from common.version import VERSION

    root = repository or home().repository
    options = _options(trtllm_version, container, _import_with(import_check, python), not no_paths)
    findings = lint(root, options)
    fixed = apply_fixes(root, findings) if fix else []
    findings = lint(root, options) if fixed else findings
    if as_sarif_log:
        emit(as_sarif(findings, VERSION), as_json=True)
    else:
        repaired = "".join(f"fixed {done.file}: {done.message} [{done.rule.id}]\n" for done in fixed)
        emit(as_document(root, findings, fixed), as_json=as_json, text=repaired + as_text(findings))
    sys.exit(1 if has_errors(findings) or (strict and findings) else 0)


def _options(
    trtllm_version: str | None, container: str | None, import_with: str | None, check_paths: bool
) -> Options:
    from builder.compat import parse_version
    from builder.lint import Options
    from builder.lint.containers import container_of_tag

    release, flavour = container_of_tag(container) if container else (None, None)
    if trtllm_version:
        parse_version(trtllm_version)
    version = trtllm_version or (release.tensorrt_llm if release else None)
    return Options(check_paths, version, flavour, import_with)


def _import_with(import_check: bool, python: str | None) -> str | None:
    """The Python that imports models; None where that was not asked for."""
    from common.errors import UsageError

    if python and not import_check:
        raise UsageError(
            "--python is for --import-check.", hint="Give both, or neither.", code="import_check_missing"
        )
    return (python or sys.executable) if import_check else None
