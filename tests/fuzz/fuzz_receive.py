"""Look for bytes on the wire, or a file, that the receiving side answers with anything but what it knows.

`python -m tests.fuzz.fuzz_receive SECONDS [FOLDER]`, as `tests.fuzz.fuzz_pixels`. The regression test belongs in
tests/unit/test_messages.py, test_network.py or test_headers.py.

The first byte of an input says what the rest is: 0 a DICOM file whose header is read, 1 the body of an association
request, 2 PDUs of an association, one after the other.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings

import atheris

from tests.fuzz.campaign import Limits, run

with atheris.instrument_imports(include=["dicom_node", "pydicom", "pynetdicom"]):
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
    from pynetdicom.presentation import build_context
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    from dicom_node.headers import HeaderError, read_header_file
    from dicom_node.network.dimse import Command, response_to
    from dicom_node.network.messages import LARGEST_COMMAND, MessageReader
    from dicom_node.network.requests import Negotiation, Violation, check_request

# Not instrumented: that of the dictionaries which they bring along would take a minute.
from models import logs
from tests.dicom_bytes import ABORT, ECHO, RELEASE, command, context, data, fragment, pdu, request, user_information
from tests.phantom import limb
from tests.radiographs import radiograph

LIMITS = Limits(longest_input=65_536, seconds_an_input=10, megabytes=1024)
_FILE, _REQUEST, _MESSAGES = 0, 1, 2
_STORAGE = str(ComputedRadiographyImageStorage)
_SUPPORTED = [
    build_context(Verification, ImplicitVRLittleEndian),
    build_context(ComputedRadiographyImageStorage, ExplicitVRLittleEndian),
]
_negotiation = Negotiation(_SUPPORTED, largest_pdu=LIMITS.longest_input)


def try_input(content: bytes) -> None:
    """Receive one input. What is raised, or ends the process, is a finding."""
    kind, rest = content[:1], content[1:]
    if kind == bytes([_FILE]):
        _read_header(rest)
    elif kind == bytes([_REQUEST]):
        _ask(rest)
    elif kind == bytes([_MESSAGES]):
        _converse(rest)


def _read_header(content: bytes) -> None:
    try:
        header = read_header_file(io.BytesIO(content))
    except HeaderError as refused:
        if refused.__context__ is not None and not refused.__suppress_context__:
            raise AssertionError("a refusal hangs on the error that it stands for") from None
    else:
        type(header).from_json(header.to_json())


def _ask(body: bytes) -> None:
    try:
        check_request(body)
        _negotiation.accept(pdu(0x01, body))
    except Violation:
        return


def _converse(content: bytes) -> None:
    """As an association does, without a socket."""
    reader = MessageReader((1, 3), LIMITS.longest_input, on_command=_begin, on_message=_answer)
    with contextlib.suppress(Violation):
        reader.feed(memoryview(content))
    if reader.kept > LARGEST_COMMAND + 6:
        raise AssertionError("more is kept than the bounds allow")


def _begin(_context: int, asked: Command) -> io.BytesIO | None:
    return io.BytesIO() if asked.has_data_set else None


def _answer(_context: int, asked: Command, _data_set: object) -> None:
    response_to(asked, 0x0110, "cannot")


def _seeds() -> list[bytes]:
    made = radiograph(limb(30, 26))
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    store = command(0x0001, uid=_STORAGE, with_data_set=True)
    contexts = context(1) + context(3, _STORAGE, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
    conversations = [
        ECHO + RELEASE,
        data(fragment(3, store, command=True, last=True), fragment(3, b"data", command=False, last=True)) + ABORT,
        data(fragment(3, store[:40], command=True, last=False))
        + data(fragment(3, store[40:], command=True, last=True)),
        data(fragment(1, command(0x0130, with_data_set=True), command=True, last=True)),
    ]
    return [
        bytes([_FILE]) + buffer.getvalue(),
        bytes([_REQUEST]) + request("MODALITY", "OSTEON", contexts)[6:],
        bytes([_REQUEST]) + request("MODALITY", "OSTEON", contexts, user=user_information(ROLE + IDENTITY))[6:],
        *(bytes([_MESSAGES]) + conversation for conversation in conversations),
    ]


ROLE = b"\x54\0\0\x0b\0\x071.2.840\1\1"
IDENTITY = b"\x58\0\0\x0a\1\0\0\x04user\0\0"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logs.configure("fuzz", level="error")
    if sys.argv[1] == "--":
        atheris.Setup([sys.argv[0], *sys.argv[2:]], try_input)
        atheris.Fuzz()
    else:
        sys.exit(run(__spec__.name, _seeds(), LIMITS))
