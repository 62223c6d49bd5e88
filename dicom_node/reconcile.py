"""Compares the spool with the record, one of its folders at a time, so that a million files cost little.

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

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
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
    """How it stands with one folder of the spool."""

    unknown: list[UnknownFile]
    missing: list[MissingFile]
    found: list[int]
    """Ids of rows that are marked as missing and whose file is there."""
    to_be_put_back: list[str]
    to_be_removed: list[str]


def unknown_files(database: Database, spool: Spool) -> Iterator[UnknownFile]:
    """Look for files without rows in the whole spool; changes nothing. Raises SpoolError where it cannot be read."""
    for prefix in PREFIXES:
        yield from compare(database, spool, prefix).unknown


def missing_files(database: Database, spool: Spool) -> Iterator[MissingFile]:
    """Look for rows without files in the whole record; changes nothing. Raises SpoolError as above."""
    for prefix in PREFIXES:
        yield from compare(database, spool, prefix).missing


def compare(database: Database, spool: Spool, prefix: str) -> Findings:
    """Compare one folder with its rows; changes nothing. Raises SpoolError where the spool cannot be read."""
    kept, aside = spool.keys(prefix), spool.keys_aside(prefix)
    with database.read() as session:
        rows = session.execute(
            select(File.id, File.image_id, File.kind, File.key, File.removed_at, File.missing_at).where(
                File.key >= prefix, File.key < _next(prefix)
            )
        ).all()
    known = {row.key: row for row in rows}
    # A row that was committed after the folder was read is no row without a file.
    there = {row.key for row in rows if row.key in kept or spool.age(row.key) is not None}
    unknown = [(key, spool.age(key), False) for key in sorted(kept - known.keys())]
    unknown += [(key, spool.age_aside(key), True) for key in sorted(aside - known.keys())]
    return Findings(
        unknown=[UnknownFile(key, age, set_aside) for key, age, set_aside in unknown if age is not None],
        missing=[
            MissingFile(row.id, row.image_id, row.kind, row.key, row.missing_at)
            for row in rows
            if row.removed_at is None and row.key not in there and row.key not in aside
        ],
        found=[row.id for row in rows if row.missing_at is not None and row.key in there],
        to_be_put_back=[row.key for row in rows if row.removed_at is None and row.key in aside - there],
        to_be_removed=[row.key for row in rows if row.removed_at is not None and row.key in there],
    )


class Reconciler:
    """Goes through the spool again and again, a folder with each step."""

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._keep_seconds = settings.retention.orphan_days * 24 * 3600
        self._database = database
        self._spool = spool
        self._actor = audit.part_actor("reconciler")
        self._next = 0

    @property
    def passes(self) -> int:
        """How often it has been through the whole spool."""
        return self._next // len(PREFIXES)

    def step(self) -> None:
        """Reconcile the next folder. Raises SpoolError."""
        prefix = PREFIXES[self._next % len(PREFIXES)]
        # Also where it fails: one folder that cannot be read must not keep the others from being looked at.
        self._next += 1
        self.reconcile(prefix)

    def reconcile(self, prefix: str) -> None:
        """Compare one folder with its rows, and act on what is found. Raises SpoolError."""
        found = compare(self._database, self._spool, prefix)
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
