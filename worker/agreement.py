"""How reviewers agree with the model: by week, and as sensitivity and specificity, each with its interval.

What was truly there is derived from what reviewers say of what was sent:

================  =================  ==================
the model said    reviewer agrees    reviewer disagrees
================  =================  ==================
fracture          true positive      false positive
no fracture       true negative      false negative
undetermined      counted apart: nothing was claimed
================  =================  ==================

A reviewer's last word on a prediction counts, and none before it. Two reviewers of one prediction are two verdicts.

The shares are biased by verification (Begg and Greenes, Biometrics 39, 207-215, 1983): only what somebody reviewed is
counted, and people review what the model called a fracture, or what surprised them, more often than the rest. They say
how the model did on what was reviewed; the release's own figures say how it does.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from sqlalchemy import BigInteger, ColumnElement, Integer, Subquery, and_, case, cast, func, literal_column, select
from sqlalchemy.orm import Session

from models.tables import ModelVersion, Prediction, Review
from worker.activation import ACTIVE
from worker.shares import Share

A_WEEK = 7 * 24 * 3600
FIRST_MONDAY = date(1969, 12, 29)
BEFORE_UNIX_TIME = 3 * 24 * 3600
"""Seconds from that Monday to the beginning of Unix time."""


@dataclass(frozen=True)
class Week:
    """The verdicts that were given in one week on one model version's predictions."""

    monday: date
    model_version_id: int
    agreed: Share


@dataclass
class Reviewed:
    """What reviewers said of one model version's predictions.

    Attributes
    ----------
    name, bundle_sha256
        Name and version, and what tells two of the same name apart.
    said
        How many verdicts there are, by the model's decision and whether the reviewer agreed.
    predictions
        How many predictions were reviewed.
    contested
        Predictions on which reviewers do not agree with each other.
    """

    model_version_id: int
    name: str
    bundle_sha256: str
    said: dict[tuple[str, bool], int] = field(default_factory=dict)
    predictions: int = 0
    contested: int = 0

    @property
    def verdicts(self) -> int:
        """How many there are in all."""
        return sum(self.said.values())

    @property
    def agreed(self) -> Share:
        """Of all verdicts, also of those on undetermined images."""
        return Share(sum(count for (_, agrees), count in self.said.items() if agrees), self.verdicts)

    @property
    def sensitivity(self) -> Share:
        """Of what truly was a fracture, as reviewers say: how much the model called one."""
        positive = self.said.get(("fracture", True), 0)
        return Share(positive, positive + self.said.get(("no_fracture", False), 0))

    @property
    def specificity(self) -> Share:
        """Of what truly was none, as reviewers say: how much the model called none."""
        negative = self.said.get(("no_fracture", True), 0)
        return Share(negative, negative + self.said.get(("fracture", False), 0))

    def agreed_where(self, decision: str) -> Share:
        """Of the verdicts on images that the model decided so."""
        agreed = self.said.get((decision, True), 0)
        return Share(agreed, agreed + self.said.get((decision, False), 0))


def reviewed(session: Session) -> list[Reviewed]:
    """Return what was said of each model version that was reviewed, the newest version first."""
    each = _each_prediction()
    rows = session.execute(
        select(
            ModelVersion.id,
            ModelVersion.name,
            ModelVersion.version,
            ModelVersion.bundle_sha256,
            Prediction.decision,
            cast(func.sum(each.c.agreed), BigInteger),
            cast(func.sum(each.c.disagreed), BigInteger),
            func.count(),
            func.sum(case((and_(each.c.agreed > 0, each.c.disagreed > 0), 1), else_=0)),
        )
        .select_from(each)
        .join(Prediction, Prediction.id == each.c.prediction_id)
        .join(ModelVersion, ModelVersion.id == Prediction.model_version_id)
        .where(Prediction.role == ACTIVE)
        .group_by(ModelVersion.id, Prediction.decision)
    )
    found: dict[int, Reviewed] = {}
    for version, name, number, sha256, decision, agreed, disagreed, predictions, contested in rows:
        one = found.setdefault(version, Reviewed(version, f"{name} {number}", sha256))
        one.said[decision, True], one.said[decision, False] = agreed, disagreed
        one.predictions += predictions
        one.contested += contested
    return sorted(found.values(), key=lambda one: one.model_version_id, reverse=True)


def by_week(session: Session, *, since: datetime) -> list[Week]:
    """Return the agreement of each week (Monday to Sunday, UTC) in which something was reviewed, the oldest first."""
    last, week = _last_words(), _week(session)
    rows = session.execute(
        select(week, Prediction.model_version_id, Review.agrees, func.count())
        .select_from(last)
        .join(Review, Review.id == last.c.id)
        .join(Prediction, Prediction.id == Review.prediction_id)
        .where(Prediction.role == ACTIVE, Review.created_at >= since)
        .group_by(week, Prediction.model_version_id, Review.agrees)
    )
    counts: dict[tuple[int, int], dict[bool, int]] = defaultdict(lambda: {True: 0, False: 0})
    for number, version, agrees, count in rows:
        counts[number, version][agrees] += count
    return [
        Week(FIRST_MONDAY + timedelta(weeks=number), version, Share(said[True], sum(said.values())))
        for (number, version), said in sorted(counts.items())
    ]


def _last_words() -> Subquery:
    """The last review of each reviewer on each prediction, by its id."""
    return select(func.max(Review.id).label("id")).group_by(Review.prediction_id, Review.reviewer).subquery()


def _each_prediction() -> Subquery:
    """Every reviewed prediction, with how many reviewers agree and how many do not."""
    last = _last_words()
    return (
        select(
            Review.prediction_id,
            func.sum(case((Review.agrees, 1), else_=0)).label("agreed"),
            func.sum(case((Review.agrees, 0), else_=1)).label("disagreed"),
        )
        .select_from(last)
        .join(Review, Review.id == last.c.id)
        .group_by(Review.prediction_id)
        .subquery()
    )


def _week(session: Session) -> ColumnElement[int]:
    """The number of the week in which a review was given, counted from `FIRST_MONDAY`."""
    seconds: ColumnElement[int]
    if session.connection().dialect.name == "sqlite":
        seconds = cast(func.strftime("%s", Review.created_at), Integer)
    else:
        seconds = cast(func.floor(func.extract("epoch", Review.created_at)), BigInteger)
    return (seconds + literal_column(str(BEFORE_UNIX_TIME))) // literal_column(str(A_WEEK))
