"""The console in a real browser (Chromium): who gets in, what they see, and whether everybody can use it.

What it looked like is left in `build/web` for people to look at.
"""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from sqlalchemy import select

pytest.importorskip("streamlit")
pytest.importorskip("playwright")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from console import access
from console.access import Role
from console.pacs import StorageScp
from console.ports import free_port
from dicom_node.objects.template import check_report
from dicom_node.sender import Result, send
from models.append_only import protect
from models.settings import Peer, StudySettings, WebSettings
from models.tables import AuditChain, AuditEvent, Delivery, DeliveryState, ModelVersion, Prediction, Review, Study, User
from models.upgrade import upgrade
from tests import litert
from tests.peers import require_peer
from tests.servers import Node, Valkey, given, renewed, wait_until
from tests.trail import Trail
from worker import activation

PASSWORD = "correct horse battery"
PEOPLE = {"vera": Role.VIEWER, "adam": Role.AUDITOR, "rita": Role.REVIEWER, "ada": Role.ADMINISTRATOR}
SHOTS = Path(__file__).resolve().parents[2] / "build" / "web"
# What axe finds in elements of Streamlit's own, by rule and element. Whatever else it finds fails the test.
STREAMLITS_OWN = {
    # The drop area is both "presentation" and named; the button in it, which the keyboard reaches, is neither.
    ("presentation-role-conflict", 'data-testid="stFileUploaderDropzone"'),
}

_WEBSOCKET = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, radiographs: dict[str, Path]) -> Iterator[Node]:
    """A whole node, console included, to which a study was sent and which has reported it."""
    folder = tmp_path_factory.mktemp("web")
    valkey = Valkey(folder)
    valkey.start()
    pacs = StorageScp(folder)
    settings = given(
        folder / "node",
        broker_url=valkey.url,
        study=StudySettings(quiet_time=1),
        peers=[
            Peer(name="room", ae_title="ROOM", role="source"),
            Peer(name="pacs", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.port, role="destination"),
        ],
        web=WebSettings(port=free_port()).model_dump(),
    )
    upgrade(settings)
    made = Node(settings, folder / "node.log")
    try:
        made.start("up")
        made.wait_until_listening()
        study = renewed(radiographs["RG3"], folder / "tibia.dcm", study=True)
        (outcome,) = [outcome for _, outcome in send(made.address, [study], calling_ae_title="ROOM", timeout=30)]
        assert outcome.result is Result.DELIVERED
        wait_until(lambda: _is_delivered(made), seconds=90, what="the study is reported, and the report delivered")
        wait_until(lambda: _status(made, "/_stcore/health") == 200, seconds=90, what="the console answers")
        yield made
    finally:
        made.stop()
        pacs.stop()
        valkey.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = require_peer("chromium")
    expect.set_options(timeout=45_000)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, accept_downloads=True)
    context.set_default_timeout(45_000)
    yield context.new_page()
    context.close()


def _is_delivered(node: Node) -> bool:
    with node.database.read() as session:
        return session.scalars(select(Delivery.state)).first() is DeliveryState.DELIVERED


def _address(node: Node) -> str:
    return f"http://127.0.0.1:{node.settings.web.port}"


def _status(node: Node, path: str, **headers: str) -> int:
    """What the console answers to a request that no page of it made; 0 where it does not."""
    connection = http.client.HTTPConnection("127.0.0.1", node.settings.web.port, timeout=20)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse().status
    except ConnectionError:
        return 0
    finally:
        connection.close()


def _actions(node: Node) -> list[tuple[str, str]]:
    with node.database.read() as session:
        rows = session.execute(select(AuditEvent.actor, AuditEvent.action).order_by(AuditEvent.id)).all()
    return [(actor, action) for actor, action in rows]


