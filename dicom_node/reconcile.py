"""Compares the spool with the record, a thousand files at a time, so that a million cost no more at once than few.

A crash between file and row leaves a file that no row names. It was never answered with success, so the sender sends
it again; the file is set aside, and removed after some days: where the record was restored from an older backup, it
may hold the only copy. A row whose file is gone is marked, and the same instance, sent again, is taken in its place.

=============================  ==================================================================================
what it finds                  what it does
=============================  ==================================================================================
a file without a row, young    nothing: its row may be about to be committed
a file without a row, old      sets it aside in `orphans/`, with an audit event
one set aside, long ago        removes it, with an audit event
one set aside, with a row      puts it back
a row without a file           sets `missing_at`, once, with an audit event
a marked row with a file       clears `missing_at`, with an audit event
a file of a row that is said   removes it: retention was interrupted (worker.retention)
to be removed
=============================  ==================================================================================
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from dicom_node.spool import PREFIXES, Spool
from models import audit, clock, logs
from models.database import Database
from models.settings import Settings
from models.tables import File, FileKind

# Longer than any commit may still be on its way (dicom_node.group_commit.PATIENCE_SECONDS).
YOUNG_SECONDS = 3600.0
MOST_ROWS = 200
"""Changed in one transaction."""
MOST_KEYS = 1000
"""Files, and rows, that are compared at once."""
log = logs.get("reconcile")


@dataclass(frozen=True)
class UnknownFile:
    """A file that no row names."""

    key: str
    age_seconds: float
    set_aside: bool


@dataclass(frozen=True)
class MissingFile:
    """A row whose file is not there although nobody removed it."""

    file_id: int
    image_id: int
    kind: FileKind
    key: str
    missing_at: datetime | None
    """When that was first noticed."""


@dataclass(frozen=True)
class Findings:
    """How it stands with a piece of one folder of the spool."""

    unknown: list[UnknownFile]
    missing: list[MissingFile]
    found: list[int]
    """Ids of rows that are marked as missing and whose file is there."""
    to_be_put_back: list[str]
    to_be_removed: list[str]
    share: float
    """How much of all the keys that there can be the piece covers; 1/256 where it is the whole folder."""
    is_last: bool
    """Whether the folder is through."""


def unknown_files(database: Database, spool: Spool) -> Iterator[UnknownFile]:
    """Look for files without rows in the whole spool; changes nothing. Raises SpoolError where it cannot be read."""
    for prefix in PREFIXES:
        for findings in compare(database, spool, prefix):
            yield from findings.unknown


def missing_files(database: Database, spool: Spool) -> Iterator[MissingFile]:
    """Look for rows without files in the whole record; changes nothing. Raises SpoolError as above."""
    for prefix in PREFIXES:
        for findings in compare(database, spool, prefix):
            yield from findings.missing


def compare(database: Database, spool: Spool, prefix: str, *, most: int | None = None) -> Iterator[Findings]:
    """Compare one folder with its rows, piece by piece, each of at most so many files and rows; changes nothing.

    The folder is listed once. What came since, or went, is looked at again before anything is said of it.

    Raises
    ------
    SpoolError
        The spool cannot be read.
    """
    most = most or MOST_KEYS
    names = sorted(spool.keys(prefix))
    behind, end = prefix, _next(prefix)
    while behind < end:
        rows = _rows(database, behind, end, most)
        files = names[(at := bisect_right(names, behind)) : at + most]
        upto = min((keys[-1] for keys in (rows.keys, files) if len(keys) == most), default=end)
        yield _findings(database, spool, rows, {key for key in files if key <= upto}, behind=behind, upto=upto)
        behind = upto


@dataclass(frozen=True)
class _Rows:
    """What is on record of a piece of a folder, read from indexes alone: the rows themselves lie anywhere."""

    keys: list[str]
    """In order."""
    removed: frozenset[str]
    marked: dict[str, int]
    """Ids of the rows that are marked as missing."""


def _rows(database: Database, behind: str, end: str, most: int) -> _Rows:
    def between(*conditions: ColumnElement[bool], last: str) -> tuple[ColumnElement[bool], ...]:
        return *conditions, File.key > behind, File.key <= last

    with database.read() as session:
        keys = session.scalars(select(File.key).where(*between(last=end)).order_by(File.key).limit(most)).all()
        last = keys[-1] if keys else end
        removed = session.scalars(select(File.key).where(*between(File.removed_at.is_not(None), last=last)))
        marked = session.execute(select(File.key, File.id).where(*between(File.missing_at.is_not(None), last=last)))
        return _Rows(list(keys), frozenset(removed), {row.key: row.id for row in marked})


def _findings(database: Database, spool: Spool, rows: _Rows, files: set[str], *, behind: str, upto: str) -> Findings:
    known = {key for key in rows.keys if key <= upto}
    kept = known - rows.removed
    aside = {key for key in spool.keys_aside(behind[:2]) if behind < key <= upto}
    # A row that was committed after the folder was read is no row without a file.
    there = {key for key in kept if key in files or spool.age(key) is not None}
    unknown = [(key, spool.age(key), False) for key in sorted(files - known)]
    unknown += [(key, spool.age_aside(key), True) for key in sorted(aside - known)]
    return Findings(
        unknown=[UnknownFile(key, age, set_aside) for key, age, set_aside in unknown if age is not None],
        missing=_missing(database, kept - there - aside),
        found=[rows.marked[key] for key in sorted(there & rows.marked.keys())],
        to_be_put_back=sorted(kept & aside - there),
        to_be_removed=sorted(key for key in rows.removed & files if spool.age(key) is not None),
        share=_position(upto) - _position(behind),
        is_last=upto == _next(behind[:2]),
    )


def _missing(database: Database, keys: Collection[str]) -> list[MissingFile]:
    """Return the rows of files that are not there, but for those that were removed meanwhile."""
    if not keys:
        return []
    with database.read() as session:
        rows = session.execute(
            select(File.id, File.image_id, File.kind, File.key, File.missing_at)
            .where(File.key.in_(keys), File.removed_at.is_(None))
            .order_by(File.key)
        ).all()
    return [MissingFile(row.id, row.image_id, row.kind, row.key, row.missing_at) for row in rows]


class Reconciler:
    """Goes through the spool again and again, a piece of a folder with each step."""

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._keep_seconds = settings.retention.orphan_days * 24 * 3600
        self._database = database
        self._spool = spool
        self._actor = audit.part_actor("reconciler")
        self._folders = 0
        self._pieces: Iterator[Findings] | None = None

    @property
    def passes(self) -> int:
        """How often it has been through the whole spool."""
        return self._folders // len(PREFIXES)

    def step(self) -> float:
        """Reconcile the next piece; return how much of the spool it was. Raises SpoolError."""
        pieces = self._pieces or compare(self._database, self._spool, PREFIXES[self._folders % len(PREFIXES)])
        self._pieces = None
        try:
            found = next(pieces)
            self._act(found)
            if not found.is_last:
                self._pieces = pieces
        finally:
            # Also where it fails: one folder that cannot be read must not keep the others from being looked at.
            self._folders += self._pieces is None
        return found.share

    def reconcile(self, prefix: str) -> None:
        """Compare one folder with its rows, and act on what is found. Raises SpoolError."""
        for found in compare(self._database, self._spool, prefix):
            self._act(found)

    def _act(self, found: Findings) -> None:
        for key in found.to_be_put_back:
            self._spool.put_back(key)
        for key in found.to_be_removed:
            self._spool.delete(key)
        self._set_aside([file for file in found.unknown if not file.set_aside and file.age_seconds > YOUNG_SECONDS])
        self._remove([file for file in found.unknown if file.set_aside and file.age_seconds > self._keep_seconds])
        self._mark([file for file in found.missing if file.missing_at is None])
        self._clear(found.found)
        if found.to_be_put_back or found.to_be_removed:
            log.warning("spool tidied", put_back=len(found.to_be_put_back), removed=len(found.to_be_removed))

    def _set_aside(self, files: list[UnknownFile]) -> None:
        # On record before it is done: a crash in between says once too often that a file was found.
        self._audit_unknown(files, "spool.set_aside", "files without rows set aside")
        for file in files:
            self._spool.set_aside(file.key)

    def _remove(self, files: list[UnknownFile]) -> None:
        self._audit_unknown(files, "spool.removed", "files without rows removed")
        for file in files:
            self._spool.delete_aside(file.key)

    def _audit_unknown(self, files: list[UnknownFile], action: str, event: str) -> None:
        if not files:
            return
        with self._database.write() as session:
            for file in files:
                audit.record(session, actor=self._actor, action=action, subject="file", subject_id=None, key=file.key)
        log.warning(event, files=len(files), keys=[file.key for file in files[:10]])

    def _mark(self, files: list[MissingFile]) -> None:
        """Mark rows, once; not those whose file was removed while the folder was read."""
        marked = self._set_missing([file.file_id for file in files], clock.now(), "file.missing")
        if marked:
            log.error("files missing", files=len(marked), rows=marked[:10])

    def _clear(self, file_ids: list[int]) -> None:
        cleared = self._set_missing(file_ids, None, "file.found")
        if cleared:
            log.warning("missing files are there again", files=len(cleared), rows=cleared[:10])

    def _set_missing(self, file_ids: list[int], missing_at: datetime | None, action: str) -> list[int]:
        """Set or clear `missing_at`, in transactions that keep nobody waiting for long; return the rows changed."""
        changed: list[int] = []
        for start in range(0, len(file_ids), MOST_ROWS):
            with self._database.write() as session:
                some = file_ids[start : start + MOST_ROWS]
                changed += [file_id for file_id in some if self._set_one(session, file_id, missing_at, action)]
        return changed

    def _set_one(self, session: Session, file_id: int, missing_at: datetime | None, action: str) -> bool:
        is_marked = File.missing_at.is_not(None)
        row = session.execute(
            update(File)
            .where(File.id == file_id, File.removed_at.is_(None), ~is_marked if missing_at else is_marked)
            .values(missing_at=missing_at)
            .returning(File.image_id, File.sha256)
        ).first()
        if row is None:
            return False
        audit.record(
            session,
            actor=self._actor,
            action=action,
            subject="file",
            subject_id=file_id,
            image=row.image_id,
            sha256=row.sha256,
        )
        return True


def _next(prefix: str) -> str:
    """Return what all keys that begin so are smaller than."""
    return f"{int(prefix, 16) + 1:02x}" if prefix != PREFIXES[-1] else "g"


def _position(key: str) -> float:
    """Where a key lies among all that there can be, from 0 to 1."""
    return 1.0 if key == "g" else int(key[:12], 16) / 16 ** len(key[:12])
