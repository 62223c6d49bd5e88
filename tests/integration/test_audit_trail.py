"""The audit trail on both databases, after all that its owner can do to it, and its signed heads."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from models import audit, clock
from models.audit_check import check
from models.audit_heads import FORMAT, Damaged, Head, head_files, heads_folder, newest, read_heads
from models.database import Database
from models.settings import AuditSettings, Settings
from models.signing import known_keys, private_path, rotate, signing_key
from models.tables import AuditEvent
from models.upgrade import upgrade
from tests.rows import Rows
from tests.servers import Node
from tests.trail import BEGINNING, EVERY, Trail
from worker.heads import LOOK_SECONDS, Signer

EVENTS = 40
sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)  # where the database does not matter


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    with clock.frozen(BEGINNING):
        yield


@pytest.fixture
def trail(settings: Settings, database: Database) -> Trail:
    """Forty events; a head at the first place, and one behind every tenth event."""
    made = Trail(settings, database)
    made.goes_on(1, signed_every=1)
    made.goes_on(EVENTS - 1, signed_every=10)
    return made


def first(trail: Trail) -> str:
    """What is named first."""
    return trail.check().faults[0].what


# --- what stands --------------------------------------------------------------------------------------------------


def test_a_trail_that_nobody_touched_is_well_and_signed_to_its_last_head(trail: Trail) -> None:
    verdict = trail.check()
    assert verdict.well, verdict.faults
    assert verdict.notes == []
    # The key that was made is an event as well.
    assert (verdict.events, verdict.places, verdict.unchained, verdict.heads) == (EVENTS + 1, EVENTS + 1, 0, 4)
    assert verdict.signed_to == 32


@sqlite_alone
def test_an_empty_trail_is_well(settings: Settings, database: Database) -> None:
    assert Trail(settings, database).check().well


@sqlite_alone
def test_events_that_wait_for_their_place_are_counted_and_no_fault(trail: Trail) -> None:
    with trail.database.write() as session:
        audit.record(session, actor="a", action="tested", subject="study", subject_id=None)
    verdict = trail.check()
    assert (verdict.well, verdict.unchained) == (True, 1)


def test_an_event_that_stays_without_a_place_while_others_get_theirs_is_named(trail: Trail) -> None:
    with trail.database.write() as session:
        audit.record(session, actor="a", action="left.out", subject="study", subject_id=None)
    (forgotten,) = [row.id for row in _all(trail) if row.action == "left.out"]
    clock.advance(timedelta(hours=3))
    assert trail.check().well, "a node that stands still owes nothing"
    with trail.database.write() as session:
        audit.record(session, actor="a", action="tested", subject="study", subject_id=None)
    (fault,) = [fault for fault in trail.check().faults if fault.event_id == forgotten]
    assert fault.what == f"event {forgotten} (left.out, 2026-01-01T06:40:00+00:00) has no place in the chain"


def _all(trail: Trail) -> list[AuditEvent]:
    rows = Rows()
    rows.database = trail.database
    return rows.all(AuditEvent)


# --- what is done to it -------------------------------------------------------------------------------------------


def test_a_row_that_was_altered_is_named_with_its_kind_and_time_whatever_was_altered(trail: Trail) -> None:
    zone = "" if trail.database.engine.dialect.name == "sqlite" else "+00"
    changes = {
        13: "actor = 'nobody'",
        15: "action = 'image.refused'",
        17: "subject = 'study'",
        18: "subject_id = 999",
        19: "subject_id = NULL",
        20: "details = '{}'",
        21: f"at = '2026-01-01 00:00:00.000001{zone}'",
    }
    trail.attack(*(f"UPDATE audit_events SET {change} WHERE id = {number}" for number, change in changes.items()))
    found = trail.check().faults
    assert [(fault.event_id, fault.place) for fault in found] == [(number, number) for number in changes]
    assert found[0].what == (
        "event 13 (image.received, 2026-01-01T02:00:00+00:00): its row is not what was chained (place 13)"
    )


def test_a_value_that_cannot_be_read_any_more_is_named_and_hides_nothing_behind_it(trail: Trail) -> None:
    sqlite = trail.database.engine.dialect.name == "sqlite"
    garbage = "at = 'yesterday', details = '{'" if sqlite else "at = 'infinity'"
    trail.attack(
        f"UPDATE audit_events SET {garbage} WHERE id = 17", "UPDATE audit_events SET actor = 'x' WHERE id = 20"
    )
    found = trail.faults()
    assert found[0] == "event 17 cannot be read any more (place 17)"
    assert found[1].startswith("event 20 (image.received")
    assert len(found) == 2


@sqlite_alone
def test_bytes_that_are_no_text_are_named_too(trail: Trail) -> None:
    trail.attack(
        "UPDATE audit_events SET actor = x'ff' WHERE id = 17",
        "UPDATE audit_events SET actor = CAST(x'ff' AS TEXT) WHERE id = 20",
        "UPDATE audit_events SET details = '}' WHERE action = 'audit.key_created'",
    )
    found = trail.faults()
    assert [what.split()[1] for what in found] == ["2", "17", "20"]


def test_places_that_there_are_not_hide_no_event(trail: Trail) -> None:
    _put_between(trail)
    trail.attack(f"INSERT INTO audit_chain VALUES (-1, 5000, '{'0' * 64}', '{'0' * 64}')")
    assert trail.faults() == ["place -1 of the chain: there is no such place"]


def test_an_event_that_was_deleted_is_missing(trail: Trail) -> None:
    trail.attack("DELETE FROM audit_events WHERE id = 17")
    assert trail.faults() == ["event 17 is missing (place 17)"]


def test_a_place_that_was_deleted_is_missing_and_its_event_has_none(trail: Trail) -> None:
    trail.attack("DELETE FROM audit_chain WHERE seq = 17")
    found = trail.faults()
    assert found[0] == "place 17 of the chain is missing"
    assert found[1].startswith("event 17 (image.received, ")
    assert found[1].endswith("has no place in the chain")
    assert len(found) == 2


@sqlite_alone
def test_events_that_were_deleted_with_their_places_leave_a_gap(trail: Trail) -> None:
    trail.attack(
        "DELETE FROM audit_chain WHERE seq BETWEEN 15 AND 17", "DELETE FROM audit_events WHERE id BETWEEN 15 AND 17"
    )
    assert trail.faults() == ["places 15 to 17 of the chain are missing"]


@sqlite_alone
def test_a_gap_at_the_beginning_is_one(trail: Trail) -> None:
    trail.attack("DELETE FROM audit_chain WHERE seq <= 3", "DELETE FROM audit_events WHERE id <= 3")
    assert trail.faults()[0] == "places 1 to 3 of the chain are missing"


def test_a_gap_that_was_closed_by_moving_what_follows_is_named(trail: Trail) -> None:
    trail.attack(
        "DELETE FROM audit_chain WHERE seq = 17",
        "DELETE FROM audit_events WHERE id = 17",
        "UPDATE audit_chain SET seq = 0 - seq WHERE seq > 17",
        "UPDATE audit_chain SET seq = 0 - seq - 1 WHERE seq < 0",
    )
    assert first(trail) == "place 17 of the chain: it does not follow on place 16"


@sqlite_alone
def test_what_a_node_left_unsigned_when_it_was_stopped_is_no_fault_when_it_starts(trail: Trail) -> None:
    clock.advance(timedelta(days=3))
    with trail.database.write() as session:
        audit.record(session, actor="a", action="tested", subject="study", subject_id=None)
    trail.chain()
    assert trail.check().well
    clock.advance(timedelta(minutes=3))
    assert trail.faults() == ["no head was signed behind place 32, although the chain went on"]


@pytest.mark.parametrize("column", ["hash", "previous_hash"])
def test_a_row_of_the_chain_itself_that_was_altered_is_named_and_its_event_is_not(trail: Trail, column: str) -> None:
    trail.attack(f"UPDATE audit_chain SET {column} = '{'0' * 64}' WHERE seq = 17")
    assert trail.faults() == ["place 17 of the chain: its row is not what was chained"]


@sqlite_alone
def test_two_events_that_changed_places_are_named(trail: Trail) -> None:
    trail.attack(
        "UPDATE audit_chain SET event_id = 999 WHERE seq = 17",
        "UPDATE audit_chain SET event_id = 17 WHERE seq = 18",
        "UPDATE audit_chain SET event_id = 18 WHERE seq = 17",
    )
    assert [fault.event_id for fault in trail.check().faults] == [18, 17]


def test_an_event_that_was_put_between_others_has_no_place(trail: Trail) -> None:
    _put_between(trail)
    (fault,) = trail.check().faults
    assert fault.what == "event 5000 (invented, 2026-01-01T02:00:00+00:00) has no place in the chain"


def _put_between(trail: Trail, number: int = 5000) -> None:
    with trail.attacked() as connection:
        connection.execute(
            AuditEvent.__table__.insert(),  # type: ignore[attr-defined]
            {
                "id": number,
                "at": BEGINNING + timedelta(hours=2),
                "actor": "a",
                "action": "invented",
                "subject": "study",
                "subject_id": 1,
                "details": {},
            },
        )


def test_a_chain_that_was_written_anew_over_an_altered_event_does_not_lead_to_its_heads(trail: Trail) -> None:
    trail.attack("UPDATE audit_events SET actor = 'nobody' WHERE id = 17")
    trail.chain_anew(16)
    (head, *_) = [head for head in _heads(trail) if head.place > 17]
    verdict = trail.check()
    assert verdict.faults[0].what == (
        f"the chain was written anew behind place 12: place {head.place} is not what was signed at {head.at}"
    )
    assert verdict.signed_to == 12


def test_a_chain_that_was_written_anew_from_its_beginning_says_so(trail: Trail) -> None:
    trail.attack("UPDATE audit_events SET actor = 'nobody' WHERE id = 1", "DELETE FROM audit_chain")
    trail.chain()
    assert first(trail).startswith("the chain was written anew behind its beginning: place 1 is not what was signed at")


def test_a_tail_that_was_cut_ends_before_the_head_that_was_signed_of_it(trail: Trail) -> None:
    head = _heads(trail)[-1]
    trail.attack(
        f"DELETE FROM audit_chain WHERE seq >= {head.place}", f"DELETE FROM audit_events WHERE id >= {head.place}"
    )
    assert trail.faults() == [
        f"the chain ends at place {head.place - 1}, before the head that was signed at {head.at} (place {head.place})"
    ]


@sqlite_alone
def test_a_whole_trail_that_was_emptied_ends_before_its_heads(trail: Trail) -> None:
    trail.attack("DELETE FROM audit_chain", "DELETE FROM audit_events")
    assert first(trail).startswith("the chain ends at place 0, before the head that was signed at ")


# --- heads --------------------------------------------------------------------------------------------------------


def _heads(trail: Trail) -> list[Head]:
    found = list(read_heads(head_files(heads_folder(trail.settings))))
    assert not any(isinstance(head, Damaged) for head in found)
    return [head for head in found if isinstance(head, Head)]


@sqlite_alone
def test_a_head_says_where_the_chain_stood_and_when(trail: Trail) -> None:
    first, second, *_ = _heads(trail)
    assert (first.format, first.at, first.previous) == (FORMAT, (BEGINNING + EVERY).isoformat(), None)
    assert (second.hash, second.previous) == (trail.places()[12].hash, first.digest)


@sqlite_alone
def test_heads_that_are_gone_are_missed(trail: Trail) -> None:
    for file in head_files(heads_folder(trail.settings)):
        file.unlink()
    assert trail.faults() == ["the signed heads are gone: none is in the folder"]


@sqlite_alone
def test_a_head_that_is_gone_is_missed_by_the_one_behind_it(trail: Trail) -> None:
    (file,) = head_files(heads_folder(trail.settings))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:1] + lines[2:]))
    (fault,) = trail.check().faults
    assert fault.what.startswith("the head before the one that was signed at ")
    assert fault.place == 22


@sqlite_alone
def test_heads_that_are_cut_off_are_missed_when_the_chain_went_on(trail: Trail) -> None:
    (file,) = head_files(heads_folder(trail.settings))
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    assert trail.faults() == ["no head was signed behind place 12, although the chain went on"]


@sqlite_alone
def test_a_head_that_was_altered_is_named_whatever_was_altered(trail: Trail) -> None:
    (file,) = head_files(heads_folder(trail.settings))
    lines = file.read_bytes().splitlines(keepends=True)
    signature, key, damaged = (
        "its signature does not match",
        "is signed by a key that is not known",
        "is no signed head",
    )
    changes: list[tuple[str, object, str]] = [
        ("place", 11, signature),
        ("hash", "0" * 64, signature),
        ("at", "2026-01-01T00:00:00+00:00", signature),
        ("previous", None, signature),
        ("signature", "00" * 64, signature),
        ("key", "0" * 64, key),
        ("format", "another", damaged),
    ]
    for field, value, said in changes:
        changed = json.dumps(json.loads(lines[1]) | {field: value}).encode() + b"\n"
        file.write_bytes(b"".join([lines[0], changed, *lines[2:]]))
        assert any(said in what for what in trail.faults()), field


@sqlite_alone
def test_half_a_head_as_a_power_cut_leaves_it_is_no_fault(trail: Trail) -> None:
    (file,) = head_files(heads_folder(trail.settings))
    file.write_bytes(file.read_bytes() + b'{"at":"2026-01')
    verdict = trail.check()
    assert verdict.well
    assert verdict.notes == [f"line 5 of {file.name} was not written to its end, as a power cut leaves it"]


@sqlite_alone
def test_heads_are_found_in_a_log_too(trail: Trail, tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logged:
        trail.goes_on(2)
        trail.signer.step()
    (line,) = [entry for entry in logged if entry["event"] == "audit head"]
    log = tmp_path / "server.log"
    log.write_text('{"event": "instance stored"}\nplain words\n' + json.dumps(line) + "\n")
    (head,) = read_heads([log])
    assert isinstance(head, Head)
    assert head == _heads(trail)[-1]
    for file in head_files(heads_folder(trail.settings)):
        file.unlink()
    trail.attack("DELETE FROM audit_chain WHERE seq >= 40")
    verdict = check(trail.database, read_heads([log]), known_keys(trail.settings), where="the log")
    assert any(fault.what.startswith("the chain ends at place 39") for fault in verdict.faults)


@sqlite_alone
def test_heads_lie_where_only_their_owner_reads_them(trail: Trail) -> None:
    folder = heads_folder(trail.settings)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in head_files(folder)} == {0o600}
    assert stat.S_IMODE(private_path(trail.settings).stat().st_mode) == 0o600


@sqlite_alone
def test_a_head_is_signed_when_it_is_time_or_there_are_enough_events_and_never_of_what_is_signed(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings(audit=AuditSettings(head_every=3600, head_events=5))
    upgrade(settings)
    database = Database.of(settings)
    trail = Trail(settings, database)
    assert trail.signer.step() == LOOK_SECONDS
    assert _heads(trail) == [], "there is nothing to sign"
    trail.goes_on(1, signed_every=1)  # and the key's event, which is place 2
    assert [head.place for head in _heads(trail)] == [1]
    trail.goes_on(3, signed_every=1)
    assert [head.place for head in _heads(trail)] == [1]
    trail.goes_on(1, signed_every=1)
    assert [head.place for head in _heads(trail)] == [1, 6]
    clock.advance(timedelta(hours=2))
    trail.sign()
    assert [head.place for head in _heads(trail)] == [1, 6]
    trail.goes_on(1, signed_every=1)
    assert [head.place for head in _heads(trail)] == [1, 6, 7]
    database.close()


@sqlite_alone
def test_several_sweepers_sign_one_chain_and_each_sees_what_the_others_signed(trail: Trail) -> None:
    other = Signer(trail.settings, trail.database)
    signed = len(_heads(trail))
    trail.goes_on(1)
    for signer in (other, trail.signer, other):
        signer.step()
    assert len(_heads(trail)) == signed + 1
    trail.goes_on(1)
    trail.signer.step()
    assert len(_heads(trail)) == signed + 2
    assert len(head_files(heads_folder(trail.settings))) == 2, "each writes files of its own"
    assert trail.check().well


@sqlite_alone
def test_what_an_old_key_signed_still_holds_when_there_is_a_new_one(trail: Trail) -> None:
    old, new = rotate(trail.settings)
    trail.goes_on(1, signed_every=1)
    assert {head.key for head in _heads(trail)} == {old, new.public.id}
    assert trail.check().well
    assert set(known_keys(trail.settings)) == {old, new.public.id}


@sqlite_alone
def test_a_key_that_cannot_be_used_is_said_once_and_signed_again_when_it_can(trail: Trail) -> None:
    path = private_path(trail.settings)
    kept = path.read_bytes()
    path.write_bytes(b"no key")
    signed = len(_heads(trail))
    trail.goes_on(1)
    with structlog.testing.capture_logs() as logged:
        assert trail.signer.step() > LOOK_SECONDS
        trail.signer.step()
    said = [entry for entry in logged if entry["event"] == "audit chain not signed"]
    assert len(said) == 1
    assert "signing.pem" in said[0]["why"]
    path.write_bytes(kept)
    trail.signer.step()
    assert len(_heads(trail)) == signed + 1


@sqlite_alone
def test_a_head_that_somebody_else_wrote_does_not_keep_the_sweeper_from_signing(trail: Trail) -> None:
    (file,) = head_files(heads_folder(trail.settings))
    forged = json.loads(file.read_bytes().splitlines()[-1]) | {"place": 10**9, "at": "2099-01-01T00:00:00+00:00"}
    file.with_name("2099-01.forged.jsonl").write_text(json.dumps(forged) + "\n")
    good = newest(heads_folder(trail.settings), known_keys(trail.settings))
    assert good is not None
    assert good.place == 32
    trail.goes_on(1, signed_every=1)
    good = newest(heads_folder(trail.settings), known_keys(trail.settings))
    assert good is not None
    assert good.place == 42


@sqlite_alone
def test_the_key_may_lie_elsewhere(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings(audit=AuditSettings(key=tmp_path / "vault" / "key.pem"))
    key = signing_key(settings)
    assert key.created
    assert not signing_key(settings).created
    assert (tmp_path / "vault" / "key.pem").is_file()
    assert set(known_keys(settings)) == {key.public.id}


# --- as commands --------------------------------------------------------------------------------------------------


@pytest.fixture
def node(trail: Trail, tmp_path: Path) -> Iterator[Node]:
    made = Node(trail.settings, tmp_path / "node.log")
    yield made
    made.stop()


def test_osteon_audit_verify_says_that_all_is_well_or_what_is_not(trail: Trail, node: Node) -> None:
    done = node.run("audit", "verify")
    assert done.returncode == 0, done.stderr
    assert "41 events, 41 places in the chain, 4 signed heads" in done.stdout
    assert "All is as it was recorded." in done.stdout
    trail.attack("UPDATE audit_events SET actor = 'nobody' WHERE id = 17")
    done = node.run("audit", "verify")
    assert done.returncode == 1
    assert (
        "BROKEN: event 17 (image.received, 2026-01-01T02:40:00+00:00): its row is not what was chained" in done.stdout
    )
    done = node.run("audit", "verify", "--json", "--progress")
    found: dict[str, Any] = json.loads(done.stdout)
    assert "checked 41 of 41" in done.stderr.splitlines()
    assert (done.returncode, found["well"]) == (1, False)
    assert [(fault["event"], fault["place"]) for fault in found["faults"]] == [(17, 17)]


@sqlite_alone
def test_osteon_audit_verify_exits_with_2_where_it_cannot_check(trail: Trail, node: Node, tmp_path: Path) -> None:
    assert node.run("audit", "verify", "--heads", str(tmp_path / "nowhere")).returncode == 2
    key = tmp_path / "key.pem"
    key.write_text("none")
    done = node.run("audit", "verify", "--key", str(key))
    assert done.returncode == 2
    assert "no public key" in done.stderr
    trail.attack("UPDATE alembic_version SET version_num = 'another'")
    assert node.run("audit", "verify").returncode == 2


@sqlite_alone
def test_osteon_audit_key_prints_the_public_key_and_makes_a_new_one(trail: Trail, node: Node, tmp_path: Path) -> None:
    before = node.run("audit", "key")
    key = tmp_path / "key.pem"
    key.write_text(before.stdout)
    assert node.run("audit", "verify", "--key", str(key)).returncode == 0
    after = node.run("audit", "key", "--rotate", "--by", "night shift", "--json")
    made = json.loads(after.stdout)
    assert made["public_key"] != before.stdout
    assert made["others"] == [signed.key for signed in _heads(trail)][:1]
    event = _all(trail)[-1]
    assert (event.action, event.actor, event.details["key"]) == ("audit.key_rotated", "night shift", made["key"])
    assert node.run("audit", "verify").returncode == 0
