"""What a viewer shows: modality LUT, VOI LUT, window, inversion and padding, each value once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from dicom_node.image import grey
from dicom_node.image.decode import decode
from dicom_node.image.refusal import NotAnalysable
from models.reasons import Reason
from tests.phantom import dataset

LINE = np.array([[0, 100, 600, 1100, 2000]], np.uint16)


def shown(stored: NDArray[Any], **attributes: Any) -> NDArray[np.float64]:
    """The grey of each pixel, 0 to 1."""
    source = dataset(stored, **attributes)
    return grey.levels(source, *decode(source)) / grey.WHITE


def lut(first: int, bits: int, entries: list[int]) -> Dataset:
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65_536, first, bits])
    table.add_new("LUTData", "US", entries)
    return table


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1)) + 0.5
        ("LINEAR", [0, 0, 500.5 / 999 - 0.5 / 999, 1, 1]),
        (None, [0, 0, 500.5 / 999 - 0.5 / 999, 1, 1]),
        ("LINEAR_EXACT", [0, 0, 0.5, 1, 1]),
        ("SIGMOID", [1 / (1 + np.exp(-4 * (x - 600) / 1000)) for x in LINE[0].tolist()]),
    ],
)
def test_the_first_window_is_applied_as_the_standard_says(function: str | None, expected: list[float]) -> None:
    attributes = {} if function is None else {"VOILUTFunction": function}
    found = shown(LINE, WindowCenter=[600, 5], WindowWidth=[1000, 5], **attributes)
    assert np.allclose(found[0], expected, atol=0.6 / 999)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [0, -3])
def test_a_window_that_cannot_be_counts_as_none(function: str, width: int) -> None:
    found = shown(LINE, WindowCenter=5, WindowWidth=width, VOILUTFunction=function)
    assert np.array_equal(found, shown(LINE))


def test_a_function_that_nobody_knows_is_unsupported() -> None:
    with pytest.raises(NotAnalysable) as refused:
        shown(LINE, WindowCenter=5, WindowWidth=10, VOILUTFunction="CUBIC")
    assert refused.value.reason is Reason.UNSUPPORTED_PIXELS


def test_a_window_of_one_is_a_threshold() -> None:
    assert shown(LINE, WindowCenter=600.5, WindowWidth=1)[0].tolist() == [0, 0, 0, 1, 1]


def test_without_a_window_black_and_white_are_the_ends_of_what_can_be_stored() -> None:
    found = shown(np.array([[0, 1023]], np.uint16), BitsStored=10)
    assert found[0].tolist() == [0, 1]
    assert shown(np.array([[-512, 511]], np.int16), BitsStored=10)[0].tolist() == [0, 1]


def test_rescale_comes_before_the_window() -> None:
    rescaled = shown(LINE, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=900, WindowWidth=801)
    plain = shown(LINE, WindowCenter=500.25, WindowWidth=401)
    assert np.allclose(rescaled, plain, atol=1e-3)


def test_a_negative_slope_turns_the_grey_over() -> None:
    assert np.allclose(shown(LINE, RescaleSlope=-1), 1 - shown(LINE), atol=1e-4)


@pytest.mark.parametrize("slope", [0, 1e305])
def test_a_slope_that_leaves_no_values_is_unsupported(slope: float) -> None:
    with pytest.raises(NotAnalysable) as refused:
        shown(LINE, RescaleSlope=slope, RescaleIntercept=0)
    assert refused.value.reason is Reason.UNSUPPORTED_PIXELS


def test_the_modality_table_comes_before_the_window() -> None:
    table = lut(0, 16, [4000 - 2 * value for value in range(2001)])
    found = shown(LINE, ModalityLUTSequence=[table], WindowCenter=2000, WindowWidth=4001)
    assert np.allclose(found[0], [1, 0.95, 0.7, 0.45, 0], atol=1e-3)


def test_the_voi_table_comes_before_the_window_and_ends_at_its_own_bits() -> None:
    table = lut(100, 10, list(range(1023, -1, -1)))
    found = shown(LINE, VOILUTSequence=[table, lut(0, 8, [0, 1])], WindowCenter=1, WindowWidth=2)
    assert np.allclose(found[0], [1, 1, 523 / 1023, 23 / 1023, 0], atol=1e-4)


def test_a_table_may_begin_below_zero() -> None:
    table = lut(-512, 10, list(range(1024)))
    found = shown(np.array([[-512, 0, 511]], np.int16), BitsStored=10, VOILUTSequence=[table])
    assert np.allclose(found[0], [0, 512 / 1023, 1], atol=1e-4)


def test_a_table_whose_sign_was_lost_in_implicit_vr_is_read_by_what_goes_in() -> None:
    table = lut(65_536 - 500, 10, list(range(1024)))
    found = shown(LINE, RescaleIntercept=-500, RescaleSlope=1, VOILUTSequence=[table])
    assert np.allclose(found[0], [0, 100 / 1023, 600 / 1023, 1, 1], atol=1e-3)


def test_a_table_of_65536_entries_says_0() -> None:
    table = lut(0, 16, list(range(65_536)))
    assert np.allclose(shown(LINE, VOILUTSequence=[table]), LINE / 65_535, atol=1e-4)


def test_a_table_shorter_than_it_says_is_unsupported() -> None:
    table = lut(0, 8, [1, 2, 3])
    table.LUTDescriptor = [300, 0, 8]
    with pytest.raises(NotAnalysable):
        shown(LINE, VOILUTSequence=[table])


def test_packed_entries_of_8_bits_are_read() -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 8])
    table.add_new("LUTData", "OW", bytes(range(256)))
    found = shown(np.array([[0, 128, 255]], np.uint8), VOILUTSequence=[table])
    assert np.allclose(found[0], [0, 128 / 255, 1], atol=1e-4)


@pytest.mark.parametrize(
    "attributes",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
        {"PresentationLUTShape": "INVERSE"},
    ],
)
def test_a_negative_is_turned_over_exactly_once(attributes: dict[str, str]) -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 2001}
    assert np.allclose(shown(LINE, **window, **attributes), 1 - shown(LINE, **window), atol=1e-4)
    assert np.allclose(shown(LINE, **attributes), 1 - shown(LINE), atol=1e-4)


def test_padding_is_black_even_in_a_negative() -> None:
    attributes = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0, "PixelPaddingRangeLimit": 150}
    found = shown(LINE, **attributes)
    assert found[0, :2].tolist() == [0, 0]
    assert found[0, 2:].min() > 0.9
    source = dataset(LINE, **attributes)
    mask = grey.padding(source, decode(source)[0])
    assert mask is not None
    assert mask[0].tolist() == [True, True, False, False, False]


def test_padding_may_be_negative_and_its_range_turned_round() -> None:
    source = dataset(np.array([[-2000, -1999, 5]], np.int16), PixelRepresentation=1)
    source.add_new("PixelPaddingValue", "SS", -1999)
    source.add_new("PixelPaddingRangeLimit", "SS", -2000)
    mask = grey.padding(source, decode(source)[0])
    assert mask is not None
    assert mask[0].tolist() == [True, True, False]


def test_no_padding_value_is_no_padding() -> None:
    source = dataset(LINE)
    assert grey.padding(source, decode(source)[0]) is None


@pytest.mark.parametrize("depth", [8, 16])
def test_a_palette_is_shown_by_the_luminance_of_its_colours(depth: int) -> None:
    source = dataset(np.array([[0, 1, 2, 200]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    top = (1 << depth) - 1
    for name, entries in (("Red", [0, top, 0]), ("Green", [0, 0, top]), ("Blue", [0, 0, 0])):
        source.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [3, 0, depth])
        data = np.array(entries, np.uint8 if depth == 8 else np.uint16).tobytes()
        source.add_new(f"{name}PaletteColorLookupTableData", "OW", data + b"\0" * (len(data) % 2))
    found = grey.levels(source, *decode(source)) / grey.WHITE
    assert np.allclose(found[0], [0, 0.299, 0.587, 0.587], atol=1e-4)
    chroma = grey.chroma(source, decode(source)[0], step=1)
    assert chroma is not None
    assert chroma[0].tolist() == [0, 1, 1, 1]


def test_colour_is_shown_by_its_luminance() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], np.uint8)
    assert np.allclose(shown(colours)[0], [0.299, 0.587, 0.114, 90 / 255], atol=1e-4)
    assert np.allclose(shown(colours[:, :, [0, 2, 1]], PhotometricInterpretation="YBR_FULL")[0], [1, 0, 0, 90 / 255])


def test_grey_in_colours_has_no_chroma_and_red_has_much() -> None:
    colours = np.array([[[255, 0, 0], [90, 90, 90]]], np.uint8)
    source = dataset(colours)
    found = grey.chroma(source, decode(source)[0], step=1)
    assert found is not None
    assert found[0].tolist() == [1, 0]
    plain = dataset(LINE)
    assert grey.chroma(plain, decode(plain)[0], step=1) is None
