"""The model and the audit page: what they show, who may do what on them, and what of it is audited."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset
from sqlalchemy import select

pytest.importorskip("streamlit")
pytest.importorskip("ai_edge_litert")

from streamlit.testing.v1 import AppTest

from console.access import AT_THIS_MACHINE, Denied, Person, Role
from console.web import agreement, audit, command, model, model_card, state
from dicom_node.wrap import wrap_picture
from models import clock
from models.audit_export import check_export
from models.audit_search import Search
from models.database import Database
from models.settings import Peer
from models.tables import AuditEvent, ModelActivation, Review
from models.upgrade import upgrade
from tests import litert
from tests.servers import given
from tests.site import Site
from tests.trail import Trail
from tests.unit.web.test_pages import Visit, run, shown
from worker import activation
from worker.agreement import Week
from worker.bundle import Bundle, BundleError, default_bundle_path
from worker.shares import Share

MODEL = """
from console.web import model
model.page()
"""
AUDIT = """
from console.web import audit
audit.page()
"""
ADA = Person("ada", frozenset({Role.ADMINISTRATOR}), 1)


def radiograph(number: int) -> FileDataset:
    return wrap_picture(
        litert.white_square((120, 200, 160, 240)),
        patient_id="PID-1",
        patient_name="Doe^Jane",
        study_uid="1.2.3",
        series_uid="1.2.3.3",
        sop_instance_uid=f"1.2.3.4.{number}",
        body_part="WRIST",
        instance_number=number,
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A node that has read and reported a study of two images with a model drawn by hand; nobody has to sign in."""
    first = litert.predictor(tmp_path / "first")
    peers = [Peer(name="room", ae_title="ROOM", role="source")]
    settings = given(tmp_path / "node", peers=peers, model_bundle=first.bundle.path)
    upgrade(settings)
    with clock.frozen(clock.now()):
        made = Site(settings, first)
        made.report(radiograph(1), radiograph(2))
    monkeypatch.setattr(state, "settings", lambda: settings)
    monkeypatch.setattr(state, "database", lambda: made.database)
    audit.verifier.cache_clear()
    agreement._read.clear()
    yield made
    made.close()


@pytest.fixture
def second(site: Site, tmp_path: Path) -> Bundle:
    """Another bundle, which lies where those lie that a page offers."""
    made = litert.predictor(tmp_path / "second", version="2").bundle
    activation.keep(site.settings, made)
    return made


@pytest.fixture
def visit(site: Site, monkeypatch: pytest.MonkeyPatch) -> Visit:
    return Visit(site.database, monkeypatch)


def press(page: AppTest, label: str) -> AppTest:
    (button,) = [button for button in page.button if button.label == label]
    return button.click().run()


def look_for(page: AppTest, label: str, text: str) -> None:
    (field,) = [field for field in page.text_input if field.label == label]
    field.set_value(text)
    press(page, "Search")


def roles(site: Site) -> list[tuple[str, str]]:
    return [(row.role, row.by) for row in site.all(ModelActivation)[1:]]


# --- the model page -----------------------------------------------------------------------------------------------


def test_a_viewer_sees_models_and_cards_and_is_offered_no_change(site: Site, visit: Visit, second: Bundle) -> None:
    visit.as_a(Role.VIEWER)
    activation.set_shadow(site.settings, site.database, second, by="chief")
    page = run(MODEL)
    text = shown(page)
    for said in ("by-hand 1", "by-hand 2", "the settings name it", "Sees white squares.", "Only an administrator may."):
        assert said in text
    assert "It has read no image yet." in text
    assert not page.button
    assert [name.split(" (")[0] for name in page.selectbox[0].options[:2]] == ["by-hand 1", "by-hand 2"]


def test_an_administrator_starts_a_shadow_promotes_it_and_rolls_back_each_time_asked_again(
    site: Site, visit: Visit, second: Bundle
) -> None:
    assert second.card.version == "2"
    name = visit.as_a(Role.ADMINISTRATOR)
    page = run(MODEL)
    offered = page.selectbox[0]
    offered.select_index([option.startswith("by-hand 2") for option in offered.options].index(True)).run()
    press(page, "Let it read as a shadow")
    assert roles(site) == [], "nothing happens before it is confirmed"
    press(page, "Yes: let by-hand 2 read as a shadow")
    assert "by-hand 2 reads beside the active model." in page.success[0].value
    press(page, "Promote by-hand 2")
    press(page, "Cancel")
    assert len(roles(site)) == 1
    press(page, "Promote by-hand 2")
    press(page, "Yes: promote by-hand 2")
    assert "by-hand 2 is active." in page.success[0].value
    press(page, "Roll back to by-hand 1")
    press(page, "Yes: roll back to by-hand 1")
    actor = f"person:{name}"
    assert roles(site) == [(role, actor) for role in ("shadow", "active", "no_shadow", "active")]
    done = [(who, what) for who, what, _ in visit.audited()]
    expected = ("model.shadowed", "model.promoted", "model.shadow_ended", "model.rolled_back")
    assert done == [(actor, what) for what in expected]


