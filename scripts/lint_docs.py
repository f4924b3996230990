"""Write docs/lint/: one page a rule of `ew lint`, and an index, from the table in builder/lint/rules.py.

python scripts/lint_docs.py            write them
python scripts/lint_docs.py --check    exit 1 if a committed page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from builder.lint.rules import DOCS, RULES, Rule
from common.paths import SOURCE_ROOT

FOLDER = SOURCE_ROOT / DOCS


def pages() -> dict[str, str]:
    """File name -> text, for every page."""
    return {"README.md": _index(), **{f"{rule.id}.md": _page(rule) for rule in RULES.values()}}


def _page(rule: Rule) -> str:
    fixable = " · `./ew lint --fix` repairs it" if rule.fixable else ""
    return (
        f"# {rule.id}: {rule.title}\n\n"
        f"{rule.severity}{fixable} · [all rules](README.md)\n\n"
        f"**What happens.** {rule.why}\n\n"
        f"**What to do.** {rule.cure}\n"
    )


def _index() -> str:
    rows = (
        f"| [{rule.id}]({rule.id}.md) | {rule.severity} | {rule.title} | {'yes' if rule.fixable else ''} |"
        for rule in RULES.values()
    )
    return (
        "# Rules of ew lint\n\n"
        "`./ew lint [REPOSITORY]` checks a Triton model repository without starting it: ew's own, upstream's "
        "`inflight_batcher_llm`\nlayout, or any other. It exits with 1 on errors (`--strict`: also on "
        "warnings). `--json` and `--sarif` are for\nmachines. Nothing in the repository is executed, unless "
        "`--import-check`\nasks for it.\n\n"
        "| rule | severity | | `--fix` |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


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
