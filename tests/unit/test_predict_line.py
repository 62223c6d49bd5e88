"""What `osteon predict` says of a file, and what `osteon send --to` understands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from console.predict import Line, line_for
from console.send import parse_destination
from dicom_node.sender import Destination
from dicom_node.wrap import wrap_picture
from models.settings import GivenSettings
from worker.predictor import Predictor

pytest.importorskip("ai_edge_litert")

from tests import litert, shipped

KEYS = ["path", "decision", "probability", "threshold", "reason", "region", "peak", "model", "version", "milliseconds"]
SETTINGS = GivenSettings()
Read = Callable[[Path], Line]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(shipped.with_open_gate())


@pytest.fixture
def read(predictor: Predictor) -> Read:
    return lambda path: line_for(path, predictor, SETTINGS)


@pytest.fixture
def noise() -> Image.Image:
    """Clouds: plain noise would pass for text."""
    coarse = Image.fromarray(np.random.default_rng(3).integers(0, 256, (12, 9), dtype=np.uint8))
    return coarse.resize((180, 240), Image.Resampling.BICUBIC)


@pytest.fixture
def wrapped(noise: Image.Image) -> FileDataset:
    return wrap_picture(noise, patient_id="PLANTED-ID", patient_name="PLANTED^NAME", body_part="WRIST")


def saved(dataset: FileDataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def refused(line: Line) -> str:
    """The reason of a line that says nothing about a fracture."""
    assert (line.decision, line.probability, line.threshold, line.region) == ("not_analysed", None, None, None)
    assert "PLANTED" not in json.dumps({**asdict(line), "path": ""})
    return line.reason or ""


def test_a_line_has_exactly_the_documented_keys_and_is_json(read: Read, wrapped: FileDataset, tmp_path: Path) -> None:
    line = asdict(read(saved(wrapped, tmp_path / "a.dcm")))
    assert list(line) == KEYS
    assert json.loads(json.dumps(line, allow_nan=False)) == line


@pytest.mark.parametrize("size", [20, 40])
def test_a_model_with_a_heatmap_says_where_whatever_it_decides(tmp_path: Path, size: int) -> None:
    """The smaller square is no fracture to the test's model."""
    litert.white_square((125, 205, 125 + size, 205 + size)).save(tmp_path / "a.png")
    line = line_for(tmp_path / "a.png", litert.predictor(tmp_path / "bundle"), SETTINGS)
    assert line.decision == ("no_fracture" if size == 20 else "fracture")
    assert line.region is not None
    assert line.peak is not None
    assert line.region["xmin"] < 145 < line.region["xmax"]
    assert line.region["ymin"] < 225 < line.region["ymax"]
    assert 120 < line.peak["x"] < 160
    assert 200 < line.peak["y"] < 240
    assert json.loads(json.dumps(asdict(line)))["peak"] == line.peak


def test_an_image_unlike_training_gets_that_reason_and_no_number(tmp_path: Path) -> None:
    litert.white_square((0, 10, 240, 480)).save(tmp_path / "a.png")
    line = line_for(tmp_path / "a.png", litert.predictor(tmp_path / "bundle"), SETTINGS)
    assert refused(line) == "unlike_training"
    assert line.peak is None


def test_an_image_that_was_read_has_a_decision_that_fits_its_probability(
    read: Read, predictor: Predictor, wrapped: FileDataset, tmp_path: Path
) -> None:
    line = read(saved(wrapped, tmp_path / "a.dcm"))
    points = predictor.bundle.card.findings[0].operating_points
    assert line.probability is not None
    assert line.threshold == points.present_from
    expected = "undetermined"
    if line.probability >= points.present_from:
        expected = "fracture"
    elif line.probability < points.absent_below:
        expected = "no_fracture"
    assert (line.decision, line.reason) == (expected, None)
    assert (line.model, line.version) == (predictor.bundle.card.name, predictor.bundle.card.version)
    assert line.milliseconds > 0


def test_a_picture_and_the_dicom_object_that_wraps_it_read_the_same(
    read: Read, noise: Image.Image, wrapped: FileDataset, tmp_path: Path
) -> None:
    noise.save(tmp_path / "a.png")
    picture, dicom = read(tmp_path / "a.png"), read(saved(wrapped, tmp_path / "a.dcm"))
    assert picture.probability == pytest.approx(dicom.probability, abs=1e-6)
    assert picture.decision == dicom.decision


