"""Look for a file that crashes, stalls or swells the reader of pixels, or of which it says more than a coded reason.

`python -m tests.fuzz.fuzz_pixels SECONDS [FOLDER]` writes radiographs of every transfer syntax as seeds and changes
them with libFuzzer (atheris) for so long. What it finds lies in FOLDER (build/fuzz), and is tried again by naming the
file in place of SECONDS. The regression test belongs in tests/unit/test_hostile_pixels.py.

The first byte of an input says what the rest is: 0 a DICOM file, 1 and above the frame of an image in the transfer
syntax of that number. Fragments and lengths would else be all that is ever tried.
"""

from __future__ import annotations

import io
import sys
import warnings
from functools import cache

import atheris

from tests.fuzz.campaign import Limits, run

with atheris.instrument_imports(include=["dicom_node", "pydicom", "worker.analyse"]):
    import pydicom
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.uid import UID

    from dicom_node.objects.encode import COMPRESSED, NATIVE
    from dicom_node.pixels import NotAnalysable, model_input
    from tests.phantom import limb
    from tests.radiographs import Border, Colour, radiograph
    from worker.analyse import CannotAnalyse, open_dataset

SIZE = (32, 32)
LIMITS = Limits(
    longest_input=16_384,
    seconds_an_input=30,
    # Six times the largest image (64 million pixels of 16 bits), and a gigabyte for interpreter, libraries and corpus.
    megabytes=2048,
)


def try_input(content: bytes) -> None:
    """Read one input. What is raised, or ends the process, is a finding."""
    if not content or content[0] > len(COMPRESSED):
        return
    try:
        dataset = open_dataset(io.BytesIO(content[1:])) if content[0] == 0 else _image(content[0] - 1, content[1:])
        model_input(dataset, SIZE)
    except (CannotAnalyse, NotAnalysable) as error:
        refused = error
    else:
        return
    if refused.args != (refused.reason.value,) or refused.__cause__ is not None:
        raise AssertionError("a refusal says more than its reason")
    if refused.__context__ is not None and not refused.__suppress_context__:
        raise AssertionError("a refusal hangs on the error that it stands for")


def _image(number: int, frame: bytes) -> pydicom.FileDataset:
    dataset = pydicom.dcmread(io.BytesIO(_file(COMPRESSED[number])))
    # A frame of odd length is that of a colour image, so that both are tried.
    if len(frame) % 2:
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
        dataset.PhotometricInterpretation = "RGB"
    dataset["PixelData"].value = encapsulate([frame + b"\0" * (len(frame) % 2)]) if len(frame) > 1 else b""
    return dataset


@cache
def _file(syntax: UID, colour: Colour | None = None, *, signed: bool = False, rich: bool = False) -> bytes:
    more = {"voi_lut": True, "modality_lut": True, "border": Border(0.1), "padding": 0, "overlay": True} if rich else {}
    made = radiograph(limb(30, 26), transfer_syntax=syntax, colour=colour, signed=signed, **more)  # type: ignore[arg-type]
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _seeds() -> list[bytes]:
    seeds = [b"\0" + _file(syntax, colour) for syntax in (*NATIVE, *COMPRESSED) for colour in (None, "RGB")]
    seeds += [b"\0" + _file(syntax, rich=True) for syntax in NATIVE]
    seeds.append(b"\0" + _file(NATIVE[0], "PALETTE"))
    for number, syntax in enumerate(COMPRESSED, 1):
        for colour in (None, "RGB"):
            pixels = pydicom.dcmread(io.BytesIO(_file(syntax, colour))).PixelData
            frame = get_frame(pixels, 0, number_of_frames=1).rstrip(b"\0")
            odd = colour is not None
            seeds.append(bytes([number]) + frame + b"\0" * (len(frame) % 2 != odd))
    return seeds


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1] == "--":
        atheris.Setup([sys.argv[0], *sys.argv[2:]], try_input)
        atheris.Fuzz()
    else:
        sys.exit(run(__spec__.name, _seeds(), LIMITS))
