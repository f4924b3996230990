"""Makes tests/data/normhead.json with PyTorch: digests of what torch.nn.functional.normalize gives.

python -m tests.builder.make_normhead_digests
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

EXPECTED = Path(__file__).resolve().parent.parent / "data" / "normhead.json"
ROWS, WIDTHS = 300, (100, 128, 4096, 4100, 5120)
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def numbers(width: int) -> npt.NDArray[np.float32]:
    """[ROWS, width] values in [-0.02, 0.02) that depend on no random generator; one row is tiny."""
    counts = np.arange(ROWS * width, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    values = ((counts.astype(np.float64) / 2**32 - 0.5) * 0.04).astype(np.float32).reshape(ROWS, width)
    values[9] *= np.float32(1e-3)
    return values


def main() -> None:
    import torch

    digests = {}
    for width in WIDTHS:
        for name, dtype in DTYPES.items():
            values = torch.from_numpy(numbers(width)).to(getattr(torch, dtype))
            result = torch.nn.functional.normalize(values)
            data = result.view(torch.int32 if name == "F32" else torch.int16).numpy().tobytes()
            digests[f"{name} {width}"] = hashlib.sha256(data).hexdigest()
    EXPECTED.write_text(json.dumps({"torch": torch.__version__, "digests": digests}, indent=2) + "\n")


if __name__ == "__main__":
    main()
