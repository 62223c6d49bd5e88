"""Whether what the active model says changes: rates and scores by week and scanner, beside those of its release.

A finding is counted in the ISO week in which its image came, under the scanner that made it. Only the active model's
answers count, and of the images without one those that the gate refused: by their pixels or by the model's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, ColumnExpressionArgument, Row, case, cast, func, literal, select
from sqlalchemy import Date as SqlDate
from sqlalchemy.orm import Session

from models import clock
from models.reasons import Reason
from models.tables import Finding, Image, ImageState, ModelActivation, ModelVersion, Prediction
from worker.activation import ACTIVE
from worker.bundle import Card, FindingScores, Metric, Metrics
from worker.shift import Band, Rate, Shift, Spread, Verdict, shift

LONGEST_WEEKS = 26
GATE = (Reason.BLANK, Reason.PHOTOGRAPH, Reason.TEXT, Reason.MULTI_PANEL, Reason.UNLIKE_TRAINING)
"""Why the gate refuses an image (`dicom_node.image.gate`, `worker.analyse`)."""
PREVALENCES = (0.02, 0.20)
"""Between these shares of images with a fracture, a rate may lie anywhere without anything being wrong."""
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Where the card has none."""
_CLOCKS_DIFFER = timedelta(days=1)
_HEAD_STARTS = timedelta(days=7)
_WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Counts:
    """What was said of some images, of one finding."""

    fracture: int = 0
    undetermined: int = 0
    no_fracture: int = 0
    refused: int = 0
    scores: tuple[int, ...] = ()
    """Images between each edge and the next."""

    @property
    def read(self) -> int:
        """Images with an answer."""
        return self.fracture + self.undetermined + self.no_fracture

    @property
    def rates(self) -> dict[str, Rate]:
        """Shares by name: of the images that were read, and for those refused of all."""
        return {
            "fracture": Rate(self.fracture, self.read),
            "undetermined": Rate(self.undetermined, self.read),
            "refused": Rate(self.refused, self.read + self.refused),
        }

    def __add__(self, other: Counts) -> Counts:
        scores = tuple(map(sum, zip(self.scores, other.scores, strict=True))) if self.scores and other.scores else ()
        return Counts(
            self.fracture + other.fracture,
            self.undetermined + other.undetermined,
            self.no_fracture + other.no_fracture,
            self.refused + other.refused,
            scores or self.scores or other.scores,
        )


@dataclass(frozen=True)
class Baseline:
    """What the release's card says."""

    bands: dict[str, Band]
    prevalence: float
    spread: Spread | None
    """None where the card is older than the counts."""
    edges: tuple[float, ...]


@dataclass(frozen=True)
class Drift:
    """One model version's answers.

    Attributes
    ----------
    weeks
        The Mondays, the oldest first; the last week is not over.
    by_scanner
        By the scanner's name the counts of each week; "" for images from before scanners were kept.
    """

    model: str
    finding: str
    baseline: Baseline | None
    edges: tuple[float, ...]
    absent_below: float | None
    present_from: float | None
    weeks: tuple[date, ...]
    by_scanner: dict[str, tuple[Counts, ...]]
    counted_at: datetime

    def of(self, scanner: str | None, weeks: int = LONGEST_WEEKS) -> tuple[Counts, ...]:
        """Return the counts of the last so many weeks, of one scanner or of all."""
        chosen = [self.by_scanner[scanner]] if scanner is not None else list(self.by_scanner.values())
        summed = tuple(reduce(Counts.__add__, column, Counts()) for column in zip(*chosen, strict=True))
        return (summed or tuple(Counts() for _ in self.weeks))[-weeks:]

    def judged(self, counts: Sequence[Counts]) -> Judged:
        """Compare the sum of these weeks with the release."""
        total = reduce(Counts.__add__, counts, Counts())
        bands = self.baseline.bands if self.baseline is not None else {}
        spread = self.baseline.spread if self.baseline is not None else None
        return Judged(
            total,
            {name: rate.against(bands.get(name)) for name, rate in total.rates.items()},
            None if spread is None or not total.read else shift(total.scores, spread),
        )


@dataclass(frozen=True)
class Judged:
    """A period, and what is to be said of it."""

    counts: Counts
    rates: dict[str, Verdict]
    shift: Shift | None

    @property
    def flagged(self) -> list[str]:
        """What somebody should look at: names of rates, and "scores"."""
        names = [name for name, verdict in self.rates.items() if verdict.is_flagged]
        return names + (["scores"] if self.shift is not None and self.shift.verdict.is_flagged else [])


