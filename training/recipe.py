"""A recipe: everything that decides a fit, in one place, so that a run can say how it came about."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Network = Literal["lite0", "lite1", "lite2", "residual", "published"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides a run; a run goes on only under the recipe it began with.

    Attributes
    ----------
    network
        See `training.networks.build`.
    rows, columns
        Of the input; multiples of 32.
    held_out
        The fold that is not learnt from and that the run is measured on; None learns from all five.
    epochs, batch, learning_rate, weight_decay
        AdamW; the rate rises over half an epoch and falls as a cosine to 0.
    frozen_until
        Stages of a network with ImageNet weights that stay as they are (-1: none): the first find edges, and finding
        edges is the same in photographs and radiographs.
    box_weight
        Of the map's loss against the label's. 0 learns the map from the labels alone.
    box_balance
        How much more a cell in a fracture box counts than one outside.
    smoothing
        Labels are `smoothing` and 1 - `smoothing`: some of them are wrong.
    dropout
        Share of the image's features that is hidden.
    averaging
        Decay for each step of the moving average of the weights, which is what is kept (Polyak & Juditsky, 1992).
    head_width
        Channels of the head.
    turn, zoom, shift, contrast, noise
        See `training.networks.augment`.
    seed
        Of everything drawn.
    """

    network: Network = "lite0"
    rows: int = 384
    columns: int = 384
    held_out: int | None = 0
    epochs: int = 6
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    frozen_until: int = 2
    box_weight: float = 1.0
    box_balance: float = 20.0
    smoothing: float = 0.02
    dropout: float = 0.3
    averaging: float = 0.98
    head_width: int = 96
    turn: float = 15.0
    zoom: float = 0.15
    shift: float = 0.08
    contrast: float = 0.6
    noise: float = 4.0
    seed: int = 20260101

    @property
    def size(self) -> tuple[int, int]:
        return (self.rows, self.columns)

    def as_text(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def read(path: Path) -> Recipe:
        """Raises OSError, and TypeError for a recipe of another version."""
        return Recipe(**json.loads(path.read_text(encoding="utf-8")))