def test_what_is_not_possible_any_more_is_said_and_nothing_is_done(site: Site, visit: Visit, second: Bundle) -> None:
    visit.as_a(Role.ADMINISTRATOR)
    activation.set_shadow(site.settings, site.database, second, by="chief")
    page = run(MODEL)
    press(page, "Promote by-hand 2")
    activation.end_shadow(site.database, by="chief")
    press(page, "Yes: promote by-hand 2")
    assert "Not done: there is no shadow model to promote" in page.error[0].value
    assert [role for role, _ in roles(site)] == ["shadow", "no_shadow"]


def test_a_bundle_that_was_altered_is_named_and_cannot_be_a_shadow(site: Site, second: Bundle) -> None:
    (site.settings.data_dir / "bundles" / second.sha256 / "model.tflite").write_bytes(b"something else")
    assert "model.tflite: does not match SHA256SUMS" in shown(run(MODEL))
    with pytest.raises(BundleError):
        model.start_shadow(ADA, second.sha256)
    assert roles(site) == []


def test_a_bundle_whose_model_does_not_run_is_no_shadow(site: Site, tmp_path: Path) -> None:
    card = litert.card(litert.SIZE, litert.CELLS, version="9")
    folder = litert.write_bundle(tmp_path / "broken", card, b"no network")
    shutil.copytree(folder, site.settings.data_dir / "bundles" / "broken")
    with pytest.raises(BundleError, match="cannot be used here"):
        model.start_shadow(ADA, Bundle.load(folder).sha256)
    assert roles(site) == []


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMINISTRATOR])
def test_nobody_else_changes_the_model_by_asking_for_it_directly(
    site: Site, second: Bundle, visit: Visit, role: Role
) -> None:
    eve = Person("eve", frozenset({role}), 1)
    version = activation.set_shadow(site.settings, site.database, second, by="chief")
    asked: list[Callable[[], object]] = [
        lambda: model.promote(eve, version),
        lambda: model.roll_back(eve, 1),
        lambda: model.end_shadow(eve),
        lambda: model.start_shadow(eve, second.sha256),
    ]
    for ask in asked:
        with pytest.raises(Denied):
            ask()
    refused = ("person:eve", "access.denied", {"wanted": "model.change"})
    assert visit.audited()[1:] == [refused] * 4
    assert [role for role, _ in roles(site)] == ["shadow"]


def test_reviews_are_drawn_with_their_shares_intervals_and_what_they_do_not_say(site: Site, visit: Visit) -> None:
    assert "Nobody has reviewed a prediction yet" in shown(run(MODEL))
    with site.database.write() as session:
        for number, agrees in ((1, True), (2, False)):
            session.add(
                Review(prediction_id=number, reviewer="rita", agrees=agrees, why="seen", created_at=clock.now())
            )
    agreement._read.clear()
    visit.as_a(Role.AUDITOR)
    text = shown(run(MODEL))
    assert "2 on 2 images" in text
    assert "<b>50.0%</b> (9.5% to 90.5%)" in text
    assert "1 of 2" in text
    assert "verification bias" in text
    assert "In the last week 1 of 2 verdicts on by-hand 1" in text


def test_the_plot_draws_every_week_and_tells_versions_apart_by_shape() -> None:
    monday = clock.now().date()
    weeks = [Week(monday - timedelta(weeks=back), version, Share(3, 4)) for back in (2, 1, 0) for version in (1, 2)]
    drawn = agreement.svg(weeks, {1: "one <1>", 2: "two"})
    assert drawn.count("stroke-width") == 6
    assert drawn.count("a5 5 0 1 0 10 0") == drawn.count("l7 7l-7 7") == 3 + 1
    assert "one &lt;1&gt;" in drawn


@pytest.mark.usefixtures("site")
def test_the_shipped_bundle_is_shown_with_every_plot_described_in_its_own_figures() -> None:
    shipped = Bundle.load(default_bundle_path())
    (known,) = [one for one in model.models_known()[0] if one.sha256 == shipped.sha256]
    assert sorted(known.plots) == ["confusion.png", "precision-recall.png", "reliability.png", "roc.png"]
    for name in known.plots:
        said = model_card.described(name, shipped.card)
        assert "601 images" in said
        assert "not stated" not in said
    assert "0.919 (0.826 to 0.967)" in model_card.described("roc.png", shipped.card)
    assert "does not say in words" in model_card.described("other.png", shipped.card)


# --- the audit page -----------------------------------------------------------------------------------------------


def test_an_auditor_finds_events_page_by_page_and_looking_is_an_event(site: Site, visit: Visit) -> None:
    trail = Trail(site.settings, site.database)
    with clock.frozen(clock.now()):
        trail.goes_on(60)
    name = visit.as_a(Role.AUDITOR)
    page = run(AUDIT)
    assert "Page 1, 50 events" in shown(page)
    press(page, "Older")
    assert "Page 2" in shown(page)
    press(page, "Newer")
    look_for(page, "What", "image.anal*")
    assert "Page 1, 2 events" in shown(page)
    look_for(page, "Study", "1.2.3")
    assert "Page 1, 2 events" in shown(page)
    look_for(page, "Study", "nowhere")
    assert "There is no such study." in shown(page)
    viewed = [(who, details) for who, what, details in visit.audited() if what == "audit.viewed"]
    actor = f"person:{name}"
    assert viewed == [
        (actor, {}),
        (actor, {"by": "action"}),
        (actor, {"by": "action,study_id"}),
        (actor, {"by": "action"}),
    ]


