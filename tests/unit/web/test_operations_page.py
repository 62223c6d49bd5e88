"""The operations page, as Streamlit runs it: what it shows, to whom, and who may change what by it."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

from console import access
from console.access import Denied, Person, Role
from console.doctor.verdict import Standing
from console.pacs import StorageScp
from console.ports import free_port
from console.web import operations, parts, state, who
from console.web.bars import bars
from console.web.parts import PartsLook
from models import clock
from models.database import Database
from models.settings import Peer, Settings
from models.tables import (
    CommitmentRequest,
    CommitmentRequestState,
    Delivery,
    DeliveryState,
    DestinationState,
    ImageState,
    Quarantine,
    StudyState,
)
from models.upgrade import upgrade
from tests.integration.test_claims import delivery, image, study
from tests.servers import given, wait_until
from tests.unit.web.test_pages import Visit, run, shown

OPERATIONS = """
from console.web import operations
operations.page()
"""
HOUR = timedelta(hours=1)
NOBODY = "127.0.0.1"
OTHERS = [role for role in Role if role is not Role.ADMINISTRATOR]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a record with something of everything."""
    settings = given(tmp_path_factory.mktemp("operations") / "node")
    upgrade(settings)
    now = clock.now()
    with closing(Database.of(settings)) as opened, opened.write() as session:
        of = study(session, "1.1", state=StudyState.REPORTED, calling_ae_title="ROOM")
        moments = ("first_image_at", "last_image_at")
        study(session, "1.2", **dict.fromkeys(moments, now - 3 * HOUR), calling_ae_title="ROOM")
        image(session, of, "1", received_at=now - 2 * HOUR)
        image(session, of, "2", state=ImageState.NOT_ANALYSED, reason="blank", received_at=now, rank_at=now)
        failed = {"state": DeliveryState.NEEDS_ATTENTION, "tries": 20, "created_at": now, "rank_at": now}
        delivery(session, of, "pacs", 1, **failed, reason="refused", status=0xA900)
        delivery(session, of, "ris", 1, **failed, reason="not_reached")
        delivery(session, of, "pacs", 2, due_at=now + HOUR, created_at=now, tries=3, reason="no_answer")
        session.add(DestinationState(name="pacs", due_at=now + HOUR, failures=2, reason="not_reached"))
        asked = {"transaction_uid": "2.25.1", "instances": [], "received_at": now, "rank_at": now, "due_at": now}
        state_of_it = CommitmentRequestState.NEEDS_ATTENTION
        session.add(CommitmentRequest(peer="room", state=state_of_it, reason="not_reached", tries=20, **asked))
        session.add(
            Quarantine(
                study_id=of.id,
                reason="same_uid_other_pixels",
                dataset_sha256="",
                calling_ae_title="ROOM",
                received_at=now,
            )
        )
    return settings.data_dir


@pytest.fixture
def settings(template: Path, tmp_path: Path) -> Settings:
    shutil.copytree(template, tmp_path / "node")
    peers = [
        Peer(name="room", ae_title="ROOM", role="source", silent_after=1),
        Peer(name="pacs", ae_title="PACS", role="destination", host=NOBODY, port=free_port()),
        Peer(name="ris", protocol="hl7", role="destination", host=NOBODY, port=free_port()),
    ]
    return given(tmp_path / "node", peers=peers)


