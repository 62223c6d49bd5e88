"""`reproduce` sets beside the published figure what it is worth."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.training import made
from training import entries, reproduce

pytest.importorskip("keras")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    made.fracatlas(root)
    return made.kaggle(root)


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("run") / "reproduction"
    reproduce.run(argparse.Namespace(folder=folder, epochs=1, without_fracatlas=False, data=data))
    return folder


def rows(folder: Path) -> dict[tuple[str, str], dict[str, object]]:
    content = json.loads((folder / reproduce.FIGURES).read_text())
    return {(row["reader"], row["pictures"]): row for row in content["rows"]}


def test_the_leak_is_counted_by_file_and_by_radiograph(data: Path) -> None:
    assert reproduce.leaks(entries.kaggle(data)) == {
        "test": 8,
        "same_file_in_training": 5,
        "same_radiograph_in_training": 6,
    }


def test_the_table_has_what_was_published_what_was_reached_and_what_memory_alone_reaches(folder: Path) -> None:
    found = rows(folder)
    assert {key: (row["count"], row["fractured"]) for key, row in found.items()} == {
        ("published", "published split, test"): (506, None),
        ("the published CNN", "published split, test"): (8, 5),
        ("the published CNN", "— the same file is in training"): (5, 3),
        ("the published CNN", "— the file is not in training"): (3, 2),
        ("the published CNN", "— the radiograph is not in training"): (2, 1),
        ("the published CNN", "published split, validation"): (4, 2),
        ("a reader that only memorises", "published split, test"): (8, 5),
        ("the same network", "FracAtlas, test"): (4, 2),
        ("the same network", "FracAtlas, fold 0"): (4, 2),
        ("a reader that only memorises", "FracAtlas, fold 0"): (4, 2),
        ("always the more frequent answer", "FracAtlas, fold 0"): (4, 2),
    }
    memorised = found["a reader that only memorises", "published split, test"]
    assert "the same file: 5 of 5 right" in str(memorised["note"])
    assert memorised["loss"] is None
    chosen = found["the published CNN", "published split, validation"]
    assert chosen["note"] == "chosen on it; 1 of its files are in training"


def test_the_text_says_what_the_figures_do(folder: Path) -> None:
    text = (folder / reproduce.MARKDOWN).read_text()
    assert "Of the 8 test entries of the published split, 5 are files" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows(folder))
    assert "0.990" in table[2]


def test_every_test_entry_is_listed_with_what_was_said_of_it(folder: Path) -> None:
    with (folder / reproduce.ENTRIES).open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["fractured"] for row in listed] == list("10101101")
    assert [row["file_in_training"] for row in listed] == list("11111000")
    assert [row["radiograph_in_training"] for row in listed] == list("11111100")
    right = [(float(row["logit"]) > 0) == (row["fractured"] == "1") for row in listed]
    measured = rows(folder)["the published CNN", "published split, test"]["accuracy"]
    assert isinstance(measured, dict)
    assert measured["value"] == pytest.approx(sum(right) / 8, abs=1e-4)
    with Image.open(folder / reproduce.GRADCAM) as picture:
        assert picture.width > 500


def test_without_fracatlas_its_test_split_is_not_read(data: Path, tmp_path: Path, folder: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    for name in ("settings.json", "history.csv", "weights.npz"):  # a fit that is there is not made again
        (again / name).write_bytes((folder / name).read_bytes())
    reproduce.run(argparse.Namespace(folder=again, epochs=1, without_fracatlas=True, data=data))
    assert ("the same network", "FracAtlas, test") not in rows(again)
    assert not (again / "fracatlas").exists()
    assert (again / reproduce.ENTRIES).read_text() == (folder / reproduce.ENTRIES).read_text()