def test_a_file_is_known_by_what_is_in_it_and_not_by_its_name(
    read: Read, noise: Image.Image, wrapped: FileDataset, tmp_path: Path
) -> None:
    noise.save(tmp_path / "a.dcm", format="JPEG")
    assert read(tmp_path / "a.dcm").reason is None
    assert read(saved(wrapped, tmp_path / "a.png")).reason is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PLANTED notes of a ward round",
        b"\x00" * 200,
        b"\x89PNG\r\n\x1a\n cut off",
        b"\x00" * 128 + b"DICM",
        b"\x00" * 128 + b"DICM" + b"PLANTED" * 30,
    ],
)
def test_a_file_that_is_neither_dicom_nor_a_picture_is_not_analysed(read: Read, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.dcm"
    path.write_bytes(content)
    assert refused(read(path)) == "not_dicom"


def test_a_picture_that_is_cut_off_is_not_analysed(read: Read, noise: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise.save(path)
    path.write_bytes(path.read_bytes()[:5000])
    assert refused(read(path)) in {"undecodable", "not_dicom"}


def test_a_dicom_object_without_pixels_is_not_analysed(read: Read, wrapped: FileDataset, tmp_path: Path) -> None:
    del wrapped.PixelData
    assert refused(read(saved(wrapped, tmp_path / "a.dcm"))) == "no_pixels"


def test_pixels_that_do_not_fill_rows_and_columns_are_not_analysed(
    read: Read, wrapped: FileDataset, tmp_path: Path
) -> None:
    wrapped.Rows = 4000
    assert refused(read(saved(wrapped, tmp_path / "a.dcm"))) == "size_mismatch"


def test_pixels_that_cannot_be_decoded_are_not_analysed(read: Read, wrapped: FileDataset, tmp_path: Path) -> None:
    wrapped.file_meta.TransferSyntaxUID = JPEG2000Lossless
    wrapped.PixelData = encapsulate([b"PLANTED" * 20])
    wrapped["PixelData"].is_undefined_length = True
    assert refused(read(saved(wrapped, tmp_path / "a.dcm"))) == "undecodable"


def test_another_modality_and_another_body_part_are_not_analysed(
    read: Read, wrapped: FileDataset, tmp_path: Path
) -> None:
    wrapped.BodyPartExamined = "CHEST"
    assert refused(read(saved(wrapped, tmp_path / "a.dcm"))) == "outside_intended_use"
    wrapped.Modality = "MG"
    assert refused(read(saved(wrapped, tmp_path / "a.dcm"))) == "other_modality"


def test_an_image_for_processing_is_analysed_only_where_the_site_says_so(
    predictor: Predictor, noise: Image.Image, tmp_path: Path
) -> None:
    dataset = wrap_picture(noise, patient_id="1", patient_name="A", presentation="FOR PROCESSING")
    path = saved(dataset, tmp_path / "a.dcm")
    assert refused(line_for(path, predictor, SETTINGS)) == "for_processing"
    allowed = GivenSettings(analysis={"analyse_for_processing": True})
    assert line_for(path, predictor, allowed).reason is None


def test_an_animal_and_contradicting_sides_are_not_analysed(read: Read, wrapped: FileDataset, tmp_path: Path) -> None:
    wrapped.ImageLaterality, wrapped.StudyDescription = "R", "PLANTED left wrist"
    assert refused(read(saved(wrapped, tmp_path / "a.dcm"))) == "laterality_conflict"
    wrapped.PatientSpeciesDescription = "PLANTED dog"
    assert refused(read(saved(wrapped, tmp_path / "a.dcm"))) == "veterinary"


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("ORTHANC@127.0.0.1:4242", Destination("ORTHANC", "127.0.0.1", 4242)),
        ("MY PACS@pacs.example.org:104", Destination("MY PACS", "pacs.example.org", 104)),
        ("PACS@[::1]:11112", Destination("PACS", "::1", 11112)),
        ("A@h:65535", Destination("A", "h", 65535)),
    ],
)
def test_a_destination_is_ae_title_host_and_port(text: str, destination: Destination) -> None:
    assert parse_destination(text) == destination


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PACS",
        "PACS@host",
        "host:104",
        "@host:104",
        "PACS@:104",
        "PACS@host:0",
        "PACS@host:65536",
        "PACS@host:dicom",
        "SEVENTEEN-LETTERS@host:104",
        "BACK\\SLASH@host:104",
        "PACS@::1:104",
        "PACS@host:104\n",
        "PACS@host:104/x",
        "   @host:104",
        "PÄCS@host:104",
        "PA\tCS@host:104",
    ],
)
def test_a_destination_that_cannot_be_one_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"ORTHANC@127\.0\.0\.1:4242"):
        parse_destination(text)
