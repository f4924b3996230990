"""Write the generated pages of convert-trt: every option, and the support matrix, in both languages.

Run it after changing an option or the data: python scripts/make_convert_docs.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402  (the path must be set first)

from builder.build_flags import OWNED, STATED  # noqa: E402
from builder.compat import containers, era_of  # noqa: E402
from builder.data import load  # noqa: E402
from builder.families import FAMILIES  # noqa: E402
from builder.gpus import LOWEST_SM, REFUSED_ON_BLACKWELL, known_gpu_types  # noqa: E402
from cli.convert_trt import command as convert_command  # noqa: E402
from cli.plan import command as plan_command  # noqa: E402
from scripts.convert_docs_zh import HEADINGS, OPTIONS  # noqa: E402

Translate = Callable[[str], str]
Rows = Iterable[Sequence[str]]


NOTES = {
    "generated": "This page is generated from the code by `scripts/make_convert_docs.py`.",
    "passed on": (
        "Any of these can be written on the command line of `convert-trt`, with dashes or "
        "underscores, also after `--`. Values are checked before anything runs; a misspelled name"
        " is refused with the nearest."
    ),
    "about Models": (
        "`convert-trt` converts these to a TensorRT-LLM checkpoint. The last two columns say "
        "whether TensorRT-LLM lists the architecture for engines (up to 1.2.1) and for its "
        "PyTorch runtime (newest list)."
    ),
    "about Containers": (
        "An engine loads only in the versions that built it: build in the container that serves."
    ),
    "about Releases": (
        "The exact release candidate between 1.3.0rc15 and 1.3.0rc22 that lost `trtllm-build` is "
        "not published; versions in between count as PyTorch era."
    ),
    "about GPUs": (
        "GPU types that `--gpu` knows. `–`: no longer supported by TensorRT-LLM; `∅`: no restriction."
    ),
}


def english(text: str) -> str:
    return NOTES.get(text, text)


def chinese(text: str) -> str:
    return HEADINGS[text]


def generated(name: str, translate: Translate) -> str:
    """The line below a title: where the page comes from, and the same page in the other language."""
    link = f"[English]({name}.md)" if translate is chinese else f"[中文]({name}.zh-CN.md)"
    return f"{link} · {translate('generated')}"


def table(titles: Sequence[str], rows: Rows) -> list[str]:
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), ""]


def option_names(option: click.Option) -> str:
    return ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])


def option_default(option: click.Option, translate: Translate) -> str:
    text = option.help or ""
    if "[default: " in text:
        return translate(text.partition("[default: ")[2].rstrip("]"))
    if option.is_flag:
        # newer click marks "no default" by an object that counts as true
        return translate("on" if option.default is True else "off")
    has_default = option.default not in (None, "") and not option.required and option.show_default
    return str(option.default) if has_default else (translate("required") if option.required else "")


def option_rows(command: click.Command, translate: Translate) -> list[list[str]]:
    rows = []
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        meaning = (option.help or "").partition("  [default: ")[0]
        if translate is chinese:
            meaning = OPTIONS[option.opts[0]]
        choices = option.type.choices if isinstance(option.type, click.Choice) else ()
        allowed = ", ".join(f"`{choice}`" for choice in choices)
        rows.append([option_names(option), meaning, allowed, option_default(option, translate)])
    return rows


def build_option_rows() -> list[list[str]]:
    rows = []
    for flag in load("trtllm_build_flags")["flags"]:
        name = flag["flag"].lstrip("-")
        if name in OWNED:
            continue
        choices = ", ".join(flag.get("choices", [])) or ("" if flag["type"] == "store_true" else flag["type"])
        passed = " ".join(STATED.get(name, []))
        rows.append([f"`--{name}`", choices, str(flag.get("default")), passed, flag.get("note", "")])
    return rows


def reference(translate: Translate) -> str:
    titles = [translate(title) for title in ("option", "meaning", "allowed", "default")]
    lines = [f"# {translate('convert-trt: every option')}", "", generated("convert-trt", translate), ""]
    lines += ["## `ew convert-trt`", "", *table(titles, option_rows(convert_command, translate))]
    lines += ["## `ew plan`", "", *table(titles, option_rows(plan_command, translate))]
    lines += [f"## {translate('Options passed to trtllm-build')}", "", translate("passed on"), ""]
    titles = [translate(title) for title in ("option", "allowed", "its default", "passed by ew", "note")]
    lines += table(titles, build_option_rows())
    lines += [f"## {translate('Options that convert-trt sets itself')}", ""]
    titles = [translate(title) for title in ("option", "instead")]
    lines += table(titles, ([f"`--{name}`", text] for name, text in OWNED.items()))
    return "\n".join(lines)


def family_rows() -> Rows:
    known = load("model_map")
    for family in FAMILIES:
        for architecture in family.architectures:
            eras = ["✓" if architecture in known[era] else "–" for era in ("engine", "pytorch")]
            yield [
                f"`{architecture}`",
                family.name,
                ", ".join(f"`{name}`" for name in family.model_types),
                *eras,
            ]


def container_rows() -> Rows:
    for row in containers():
        yield [row.triton, f"`{row.tag}`", row.tensorrt_llm, row.tensorrt, row.python, row.cuda, row.driver]


def release_rows() -> Rows:
    for release in load("compatibility")["releases"]:
        version = release["version"]
        yield [version, era_of(version), release["tensorrt"] or "–"]


def gpu_rows() -> Rows:
    for gpu in known_gpu_types():
        sm = gpu.sm or 0
        missing = [kind for kind, lowest in LOWEST_SM.items() if sm < lowest]
        missing += [kind for kind in REFUSED_ON_BLACKWELL if 100 <= sm < 120]
        refused = "–" if sm < 75 else ", ".join(dict.fromkeys(missing)) or "∅"
        yield [gpu.name, f"{gpu.memory // 2**30} GiB", f"{gpu.compute_capability}", gpu.generation, refused]


def support_matrix(translate: Translate) -> str:
    sections: list[tuple[str, Sequence[str], Rows]] = [
        ("Models", ("architecture", "family", "--model-type", "engine", "pytorch"), family_rows()),
        (
            "Containers",
            ("Triton", "image", "TensorRT-LLM", "TensorRT", "Python", "CUDA", "driver"),
            container_rows(),
        ),
        ("Releases", ("TensorRT-LLM", "era", "TensorRT"), release_rows()),
        ("GPUs", ("GPU", "memory", "compute capability", "generation", "does not run"), gpu_rows()),
    ]
    lines = [f"# {translate('Support matrix')}", "", generated("support-matrix", translate), ""]
    for heading, titles, rows in sections:
        lines += [f"## {translate(heading)}", "", translate(f"about {heading}"), ""]
        lines += table([translate(title) for title in titles], rows)
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    docs = ROOT / "docs"
    made = {}
    for translate, suffix in ((english, ""), (chinese, ".zh-CN")):
        made[docs / "reference" / f"convert-trt{suffix}.md"] = reference(translate)
        made[docs / f"support-matrix{suffix}.md"] = support_matrix(translate)
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
