"""Entries of the published split, and what a reader that only memorises makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.training import made
from training import entries, memorise
from training.entries import Entry


@pytest.fixture
def kaggle(tmp_path: Path) -> list[Entry]:
    return entries.kaggle(made.kaggle(tmp_path))


def test_every_entry_of_the_published_split_counts_with_its_repeats(kaggle: list[Entry]) -> None:
    parts = {part: entries.of_part(kaggle, part) for part in (entries.TRAIN, entries.VALIDATION, entries.TEST)}
    assert {part: len(of) for part, of in parts.items()} == {"train": 12, "validation": 4, "test": 8}
    assert entries.labels(parts["test"]).tolist() == [1, 0, 1, 0, 1, 1, 0, 1]
    known = {entry.picture for entry in parts["train"]}
    assert sum(entry.picture in known for entry in parts["test"]) == 5


def test_fracatlas_is_parted_by_its_folds(tmp_path: Path) -> None:
    found = entries.fracatlas(made.fracatlas(tmp_path), held_out=3)
    counts = {part: len(entries.of_part(found, part)) for part in (entries.TRAIN, entries.VALIDATION, entries.TEST)}
    assert counts == {"train": 16, "validation": 4, "test": 4}
    groups = [{entry.group for entry in entries.of_part(found, part)} for part in counts]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


def test_a_picture_is_decoded_once_however_often_it_is_entered(kaggle: list[Entry]) -> None:
    twice = [*kaggle[:3], *kaggle[:2]]
    pictures = entries.decoded(twice, (30, 20))
    assert pictures.distinct.shape == (3, 30, 20, 3)
    shown, labels = pictures.batch(np.array([4, 2]))
    assert shown.dtype == np.float32
    assert np.array_equal(shown[0], pictures.distinct[1])
    assert labels.tolist() == [0, 1]


def test_pictures_are_resized_as_keras_feeds_them_by_default(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 47), dtype=np.uint8)).save(path)
    theirs = keras.utils.img_to_array(keras.utils.load_img(path, target_size=(30, 20)))
    assert np.array_equal(entries.resized(path, (30, 20)), theirs)


def test_what_was_shown_is_remembered_whatever_its_label_says(kaggle: list[Entry]) -> None:
    train, test = entries.of_part(kaggle, entries.TRAIN), entries.of_part(kaggle, entries.TEST)
    said = memorise.answers(train, test)
    assert said.exact.tolist() == [True] * 5 + [False] * 3
    assert said.said[:5].tolist() == entries.labels(test)[:5].tolist()
    assert said.nearest[:5].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="shown nothing"):
        memorise.answers([], test)


def test_what_was_not_shown_is_taken_for_what_looks_most_like_it(tmp_path: Path) -> None:
    def entry(number: int, name: str, *, brighter: int = 0) -> Entry:
        grey = np.asarray(made.picture(number, fractured=number % 2 == 0), dtype=np.int16)
        if number >= 4:
            grey = grey[::-1]  # upside down: like no other
        path = tmp_path / name
        Image.fromarray(np.clip(grey // 2 + brighter, 0, 255).astype(np.uint8)).save(path)
        return Entry(name, path, name, number % 2 == 0, "train")

    # Nor does it matter that the other one is as bright.
    shown = [entry(1, "a.png", brighter=120), entry(4, "b.png")]
    answers = memorise.answers(shown, [entry(4, "c.png", brighter=120), entry(1, "d.png")])
    assert answers.nearest.tolist() == [1, 0]
    assert answers.said.tolist() == [1, 0]
    assert not answers.exact.any()
