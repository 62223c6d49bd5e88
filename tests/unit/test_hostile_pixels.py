"""Files made to break a reader: whatever they claim, there is an input or a coded reason, soon and in little memory.

`make fuzz` looks for more of them; what it finds is written down here. The properties draw the same examples every
time, because the decoders are native code: a crash in one would end the whole test run.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.tag import Tag
from pydicom.uid import HTJ2K as HTJ2KLossy
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.image.codestream import MAX_CODE_BLOCKS, MAX_MARKERS, Unreadable, read_claim
from dicom_node.inflate import check_inflated_size
from dicom_node.objects.encode import COMPRESSED, NATIVE
from dicom_node.pixels import MAX_PIXELS, NotAnalysable, model_input
from models.reasons import Reason
from tests.phantom import limb
from tests.radiographs import Border, radiograph
from worker.analyse import CannotAnalyse, open_dataset

SIZE = (64, 64)
ROWS, COLUMNS = 60, 52
PLANTED = "PLANTED^NAME"
SYNTAXES = (*NATIVE, *COMPRESSED)
CODESTREAMS = tuple(syntax for syntax in COMPRESSED if syntax != RLELossless)

# A reader is not to be stopped by pydicom's remarks on what it reads.
pytestmark = pytest.mark.filterwarnings("ignore")
hostile = partial(
    settings, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@cache
def file_of(syntax: UID, colour: str | None = None) -> bytes:
    """A good radiograph with everything that a header may say of its pixels."""
    rich = {} if colour else {"voi_lut": True, "overlay": True, "border": Border(0.1), "padding": 0}
    made = radiograph(limb(ROWS, COLUMNS), transfer_syntax=syntax, colour=colour, patient_name=PLANTED, noise=2, **rich)
    return saved(made)


def dataset_of(syntax: UID, colour: str | None = None) -> FileDataset:
    return pydicom.dcmread(io.BytesIO(file_of(syntax, colour)))


def frame_of(syntax: UID, colour: str | None = None) -> bytes:
    return get_frame(dataset_of(syntax, colour).PixelData, 0, number_of_frames=1)


def with_frame(syntax: UID, frame: bytes, colour: str | None = None, **attributes: Any) -> FileDataset:
    dataset = dataset_of(syntax, colour)
    dataset["PixelData"].value = encapsulate([frame + b"\0" * (len(frame) % 2)])
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def saved(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def outcome_of_file(content: bytes) -> Reason | None:
    """The reason why a file cannot be read, None for an input of the model; anything else is a failure."""
    try:
        dataset = open_dataset(io.BytesIO(content))
    except CannotAnalyse as error:
        refused = error
    else:
        return outcome(dataset)
    assert refused.args == (refused.reason.value,)
    assert refused.__cause__ is None
    assert refused.__context__ is None or refused.__suppress_context__
    return refused.reason


def outcome(dataset: Dataset) -> Reason | None:
    try:
        read = model_input(dataset, SIZE)
    except NotAnalysable as error:
        refused = error
    else:
        assert (read.pixels.shape, read.pixels.dtype) == (SIZE, np.uint8)
        return None
    assert refused.args == (refused.reason.value,)
    assert refused.__cause__ is None
    assert refused.__context__ is None
    return refused.reason


# --- any bytes --------------------------------------------------------------------------------------------------------

where = st.floats(0, 1, exclude_max=True)
some = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.sampled_from([b"\0\0", b"\xff\xff", b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xd9"]),
)
change = st.tuples(st.sampled_from(["overwrite", "insert", "delete", "copy"]), where, where, some)


def changed(content: bytes, changes: list[tuple[str, float, float, bytes]], first: int = 0) -> bytes:
    """`content`, changed from byte `first` on."""
    result = bytearray(content)
    for kind, here, there, new in changes:
        at = first + int(here * (len(result) - first))
        other = first + int(there * (len(result) - first))
        if kind == "overwrite":
            result[at : at + len(new)] = new
        elif kind == "insert":
            result[at:at] = new
        elif kind == "delete":
            del result[at : at + 2 * len(new)]
        else:
            result[at:at] = result[other : other + 4 * len(new)]
    return bytes(result)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
def test_the_file_that_all_of_this_begins_with_is_read(syntax: UID) -> None:
    assert outcome_of_file(file_of(syntax)) is None


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
@hostile(max_examples=50)
@given(changes=st.lists(change, min_size=1, max_size=6))
def test_a_file_with_any_bytes_changed_gives_an_input_or_a_reason(syntax: UID, changes: list[Any]) -> None:
    outcome_of_file(changed(file_of(syntax), changes, first=128))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
@hostile(max_examples=15)
@given(kept=where)
def test_a_file_that_is_cut_off_anywhere_gives_an_input_or_a_reason(syntax: UID, kept: float) -> None:
    content = file_of(syntax)
    outcome_of_file(content[: int(kept * len(content))])


@pytest.mark.parametrize("syntax", CODESTREAMS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("head", [True, False], ids=["in its first bytes", "anywhere"])
@hostile(max_examples=60)
@given(changes=st.lists(change, min_size=1, max_size=4))
def test_a_codestream_with_any_bytes_changed_gives_an_input_or_a_reason(
    syntax: UID, head: bool, changes: list[Any]
) -> None:
    frame = frame_of(syntax)
    cut = 200 if head else len(frame) - 2
    outcome(with_frame(syntax, changed(frame[:cut], changes, first=2) + frame[cut:]))


@hostile(max_examples=200)
@given(changes=st.lists(change, min_size=1, max_size=4), colour=st.sampled_from([None, "RGB"]))
def test_run_lengths_with_any_bytes_changed_give_an_input_or_a_reason(changes: list[Any], colour: str | None) -> None:
    outcome(with_frame(RLELossless, changed(frame_of(RLELossless, colour), changes), colour))


@hostile(max_examples=100)
@given(content=st.binary(max_size=400))
def test_noise_after_the_prefix_gives_a_reason(content: bytes) -> None:
    assert outcome_of_file(b"\0" * 128 + b"DICM" + content) is not None


# --- any values -------------------------------------------------------------------------------------------------------

PIXEL_MODULE = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
]
PRESENTATION = [
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RescaleSlope",
    "RescaleIntercept",
    "PresentationLUTShape",
    "ShutterShape",
    "ShutterLeftVerticalEdge",
    "ShutterRightVerticalEdge",
    "ShutterUpperHorizontalEdge",
    "ShutterLowerHorizontalEdge",
    "CenterOfCircularShutter",
    "RadiusOfCircularShutter",
    "VerticesOfThePolygonalShutter",
    "CollimatorShape",
    "VerticesOfThePolygonalCollimator",
    "CenterOfCircularCollimator",
    "RadiusOfCircularCollimator",
]
PALETTE = [
    f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
]
SHAPES = [b"RECTANGULAR", b"CIRCULAR", b"POLYGONAL", b"CIRCULAR\\POLYGONAL\\CIRCULAR "]

number = st.one_of(
    st.integers(-(2**40), 2**40).map(str),
    st.sampled_from(["0", "1", "-1", "1e308", "-1e308", "1e-320", "nan", "inf", "-inf", "2147483647", "", " ", "12x"]),
    st.floats().map(lambda value: f"{value:.8g}"),
)
text = st.lists(number, max_size=8).map(lambda values: "\\".join(values).encode())
words = st.lists(st.integers(0, 0xFFFF), max_size=8).map(lambda values: struct.pack(f"<{len(values)}H", *values))
raw = st.one_of(text, words, st.sampled_from(SHAPES), st.binary(max_size=20))


def element(keyword: str, value: bytes, vr: str | None = None) -> RawDataElement:
    """As a file would have it, so that pydicom converts it when it is asked for."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    own = dictionary_VR(tag).split(" or ")[0]
    return RawDataElement(tag, vr or own, len(value), value, 0, False, True)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless], ids=lambda uid: uid.keyword)
