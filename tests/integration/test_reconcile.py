"""Files without rows and rows without files, on both databases: what is done about each, and what is left alone."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from dicom_node.intake import Intake, Receipt, Sender, StoredFile
from dicom_node.reconcile import YOUNG_SECONDS, Reconciler, compare, missing_files, unknown_files
from dicom_node.spool import PREFIXES, Spool, SpoolError
from models import clock
from models.database import Database
from models.settings import Settings
from models.tables import AuditEvent, File, FileKind, Image, ImageState
from tests.reports import header

ROOM = Sender(str(uuid.uuid4()), "ROOM", "OSTEON", "10.0.0.1")
DAY = 24 * 3600


@pytest.fixture
def spool(settings: Settings) -> Spool:
    return Spool(settings.data_dir / "spool")


@pytest.fixture
def intake(database: Database, settings: Settings) -> Intake:
    return Intake(database, settings)


@pytest.fixture
def reconcile(settings: Settings, database: Database, spool: Spool) -> Callable[[], None]:
    """Reconcile every folder that there is, and those of the rows."""
    reconciler = Reconciler(settings, database, spool)

    def once() -> None:
        with database.read() as session:
            keys = [*session.scalars(select(File.key)), *(path.name for path in (spool.root / "orphans").glob("*"))]
        folders = {path.name for path in spool.root.iterdir()} | {key[:2] for key in keys}
        for prefix in sorted(folders.intersection(PREFIXES)):
            reconciler.reconcile(prefix)

    return once


def keep(spool: Spool, content: bytes = b"bytes") -> StoredFile:
    key, sha256 = spool.put_bytes(content)
    return StoredFile(key, len(content), sha256, 0, "1.2.840.10008.1.2.1")


def path_of(spool: Spool, key: str) -> Path:
    return spool.root / key[:2] / key[2:]


def make_old(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def row_of(database: Database, key: str) -> File:
    with database.read() as session:
        return session.scalars(select(File).where(File.key == key)).one()


def actions(database: Database) -> list[str]:
    with database.read() as session:
        found = session.scalars(select(AuditEvent.action).order_by(AuditEvent.id)).all()
    return [action for action in found if action != "image.received"]


def test_a_pass_looks_at_every_folder_once_and_the_next_begins_again(
    spool: Spool, database: Database, settings: Settings
) -> None:
    keys = [keep(spool).key for _ in range(20)]
    for key in keys:
        make_old(path_of(spool, key), 2 * YOUNG_SECONDS)
    reconciler = Reconciler(settings, database, spool)
    for number in range(len(PREFIXES)):
        assert reconciler.passes == 0, number
        reconciler.step()
    assert reconciler.passes == 1
    assert sorted(path.name for path in (spool.root / "orphans").iterdir()) == sorted(keys)
    late = "00" + uuid.uuid4().hex[2:]
    path_of(spool, late).parent.mkdir(exist_ok=True)
    path_of(spool, late).touch()
    make_old(path_of(spool, late), 2 * YOUNG_SECONDS)
    reconciler.step()
    assert (spool.root / "orphans" / late).exists()


def test_a_step_takes_a_bounded_part_of_a_folder_and_the_steps_together_take_all_of_it_once(
    spool: Spool, intake: Intake, database: Database
) -> None:
    intake.record(ROOM, header(), keep(spool))
    keys = sorted("7f" + uuid.uuid4().hex[2:] for _ in range(120))
    with_rows, with_files = keys[:80], keys[40:]
    with database.write() as session:
        image = session.scalars(select(File.image_id)).one()
        for key in with_rows:
            row = {"size": 1, "sha256": "", "stored_at": clock.now(), "kind": FileKind.INSTANCE}
            session.add(File(image_id=image, key=key, **row))
    (spool.root / "7f").mkdir(exist_ok=True)
    for key in with_files:
        path_of(spool, key).touch()
    pieces = list(compare(database, spool, "7f", most=10))
    assert max(len(piece.missing) for piece in pieces) <= 10
    assert max(len(piece.unknown) for piece in pieces) <= 10
    assert sorted(file.key for piece in pieces for file in piece.missing) == keys[:40]
    assert sorted(file.key for piece in pieces for file in piece.unknown) == keys[80:]
    assert sum(piece.share for piece in pieces) == pytest.approx(1 / len(PREFIXES))
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_folder_of_several_pieces_is_reconciled_by_as_many_steps(
    spool: Spool, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.reconcile.MOST_KEYS", 10)
    (spool.root / "00").mkdir(exist_ok=True)
    for _ in range(25):
        path = path_of(spool, "00" + uuid.uuid4().hex[2:])
        path.touch()
        make_old(path, 2 * YOUNG_SECONDS)
    reconciler = Reconciler(settings, database, spool)
    aside = []
    shares = 0.0
    for _ in range(3):
        shares += reconciler.step()
        aside.append(len(list((spool.root / "orphans").glob("*"))))
    assert aside == [10, 20, 25]
    assert shares == pytest.approx(1 / len(PREFIXES))
    for _ in range(len(PREFIXES) - 1):
        assert reconciler.passes == 0
        reconciler.step()
    assert reconciler.passes == 1


def test_a_folder_that_cannot_be_read_keeps_no_other_from_being_looked_at(
    spool: Spool, database: Database, settings: Settings
) -> None:
    key = "01" + uuid.uuid4().hex[2:]
    path_of(spool, key).parent.mkdir(exist_ok=True)
    path_of(spool, key).touch()
    make_old(path_of(spool, key), 2 * YOUNG_SECONDS)
    (spool.root / "00").touch()  # no folder
    reconciler = Reconciler(settings, database, spool)
    with pytest.raises(SpoolError):
        reconciler.step()
    reconciler.step()
    assert (spool.root / "orphans" / key).exists()


def test_what_is_whole_is_left_as_it_is(
    spool: Spool, intake: Intake, database: Database, reconcile: Callable[[], None]
) -> None:
    stored = keep(spool)
    intake.record(ROOM, header(), stored)
    make_old(path_of(spool, stored.key), 10 * DAY)
    reconcile()
    assert path_of(spool, stored.key).is_file()
    assert row_of(database, stored.key).missing_at is None
    assert actions(database) == []


def test_a_file_without_a_row_is_left_alone_while_it_is_young_then_set_aside_and_removed_after_days(
    spool: Spool, database: Database, reconcile: Callable[[], None]
) -> None:
    key = keep(spool).key
    aside = spool.root / "orphans" / key
    make_old(path_of(spool, key), YOUNG_SECONDS - 60)
    reconcile()
    assert path_of(spool, key).is_file()
    assert [(file.key, file.set_aside) for file in unknown_files(database, spool)] == [(key, False)]
    make_old(path_of(spool, key), YOUNG_SECONDS + 60)
    reconcile()
    reconcile()
    assert not path_of(spool, key).exists()
    assert aside.read_bytes() == b"bytes"
    assert [(file.key, file.set_aside) for file in unknown_files(database, spool)] == [(key, True)]
    make_old(aside, 7 * DAY + 60)
    reconcile()
    reconcile()
    assert not aside.exists()
    assert actions(database) == ["spool.set_aside", "spool.removed"]


def test_a_file_that_was_set_aside_comes_back_when_its_row_does(
    spool: Spool, intake: Intake, database: Database, reconcile: Callable[[], None]
) -> None:
    stored = keep(spool)
    make_old(path_of(spool, stored.key), 2 * DAY)
    reconcile()
    assert not path_of(spool, stored.key).exists()
    # A backup of the record is put in place, or a commit that hung is done after all.
    intake.record(ROOM, header(), stored)
    assert list(missing_files(database, spool)) == []
    reconcile()
    assert path_of(spool, stored.key).read_bytes() == b"bytes"
    assert row_of(database, stored.key).missing_at is None


def test_a_row_without_a_file_is_marked_once_and_cleared_when_the_file_is_there_again(
    spool: Spool, intake: Intake, database: Database, reconcile: Callable[[], None]
) -> None:
    stored = keep(spool)
    intake.record(ROOM, header(), stored)
    away = path_of(spool, stored.key).rename(spool.root / "away")
    reconcile()
    first = row_of(database, stored.key)
    reconcile()
    assert first.missing_at is not None
    assert row_of(database, stored.key).missing_at == first.missing_at
    (missing,) = missing_files(database, spool)
    assert (missing.file_id, missing.image_id, missing.missing_at) == (first.id, first.image_id, first.missing_at)
    away.rename(path_of(spool, stored.key))
    reconcile()
    assert row_of(database, stored.key).missing_at is None
    assert actions(database) == ["file.missing", "file.found"]


def test_the_same_bytes_again_take_the_place_of_a_file_that_went_missing_and_make_no_new_work(
    spool: Spool, intake: Intake, database: Database, reconcile: Callable[[], None]
) -> None:
    first = keep(spool)
    intake.record(ROOM, header(), first)
    with database.write() as session:
        session.scalars(select(Image)).one().state = ImageState.ANALYSED
    assert intake.known("1.2.3.4.1", first.sha256) is Receipt.DUPLICATE
    spool.delete(first.key)
    reconcile()
    assert intake.known("1.2.3.4.1", first.sha256) is None
    again = keep(spool)
    assert intake.record(ROOM, header(), again) is Receipt.RESTORED
    row = row_of(database, again.key)
    assert (row.missing_at, row.sha256) == (None, hashlib.sha256(b"bytes").hexdigest())
    with database.read() as session:
        image = session.scalars(select(Image)).one()
    assert image.state is ImageState.ANALYSED
    assert intake.known("1.2.3.4.1", first.sha256) is Receipt.DUPLICATE
    assert intake.record(ROOM, header(), keep(spool)) is Receipt.DUPLICATE
    assert actions(database) == ["file.missing", "file.restored"]


def test_a_file_that_retention_was_about_to_remove_is_removed_and_not_taken_for_missing(
    spool: Spool, intake: Intake, database: Database, reconcile: Callable[[], None]
) -> None:
    stored = keep(spool)
    intake.record(ROOM, header(), stored)
    with database.write() as session:
        session.scalars(select(File)).one().removed_at = clock.now()
    reconcile()
    reconcile()
    assert not path_of(spool, stored.key).exists()
    assert list(missing_files(database, spool)) == []
    assert row_of(database, stored.key).missing_at is None
    assert actions(database) == []


def test_a_spool_that_is_not_mounted_marks_nothing(
    spool: Spool, intake: Intake, database: Database, settings: Settings
) -> None:
    stored = keep(spool)
    intake.record(ROOM, header(), stored)
    reconciler = Reconciler(settings, database, spool)
    spool.root.rename(spool.root.with_name("elsewhere"))
    spool.root.mkdir()
    with pytest.raises(SpoolError):
        reconciler.reconcile(stored.key[:2])
    assert row_of(database, stored.key).missing_at is None
