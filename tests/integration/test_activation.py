"""Which model reads: the active one, a shadow beside it, and how one takes the other's place."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydicom.dataset import FileDataset
from sqlalchemy import update

from dicom_node.wrap import wrap_picture
from models import clock
from models.settings import Peer, Settings, environment_of
from models.tables import AuditEvent, File, FileKind, Image, ModelActivation, ModelVersion, Prediction, ReportInput
from models.upgrade import upgrade
from worker import activation
from worker.activation import CannotActivate
from worker.bundle import Bundle, BundleError
from worker.comparison import compare, disagreements
from worker.predictor import Predictor

pytest.importorskip("ai_edge_litert")

from tests import litert
from tests.site import Site
from worker.analyse import Analyst, Reader

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _at_noon() -> Iterator[None]:
    with clock.frozen(NOON):
        yield


@pytest.fixture
def first(tmp_path: Path) -> Predictor:
    """Finds what is white."""
    return litert.predictor(tmp_path / "first")


@pytest.fixture
def second(tmp_path: Path) -> Predictor:
    """The same, but calls nothing a fracture below certainty."""
    finding = litert.card(litert.SIZE, litert.CELLS)["findings"][0]
    strict = {**finding, "operating_points": {"absent_below": 0.1192, "present_from": 1.0}}
    return litert.predictor(tmp_path / "second", version="2", findings=[strict])


@pytest.fixture
def site(make_settings: Callable[..., Settings], first: Predictor) -> Iterator[Site]:
    settings = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source")], model_bundle=first.bundle.path)
    upgrade(settings)
    made = Site(settings, first)
    yield made
    made.close()


def radiograph(number: int = 1) -> FileDataset:
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


def take_up(site: Site) -> activation.InForce:
    """What a child of the worker does when it starts."""
    assert site.settings.model_bundle is not None
    force = activation.in_force(site.settings, site.database, Bundle.load(site.settings.model_bundle), "worker@here:1")
    shadow = None
    if force.shadow is not None and force.shadow_id is not None:
        shadow = Reader(Predictor(force.shadow), force.shadow_id)
    reader = Reader(Predictor(force.active), force.active_id)
    site.analyst = Analyst(site.settings, site.database, site.spool, reader, shadow=shadow)
    return force


def with_shadow(site: Site, second: Predictor) -> None:
    activation.set_shadow(site.settings, site.database, second.bundle, by="chief")
    take_up(site)


def roles(site: Site) -> list[tuple[str, str]]:
    """Version and role of every prediction."""
    names = {version.id: version.version for version in site.all(ModelVersion)}
    return [(names[row.model_version_id], row.role) for row in site.all(Prediction)]


# --- the shadow ---------------------------------------------------------------------------------------------------


def test_a_shadow_reads_every_image_too_and_its_answers_are_recorded_and_not_sent(
    site: Site, second: Predictor
) -> None:
    with_shadow(site, second)
    report = site.report(radiograph())
    assert roles(site) == [("1", "active"), ("2", "shadow")]
    active, shadow = site.all(Prediction)
    assert (active.decision, shadow.decision) == ("fracture", "undetermined")
    assert site.study.decision == "fracture"
    assert report.impression == "fracture"
    assert [row.prediction_id for row in site.all(ReportInput)] == [active.id]
    events = {event.action: event for event in site.all(AuditEvent) if event.subject == "prediction"}
    assert {action: event.subject_id for action, event in events.items()} == {
        "image.analysed": active.id,
        "image.shadow_read": shadow.id,
    }
    assert events["image.shadow_read"].details["bundle_sha256"] == second.bundle.sha256
    assert len(events["image.shadow_read"].details["prediction_sha256"]) == 64


@sqlite_alone
def test_models_with_one_size_of_input_share_the_kept_one(site: Site, second: Predictor) -> None:
    with_shadow(site, second)
    site.report(radiograph())
    assert len([file for file in site.all(File) if file.kind is FileKind.MODEL_INPUT]) == 1
    active, shadow = site.all(Prediction)
    assert active.input_file_id == shadow.input_file_id


@sqlite_alone
def test_a_shadow_of_another_size_keeps_an_input_of_its_own(site: Site, tmp_path: Path) -> None:
    size, cells = (48, 48), (6, 6)
    small = Predictor.load(
        litert.write_bundle(tmp_path / "small", litert.card(size, cells, version="3"), litert.network(size, cells))
    )
    with_shadow(site, small)
    site.report(radiograph())
    active, shadow = site.all(Prediction)
    assert active.input_file_id != shadow.input_file_id
    assert active.input_sha256 != shadow.input_sha256


@sqlite_alone
def test_a_shadow_that_refuses_or_fails_leaves_no_prediction_and_the_image_is_read(site: Site, tmp_path: Path) -> None:
    deaf = litert.predictor(tmp_path / "deaf", version="4", image_modalities=["CR"])
    with_shadow(site, deaf)
    site.report(radiograph(1))
    mad = litert.predictor(tmp_path / "mad", version="5", model={"times": {"logits": float("nan")}})
    with_shadow(site, mad)
    site.report(radiograph(2))
    assert roles(site) == [("1", "active"), ("1", "active")]


@sqlite_alone
def test_a_second_try_at_an_image_goes_without_the_shadow(site: Site, second: Predictor) -> None:
    with_shadow(site, second)
    site.receive(radiograph())
    with site.database.write() as session:
        session.execute(update(Image).values(tries=1))
    site.analyse()
    assert roles(site) == [("1", "active")]


@sqlite_alone
def test_the_active_model_cannot_be_its_own_shadow(site: Site, first: Predictor) -> None:
    with pytest.raises(CannotActivate, match="active one"):
        activation.set_shadow(site.settings, site.database, first.bundle, by="chief")


@sqlite_alone
def test_a_shadow_outlives_the_folder_it_came_from(site: Site, second: Predictor) -> None:
    activation.set_shadow(site.settings, site.database, second.bundle, by="chief")
    shutil.rmtree(second.bundle.path)
    force = take_up(site)
    assert force.shadow is not None
    assert force.shadow.sha256 == second.bundle.sha256


@sqlite_alone
def test_a_shadow_that_is_gone_is_left_out_and_the_active_model_reads(site: Site, second: Predictor) -> None:
    activation.set_shadow(site.settings, site.database, second.bundle, by="chief")
    shutil.rmtree(site.settings.data_dir / "bundles")
    assert take_up(site).shadow is None
    site.report(radiograph())
    assert roles(site) == [("1", "active")]


def test_the_shadow_is_compared_with_what_was_sent(site: Site, second: Predictor) -> None:
    with_shadow(site, second)
    site.report(radiograph(1), radiograph(2))
    with site.database.read() as session:
        version = activation.shadow_version(session)
        assert version is not None
        (found,) = compare(session, version)
        apart = disagreements(session, version, limit=1)
    assert (found.finding, found.images, found.agreement) == ("Fracture of bone", 2, 0.0)
    assert [(cell.active, cell.shadow, cell.images) for cell in found.cells] == [("fracture", "undetermined", 2)]
    assert found.largest_difference == pytest.approx(0, abs=1e-6)
    assert apart == [(1, 2, "fracture", "undetermined")]


# --- promotion ----------------------------------------------------------------------------------------------------


def test_a_promoted_model_reads_what_comes_next_and_what_was_sent_stays(site: Site, second: Predictor) -> None:
    with_shadow(site, second)
    site.report(radiograph(1))
    activation.promote(site.settings, site.database, by="chief")
    force = take_up(site)
    assert (force.active.sha256, force.shadow) == (second.bundle.sha256, None)
    site.report(radiograph(2))
    assert roles(site) == [("1", "active"), ("2", "shadow"), ("2", "active")]
    assert [row.decision for row in site.all(Prediction)] == ["fracture", "undetermined", "undetermined"]
    assert site.study.decision == "fracture", "the first image keeps what was said of it"


def test_a_restart_does_not_undo_a_promotion_but_other_settings_do(
    site: Site, second: Predictor, tmp_path: Path
) -> None:
    activation.set_shadow(site.settings, site.database, second.bundle, by="chief")
    activation.promote(site.settings, site.database, by="chief")
    for _ in range(2):
        assert take_up(site).active.sha256 == second.bundle.sha256
    third = litert.predictor(tmp_path / "third", version="3")
    force = activation.in_force(site.settings, site.database, third.bundle, "worker@here:2")
    assert force.active.sha256 == third.bundle.sha256


def test_a_roll_back_brings_back_the_model_before(site: Site, first: Predictor, second: Predictor) -> None:
    activation.set_shadow(site.settings, site.database, second.bundle, by="chief")
    activation.promote(site.settings, site.database, by="chief")
    activation.roll_back(site.settings, site.database, by="chief")
    assert take_up(site).active.sha256 == first.bundle.sha256
    activation.roll_back(site.settings, site.database, by="chief")
    assert take_up(site).active.sha256 == second.bundle.sha256


@sqlite_alone
def test_what_cannot_be_is_refused_with_its_reason_and_changes_nothing(site: Site, second: Predictor) -> None:
    with pytest.raises(CannotActivate, match="no shadow model"):
        activation.promote(site.settings, site.database, by="chief")
    with pytest.raises(CannotActivate, match="no other model"):
        activation.roll_back(site.settings, site.database, by="chief")
    with pytest.raises(CannotActivate, match="no shadow model"):
        activation.end_shadow(site.database, by="chief")
    activation.set_shadow(site.settings, site.database, second.bundle, by="chief")
    shutil.rmtree(site.settings.data_dir / "bundles")
    with pytest.raises(BundleError, match="not on this machine"):
        activation.promote(site.settings, site.database, by="chief")
    assert [row.role for row in site.all(ModelActivation)] == ["active", "shadow"]


def test_every_change_is_on_record_and_audited_with_who_made_it(site: Site, second: Predictor) -> None:
    activation.set_shadow(site.settings, site.database, second.bundle, by="chief")
    activation.promote(site.settings, site.database, by="chief")
    activation.roll_back(site.settings, site.database, by="deputy")
    events = [(event.action, event.actor) for event in site.all(AuditEvent) if event.action.startswith("model.")]
    assert events == [
        ("model.activated", "test"),
        ("model.shadowed", "chief"),
        ("model.promoted", "chief"),
        ("model.shadow_ended", "chief"),
        ("model.rolled_back", "deputy"),
    ]
    assert [row.reason for row in site.all(ModelActivation)] == ["settings", None, "promoted", None, "rolled_back"]


@sqlite_alone
def test_what_a_person_was_not_asked_about_is_neither_promoted_nor_rolled_back(
    site: Site, second: Predictor, tmp_path: Path
) -> None:
    asked = activation.set_shadow(site.settings, site.database, second.bundle, by="chief")
    third = litert.predictor(tmp_path / "third", version="3")
    newer = activation.set_shadow(site.settings, site.database, third.bundle, by="deputy")
    with pytest.raises(CannotActivate, match="changed meanwhile"):
        activation.promote(site.settings, site.database, by="chief", expected=asked)
    assert activation.promote(site.settings, site.database, by="chief", expected=newer) == newer
    with pytest.raises(CannotActivate, match="activated meanwhile"):
        activation.roll_back(site.settings, site.database, by="chief", expected=newer)
    assert activation.roll_back(site.settings, site.database, by="chief", expected=1) == 1


def test_the_history_says_who_let_which_model_read_the_newest_first(site: Site, second: Predictor) -> None:
    activation.set_shadow(site.settings, site.database, second.bundle, by="chief")
    activation.promote(site.settings, site.database, by="deputy")
    with site.database.read() as session:
        told = [(change.role, version.version, change.by) for change, version in activation.history(session, limit=3)]
        before = activation.before_active(session)
    assert told == [("no_shadow", "2", "deputy"), ("active", "2", "deputy"), ("shadow", "2", "chief")]
    assert before is not None
    assert before.version == "1"


# --- the commands -------------------------------------------------------------------------------------------------


def osteon(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
    command = [sys.executable, "-m", "console", "model", *arguments]
    return subprocess.run(
        command, env=ours | environment_of(settings), capture_output=True, text=True, timeout=120, check=False
    )


@sqlite_alone
def test_the_commands_shadow_compare_promote_and_roll_back(site: Site, second: Predictor) -> None:
    folder = str(second.bundle.path)
    assert osteon(site.settings, "promote").returncode == 1
    done = osteon(site.settings, "shadow", folder)
    assert (done.returncode, "by-hand 2" in done.stdout) == (0, True), done.stderr
    take_up(site)
    site.report(radiograph())
    found: dict[str, Any] = json.loads(osteon(site.settings, "compare", "--json").stdout)
    assert found["findings"][0]["images"] == 1
    assert "undetermined" in osteon(site.settings, "compare").stdout
    assert "is active" in osteon(site.settings, "promote").stdout
    listed = osteon(site.settings, "list").stdout
    assert "active since" in listed
    assert "by-hand 1" in osteon(site.settings, "rollback").stdout
    mistake = osteon(site.settings, "shadow")
    assert mistake.returncode == 2
    assert "--off" in mistake.stderr