@hostile(max_examples=250)
@given(
    values=st.dictionaries(st.sampled_from([*PIXEL_MODULE, *PRESENTATION]), raw, min_size=1, max_size=5),
    vr=st.sampled_from([None, None, None, "US", "SS", "DS", "IS", "LO", "UN", "SQ", "OW", "FD", "AT"]),
)
def test_any_values_of_what_describes_the_pixels_give_an_input_or_a_reason(
    syntax: UID, values: dict[str, bytes], vr: str | None
) -> None:
    dataset = dataset_of(syntax)
    del dataset.VOILUTSequence
    for keyword, value in values.items():
        dataset[keyword] = element(keyword, value, vr)
    outcome(dataset)


@hostile(max_examples=250)
@given(
    kind=st.sampled_from(["ModalityLUTSequence", "VOILUTSequence"]),
    descriptor=raw,
    data=st.one_of(st.binary(max_size=600), words),
    vr=st.sampled_from(["US", "SS", "OW", "UN", "LO"]),
)
def test_any_table_gives_an_input_or_a_reason(kind: str, descriptor: bytes, data: bytes, vr: str) -> None:
    dataset, item = dataset_of(ExplicitVRLittleEndian), Dataset()
    item["LUTDescriptor"] = element("LUTDescriptor", descriptor, "US")
    item["LUTData"] = element("LUTData", data, vr)
    setattr(dataset, kind, [item])
    outcome(dataset)


