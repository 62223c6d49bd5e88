"""The console in a real browser (Chromium): who gets in, what they see, and whether everybody can use it.

What it looked like is left in `build/web` for people to look at.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from sqlalchemy import select

pytest.importorskip("streamlit")
pytest.importorskip("playwright")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

from console import access
from console.access import Role
from console.pacs import StorageScp
from console.ports import free_port
from dicom_node.objects.template import check_report
from dicom_node.sender import Result, send
from models.append_only import protect
from models.settings import DeliverySettings, OpenIdSettings, Peer, StudySettings, WebSettings
from models.tables import (
    AuditChain,
    AuditEvent,
    Delivery,
    DeliveryState,
    ModelVersion,
    Prediction,
    Review,
    Study,
    User,
    WebSession,
)
from models.upgrade import upgrade
from tests import litert
from tests.peers import require_peer
from tests.servers import Node, Valkey, given, renewed, wait_until
from tests.trail import Trail
from worker import activation

PASSWORD = "correct horse battery"
PEOPLE = {
    "vera": Role.VIEWER,
    "adam": Role.AUDITOR,
    "rita": Role.REVIEWER,
    "olga": Role.ADMINISTRATOR,
    "ada": Role.ADMINISTRATOR,
}
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
            # Nobody is there, and one try is enough to say so.
            Peer(name="archive", ae_title=pacs.ae_title, host="127.0.0.1", port=free_port(), role="destination"),
        ],
        delivery=DeliverySettings(max_tries=1),
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


_BACKGROUNDS = """
window.seen = new Set();
(function look() {
  for (const each of document.querySelectorAll("html, body, .stApp"))
    seen.add(getComputedStyle(each).backgroundColor);
  requestAnimationFrame(look);
})();
"""
"""Keeps in `seen` every colour that stood behind a page."""


def _is_delivered(node: Node, destination: str = "pacs") -> bool:
    with node.database.read() as session:
        found = session.scalars(select(Delivery.state).where(Delivery.destination == destination))
        return found.first() is DeliveryState.DELIVERED


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
    page.add_init_script(_BACKGROUNDS)
    page.goto(_address(node), wait_until="commit")
    expect(page.get_by_text("Osteon is loading.")).to_be_visible()
    expect(page).to_have_title("Osteon")
    expect(page.get_by_text("this machine alone is served")).to_be_visible()
    # In a browser that is set to light, too: a white screen is seen in the whole reading room.
    assert set(page.evaluate("Array.from(seen)")) <= {"rgba(0, 0, 0, 0)", "rgb(16, 20, 24)"}
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
    film = page.get_by_role("img", name="Image 1", exact=False).first
    as_the_model_saw_it = film.get_attribute("src")
    page.get_by_role("button", name="Window").click()
    page.get_by_text("Own window", exact=True).click()
    page.get_by_role("slider", name="Window Width").focus()
    page.keyboard.press("ArrowLeft")
    expect(film).not_to_have_attribute("src", as_the_model_saw_it or "")
    _look(page, "study-window")
    page.keyboard.press("Escape")
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
    page.get_by_role("link", name="Drift").click()
    expect(page.get_by_role("img", name=re.compile("Called fracture"))).to_be_visible()
    _look(page, "drift")
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


@pytest.mark.timeout(240)
def test_a_delivery_that_failed_is_retried_from_the_operations_page_and_arrives(
    node: Node, page: Page, tmp_path: Path
) -> None:
    _sign_in(page, node, "olga")
    page.get_by_role("link", name="Operations").click()
    needing = page.get_by_role("table", name="Deliveries that need attention")
    expect(needing.get_by_role("cell", name="archive", exact=True)).to_be_visible()
    expect(page.get_by_role("cell", name="The listener of this host answers")).to_be_visible()
    _look(page, "operations", height=1600)
    archive = node.settings.peer("archive")
    assert archive is not None
    assert archive.port is not None
    back = StorageScp(tmp_path, port=archive.port)
    try:
        page.get_by_role("button", name="Retry", exact=True).click()
        expect(page.get_by_role("status")).to_contain_text("to archive: due now")
        wait_until(lambda: _is_delivered(node, "archive"), seconds=90, what="the report arrives")
        expect(needing).to_have_count(0)
        assert len(back.new_reports()) == 1
        page.get_by_role("combobox", name="Peer").press("ArrowDown")
        page.get_by_role("option", name="archive").click()
        page.get_by_role("button", name="Echo").click()
        expect(page.get_by_role("cell", name=f"{archive.port} answers C-ECHO")).to_be_visible()
    finally:
        back.stop()
    _look(page, "operations-delivered", height=1600)
    done = [action for actor, action in _actions(node) if actor == "person:olga"]
    assert done == ["signed.in", "worklist.viewed", "report.delivery.retry", "peer.echoed"]


# --- an OpenID provider -----------------------------------------------------------------------------------------------

CLIENT_SECRET = "of-the-client-alone"
# So many groups that what Streamlit would set of them does not fit into one cookie.
STAFF = {"4711": [*(f"ward {number} of St. Elsewhere" for number in range(200)), "radiologists"], "4712": ["canteen"]}


@dataclass
class Hospital:
    """The console of the same node once more, where people sign in at a provider; and that provider."""

    console: Node
    provider: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def hospital(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("provider")
    (folder / "secret").write_text(CLIENT_SECRET + "\n")
    port, own = free_port(), free_port()
    people = [{"sub": sub, "preferred_username": f"dr{sub}", "roles": roles} for sub, roles in STAFF.items()]
    known = [argument for claims in people for argument in ("--user-claims", json.dumps(claims))]
    with (folder / "log").open("wb") as log:
        provider = subprocess.Popen(
            [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), *known], stdout=log, stderr=log
        )
    oidc = OpenIdSettings(
        name="St. Elsewhere",
        issuer=f"http://127.0.0.1:{port}",
        client_id="osteon",
        client_secret_file=folder / "secret",
        console_url=f"http://127.0.0.1:{own}",
        roles={"radiologists": ["reviewer"]},
    )
    console = Node(node.settings.model_copy(update={"web": WebSettings(port=own, oidc=oidc)}), folder / "node.log")
    access.add_user(node.database, "frida", PASSWORD, [Role.VIEWER], by="login:root")
    console.start("web")
    try:
        wait_until(lambda: _status(console, "/_stcore/health") == 200, seconds=90, what="the console answers")
        wait_until(lambda: _ask(oidc.metadata_url).status == 200, seconds=90, what="the provider answers")
        yield Hospital(console, provider)
    finally:
        console.stop()
        provider.terminate()
        provider.wait(30)


@dataclass
class Heard:
    """What was answered to a request; 0 to one that was not."""

    status: int = 0
    headers: Message = field(default_factory=Message)
    body: str = ""

    @property
    def cookies(self) -> dict[str, str]:
        return {
            name: morsel.value
            for line in self.headers.get_all("set-cookie") or []
            for name, morsel in SimpleCookie(line).items()
        }


def _ask(url: str, cookies: Mapping[str, str] | None = None, form: str | None = None, **headers: str) -> Heard:
    """What a browser would be answered that has these cookies, and follows nowhere."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if cookies:
        sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    if form is not None:
        sent["Content-Type"] = "application/x-www-form-urlencoded"
    try:
        connection.request("GET" if form is None else "POST", f"{parts.path}?{parts.query}", form, sent)
        answer = connection.getresponse()
        return Heard(answer.status, answer.headers, answer.read().decode("utf-8", "replace"))
    except ConnectionError:
        return Heard()
    finally:
        connection.close()