def drift(session: Session, version: ModelVersion, *, weeks: int = LONGEST_WEEKS) -> list[Drift]:
    """Count what a model version said in the last so many ISO weeks, this one included; an entry for each finding."""
    now = clock.now()
    monday = now.date() - timedelta(days=now.weekday())
    mondays = tuple(monday - _WEEK * back for back in reversed(range(weeks)))
    since = datetime(mondays[0].year, mondays[0].month, mondays[0].day, tzinfo=UTC)
    card = card_of(version)
    refused = _refused(session, version, since)
    found = []
    for at, (code, meaning) in enumerate(_codes(session, card, version)):
        baseline = None if card is None else baseline_of(card.metrics, code)
        edges = EDGES if baseline is None else baseline.edges
        points = card.findings[at].operating_points if card is not None else None
        counts = _Table(mondays, len(edges) - 1)
        for row in _read(session, version, code, edges, since):
            counts.add(row.week, row.scanner, row.decision, row.bin, row.images)
        for row in refused:
            counts.add(row.week, row.scanner, "refused", None, row.images)
        found.append(
            Drift(
                model=f"{version.name} {version.version}",
                finding=meaning,
                baseline=baseline,
                edges=edges,
                absent_below=None if points is None else points.absent_below,
                present_from=None if points is None else points.present_from,
                weeks=mondays,
                by_scanner=counts.by_scanner(),
                counted_at=now,
            )
        )
    return found


def card_of(version: ModelVersion) -> Card | None:
    """Return the card that was kept with a model version; None where this program cannot read it."""
    try:
        return Card.model_validate(version.card)
    except ValidationError:
        return None


def baseline_of(metrics: Metrics, code: str) -> Baseline | None:
    """Return what a card says of the finding with this code; None where it says too little."""
    names = [
        f"{kind}_at_{point}" for kind in ("sensitivity", "specificity") for point in ("absent_below", "present_from")
    ]
    if not metrics.images or any(name not in metrics.values for name in names):
        return None
    prevalence = metrics.positives / metrics.images
    distribution = metrics.score_distribution
    scores = next((one for one in distribution.findings if one.code.value == code), None) if distribution else None
    measured = {} if scores is None else {"fracture": scores.present, "undetermined": scores.undetermined}
    bands = {name: _band(metrics, name, prevalence, measured.get(name)) for name in ("fracture", "undetermined")}
    refused = metrics.values.get("share_refused") if distribution is None else distribution.refused
    if refused is not None:
        bands["refused"] = Band(refused.value, refused.low, refused.high)
    if distribution is None or scores is None:
        return Baseline(bands, prevalence, None, EDGES)
    spread = Spread(scores.with_finding, scores.without_finding, _worth(scores))
    return Baseline(bands, prevalence, spread, distribution.edges)


def _band(metrics: Metrics, name: str, prevalence: float, measured: Metric | None) -> Band:
    """The test set's share with its interval, as wide as other prevalences make it."""
    at = {share: _share(metrics, name, share) for share in (prevalence, *PREVALENCES)}
    ends = list(at.values()) if measured is None else [*at.values(), measured.low, measured.high]
    return Band(at[prevalence] if measured is None else measured.value, min(ends), max(ends))


def _share(metrics: Metrics, name: str, prevalence: float) -> float:
    """What share of images is called so where this share of them has the finding, by sensitivity and specificity."""
    values = metrics.values
    present = values["sensitivity_at_present_from"].value
    spared = values["specificity_at_present_from"].value
    if name == "fracture":
        return prevalence * present + (1 - prevalence) * (1 - spared)
    not_absent, absent = values["sensitivity_at_absent_below"].value, values["specificity_at_absent_below"].value
    return prevalence * (not_absent - present) + (1 - prevalence) * (spared - absent)


def _worth(scores: FindingScores) -> float:
    """Of how many independent images its widest share has the interval."""
    images = sum(scores.with_finding) + sum(scores.without_finding)
    share = scores.undetermined
    error = (share.high - share.low) / (2 * 1.96)
    return min(float(images), share.value * (1 - share.value) / error**2) if error else float(images)


# --- counting ---------------------------------------------------------------------------------------------------------


