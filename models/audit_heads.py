"""Signed heads of the audit chain: where the chain stood at a time, kept outside the database.

Whoever owns the database can cut the chain's tail, or write all of it anew, and the chain alone would not show it. So
the sweeper signs its place and hash now and then, into files that are only appended to (`audit-heads` in the data
folder) and into the log. Each head names the one before it, so that a missing one is seen as well.

A line is canonical JSON (keys in order, no spaces, ASCII). Its `signature`, hex, Ed25519, is of that line without it;
what the next head calls `previous` is the sha256 of the whole line without its end.

A process writes files of its own, one a month: several sweepers, on several hosts, need no lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models import clock
from models.settings import Settings
from models.signing import PublicKey, SigningKey, canonical, make_private_folder, sync_folder

FOLDER = "audit-heads"
FORMAT = "osteon audit head 1"
SUFFIX = ".jsonl"
# A line of a head has some 500 bytes.
_LONGEST_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """The chain had this hash at this place, says the key's signature."""

    installation: str
    place: int
    hash: str
    at: str
    """ISO 8601, UTC."""
    key: str
    """The id of the key."""
    previous: str | None
    """The digest of the newest head that was there."""
    signature: str
    format: str = FORMAT

    @property
    def signed(self) -> bytes:
        """What the signature is of."""
        return canonical({name: value for name, value in asdict(self).items() if name != "signature"})

    @property
    def line(self) -> bytes:
        """The head as it stands in a file, without the line's end."""
        return canonical(asdict(self))

    @property
    def digest(self) -> str:
        """What the next head names it by."""
        return hashlib.sha256(self.line).hexdigest()

    def is_signed_by(self, key: PublicKey) -> bool:
        """Whether the signature is this key's."""
        return self.key == key.id and key.signed(self.signature, self.signed)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that is no head."""

    file: str
    line: int
    torn: bool
    """Not written to its end: the last line of a file, as a power cut leaves it."""


def heads_folder(settings: Settings) -> Path:
    """Return where heads are kept."""
    return settings.data_dir.absolute() / FOLDER


class HeadWriter:
    """Appends heads to files of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = ""

    def write(
        self, key: SigningKey, *, installation: str, place: int, chain_hash: str, before: Head | None = None
    ) -> Head:
        """Sign a head that follows on `before` and bring it to disk. Raises OSError.

        The place has to be committed: a head of what is not there would cry wolf.
        """
        unsigned = Head(
            installation=installation,
            place=place,
            hash=chain_hash,
            at=clock.now().isoformat(),
            key=key.public.id,
            previous=None if before is None else before.digest,
            signature="",
        )
        head = Head(**{**asdict(unsigned), "signature": key.sign(unsigned.signed)})
        make_private_folder(self._folder)
        month = head.at[:7]
        if not self._name.startswith(month):
            self._name = f"{month}.{secrets.token_hex(8)}{SUFFIX}"
        try:
            self._append(self._folder / self._name, head.line + b"\n")
        except OSError:
            # What follows half a line would be lost with it.
            self._name = ""
            raise
        return head

    def _append(self, path: Path, line: bytes) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "wb", buffering=0) as file:
            is_new = os.fstat(file.fileno()).st_size == 0
            if file.write(line) != len(line):
                raise OSError("a head was written in part")
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)


def newest(folder: Path, keys: Mapping[str, PublicKey]) -> Head | None:
    """Return the head that was signed last, by one of these keys; None without any."""
    last = [head for path in head_files(folder) if (head := _last_of(path)) is not None]
    good = [head for head in last if head.key in keys and head.is_signed_by(keys[head.key])]
    return max(good, key=lambda head: (head.at, head.place), default=None)


def head_files(folder: Path) -> list[Path]:
    """Return the files of heads in a folder, the oldest month first."""
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def read_heads(files: Iterable[Path]) -> Iterator[Head | Damaged]:
    """Read heads from files of their own, or from a log in which they stand among other lines. Raises OSError."""
    for path in files:
        with path.open("rb") as lines:
            number = 0
            while line := lines.readline(_LONGEST_LINE):
                number += 1
                head = _parsed(line)
                if head is not None:
                    yield head
                elif path.suffix == SUFFIX or FORMAT.encode() in line:
                    yield Damaged(path.name, number, torn=not line.endswith(b"\n"))


def _last_of(path: Path) -> Head | None:
    """Return the last whole head of a file."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = file.read().splitlines(keepends=True)
    return next((head for line in reversed(lines) if (head := _parsed(line)) is not None), None)


def _parsed(line: bytes) -> Head | None:
    """Return the head in a line: alone, or with what a log adds to it; None where there is none."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    values: dict[str, Any] = {name: found.get(name) for name in Head.__dataclass_fields__}
    return Head(**values) if all(_fits(name, value) for name, value in values.items()) else None


def _fits(name: str, value: Any) -> bool:
    if name == "place":
        return isinstance(value, int) and not isinstance(value, bool) and value > 0
    return isinstance(value, str) or (name == "previous" and value is None)
