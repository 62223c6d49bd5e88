"""The presentation state: the outline lies on what it means, and the image looks as it does without the state."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.headers import read_header
from dicom_node.objects.content import Predecessor, Region
from dicom_node.objects.presentation_state import (
    Grayscale,
    PresentationError,
    PresentationStateContent,
    build_presentation_state,
    has_regions,
    read_grayscale,
    render_presentation_state_series_uid,
    render_presentation_state_uid,
)
from dicom_node.objects.radiograph import CircularShutter, PolygonalShutter, RectangularShutter
from dicom_node.objects.recognise import is_own_object
from models.reasons import Reason
from tests.companions import DIGEST, read, state
from tests.radiographs import radiograph
from tests.reports import REGION, image, unread

PICTURE = np.add.outer(np.arange(48) * 3, np.arange(64)).astype(np.uint8)
BOX: Region = (10.0, 12.5, 20.0, 30.0)


def built(source: Dataset, *regions: Region, **changes: Any) -> Dataset:
    content = state(read(source, *(regions or (BOX,))), source, **changes)
    return pydicom.dcmread(BytesIO(build_presentation_state(content)))


def graphics(document: Dataset) -> list[Dataset]:
    return list(document.GraphicAnnotationSequence[0].GraphicObjectSequence)


def texts(document: Dataset) -> list[Dataset]:
    return list(document.GraphicAnnotationSequence[0].TextObjectSequence)


# Where the outline lies.


def test_an_outline_encloses_exactly_the_pixels_of_a_mark() -> None:
    """In PIXEL units column n of the image, counted from 0, lies between n and n + 1 (PS3.3, C.10.5)."""
    marked = np.zeros((48, 64), dtype=np.uint8)
    marked[11:17, 20:41] = 255
    document = built(radiograph(marked), (20, 11, 41, 17))
    [graphic] = graphics(document)
    assert graphic.GraphicAnnotationUnits == "PIXEL"
    assert (graphic.GraphicType, graphic.GraphicFilled, graphic.GraphicDimensions) == ("POLYLINE", "N", 2)
    points = np.reshape(graphic.GraphicData, (graphic.NumberOfGraphicPoints, 2))
    assert points[0].tolist() == points[-1].tolist()
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    columns, rows = np.arange(64) + 0.5, np.arange(48) + 0.5
    inside = ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))
    assert np.array_equal(inside, marked > 0)


def test_edges_between_pixels_are_kept() -> None:
    [graphic] = graphics(built(radiograph(PICTURE)))
    assert list(graphic.GraphicData) == [10, 12.5, 20, 12.5, 20, 30, 10, 30, 10, 12.5]


def test_only_what_is_present_is_outlined() -> None:
    source = radiograph(PICTURE)
    outcome = read(source, BOX, (30, 30, 40, 40))
    absent = replace(outcome.readings[1], decision="no_fracture", probability=0.1)
    content = state(replace(outcome, readings=(outcome.readings[0], absent)), source)
    assert len(graphics(pydicom.dcmread(BytesIO(build_presentation_state(content))))) == 1


def test_the_whole_image_is_displayed_as_large_as_fits() -> None:
    [area] = built(radiograph(PICTURE)).DisplayedAreaSelectionSequence
    assert list(area.DisplayedAreaTopLeftHandCorner) == [1, 1]
    assert list(area.DisplayedAreaBottomRightHandCorner) == [64, 48]
    assert area.PresentationSizeMode == "SCALE TO FIT"
    assert list(area.PresentationPixelAspectRatio) == [1, 1]
    assert "PresentationPixelSpacing" not in area


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (2, 1)),
        ({"ImagerPixelSpacing": [0.143, 0.143], "PixelSpacing": ["0.15", "0.10"]}, (3, 2)),
        ({"ImagerPixelSpacing": None, "NominalScannedPixelSpacing": ["1", "2"]}, (1, 2)),
        ({"ImagerPixelSpacing": None, "PixelAspectRatio": ["4", "3"]}, (4, 3)),
        ({"ImagerPixelSpacing": None}, (1, 1)),
        ({"ImagerPixelSpacing": [0, 0.1]}, (1, 1)),
        ({"ImagerPixelSpacing": [-0.1, 0.1]}, (1, 1)),
        ({"ImagerPixelSpacing": [0.1]}, (1, 1)),
    ],
)
def test_pixels_keep_their_height_to_width(attributes: dict[str, Any], expected: tuple[int, int]) -> None:
    assert read_grayscale(radiograph(PICTURE, attributes=attributes)).aspect == expected


# The words.


def test_it_says_what_was_found_and_that_an_algorithm_says_so() -> None:
    document = built(radiograph(PICTURE))
    [text] = texts(document)
    assert text.UnformattedTextValue == "AI: fracture found, 83 %\r\nAI result, not for primary diagnosis"
    assert document.ContentLabel == "AI_REGION"
    assert document.ContentDescription == "AI result, not for primary diagnosis"
    assert str(document.ContentCreatorName) == "osteon-fracture^1.0.0"
    [layer] = document.GraphicLayerSequence
    assert layer.GraphicLayer == document.GraphicAnnotationSequence[0].GraphicLayer


@pytest.mark.parametrize(
    ("probability", "shown"), [(0.995, "> 99 %"), (0.99, "99 %"), (0.6, "60 %"), (0.005, "< 1 %"), (1.0, "> 99 %")]
)
def test_a_certainty_is_never_written_as_none_or_as_all(probability: float, shown: str) -> None:
    source = radiograph(PICTURE)
    outcome = read(source, BOX)
    outcome = replace(outcome, readings=(replace(outcome.readings[0], probability=probability),))
    [text] = texts(pydicom.dcmread(BytesIO(build_presentation_state(state(outcome, source)))))
    assert text.UnformattedTextValue.startswith(f"AI: fracture found, {shown}\r\n")


EDGES = st.tuples(st.floats(0, 1000), st.floats(1, 400))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(EDGES, EDGES), min_size=1, max_size=2))
def test_a_text_lies_in_the_image_and_not_on_what_it_names(boxes: list[Any]) -> None:
    regions = [(x, y, min(x + width, 1400.0), min(y + height, 1400.0)) for (x, width), (y, height) in boxes]
    grayscale = Grayscale(rows=1400, columns=1400)
    found = built(radiograph(PICTURE, attributes={"Rows": 1400, "Columns": 1400}), *regions, grayscale=grayscale)
    places = []
    for text in texts(found):
        (left, top), (right, bottom) = text.BoundingBoxTopLeftHandCorner, text.BoundingBoxBottomRightHandCorner
        assert 0 <= left < right <= 1400
        assert 0 <= top < bottom <= 1400
        places.append((left, top, right, bottom))
    for region, place in itertools.product(regions, places):
        assert min(region[2], place[2]) - max(region[0], place[0]) <= 1e-3 or (
            min(region[3], place[3]) - max(region[1], place[1]) <= 1e-3
        )


@pytest.mark.parametrize("size", [(48, 64), (1, 1), (2000, 30), (30, 2000)])
def test_a_region_that_fills_the_image_leaves_the_text_in_it_all_the_same(size: tuple[int, int]) -> None:
    rows, columns = size
    source = radiograph(np.zeros(size, dtype=np.uint8))
    [text] = texts(built(source, (0, 0, columns, rows)))
    assert min(text.BoundingBoxTopLeftHandCorner) >= 0
    assert text.BoundingBoxBottomRightHandCorner[0] <= columns
    assert text.BoundingBoxBottomRightHandCorner[1] <= rows


# How the image is shown.


@pytest.mark.parametrize(
    ("details", "shape"),
    [
        ({}, "IDENTITY"),
        ({"monochrome1": True}, "INVERSE"),
        ({"monochrome1": True, "lut_shape": None}, "INVERSE"),
        ({"lut_shape": "INVERSE"}, "INVERSE"),
    ],
)
def test_it_is_inverted_as_the_image_is(details: dict[str, Any], shape: str) -> None:
    assert built(radiograph(PICTURE, kind="CR", **details)).PresentationLUTShape == shape


def test_the_first_window_is_repeated_with_its_function_and_explanation() -> None:
    source = radiograph(PICTURE, window=["full", (1000, 500.5)], voi_function="SIGMOID")
    [voi] = built(source).SoftcopyVOILUTSequence
    assert str(voi.WindowCenter) == str(source.WindowCenter[0])
    assert str(voi.WindowWidth) == str(source.WindowWidth[0])
    assert voi.VOILUTFunction == "SIGMOID"
    assert voi.WindowCenterWidthExplanation == "WINDOW1"


@pytest.mark.parametrize(
    "window",
    [{"WindowWidth": 0}, {"WindowWidth": 0.5}, {"WindowWidth": -3}, {"WindowWidth": None}, {"WindowCenter": None}],
)
def test_a_window_that_no_image_can_have_is_none(window: dict[str, Any]) -> None:
    assert "SoftcopyVOILUTSequence" not in built(radiograph(PICTURE, attributes=window))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("signed", [False, True])
def test_tables_are_repeated_entry_by_entry(syntax: str, signed: bool) -> None:
    source = radiograph(PICTURE, kind="CR", signed=signed, voi_lut=True, transfer_syntax=syntax)
    source = reread(source)
    document = built(source)
    given, taken = source.VOILUTSequence[0], document.SoftcopyVOILUTSequence[0].VOILUTSequence[0]
    first = int(given.LUTDescriptor[1])
    expected = first - 65536 if signed and first > 32767 else first
    assert [int(part) for part in taken.LUTDescriptor] == [given.LUTDescriptor[0], expected, given.LUTDescriptor[2]]
    assert ("SS" if signed else "US") == taken["LUTDescriptor"].VR
    data = (
        given.LUTData if isinstance(given.LUTData, bytes) else np.asarray(given.LUTData, "<i8").astype("<u2").tobytes()
    )
    assert taken.LUTData == data


def test_a_table_of_65_536_entries_is_repeated() -> None:
    source = radiograph(PICTURE, kind="CR", bits=16, voi_lut=True)
    assert source.VOILUTSequence[0].LUTDescriptor[0] == 0
    taken = built(source).SoftcopyVOILUTSequence[0].VOILUTSequence[0]
    assert taken.LUTDescriptor[0] == 0
    assert len(taken.LUTData) == 2 * 65536


def test_two_entries_of_8_bits_in_a_word_are_taken_apart() -> None:
    source = radiograph(PICTURE, kind="CR", window=None)
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4, 0, 8])
    table.add_new("LUTData", "OW", bytes([1, 2, 3, 4]))
    source.VOILUTSequence = [table]
    taken = built(source).SoftcopyVOILUTSequence[0].VOILUTSequence[0]
    assert taken.LUTData == bytes([1, 0, 2, 0, 3, 0, 4, 0])


def test_a_rescale_is_repeated_as_it_is_written() -> None:
    source = radiograph(PICTURE, kind="CR", rescale=(2, -100.5))
    document = built(source)
    assert (document.RescaleSlope, document.RescaleIntercept, document.RescaleType) == (2, -100.5, "US")


def test_a_modality_table_counts_and_a_rescale_beside_it_does_not() -> None:
    source = radiograph(PICTURE, kind="CR", modality_lut=True, attributes={"RescaleSlope": 2, "RescaleIntercept": 1})
    document = built(source)
    assert "RescaleSlope" not in document
    assert document.ModalityLUTSequence[0].LUTData == source.ModalityLUTSequence[0].LUTData
    assert document.ModalityLUTSequence[0].ModalityLUTType == "US"


@pytest.mark.parametrize(
    ("shutter", "keyword"),
    [
        (RectangularShutter(3, 60, 4, 40), "ShutterLeftVerticalEdge"),
        (CircularShutter((20, 30), 15), "CenterOfCircularShutter"),
        (PolygonalShutter(((1, 1), (1, 60), (40, 30))), "VerticesOfThePolygonalShutter"),
    ],
)
def test_a_shutter_is_repeated(shutter: Any, keyword: str) -> None:
    source = radiograph(PICTURE, shutter=shutter)
    document = built(source)
    assert document.ShutterShape == source.ShutterShape
    assert document[keyword].value == source[keyword].value
    assert document.ShutterPresentationValue == 0


def test_overlays_of_the_image_are_switched_on() -> None:
    document = built(radiograph(PICTURE, overlay=True))
    layer = document[0x6000, 0x1001].value
    assert layer in [item.GraphicLayer for item in document.GraphicLayerSequence]
    assert [item.GraphicLayerOrder for item in document.GraphicLayerSequence] == [1, 2]


def test_only_the_header_of_the_image_is_needed() -> None:
    source = radiograph(PICTURE, kind="CR", voi_lut=True, overlay=True)
    buffer = BytesIO()
    source.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    assert read_grayscale(pydicom.dcmread(buffer, stop_before_pixels=True)) == read_grayscale(source)


# What cannot be repeated.


def raw(keyword: str, value: Any, vr: str) -> DataElement:
    return DataElement(Tag(keyword), vr, value, validation_mode=config.IGNORE)


def lut(*descriptor: int, data: Any = b"\0\0" * 4, vr: str = "OW") -> Dataset:
    table = Dataset()
    if descriptor:
        table.add_new("LUTDescriptor", "US", list(descriptor))
    if data is not None:
        table["LUTData"] = raw("LUTData", data, vr)
    return table


@pytest.mark.parametrize(
    "attributes",
    [
        {"PhotometricInterpretation": "RGB"},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"PhotometricInterpretation": None},
        {"NumberOfFrames": 2},
        {"Rows": None},
        {"Rows": 0},
        {"BitsStored": 0},
        {"BitsStored": 32},
        {"RescaleSlope": 0},
        {"ShutterShape": "STAR"},
        {"ShutterShape": "RECTANGULAR"},
        {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [1], "RadiusOfCircularShutter": 3},
        {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 2, 3, 4]},
        {"VOILUTFunction": "CUBIC"},
        *(
            {sequence: [table]}
            for sequence in ("VOILUTSequence", "ModalityLUTSequence")
            for table in (
                lut(),
                lut(4, 0),
                lut(4, 0, 16, data=None),
                lut(4, 0, 16, data=b"\0\0" * 3),
                lut(4, 0, 16, data=b"\0\0\0"),
                lut(4, 0, 7),
                lut(4, 0, 17),
                lut(4, 0, 8, data=b"\0\1" * 4),
                lut(4, 0, 16, data="text", vr="LT"),
                lut(4, 0, 16, data=[1.5, 2.5, float("nan"), 3], vr="FD"),
                Dataset(),
            )
        ),
    ],
    ids=repr,
)
def test_what_cannot_be_repeated_is_named_and_nothing_else_is_raised(attributes: dict[str, Any]) -> None:
    source = radiograph(PICTURE, kind="CR", attributes=attributes)
    with pytest.raises(PresentationError) as refused:
        read_grayscale(source)
    assert refused.value.__cause__ is None


KEYWORDS = [
    *("Rows", "Columns", "BitsStored", "PixelRepresentation", "NumberOfFrames", "PhotometricInterpretation"),
    *("PresentationLUTShape", "RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth"),
    *("VOILUTFunction", "WindowCenterWidthExplanation", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"),
    *("ShutterShape", "ShutterLeftVerticalEdge", "VerticesOfThePolygonalShutter", "ShutterPresentationValue"),
]
RUBBISH = [
    *(
        b"",
        b"x",
        b"1e999",
        b"nan",
        b"1\\2\\x",
        b"\xff\x00",
        b"-1",
        b"0",
        b"99999999999",
        b"1\\y",
        b"1\\2\\3",
        b"-0",
        b"1/2",
    ),
    *(b"\0", b"\xff\xff", b"\1\0\2\0", b"INVERSE\\IDENTITY", b"RECTANGULAR\\CIRCULAR", b"0.00000001\\99999", b" "),
]


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYWORDS), st.sampled_from(RUBBISH), min_size=1, max_size=3), st.booleans())
def test_whatever_an_attribute_holds_a_state_comes_of_it_or_a_named_refusal(
    values: dict[str, bytes], stated: bool
) -> None:
    plain = radiograph(PICTURE, kind="CR", shutter=RectangularShutter(3, 60, 4, 40))
    outcome = read(plain, (1, 1, 2, 2))
    source = Dataset(dict(plain.items()))
    for keyword, value in values.items():
        tag = Tag(keyword)
        vr = dictionary_VR(keyword) if stated else "UN"
        source[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    with suppress(PresentationError):
        build_presentation_state(state(outcome, plain, grayscale=read_grayscale(source)))


def test_a_region_beyond_the_image_is_refused() -> None:
    source = radiograph(PICTURE)
    outcome = read(source, (10, 10, 60, 40))
    with pytest.raises(PresentationError, match="beyond"):
        build_presentation_state(state(outcome, source, grayscale=Grayscale(rows=48, columns=50)))


@pytest.mark.parametrize(
    "outcome",
    [
        image(),
        image(decision="no_fracture", region=REGION),
        image(decision="undetermined", region=REGION),
        unread(1, Reason.BLANK),
    ],
)
def test_an_image_without_a_region_of_a_fracture_gets_no_state(outcome: Any) -> None:
    assert not has_regions(outcome)
    with pytest.raises(ValueError, match="no region"):
        state(outcome, radiograph(PICTURE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"installation_uid": "x"}, "installation_uid"),
        ({"created_at": state(image(region=REGION), radiograph(PICTURE)).created_at.replace(tzinfo=None)}, "UTC"),
        ({"source_digest": ""}, "source_digest"),
    ],
)
def test_content_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        state(image(region=REGION), radiograph(PICTURE), **changes)


# The header and the UIDs.


def test_it_refers_to_its_image_and_states_its_side() -> None:
    source = radiograph(PICTURE)
    document = built(source, number=4)
    [series] = document.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    [reference] = series.ReferencedImageSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert document.StudyInstanceUID == source.StudyInstanceUID
    assert (document.Modality, document.Laterality, document.BodyPartExamined) == ("PR", "L", "WRIST")
    assert document.InstanceNumber == 4
    assert (document.PresentationCreationDate, document.PresentationCreationTime) == ("20260329", "233015")


def test_it_is_known_again_when_it_comes_back() -> None:
    assert is_own_object(read_header(built(radiograph(PICTURE))))


def test_equal_content_gives_equal_bytes() -> None:
    source = radiograph(PICTURE)
    content = state(read(source, BOX), source)
    assert build_presentation_state(content) == build_presentation_state(replace(content))


def test_its_uids_can_be_told_without_the_source_and_do_not_know_the_time() -> None:
    source = radiograph(PICTURE)
    content = state(read(source, BOX), source)
    document = pydicom.dcmread(BytesIO(build_presentation_state(content)))
    bare = replace(content, grayscale=None, created_at=content.created_at + timedelta(days=3))
    assert render_presentation_state_uid(bare) == document.SOPInstanceUID
    assert render_presentation_state_series_uid(bare) == document.SeriesInstanceUID
    with pytest.raises(ValueError, match="without grayscale"):
        build_presentation_state(bare)


def test_a_change_of_what_is_drawn_or_said_gives_a_new_uid() -> None:
    def of(outcome: Any, **changes: Any) -> PresentationStateContent:
        return state(outcome, radiograph(PICTURE), **changes)

    base = of(image(region=REGION))
    others = [
        of(image(region=(1, 2, 3, 4))),
        of(image(2, region=REGION)),
        of(image(region=REGION, laterality="R")),
        *(
            of(image(region=REGION), **{name: value})
            for name, value in {
                "installation_uid": "2.25.9",
                "device": replace(base.device, software_version="9"),
                "algorithm": replace(base.algorithm, version="9"),
                "number": 9,
                "source_digest": DIGEST[:-1] + "0",
                "series_number": 9,
                "series_description": "nine",
                "predecessor": Predecessor("2.25.9", "2.25.8"),
            }.items()
        ),
    ]
    assert len({render_presentation_state_uid(content) for content in [base, *others]}) == 1 + len(others)


def test_states_of_one_side_share_a_series() -> None:
    def series(outcome: Any, **changes: Any) -> str:
        return render_presentation_state_series_uid(state(outcome, radiograph(PICTURE), **changes))

    assert series(image(region=REGION)) == series(image(2, region=REGION), number=2)
    assert series(image(region=REGION)) != series(image(region=REGION, laterality="R"))


def test_the_uid_of_one_content_is_what_it_was() -> None:
    """If this fails, what is rendered has changed: raise BUILDER_VERSION, and then this number."""
    assert (
        render_presentation_state_uid(state(image(region=REGION), radiograph(PICTURE)))
        == "2.25.332206396046090992859833371423529167871"
    )


def reread(source: Dataset) -> Dataset:
    buffer = BytesIO()
    source.save_as(buffer, enforce_file_format=True)
    return pydicom.dcmread(BytesIO(buffer.getvalue()))