def _over(node: Node) -> bool:
    with node.database.read() as session:
        return bool(session.scalars(select(WebSession.id).where(WebSession.ended_at.is_not(None))).all())


def _failures(node: Node) -> list[str]:
    """Why those were not let in who came by the provider."""
    with node.database.read() as session:
        details = session.scalars(select(AuditEvent.details).where(AuditEvent.action == "sign_in.failed"))
        return [found["why"] for found in details if found["way"] == "openid"]


@pytest.mark.timeout(240)
def test_people_sign_in_at_the_provider_and_are_what_it_says_they_are(hospital: Hospital, page: Page) -> None:
    def come_as(subject: str) -> None:
        page.goto(_address(hospital.console))
        page.get_by_role("link", name="Sign in with St. Elsewhere").click()
        page.get_by_role("button", name=subject).first.click()

    page.goto(_address(hospital.console))
    expect(page.get_by_label("Password")).to_be_visible()
    _look(page, "sign-in-at-a-provider")
    come_as("4711")
    expect(page.get_by_role("table", name="Studies").get_by_role("row")).to_have_count(2)
    expect(page.get_by_text("dr4711 (reviewer)")).to_be_visible()
    # Neither who it is nor a token is left in the browser: our key, and nothing of Streamlit's sign-in.
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies(_address(hospital.console))}
    assert (cookies["osteon_session"]["httpOnly"], cookies["osteon_session"]["sameSite"]) == (True, "Strict")
    assert not [name for name in cookies if name.startswith(("_streamlit_user", "_streamlit_session", "osteon_try"))]
    assert page.url == _address(hospital.console) + "/"
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are not signed in (any more).")).to_be_visible()
    come_as("4712")
    expect(page.get_by_role("alert")).to_contain_text("St. Elsewhere knows you, but gives you no role here")
    _look(page, "sign-in-without-a-role")
    access.disable_user(hospital.console.database, "dr4711", by="login:root")
    come_as("4711")
    expect(page.get_by_role("alert")).to_contain_text("Your account is disabled here")
    access.enable_user(hospital.console.database, "dr4711", by="login:root")
    done = [action for actor, action in _actions(hospital.console) if actor == "person:dr4711"]
    assert done[0] == "signed.in"
    assert done[-2:] == ["signed.out", "sign_in.failed"]
    assert _failures(hospital.console) == ["role", "disabled"]


