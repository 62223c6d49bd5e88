"""Heatmaps, presentation states and key objects as others judge them: dicom3tools and DCMTK."""

from __future__ import annotations

import re
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset

from dicom_node.headers import Patient
from dicom_node.objects.heatmap import HeatmapContent, build_heatmap, draw
from dicom_node.objects.key_objects import KeyObjectContent, build_key_objects
from dicom_node.objects.presentation_state import build_presentation_state
from dicom_node.objects.radiograph import CircularShutter, PolygonalShutter, RectangularShutter
from tests.companions import heatmap, heatmaps, picture, read, selection, state, with_regions
from tests.peers import require_peer
from tests.radiographs import radiograph
from tests.reports import BARE, PATIENT, header, image, variants

PICTURE = np.add.outer(np.arange(48) * 3, np.arange(64)).astype(np.uint8)
REGION = (10.0, 12.5, 20.0, 30.25)

# How an image may be shown; `radiograph` makes 12 bits and a window of all of them by default.
SHOWN: dict[str, dict[str, Any]] = {
    "MONOCHROME2": {},
    "MONOCHROME1": {"monochrome1": True},
    "MONOCHROME1 of Digital X-Ray": {"monochrome1": True, "kind": "DX"},
    "MONOCHROME2 shown inverse": {"lut_shape": "INVERSE"},
    "Digital X-Ray": {"kind": "DX"},
    "Secondary Capture of 8 bits": {"kind": "SC", "bits": 8},
    "16 bits": {"bits": 16},
    "no window": {"window": None},
    "two windows": {"window": ["full", (1000, 500.5)]},
    "a narrow window": {"attributes": {"WindowCenter": 900, "WindowWidth": 1}},
    "SIGMOID": {"voi_function": "SIGMOID"},
    "LINEAR_EXACT": {"voi_function": "LINEAR_EXACT"},
    "VOI LUT": {"voi_lut": True, "window": None},
    "VOI LUT of 65,536 entries and a window": {"voi_lut": True, "bits": 16},
    "modality LUT": {"modality_lut": True},
    "rescale": {"rescale": (2, -100.5)},
    "signed": {"signed": True},
    "signed with a VOI LUT": {"signed": True, "voi_lut": True},
    "signed with both LUTs": {"signed": True, "modality_lut": True, "voi_lut": True},
    "signed, MONOCHROME1, with a VOI LUT": {"signed": True, "monochrome1": True, "voi_lut": True},
    "pixels twice as high as wide": {"attributes": {"ImagerPixelSpacing": [0.2, 0.1]}},
    "pixels of another aspect ratio": {"attributes": {"PixelAspectRatio": ["4", "3"]}},
    "overlay": {"overlay": True},
    "rectangular shutter": {"shutter": RectangularShutter(3, 60, 4, 40)},
    "circular shutter": {"shutter": CircularShutter((20, 30), 15)},
    "polygonal shutter": {"shutter": PolygonalShutter(((1, 1), (1, 60), (40, 30)))},
    "bare": {
        "body_part": "",
        "laterality": "",
        "view_position": "",
        "made_at": None,
        "patient_name": "",
        "patient_id": "",
    },
    "both sides": {"laterality": "B"},
    "an unpaired part": {"laterality": "U", "body_part": "SPINE"},
    "a part whose side does not matter": {"laterality": "U"},
}

HEATMAPS = heatmaps()
SELECTIONS: dict[str, KeyObjectContent] = {
    f"{use}, {name}": selection(use, header=header(**changes))  # type: ignore[arg-type]
    for use in ("of_interest", "rejected")
    for name, changes in {
        "as ever": {},
        "bare": BARE,
        "with a time zone": {"timezone_offset": "-0430"},
        "Japanese": {"patient": Patient("Yamada^Tarou=山田^太郎=やまだ^たろう", PATIENT.id)},
    }.items()
}

# DCMTK's checker of value representations stops at UTF-8; and it has no rules for this template. It says so of each.
_NOTES = {
    "W: The VR checker does not support this Specific Character Set: ISO_IR 192",
    "W: Check for template constraints not yet supported",
}

# Of what is Type 2 and may be empty.
_NO_NAME = "W: patientName absent or empty in presentation state"


# Heatmaps.


@pytest.mark.parametrize("name", HEATMAPS)
def test_dicom3tools_finds_no_error_in_any_heatmap(name: str, tmp_path: Path) -> None:
    assert dicom3tools(build_heatmap(HEATMAPS[name]), "SCImage", tmp_path) == []


@pytest.mark.parametrize("name", ["present with region 1", "absent 1", "undetermined 1", "not analysed: blank 1"])
def test_dcmtk_shows_a_heatmap_as_it_was_drawn(name: str, tmp_path: Path) -> None:
    content = HEATMAPS[name]
    shown = rendered(content, tmp_path).astype(int)
    drawn = draw(content).astype(int)
    assert shown.shape == drawn.shape
    assert np.abs(shown - drawn).mean() < 2
    if name != "present with region 1":
        assert np.ptp(shown, axis=2).max() <= 1