@hostile(max_examples=150)
@given(values=st.dictionaries(st.sampled_from(PALETTE), raw, min_size=1, max_size=6))
def test_any_palette_gives_an_input_or_a_reason(values: dict[str, bytes]) -> None:
    dataset = dataset_of(ExplicitVRLittleEndian, "PALETTE")
    for keyword, value in values.items():
        dataset[keyword] = element(keyword, value)
    outcome(dataset)


@hostile(max_examples=100)
@given(
    values=st.dictionaries(st.sampled_from([0x10, 0x11, 0x15, 0x40, 0x50, 0x100, 0x102, 0x3000]), raw, min_size=1),
    group=st.sampled_from([0x6000, 0x6002, 0x60FE]),
)
def test_any_overlay_changes_nothing(values: dict[int, bytes], group: int) -> None:
    dataset = dataset_of(ExplicitVRLittleEndian)
    for at, value in values.items():
        dataset[Tag(group, at)] = RawDataElement(Tag(group, at), "UN", len(value), value, 0, False, True)
    plain = model_input(dataset_of(ExplicitVRLittleEndian), SIZE)
    assert np.array_equal(model_input(dataset, SIZE).pixels, plain.pixels)


@pytest.mark.parametrize("frames", [b"", b" ", b"0", b"-3", b"1.5", b"x", b"1\\2", b"99999999999999999999", b"1e9"])
def test_a_number_of_frames_that_is_none_gives_an_input_or_a_reason(frames: bytes) -> None:
    dataset = dataset_of(ExplicitVRLittleEndian)
    dataset["NumberOfFrames"] = element("NumberOfFrames", frames)
    assert outcome(dataset) in (None, Reason.MULTI_FRAME, Reason.UNSUPPORTED_PIXELS)


@pytest.mark.parametrize("descriptor", [(0, 0, 16), (65535, 65535, 16), (3, 0, 0), (3, 0, 255), (0, 0, 0), (1,)])
def test_a_table_that_claims_more_than_it_has_is_unsupported(descriptor: tuple[int, ...]) -> None:
    dataset, item = dataset_of(ExplicitVRLittleEndian), Dataset()
    item["LUTDescriptor"] = element("LUTDescriptor", struct.pack(f"<{len(descriptor)}H", *descriptor))
    item["LUTData"] = element("LUTData", b"\0\1\0\2", "OW")
    dataset.VOILUTSequence = [item]
    assert outcome(dataset) is Reason.UNSUPPORTED_PIXELS


# --- sizes that lie ---------------------------------------------------------------------------------------------------


def test_a_codestream_of_4e12_pixels_is_refused_in_a_moment() -> None:
    """pydicom's own: 1024 rows of 4,278,181,344 columns, for the tag of a delimiter lies in the codestream's size."""
    path = Path(str(get_testdata_file("JPEG2000-embedded-sequence-delimiter.dcm")))
    assert outcome_of_file(path.read_bytes()) in (Reason.SIZE_MISMATCH, Reason.UNDECODABLE)


