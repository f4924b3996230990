"""Byte counts as people read them."""

from __future__ import annotations

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def shown_bytes(count: int) -> str:
    """`4.53 GiB`, `12.0 MiB`, `512 B`."""
    for name, size in UNITS:
        if count >= size:
            return f"{count / size:.2f} {name}"
    return f"{count} B"
