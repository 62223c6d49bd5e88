"""The spool: where received bytes lie. One small interface, so that it can become something else than a folder.

A key is opaque and carries no patient data. `put_durable` returns only when the file and its folder are on disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import BinaryIO

# Half-received files of a process that died are removed when they are this old.
STALE_AFTER_SECONDS = 3600


class SpoolError(Exception):
    """The spool cannot take the bytes: full, out of reach, or below its low-space mark."""


class Incoming:
    """A file being received. Written and hashed on the way; a failed write is remembered, not raised.

    It is written from pynetdicom's reactor, where an exception would abort the association instead of answering A700.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self.name = str(path)
        self.failed = not writable
        self.size = 0
        self.digest_offset = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        if writable:
            try:
                self._file = path.open("wb", buffering=1024 * 1024)
            except OSError:
                self.failed = True

    @property
    def file(self) -> Incoming:
        """What pynetdicom flushes after each fragment: a no-op here, everything is flushed once at the end."""
        return self

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
        return len(data)

    def tell(self) -> int:
        """Return how much was written."""
        return self.size

    def flush(self) -> None:
        """Do nothing: see `file`."""

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
        """Remove what was received."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __del__(self) -> None:
        # An association that ends half-way drops its message; nobody else knows the file.
        self.discard()

    def _fail(self) -> None:
        self.failed = True
        # Closing flushes again and fails again; the handle is released all the same.
        self.close()
        self.path.unlink(missing_ok=True)


class Spool:
    """A folder of files under opaque keys."""

    def __init__(self, root: Path, *, min_free_bytes: int = 0) -> None:
        self.root = root.absolute()
        self._incoming = self.root / "incoming"
        self._min_free_bytes = min_free_bytes
        self._incoming.mkdir(parents=True, exist_ok=True)
        _sync_folder(self.root.parent)
        self._durable_folders: set[Path] = set()

    def has_space(self) -> bool:
        """Return whether the low-space mark is not passed."""
        try:
            return shutil.disk_usage(self.root).free >= self._min_free_bytes
        except OSError:
            return False

    def incoming(self) -> Incoming:
        """Begin a file. Never raises: a file that cannot be begun is `failed`."""
        return Incoming(self._incoming / uuid.uuid4().hex, writable=self.has_space())

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
            incoming.path.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise SpoolError("the spool cannot be written") from None
        return key

    def put_bytes(self, data: bytes) -> tuple[str, str]:
        """Keep `data` durably; return its key and its sha256."""
        incoming = self.incoming()
        incoming.write(data)
        return self.put_durable(incoming), incoming.sha256

    def open(self, key: str) -> BinaryIO:
        """Open a kept file for reading. Raises FileNotFoundError where retention removed it."""
        return self._path(key).open("rb")

    def where(self, key: str) -> Path:
        """Return where a kept file lies, for a person who wants to look at it."""
        return self._path(key)

    def delete(self, key: str) -> None:
        """Remove a kept file; nothing happens where it is gone."""
        self._path(key).unlink(missing_ok=True)

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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