def start_of_frame(jpeg: bytes) -> int:
    return next(
        at for at in range(len(jpeg)) if jpeg[at : at + 2] in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7")
    )


def resized(frame: bytes, rows: int, columns: int) -> bytes:
    """The same codestream, its first markers claiming another size."""
    changed = bytearray(frame)
    if frame.startswith(b"\xff\x4f"):
        changed[8:16] = struct.pack(">II", columns, rows)
        changed[24:32] = struct.pack(">II", columns, rows)
        return bytes(changed)
    start = start_of_frame(frame)
    changed[start + 5 : start + 9] = struct.pack(">HH", min(rows, 65535), min(columns, 65535))
    return bytes(changed)


@pytest.mark.parametrize("syntax", CODESTREAMS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize(
    "size", [(ROWS + 1, COLUMNS), (ROWS, COLUMNS - 1), (COLUMNS, ROWS), (2**31, 2**31), (65535, 1)]
)
def test_a_codestream_of_another_size_than_the_header_is_not_decoded(syntax: UID, size: tuple[int, int]) -> None:
    lying = with_frame(syntax, resized(frame_of(syntax), *size))
    # A JPEG 2000 of 2 ** 62 pixels is a bomb whatever the header says.
    assert outcome(lying) in (
        {Reason.SIZE_MISMATCH, Reason.UNDECODABLE} if min(size) > 10**6 else {Reason.SIZE_MISMATCH}
    )


@pytest.mark.parametrize("syntax", CODESTREAMS, ids=lambda uid: uid.keyword)
def test_a_codestream_that_claims_what_the_header_claims_but_holds_less_gives_an_input_or_a_reason(syntax: UID) -> None:
    frame = resized(frame_of(syntax), 1500, 1400)
    outcome(with_frame(syntax, frame, Rows=1500, Columns=1400))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
def test_a_header_of_more_pixels_than_are_read_is_refused_before_anything_is_decoded(
    syntax: UID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.image.decode.get_frame", lambda *_, **__: pytest.fail("decoded"))
    dataset = dataset_of(syntax)
    dataset.Rows, dataset.Columns = 65535, 65535
    assert dataset.Rows * dataset.Columns > MAX_PIXELS
    assert outcome(dataset) is Reason.TOO_LARGE


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize(("rows", "columns"), [(ROWS * 2, COLUMNS), (ROWS - 1, COLUMNS), (1, 1), (8000, 8000)])
def test_a_header_of_another_size_than_the_data_is_a_mismatch(syntax: UID, rows: int, columns: int) -> None:
    dataset = dataset_of(syntax)
    dataset.Rows, dataset.Columns = rows, columns
    assert outcome(dataset) is Reason.SIZE_MISMATCH


def test_a_deflated_file_that_unpacks_without_end_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.analyse.check_inflated_size", partial(check_inflated_size, limit=1 << 24))
    monkeypatch.setattr("worker.analyse.pydicom.dcmread", lambda *_: pytest.fail("unpacked"))
    content = file_of(DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(content[140:144], "little")
    packing = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = packing.compress(bytes(1 << 26)) + packing.flush()
    assert len(bomb) < 100_000
    assert outcome_of_file(content[:start] + bomb) is Reason.TOO_LARGE


# --- codestreams that no encoder writes -------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless])
def test_a_wrong_number_of_components_is_unsupported(syntax: UID) -> None:
    assert outcome(with_frame(syntax, frame_of(syntax, "RGB"))) is Reason.UNSUPPORTED_PIXELS
    assert outcome(with_frame(syntax, frame_of(syntax), "RGB")) is Reason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize(
    "syntax", [JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless]
)
def test_more_bits_than_are_allocated_are_unsupported(syntax: UID) -> None:
    dataset = with_frame(syntax, frame_of(syntax), BitsAllocated=8, BitsStored=8, HighBit=7)
    assert outcome(dataset) is Reason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize("syntax", [JPEG2000, HTJ2KLossy])
def test_components_of_which_some_are_smaller_are_undecodable(syntax: UID) -> None:
    frame = bytearray(frame_of(syntax, "RGB"))
    frame[47:49] = b"\2\2"
    assert outcome(with_frame(syntax, bytes(frame), "RGB")) is Reason.UNDECODABLE


def test_a_progressive_jpeg_is_undecodable() -> None:
    buffer = io.BytesIO()
    Image.fromarray(limb(ROWS, COLUMNS)).save(buffer, "JPEG", progressive=True)
    assert outcome(with_frame(JPEGBaseline8Bit, buffer.getvalue())) is Reason.UNDECODABLE


@pytest.mark.parametrize("length", [0, 1, 2, 3, 0x7FFF, 0xFFFF])
@pytest.mark.parametrize(
    "marker", [b"\xff\xdb", b"\xff\xc4", b"\xff\xc0", b"\xff\xda"], ids=["DQT", "DHT", "SOF", "SOS"]
)
def test_a_marker_segment_that_lies_about_its_length_gives_an_input_or_a_reason(marker: bytes, length: int) -> None:
    frame = bytearray(frame_of(JPEGBaseline8Bit))
    at = frame.index(marker)
    frame[at + 2 : at + 4] = length.to_bytes(2, "big")
    outcome(with_frame(JPEGBaseline8Bit, bytes(frame)))


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1], ids=lambda uid: uid.keyword)
def test_a_jpeg_of_more_scans_than_components_is_undecodable(syntax: UID, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs libjpeg a pass over the whole image, and ten bytes."""
    frame = frame_of(syntax, "RGB")
    start, scan = start_of_frame(frame), frame.index(b"\xff\xda")
    one_component = b"\xff\xda\0\x08\1" + frame[start + 10 : start + 11] + b"\0" + frame[scan + 11 : scan + 14]
    monkeypatch.setattr("imagecodecs.jpeg8_decode", lambda *_, **__: pytest.fail("decoded"))
    assert outcome(with_frame(syntax, frame[:scan] + 4 * one_component + b"\xff\xd9", "RGB")) is Reason.UNDECODABLE


@pytest.mark.parametrize("fill", [b"\xff", b"\xff\xe0\0\2"], ids=["fill bytes", "empty segments"])
def test_a_jpeg_of_more_markers_than_are_looked_at_is_unreadable(fill: bytes) -> None:
    frame = frame_of(JPEGBaseline8Bit)
    assert read_claim(frame[:2] + 100 * fill + frame[2:]).rows == ROWS
    with pytest.raises(Unreadable):
        read_claim(frame[:2] + MAX_MARKERS * fill + frame[2:])


def jpeg_2000(
    side: int, *, tile: int = 0, block: int = 4, precinct: int | None = None, layers: int = 1, in_tile: bool = False
) -> bytes:
    """A JPEG 2000 codestream without any data; `block` and `precinct` are exponents as COD has them."""
    size = struct.pack(">HHIIIIIIIIH", 41, 0, side, side, 0, 0, tile or side, tile or side, 0, 0, 1) + b"\7\1\1"
    sizes = b"" if precinct is None else bytes([precinct]) * 6
    coding = struct.pack(">BBHBBBBBB", int(bool(sizes)), 0, layers, 0, 5, block, block, 0, 1) + sizes
    coding = b"\xff\x52" + struct.pack(">H", 2 + len(coding)) + coding
    plain = b"\xff\x52\0\x0c" + struct.pack(">BBHBBBBBB", 0, 0, 1, 0, 5, 4, 4, 0, 1)
    steps = b"\xff\x5c" + struct.pack(">HB", 19, 0x40) + b"\x48" * 16
    inner = coding if in_tile else b""
    tile_part = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14 + len(inner), 0, 1) + inner + b"\xff\x93"
    return b"\xff\x4f\xff\x51" + size + (plain if in_tile else coding) + steps + tile_part + b"\xff\xd9"


BOMBS: dict[str, dict[str, Any]] = {
    "tiles": {"side": 2048, "tile": 8},
    "code-blocks": {"side": 8000, "block": 0},
    "code-blocks of a tile-part": {"side": 8000, "block": 0, "in_tile": True},
    "precincts": {"side": 2048, "precinct": 0x11},
    "packets": {"side": 2048, "precinct": 0x66, "layers": 65_535},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_jpeg_2000_of_which_a_few_bytes_cost_gigabytes_is_undecodable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagecodecs.jpeg2k_decode", lambda *_, **__: pytest.fail("decoded"))
    side = BOMBS[name]["side"]
    dataset = with_frame(
        JPEG2000Lossless, jpeg_2000(**BOMBS[name]), Rows=side, Columns=side, BitsAllocated=8, BitsStored=8, HighBit=7
    )
    assert outcome(dataset) is Reason.UNDECODABLE


@pytest.mark.parametrize("precinct", [None, 0xFF, 0x88, 0x66, 0x55])
@pytest.mark.parametrize("block", [2, 3, 4])
def test_the_largest_radiographs_are_far_from_a_bomb(precinct: int | None, block: int) -> None:
    assert read_claim(jpeg_2000(5000, block=block, precinct=precinct, layers=20)).rows == 5000
    assert MAX_CODE_BLOCKS < 3 * (5000 / 16) ** 2  # though not with the smallest of blocks in every component


@pytest.mark.parametrize("syntax", CODESTREAMS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("padding", [b"\0\0", b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_padding_behind_a_codestream_is_no_part_of_it(syntax: UID, padding: bytes) -> None:
    assert outcome(with_frame(syntax, frame_of(syntax) + padding)) is None


def htj2k(at: int, new: bytes, syntax: UID = HTJ2KLossy) -> FileDataset:
    frame = bytearray(frame_of(syntax))
    frame[at : at + len(new)] = new
    return with_frame(syntax, bytes(frame))


@pytest.mark.parametrize("offset", [36, 32], ids=["above", "to the left"])
def test_an_htj2k_image_outside_of_its_first_tile_is_undecodable(offset: int) -> None:
    """There are decoders that do not come to an end then."""
    assert outcome(htj2k(offset, (4).to_bytes(4, "big"))) is Reason.UNDECODABLE


def test_a_jp2_file_is_decoded_from_where_its_claim_was_read() -> None:
    """A decoder that finds its own way through the boxes would come to a codestream that nobody looked at."""
    true, other = frame_of(JPEG2000Lossless), np.zeros((3000, 3000), np.uint8)
    boxes = bytes(imagecodecs.jpeg2k_encode(other, codecformat="JP2", reversible=True))
    start = boxes.index(b"jp2c") - 4
    hiding = struct.pack(">I4s", 8 + len(true), b"free") + true
    assert outcome(with_frame(JPEG2000Lossless, boxes[:start] + hiding + boxes[start:])) is None


# --- runs and fragments -----------------------------------------------------------------------------------------------


def run_lengths(*segments: bytes, offsets: tuple[int, ...] = (), count: int | None = None) -> FileDataset:
    """Run lengths for an image of 16 bits allocated; offsets as they are unless given."""
    starts = [64]
    for segment in segments[:-1]:
        starts.append(starts[-1] + len(segment))
    header = [len(segments) if count is None else count, *(offsets or starts)]
    return with_frame(RLELossless, struct.pack("<16I", *header, *[0] * (16 - len(header))) + b"".join(segments))


def plane(pixels: int) -> bytes:
    """A segment that expands to so many bytes."""
    whole, rest = divmod(pixels, 128)
    return b"\x81\x07" * whole + (bytes([257 - rest, 7]) if rest > 1 else b"\0\7" * rest)


EVERY = ROWS * COLUMNS


@pytest.mark.parametrize("pixels", [0, 1, EVERY - 1, EVERY + 2, 2 * EVERY, 64 * EVERY])
@pytest.mark.parametrize("which", [0, 1])
def test_a_segment_that_does_not_fill_its_plane_is_refused(pixels: int, which: int) -> None:
    segments = [plane(EVERY), plane(EVERY)]
    segments[which] = plane(pixels) or b"\x80"
    assert outcome(run_lengths(*segments)) is Reason.SIZE_MISMATCH


@pytest.mark.parametrize("offsets", [(64, 64), (64, 60), (200, 64), (0, 64), (64, 2**32 - 1), (65, 128), (64, 10**6)])
def test_segments_that_overlap_go_back_or_lie_outside_are_undecodable(offsets: tuple[int, int]) -> None:
    assert outcome(run_lengths(plane(EVERY), plane(EVERY), offsets=offsets)) is Reason.UNDECODABLE


@pytest.mark.parametrize("count", [0, 1, 3, 15, 16, 2**32 - 1])
def test_a_wrong_number_of_segments_is_undecodable(count: int) -> None:
    assert outcome(run_lengths(plane(EVERY), plane(EVERY), count=count)) is Reason.UNDECODABLE


@pytest.mark.parametrize("length", [2, 62, 64])
def test_run_lengths_without_a_whole_header_are_undecodable(length: int) -> None:
    frame = frame_of(RLELossless)[:length]
    assert outcome(with_frame(RLELossless, frame)) is Reason.UNDECODABLE


def item(content: bytes, length: int | None = None) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content) if length is None else length) + content


def pairs(frame: bytes) -> list[bytes]:
    return [frame[at : at + 2] for at in range(0, len(frame), 2)]


END = b"\xfe\xff\xdd\xe0\0\0\0\0"
FRAGMENTS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: END,
    "an offset table alone": lambda _: item(b"") + END,
    "an empty fragment": lambda _: item(b"") + item(b"") + END,
    "100,000 empty fragments": lambda frame: item(b"") + item(b"") * 100_000 + item(frame) + END,
    "empty fragments around": lambda frame: item(b"") + item(b"") + item(frame) + item(b"") + END,
    "a fragment for each two bytes": lambda frame: item(b"") + b"".join(map(item, pairs(frame))) + END,
    "an offset beyond the end": lambda frame: item(struct.pack("<I", 10**6)) + item(frame) + END,
    "offsets that go back": lambda frame: item(struct.pack("<3I", 0, 10**6, 4)) + item(frame) + END,
    "an offset table of odd length": lambda frame: item(b"\0\0\0") + item(frame) + END,
    "a fragment longer than the data": lambda frame: item(b"") + item(frame, 2**31) + END,
    "a fragment of undefined length": lambda frame: item(b"") + item(frame, 2**32 - 1) + END,
    "a fragment of the wrong tag": lambda frame: item(b"") + b"\xfe\xff\x0d\xe0" + item(frame)[4:] + END,
    "no end": lambda frame: item(b"") + item(frame),
    "no items": lambda frame: frame,
}  # fmt: skip
WHOLE = ("100,000 empty fragments", "empty fragments around", "a fragment for each two bytes")


@pytest.mark.parametrize("name", FRAGMENTS)
@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
def test_fragments_and_offset_tables_that_lie_give_an_input_or_a_reason(syntax: UID, name: str) -> None:
    frame = frame_of(syntax)
    dataset = dataset_of(syntax)
    dataset["PixelData"].value = FRAGMENTS[name](frame + b"\0" * (len(frame) % 2))
    assert outcome(dataset) in ({None} if name in WHOLE else {None, Reason.UNDECODABLE, Reason.SIZE_MISMATCH})


@pytest.mark.parametrize("table", [b"", b"\0" * 7, struct.pack("<Q", 2**63), struct.pack("<2Q", 8, 2**40)])
def test_an_extended_offset_table_that_lies_gives_an_input_or_a_reason(table: bytes) -> None:
    dataset = dataset_of(JPEGLSLossless)
    dataset.ExtendedOffsetTable = dataset.ExtendedOffsetTableLengths = table
    assert outcome(dataset) in (None, Reason.UNDECODABLE)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda uid: uid.keyword)
def test_pixels_under_the_wrong_kind_of_transfer_syntax_give_a_reason(syntax: UID) -> None:
    for other in COMPRESSED:
        swapped = dataset_of(other)
        swapped.file_meta.TransferSyntaxUID = syntax
        assert outcome(swapped) is Reason.SIZE_MISMATCH
        swapped = dataset_of(syntax)
        swapped.file_meta.TransferSyntaxUID = other
        assert outcome(swapped) is Reason.UNDECODABLE
