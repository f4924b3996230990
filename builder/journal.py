"""Which steps of a conversion are done, so that an interrupted one can go on."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from common.errors import ResourceError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _boot_id() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""


class Journal:
    """The finished steps of one plan, one number a line after a line that names the plan and the boot."""

    def __init__(self, path: Path, digest: str, *, resume: bool) -> None:
        self._title = f"{digest} {_boot_id()}\n".encode()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._lock(path)
        self.done = self._read() if resume else set()
        self.is_new = not self.done
        if self.is_new:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, self._title, 0)
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise ResourceError(
                f"Another conversion is writing to {path.parent.parent}.",
                hint="Wait for it, or choose another output folder.",
                code="output_busy",
            ) from error

    def _read(self) -> set[int]:
        """Finished steps, if plan and boot are the same; a last line without its end does not count."""
        text = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        if not text.startswith(self._title):
            return set()
        whole = text[: text.rfind(b"\n") + 1]
        os.ftruncate(self._descriptor, len(whole))
        return {int(line) for line in whole[len(self._title) :].split()}

    def add(self, numbers: list[int]) -> None:
        os.write(self._descriptor, "".join(f"{number}\n" for number in numbers).encode())

    def close(self) -> None:
        os.close(self._descriptor)
