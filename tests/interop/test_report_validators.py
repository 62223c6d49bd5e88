"""The report as others judge it: dicom3tools, DCMTK, and PixelMed, the gate of IHE AIR."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from dicom_node.objects.content import ReportContent
from dicom_node.objects.report import build_report
from dicom_node.pixels import model_input_from_picture
from dicom_node.wrap import wrap_picture
from tests.peers import require_peer
from tests.reports import PATIENT, Study, content, image, variants

VARIANTS = variants()

# One JVM for each takes ten seconds and more: one variant of each shape. Names are the others' to judge.
JUDGED_BY_PIXELMED = [
    name for name in VARIANTS if not name.startswith(("name: ", "not analysed: ")) or name.endswith(": blank")
]
_ONE_REGION = (
    "With exactly one Image Region in the document PixelMed applies TID 1410 to every Measurement Group, so that any "
    "other group, a TID 1501, seems to it to lack a region and a segment."
)
KNOWN: dict[str, tuple[bool, str]] = {
    "[Row 4] CODE (121058,DCM": (
        False,
        "A procedure code of the hospital's own: CID 100 is a baseline that may be replaced (PS3.16, TID 1500, row 4).",
    ),
    "[Row 5] SCOORD (111030,DCM": (True, _ONE_REGION),
    "[Row 7] IMAGE (121214,DCM": (True, _ONE_REGION),
}
"""Parts of the messages that are let pass, whether in reports with one region only, and why."""

# DCMTK's checker of value representations stops at UTF-8; it says so of every object in UTF-8.
_UTF8_NOTE = "W: The VR checker does not support this Specific Character Set: ISO_IR 192"


@pytest.mark.parametrize("name", VARIANTS)
def test_dicom3tools_finds_no_error_in_any_variant(name: str, tmp_path: Path) -> None:
    command = require_peer("dciodvfy")
    lines = run(str(command), str(written(VARIANTS[name], tmp_path)))
    assert "Comprehensive3DSR" in lines
    assert [line for line in lines if line.startswith("Error")] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_dcmtk_reads_the_whole_tree_of_any_variant_without_complaint(name: str, tmp_path: Path) -> None:
    command = require_peer("dsrdump")
    lines = run(str(command), "+Pu", "+Pc", "+Pt", str(written(VARIANTS[name], tmp_path)))
    assert any('(126000,DCM,"Imaging Measurement Report")' in line for line in lines)
    assert [line for line in lines if line.startswith(("E:", "W:")) and line != _UTF8_NOTE] == []


def test_dcmtk_reads_back_every_group_of_a_japanese_name(tmp_path: Path) -> None:
    command = require_peer("dcmdump")
    lines = run(str(command), "+P", "PatientName", str(written(VARIANTS["name: japanese"], tmp_path)))
    assert any("[Yamada^Tarou=山田^太郎=やまだ^たろう]" in line for line in lines)


@pytest.mark.parametrize("name", JUDGED_BY_PIXELMED)
def test_pixelmed_finds_no_error_but_those_that_are_explained(name: str, tmp_path: Path) -> None:
    report = VARIANTS[name]
    regions = sum(reading.region is not None for image in report.images for reading in image.readings)
    allowed = [part for part, (only_with_one_region, _) in KNOWN.items() if regions == 1 or not only_with_one_region]
    errors = pixelmed_errors(report, tmp_path)
    assert [error for error in errors if not any(part in error for part in allowed)] == []


def of_a_heatmap(folder: Path) -> ReportContent:
    """A report whose region a predictor found, in pixels that are not whole."""
    pytest.importorskip("ai_edge_litert")
    from tests import litert

    predictor = litert.predictor(folder / "bundle")
    picture = litert.white_square((120, 200, 160, 240)).resize((173, 346))
    found = predictor.read(model_input_from_picture(picture, predictor.size)).findings[0]
    assert found.decision == "fracture"
    assert found.region is not None
    assert any(edge != round(edge) for edge in found.region.box)
    study = Study(date="20260329")
    return content(image(region=found.region.box, rows=picture.height, columns=picture.width, study=study))


def test_no_validator_finds_an_error_in_a_region_from_a_heatmap(tmp_path: Path) -> None:
    report = of_a_heatmap(tmp_path)
    lines = run(str(require_peer("dciodvfy")), str(written(report, tmp_path)))
    assert "Comprehensive3DSR" in lines
    assert [line for line in lines if line.startswith("Error")] == []
    lines = run(str(require_peer("dsrdump")), "+Pu", "+Pc", "+Pt", str(written(report, tmp_path)))
    assert [line for line in lines if "SCOORD" in line and "POLYLINE" in line]
    assert [line for line in lines if line.startswith(("E:", "W:")) and line != _UTF8_NOTE] == []
    assert pixelmed_errors(report, tmp_path) == []


@pytest.mark.parametrize("presentation", ["FOR PRESENTATION", "FOR PROCESSING"])
@pytest.mark.parametrize("known", [True, False])
def test_dicom3tools_finds_no_error_in_a_wrapped_picture(presentation: str, known: bool, tmp_path: Path) -> None:
    command = require_peer("dciodvfy")
    path = tmp_path / "picture.jpg"
    Image.linear_gradient("L").resize((101, 75)).save(path)
    details = {
        "body_part": "WRIST",
        "laterality": "L",
        "view_position": "AP",
        "made_at": datetime(2026, 1, 2, tzinfo=UTC),
    }
    dataset = wrap_picture(
        path,
        patient_id=PATIENT.id,
        patient_name="山田^太郎",
        presentation=presentation,  # type: ignore[arg-type]
        **(details if known else {}),  # type: ignore[arg-type]
    )
    dataset.save_as(tmp_path / "wrapped.dcm", enforce_file_format=True)
    lines = run(str(command), str(tmp_path / "wrapped.dcm"))
    assert any(line.startswith("DXImageFor") for line in lines)
    assert [line for line in lines if line.startswith("Error")] == []


def written(report: ReportContent, folder: Path) -> Path:
    path = folder / "report.dcm"
    path.write_bytes(build_report(report))
    return path


def pixelmed_errors(report: ReportContent, folder: Path) -> list[str]:
    java, jar = require_peer("java"), require_peer("pixelmed.jar")
    limits = ("xpathExprGrpLimit", "xpathExprOpLimit", "xpathTotalOpLimit")
    lines = run(
        str(java),
        # It runs for seconds only: the second compiler would take longer than it saves.
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        *(f"-Djdk.xml.{limit}=0" for limit in limits),
        "-cp",
        str(jar),
        "com.pixelmed.validate.DicomSRValidator",
        str(written(report, folder)),
    )
    # Its exit code is always 0, and a validator that fell over finds no error either.
    assert "Root Template Validation Complete" in lines
    return [line for line in lines if line.startswith("Error")]


def run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
