"""Audit events in a signed file, which can be checked on another machine, without the database and its settings.

The file is JSON Lines in UTF-8, each line in canonical form (keys in order, no spaces, ASCII) and ended by a newline:

========= ==========================================================================================================
line      what it holds
========= ==========================================================================================================
the first `format`, `installation`, `made_at`, `made_by`, `software`; what was asked for: `since`, `before`, `study`
          (Study Instance UID), null where it was not; `key`, the id of the key, and `public_key` (PEM)
others    one event each, the oldest first: `event` (its columns), `place` in the chain, the `previous` hash and the
          `hash` there; null where the event has no place yet
the last  `events`, how many; `head`, the newest signed head of the chain; `signature`, hex, Ed25519
========= ==========================================================================================================

Every line has its number, `line`, and a `digest`: the sha256, hex, of the digest of the line before (of the first line:
of nothing) followed by the line itself without its digest, in the last line also without its signature. The signature
is of the last digest, as text, behind the `format` and a newline.

An event's `hash` is the sha256 of the canonical JSON list of previous hash, id, at, actor, action, subject, subject_id
and details (`models.audit.content_hash`), so that whoever has a later head can follow the chain through several files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import and_, func, or_, select, tuple_

from models import clock
from models.audit import content_hash
from models.audit_check import MOST_NAMED
from models.audit_heads import Head
from models.audit_search import Search, rows_of_study
from models.database import Database
from models.signing import PublicKey, SigningKey, canonical, public_key, sync_folder
from models.tables import AuditChain, AuditEvent, Installation, Study
from models.version import VERSION

FORMAT = "osteon audit export 1"
AT_ONCE = 5000
# A line has some 600 bytes; what is longer is none of ours.
LONGEST_LINE = 1024 * 1024


class NotAnExport(Exception):
    """The file cannot be checked; the text says why."""


@dataclass(frozen=True)
class Made:
    """An export that was made."""

    events: int
    sha256: str
    """Of the file."""
    key: str


def export(
    database: Database,
    path: Path,
    wanted: Search,
    *,
    by: str,
    key: SigningKey,
    head: Head | None,
    record: Callable[[Made], None],
) -> Made:
    """Write the events that `wanted` finds (by study and time) into a new file.

    `record` is called when the file is whole and before it has its name: no export is without its event.

    Raises
    ------
    FileExistsError
        The file is there already.
    OSError
        It cannot be written.
    """
    if path.exists():
        raise FileExistsError(f"{path.name} is there already")
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            lines = _Lines(file)
            lines.write(_header(database, wanted, by, key))
            events = 0
            for line in _events(database, wanted):
                lines.write(line)
                events += 1
            lines.close({"events": events, "head": None if head is None else asdict(head)}, key)
            file.flush()
            os.fsync(file.fileno())
        made = Made(events, lines.sha256, key.public.id)
        record(made)
        # A link, since a rename would replace a file that came meanwhile.
        path.hardlink_to(part)
        sync_folder(path.absolute().parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    return made


class _Lines:
    """Writes numbered lines, each with a digest that covers all before it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._number = 0
        self._digest = ""
        self._whole = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._whole.hexdigest()

    def write(self, content: dict[str, Any]) -> None:
        self._number += 1
        content = content | {"line": self._number}
        self._digest = _digest(self._digest, content)
        self._put(content | {"digest": self._digest})

    def close(self, content: dict[str, Any], key: SigningKey) -> None:
        content = content | {"line": self._number + 1}
        digest = _digest(self._digest, content)
        self._put(content | {"digest": digest, "signature": key.sign(_signed(digest))})

    def _put(self, content: dict[str, Any]) -> None:
        line = canonical(content) + b"\n"
        self._whole.update(line)
        self._file.write(line)


def _digest(before: str, content: dict[str, Any]) -> str:
    return hashlib.sha256(before.encode() + canonical(content)).hexdigest()


def _signed(digest: str) -> bytes:
    return f"{FORMAT}\n{digest}".encode()


