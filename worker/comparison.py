"""How the shadow model's answers compare with those that were sent: on the same images, finding by finding."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Float, cast, func, select
from sqlalchemy.orm import Session, aliased

from models.tables import Finding, Image, ModelVersion, Prediction
from worker.activation import ACTIVE, SHADOW


@dataclass(frozen=True)
class Cell:
    """Images on which the active model decided one thing and the shadow another, or the same."""

    active: str
    shadow: str
    images: int


@dataclass(frozen=True)
class Compared:
    """One finding.

    Attributes
    ----------
    finding
        Its meaning, as "Fracture of bone".
    cells
        Every pair of decisions that occurred.
    mean_difference, largest_difference
        Of the calibrated probabilities, 0 to 1, regardless of their sign.
    """

    finding: str
    cells: tuple[Cell, ...]
    mean_difference: float
    largest_difference: float

    @property
    def images(self) -> int:
        """How many were read by both."""
        return sum(cell.images for cell in self.cells)

    @property
    def alike(self) -> int:
        """On how many images both decided alike."""
        return sum(cell.images for cell in self.cells if cell.active == cell.shadow)

    @property
    def agreement(self) -> float:
        """Share of the images on which both decided alike, 0 to 1."""
        return self.alike / self.images


def compare(session: Session, shadow: ModelVersion) -> list[Compared]:
    """Compare what a version said as a shadow with what was sent of the same images; a finding that both know."""
    mine, other = aliased(Prediction), aliased(Prediction)
    said, shadowed = aliased(Finding), aliased(Finding)
    difference = func.abs(cast(said.probability, Float) - cast(shadowed.probability, Float))
    rows = session.execute(
        select(
            said.code_meaning,
            said.decision,
            shadowed.decision,
            func.count(),
            func.sum(difference),
            func.max(difference),
        )
        .select_from(other)
        .join(mine, (mine.image_id == other.image_id) & (mine.role == ACTIVE))
        .join(shadowed, shadowed.prediction_id == other.id)
        .join(
            said,
            (said.prediction_id == mine.id)
            & (said.code_value == shadowed.code_value)
            & (said.code_scheme == shadowed.code_scheme),
        )
        .where(other.role == SHADOW, other.model_version_id == shadow.id)
        .group_by(said.code_meaning, said.decision, shadowed.decision)
        .order_by(said.code_meaning, said.decision, shadowed.decision)
    ).all()
    found = []
    for finding in dict.fromkeys(row[0] for row in rows):
        mine_rows = [row for row in rows if row[0] == finding]
        cells = tuple(Cell(active, beside, count) for _, active, beside, count, _, _ in mine_rows)
        total = sum(row[4] for row in mine_rows) / sum(cell.images for cell in cells)
        found.append(Compared(finding, cells, total, max(row[5] for row in mine_rows)))
    return found


def disagreements(session: Session, shadow: ModelVersion, *, limit: int) -> list[tuple[int, int, str, str]]:
    """Return (study, image, what was sent, what the shadow said) of images decided otherwise, the newest first."""
    mine, other = aliased(Prediction), aliased(Prediction)
    rows = session.execute(
        select(Image.study_id, other.image_id, mine.decision, other.decision)
        .select_from(other)
        .join(mine, (mine.image_id == other.image_id) & (mine.role == ACTIVE))
        .join(Image, Image.id == other.image_id)
        .where(other.role == SHADOW, other.model_version_id == shadow.id, mine.decision != other.decision)
        .order_by(other.id.desc())
        .limit(limit)
    )
    return [(study, image, sent, shadowed) for study, image, sent, shadowed in rows]
