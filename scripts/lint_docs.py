"""Write docs/lint/: one page a rule of `ew lint`, and an index, from the table in builder/lint/rules.py.

Each page is there in English and, from lint_docs_zh.json, in Chinese.

python scripts/lint_docs.py            write them
python scripts/lint_docs.py --check    exit 1 if a committed page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from builder.lint.rules import DOCS, RULES, Rule
from common.paths import SOURCE_ROOT
from scripts.chinese import read_texts

FOLDER = SOURCE_ROOT / DOCS


@dataclass(frozen=True)
class Language:
    """The frame of the pages in one language; `translate` gives the texts of the rules."""

    suffix: str
    other: str
    translate: Callable[[str], str]
    heading: str
    fixable: str
    all_rules: str
    why: str
    cure: str
    index: str
    columns: str
    yes: str

    def name(self, stem: str) -> str:
        return f"{stem}{self.suffix}.md"


ENGLISH = Language(
    "",
    "[中文]({}.zh-CN.md)",
    lambda text: text,
    "# {}: {}",
    " · `./ew lint --fix` repairs it",
    "all rules",
    "**What happens.** ",
    "**What to do.** ",
    """# Rules of ew lint

[中文](README.zh-CN.md)

`./ew lint [REPOSITORY]` checks a Triton model repository without starting it: ew's own, upstream's
`inflight_batcher_llm` layout, or any other. It exits with 1 on errors (`--strict`: also on warnings).
`--json` and `--sarif` are for machines. Nothing in the repository is executed, unless `--import-check`
asks for it.
""",
    "| rule | severity | | `--fix` |",
    "yes",
)
CHINESE = Language(
    ".zh-CN",
    "[English]({}.md)",
    read_texts("lint_docs_zh.json"),
    "# {}：{}",
    " · `./ew lint --fix` 可以修复",
    "全部规则",
    "**后果。** ",
    "**处理。** ",
    """# ew lint 的规则

[English](README.md)

`./ew lint [REPOSITORY]` 不启动服务就能检查 Triton 模型仓库：
ew 自己的、上游 `inflight_batcher_llm` 布局的，或任何其他仓库。
有错误时退出码为 1（加 `--strict` 时，有警告也是）。`--json` 和 `--sarif` 供程序读取。
除非用 `--import-check` 要求，否则不执行仓库里的任何代码。
""",
    "| 规则 | 级别 | | `--fix` |",
    "是",
)


def pages() -> dict[str, str]:
    """File name -> text, for every page."""
    made = {}
    for language in (ENGLISH, CHINESE):
        made[language.name("README")] = _index(language)
        made.update({language.name(rule.id): _page(rule, language) for rule in RULES.values()})
    return made


def _page(rule: Rule, language: Language) -> str:
    say = language.translate
    links = f"[{language.all_rules}]({language.name('README')}) · {language.other.format(rule.id)}"
    return (
        f"{language.heading.format(rule.id, say(rule.title))}\n\n"
        f"{say(rule.severity)}{language.fixable if rule.fixable else ''} · {links}\n\n"
        f"{language.why}{say(rule.why)}\n\n"
        f"{language.cure}{say(rule.cure)}\n"
    )


def _index(language: Language) -> str:
    rows = [_row(rule, language) for rule in RULES.values()]
    return "\n".join([language.index, language.columns, "| --- | --- | --- | --- |", *rows]) + "\n"


def _row(rule: Rule, language: Language) -> str:
    say = language.translate
    link = f"[{rule.id}]({language.name(rule.id)})"
    return f"| {link} | {say(rule.severity)} | {say(rule.title)} | {language.yes if rule.fixable else ''} |"


def main() -> int:
    wanted = pages()
    if "--check" in sys.argv[1:]:
        stale = [name for name, text in wanted.items() if _read(FOLDER / name) != text]
        stale += [path.name for path in FOLDER.glob("*.md") if path.name not in wanted]
        if stale:
            print(f"out of date: {', '.join(stale)}; run python scripts/lint_docs.py", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
