"""`ew plan`: what a model needs and what fits, before any byte moves."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from builder.convert import convert
from builder.gpus import parse_bytes
from builder.quantization import SCHEMES
from builder.request import DTYPES, RUNTIMES, ConvertRequest
from cli.output import emit, json_option, report_errors
from cli.plan_table import print_plan
from common.errors import ResourceError


@click.command("plan")
@click.option("--model", required=True, help="Hugging Face folder or hub id; only its config is read.")
@click.option("--model-type", help="Checked against the checkpoint.  [default: detected]")
@click.option("--gpu", help="GPU type, for example L40S.  [default: the one in this machine]")
@click.option("--gpu-memory", metavar="SIZE", help="Memory of the GPU, for example 24GiB.")
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float16", show_default=True, help="Type of the weights."
)
@click.option("--tp-size", type=int, default=1, show_default=True, help="GPUs that share each layer.")
@click.option("--pp-size", type=int, default=1, show_default=True, help="Groups of layers on separate GPUs.")
@click.option("--max-batch-size", type=int, default=64, show_default=True, help="Requests in flight at once.")
@click.option("--max-input-len", type=int, default=4096, show_default=True, help="Longest prompt, in tokens.")
@click.option(
    "--max-output-len", type=int, default=2048, show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--runtime", type=click.Choice(RUNTIMES), default="auto", show_default=True, help="As for convert-trt."
)
@click.option("--trtllm-version", help="TensorRT-LLM to plan for.")
@click.option("--quantization", metavar="NAME", help=f"{', '.join(SCHEMES)}.")
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@json_option
@report_errors
def command(as_json: bool, **options: Any) -> None:
    """Show what a model needs and what fits a GPU. Exit code 8 when it does not fit.

    \b
    Examples:
      ./ew plan --model ./Qwen2.5-7B-Instruct --gpu L40S
      ./ew plan --model Qwen/Qwen2.5-72B-Instruct --gpu-memory 80GiB --tp-size 4 --json
    """
    memory = options.pop("gpu_memory")
    request = ConvertRequest(**options, output=Path(), gpu_memory=parse_bytes(memory) if memory else None)
    plan = convert(replace(request, stage="plan")).plan
    if not as_json:
        print_plan(plan)
    emit(plan.as_dict(), as_json=as_json)
    if not plan.fits:
        sys.exit(ResourceError.exit_code)
