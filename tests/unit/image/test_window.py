"""Windows that a person chooses: the same greys as a viewer shows under that window, whatever the file is like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dicom_node.pixels import NotAnalysable, Window, Windowable, picture_as_stated, picture_for_windows
from tests.radiographs import radiograph

# A ramp over all that 8 bits hold, which every way of storing repeats.
RAMP = np.tile(np.arange(256, dtype=np.uint8), (40, 1))


def _read(**given: Any) -> Windowable:
    source = picture_for_windows(radiograph(RAMP, **given), 1024)
    assert source is not None
    return source


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"monochrome1": True},
        {"signed": True},
        {"rescale": (0.5, -1024.0)},
        {"bits": 16, "allocated": 16},
        {"monochrome1": True, "rescale": (2.0, 10.0), "signed": True},
        {"voi_lut": True},
        {"modality_lut": True},
    ],
    ids=str,
)
def test_under_the_window_of_all_that_it_holds_a_ramp_is_the_ramp(given: dict[str, Any]) -> None:
    source = _read(**given)
    whole = Window((source.low + source.high) / 2, source.high - source.low)
    drawn = source.drawn(whole)
    if given.get("modality_lut") or given.get("voi_lut"):
        # A parabola lies between stored values and greys: black and white stay, and the order.
        assert (drawn[:, 0] == 0).all()
        assert (drawn[:, -1] == 255).all()
        assert (np.diff(drawn[0].astype(int)) >= 0).all()
    else:
        np.testing.assert_allclose(drawn.astype(int), RAMP.astype(int), atol=1)


@pytest.mark.parametrize("monochrome1", [False, True])
def test_a_narrow_window_spreads_the_middle_and_leaves_black_below_and_white_above(monochrome1: bool) -> None:
    source = _read(monochrome1=monochrome1)
    spread = source.high - source.low
    drawn = source.drawn(Window(source.low + spread / 2, spread / 4))[0].astype(int)
    # PS3.3 C.11.2.1.3.2, of greys 0 to 255: black up to 3/8 of the range, white from 5/8 on.
    expected = np.clip((np.arange(256) / 255 - 0.5) * 4 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(drawn, expected, atol=2)
    turned = source.drawn(Window(source.low + spread / 2, spread / 4), inverted=True)[0].astype(int)
    np.testing.assert_allclose(turned, 255 - drawn, atol=1)


def test_the_first_window_is_that_of_the_header_and_without_one_all_that_the_image_holds() -> None:
    assert _read(window=[(2000.0, 900.0), (1.0, 2.0)]).window == Window(2000.0, 900.0)
    bare = _read(window=None)
    assert bare.window == Window((bare.low + bare.high) / 2, bare.high - bare.low)


@pytest.mark.parametrize("monochrome1", [False, True])
def test_padding_is_black_under_every_window_and_no_end_of_what_the_image_holds(monochrome1: bool) -> None:
    padded = np.zeros(RAMP.shape, dtype=np.bool_)
    padded[:10] = True
    plain = _read(monochrome1=monochrome1, bits=12, window=None)
    source = _read(monochrome1=monochrome1, bits=12, window=None, padding=0, padded=padded)
    assert source.high == plain.high
    assert source.low > 0
    for inverted in (False, True):
        assert (source.drawn(Window(source.low, 10.0), inverted=inverted)[:10] == 0).all()


@pytest.mark.parametrize("given", [{"colour": "RGB"}, {"colour": "PALETTE"}])
def test_what_has_colours_has_no_window(given: dict[str, Any]) -> None:
    assert picture_for_windows(radiograph(RAMP, **given), 1024) is None


def test_an_image_of_one_value_has_no_window() -> None:
    assert picture_for_windows(radiograph(np.full((40, 40), 7, dtype=np.uint8)), 1024) is None


def test_a_large_image_is_drawn_at_the_size_that_was_asked_for() -> None:
    source = picture_for_windows(radiograph(np.tile(RAMP, (20, 4))), 256)
    assert source is not None
    assert source.values.shape == (200, 256)


@pytest.mark.parametrize("window", [(1000.0, 500.0), (3000.0, 2000.0)])
@pytest.mark.parametrize("monochrome1", [False, True])
def test_as_its_file_says_an_image_is_drawn_under_the_files_own_window(
    window: tuple[float, float], monochrome1: bool
) -> None:
    dataset = radiograph(
        RAMP, monochrome1=monochrome1, attributes={"WindowCenter": window[0], "WindowWidth": window[1]}
    )
    drawn = picture_as_stated(dataset, 1024)
    source = picture_for_windows(dataset, 1024)
    assert source is not None
    np.testing.assert_allclose(drawn.astype(int), source.drawn(source.window).astype(int), atol=1)


def test_pixels_that_cannot_be_read_are_refused_with_a_reason() -> None:
    with pytest.raises(NotAnalysable):
        picture_for_windows(radiograph(RAMP, attributes={"PixelData": b"\0"}), 1024)
