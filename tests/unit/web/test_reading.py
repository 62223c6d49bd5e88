"""What the console says of a file that somebody drops on it, whatever that file is."""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

pytest.importorskip("ai_edge_litert")

from console.predict import line_for
from console.web import one_file, reading
from console.web.reading import Answer, Unread
from dicom_node.objects.template import check_report
from models.reasons import Reason
from models.settings import AnalysisSettings, GivenSettings, WebSettings
from worker.bundle import Bundle, default_bundle_path
from worker.predictor import Predictor

SETTINGS = GivenSettings()
INSTALLATION = "2.25.1"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(Bundle.load(default_bundle_path()))


def answered(content: bytes, predictor: Predictor) -> Answer:
    """Read a file in this process, and check what comes of it as the parent does."""
    return Answer.model_validate_json(json.dumps(one_file.answer_of(content, predictor, SETTINGS, INSTALLATION)))


def picture(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


@pytest.fixture(scope="module")
def tibia(radiographs: dict[str, Path]) -> bytes:
    return radiographs["RG3"].read_bytes()


@pytest.fixture(scope="module")
def tibia_as_png(radiographs: dict[str, Path]) -> bytes:
    stored = dcmread(radiographs["RG3"]).pixel_array.astype(float)
    return picture(Image.fromarray((255 * (1 - stored / stored.max())).astype("uint8")))


def test_a_dicom_file_gets_the_answer_that_predict_gives(
    radiographs: dict[str, Path], tibia: bytes, predictor: Predictor
) -> None:
    answer, line = answered(tibia, predictor), line_for(radiographs["RG3"], predictor, SETTINGS)
    (finding,) = answer.findings
    assert (answer.kind, answer.decision, answer.reason) == ("DICOM", line.decision, None)
    assert finding.probability == pytest.approx(line.probability, abs=1e-6)
    assert finding.present_from == line.threshold
    assert line.region is not None
    assert finding.box == pytest.approx(list(line.region.values()))


def test_a_picture_is_read_and_shown_with_a_map_of_its_size(tibia_as_png: bytes, predictor: Predictor) -> None:
    answer = answered(tibia_as_png, predictor)
    assert (answer.kind, answer.decision, answer.rows, answer.columns) == ("picture", "fracture", 1760, 1760)
    radiograph = Image.open(io.BytesIO(answer.bytes_of("radiograph") or b""))
    heat = Image.open(io.BytesIO(answer.bytes_of("heat") or b""))
    assert radiograph.size == heat.size == (1024, 1024)
    seen = np.asarray(heat)[:, :, 3].astype(float)
    rows, columns = np.unravel_index(seen.argmax(), seen.shape)
    box = answer.findings[0].box
    assert box is not None
    assert box[0] <= columns * 1760 / 1024 <= box[2]
    assert box[1] <= rows * 1760 / 1024 <= box[3]


@pytest.mark.parametrize("which", ["tibia", "tibia_as_png"])
def test_the_report_that_would_have_been_sent_is_a_good_one(
    which: str, predictor: Predictor, request: pytest.FixtureRequest
) -> None:
    report = answered(request.getfixturevalue(which), predictor).bytes_of("report")
    assert report is not None
    assert check_report(report) == []


def test_what_is_not_read_has_a_reason_a_picture_and_a_report_that_says_so(
    radiographs: dict[str, Path], predictor: Predictor
) -> None:
    answer = answered(radiographs["RG1"].read_bytes(), predictor)
    assert (answer.decision, answer.reason, answer.findings) == ("not_analysed", Reason.OUTSIDE_INTENDED_USE, [])
    assert answer.heat is None
    assert answer.radiograph is not None
    report = answer.bytes_of("report")
    assert report is not None
    assert check_report(report) == []


def bad_files() -> dict[str, tuple[bytes, Reason]]:
    grey = np.full((300, 300), 128, dtype=np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    photograph = Image.fromarray(colours).resize((400, 300), Image.Resampling.BICUBIC)
    whole = picture(photograph)
    return {
        "text": (b"This is a letter, and no radiograph.", Reason.NOT_DICOM),
        "a page": (b"<html><script>alert(1)</script></html>" * 50, Reason.NOT_DICOM),
        "a DICOM file's beginning alone": (b"\0" * 128 + b"DICM", Reason.NOT_DICOM),
        "a blank picture": (picture(Image.fromarray(grey)), Reason.BLANK),
        "a photograph": (picture(photograph, "JPEG"), Reason.PHOTOGRAPH),
        "half a picture": (whole[: len(whole) // 2], Reason.UNDECODABLE),
        "a picture that claims to be enormous": (png_that_claims(100_000, 100_000), Reason.TOO_LARGE),
        "a picture that claims to be very large": (png_that_claims(12_000, 12_000), Reason.TOO_LARGE),
    }


@pytest.mark.parametrize("what", bad_files())
def test_a_bad_file_gets_a_sentence_that_says_what_is_wrong_with_it(what: str, predictor: Predictor) -> None:
    content, reason = bad_files()[what]
    answer = answered(content, predictor)
    assert (answer.decision, answer.reason, answer.findings) == ("not_analysed", reason, [])
    assert reason.sentence.endswith(".")


@pytest.mark.timeout(120)
def test_a_file_is_read_in_a_process_of_its_own_and_nothing_of_it_is_kept(tibia: bytes, tmp_path: Path) -> None:
    settings = GivenSettings(data_dir=tmp_path / "node")
    answer = reading.read(tibia, settings, INSTALLATION)
    assert isinstance(answer, Answer)
    assert answer.decision == "fracture"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(120)
def test_a_file_that_takes_too_long_ends_with_its_process_and_a_sentence(tibia: bytes) -> None:
    settings = GivenSettings(analysis=AnalysisSettings(time_limit=0.05))
    assert reading.read(tibia, settings, INSTALLATION) == Unread(
        "The file was given up: its reader ran out of time or memory, or broke down on it."
    )


def test_a_file_that_is_too_large_or_empty_is_not_even_begun() -> None:
    settings = GivenSettings(web=WebSettings(max_upload_mb=1))
    assert reading.read(b"\0" * (1024 * 1024 + 1), settings, INSTALLATION) == Unread("The file is larger than 1 MB.")
    assert reading.read(b"", settings, INSTALLATION) == Unread("The file is empty.")


@pytest.mark.parametrize("said", ["nothing", "{}", '{"kind": "DICOM", "decision": "sound"}'])
def test_what_a_reader_says_is_not_believed_unless_it_can_be(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file that got the better of its reader would answer in its place.
    monkeypatch.setattr(reading, "_COMMAND", [sys.executable, "-c", f"print({said!r})"])
    assert reading.read(b"a file", SETTINGS, INSTALLATION) == Unread(
        "The file was given up: its reader said nothing that can be used."
    )
