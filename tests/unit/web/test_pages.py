"""The console's pages, as Streamlit runs them: what they show, to whom, and what of it is audited."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

from console import access
from console.access import Denied, Person, Role
from console.web import sign_in, state, study, try_image, who
from console.web.reading import Answer, FoundOne, Unread
from models import clock
from models.database import Database, database_url
from models.reasons import Reason
from models.settings import Settings
from models.tables import AuditEvent, ModelVersion, Prediction, Review
from models.upgrade import upgrade
from tests.filled import fill
from tests.servers import given
from worker.activation import SHADOW

PASSWORD = "correct horse battery"
WORKLIST = """
from console.web import worklist
worklist.page()
"""
TRY = """
from console.web import try_image
try_image.page()
"""
STUDY = """
from console.web import study
study.page()
"""
FRACTURE = Answer(
    kind="DICOM",
    decision="fracture",
    reason=None,
    milliseconds=20,
    findings=[
        FoundOne(
            meaning="Fracture of bone",
            probability=0.9,
            decision="fracture",
            absent_below=0.1,
            present_from=0.5,
            box=(1, 2, 3, 4),
        )
    ],
    rows=10,
    columns=10,
    radiograph="AAAA",
    heat="AAAA",
    report="AAAA",
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A record of 120 finished studies and of three that wait."""
    settings = given(tmp_path_factory.mktemp("web") / "node")
    upgrade(settings)
    fill(database_url(settings), finished=range(1, 121), waiting=range(3))
    return settings


