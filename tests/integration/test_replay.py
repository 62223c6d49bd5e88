"""A stored prediction is run again: from the received file and from the kept input, and what differs is named."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from sqlalchemy import create_engine

from dicom_node.wrap import wrap_picture
from models import clock
from models.audit_check import Verdict
from models.audit_records import Compared, check_records
from models.settings import Peer, Settings
from models.tables import AuditEvent, File, FileKind, Finding, Prediction, Region
from models.upgrade import upgrade
from tests.servers import Node
from tests.trail import Trail

pytest.importorskip("ai_edge_litert")

from tests import litert
from tests.site import Site
from worker import replay as replaying
from worker.predictor import Predictor
from worker.replay import Outcome, Replay, Replayer, Source, of_study, sample

sqlite_alone = pytest.mark.parametrize("make_settings", ["sqlite"], indirect=True)  # where the database does not matter
STUDY = "1.2.3"


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A network that finds white squares, in a folder of its own."""
    return litert.predictor(tmp_path_factory.mktemp("bundles") / "by-hand")


@dataclass
class Stored:
    """A site that has read one image, and the folder of the bundle."""

    site: Site
    bundle: Path

    def replayer(self, bundle: Path | None = None) -> Replayer:
        site = self.site
        return Replayer(site.settings, site.database, site.spool, actor="auditor", bundle=bundle or self.bundle)

    def again(self, *sources: Source) -> Replay:
        return self.replayer().replay(1, sources or tuple(Source))

    def path(self, kind: FileKind) -> Path:
        (file,) = [file for file in self.site.all(File) if file.kind is kind]
        return self.site.spool.where(file.key)

    def alter(self, statement: str) -> None:
        """As somebody who owns the database does it (SQLite)."""
        engine = create_engine(self.site.database.engine.url)
        with engine.begin() as connection:
            for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").all():
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
            connection.exec_driver_sql(statement)
        engine.dispose()


@pytest.fixture
def stored(make_settings: Callable[..., Settings], by_hand: Predictor) -> Iterator[Stored]:
    settings = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source")])
    upgrade(settings)
    site = Site(settings, by_hand)
    with clock.frozen(datetime(2026, 1, 1, 12, tzinfo=UTC)):
        receive(site, 1)
        site.analyse()
        yield Stored(site, by_hand.bundle.path)
    site.close()


def receive(site: Site, number: int, size: tuple[int, int] = (240, 480)) -> None:
    site.receive(
        wrap_picture(
            litert.white_square((120, 200, 160, 240)).resize(size),
            patient_id="PLANTED-ID",
            patient_name="PLANTED^NAME",
            study_uid=STUDY,
            series_uid="1.2.3.3",
            sop_instance_uid=f"{STUDY}.4.{number}",
            body_part="WRIST",
            instance_number=number,
        )
    )


def named(found: Replay) -> set[tuple[str, str]]:
    return {(difference.source.value, difference.what) for difference in found.differences}


# --- the same again -----------------------------------------------------------------------------------------------


def test_a_prediction_comes_out_the_same_from_the_file_and_from_the_kept_input_and_that_is_on_record(
    stored: Stored,
) -> None:
    (region,) = stored.site.all(Region)
    assert region.peak_x is not None, "there is a place to compare"
    assert stored.site.only(Finding).decision == "fracture"
    found = stored.again()
    assert found.differences == []
    assert (found.outcome, found.ran, found.why) == (Outcome.SAME, [Source.INPUT, Source.FILE], [])
    event = stored.site.all(AuditEvent)[-1]
    assert (event.actor, event.action, event.subject, event.subject_id) == (
        "auditor",
        "prediction.replayed",
        "prediction",
        1,
    )
    assert (event.details["outcome"], event.details["source"]) == ("same", "input, file")


@sqlite_alone
def test_the_kept_input_lies_where_the_pipeline_had_put_it_whatever_the_shape_of_the_image(stored: Stored) -> None:
    """The place is rebuilt from what is on record, to the bit."""
    for number, size in enumerate(((211, 480), (240, 333), (97, 101)), start=2):
        receive(stored.site, number, size)
    stored.site.analyse()
    assert len(stored.site.all(Prediction)) == 4
    for number in (2, 3, 4):
        found = stored.replayer().replay(number)
        assert (found.outcome, found.differences) == (Outcome.SAME, [])