@pytest.fixture
def database(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    opened = Database.of(settings)
    monkeypatch.setattr(state, "settings", lambda: settings)
    monkeypatch.setattr(state, "database", lambda: opened)
    yield opened
    opened.close()


@pytest.fixture
def visit(database: Database, monkeypatch: pytest.MonkeyPatch) -> Visit:
    return Visit(database, monkeypatch)


def states(database: Database) -> list[tuple[str, str, int]]:
    """How it stands with the deliveries: where to, in what state, after how many tries."""
    with database.read() as session:
        rows = session.scalars(select(Delivery).order_by(Delivery.id)).all()
    return [(row.destination, row.state.value, row.tries) for row in rows]


def request_state(database: Database) -> CommitmentRequestState:
    with database.read() as session:
        return session.scalars(select(CommitmentRequest.state)).one()


def press(page: AppTest, label: str) -> AppTest:
    (button,) = [button for button in page.button if button.label == label]
    return button.click().run()


@pytest.mark.parametrize("role", Role)
def test_every_role_sees_how_the_node_stands_and_an_administrator_alone_gets_buttons(visit: Visit, role: Role) -> None:
    visit.as_a(role)
    page = run(OPERATIONS)
    text = shown(page)
    for said in (
        "Images wait to be read, for more than 30 minutes",
        "2 deliveries need attention",
        "1 in quarantine",
        "Room has gone silent: nothing since",
        "silent_after is 1 h",
        "<td>Images to read</td><td>1</td>",
        "2 h",
        "Images read, last 24 h",
        "The image is blank.",
        "<td>Refused</td><td>A900</td><td>20</td>",
        "Not reached, 2 tries in vain",
        "pydicom, pynetdicom",
        "GiB are free",
        "revision ",
    ):
        assert said in text
    buttons = {button.label for button in page.button}
    assert buttons == ({"Retry", "Retry all …", "Echo"} if role is Role.ADMINISTRATOR else set())
    assert visit.audited() == []


def test_whoever_has_not_signed_in_sees_nothing_of_it(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    visit.as_a(Role.ADMINISTRATOR)
    monkeypatch.setattr(who, "cookies", dict)
    page = run(OPERATIONS)
    assert "You are not signed in" in shown(page)
    assert not page.button
    assert "Images to read" not in shown(page)


def test_a_period_is_chosen_for_the_failures(visit: Visit, database: Database) -> None:
    long_ago = clock.now() - timedelta(days=5)
    with database.write() as session:
        of = study(session, "5")
        moments = {"received_at": long_ago, "rank_at": long_ago}
        image(session, of, "5", state=ImageState.NOT_ANALYSED, reason="photograph", **moments)
    visit.as_a(Role.AUDITOR)
    page = run(OPERATIONS)
    assert "colour picture" not in shown(page)
    page.selectbox(key="operations_period").set_value("7 days").run()
    assert "colour picture" in shown(page)


# --- trying again -----------------------------------------------------------------------------------------------------


def test_an_administrator_retries_one_delivery_and_nothing_else(visit: Visit, database: Database) -> None:
    name = visit.as_a(Role.ADMINISTRATOR)
    page = run(OPERATIONS)
    page.selectbox(key="operations_chosen").set_value("Delivery 2 to ris")
    page = press(page, "Retry")
    assert states(database) == [("pacs", "needs_attention", 20), ("ris", "due", 0), ("pacs", "due", 3)]
    assert request_state(database) is CommitmentRequestState.NEEDS_ATTENTION
    assert visit.audited() == [(f"person:{name}", "report.delivery.retry", {"reason": "not_reached"})]
    text = shown(page)
    assert "Delivery 2 to ris: due now." in text
    assert "1 deliveries need attention" in text


def test_an_administrator_has_a_sender_answered_again(visit: Visit, database: Database) -> None:
    name = visit.as_a(Role.ADMINISTRATOR)
    page = run(OPERATIONS)
    page.selectbox(key="operations_chosen").set_value("Request 1 of room")
    press(page, "Retry")
    assert request_state(database) is CommitmentRequestState.DUE
    assert [tries for _, _, tries in states(database)] == [20, 20, 3]
    assert visit.audited() == [(f"person:{name}", "commitment.answer.retry", {"reason": "not_reached"})]


def test_what_was_delivered_meanwhile_is_not_sent_again_nor_another_in_its_place(
    visit: Visit, database: Database
) -> None:
    visit.as_a(Role.ADMINISTRATOR)
    page = run(OPERATIONS)
    with database.write() as session:
        for row in session.scalars(select(Delivery)):
            row.state = DeliveryState.DELIVERED
    page = press(page, "Retry")
    assert "Delivery 1 to pacs: it waits no more." in shown(page)
    assert {state for _, state, _ in states(database)} == {"delivered"}
    assert request_state(database) is CommitmentRequestState.NEEDS_ATTENTION
    assert visit.audited() == []


def test_a_role_that_was_taken_away_meanwhile_retries_nothing(visit: Visit, database: Database) -> None:
    name = visit.as_a(Role.ADMINISTRATOR)
    page = run(OPERATIONS)
    access.set_roles(database, name, [Role.VIEWER], by="login:root")
    before = states(database)
    page = press(page, "Retry")
    assert states(database) == before
    assert not page.button
    assert visit.audited() == [(f"person:{name}", "access.denied", {"wanted": "delivery.retry"})]


def test_everything_is_retried_only_after_it_was_asked_once_more(visit: Visit, database: Database) -> None:
    name = visit.as_a(Role.ADMINISTRATOR)
    before = states(database)
    page = press(run(OPERATIONS), "Retry all …")
    assert "Retry everything that needs attention" in shown(page)
    page = press(page, "Cancel")
    assert "Retry everything" not in shown(page)
    assert states(database) == before
    assert visit.audited() == []
    page = press(press(page, "Retry all …"), "Yes, retry all")
    assert "4 are due now." in shown(page)
    assert states(database) == [("pacs", "due", 0), ("ris", "due", 0), ("pacs", "due", 0)]
    assert request_state(database) is CommitmentRequestState.DUE
    assert {actor for actor, _, _ in visit.audited()} == {f"person:{name}"}
    assert len(visit.audited()) == 4


ACTIONS: dict[str, Callable[[Database, Settings, Person], object]] = {
    "retry one": lambda database, _, person: operations.retry_delivery(database, person, 1),
    "answer one": lambda database, _, person: operations.retry_request(database, person, 1),
    "retry all": lambda database, _, person: operations.retry_all(database, person),
    "echo": lambda _, settings, person: operations.echo(person, settings, "pacs"),
}


@pytest.mark.parametrize("role", OTHERS)
@pytest.mark.parametrize("action", ACTIONS)
def test_nobody_else_does_it_by_asking_for_it_directly(
    visit: Visit, database: Database, settings: Settings, action: str, role: Role
) -> None:
    before = states(database)
    with pytest.raises(Denied, match="administrator"):
        ACTIONS[action](database, settings, Person("eve", frozenset({role}), 1))
    assert states(database) == before
    assert request_state(database) is CommitmentRequestState.NEEDS_ATTENTION
    wanted = "peer.echo" if action == "echo" else "delivery.retry"
    assert visit.audited() == [("person:eve", "access.denied", {"wanted": wanted})]


# --- asking peers -----------------------------------------------------------------------------------------------------


ADAM = Person("adam", frozenset({Role.ADMINISTRATOR}), 1)


def test_an_administrator_asks_a_peer_for_an_echo(visit: Visit, settings: Settings, tmp_path: Path) -> None:
    pacs = StorageScp(tmp_path)
    peer = Peer(name="pacs", ae_title=pacs.ae_title, role="destination", host="127.0.0.1", port=pacs.port)
    try:
        findings = operations.echo(ADAM, settings.model_copy(update={"peers": [peer]}), "pacs")
    finally:
        pacs.stop()
    assert findings[0].said == f"{pacs.ae_title} at 127.0.0.1:{pacs.port} answers C-ECHO"
    assert visit.audited() == [("person:adam", "peer.echoed", {"peer": "pacs", "standing": "ok"})]


def test_a_peer_that_is_away_is_told_on_the_page_with_what_to_do(visit: Visit) -> None:
    name = visit.as_a(Role.ADMINISTRATOR)
    page = run(OPERATIONS)
    page.selectbox(key="operations_peer").set_value("ris")
    text = shown(press(page, "Echo"))
    assert "Nothing listens at 127.0.0.1" in text
    assert "Start it, or correct its port" in text
    assert visit.audited() == [(f"person:{name}", "peer.echoed", {"peer": "ris", "standing": "wrong"})]


@pytest.mark.usefixtures("database")
def test_peers_that_hang_take_a_bounded_time_and_never_more_than_a_few_threads(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "LONGEST_ECHO_SECONDS", 0.3)
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen(20)
        peer = Peer(name="pacs", ae_title="PACS", role="destination", host="127.0.0.1", port=hanging.getsockname()[1])
        peers = settings.model_copy(update={"peers": [peer]})
        told = [operations.echo(ADAM, peers, "pacs") for _ in range(operations.ECHOES_AT_ONCE + 1)]
    assert [findings[-1].standing for findings in told] == [Standing.WRONG] * len(told)
    assert {findings[-1].said for findings in told[:-1]} == {"did not end within 0.3 seconds"}
    assert told[-1][-1].said == "several peers are being asked already"
    freed = [operations._echoes.acquire(timeout=30) for _ in range(operations.ECHOES_AT_ONCE)]
    assert all(freed), "a place is free again as soon as its thread has ended"
    for _ in freed:
        operations._echoes.release()


# --- the parts, and the bars ------------------------------------------------------------------------------------------


def test_the_parts_are_asked_beside_the_pages_by_one_thread_at_a_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Semaphore(0), threading.Event()

    def slowly(_settings: Settings, _seconds: float) -> list[object]:
        asked.release()
        go_on.wait(60)
        return []

    monkeypatch.setattr(parts, "look_at_parts", slowly)
    look = PartsLook()
    assert [look.latest(settings) for _ in range(5)] == [None] * 5
    assert asked.acquire(timeout=30)
    go_on.set()
    answer = wait_until(lambda: look.latest(settings), what="the thread has brought an answer")
    assert [finding.area for finding in answer.findings] == ["broker"]
    assert not asked.acquire(blocking=False), "and it is not asked again so soon"
    with clock.frozen(clock.now() + timedelta(minutes=2)):
        assert look.latest(settings) is None, "what was asked long ago says nothing of now"


def test_bars_say_in_words_what_they_show_and_nothing_is_no_bar() -> None:
    html = bars("Images <read>", ["00:00", "01:00", "02:00"], [0, 1200, 6]).html
    assert 'aria-label="Images &lt;read&gt;: 1,206 in all, most in the hour from 01:00: 1,200"' in html
    assert [part.split("%")[0] for part in html.split("height:")[2:]] == ["0.0", "100.0", "3.0"]
    assert "0 in all" in bars("Nothing", ["00:00"], [0]).html
