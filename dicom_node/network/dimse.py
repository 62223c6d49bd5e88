"""DIMSE command sets (PS3.7, Annex E): what a request says, and the responses to it.

Only what a storage SCP is asked; anything a peer sends is measured, and never put into a text.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from dicom_node.network.requests import Violation

NO_DATA_SET = 0x0101
_RESPONSE = 0x8000


class Field(IntEnum):
    """Command fields of the requests that exist (PS3.7, E.1)."""

    C_STORE = 0x0001
    C_GET = 0x0010
    C_FIND = 0x0020
    C_MOVE = 0x0021
    C_ECHO = 0x0030
    N_EVENT_REPORT = 0x0100
    N_GET = 0x0110
    N_SET = 0x0120
    N_ACTION = 0x0130
    N_CREATE = 0x0140
    N_DELETE = 0x0150
    C_CANCEL = 0x0FFF


_FIELDS = {int(field): field for field in Field}


@dataclass(frozen=True)
class Command:
    """A request, its UIDs as they were sent, without padding; "" where there is none."""

    field: Field
    message_id: int
    has_data_set: bool
    sop_class_uid: str
    """Affected or requested."""
    sop_instance_uid: str
    type_id: int | None = None
    """Event Type ID or Action Type ID."""


def parse_command(content: bytes | bytearray) -> Command:
    """Read a command set.

    Raises
    ------
    Violation
        Elements that do not fit, or no request that there is.
    """
    elements = dict(_elements(content))
    field = _FIELDS.get(_number(elements, 0x0100))
    if field is None:
        raise Violation("a message that cannot be understood")
    type_id = next((number for number in (0x1002, 0x1008) if number in elements), None)
    return Command(
        field=field,
        message_id=_number(elements, 0x0120 if field is Field.C_CANCEL else 0x0110),
        has_data_set=_number(elements, 0x0800) != NO_DATA_SET,
        sop_class_uid=_uid(elements, 0x0002, 0x0003),
        sop_instance_uid=_uid(elements, 0x1000, 0x1001),
        type_id=None if type_id is None else _number(elements, type_id),
    )


def response_to(command: Command, status: int, comment: str = "") -> bytes:
    """Return the command set of a response without a data set.

    Parameters
    ----------
    comment
        ASCII, at most 64 characters: the Error Comment.
    """
    elements = [
        _element(0x0002, _padded(command.sop_class_uid)) if command.sop_class_uid else b"",
        _us(0x0100, command.field | _RESPONSE),
        _us(0x0120, command.message_id),
        _us(0x0800, NO_DATA_SET),
        _us(0x0900, status),
        _element(0x0902, _padded(comment, b" ")) if comment else b"",
        _element(0x1000, _padded(command.sop_instance_uid)) if command.sop_instance_uid else b"",
    ]
    if command.type_id is not None:
        elements.append(_us(0x1002 if command.field is Field.N_EVENT_REPORT else 0x1008, command.type_id))
    body = b"".join(elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _elements(content: bytes | bytearray) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(content):
        if len(content) - at < 8:
            raise Violation("a command set that does not end with an element")
        group, number, length = struct.unpack_from("<HHL", content, at)
        at += 8
        if group != 0 or at + length > len(content):
            raise Violation("a command set of other things than its elements")
        found.append((number, bytes(content[at : at + length])))
        at += length
    return found


def _number(elements: dict[int, bytes], number: int) -> int:
    value = elements.get(number, b"")
    if len(value) != 2:
        raise Violation("a message that cannot be understood")
    return int.from_bytes(value, "little")


def _uid(elements: dict[int, bytes], *numbers: int) -> str:
    value = next((elements[number] for number in numbers if number in elements), b"")
    return value.decode("ascii", "replace").strip("\0 ")


def _us(number: int, value: int) -> bytes:
    return struct.pack("<HHLH", 0, number, 2, value)


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _padded(text: str, padding: bytes = b"\0") -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)