def test_dcmtk_reads_back_every_group_of_a_japanese_name(tmp_path: Path) -> None:
    path = tmp_path / "heatmap.dcm"
    path.write_bytes(build_heatmap(HEATMAPS["name: japanese 1"]))
    lines = run(str(require_peer("dcmdump")), "+P", "PatientName", str(path))
    assert any("[Yamada^Tarou=山田^太郎=やまだ^たろう]" in line for line in lines)


# Presentation states.


@pytest.mark.parametrize("name", SHOWN)
def test_no_validator_finds_an_error_in_any_presentation_state(name: str, tmp_path: Path) -> None:
    source = shown_as(name)
    built = build_presentation_state(state(read(source, REGION), source))
    assert dicom3tools(built, "GrayscaleSoftcopyPresentationState", tmp_path) == []
    assert dcmpschk(built, tmp_path) == []


@pytest.mark.parametrize("name", [name for name, report in variants().items() if with_regions(report)])
def test_no_validator_finds_an_error_in_the_states_of_any_report(name: str, tmp_path: Path) -> None:
    source = radiograph(PICTURE, attributes={"Rows": 1760, "Columns": 1500})
    for outcome in with_regions(variants()[name]):
        built = build_presentation_state(state(outcome, source))
        assert dicom3tools(built, "GrayscaleSoftcopyPresentationState", tmp_path) == []
        assert dcmpschk(built, tmp_path) == []


@pytest.mark.parametrize("name", ["Buc^Jérôme", "Yamada^Tarou=山田^太郎=やまだ^たろう", "Hong^Gildong=洪^吉洞=홍^길동"])
@pytest.mark.parametrize("offset", ["+0000", "-0430", ""])
def test_no_validator_finds_an_error_in_any_character_set_or_time_zone(name: str, offset: str, tmp_path: Path) -> None:
    outcome = image(region=(1, 1, 2, 2), patient=Patient(name), timezone_offset=offset)
    built = build_presentation_state(state(outcome, radiograph(PICTURE)))
    assert dicom3tools(built, "GrayscaleSoftcopyPresentationState", tmp_path) == []
    assert dcmpschk(built, tmp_path) == []


@pytest.mark.parametrize("name", [name for name in SHOWN if name != "bare"])  # it applies no state without a name
def test_dcmtk_shows_the_image_with_the_state_exactly_as_without(name: str, tmp_path: Path) -> None:
    source = shown_as(name)
    built = build_presentation_state(state(read(source, REGION), source))
    assert np.array_equal(grey(source, built, tmp_path), grey(source, None, tmp_path))


def test_dcmtk_shows_it_otherwise_with_a_state_that_repeats_less(tmp_path: Path) -> None:
    """The comparison above would be worth nothing with a renderer that takes no notice of the state."""
    source = radiograph(PICTURE, kind="CR", rescale=(2, -100.5), window=(900, 400))
    plain = grey(source, None, tmp_path)
    for keyword, value in {
        "RescaleSlope": 1,
        "SoftcopyVOILUTSequence": None,
        "PresentationLUTShape": "INVERSE",
    }.items():
        document = pydicom.dcmread(BytesIO(build_presentation_state(state(read(source, REGION), source))))
        if value is None:
            del document[keyword]
        else:
            setattr(document, keyword, value)
        assert not np.array_equal(grey(source, saved(document), tmp_path), plain), keyword


def test_dcmtk_understands_what_it_does_not_draw_as_it_was_meant(tmp_path: Path) -> None:
    source = radiograph(PICTURE, kind="CR", shutter=RectangularShutter(3, 60, 4, 40), overlay=True)
    built = pydicom.dcmread(BytesIO(build_presentation_state(state(read(source, REGION, (30, 5, 44, 9)), source))))
    understood = pydicom.dcmread(resaved(source, saved(built), tmp_path))
    for keyword in ("ShutterShape", "ShutterLeftVerticalEdge", "ShutterLowerHorizontalEdge"):
        assert understood[keyword].value == source[keyword].value
    assert understood[0x6000, 0x1001].value == built[0x6000, 0x1001].value
    assert [layer.GraphicLayer for layer in understood.GraphicLayerSequence] == ["SOURCE", "AI"]
    [given], [taken] = built.GraphicAnnotationSequence, understood.GraphicAnnotationSequence
    for ours, theirs in zip(given.GraphicObjectSequence, taken.GraphicObjectSequence, strict=True):
        assert theirs.GraphicAnnotationUnits == "PIXEL"
        assert list(theirs.GraphicData) == list(ours.GraphicData)
    for ours, theirs in zip(given.TextObjectSequence, taken.TextObjectSequence, strict=True):
        assert theirs.UnformattedTextValue == ours.UnformattedTextValue
        assert list(theirs.BoundingBoxTopLeftHandCorner) == list(ours.BoundingBoxTopLeftHandCorner)
    assert understood.ReferencedSeriesSequence[0].ReferencedImageSequence[0].ReferencedSOPInstanceUID == (
        source.SOPInstanceUID
    )


