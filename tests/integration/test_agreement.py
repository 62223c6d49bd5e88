"""How reviewers agree with the model, by week and as sensitivity and specificity, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from math import sqrt

import pytest
from sqlalchemy import insert

from models.database import Database, database_url
from models.settings import Settings
from models.tables import ModelActivation, ModelVersion, Prediction, Review
from models.upgrade import upgrade
from tests.filled import fill
from worker.agreement import by_week, reviewed
from worker.shares import Share, Z, wilson

MONDAY = datetime(2026, 6, 1, tzinfo=UTC)
ALWAYS = datetime(2000, 1, 1, tzinfo=UTC)
A_SECOND = timedelta(seconds=1)


def by_definition(count: int, of: int) -> tuple[float, float]:
    """The shares that a score test does not refuse, looked for by halving."""
    share = count / of

    def refused(true: float) -> bool:
        return abs(share - true) > Z * sqrt(true * (1 - true) / of)

    def edge(inside: float, outside: float) -> float:
        if not refused(outside):
            return outside
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if refused(middle) else (middle, outside)
        return inside

    return edge(share, 0.0), edge(share, 1.0)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # Newcombe, Statistics in Medicine 17, 857-872, 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_one_that_was_published(count: int, of: int, low: float, high: float) -> None:
    assert wilson(count, of) == pytest.approx((low, high), abs=5e-5)
    assert wilson(of - count, of) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("of", [1, 2, 7, 40, 1000, 1_000_000])
def test_the_interval_holds_the_shares_that_a_score_test_does_not_refuse(of: int) -> None:
    for count in {0, 1, of // 3, of // 2, of - 1, of}:
        assert wilson(count, of) == pytest.approx(by_definition(count, of), abs=1e-9)


def test_of_nothing_nothing_is_known() -> None:
    assert Share(0, 0).value is None
    assert Share(0, 0).interval == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


@pytest.fixture
def database(make_settings: Callable[..., Settings]) -> Iterator[Database]:
    """Forty studies of two images: 6 of 40 a fracture, 2 undetermined; without what `fill` made up of reviews."""
    settings = make_settings()
    upgrade(settings)
    fill(database_url(settings), finished=range(1, 41), waiting=range(0))
    opened = Database.of(settings)
    yield opened
    opened.close()


def say(database: Database, *said: tuple[int, str, bool], at: datetime = MONDAY) -> None:
    """Put verdicts on record: on which prediction, by whom, and whether they agree."""
    with database.write() as session:
        session.add_all(
            Review(prediction_id=number, reviewer=who, agrees=agrees, why="seen", created_at=at)
            for number, who, agrees in said
        )


def of_study(study: int) -> tuple[int, int]:
    """The predictions of a study, of both its images."""
    return 2 * study - 1, 2 * study


def test_truth_is_derived_from_what_was_said_and_whether_reviewers_agree(database: Database) -> None:
    # Of `fill`: studies 1, 2, 20, 21 and 22 are fractures, 3 is undetermined, 4 and on are none.
    (tp, _), (fp, _), (undetermined, other), (tn, fn) = (of_study(study) for study in (1, 2, 3, 4))
    say(database, (tp, "rita", True), (fp, "rita", False), (undetermined, "rita", False), (other, "rita", True))
    say(database, (tn, "rita", True), (fn, "rita", False), (of_study(5)[0], "rita", True))
    with database.read() as session:
        (one,) = reviewed(session)
    assert (one.sensitivity, one.specificity) == (Share(1, 2), Share(2, 3))
    assert (one.agreed_where("fracture"), one.agreed_where("no_fracture")) == (Share(1, 2), Share(2, 3))
    assert one.agreed_where("undetermined") == Share(1, 2)
    assert (one.agreed, one.verdicts, one.predictions, one.contested) == (Share(4, 7), 7, 7, 0)
    assert one.name == "osteon-reader 2"


def test_the_last_word_of_each_reviewer_counts_and_the_contested_are_counted(database: Database) -> None:
    say(database, (1, "rita", False), (1, "rita", True), (1, "otto", True), (3, "rita", True))
    say(database, (3, "otto", True), (3, "otto", False), at=MONDAY + timedelta(weeks=1))
    with database.read() as session:
        (one,) = reviewed(session)
        weeks = by_week(session, since=ALWAYS)
    assert (one.agreed, one.predictions, one.contested) == (Share(3, 4), 2, 1)
    assert [week.agreed for week in weeks] == [Share(3, 3), Share(0, 1)]


def test_a_week_begins_on_monday_in_utc_whatever_zone_a_review_came_in(database: Database) -> None:
    sunday = MONDAY - A_SECOND
    say(database, (1, "rita", True), at=sunday)
    say(database, (3, "rita", False), at=MONDAY)
    say(database, (5, "rita", True), at=MONDAY + timedelta(weeks=1) - A_SECOND)
    with database.read() as session:
        weeks = by_week(session, since=ALWAYS)
        since = by_week(session, since=MONDAY)
    assert [(week.monday, week.agreed) for week in weeks] == [
        (date(2026, 5, 25), Share(1, 1)),
        (date(2026, 6, 1), Share(1, 2)),
    ]
    assert since == weeks[1:]


def test_versions_are_kept_apart_and_what_a_shadow_said_does_not_count(database: Database) -> None:
    with database.write() as session:
        newer = ModelVersion(
            name="osteon-reader", version="3", bundle_sha256="other", files={}, card={}, first_seen_at=MONDAY
        )
        session.add(newer)
        session.flush()
        session.add(ModelActivation(model_version_id=newer.id, role="active", at=MONDAY, by="chief"))
        like = session.get_one(Prediction, 1)
        columns = {column.name: getattr(like, column.name) for column in Prediction.__table__.columns}
        for number, image, role in ((9001, 1, "active"), (9002, 2, "shadow")):
            changed = {"id": number, "image_id": image, "model_version_id": newer.id, "role": role}
            session.execute(insert(Prediction).values(columns | changed))
    say(database, (1, "rita", True), (9001, "rita", False), (9002, "rita", True))
    with database.read() as session:
        found = reviewed(session)
        weeks = by_week(session, since=ALWAYS)
    assert [(one.name, one.agreed) for one in found] == [
        ("osteon-reader 3", Share(0, 1)),
        ("osteon-reader 2", Share(1, 1)),
    ]
    assert [(week.model_version_id, week.agreed) for week in weeks] == [(1, Share(1, 1)), (newer.id, Share(0, 1))]


def test_without_a_review_there_is_nothing_to_say(database: Database) -> None:
    with database.read() as session:
        assert reviewed(session) == []
        assert by_week(session, since=ALWAYS) == []
