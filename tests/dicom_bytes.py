"""PDUs of PS3.8 as bytes, right or wrong in any place: what no library would send."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
ACCEPTED, REJECTED, RELEASED, ABORTED = b"\x02", b"\x03", b"\x06", b"\x07"

Context = tuple[int, str, Sequence[str]]


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """A PDU that says it has `length` bytes, by default as many as it has."""
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def item(kind: int, content: bytes, length: int | None = None) -> bytes:
    """An item or sub-item."""
    return struct.pack(">BBH", kind, 0, len(content) if length is None else length) + content


def context(number: int, abstract: str = VERIFICATION, syntaxes: Iterable[str] = (IMPLICIT,)) -> bytes:
    """A presentation context item of a request."""
    inner = item(0x30, abstract.encode()) + b"".join(item(0x40, syntax.encode()) for syntax in syntaxes)
    return item(0x20, bytes((number, 0, 0, 0)) + inner)


def user_information(more: bytes = b"") -> bytes:
    """Maximum length, implementation class UID, and `more`."""
    return item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4") + more)


def request(
    calling: str, called: str, contexts: bytes | None = None, *, user: bytes | None = None, more: bytes = b""
) -> bytes:
    """An A-ASSOCIATE-RQ."""
    fixed = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), calling.ljust(16).encode())
    items = item(0x10, APPLICATION_CONTEXT.encode()) + (context(1) if contexts is None else contexts)
    return pdu(0x01, fixed + items + (user_information() if user is None else user) + more)


def fragment(number: int, content: bytes, *, command: bool, last: bool) -> bytes:
    """A presentation data value of the presentation context `number`."""
    value = bytes((number, command | last << 1)) + content
    return struct.pack(">L", len(value)) + value


def data(*fragments: bytes) -> bytes:
    """A P-DATA-TF."""
    return pdu(0x04, b"".join(fragments))


def command(field: int, *, uid: str = VERIFICATION, with_data_set: bool = False, more: bytes = b"") -> bytes:
    """A command set in implicit little endian, such as C-ECHO-RQ (0x0030) or C-STORE-RQ (0x0001)."""
    padded = uid.encode() + b"\0" * (len(uid) % 2)
    elements = [
        _element(0x0002, padded),
        _element(0x0100, struct.pack("<H", field)),
        _element(0x0110, struct.pack("<H", 7)),
        _element(0x0700, struct.pack("<H", 2)),
        _element(0x0800, struct.pack("<H", 0 if with_data_set else 0x0101)),
        _element(0x1000, b"1.2.3.4\0"),
        more,
    ]
    body = b"".join(elements)
    return _element(0x0000, struct.pack("<L", len(body))) + body


def element(number: int, content: bytes) -> bytes:
    """An element of a command set, group 0000."""
    return _element(number, content)


def _element(number: int, content: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(content)) + content


ECHO = data(fragment(1, command(0x0030), command=True, last=True))
RELEASE = pdu(0x05, bytes(4))
ABORT = pdu(0x07, bytes(4))