def _sign_in(page: Page, node: Node, name: str, password: str = PASSWORD) -> None:
    with node.database.read() as session:
        known = session.scalar(select(User.id).where(User.name == name))
    if known is None:
        access.add_user(node.database, name, PASSWORD, [PEOPLE[name]], by="login:root")
    page.goto(_address(node))
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def _look(page: Page, name: str, *, height: int = 1000) -> None:
    """Keep what the page looks like in a window of this height, and have axe look at it."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.set_viewport_size({"width": 1600, "height": height})
    page.evaluate("document.querySelector('[data-testid=stMain]')?.scrollTo(0, 0)")
    page.wait_for_timeout(500)
    page.screenshot(path=SHOTS / f"{name}.png")
    found = Axe().run(page).response["violations"]
    ours = {
        f"{violation['id']}: {node['html'][:160]}"
        for violation in found
        for node in violation["nodes"]
        if not any(rule == violation["id"] and element in node["html"] for rule, element in STREAMLITS_OWN)
    }
    assert not ours, "\n".join(sorted(ours))


@pytest.mark.timeout(240)
def test_without_accounts_this_machine_alone_is_served_by_its_own_name(node: Node, page: Page) -> None:
    assert _status(node, "/", Accept="text/html") == 200
    assert _status(node, "/", Accept="text/html", Host="osteon.example") == 403
    assert _status(node, "/", Accept="text/html", X_Forwarded_For="10.0.0.9") == 403
    assert _status(node, "/_stcore/host-config", Host="osteon.example") == 401
    # The connection on which a page lives: not for pages of other sites, nor of other servers on this machine.
    host = f"127.0.0.1:{node.settings.web.port}"
    assert _status(node, "/_stcore/stream", **_WEBSOCKET, Origin=f"http://{host}") == 101
    for origin in ("http://evil.example", "http://127.0.0.1:8000", "null"):
        assert _status(node, "/_stcore/stream", **_WEBSOCKET, Origin=origin) == 403
    page.goto(_address(node))
    expect(page.get_by_text("this machine alone is served")).to_be_visible()
    expect(page.get_by_role("cell", name="ROOM")).to_be_visible()
    _look(page, "worklist-without-sign-in")


@pytest.mark.timeout(240)
def test_from_the_first_account_on_nothing_is_served_without_sign_in(node: Node, page: Page) -> None:
    _sign_in(page, node, "vera", "a wrong password")
    expect(page.get_by_role("alert")).to_contain_text("Name and password do not fit")
    _look(page, "sign-in")
    for path in ("/_stcore/stream", "/_stcore/host-config", "/media/1.png", "/_stcore/upload_file/a/b"):
        assert _status(node, path) == 401
    assert _status(node, "/_stcore/stream", **_WEBSOCKET) == 403
    assert _status(node, "/try", Accept="text/html") == 303
    assert _status(node, "/_stcore/agent/openapi.json") == 404
    assert ("person:vera", "sign_in.failed") in _actions(node)


@pytest.mark.timeout(240)
def test_a_person_signs_in_finds_a_study_and_signs_out(node: Node, page: Page) -> None:
    _sign_in(page, node, "vera")
    expect(page.get_by_role("table", name="Studies").get_by_role("row")).to_have_count(2)
    with node.database.read() as session:
        study = session.scalars(select(Study)).one()
    page.get_by_label("Patient ID").fill(study.patient_id)
    page.keyboard.press("Enter")
    expect(page.get_by_role("cell", name=study.patient_id, exact=True)).to_be_visible()
    expect(page.get_by_text("◆ Fracture")).to_be_visible()
    _look(page, "worklist")
    page.get_by_label("Patient ID").fill("nobody's")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("No study is found.")).to_be_visible()
    # Neither address nor title says who is looked at, and scripts cannot read the cookie.
    assert (page.title(), page.url) == ("Osteon", _address(node) + "/")
    assert "osteon_session" not in page.evaluate("document.cookie")
    (cookie,) = [cookie for cookie in page.context.cookies() if cookie["name"] == "osteon_session"]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are not signed in (any more).")).to_be_visible()
    assert _status(node, "/", Accept="text/html", Cookie=f"osteon_session={cookie['value']}") == 303
    done = [action for actor, action in _actions(node) if actor == "person:vera"]
    assert {"signed.in", "worklist.viewed", "signed.out"} <= set(done)


@pytest.mark.timeout(240)
def test_a_reviewer_opens_a_study_looks_at_it_and_disagrees(node: Node, page: Page) -> None:
    _sign_in(page, node, "rita")
    page.get_by_role("table", name="Studies").get_by_role("link").click()
    heat = page.get_by_alt_text("The model's map over the radiograph")
    expect(heat).to_have_css("opacity", "0.45")
    expect(page.get_by_role("table", name="Deliveries").get_by_role("cell", name="pacs", exact=True)).to_be_visible()
    page.get_by_text("The report, revision 1").click()
    expect(page.get_by_text("Imaging Measurement Report").first).to_be_visible()
    page.get_by_text("Audit trail").click()
    expect(page.get_by_role("cell", name="report.created")).to_be_visible()
    page.get_by_text("Disagree", exact=True).click()
    page.get_by_label("Why").fill("A fibroma, and no fracture")
    page.get_by_role("button", name="Record review").click()
    expect(page.get_by_role("cell", name="A fibroma, and no fracture")).to_be_visible()
    _look(page, "study", height=2200)
    # The number of the row, and nothing of the patient.
    assert re.fullmatch(re.escape(_address(node)) + r"/study\?study=\d+", page.url)
    assert page.title() == "Osteon"
    with node.database.read() as session:
        (review,) = session.scalars(select(Review)).all()
    assert (review.reviewer, review.agrees) == ("rita", False)
    done = [action for actor, action in _actions(node) if actor == "person:rita"]
    assert done.count("study.viewed") == done.count("prediction.reviewed") == 1


@pytest.mark.timeout(240)
def test_a_dropped_image_is_read_shown_and_its_report_downloaded(
    node: Node, page: Page, radiographs: dict[str, Path], tmp_path: Path
) -> None:
    _sign_in(page, node, "vera")
    page.get_by_role("link", name="Try an image").click()
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(radiographs["RG3"])
    expect(page.get_by_role("img", name=re.compile("Calibrated probability"))).to_be_visible()
    heat = page.get_by_alt_text("The model's map over the radiograph")
    expect(heat).to_have_css("opacity", "0.45")
    page.get_by_role("slider", name="Heatmap opacity").focus()
    page.keyboard.press("ArrowRight")
    expect(heat).to_have_css("opacity", "0.5")
    _look(page, "try-an-image")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the report").click()
    download.value.save_as(tmp_path / "report.dcm")
    report = (tmp_path / "report.dcm").read_bytes()
    assert check_report(report) == []
    assert pydicom.dcmread(tmp_path / "report.dcm").Modality == "SR"
    with node.database.read() as session:
        assert len(session.scalars(select(Study)).all()) == 1
    assert ("person:vera", "image.tried") in _actions(node)


@pytest.mark.timeout(240)
def test_a_bad_file_and_one_outside_the_intended_use_get_a_sentence(
    node: Node, page: Page, radiographs: dict[str, Path], tmp_path: Path
) -> None:
    _sign_in(page, node, "vera")
    page.get_by_role("link", name="Try an image").click()
    letter = tmp_path / "letter.dcm"
    letter.write_text("no radiograph")
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(letter)
    expect(page.get_by_text("The file is not a DICOM object or a picture that can be read.")).to_be_visible()
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(radiographs["RG1"])
    expect(page.get_by_text("The body part is outside the model's intended use.")).to_be_visible()
    _look(page, "try-an-image-not-analysed")


@pytest.mark.timeout(240)
def test_an_auditor_is_not_offered_what_they_may_not_do_and_is_refused_by_its_address_too(
    node: Node, page: Page
) -> None:
    _sign_in(page, node, "adam")
    expect(page.get_by_role("table", name="Studies")).to_be_visible()
    expect(page.get_by_role("link", name="Try an image")).to_have_count(0)
    page.goto(_address(node) + "/try")
    expect(page.get_by_role("table", name="Studies")).to_be_visible()
    assert page.get_by_test_id("stFileUploaderDropzoneInput").count() == 0


@pytest.mark.timeout(240)
def test_no_patient_stands_in_the_log(node: Node) -> None:
    with node.database.read() as session:
        study = session.scalars(select(Study)).one()
    time.sleep(0.1)
    log = node.log.read_text("utf-8", "replace")
    for secret in (study.patient_id, study.patient_name, study.accession_number, PASSWORD):
        assert not secret or secret not in log
    assert "Traceback" not in log


@pytest.mark.timeout(300)
def test_an_administrator_promotes_a_shadow_and_the_worker_follows(
    node: Node, page: Page, radiographs: dict[str, Path], tmp_path: Path
) -> None:
    use = {"statement": "A test.", "body_parts": ["EXTREMITY"], "limits": ["Sees white squares."]}
    gate = litert.card(litert.SIZE, litert.CELLS)["gate"] | {"refuse_above": 1.0}
    newer = litert.predictor(tmp_path / "newer", version="7", intended_use=use, gate=gate).bundle
    activation.set_shadow(node.settings, node.database, newer, by="chief")
    _sign_in(page, node, "ada")
    page.get_by_role("link", name="Model").click()
    page.get_by_role("button", name="Promote by-hand 7").click()
    expect(page.get_by_text("from now on its answers are sent")).to_be_visible()
    _look(page, "model", height=2400)
    page.get_by_role("button", name="Yes: promote by-hand 7").click()
    expect(page.get_by_text("by-hand 7 is active.")).to_be_visible()
    assert ("person:ada", "model.promoted") in _actions(node)
    study = renewed(radiographs["RG3"], tmp_path / "again.dcm", study=True)
    try:
        (outcome,) = [outcome for _, outcome in send(node.address, [study], calling_ae_title="ROOM", timeout=30)]
        assert outcome.result is Result.DELIVERED
        wait_until(lambda: _reads(node, newer.sha256), seconds=120, what="the promoted model reads what comes")
    finally:
        activation.roll_back(node.settings, node.database, by="chief")


def _reads(node: Node, sha256: str) -> bool:
    read = select(Prediction.role).join(ModelVersion).where(ModelVersion.bundle_sha256 == sha256)
    with node.database.read() as session:
        return session.scalars(read).first() == activation.ACTIVE


@pytest.mark.timeout(300)
def test_an_auditor_verifies_the_trail_and_a_row_that_was_altered_by_hand_is_named(node: Node, page: Page) -> None:
    _sign_in(page, node, "adam")
    page.get_by_role("link", name="Audit").click()
    wait_until(lambda: _is_chained(node, 2), seconds=60, what="the first events have their places")
    actor = Trail(node.settings, node.database).event(2).actor
    try:
        _alter(node, "UPDATE audit_events SET actor = 'nobody' WHERE id = 2")
        page.get_by_role("button", name="Verify the whole trail").click()
        expect(page.get_by_text("event 2 (")).to_contain_text("its row is not what was chained")
        page.mouse.move(0, 0)
        _look(page, "audit")
    finally:
        _alter(node, f"UPDATE audit_events SET actor = '{actor}' WHERE id = 2")
    page.get_by_role("button", name="Verify the whole trail").click()
    expect(page.get_by_text("All is as it was recorded.")).to_be_visible()
    assert _actions(node).count(("person:adam", "audit.verified")) == 2


def _alter(node: Node, statement: str) -> None:
    """Do what the database's owner can, and put the guards back."""
    Trail(node.settings, node.database).attack(statement)
    with node.database.engine.begin() as connection:
        protect(connection)


def _is_chained(node: Node, event: int) -> bool:
    with node.database.read() as session:
        return session.scalar(select(AuditChain.seq).where(AuditChain.event_id == event)) is not None