@pytest.mark.timeout(240)
def test_nothing_but_the_answer_to_a_sign_in_that_this_browser_began_lets_anybody_in(hospital: Hospital) -> None:
    at, already = _address(hospital.console), len(_failures(hospital.console))
    for path in ("/auth/login", "/auth/logout", "/auth/login?provider=x", "/_stcore/host-config", "/media/1.png"):
        assert _ask(at + path).status in (401, 404)
    # It is begun on our own page, by the name that the provider knows.
    assert _ask(at + "/sign-in/provider", Sec_Fetch_Site="cross-site").headers["location"] == "/sign-in"
    elsewhere = _ask(at + "/sign-in/provider", Host="evil.example").headers["location"]
    assert elsewhere == at + "/sign-in"
    begun = _ask(at + "/sign-in/provider", Sec_Fetch_Site="same-origin")
    assert begun.cookies.keys() == {"_streamlit_session", "osteon_try"}
    assert {"code_challenge", "nonce", "state"} <= parse_qs(urlsplit(begun.headers["location"]).query).keys()
    back = _ask(begun.headers["location"], form="sub=4711").headers["location"]
    # Not for another browser, nor with another state, nor a second time.
    others = _ask(at + "/sign-in/provider").cookies
    tossed = {**others, "_streamlit_session": begun.cookies["_streamlit_session"]}
    tries = ((back, {}), (back, others), (back, tossed), (re.sub("state=.", "state=", back), begun.cookies))
    for url, cookies in tries:
        heard = _ask(url, cookies)
        assert (heard.status, "osteon_session" in heard.cookies) == (403, False)
        assert "was not begun here" in heard.body
    assert _ask(back, begun.cookies).cookies["osteon_session"]
    wait_until(lambda: not _over(hospital.console), seconds=30, what="sessions that are over are removed")
    again = _ask(back, begun.cookies)
    assert (again.status, "osteon_session" in again.cookies) == (403, False)
    # Behind a proxy that ends TLS, all of it is for TLS alone, and no other host's.
    begun = _ask(at + "/sign-in/provider", X_Forwarded_Proto="https")
    back = _ask(begun.headers["location"], form="sub=4711").headers["location"]
    came = _ask(back, begun.cookies, X_Forwarded_Proto="https")
    assert all("secure" in line.lower() for line in came.headers.get_all("set-cookie") or [""])
    key = came.cookies["__Host-osteon_session"]
    for name, status in (("__Host-osteon_session", 200), ("osteon_session", 303)):
        assert _ask(at + "/", {name: key}, Accept="text/html", X_Forwarded_Proto="https").status == status
    # What somebody made up is not shown, and what Streamlit would believe is nothing here, however well it is signed.
    assert "GOTCHA" not in _ask(at + "/oauth2callback?error=GOTCHA&error_description=GOTCHA").body
    identity = json.dumps({"sub": "4711", "iss": "x", "is_logged_in": True, "origin": at})
    key = (hospital.console.settings.data_dir / "web" / "cookies.key").read_text()
    signed = create_signed_value(key, "_streamlit_user", identity).decode()
    assert _ask(at + "/", {"_streamlit_user": signed}, Accept="text/html").headers["location"] == "/sign-in"
    assert _ask(at + "/_stcore/stream", {"_streamlit_user": signed}, **_WEBSOCKET).status == 403
    assert hospital.console.run("health", "web").stdout == "web: healthy\n"
    hospital.provider.terminate()
    hospital.provider.wait(30)
    away = _ask(at + "/sign-in/provider")
    assert (away.status, "St. Elsewhere does not answer as it should" in away.body) == (503, True)
    assert _failures(hospital.console)[already:] == ["state"] * 4 + ["refused"] * 2 + ["away"]
    log = hospital.console.log.read_text("utf-8", "replace")
    assert not [said for said in (CLIENT_SECRET, "GOTCHA", "4711", "eyJ", "Traceback", "Deprecat") if said in log]
    assert '"code": "invalid_grant"' in log


# --- models and the audit trail: last, since they add studies and alter rows -----------------------------------------


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