def _header(database: Database, wanted: Search, by: str, key: SigningKey) -> dict[str, Any]:
    with database.read() as session:
        installation = session.scalars(select(Installation.uid)).one()
        study = wanted.study_id and session.get_one(Study, wanted.study_id).study_instance_uid
    return {
        "format": FORMAT,
        "installation": installation,
        "made_at": clock.now().isoformat(),
        "made_by": by,
        "software": VERSION,
        "since": wanted.since and wanted.since.isoformat(),
        "before": wanted.before and wanted.before.isoformat(),
        "study": study,
        "key": key.public.id,
        "public_key": key.public.pem,
    }


def _events(database: Database, wanted: Search) -> Iterator[dict[str, Any]]:
    """Yield the events by time, some thousands at a time."""
    conditions = []
    if wanted.since is not None:
        conditions.append(AuditEvent.at >= wanted.since)
    if wanted.before is not None:
        conditions.append(AuditEvent.at < wanted.before)
    if wanted.study_id is not None:
        with database.read() as session:
            rows = rows_of_study(session, wanted.study_id)
        # A study has few events: asked for by kind, and put in order here.
        kinds = (and_(AuditEvent.subject == kind, AuditEvent.subject_id.in_(ids)) for kind, ids in rows.items() if ids)
        conditions.append(or_(*kinds))
    placed = select(AuditEvent, AuditChain).outerjoin(AuditChain, AuditChain.event_id == AuditEvent.id)
    in_order = placed.where(*conditions).order_by(AuditEvent.at, AuditEvent.id).limit(AT_ONCE)
    with database.read() as session:
        newest = session.scalar(select(func.max(AuditEvent.id))) or 0
    found = in_order.where(AuditEvent.id <= newest)
    while True:
        with database.read() as session:
            some = session.execute(found).all()
        yield from (_line(event, place) for event, place in some)
        if len(some) < AT_ONCE:
            return
        last = some[-1][0]
        found = in_order.where(AuditEvent.id <= newest, tuple_(AuditEvent.at, AuditEvent.id) > tuple_(last.at, last.id))


def _line(event: AuditEvent, place: AuditChain | None) -> dict[str, Any]:
    columns = {
        "id": event.id,
        "at": event.at.isoformat(),
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
        "subject_id": event.subject_id,
        "details": event.details,
    }
    if place is None:
        return {"event": columns, "place": None, "previous": None, "hash": None}
    return {"event": columns, "place": place.seq, "previous": place.previous_hash, "hash": place.hash}


# --- checking ---------------------------------------------------------------------------------------------------------


