"""What `osteon model` says of a bundle, and that it says no when one cannot be used."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.audit import part_actor
from models.database import Database
from models.upgrade import upgrade
from tests.servers import given
from worker.activation import follow_settings
from worker.bundle import Bundle, default_bundle_path

pytest.importorskip("ai_edge_litert")

from console.main import app
from tests import litert

METRIC = {"value": 0.9312, "low": 0.9049, "high": 0.9521}
TOLD: dict[str, Any] = {
    "metrics": {
        "dataset": "The test split.",
        "images": 601,
        "positives": 100,
        "groups": 28,
        "interval": "95 %",
        "values": {"auc": METRIC, "pointing_inside": METRIC},
        "subgroups": {"hand": {"images": 210, "positives": 30, "values": {"auc": METRIC}}},
        "baselines": {"pointing_inside": 0.061, "pointing_near": 0.32},
        "test_reads": 2,
    },
    "gate": {
        "refuse_above": 0.3,
        "method": "Mean grey, [no] less.",
        "negatives": [
            {"name": "chests", "description": "Drawn.", "images": 9, "refused": 8, "refused_by_features": 7},
            {"name": "text", "description": "A letter.", "images": 4, "refused": 4, "refused_by_features": 0},
        ],
        "false_refusals": {"value": 0.005, "low": 0.001, "high": 0.009},
        "accepted_images": 601,
        "accepted_refused": 3,
    },
    "comparison": [
        {
            "name": "EfficientNet-Lite0",
            "input": "384 × 384",
            "parameters": 3_413_024,
            "megabytes": 13.6,
            "milliseconds": 41.4,
            "values": {"auc": 0.93},
            "note": "The one.",
        },
        {
            "name": "Residual",
            "input": "384 × 384",
            "parameters": 900_000,
            "megabytes": 3.6,
            "milliseconds": None,
            "values": {"auc": 0.88, "pointing_inside": 0.4},
            "note": "",
        },
    ],
    "training_data": [
        {"name": "Atlas", "citation": "A. et al.", "licence": "CC BY 4.0", "attribution": "By A.", "split": "Groups."}
    ],
}
TOLD["cross_validation"] = TOLD["metrics"] | {"dataset": "Five folds.", "test_reads": None}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    card = litert.card(litert.SIZE, litert.CELLS, **TOLD)
    return litert.write_bundle(tmp_path / "bundle", card, litert.network(litert.SIZE, litert.CELLS), roc_png=b"plot")


def osteon(data: Path, *arguments: str, width: int = 120, **environment: str) -> tuple[int, str]:
    """Run `osteon model …`; return its exit status and what it printed."""
    settings = {"OSTEON_DATA_DIR": str(data), "COLUMNS": str(width), "OSTEON_CONFIG": "", **environment}
    done = CliRunner().invoke(app, ["model", *arguments], env=settings)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def words(text: str) -> str:
    """What is printed, however it is wrapped and laid out."""
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_names_the_shipped_bundle_its_sum_its_auc_and_that_it_is_the_default(data: Path, width: int) -> None:
    shipped = Bundle.load(default_bundle_path())
    status, text = osteon(data, "list", width=width)
    assert status == 0
    assert f"{shipped.card.name} {shipped.card.version}" in text
    assert shipped.sha256[:12] in text
    assert f"{shipped.card.metrics.values['auc'].value:.3f}" in text
    for mark in ("shipped", "default", "force"):
        assert mark in text
    assert max(map(len, text.splitlines())) <= width


def test_looking_at_models_makes_no_record(data: Path) -> None:
    assert "no record yet" in osteon(data, "list")[1]
    osteon(data, "show")
    osteon(data, "verify")
    assert not data.exists()


def test_a_bundle_of_the_settings_is_listed_as_the_one_in_force(data: Path, folder: Path) -> None:
    _, text = osteon(data, "list", OSTEON_MODEL_BUNDLE=str(folder))
    (line,) = [line for line in text.splitlines() if line.startswith("by-hand 1")]
    assert line.rstrip().endswith("in force")
    assert "96×96" in line
    assert "0.931 (0.905–0.952)" in line
    assert "default, in force" not in text


def test_a_bundle_that_cannot_be_used_is_listed_with_its_fault(data: Path, folder: Path) -> None:
    (folder / "roc.png").write_bytes(b"another plot")
    status, text = osteon(data, "list", OSTEON_MODEL_BUNDLE=str(folder))
    assert status == 0
    assert f"Cannot be used: {folder}: roc.png: does not match SHA256SUMS" in text


def test_what_is_on_record_is_listed_with_the_day_of_its_activation_and_can_be_shown_when_its_folder_is_gone(
    data: Path, folder: Path
) -> None:
    settings = given(data)
    upgrade(settings)
    database = Database.of(settings)
    old, new = Bundle.load(folder), Bundle.load(default_bundle_path())
    follow_settings(database, old, part_actor("test"))
    follow_settings(database, new, part_actor("test"))
    database.close()
    text = osteon(data, "list", width=160)[1]
    assert re.search(r"by-hand 1 .* activated \d{4}-\d\d-\d\d", text)
    assert re.search(r"shipped, default, in force, active since \d{4}-\d\d-\d\d", text)
    status, shown = osteon(data, "show", old.sha256[:8].upper())
    assert status == 0
    assert old.sha256 in shown
    assert "Mean grey" in shown


@pytest.mark.parametrize("width", [80, 120])
def test_the_card_is_shown_whole(data: Path, folder: Path, width: int) -> None:
    status, text = osteon(data, "show", str(folder), width=width)
    assert status == 0
    assert max(map(len, text.splitlines())) <= width
    shown = words(text)
    for said in (
        "by-hand 1",
        Bundle.load(folder).sha256,
        "12 × 12 cells, region from 0.5 of the peak",
        "What for A test. modalities CR, DX body parts HAND, WRIST ages not stated",
        "Limits • Sees white squares.",
        "Fracture of bone 125605004 SCT 0.119 0.500",
        "temperature 1.000",
        "The test split. images 601 images, 100 with the finding, 28 groups",
        "test reads 2, this release's included",
        "AUC 0.931 0.905–0.952",
        "pointing inside 0.931 0.905–0.952 0.061",
        "pointing near 0.320",
        "hand 210 30 AUC 0.931",
        "Measured across the folds Five folds.",
        "Mean grey, [no] less.",
        "3 of 601 radiographs of the intended kind: 0.005 (0.001–0.009)",
        "chests 9 8 7 Drawn.",
        "text 4 4 0 A letter.",
        "Data: Atlas licence CC BY 4.0 attribution By A. citation A. et al. split Groups.",
    ):
        assert said in shown, said
    assert "3.4 M" in shown


def test_what_is_no_bundle_is_named_beside_those_that_there_are(data: Path) -> None:
    status, text = osteon(data, "show", "nowhere")
    assert status == 1
    assert "nowhere" in text
    assert default_bundle_path().name in text


@pytest.mark.parametrize("which", [None, default_bundle_path().name, str(default_bundle_path())])
def test_the_shipped_bundle_is_verified_and_its_whole_sum_printed(data: Path, which: str | None) -> None:
    status, text = osteon(data, "verify", *([] if which is None else [which]))
    assert status == 0
    assert re.search(rf"^sha256\s+{Bundle.load(default_bundle_path()).sha256}$", text, re.MULTILINE)
    assert "finite logits" in text


def test_a_verified_bundle_says_which_outputs_were_checked(data: Path, folder: Path) -> None:
    status, text = osteon(data, "verify", str(folder))
    assert status == 0
    assert "3 match their sums: card.json, model.tflite, roc.png" in words(text)
    assert "finite logits, map, distance" in words(text)


def broken(folder: Path, model: dict[str, Any] | None = None, **card: Any) -> Path:
    content = litert.card(litert.SIZE, litert.CELLS, **card)
    return litert.write_bundle(folder, content, litert.network(litert.SIZE, litert.CELLS, **(model or {})))


@pytest.mark.parametrize(
    ("model", "card", "fault"),
    [
        ({}, {"heatmap": None}, "model.tflite: its outputs are distance, logits, map"),
        ({}, {"surprise": 1}, "card.json: surprise"),
        (
            {},
            {"input": {"rows": 96, "columns": 96, "pipeline_version": 99}},
            "card.json: made for pixel pipeline 99",
        ),
        ({"times": {"logits": math.nan}}, {}, "model.tflite: cannot read a drawn limb: The model's output logits is"),
        ({"times": {"distance": math.inf}}, {}, "model.tflite: cannot read a drawn limb: The model's output distance"),
        ({"times": {"map": 4.0}}, {}, "model.tflite: cannot read a drawn limb: The model's output map is not between"),
    ],
)
def test_a_bundle_that_cannot_be_used_fails_with_its_file_and_fault(
    data: Path, tmp_path: Path, model: dict[str, Any], card: dict[str, Any], fault: str
) -> None:
    folder = broken(tmp_path / "broken", model, **card)
    status, text = osteon(data, "verify", str(folder))
    assert status == 1
    assert f"Cannot be used: {folder}: {fault}" in text
    assert "sha256" not in text


@pytest.mark.parametrize("name", ["card.json", "model.tflite", "roc.png", "SHA256SUMS"])
def test_a_bundle_whose_bytes_were_changed_is_not_verified(data: Path, folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b"\n ")
    status, text = osteon(data, "verify", str(folder))
    assert status == 1
    assert f"{folder}: {name}" in text


def test_a_folder_that_is_not_there_is_not_verified(data: Path, tmp_path: Path) -> None:
    status, text = osteon(data, "verify", str(tmp_path / "nowhere"))
    assert status == 1
    assert f"{tmp_path / 'nowhere'}: SHA256SUMS: cannot be read" in text