@pytest.fixture
def database(filled: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    opened = Database.of(filled)
    monkeypatch.setattr(state, "settings", lambda: filled)
    monkeypatch.setattr(state, "database", lambda: opened)
    yield opened
    opened.close()


class Visit:
    """Somebody's visit to the console."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self._database = database
        self._monkeypatch = monkeypatch
        self.began_after = max((event.id for event in self._events()), default=0)

    def as_a(self, *roles: Role) -> str:
        """Sign in with an account of these roles; return its name."""
        name = f"p{self.began_after}-{'-'.join(roles)}"
        access.add_user(self._database, name, PASSWORD, roles, by="login:root")
        key = access.sign_in(self._database, name, PASSWORD)
        self._monkeypatch.setattr(who, "cookies", lambda: {sign_in.COOKIE: key})
        return name

    def audited(self) -> list[tuple[str, str, dict[str, Any]]]:
        """What was audited since, but for the accounts."""
        found = [event for event in self._events() if event.id > self.began_after]
        return [(e.actor, e.action, e.details) for e in found if not e.action.startswith(("user.", "signed."))]

    def _events(self) -> list[AuditEvent]:
        with self._database.read() as session:
            return list(session.scalars(select(AuditEvent).order_by(AuditEvent.id)))


@pytest.fixture
def visit(database: Database, monkeypatch: pytest.MonkeyPatch) -> Visit:
    return Visit(database, monkeypatch)


def shown(page: AppTest) -> str:
    assert not page.exception
    return "\n".join(element.proto.body for element in page.get("html"))


def run(page: str, **query: str) -> AppTest:
    made = AppTest.from_string(page, default_timeout=30)
    for name, value in query.items():
        made.query_params[name] = value
    return made.run()


def test_whoever_has_not_signed_in_sees_no_patient_and_no_field(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    visit.as_a(Role.VIEWER)
    monkeypatch.setattr(who, "cookies", dict)
    for source in (WORKLIST, TRY, STUDY):
        page = run(source, study="2")
        assert "You are not signed in" in shown(page)
        assert not page.text_input
        assert not page.selectbox
        assert "Family" not in shown(page)


def test_the_worklist_shows_the_newest_studies_first_and_that_is_audited(visit: Visit) -> None:
    name = visit.as_a(Role.AUDITOR)
    page = run(WORKLIST)
    text = shown(page)
    assert text.index("A10000002") < text.index("A10000001") < text.index("A120<")
    assert "Page 1, 50 studies" in text
    assert visit.audited() == [(f"person:{name}", "worklist.viewed", {})]


def test_pages_of_the_worklist_follow_each_other_and_lead_back(visit: Visit) -> None:
    visit.as_a(Role.VIEWER)
    page = run(WORKLIST)
    seen = [shown(page)]
    for _ in range(2):
        page.button[-1].click().run()
        seen.append(shown(page))
    assert "Page 3, 23 studies" in seen[2]
    assert page.button[-1].disabled
    assert "A120<" in seen[0]
    assert "A1<" in seen[2]
    page.button[-2].click().run()
    assert "Page 2, 50 studies" in shown(page)


@pytest.mark.parametrize(
    ("field", "value", "by", "found"),
    [
        ("Patient ID", "P7919", "patient_id", "A1<"),
        ("Accession number", " A77 ", "accession_number", "A77<"),
        ("From (AE title)", "ROOM3", "calling_ae_title", "A103<"),
        ("Decision", "Fracture", "decision", "A102<"),
        ("State", "Complete", "state", "A10000002<"),
    ],
)
def test_the_worklist_finds_what_is_looked_for_and_audits_by_what_but_not_whom(
    visit: Visit, field: str, value: str, by: str, found: str
) -> None:
    visit.as_a(Role.VIEWER)
    page = run(WORKLIST)
    for text_input in page.text_input:
        if text_input.label == field:
            text_input.set_value(value)
    for choice in page.selectbox:
        if choice.label == field:
            choice.select_index(choice.options.index(value))
    page.button[0].click().run()
    text = shown(page)
    assert found in text
    assert "A119<" not in text
    assert visit.audited()[-1][1:] == ("worklist.viewed", {"by": by})
    assert "P7919" not in str(visit.audited())


def test_a_search_that_finds_nothing_says_so(visit: Visit) -> None:
    visit.as_a(Role.VIEWER)
    page = run(WORKLIST)
    page.text_input[0].set_value("' OR 1=1 --")
    page.button[0].click().run()
    assert "No study is found." in shown(page)


def test_the_page_of_somebody_whose_session_ended_shows_no_patient_any_more(visit: Visit) -> None:
    visit.as_a(Role.VIEWER)
    page = run(WORKLIST)
    assert "Family" in shown(page)
    with clock.frozen(clock.now() + timedelta(hours=13)):
        page.run()
    assert "Family" not in shown(page)
    assert "You are not signed in" in shown(page)


def test_an_auditor_may_not_try_an_image_and_the_try_is_audited(visit: Visit) -> None:
    name = visit.as_a(Role.AUDITOR)
    page = run(TRY)
    assert "Not allowed. This needs the role administrator or reviewer or viewer." in page.error[0].value
    assert not page.selectbox
    assert visit.audited() == [(f"person:{name}", "access.denied", {"wanted": "image.try"})]


def test_a_sample_is_read_once_and_shown_with_decision_probability_and_report(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = visit.as_a(Role.VIEWER)
    read: list[int] = []

    def reads(content: bytes, *_: object) -> Answer:
        read.append(len(content))
        return FRACTURE

    monkeypatch.setattr(try_image, "read", reads)
    page = run(TRY)
    assert "second opinion" in shown(page)
    page.selectbox[0].set_value("RG3_UNCR.dcm").run()
    text = shown(page)
    assert "Fracture of bone" in text
    assert "Calibrated probability 90.0%. No fracture below 10.0%, fracture from 50.0%" in text
    assert "columns 1 to 3, rows 2 to 4" in text
    assert ".heat { opacity: 0.45 }" in text
    assert [element.proto.label for element in page.get("download_button")] == ["Download the report (DICOM SR)"]
    page.slider[0].set_value(80).run()
    assert ".heat { opacity: 0.80 }" in shown(page)
    assert len(read) == 1
    ((actor, action, details),) = visit.audited()
    assert (actor, action, details["decision"]) == (f"person:{name}", "image.tried", "fracture")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Unread("The file is larger than 64 MB."), "The file is larger than 64 MB."),
        (
            FRACTURE.model_copy(
                update={
                    "decision": "not_analysed",
                    "reason": Reason.BLANK,
                    "findings": [],
                    "heat": None,
                    "radiograph": None,
                }
            ),
            "The image is blank.",
        ),
    ],
)
def test_a_bad_file_is_answered_in_a_sentence_and_never_as_a_decision(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, answer: Answer | Unread, said: str
) -> None:
    visit.as_a(Role.VIEWER)
    monkeypatch.setattr(try_image, "read", lambda *_: answer)
    page = run(TRY)
    page.selectbox[0].set_value("RG3_UNCR.dcm").run()
    text = shown(page) + "".join(error.value for error in page.error)
    assert said in text
    assert "No fracture" not in text.replace("No fracture below", "")


def test_a_study_shows_images_models_deliveries_and_its_trail_and_that_is_audited_once(visit: Visit) -> None:
    name = visit.as_a(Role.AUDITOR)
    page = run(STUDY, study="2")
    text = shown(page)
    for said in ("P15838", "A2<", "Image 1: WRIST AP L", "Image 2", "osteon-reader 2", "Audit trail", "image.analysed"):
        assert said in text
    assert "Calibrated probability 50.0%" in text
    page.run()
    assert visit.audited() == [(f"person:{name}", "study.viewed", {})]


def test_what_a_shadow_model_said_is_not_shown_as_what_counts(visit: Visit, database: Database) -> None:
    with database.write() as session:
        counts = session.scalars(select(Prediction).where(Prediction.image_id == 7)).one()
        known = counts.model_version
        other = ModelVersion(
            name="osteon-shade",
            version="9",
            bundle_sha256="e" * 64,
            files=known.files,
            card=known.card,
            first_seen_at=clock.now(),
        )
        session.add(other)
        session.flush()
        said = {column.key: getattr(counts, column.key) for column in Prediction.__table__.columns}
        del said["id"]
        session.add(Prediction(**(said | {"role": SHADOW, "model_version_id": other.id})))
    visit.as_a(Role.VIEWER)
    text = shown(run(STUDY, study="4"))
    assert "osteon-reader" in text
    assert "osteon-shade" not in text


def test_the_images_of_a_study_stand_side_by_side_as_many_as_are_asked_for(visit: Visit) -> None:
    visit.as_a(Role.VIEWER)
    page = run(STUDY, study="2")
    assert page.segmented_control[0].value == 2
    beside = len(page.columns)
    page.segmented_control[0].set_value(1).run()
    # Each image then has a column for itself, and one for the words.
    assert len(page.columns) == beside + 2
    assert "Image 2" in shown(page)


@pytest.mark.parametrize("number", ["", "0", "99999999", "x", "-1", "9" * 40, "1 OR 1=1", "²"])
def test_an_address_without_a_study_shows_none(visit: Visit, number: str) -> None:
    visit.as_a(Role.VIEWER)
    text = shown(run(STUDY, study=number))
    assert "Choose a study in the worklist." in text or "There is no such study." in text
    assert visit.audited() == []


def test_a_reviewer_records_a_verdict_with_a_reason_and_everybody_sees_it(visit: Visit, database: Database) -> None:
    name = visit.as_a(Role.REVIEWER)
    page = run(STUDY, study="3")
    page.button[0].click().run()
    assert page.error[0].value == "A review needs a verdict and a reason."
    page.radio[0].set_value("Disagree")
    page.text_input[0].set_value("An old <b>line</b>")
    page.button[0].click().run()
    assert "An old &lt;b&gt;line&lt;/b&gt;" in shown(page)
    with database.read() as session:
        (review,) = session.scalars(select(Review).where(Review.reviewer == name)).all()
    assert (review.agrees, review.why, review.prediction_id) == (False, "An old <b>line</b>", 5)
    assert visit.audited()[-1] == (f"person:{name}", "prediction.reviewed", {"review": review.id, "agrees": 0})
    visit.as_a(Role.VIEWER)
    page = run(STUDY, study="3")
    assert "Disagrees" in shown(page)
    assert not page.radio


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.REVIEWER])
def test_nobody_else_records_a_verdict_by_asking_for_it_directly(visit: Visit, database: Database, role: Role) -> None:
    person = Person("eve", frozenset({role}), 1)
    with pytest.raises(Denied):
        study.record_review(person, 5, agrees=True, why="because")
    assert visit.audited() == [("person:eve", "access.denied", {"wanted": "prediction.review"})]
    with database.read() as session:
        assert not session.scalars(select(Review).where(Review.reviewer == "eve")).all()