@dataclass
class ExportVerdict:
    """What came of checking a file."""

    header: dict[str, Any] = field(default_factory=dict)
    events: int = 0
    key: str | None = None
    """The id of the key whose signature it has."""
    faults: list[str] = field(default_factory=list)
    """The first `MOST_NAMED`, in the order of the file."""
    more_faults: int = 0

    @property
    def well(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    def found(self, what: str) -> None:
        """Add a fault."""
        if len(self.faults) < MOST_NAMED:
            self.faults.append(what)
        else:
            self.more_faults += 1


def check_export(path: Path, key: PublicKey | None = None) -> ExportVerdict:
    """Check a file as it stands, with this public key, or with the one that it brings along.

    Without a key from elsewhere the check says only that the file is as whoever made it has signed it.

    Raises
    ------
    NotAnExport
        It cannot be read, or is no export at all.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, key).read()
    except OSError as error:
        raise NotAnExport(f"{path.name}: cannot be read ({error.strerror})") from None


class _Reader:
    def __init__(self, file: BinaryIO, key: PublicKey | None) -> None:
        self._file = file
        self._key = key
        self._verdict = ExportVerdict()
        self._number = 0
        self._digest = ""
        self._place: tuple[int, str] | None = None
        """The newest place in the chain, and its hash."""

    def read(self) -> ExportVerdict:
        verdict = self._verdict
        last: dict[str, Any] | None = None
        is_one = False
        for position, content in enumerate(self._lines(), start=1):
            if content is None:
                verdict.found(f"line {position} is not as it was written")
                self._number, self._digest = self._number + 1, _UNKNOWN
                continue
            if last is not None:
                verdict.found(f"line {position} stands behind the last line")
            is_one |= "digest" in content and "line" in content
            self._follow(position, content)
            if position == 1:
                self._look_at_header(content)
            elif "signature" in content:
                last = content
            else:
                self._look_at_event(position, content)
        if not is_one:
            raise NotAnExport("no line of it is one of an audit export")
        self._look_at_end(last)
        return verdict

    def _lines(self) -> Iterator[dict[str, Any] | None]:
        """Yield what each line holds; None for one that is not exactly as it is written."""
        while line := self._file.readline(LONGEST_LINE):
            try:
                content = json.loads(line)
                as_written = isinstance(content, dict) and canonical(content) + b"\n" == line
            except (ValueError, RecursionError):
                as_written = False
            yield content if as_written else None

    def _look_at_header(self, content: dict[str, Any]) -> None:
        verdict = self._verdict
        if content.get("format") != FORMAT:
            verdict.found(f"line 1 is not the header of a file in the format {FORMAT}")
        verdict.header = content
        try:
            brought = public_key(str(content.get("public_key")).encode())
        except ValueError:
            verdict.found("line 1 has no public key")
            return
        if content.get("key") != brought.id:
            verdict.found("line 1: the key's id is not that of its public key")
        if self._key is not None and self._key.id != brought.id:
            verdict.found("line 1: it was signed with another key than the one given")
        self._key = self._key or brought

    def _follow(self, position: int, content: dict[str, Any]) -> None:
        """Check a line's number and digest against the line before it."""
        number, wanted = content.get("line"), self._number + 1
        bare = {name: value for name, value in content.items() if name not in ("digest", "signature")}
        digest = _digest(self._digest, bare | {"line": wanted})
        if not isinstance(number, int) or (number != wanted and digest == content.get("digest")):
            self._verdict.found(f"line {position} was changed: its number is {number}")
            number = wanted
        elif number > wanted:
            lines = f"line {wanted} is" if number == wanted + 1 else f"lines {wanted} to {number - 1} are"
            self._verdict.found(f"{lines} missing")
        elif number < wanted:
            self._verdict.found(f"line {position} was added or moved: it has the number {number}")
        elif self._digest != _UNKNOWN and digest != content.get("digest"):
            self._verdict.found(f"line {position} was changed: its digest does not match")
        self._number, self._digest = max(number, self._number), str(content.get("digest"))

    def _look_at_event(self, position: int, content: dict[str, Any]) -> None:
        """Check an event against its place in the chain."""
        self._verdict.events += 1
        place, previous, found = content.get("place"), content.get("previous"), content.get("hash")
        if place is None:
            return
        try:
            fits = content_hash(str(previous), *(content["event"][name] for name in _COLUMNS)) == found
        except (KeyError, TypeError):
            fits = False
        if not fits:
            self._verdict.found(f"line {position}: its event is not what was chained at place {place}")
        if self._place is not None and place == self._place[0] + 1 and previous != self._place[1]:
            self._verdict.found(f"line {position}: place {place} does not follow on the one before it")
        if isinstance(place, int):
            self._place = place, str(found)

    def _look_at_end(self, last: dict[str, Any] | None) -> None:
        verdict = self._verdict
        if last is None:
            verdict.found("the last line is missing: there is no signature")
            return
        if last.get("events") != verdict.events:
            verdict.found(f"it has {verdict.events} events, and {last.get('events')} were written")
        if self._key is None:
            verdict.found("there is no key to check the signature with")
        elif self._key.signed(str(last.get("signature")), _signed(str(last.get("digest")))):
            verdict.key = self._key.id
        else:
            verdict.found("the signature does not match")


_UNKNOWN = "unknown"
_COLUMNS = ("id", "at", "actor", "action", "subject", "subject_id", "details")
