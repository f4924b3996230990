"""Stands in for trtllm-build: records its arguments, refuses unknown ones, writes an engine folder.

Contract-checked, not the real builder: its options come from builder/data, its output from the documented
engine folder. `FAKE_BUILD_FAILURE` holds a log line to fail with.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from builder.build_flags import flags


def main(arguments: list[str]) -> int:
    options: dict[str, str] = {}
    while arguments:
        name = arguments.pop(0).removeprefix("--")
        if name not in flags():
            print(f"trtllm-build: error: unrecognized arguments: --{name}")
            return 2
        options[name] = arguments.pop(0)
    record = Path(os.environ["FAKE_BUILD_RECORD"])
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(options) + "\n")
    failure = os.environ.get("FAKE_BUILD_FAILURE")
    if failure:
        print("[TRT-LLM] [I] Build phase")
        print(failure)
        return 1
    return _build(options)


def _build(options: dict[str, str]) -> int:
    config = json.loads((Path(options["checkpoint_dir"]) / "config.json").read_text(encoding="utf-8"))
    output = Path(options["output_dir"])
    sizes = {name: int(options[name]) for name in ("max_batch_size", "max_input_len", "max_seq_len")}
    document = {
        "version": os.environ["FAKE_BUILD_VERSION"],
        "pretrained_config": config,
        "build_config": sizes,
    }
    (output / "config.json").write_text(json.dumps(document), encoding="utf-8")
    for rank in range(config["mapping"]["world_size"]):
        print(f"[TRT-LLM] [I] Total time of building rank {rank}: 00:00:01")
        (output / f"rank{rank}.engine").write_bytes(b"engine of rank %d" % rank)
    Path(options["output_timing_cache"]).write_bytes(b"timings")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
