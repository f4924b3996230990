"""API keys: named, with a role, kept only as SHA-256 digests in a file that nobody else can read."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from common import atomic
from common.errors import ConfigError, UsageError

Role = Literal["inference", "admin"]
ROLES: tuple[str, ...] = get_args(Role)
PREFIX = "ew-"
FIRST_KEY_NAME = "first"
FIRST_KEY_FILE = "api_key"


@dataclass(frozen=True)
class ApiKey:
    """One record of the key file; `admin` may do what `inference` may, and load and unload models."""

    name: str
    role: str
    sha256: str
    created: str
    requests_per_minute: int | None = None
    max_concurrent: int | None = None

    def allows(self, role: Role) -> bool:
        return self.role == "admin" or self.role == role


class KeyStore:
    """The key file, read again whenever it changes; safe to share between processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = str(path)  # looked at for every request
        self._stamp: tuple[int, int, int] | None = None
        self._keys: tuple[ApiKey, ...] = ()

    def verify(self, presented: str) -> ApiKey | None:
        """The record of `presented`, or None; takes the same time whichever key it is."""
        digest = _digest(presented)
        found: ApiKey | None = None
        for key in self.records():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def records(self) -> tuple[ApiKey, ...]:
        """All records; an absent file holds none.

        Raises:
            ConfigError: the file is readable by others, or is not a key file.
        """
        try:
            status = os.stat(self._file)
        except FileNotFoundError:
            return ()
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._stamp:
            _refuse_open_file(self.path, status)
            self._keys, self._stamp = _read(self.path), stamp
        return self._keys

    def add(self, name: str, role: str = "inference", **limits: int | None) -> str:
        """Make a key and return it; it can never be shown again.

        Raises:
            UsageError: the name is taken or the role unknown.
        """
        if role not in ROLES:
            raise UsageError(f"There is no role {role!r}.", hint=f"Use one of {', '.join(ROLES)}.")
        with self._changing():
            if any(key.name == name for key in self.records()):
                raise UsageError(
                    f"A key named {name!r} exists already.",
                    hint=f"Choose another name, or make a new secret for it: ./ew keys rotate {name}",
                )
            secret = _new_secret()
            self._write((*self.records(), ApiKey(name, role, _digest(secret), _now(), **limits)))
        return secret

    def rotate(self, name: str) -> str:
        """Replace the secret of a key; the old one stops working at once."""
        with self._changing():
            record, secret = self._named(name), _new_secret()
            fresh = replace(record, sha256=_digest(secret), created=_now())
            self._write(tuple(fresh if key.name == name else key for key in self.records()))
        return secret

    def revoke(self, name: str) -> None:
        """Remove a key; it stops working at once."""
        with self._changing():
            self._named(name)
            self._write(tuple(key for key in self.records() if key.name != name))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, so that two at once both count."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _named(self, name: str) -> ApiKey:
        for key in self.records():
            if key.name == name:
                return key
        raise UsageError(f"There is no key named {name!r}.", hint="List the names: ./ew keys list")

    def _write(self, keys: tuple[ApiKey, ...]) -> None:
        atomic.write_json(self.path, {"keys": [asdict(key) for key in keys]}, mode=0o600)


def ensure_first_key(path: Path) -> Path:
    """Make an admin key when `path` holds none.

    The key itself is written once, to the 0600 file `api_key` beside `path`, so that the first request can be
    made; that file may be deleted once the key is stored elsewhere.

    Returns:
        The file that holds (or held) the first key.
    """
    first = path.with_name(FIRST_KEY_FILE)
    store = KeyStore(path)
    if not store.records():
        atomic.write_text(first, store.add(FIRST_KEY_NAME, "admin") + "\n", mode=0o600)
    return first


def _read(path: Path) -> tuple[ApiKey, ...]:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        return tuple(ApiKey(**record) for record in document["keys"])
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}.",
            hint=f"Give this user the right to read it (ls -l {path}).",
            code="key_file_unreadable",
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not a key file: {error}.", hint=f"Remove {path} and start again: a new key is made."
        ) from None


def _refuse_open_file(path: Path, status: os.stat_result) -> None:
    # Clusters deliver a Secret as root's file that the service's group may read; no group may write it.
    is_secret = status.st_uid == 0 and os.getuid() != 0
    forbidden = stat.S_IRWXO | (stat.S_IWGRP if is_secret else stat.S_IRWXG)
    if status.st_mode & forbidden:
        raise ConfigError(
            f"{path} can be read by other users.", hint=f"chmod 600 {path}", code="key_file_open"
        )


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _digest(secret: str) -> str:
    # A key is 256 random bits, so a fast hash is enough: there is nothing to guess.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
