"""The predictor says what the bundle's model says, decided by the bundle's thresholds and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydicom import dcmread

from dicom_node.pixels import PIPELINE_VERSION, ModelInput, model_input, model_input_from_picture
from tests.phantom import limb
from worker.bundle import Bundle, BundleError, OperatingPoints, default_bundle_path
from worker.predictor import Predictor, decide

REAL = Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data")) / "dicom"

pytest.importorskip("ai_edge_litert")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load(default_bundle_path())


@pytest.fixture
def picture() -> ModelInput:
    return model_input_from_picture(Image.fromarray(limb(300, 200)), (150, 150))


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
    assert finding.region is None
    assert finding.peak is None
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
    with pytest.raises(BundleError, match=r"^model\.tflite: its input is \[1, 150, 150, 1\]"):
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


def test_importing_the_predictor_loads_neither_the_reader_nor_tensorflow() -> None:
    code = "import sys, worker.predictor; print({'tensorflow', 'ai_edge_litert', 'keras'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