@dataclass
class _Table:
    weeks: Sequence[date]
    bins: int
    _counts: dict[tuple[str, date], dict[str, int]] = field(default_factory=dict)
    _scores: dict[tuple[str, date], list[int]] = field(default_factory=dict)

    def add(self, week: date | str, scanner: str, what: str, bin_: int | None, images: int) -> None:
        at = (scanner, week if isinstance(week, date) else date.fromisoformat(week))
        counts = self._counts.setdefault(at, {})
        counts[what] = counts.get(what, 0) + images
        if bin_ is not None:
            self._scores.setdefault(at, [0] * self.bins)[bin_] += images

    def by_scanner(self) -> dict[str, tuple[Counts, ...]]:
        return {
            scanner: tuple(self._of(scanner, week) for week in self.weeks)
            for scanner in sorted({scanner for scanner, _ in self._counts})
        }

    def _of(self, scanner: str, week: date) -> Counts:
        scores = tuple(self._scores.get((scanner, week), [0] * self.bins))
        return Counts(scores=scores, **self._counts.get((scanner, week), {}))


def _codes(session: Session, card: Card | None, version: ModelVersion) -> list[tuple[str, str]]:
    if card is not None:
        return [(finding.code.value, finding.code.meaning) for finding in card.findings]
    newest = select(func.max(Prediction.id)).where(Prediction.model_version_id == version.id).scalar_subquery()
    rows = session.execute(
        select(Finding.code_value, Finding.code_meaning).where(Finding.prediction_id == newest).order_by(Finding.id)
    )
    return [(value, meaning) for value, meaning in rows]


def _read(
    session: Session, version: ModelVersion, code: str, edges: Sequence[float], since: datetime
) -> Sequence[Row[Any]]:
    week = _week(session, Image.received_at)
    bin_ = case(
        *((Finding.probability < edge, literal(at)) for at, edge in enumerate(edges[1:-1])), else_=len(edges) - 2
    )
    return session.execute(
        select(week.label("week"), Image.scanner, Finding.decision, bin_.label("bin"), func.count().label("images"))
        .select_from(Prediction)
        .join(Image, Image.id == Prediction.image_id)
        .join(Finding, Finding.prediction_id == Prediction.id)
        .where(
            Prediction.id >= _first_since(session, since - _CLOCKS_DIFFER),
            Prediction.model_version_id == version.id,
            Prediction.role == ACTIVE,
            Finding.code_value == code,
            Image.received_at >= since,
        )
        .group_by("week", Image.scanner, Finding.decision, "bin")
    ).all()


def _refused(session: Session, version: ModelVersion, since: datetime) -> Sequence[Row[Any]]:
    """Count what the gate refused while this version was active: no prediction says which one refused."""
    week = _week(session, Image.received_at)
    return session.execute(
        select(week.label("week"), Image.scanner, func.count().label("images"))
        .where(
            # By the index that claims use: of most images there is a prediction.
            Image.state == ImageState.NOT_ANALYSED,
            Image.rank_at >= since - _HEAD_STARTS,
            Image.received_at >= since,
            Image.reason.in_([reason.value for reason in GATE]),
            _active_then(session) == version.id,
        )
        .group_by("week", Image.scanner)
    ).all()


def _active_then(session: Session) -> ColumnElement[int]:
    """Which model version was active when an image came."""
    rows = session.execute(
        select(ModelActivation.at, ModelActivation.model_version_id)
        .where(ModelActivation.role == ACTIVE)
        .order_by(ModelActivation.id.desc())
    ).all()
    first = rows[-1].model_version_id if rows else 0
    whens = [(Image.received_at >= row.at, literal(row.model_version_id)) for row in rows[:-1]]
    return case(*whens, else_=literal(first)) if whens else literal(first)


def _first_since(session: Session, moment: datetime) -> int:
    """The number from which on predictions were made since then. Rows are added in the order of time and never changed,
    so that halving the numbers finds it, in twenty steps without an index by time."""
    low, high = 0, (session.scalar(select(func.max(Prediction.id))) or 0) + 1
    while low < high:
        middle = (low + high) // 2
        at = session.scalar(
            select(Prediction.created_at).where(Prediction.id >= middle).order_by(Prediction.id).limit(1)
        )
        if at is None or at >= moment:
            high = middle
        else:
            low = middle + 1
    return low


def _week(session: Session, moment: ColumnExpressionArgument[datetime]) -> ColumnElement[Any]:
    """The Monday of its ISO week, UTC."""
    if session.get_bind().dialect.name == "postgresql":
        return cast(func.date_trunc("week", moment), SqlDate)
    # Of the day alone: SQLite rounds a time to milliseconds, up to the next day.
    return func.date(func.substr(moment, 1, 10), "-6 days", "weekday 1")