@sqlite_alone
def test_predictions_are_chosen_by_study_or_at_random(stored: Stored) -> None:
    receive(stored.site, 2)
    stored.site.analyse()
    with stored.site.database.read() as session:
        assert of_study(session, 1) == [1, 2]
        assert of_study(session, 7) == []
        assert set(sample(session, 5)) == {1, 2}
        assert len(sample(session, 1)) == 1


# --- what differs -------------------------------------------------------------------------------------------------


@sqlite_alone
def test_a_prediction_that_was_altered_in_the_database_differs(stored: Stored) -> None:
    stored.alter("UPDATE predictions SET decision = 'no_fracture'")
    stored.alter("UPDATE findings SET decision = 'no_fracture', probability = probability - 0.0002, present_from = 0.9")
    stored.alter("UPDATE regions SET x_min = x_min - 1, peak_y = peak_y + 1")
    found = stored.again(Source.FILE)
    assert found.outcome is Outcome.DIFFERS
    whats = ("decision", "probability", "present from", "region", "peak")
    assert named(found) == {("file", "decision"), *(("file", f"Fracture of bone: {what}") for what in whats)}
    (decision,) = [difference for difference in found.differences if difference.what == "decision"]
    assert (decision.recorded, decision.found) == ("no_fracture", "fracture")


@sqlite_alone
def test_what_a_processor_rounds_otherwise_is_no_difference(stored: Stored) -> None:
    stored.alter("UPDATE findings SET probability = probability - 0.00005")
    stored.alter("UPDATE regions SET x_min = x_min - 0.3")
    assert stored.again().outcome is Outcome.SAME


@sqlite_alone
def test_an_input_that_was_altered_is_named_as_what_it_is(stored: Stored) -> None:
    path = stored.path(FileKind.MODEL_INPUT)
    with Picture.open(path) as picture:
        pixels = np.asarray(picture).copy()
    pixels[:] = 20
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    found = stored.again()
    assert found.outcome is Outcome.DIFFERS
    assert {("input", "kept input"), ("input", "model input"), ("input", "decision")} <= named(found)
    assert not any(source == "file" for source, _ in named(found)), "the file is still what it was"


@sqlite_alone
def test_a_file_that_was_altered_is_named_and_one_that_is_none_any_more_too(stored: Stored) -> None:
    path = stored.path(FileKind.INSTANCE)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert {("file", "received file"), ("file", "pixels")} <= named(stored.again())
    path.write_bytes(b"nothing")
    found = stored.again(Source.FILE)
    assert (found.outcome, found.ran) == (Outcome.DIFFERS, [])
    assert found.differences[-1].found.startswith("cannot be read any more")
    stored.path(FileKind.MODEL_INPUT).write_bytes(b"nothing")
    assert stored.again(Source.INPUT).differences[-1].found == "is no picture any more"


def test_a_prediction_or_a_finding_that_was_altered_is_not_what_its_event_recorded(
    make_settings: Callable[..., Settings], by_hand: Predictor
) -> None:
    settings = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source")])
    upgrade(settings)
    site = Site(settings, by_hand)
    trail = Trail(settings, site.database)
    postgresql = site.database.engine.dialect.name == "postgresql"
    garbage, content = ("1", "'x'::bytea") if postgresql else ("}", "sha256")
    with clock.frozen(datetime(2026, 1, 1, 12, tzinfo=UTC)):
        for number in (1, 2, 3, 4):
            receive(site, number)
        site.analyse()
        site.complete()
        assert site.reporter.report_next()
        verdict = Verdict()
        assert check_records(site.database, verdict) == Compared(predictions=4, reports=1)
        assert verdict.well, verdict.faults
        trail.attack(
            "UPDATE predictions SET decision = 'no_fracture' WHERE id = 1",
            "UPDATE regions SET x_min = x_min + 1 WHERE finding_id = 2",
            "DELETE FROM regions WHERE finding_id = 3",
            "DELETE FROM findings WHERE id = 3",
            f"UPDATE predictions SET geometry = '{garbage}' WHERE id = 4",
            f"UPDATE reports SET content = {content}",
            tables=("predictions", "findings", "regions", "reports"),
        )
        check_records(site.database, verdict)
    found = [fault.what for fault in verdict.faults]
    assert [what.split(" is not what event ")[0] for what in found] == [
        "prediction 1",
        "prediction 2",
        "prediction 3",
        "prediction 4",
        "report 1",
    ]
    site.close()


# --- what cannot be run -------------------------------------------------------------------------------------------


