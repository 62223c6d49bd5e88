"""The spool: where received bytes lie. One small interface, so that it can become something else than a folder.

A key is opaque and carries no patient data. `put_durable` returns only when the file and its folder are on disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# Half-received files of a process that died are removed when they are this old.
STALE_AFTER_SECONDS = 3600
LOOK_EVERY_BYTES = 64 * 1024 * 1024
"""How much of one data set is written before the low-space marks are looked at again."""
PREFIXES = tuple(f"{number:02x}" for number in range(256))
"""What keys begin with: each has a folder of its own."""


class SpoolError(Exception):
    """The spool cannot take the bytes: full, out of reach, or below its low-space mark."""


class FileGone(FileNotFoundError):
    """Retention removed the file, or it is missing: its row says which (`removed_at`, `missing_at`)."""


class Incoming:
    """A file being received. Written and hashed on the way; a failed write is remembered, not raised.

    It is written in the middle of a PDU, where an exception would end the association instead of answering A700.
    """

    def __init__(self, path: Path, *, writable: bool, has_space: Callable[[], bool] = lambda: True) -> None:
        self.path = path
        self.name = str(path)
        self.failed = not writable
        self.size = 0
        self.digest_offset = 0
        self._digest = hashlib.sha256()
        self._has_space = has_space
        self._look_at = LOOK_EVERY_BYTES
        self._file: BinaryIO | None = None
        if writable:
            try:
                self._file = path.open("wb", buffering=1024 * 1024)
            except OSError:
                self.failed = True

    @property
    def sha256(self) -> str:
        """Digest of the bytes from `digest_offset` on."""
        return self._digest.hexdigest()

    def begin_digest(self) -> None:
        """Start the digest here, behind what was written so far."""
        self.digest_offset = self.size
        self._digest = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`."""
        self._digest.update(data)
        self.size += len(data)
        if self._file is not None:
            try:
                self._file.write(data)
            except OSError:
                self._fail()
            if self.size > self._look_at:
                self._look_at += LOOK_EVERY_BYTES
                if not self._has_space():
                    self._fail()
        return len(data)

    def finish(self) -> None:
        """Hand everything to the operating system, so that the file can be read. Raises SpoolError."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError:
                self._fail()
        if self.failed:
            raise SpoolError("the spool cannot be written")

    def sync(self) -> None:
        """Bring the bytes to disk. Raises SpoolError where that, or an earlier write, failed."""
        self.finish()
        if self._file is None:
            raise SpoolError("the file was closed before it was synced")
        try:
            os.fsync(self._file.fileno())
        except OSError:
            self._fail()
            raise SpoolError("the spool cannot be written") from None
        self.close()

    def close(self) -> None:
        """Release the file handle, if it is still there."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                self.failed = True
            self._file = None

    def discard(self) -> None:
        """Remove what was received; what cannot be removed now is stale in an hour."""
        self.close()
        _unlink(self.path)

    def __del__(self) -> None:
        # An association that ends half-way drops its message; nobody else knows the file.
        self.discard()

    def _fail(self) -> None:
        self.failed = True
        # Closing flushes again and fails again; the handle is released all the same.
        self.close()
        _unlink(self.path)


