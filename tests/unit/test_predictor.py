"""The predictor says what the bundle's model says, decided by the bundle's thresholds and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from dicom_node.pixels import PIPELINE_VERSION, ModelInput, model_input, model_input_from_picture
from tests.phantom import limb
from worker.bundle import Bundle, BundleError, OperatingPoints, default_bundle_path
from worker.predictor import Predictor, decide

REAL = Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data")) / "dicom"

pytest.importorskip("ai_edge_litert")

from tests import litert  # noqa: E402 (it needs LiteRT)
from tests.litert import CELLS, SIZE  # noqa: E402


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(default_bundle_path())


@pytest.fixture
def picture(predictor: Predictor) -> ModelInput:
    return model_input_from_picture(Image.fromarray(limb(300, 200)), predictor.size)


def changed(folder: Path, **changes: Any) -> Path:
    """The shipped bundle with another card (or model), and sums that match."""
    shipped = Bundle.load(default_bundle_path())
    card = json.loads((shipped.path / "card.json").read_text())
    model = changes.pop("model", shipped.model)
    card.update(changes)
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "model.tflite").write_bytes(model)
    names = ("card.json", "model.tflite")
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


def test_a_reading_has_every_finding_of_the_card_with_its_thresholds(predictor: Predictor, picture: ModelInput) -> None:
    reading = predictor.read(picture)
    (finding,) = reading.findings
    (known,) = predictor.bundle.card.findings
    assert (finding.code_value, finding.code_scheme, finding.code_meaning) == ("125605004", "SCT", "Fracture of bone")
    assert finding.probability == known.calibration.probability(finding.logit)
    assert finding.threshold == known.operating_points.present_from
    assert finding.absent_below == known.operating_points.absent_below
    assert finding.decision == decide(finding.probability, known.operating_points)
    assert (finding.region is None) == (finding.peak is None) == (predictor.bundle.card.heatmap is None)
    assert reading.milliseconds > 0


def test_the_same_input_is_read_the_same_every_time(predictor: Predictor, picture: ModelInput) -> None:
    first = predictor.read(picture).findings
    assert predictor.read(picture).findings == first
    assert Predictor.load(default_bundle_path(), num_threads=2).read(picture).findings[0].logit == pytest.approx(
        first[0].logit, abs=1e-4
    )


@pytest.mark.skipif(not REAL.is_dir(), reason="OSTEON_TEST_DATA has no DICOM radiographs")
def test_a_real_radiograph_is_read_the_same_in_every_lossless_encoding(predictor: Predictor) -> None:
    readings = [
        predictor.read(model_input(dcmread(REAL / f"WG04_RG3_{encoding}.dcm"), predictor.size)).findings
        for encoding in ("UNC", "JPLL", "JLSL", "J2KR", "RLE")
    ]
    assert all(reading == readings[0] for reading in readings)


def test_an_input_of_another_size_is_refused(predictor: Predictor) -> None:
    other = model_input_from_picture(Image.fromarray(limb()), (100, 150))
    with pytest.raises(ValueError, match="the bundle wants"):
        predictor.read(other)


def test_a_model_whose_input_is_not_the_cards_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path, input={"rows": 224, "columns": 150, "pipeline_version": PIPELINE_VERSION})
    with pytest.raises(BundleError, match=r"^model\.tflite: its input is \[1, \d+, \d+, 1\]"):
        Predictor.load(folder)


def test_a_finding_the_model_has_no_output_for_is_refused(tmp_path: Path) -> None:
    finding = Bundle.load(default_bundle_path()).card.findings[0].model_dump() | {"output": 1}
    with pytest.raises(BundleError, match=r"^model\.tflite: its output is"):
        Predictor.load(changed(tmp_path, findings=[finding]))


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^model\.tflite: cannot be loaded"):
        Predictor.load(changed(tmp_path, model=b"not a model at all"))


def test_thresholds_come_from_the_bundle_only(tmp_path: Path, picture: ModelInput) -> None:
    finding = Bundle.load(default_bundle_path()).card.findings[0].model_dump()
    for points, expected in (
        ({"absent_below": 0.0, "present_from": 0.0}, "fracture"),
        ({"absent_below": 0.0, "present_from": 1.0}, "undetermined"),
        ({"absent_below": 1.0, "present_from": 1.0}, "no_fracture"),
    ):
        folder = changed(tmp_path, findings=[finding | {"operating_points": points}])
        assert Predictor.load(folder).read(picture).findings[0].decision == expected


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        (0.0, "no_fracture"),
        (0.1999, "no_fracture"),
        (0.2, "undetermined"),
        (0.5999, "undetermined"),
        (0.6, "fracture"),
        (1.0, "fracture"),
    ],
)
def test_a_decision_includes_its_lower_bound(probability: float, expected: str) -> None:
    assert decide(probability, OperatingPoints(absent_below=0.2, present_from=0.6)) == expected


# Named outputs: a map that says where, a distance that says whether to answer at all.


by_hand = litert.predictor


def with_a_white_square(at: tuple[int, int, int, int]) -> ModelInput:
    return model_input_from_picture(litert.white_square(at), SIZE)


@pytest.mark.parametrize("at", [(100, 200, 140, 240), (0, 400, 40, 440), (200, 440, 240, 480)])
def test_a_heatmap_says_where_in_source_pixels(tmp_path: Path, at: tuple[int, int, int, int]) -> None:
    reading = by_hand(tmp_path).read(with_a_white_square(at))
    (finding,) = reading.findings
    assert finding.decision == "fracture"
    assert finding.peak is not None
    assert finding.region is not None
    left, top, right, bottom = at
    assert left < finding.peak.x < right
    assert top < finding.peak.y < bottom
    # A cell is 40 source pixels: the region is no smaller, and reaches into no cell beside those that the square is in.
    xmin, ymin, xmax, ymax = finding.region.box
    assert max(0, left - 40) <= xmin < right
    assert max(0, top - 40) <= ymin < bottom
    assert left < xmax <= min(240, right + 40)
    assert top < ymax <= min(480, bottom + 40)


def test_region_and_peak_are_there_whatever_is_decided(tmp_path: Path) -> None:
    finding = by_hand(tmp_path, model={"times": {"logits": -1.0}}).read(with_a_white_square((80, 80, 160, 160)))
    assert finding.findings[0].decision == "no_fracture"
    assert finding.findings[0].region is not None
    assert finding.findings[0].peak is not None


def test_each_finding_has_the_map_of_its_output(tmp_path: Path) -> None:
    (known,) = litert.card(SIZE, CELLS)["findings"]
    other = known | {"output": 1, "code": {"value": "X", "scheme": "99T", "meaning": "Black"}}
    predictor = by_hand(tmp_path, model={"findings": 2}, findings=[other, known])
    image = with_a_white_square((120, 320, 160, 360))
    reading = predictor.read(image)
    black, white = reading.heatmaps
    assert black.shape == white.shape == CELLS
    assert np.allclose(black + white, 1, atol=1e-6)
    means = image.pixels.reshape(12, 8, 12, 8).mean(axis=(1, 3)) / 255
    assert np.allclose(white, means, atol=1e-5)
    assert [finding.code_value for finding in reading.findings] == ["X", "125605004"]
    assert reading.findings[1].logit == pytest.approx(20 * (means.max() - 0.5), abs=1e-4)
    assert reading.findings[0].region != reading.findings[1].region


def test_an_image_farther_from_training_than_the_gate_lets_pass_is_unfamiliar(tmp_path: Path) -> None:
    predictor = by_hand(tmp_path)
    image = with_a_white_square((100, 200, 140, 240))
    near = predictor.read(image)
    assert near.distance == pytest.approx(image.pixels.mean() / 255, abs=1e-5)
    assert not near.unfamiliar
    gate = predictor.bundle.card.gate
    assert gate is not None
    assert near.distance is not None
    for limit, unfamiliar in ((near.distance, False), (near.distance - 1e-6, True)):
        changed_gate = gate.model_dump() | {"refuse_above": limit}
        assert by_hand(tmp_path, gate=changed_gate).read(image).unfamiliar is unfamiliar


def test_a_bundle_without_heatmap_and_gate_says_neither_where_nor_how_far(tmp_path: Path) -> None:
    bare = by_hand(tmp_path, model={"outputs": ("logits",)}, heatmap=None, gate=None)
    reading = bare.read(with_a_white_square((100, 200, 140, 240)))
    assert (reading.findings[0].peak, reading.findings[0].region) == (None, None)
    assert (reading.heatmaps, reading.distance, reading.unfamiliar) == ((), None, False)


@pytest.mark.parametrize("outputs", [("map", "distance", "logits"), ("logits", "distance", "map")])
def test_outputs_are_told_apart_by_name_in_whatever_order_they_stand(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    image = with_a_white_square((100, 200, 140, 240))
    expected = by_hand(tmp_path).read(image)
    turned = by_hand(tmp_path, model={"outputs": outputs}).read(image)
    assert turned.findings == expected.findings
    assert turned.distance == expected.distance
    assert np.array_equal(turned.heatmaps[0], expected.heatmaps[0])


def test_two_threads_read_the_same_map(tmp_path: Path) -> None:
    image = with_a_white_square((100, 200, 140, 240))
    one = by_hand(tmp_path)
    two = Predictor.load(tmp_path, num_threads=2)
    assert np.allclose(two.read(image).heatmaps[0], one.read(image).heatmaps[0], atol=1e-6)


def test_the_same_image_read_again_after_another_gives_the_same_map(tmp_path: Path) -> None:
    predictor = by_hand(tmp_path)
    first = predictor.read(with_a_white_square((100, 200, 140, 240)))
    kept = first.heatmaps[0].copy()
    predictor.read(with_a_white_square((0, 0, 240, 100)))
    assert np.array_equal(first.heatmaps[0], kept)  # what was handed out is not the interpreter's own memory
    assert np.array_equal(predictor.read(with_a_white_square((100, 200, 140, 240))).heatmaps[0], kept)


@pytest.mark.parametrize(
    ("model", "card", "words"),
    [
        (
            {"outputs": ("logits", "distance")},
            {},
            "its outputs are distance, logits, those of the card distance, logits, map",
        ),
        ({"outputs": ("logits", "map")}, {}, "its outputs are logits, map, those of the card distance, logits, map"),
        ({}, {"heatmap": None}, "its outputs are distance, logits, map, those of the card distance, logits"),
        ({}, {"gate": None}, "its outputs are distance, logits, map, those of the card logits, map"),
        ({"outputs": ("logits", "score", "distance")}, {}, "its outputs are distance, logits, score, those"),
        ({"signature": None}, {}, "its outputs are mul_"),
        ({"signature": "other"}, {}, "its outputs are mul_"),
        (
            {},
            {"heatmap": {"rows": 12, "columns": 24, "region_share": 0.5}},
            r"its output is \[1, 12, 12, 1\] .*\(map\)",
        ),
    ],
)
def test_a_model_whose_outputs_are_not_those_of_the_card_is_refused(
    tmp_path: Path, model: dict[str, Any], card: dict[str, Any], words: str
) -> None:
    with pytest.raises(BundleError, match=rf"^model\.tflite: {words}"):
        by_hand(tmp_path, model=model, **card)


def test_a_map_without_a_layer_for_every_finding_is_refused(tmp_path: Path) -> None:
    (known,) = litert.card(SIZE, CELLS)["findings"]
    other = known | {"output": 1, "code": {"value": "X", "scheme": "99T", "meaning": "Black"}}
    with pytest.raises(BundleError, match=r"^model\.tflite: its output is \[1, 1\] .*\(logits\)"):
        by_hand(tmp_path, findings=[known, other])


def test_the_only_output_needs_no_name(tmp_path: Path) -> None:
    for model in ({"outputs": ("anything",)}, {"outputs": ("logits",), "signature": None}):
        predictor = by_hand(tmp_path, model=model, heatmap=None, gate=None)
        assert predictor.read(with_a_white_square((120, 200, 160, 240))).findings[0].logit > 5


@pytest.mark.parametrize("output", ["logits", "map", "distance"])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_an_output_that_is_not_finite_says_nothing(tmp_path: Path, output: str, factor: float) -> None:
    broken = by_hand(tmp_path, model={"times": {output: factor}})
    with pytest.raises(ArithmeticError, match=f"output {output} is not a finite number"):
        broken.read(with_a_white_square((100, 200, 140, 240)))


@pytest.mark.parametrize("factor", [-1.0, 3.0])
def test_a_map_beyond_0_to_1_says_nothing(tmp_path: Path, factor: float) -> None:
    broken = by_hand(tmp_path, model={"times": {"map": factor}})
    with pytest.raises(ArithmeticError, match="not between 0 and 1"):
        broken.read(with_a_white_square((100, 200, 140, 240)))


def test_importing_the_predictor_loads_neither_the_reader_nor_tensorflow() -> None:
    code = "import sys, worker.predictor; print({'tensorflow', 'ai_edge_litert', 'keras'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
