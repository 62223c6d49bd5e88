"""PDUs and command sets, taken apart: the same messages in whatever pieces they come, a violation of what is wrong.

The properties draw the same examples every time; `make fuzz` looks for others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_ECHO_RSP, C_STORE_RQ, C_STORE_RSP, N_ACTION_RQ, N_EVENT_REPORT_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE, N_ACTION
from pynetdicom.dsutils import decode

from dicom_node.network.dimse import Command, Field, parse_command, response_to
from dicom_node.network.messages import LARGEST_COMMAND, MOST_FRAGMENTS, End, MessageReader
from dicom_node.network.requests import Violation
from tests.dicom_bytes import ABORT, ECHO, RELEASE, command, data, element, fragment, pdu

STORAGE = "1.2.840.10008.5.1.4.1.1.1"
LARGEST_PDU = 65_536
repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=200)
STORE = command(0x0001, uid=STORAGE, with_data_set=True)
CONVERSATION = (
    ECHO
    + data(fragment(3, STORE[:30], command=True, last=False), fragment(3, STORE[30:], command=True, last=True))
    + data(fragment(3, b"first", command=False, last=False))
    + data(fragment(3, b"", command=False, last=False), fragment(3, b"second", command=False, last=True))
    + data(fragment(3, STORE, command=True, last=True), fragment(3, b"third", command=False, last=True))
    + ECHO
    + RELEASE
)
HEARD = [
    (1, Field.C_ECHO, None),
    (3, Field.C_STORE, b"firstsecond"),
    (3, Field.C_STORE, b"third"),
    (1, Field.C_ECHO, None),
]


class _DataSet:
    def __init__(self) -> None:
        self.content = b""

    def write(self, piece: memoryview) -> None:
        self.content += bytes(piece)


class Listening:
    """Notes what a reader reads."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, Field, bytes | None]] = []
        self.reader = MessageReader((1, 3), LARGEST_PDU, on_command=self._begin, on_message=self._note)

    def feed(self, pieces: Iterable[bytes]) -> End | None:
        """Feed one piece after the other, until the association ends."""
        return next((end for piece in pieces if (end := self.reader.feed(memoryview(piece))) is not None), None)

    def _begin(self, _context: int, asked: Command) -> _DataSet | None:
        return _DataSet() if asked.has_data_set else None

    def _note(self, context: int, asked: Command, sink: Any) -> None:
        self.heard.append((context, asked.field, None if sink is None else sink.content))


@repeatable
@given(st.lists(st.integers(1, len(CONVERSATION)), max_size=30))
@example([*range(1, len(CONVERSATION))])
def test_the_same_messages_are_read_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    ends = sorted({*cuts, len(CONVERSATION)})
    listening = Listening()
    end = listening.feed(CONVERSATION[a:b] for a, b in zip([0, *ends], ends, strict=False))
    assert (end, listening.heard) == (End.RELEASE, HEARD)


@repeatable
@given(st.lists(st.tuples(st.integers(0, len(CONVERSATION)), st.integers(0, 9), st.binary(max_size=9)), min_size=1))
def test_whatever_bytes_come_they_are_messages_or_a_violation_and_little_is_kept(
    changes: list[tuple[int, int, bytes]],
) -> None:
    content = CONVERSATION
    for at, gone, put in changes:
        content = content[:at] + put + content[at + gone :]
    listening = Listening()
    with suppress(Violation):
        listening.feed([content])
    assert listening.reader.kept <= LARGEST_COMMAND + 6