class Spool:
    """A folder of files under opaque keys."""

    def __init__(self, root: Path, *, min_free_bytes: int = 0, min_free_percent: float = 0) -> None:
        self.root = root.absolute()
        self._incoming = self.root / "incoming"
        self._aside = self.root / "orphans"
        self._min_free_bytes = min_free_bytes
        self._min_free_percent = min_free_percent
        self._incoming.mkdir(parents=True, exist_ok=True)
        _sync_folder(self.root.parent)
        self._durable_folders: set[Path] = set()

    def has_space(self) -> bool:
        """Return whether neither low-space mark is passed."""
        try:
            disk = shutil.disk_usage(self.root)
            return disk.free >= max(self._min_free_bytes, disk.total * self._min_free_percent / 100)
        except OSError:
            return False

    def is_well(self) -> bool:
        """Return whether it is there, holds something, and takes a file.

        For when a file on record could not be read or written: is it that file, or the spool? One without a single
        folder of files is another's, or one whose file system is not mounted.
        """
        probe = self._incoming / f"{uuid.uuid4().hex}.probe"
        try:
            holds_files = any(len(path.name) == 2 for path in self.root.iterdir())
            with probe.open("xb") as file:
                file.write(b"osteon")
                file.flush()
                os.fsync(file.fileno())
            probe.unlink()
        except OSError:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
            return False
        return holds_files

    def incoming(self) -> Incoming:
        """Begin a file. Never raises: a file that cannot be begun is `failed`."""
        return Incoming(self._incoming / uuid.uuid4().hex, writable=self.has_space(), has_space=self.has_space)

    def put_durable(self, incoming: Incoming) -> str:
        """Keep a received file: file synced, moved to its place, folder synced. Return its key.

        Raises
        ------
        SpoolError
            And nothing is kept.
        """
        incoming.sync()
        key = uuid.uuid4().hex
        path = self._path(key)
        try:
            self._make_durable(path.parent)
            incoming.path.rename(path)
            _sync_folder(path.parent)
        except OSError:
            _unlink(incoming.path)
            _unlink(path)
            raise SpoolError("the spool cannot be written") from None
        return key

    def put_bytes(self, data: bytes) -> tuple[str, str]:
        """Keep `data` durably; return its key and its sha256."""
        incoming = self.incoming()
        incoming.write(data)
        return self.put_durable(incoming), incoming.sha256

    def open(self, key: str) -> BinaryIO:
        """Open a kept file for reading. Raises FileGone."""
        try:
            return self._path(key).open("rb")
        except FileNotFoundError:
            raise FileGone(errno.ENOENT, "retention removed the file, or it is missing") from None

    def where(self, key: str) -> Path:
        """Return where a kept file lies, for a person who wants to look at it."""
        return self._path(key)

    def delete(self, key: str) -> None:
        """Remove a kept file; nothing happens where it is gone."""
        self._path(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> set[str]:
        """Return the keys of all files that are kept in one of the folders (`PREFIXES`).

        Raises
        ------
        SpoolError
            The spool cannot be read; that says nothing about its files.
        """
        try:
            # Where a file system is not mounted, every file seems to be missing.
            self._incoming.stat()
            return {prefix + name for name in _names(self.root / prefix) if len(name) == 30}
        except OSError:
            raise SpoolError("the spool cannot be read") from None

    def age(self, key: str) -> float | None:
        """Return how many seconds ago a file was last written to; None where it is not there."""
        return _age(self._path(key))

    def set_aside(self, key: str) -> None:
        """Move a file that nobody knows out of the way; its age begins anew."""
        path, aside = self._path(key), self._aside / key
        self._aside.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another sweeper was quicker
            os.utime(path)
            path.rename(aside)

    def put_back(self, key: str) -> None:
        """Put a file that was set aside in its place again, durably. Raises SpoolError."""
        path = self._path(key)
        try:
            self._make_durable(path.parent)
            (self._aside / key).rename(path)
            _sync_folder(path.parent)
        except OSError:
            raise SpoolError("the file cannot be put back") from None

    def keys_aside(self, prefix: str) -> set[str]:
        """Return the keys of the files that were set aside."""
        try:
            return {name for name in _names(self._aside) if name.startswith(prefix) and len(name) == 32}
        except OSError:
            raise SpoolError("the spool cannot be read") from None

    def age_aside(self, key: str) -> float | None:
        """Return how many seconds ago a file was set aside; None where it is not there."""
        return _age(self._aside / key)

    def delete_aside(self, key: str) -> None:
        """Remove a file that was set aside; nothing happens where it is gone."""
        (self._aside / key).unlink(missing_ok=True)

    def remove_stale(self) -> int:
        """Remove half-received files that no living process can still be writing; return how many."""
        before = time.time() - STALE_AFTER_SECONDS
        removed = 0
        for path in self._incoming.iterdir():
            try:
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:  # its owner was quicker
                continue
        return removed

    def _make_durable(self, folder: Path) -> None:
        """Make a folder and sync its parent, once: that it is there may only mean that another is about to sync it."""
        if folder not in self._durable_folders:
            folder.mkdir(exist_ok=True)
            _sync_folder(self.root)
            self._durable_folders.add(folder)

    def _path(self, key: str) -> Path:
        if len(key) != 32 or not key.isalnum():
            raise ValueError("not a key of this spool")
        return self.root / key[:2] / key[2:]


def _unlink(path: Path) -> None:
    """Remove a file, if that is possible: a file system that went read-only says no even to what is not there."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _age(path: Path) -> float | None:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