@pytest.mark.parametrize("role", [Role.VIEWER, Role.REVIEWER])
def test_who_is_neither_auditor_nor_administrator_sees_no_event_and_may_do_nothing(
    site: Site, visit: Visit, role: Role
) -> None:
    visit.as_a(role)
    page = run(AUDIT)
    assert "Not allowed. This needs the role administrator or auditor." in page.error[0].value
    assert not page.button
    assert "image.received" not in shown(page)
    eve = Person("eve", frozenset({role}), 1)
    asked: list[Callable[[], object]] = [
        lambda: audit.verifier().start(site.database, site.settings, eve),
        lambda: audit.export(eve, Search()),
        lambda: audit.replay(eve, 1),
    ]
    for ask in asked:
        with pytest.raises(Denied):
            ask()
    wanted = ["audit.view", "audit.verify", "audit.export", "prediction.replay"]
    assert [details["wanted"] for _, _, details in visit.audited()] == wanted
    assert audit.verifier().check is None


def test_a_check_says_that_all_is_well_or_names_what_was_altered_and_is_audited(site: Site, visit: Visit) -> None:
    name = visit.as_a(Role.AUDITOR)
    trail = Trail(site.settings, site.database)
    trail.chain()
    trail.sign()
    person = Person(name, frozenset({Role.AUDITOR}), 1)
    verified(site, person)
    assert "All is as it was recorded." in shown(run(AUDIT))
    altered = trail.event(3)
    trail.attack("UPDATE audit_events SET actor = 'nobody' WHERE id = 3")
    verified(site, person)
    text = shown(run(AUDIT))
    assert "Broken" in text
    assert f"event 3 ({altered.action}" in text
    assert "its row is not what was chained (place 3)" in text
    outcomes = [details for _, what, details in visit.audited() if what == "audit.verified"]
    assert [found["outcome"] for found in outcomes] == ["well", "broken"]
    assert (outcomes[1]["first_place"], outcomes[1]["first_event"], outcomes[1]["faults"]) == (3, 3, 1)


def verified(site: Site, person: Person) -> None:
    thread = audit.verifier().start(site.database, site.settings, person)
    assert thread is not None
    assert audit.verifier().start(site.database, site.settings, person) is None, "one at a time"
    page = run(AUDIT)
    assert page.get("progress")
    thread.join(60)
    assert not thread.is_alive()


def test_a_check_that_takes_too_long_is_given_up_and_said_and_audited(
    site: Site, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("console.web.verification.LONGEST_SECONDS", 0.05)
    thread = audit.verifier().start(site.database, site.settings, AT_THIS_MACHINE)
    assert thread is not None
    thread.join(60)
    assert "Not verified. It took longer than 0.05 seconds" in shown(run(AUDIT))
    assert ("audit.verified", {"outcome": "not checked"}) in [(what, details) for _, what, details in visit.audited()]


def test_an_export_is_signed_and_audited_and_too_large_a_one_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = audit.export(ADA, Search(study_id=1, actor="nobody"))
    assert not isinstance(made, str)
    content, events = made
    (tmp_path / "export.jsonl").write_bytes(content)
    verdict = check_export(tmp_path / "export.jsonl")
    assert verdict.well
    assert verdict.events == events == 5
    assert verdict.header["made_by"] == "person:ada"
    exported = [event for event in events_of(site.database) if event.action == "audit.exported"]
    assert [(event.actor, event.subject, event.subject_id) for event in exported] == [("person:ada", "study", 1)]
    monkeypatch.setattr(audit, "MOST_EXPORTED", 3)
    said = audit.export(ADA, Search())
    assert isinstance(said, str)
    assert "More than 3 events" in said


def test_a_prediction_is_replayed_and_the_page_says_what_came_of_it(visit: Visit) -> None:
    name = visit.as_a(Role.AUDITOR)
    page = run(AUDIT)
    page.number_input[0].set_value(1)
    press(page, "Replay")
    assert "Prediction 1 comes out the same, from the kept input and the received file." in shown(page)
    page.number_input[0].set_value(999)
    press(page, "Replay")
    assert "there is no prediction 999" in shown(page)
    assert ("prediction.replayed", f"person:{name}") in [(what, who) for who, what, _ in visit.audited()]


def test_a_command_that_nobody_may_wait_for_is_ended(site: Site) -> None:
    with pytest.raises(command.GaveUp, match=r"longer than 0\.05 seconds"):
        command.run(["audit", "verify"], site.settings, seconds=0.05)


def events_of(database: Database) -> list[AuditEvent]:
    with database.read() as session:
        return list(session.scalars(select(AuditEvent).order_by(AuditEvent.id)))