@pytest.mark.parametrize(
    "sent",
    {
        "a context that was not accepted": data(fragment(5, STORE, command=True, last=True)),
        "data first": data(fragment(3, b"data", command=False, last=True)),
        "a command twice": data(fragment(3, STORE, command=True, last=True)) * 2,
        "another context": data(
            fragment(3, STORE, command=True, last=True), fragment(1, b"", command=False, last=True)
        ),
        "two messages in a PDU": data(
            *(fragment(1, command(0x0030), command=True, last=True) for _ in range(2)),
        ),
        "a longer PDU": pdu(0x04, b"", LARGEST_PDU + 1),
        "no data": data(),
        "a value longer than its PDU": data(struct.pack(">LBB", 100, 1, 1)),
        "a value without a header": data(struct.pack(">LBB", 1, 1, 1)),
        "bytes behind the last value": pdu(0x04, fragment(1, b"", command=True, last=False) + b"123"),
        "too many pieces in a PDU": data(*[fragment(1, b"", command=True, last=False)] * (MOST_FRAGMENTS + 1)),
        "too many pieces": data(fragment(1, b"", command=True, last=False)) * (MOST_FRAGMENTS + 1),
        "a command set too long": data(fragment(1, bytes(LARGEST_COMMAND + 1), command=True, last=False)),
        "a request": pdu(0x01, bytes(80)),
        "a long release": pdu(0x05, bytes(5)),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_breaks_the_rules_is_a_violation(sent: tuple[str, bytes]) -> None:
    with pytest.raises(Violation):
        Listening().feed([sent[1]])


def test_a_data_set_may_come_in_any_number_of_pieces_in_one_pdu() -> None:
    most = 2 * MOST_FRAGMENTS
    pieces = [fragment(3, b"ab", command=False, last=number == most) for number in range(1, most + 1)]
    listening = Listening()
    assert listening.feed([data(fragment(3, STORE, command=True, last=True)), data(*pieces), RELEASE]) is End.RELEASE
    assert listening.heard == [(3, Field.C_STORE, b"ab" * len(pieces))]


def test_an_abort_is_heard_in_the_middle_of_a_message_but_not_of_a_pdu() -> None:
    half = data(fragment(3, STORE, command=True, last=True))
    assert Listening().feed([half + ABORT]) is End.ABORT
    data_set = data(fragment(3, bytes(1000), command=False, last=True))
    assert Listening().feed([half + data_set[:100] + ABORT]) is None


# --- command sets, as pynetdicom encodes and decodes them ---------------------------------------------------------


def encoded(message: DIMSEMessage, primitive: Any) -> bytes:
    message.primitive_to_message(primitive)
    first: Any = next(iter(message.encode_msg(1, 16_384)))
    return bytes(first.presentation_data_value_list[0][1][1:])


def decoded(message: DIMSEMessage, command_set: bytes) -> Any:
    dataset = decode(BytesIO(command_set), True, True)
    assert dataset.CommandGroupLength == len(command_set) - 12
    message.command_set = dataset
    return message.message_to_primitive()


def test_a_command_of_pynetdicoms_is_understood() -> None:
    store = C_STORE()
    store.MessageID, store.Priority = 7, 0
    store.AffectedSOPClassUID, store.AffectedSOPInstanceUID, store.DataSet = STORAGE, "1.2.3", BytesIO(b"data")
    assert parse_command(encoded(C_STORE_RQ(), store)) == Command(Field.C_STORE, 7, True, STORAGE, "1.2.3")
    action = N_ACTION()
    action.MessageID, action.ActionTypeID = 300, 1
    action.RequestedSOPClassUID, action.RequestedSOPInstanceUID = "1.2.3", "1.2.3.4"
    assert parse_command(encoded(N_ACTION_RQ(), action)) == Command(Field.N_ACTION, 300, False, "1.2.3", "1.2.3.4", 1)


def test_pynetdicom_understands_the_responses() -> None:
    asked = Command(Field.C_STORE, 7, True, STORAGE, "1.2.3")
    answer = decoded(C_STORE_RSP(), response_to(asked, 0xA700, "no space"))
    assert (answer.MessageIDBeingRespondedTo, answer.Status, answer.ErrorComment) == (7, 0xA700, "no space")
    assert (answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID) == (STORAGE, "1.2.3")
    answer = decoded(C_ECHO_RSP(), response_to(Command(Field.C_ECHO, 8, False, "1.2.840.10008.1.1", ""), 0))
    assert (answer.MessageIDBeingRespondedTo, answer.Status) == (8, 0)
    asked = Command(Field.N_EVENT_REPORT, 9, True, "1.2.3", "1.2.3.4", 2)
    answer = decoded(N_EVENT_REPORT_RSP(), response_to(asked, 0x0110))
    assert (answer.MessageIDBeingRespondedTo, answer.Status, answer.EventTypeID) == (9, 0x0110, 2)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0" * 7,
        command(0x0F0F),
        command(0x8001),
        element(0x0002, b"1.2\0"),
        struct.pack("<HHL", 8, 0, 0) + command(0x0030),
        command(0x0030) + struct.pack("<HHL", 0, 0x1000, 9_999),
    ],
)
def test_what_is_no_request_is_a_violation(sent: bytes) -> None:
    with pytest.raises(Violation):
        parse_command(sent)


def test_uids_are_read_without_padding() -> None:
    for padding in (b"\0", b" ", b""):
        sent = element(0x0002, b"1.2.3" + padding) + element(0x0100, b"\x30\0") + element(0x0110, b"\1\0")
        assert parse_command(sent + element(0x0800, b"\x01\x01")).sop_class_uid == "1.2.3"
