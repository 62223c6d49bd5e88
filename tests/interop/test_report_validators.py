"""The report as others judge it: dicom3tools, DCMTK, and PixelMed, the gate of IHE AIR."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from dicom_node.objects.content import ReportContent
from dicom_node.objects.report import build_report
from dicom_node.pixels import model_input_from_picture
from dicom_node.wrap import wrap_picture
from tests.interop import judges
from tests.peers import require_peer
from tests.reports import PATIENT, Study, content, image, variants

COMPREHENSIVE = variants("comprehensive")
VARIANTS = variants() | {f"{name}, comprehensive": report for name, report in COMPREHENSIVE.items()}

# PixelMed takes three seconds for each: one variant of each shape, and of those of Comprehensive SR one with a region,
# one without an image that was read, one with all that the header can hold. Names are the others' to judge.
_SHAPES = [name for name in variants() if not name.startswith(("name: ", "not analysed: ")) or name.endswith(": blank")]
_AGAIN = ("present with region", "mixed", "superseding", "several orders", "not analysed: blank")
JUDGED_BY_PIXELMED = [*_SHAPES, *(f"{name}, comprehensive" for name in _AGAIN)]
JVMS = 4  # of which two run at once where there are two processors
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


@pytest.mark.parametrize("name", VARIANTS)
def test_dicom3tools_finds_no_error_in_any_variant(name: str, tmp_path: Path) -> None:
    assert judges.dicom3tools(written(VARIANTS[name], tmp_path)) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_dcmtk_reads_the_whole_tree_of_any_variant_without_complaint(name: str, tmp_path: Path) -> None:
    assert judges.dcmtk(written(VARIANTS[name], tmp_path)) == []


def test_dcmtk_reads_back_every_group_of_a_japanese_name(tmp_path: Path) -> None:
    command = require_peer("dcmdump")
    lines = judges.run(command, "+P", "PatientName", written(VARIANTS["name: japanese"], tmp_path))
    assert any("[Yamada^Tarou=山田^太郎=やまだ^たろう]" in line for line in lines)


@pytest.mark.parametrize("part", range(JVMS))
def test_pixelmed_finds_no_error_but_those_that_are_explained(part: int, tmp_path: Path) -> None:
    names = JUDGED_BY_PIXELMED[part::JVMS]
    errors = judges.pixelmed({name: build_report(VARIANTS[name]) for name in names}, tmp_path)
    assert {name: not_explained(VARIANTS[name], found) for name, found in errors.items()} == {
        name: [] for name in names
    }


def not_explained(report: ReportContent, errors: list[str]) -> list[str]:
    regions = sum(reading.region is not None for image in report.images for reading in image.readings)
    allowed = [part for part, (only_with_one_region, _) in KNOWN.items() if regions == 1 or not only_with_one_region]
    return [error for error in errors if not any(part in error for part in allowed)]


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
    path = written(report, tmp_path)
    assert judges.dicom3tools(path) == []
    assert judges.dcmtk(path) == []
    assert [line for line in judges.run("dsrdump", path) if "SCOORD" in line and "POLYLINE" in line]
    assert judges.pixelmed({"heatmap": build_report(report)}, tmp_path) == {"heatmap": []}


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
    lines = judges.run(command, tmp_path / "wrapped.dcm")
    assert any(line.startswith("DXImageFor") for line in lines)
    assert [line for line in lines if line.startswith("Error")] == []


def written(report: ReportContent, folder: Path) -> Path:
    path = folder / "report.dcm"
    path.write_bytes(build_report(report))
    return path