# Key objects.


@pytest.mark.parametrize("name", SELECTIONS)
def test_no_validator_finds_an_error_in_any_key_object_selection(name: str, tmp_path: Path) -> None:
    built = build_key_objects(SELECTIONS[name])
    assert dicom3tools(built, "KeyObjectSelectionDocument", tmp_path) == []
    (tmp_path / "selection.dcm").write_bytes(built)
    lines = run(str(require_peer("dsrdump")), "+Pu", "+Pc", "+Pt", str(tmp_path / "selection.dcm"))
    assert any('(113012,DCM,"Key Object Description")' in line for line in lines)
    assert [line for line in lines if line.startswith(("E:", "W:")) and line not in _NOTES] == []


# What the validators say.


def test_the_validators_notice_what_the_standard_forbids(tmp_path: Path) -> None:
    source = radiograph(PICTURE, kind="CR")
    broken = {
        build_presentation_state(state(read(source, REGION), source)): "DisplayedAreaSelectionSequence",
        build_heatmap(heatmap(image(), picture())): "ConversionType",
        build_key_objects(selection()): "CurrentRequestedProcedureEvidenceSequence",
    }
    for built, keyword in broken.items():
        document = pydicom.dcmread(BytesIO(built))
        del document[keyword]
        assert dicom3tools(saved(document), "", tmp_path), keyword
    document = pydicom.dcmread(BytesIO(next(iter(broken))))
    del document.DisplayedAreaSelectionSequence
    assert dcmpschk(saved(document), tmp_path)


def shown_as(name: str) -> FileDataset:
    return radiograph(PICTURE, **({"kind": "CR"} | SHOWN[name]))


def dicom3tools(built: bytes, iod: str, folder: Path) -> list[str]:
    path = folder / "judged.dcm"
    path.write_bytes(built)
    lines = run(str(require_peer("dciodvfy")), str(path))
    assert iod in lines or not iod
    return [line for line in lines if line.startswith("Error")]


def dcmpschk(built: bytes, folder: Path) -> list[str]:
    """What it finds, but for two values that it takes for wrong, and which are right.

    It knows no character set but ASCII, and takes the name's for its length; and an offset of zero, "+0000", which is
    UTC's (PS3.5, 6.2, DT), it does not know.
    """
    path = folder / "judged.dcm"
    path.write_bytes(built)
    lines = run(str(require_peer("dcmpschk")), str(path))
    assert any("Testing" in line for line in lines)
    found, known = [], False
    for at, line in enumerate(lines):
        if "Affected attribute" in line:
            value = lines[at + 1]
            right = ("PN" in line and not value.isascii()) or ("Type DT" in line and "+0000]" in value)
            known = known or right
            if not right:
                found.append(f"{line} {value}")
        elif line != _NO_NAME and not re.match(
            r"W: Test|E:( +(Attribute value|Expected format)| Error: Attribute value| *$)", line
        ):
            found.append(line)
    assert found or known or "W: Test passed." in lines
    return found


def grey(source: FileDataset, built: bytes | None, folder: Path) -> NDArray[np.uint8]:
    """The image as DCMTK shows it, with a presentation state or without."""
    source.save_as(folder / "image.dcm", enforce_file_format=True)
    with_state = []
    if built is not None:
        (folder / "state.dcm").write_bytes(built)
        with_state = ["-p", str(folder / "state.dcm")]
    output = folder / "shown.pgm"
    output.unlink(missing_ok=True)
    assert run(str(require_peer("dcmp2pgm")), *with_state, str(folder / "image.dcm"), str(output)) == []
    return np.asarray(Image.open(output))


def resaved(source: FileDataset, built: bytes, folder: Path) -> Path:
    """The presentation state as DCMTK writes what it has read of it."""
    source.save_as(folder / "image.dcm", enforce_file_format=True)
    (folder / "state.dcm").write_bytes(built)
    command = [str(require_peer("dcmp2pgm")), "-p", str(folder / "state.dcm"), "+S", str(folder / "again.dcm")]
    assert run(*command, str(folder / "image.dcm"), str(folder / "shown.pgm")) == []
    return folder / "again.dcm"


def rendered(content: HeatmapContent, folder: Path) -> NDArray[np.uint8]:
    path = folder / "heatmap.dcm"
    path.write_bytes(build_heatmap(content))
    assert run(str(require_peer("dcmj2pnm")), "--write-raw-pnm", str(path), str(folder / "shown.ppm")) == []
    return np.asarray(Image.open(folder / "shown.ppm"))


def saved(document: FileDataset) -> bytes:
    buffer = BytesIO()
    document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
