"""Write deploy/config.schema.json, the JSON Schema of deploy/config.json, from the code that reads it.

python scripts/config_schema.py            write it
python scripts/config_schema.py --check    exit 1 if the committed one is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config import DeployConfig
from common.paths import SOURCE_ROOT

SCHEMA_FILE = SOURCE_ROOT / "deploy" / "config.schema.json"


def schema_text() -> str:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **DeployConfig.model_json_schema(),
        "title": "deploy/config.json of ew",
    }
    return json.dumps(schema, ensure_ascii=False, indent=2) + "\n"


def main() -> int:
    text = schema_text()
    if "--check" not in sys.argv[1:]:
        SCHEMA_FILE.write_text(text, encoding="utf-8")
        return 0
    fresh = SCHEMA_FILE.is_file() and SCHEMA_FILE.read_text(encoding="utf-8") == text
    if not fresh:
        print(f"{SCHEMA_FILE} is out of date: run python scripts/config_schema.py", file=sys.stderr)
    return 0 if fresh else 1


if __name__ == "__main__":
    sys.exit(main())
