"""What is counted by week and scanner, on both databases, and when the doctor speaks up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest

from console.doctor.drift import look_at_drift
from console.doctor.verdict import Standing
from models import clock
from models.database import Database
from models.reasons import Reason
from models.settings import Settings
from models.tables import (
    Association,
    Finding,
    Image,
    ImageState,
    ModelActivation,
    ModelVersion,
    Prediction,
    Study,
)
from tests.bundles import shipped_card
from worker.drift import Drift, baseline_of, drift
from worker.shift import Verdict

NOW = datetime(2026, 3, 25, 12, tzinfo=UTC)  # a Wednesday
_numbers = itertools.count(1)
Add = Callable[..., None]


@pytest.fixture
def version(database: Database) -> ModelVersion:
    card = shipped_card()
    with database.write() as session:
        made = ModelVersion(
            name=card.name,
            version=card.version,
            bundle_sha256="1" * 64,
            files={},
            card=card.model_dump(mode="json"),
            first_seen_at=NOW,
        )
        session.add(made)
        session.flush()
        session.add(
            ModelActivation(model_version_id=made.id, role="active", at=NOW - timedelta(days=400), by="w", reason=None)
        )
        session.add(
            Association(
                id=1, uid="a", calling_ae_title="R", called_ae_title="O", address="", opened_at=NOW, seen_at=NOW
            )
        )
        session.add(
            Study(
                id=1,
                study_instance_uid="1.2",
                **dict.fromkeys(
                    ("patient_name", "patient_id", "issuer_of_patient_id", "patient_birth_date", "patient_sex"), ""
                ),
                **dict.fromkeys(("accession_number", "study_date", "study_description", "calling_ae_title"), ""),
                **dict.fromkeys(("first_image_at", "last_image_at", "quiet_until", "complete_by"), NOW),
                **dict.fromkeys(("rank_at", "due_at"), NOW),
                tries=0,
                lease_token=0,
            )
        )
    return made


@pytest.fixture
def add(database: Database, version: ModelVersion) -> Add:
    """Put images on record that came at some time from a scanner, with their answer or the reason why there is none."""

    def add(
        at: datetime,
        probability: float | None,
        *,
        scanner: str = "X1, ROOM1",
        role: str = "active",
        reason: Reason = Reason.UNLIKE_TRAINING,
        images: int = 1,
        model: int | None = None,
    ) -> None:
        decision = (
            "fracture" if (probability or 0) >= 0.34 else "no_fracture" if (probability or 0) < 0.03 else "undetermined"
        )
        with database.write() as session:
            for _ in range(images):
                image = Image(
                    study_id=1,
                    association_id=1,
                    sop_instance_uid=f"1.2.{next(_numbers)}",
                    **dict.fromkeys(("sop_class_uid", "series_instance_uid", "transfer_syntax_uid", "modality"), "1"),
                    **dict.fromkeys(("body_part", "view", "laterality", "header"), ""),
                    scanner=scanner,
                    is_image=True,
                    **dict.fromkeys(("received_at", "rank_at", "due_at"), at),
                    dataset_sha256="",
                    state=ImageState.ANALYSED if probability is not None else ImageState.NOT_ANALYSED,
                    reason=None if probability is not None else reason.value,
                    tries=1,
                    lease_token=1,
                )
                session.add(image)
                session.flush()
                if probability is None:
                    continue
                session.add(
                    Prediction(
                        image_id=image.id,
                        model_version_id=model or version.id,
                        role=role,
                        **dict.fromkeys(("input_sha256", "pixel_sha256", "software_version"), ""),
                        pipeline_version=2,
                        decision=decision,
                        milliseconds=1,
                        created_at=at + timedelta(seconds=5),
                        findings=[
                            Finding(
                                code_value="125605004",
                                code_scheme="SCT",
                                code_meaning="Fracture of bone",
                                logit=0,
                                probability=probability,
                                absent_below=0.03,
                                present_from=0.34,
                                decision=decision,
                            )
                        ],
                    )
                )

    return add


def counted(database: Database, version: ModelVersion, weeks: int = 26) -> Drift:
    with clock.frozen(NOW), database.read() as session:
        (found,) = drift(session, version, weeks=weeks)
    return found


def test_an_image_is_counted_in_the_iso_week_in_which_it_came_under_its_scanner(
    database: Database, version: ModelVersion, add: Add
) -> None:
    monday = datetime(2026, 3, 16, tzinfo=UTC)
    add(monday - timedelta(weeks=30), 0.9)  # too long ago
    add(monday - timedelta(microseconds=1), 0.9)
    add(monday, 0.011, images=2)
    add(monday + timedelta(days=6, hours=23, minutes=59), 0.34, scanner="X2")
    add(NOW - timedelta(hours=1), 0.2)
    add(NOW - timedelta(hours=1), 1.0)
    found = counted(database, version)
    assert (len(found.weeks), found.weeks[-1]) == (26, date(2026, 3, 23))
    assert list(found.by_scanner) == ["X1, ROOM1", "X2"]
    one, other = (found.of(scanner, 3) for scanner in found.by_scanner)
    assert [(week.fracture, week.undetermined, week.no_fracture) for week in one] == [(1, 0, 0), (0, 0, 2), (1, 1, 0)]
    assert [week.read for week in other] == [0, 1, 0]
    assert [week.read for week in found.of(None, 3)] == [1, 3, 2]
    assert sum(week.read for week in found.of(None)) == 6
    assert found.edges[1:3] == (0.01, 0.02)
    assert one[1].scores[1] == 2
    assert one[2].scores[-1] == 1
    assert sum(one[2].scores) == 2
    assert found.counted_at == NOW


def test_only_the_active_models_answers_count_and_of_the_rest_what_the_gate_refused(
    database: Database, version: ModelVersion, add: Add
) -> None:
    with database.write() as session:
        other = ModelVersion(name="o", version="1", bundle_sha256="2" * 64, files={}, card={}, first_seen_at=NOW)
        session.add(other)
        session.flush()
        session.add(ModelActivation(model_version_id=other.id, role="active", at=NOW, by="w", reason=None))
    yesterday = NOW - timedelta(days=1)
    add(yesterday, 0.5)
    add(yesterday, 0.5, role="shadow")
    add(yesterday, 0.5, model=other.id)
    add(yesterday, None, images=2)
    add(yesterday, None, reason=Reason.PHOTOGRAPH)
    add(yesterday, None, reason=Reason.OUTSIDE_INTENDED_USE)
    add(NOW + timedelta(minutes=1), None)  # by then the other one was active
    (this_week,) = counted(database, version, 1).of(None)
    assert (this_week.read, this_week.refused) == (1, 3)
    assert (this_week.rates["refused"].count, this_week.rates["refused"].of) == (3, 4)
    (others,) = counted(database, other, 1).of(None)
    assert (others.read, others.refused) == (1, 1)
    assert counted(database, other).baseline is None


def test_a_scanner_whose_images_are_read_otherwise_is_flagged_and_one_like_the_test_set_is_not(
    settings: Settings, database: Database, version: ModelVersion, add: Add
) -> None:
    spread = baseline_of(shipped_card().metrics, "125605004")
    assert spread is not None
    assert spread.spread is not None
    for low, high, share in zip(spread.edges, spread.edges[1:], spread.spread.mixed(0.1), strict=False):
        add(NOW - timedelta(days=3), (low + high) / 2, images=round(200 * share), scanner="as ever")
    add(NOW - timedelta(days=3), 0.3, images=40, scanner="new")
    add(NOW - timedelta(days=10), 0.6, images=60, scanner="new")
    add(NOW - timedelta(days=10), None, images=20, scanner="new")
    add(NOW - timedelta(days=10), 0.6, images=9, scanner="hardly used")
    found = counted(database, version)
    well, new, few = (found.judged(found.of(scanner)) for scanner in ("as ever", "new", "hardly used"))
    assert well.flagged == []
    assert set(well.rates.values()) == {Verdict.WITHIN}
    assert new.flagged == ["fracture", "undetermined", "refused", "scores"] or new.flagged == [
        "fracture",
        "refused",
        "scores",
    ]
    assert set(few.rates.values()) == {Verdict.FEW}
    assert few.flagged == []
    with clock.frozen(NOW):
        (said,) = look_at_drift(settings)
    assert said.standing is Standing.WARNING
    assert said.said.startswith("new, last 4 weeks: Called fracture: 60.0 %")


def test_a_card_without_scores_is_compared_in_its_rates_alone_and_one_without_figures_in_nothing() -> None:
    metrics = shipped_card().metrics
    old = baseline_of(metrics.model_copy(update={"score_distribution": None}), "125605004")
    new = baseline_of(metrics, "125605004")
    assert old is not None
    assert new is not None
    assert old.spread is None
    for name in ("fracture", "undetermined", "refused"):
        assert old.bands[name].value == pytest.approx(new.bands[name].value, abs=0.01)
        assert new.bands[name].low <= new.bands[name].value <= new.bands[name].high
    assert new.bands["fracture"].low < 0.08 < 0.2 < new.bands["fracture"].high
    assert baseline_of(metrics.model_copy(update={"values": {}}), "125605004") is None


def test_nothing_on_record_is_no_error(database: Database, version: ModelVersion) -> None:
    found = counted(database, version)
    assert found.by_scanner == {}
    assert found.judged(found.of(None)).flagged == []
    assert [week.read for week in found.of(None, 4)] == [0, 0, 0, 0]
