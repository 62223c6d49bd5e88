"""The pictures that the gate is tried on are what their groups say, and every one is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests import litert
from training import negatives


def test_every_group_holds_pictures_that_are_not_blank() -> None:
    groups = list(negatives.groups())
    assert [group.name for group in groups] == [
        "photographs in colour",
        "grey photographs",
        "textures and science in grey",
        "text",
        "noise and gradients",
        "chest radiographs",
        "CT, MR, ultrasound and others",
    ]
    assert sum(len(group.pictures) for group in groups) == 75
    for group in groups:
        for picture in group.pictures:
            assert min(picture.size) >= 10, group.name
            assert np.ptp(np.asarray(picture.convert("L"))) > 10, group.name


def test_they_are_the_same_every_time() -> None:
    for one, other in zip(negatives.groups(), negatives.groups(), strict=True):
        assert [picture.tobytes() for picture in one.pictures] == [picture.tobytes() for picture in other.pictures]


def test_refusals_count_the_pixels_rules_and_the_distance(tmp_path: Path) -> None:
    predictor = litert.predictor(tmp_path / "bundle")
    none, every = (negatives.refusals(predictor, limit) for limit in (np.inf, -1.0))
    assert {negative.refused_by_features for negative in none} == {0}
    assert 0 < sum(negative.refused for negative in none) < 75  # colours, blanks and text
    for negative in every:
        assert negative.refused == negative.images > 0