@sqlite_alone
def test_what_retention_removed_is_said_and_the_kept_input_is_enough(stored: Stored) -> None:
    with stored.site.database.write() as session:
        session.get_one(File, 1).removed_at = clock.now()
    found = stored.again()
    assert (found.outcome, found.ran) == (Outcome.SAME, [Source.INPUT])
    assert found.why == ["not from the received file: retention removed it on 2026-01-01"]
    found = stored.again(Source.FILE)
    assert found.outcome is Outcome.IMPOSSIBLE
    stored.path(FileKind.MODEL_INPUT).unlink()
    assert stored.again().why == [
        "not from the kept input: it is missing in the spool",
        "not from the received file: retention removed it on 2026-01-01",
    ]
    assert stored.site.all(AuditEvent)[-1].details["outcome"] == "impossible"


@sqlite_alone
def test_a_bundle_that_is_not_here_is_named_with_where_it_was_looked_for(stored: Stored) -> None:
    found = Replayer(stored.site.settings, stored.site.database, stored.site.spool, actor="auditor").replay(1)
    assert found.outcome is Outcome.IMPOSSIBLE
    (why,) = found.why
    assert why.startswith("its bundle is not here (by-hand 1, sha256 ")
    assert "osteon-reader" in why


@sqlite_alone
def test_a_bundle_in_force_is_found_by_its_sha256(stored: Stored, tmp_path: Path) -> None:
    settings = stored.site.settings.model_copy(update={"model_bundle": stored.bundle})
    replayer = Replayer(settings, stored.site.database, stored.site.spool, actor="auditor")
    assert replayer.replay(1).outcome is Outcome.SAME
    other = litert.predictor(tmp_path / "other", version="2").bundle.path
    found = stored.replayer(other).replay(1)
    assert found.outcome is Outcome.IMPOSSIBLE
    assert found.why[0].startswith(f"{other} is not its bundle (by-hand 1, sha256 ")


@sqlite_alone
def test_a_bundle_that_was_altered_is_named_with_the_file_that_does_not_match(stored: Stored, tmp_path: Path) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(stored.bundle, altered)
    model = bytearray((altered / "model.tflite").read_bytes())
    model[-1] ^= 1
    (altered / "model.tflite").write_bytes(model)
    found = stored.replayer(altered).replay(1)
    assert found.outcome is Outcome.IMPOSSIBLE
    assert found.why == [f"the bundle in {altered} is not what it was: model.tflite: does not match SHA256SUMS"]


@sqlite_alone
def test_a_prediction_of_another_pipeline_is_not_compared_with_what_this_one_makes(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = stored.site.only(Prediction).pipeline_version
    monkeypatch.setattr(replaying, "PIPELINE_VERSION", recorded + 1)
    found = stored.again()
    assert found.outcome is Outcome.IMPOSSIBLE
    assert found.why[0].startswith(f"it was made with pixel pipeline {recorded}, by Osteon ")


@sqlite_alone
def test_a_prediction_that_there_is_not_is_no_outcome(stored: Stored) -> None:
    with pytest.raises(LookupError, match="no prediction 7"):
        stored.replayer().replay(7)


# --- as a command -------------------------------------------------------------------------------------------------


def test_osteon_replay_says_in_another_process_that_it_is_the_same_or_what_is_not(
    stored: Stored, tmp_path: Path
) -> None:
    node = Node(stored.site.settings, tmp_path / "node.log")
    bundle = ("--bundle", str(stored.bundle))
    done = node.run("replay", "1", *bundle, "--by", "night shift")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prediction 1: the same, from the kept input and the received file" in done.stdout
    event = stored.site.all(AuditEvent)[-1]
    assert (event.action, event.actor) == ("prediction.replayed", "night shift")
    stored.path(FileKind.INSTANCE).write_bytes(b"nothing")
    done = node.run("replay", "--study", STUDY, *bundle, "--json")
    (found,) = json.loads(done.stdout)["replays"]
    assert (done.returncode, found["outcome"], found["ran_from"]) == (1, "differs", ["input"])
    assert "PLANTED" not in done.stdout + done.stderr
    done = node.run("replay", "--sample", "1", "--from", "input")
    assert done.returncode == 2
    assert "its bundle is not here" in done.stdout
    node.stop()


@sqlite_alone
def test_osteon_replay_of_nothing_exits_with_2(stored: Stored, tmp_path: Path) -> None:
    node = Node(stored.site.settings, tmp_path / "node.log")
    assert node.run("replay", "7").returncode == 2
    assert node.run("replay").returncode == 2
    node.stop()
