"""Audit events are found by person, study, time and kind, on both databases, and go out as files that anyone checks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models import audit, clock
from models.audit_export import Made, export
from models.audit_search import Page, Position, Search, count, rows_of_study, search, study_of
from models.database import Database
from models.settings import Settings
from models.signing import signing_key
from models.tables import Base
from models.tables.base import Utc
from tests.servers import Node
from tests.trail import BEGINNING, EVERY, Trail

sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)  # where the database does not matter
UID = "1.2.826.0.1.3680043.7"


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    with clock.frozen(BEGINNING):
        yield


@pytest.fixture
def trail(settings: Settings, database: Database) -> Trail:
    return Trail(settings, database)


@pytest.fixture
def node(trail: Trail, tmp_path: Path) -> Iterator[Node]:
    made = Node(trail.settings, tmp_path / "node.log")
    yield made
    made.stop()


def find(trail: Trail, after: Position | None = None, size: int = 50, **wanted: Any) -> Page:
    with trail.database.read() as session:
        return search(session, Search(**wanted), after=after, size=size)


def ids(page: Page) -> list[int]:
    return [entry.event.id for entry in page.entries]


# --- searching ----------------------------------------------------------------------------------------------------


def test_events_are_found_by_who_what_and_about_what_the_newest_first(trail: Trail) -> None:
    trail.goes_on(2)  # 1, 2
    trail.goes_on(2, actor="worker@host:8", action="image.analysed", subject="prediction")  # 3, 4
    trail.goes_on(1, actor="night shift", action="study.viewed", subject="study")  # 5
    trail.goes_on(1, actor="worker@host:9", action="report.created", subject="report")  # 6
    assert ids(find(trail)) == [6, 5, 4, 3, 2, 1]
    assert ids(find(trail, actor="night shift")) == [5]
    assert ids(find(trail, actor="worker@*")) == [6, 4, 3]
    assert ids(find(trail, actor="worker@host:8", action="image.analysed")) == [4, 3]
    assert ids(find(trail, action="image.*")) == [4, 3, 2, 1]
    assert ids(find(trail, actor="Worker@*")) == [], "names are what they are"
    assert ids(find(trail, actor="%")) == []
    assert ids(find(trail, subject="prediction")) == [4, 3]
    assert ids(find(trail, subject="prediction", subject_id=2)) == [4]
    assert ids(find(trail, subject_id=2)) == [4, 2]
    assert ids(find(trail, subject="prediction", subject_id=2, actor="nobody")) == []
    assert [entry.place for entry in find(trail, size=2).entries] == [6, 5]


def test_events_are_found_by_time(trail: Trail) -> None:
    trail.goes_on(6)

    def at(number: int) -> datetime:
        return BEGINNING + number * EVERY

    assert ids(find(trail, since=at(3))) == [6, 5, 4, 3]
    assert ids(find(trail, before=at(3))) == [2, 1]
    assert ids(find(trail, since=at(2), before=at(5), action="image.received")) == [4, 3, 2]


def test_pages_follow_each_other_without_gap_and_are_not_moved_by_what_happens_meanwhile(trail: Trail) -> None:
    with clock.frozen(BEGINNING), trail.database.write() as session:
        for _ in range(7):  # all at the same moment
            audit.record(session, actor="a", action="tested", subject="study", subject_id=1)
    seen: list[int] = []
    page = find(trail, size=3)
    while True:
        seen += ids(page)
        if page.following is None:
            break
        trail.goes_on(1)
        page = find(trail, after=page.following, size=3)
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    assert ids(find(trail, size=10**9))[-1] == 1


def fill_study(trail: Trail, number: int) -> None:
    """A row of every kind that belongs to a study, with its number."""
    values = {int: number, bool: False, bytes: b"", float: 0.5, dict: {}}
    wanted: dict[str, dict[str, Any]] = {
        "associations": {"uid": str(number)},
        "studies": {"study_instance_uid": f"{UID}{number}", "state": "receiving"},
        "images": {"state": "received", "sop_instance_uid": f"{UID}{number}.1"},
        "files": {"kind": "instance", "key": str(number)},
        "model_versions": {"bundle_sha256": str(number)},
        "predictions": {},
        "reviews": {},
        "quarantine": {},
        "reports": {"sop_instance_uid": f"{UID}{number}.2"},
        "deliveries": {"state": "due"},
    }
    with trail.database.write() as session:
        for name, given in wanted.items():
            table = Base.metadata.tables[name]
            row = {
                column.name: BEGINNING if isinstance(column.type, Utc) else values.get(column.type.python_type, "x")
                for column in table.columns
                if not column.nullable or column.name == "image_id"
            }
            session.execute(table.insert().values(row | given | {"id": number}))


def test_the_events_of_a_study_are_those_of_everything_that_belongs_to_it(trail: Trail) -> None:
    for number in (7, 8):
        fill_study(trail, number)
    kinds = ("study", "image", "file", "prediction", "review", "quarantine", "report", "delivery")
    for kind in (*kinds, "commitment_request", "model_version"):
        for number in (7, 8):
            with trail.database.write() as session:
                clock.advance(EVERY)
                audit.record(session, actor="a", action=f"{kind}.tested", subject=kind, subject_id=number)
    with trail.database.read() as session:
        assert rows_of_study(session, 7) == {kind: [7] for kind in kinds}
        assert study_of(session, f"{UID}7") == study_of(session, "7") == 7
        assert study_of(session, "1.2.3") is study_of(session, "9") is study_of(session, "９") is None
    page = find(trail, study_id=7)
    assert [entry.event.subject for entry in page.entries] == list(reversed(kinds))
    assert {entry.event.subject_id for entry in page.entries} == {7}
    first = find(trail, study_id=7, size=5)
    assert ids(first) + ids(find(trail, study_id=7, after=first.following)) == ids(page)
    assert [entry.event.subject for entry in find(trail, study_id=7, subject="report").entries] == ["report"]
    assert len(ids(find(trail, study_id=7, since=BEGINNING + 9 * EVERY))) == 4
    assert ids(find(trail, study_id=7, actor="nobody")) == []


def test_looking_at_a_study_is_an_event_and_a_page_that_is_drawn_again_is_no_other(trail: Trail) -> None:
    def look(actor: str = "dr a", study_id: int = 1, where: str = "page: study") -> bool:
        with trail.database.write() as session:
            return audit.viewed(session, actor=actor, study_id=study_id, where=where)

    assert [look(), look(), look()] == [True, False, False]
    assert [look("dr b"), look(study_id=2), look(where="page: worklist")] == [True, True, True]
    clock.advance(timedelta(minutes=11))
    assert look()
    events = find(trail, action="study.viewed").entries
    assert [(entry.event.actor, entry.event.subject_id) for entry in events][-1] == ("dr a", 1)
    assert events[-1].event.details == {"where": "page: study"}


def test_osteon_audit_list_shows_and_filters_and_pages(trail: Trail, node: Node) -> None:
    fill_study(trail, 7)
    trail.goes_on(3)
    trail.goes_on(1, actor="night shift", action="study.viewed", subject="study", subject_id=7)
    done = node.run("audit", "list", "--study", f"{UID}7")
    assert done.returncode == 0, done.stderr
    assert "night shift" in done.stdout
    assert "listener" not in done.stdout
    listed = json.loads(node.run("audit", "list", "--limit", "3", "--json", "--to", "2026-01-01").stdout)
    assert [event["id"] for event in listed["events"]] == [4, 3, 2]
    assert listed["events"][0]["place"] == 4
    more = json.loads(node.run("audit", "list", "--after", str(listed["following"]), "--json").stdout)
    assert [event["id"] for event in more["events"]] == [1]
    assert more["following"] is None


@sqlite_alone
def test_osteon_audit_list_says_what_is_not_understood(trail: Trail, node: Node) -> None:
    trail.goes_on(1)
    for arguments, status, said in (
        (("--study", "1.2.3"), 1, "there is no study 1.2.3"),
        (("--after", "99"), 1, "there is no event 99"),
        (("--from", "yesterday"), 2, "2026-01-31"),
        (("--subject", "delivery:x"), 2, "delivery:12"),
    ):
        done = node.run("audit", "list", *arguments)
        assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert "No such event." in node.run("audit", "list", "--by", "nobody").stdout


def test_a_person_is_found_by_name_however_they_came_and_nobody_else(trail: Trail) -> None:
    for actor in ("person:rita", "rita", "rita@host", "person:ritaa"):
        trail.goes_on(1, actor=actor, action="study.viewed")
    assert ids(find(trail, person="rita")) == [2, 1]
    assert ids(find(trail, person="rita", action="study.*", since=BEGINNING + 2 * EVERY)) == [2]
    assert ids(find(trail, person="nobody")) == []


def test_events_are_counted_as_far_as_it_matters(trail: Trail) -> None:
    trail.goes_on(7)
    with trail.database.read() as session:
        assert [count(session, Search(), most=most) for most in (3, 7, 100)] == [4, 7, 7]
        assert count(session, Search(since=BEGINNING + 3 * EVERY), most=100) == 5
        assert count(session, Search(study_id=1), most=100) == 0


# --- export -------------------------------------------------------------------------------------------------------

WITHOUT_A_NODE = """
import sys
sys.modules.update(dict.fromkeys(("psycopg", "sqlite3")))
from console.main import app
app(sys.argv[1:])
"""


def test_an_export_is_checked_on_a_machine_that_knows_neither_database_nor_settings(
    trail: Trail, node: Node, tmp_path: Path
) -> None:
    trail.goes_on(25, signed_every=5)
    file, key = tmp_path / "trail.jsonl", tmp_path / "key.pem"
    done = node.run(
        "audit", "export", str(file), "--by", "auditor", "--from", "2026-01-01T01:00", "--to", "2026-01-01", "--json"
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    key.write_text(node.run("audit", "key").stdout)
    (event,) = (entry.event for entry in find(trail, action="audit.exported").entries)
    assert (event.actor, event.details["sha256"], event.details["events"]) == (
        "auditor",
        made["sha256"],
        made["events"],
    )
    for given in ((), ("--key", str(key))):
        done = elsewhere(tmp_path, "audit", "verify", str(file), *given)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{made['events']} events as they were exported" in done.stdout
    assert "compare it" not in done.stdout, "the key was given"
    again = node.run("audit", "export", str(file))
    assert again.returncode == 1
    assert "is there already" in again.stderr

    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4] + lines[5:]))
    done = elsewhere(tmp_path, "audit", "verify", str(file), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["faults"][0] == "line 5 is missing"
    file.write_text("something else\n")
    done = elsewhere(tmp_path, "audit", "verify", str(file))
    assert done.returncode == 2
    assert "no line of it is one of an audit export" in done.stderr
    assert elsewhere(tmp_path, "audit", "verify", str(tmp_path / "nowhere")).returncode == 2


def elsewhere(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `osteon ARGUMENTS` with settings that nobody could use, and without any database's driver."""
    environment = {"OSTEON_NONSENSE": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_A_NODE, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_export_of_a_study_holds_its_events_and_no_others(trail: Trail, node: Node, tmp_path: Path) -> None:
    fill_study(trail, 7)
    trail.goes_on(8)  # of images 1 to 8
    file = tmp_path / "study.jsonl"
    assert node.run("audit", "export", str(file), "--study", f"{UID}7").returncode == 0
    header, *events, last = map(json.loads, file.read_text().splitlines())
    assert header["study"] == f"{UID}7"
    assert [event["event"]["subject_id"] for event in events] == [7]
    assert last["events"] == 1
    assert elsewhere(tmp_path, "audit", "verify", str(file)).returncode == 0


@sqlite_alone
def test_nothing_is_left_of_an_export_that_failed(trail: Trail, tmp_path: Path) -> None:
    trail.goes_on(1)

    def fail(_: Made) -> None:
        raise RuntimeError("the database is away")

    with pytest.raises(RuntimeError):
        export(
            trail.database,
            tmp_path / "file.jsonl",
            Search(),
            by="a",
            key=signing_key(trail.settings),
            head=None,
            record=fail,
        )
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_names_as_long_as_they_may_be_are_kept_and_found(trail: Trail) -> None:
    with trail.database.write() as session:
        audit.record(session, actor="a" * 128, action="b" * 64, subject="c" * 32, subject_id=None)
    (entry,) = find(trail, actor="a" * 128, action="b" * 64).entries
    assert entry.event.subject == "c" * 32
