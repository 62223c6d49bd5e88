"""What a peer may make the node hold in memory: every PDU is looked at before pynetdicom makes objects of it.

pynetdicom makes a Python object, of up to a kilobyte, of every four bytes that claim to be an item, collects command
fragments and whatever does not belong to a C-STORE in memory without end, and lets a thread die of what it cannot
understand. Here all of it is measured first; a peer that goes beyond, or beyond the rules of PS3.8, is hung up on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import P_DATA

from models import logs

LARGEST_REQUEST = 256 * 1024
"""Bytes of an A-ASSOCIATE-RQ: 128 presentation contexts with 40 transfer syntaxes each stay below."""
MOST_CONTEXTS = 128
"""Presentation context IDs are odd and fit a byte (PS3.8 9.3.2.2)."""
MOST_ITEMS = 8192
"""Items and sub-items of an A-ASSOCIATE-RQ: abstract and transfer syntaxes, roles, negotiations."""
MOST_FRAGMENTS = 128
"""Presentation data values of one PDU, and those that a command set comes in. Senders use one or two."""
LARGEST_COMMAND = 16 * 1024
"""Bytes of a command set; the longest that the standard knows has a few UIDs and a comment."""
LARGEST_IN_MEMORY = 4 * 1024 * 1024
"""Bytes of a data set that is no C-STORE's and so stays in memory: storage commitment of 30,000 instances."""
MOST_WAITING = 8
"""Requests that wait while one is served. Asynchronous operations are never agreed to, so a peer has one at a time."""

_REQUEST, _DATA, _RELEASE, _ABORT = 0x01, 0x04, (0x05, 0x06), 0x07
_FIXED_PART = 68
log = logs.get("listener")
_CONTEXT_ITEM, _CONTEXT_FIXED_PART, _USER_ITEM = 0x20, 4, 0x50


class Violation(Exception):
    """The peer goes beyond a bound or breaks a rule; the text says which, in words of ours only."""


@dataclass(frozen=True)
class Titles:
    """The AE titles of an A-ASSOCIATE-RQ, without padding."""

    called: str
    calling: str


def read_request_header(header: bytes | bytearray) -> int:
    """Return how many bytes follow the six of a first PDU. Raises Violation unless it can be an A-ASSOCIATE-RQ."""
    length = int.from_bytes(header[2:6], "big")
    if header[0] != _REQUEST:
        raise Violation("not an association request")
    if length < _FIXED_PART:
        raise Violation("an association request too short")
    if length > LARGEST_REQUEST:
        raise Violation("an association request too long")
    return length


def check_request(body: bytes | bytearray) -> Titles:
    """Look through an A-ASSOCIATE-RQ, without its six bytes of header (PS3.8 9.3.2).

    Raises
    ------
    Violation
        Items that do not fit into one another, more of them than the bounds, or presentation context IDs that are even
        or twice there.
    """
    ids: set[int] = set()
    items = 0
    for kind, content in _items(body[_FIXED_PART:]):
        items += 1
        if kind == _CONTEXT_ITEM:
            if len(content) < _CONTEXT_FIXED_PART or content[0] % 2 == 0 or content[0] in ids:
                raise Violation("a presentation context without an ID of its own")
            ids.add(content[0])
            items += sum(1 for _ in _items(content[_CONTEXT_FIXED_PART:]))
        elif kind == _USER_ITEM:
            items += sum(1 for _ in _items(content))
        if items > MOST_ITEMS:
            raise Violation("an association request of too many items")
    return Titles(called=_title(body[4:20]), calling=_title(body[20:36]))


def decode_request(request: bytes) -> A_ASSOCIATE_RQ:
    """Make pynetdicom's objects of an A-ASSOCIATE-RQ that was looked through. Raises Violation."""
    decoded = A_ASSOCIATE_RQ()
    try:
        decoded.decode(request)
        decoded.to_primitive()
    except Exception:
        # pynetdicom raises many kinds, and later from where nobody would catch it.
        raise Violation("an association request that cannot be understood") from None
    return decoded


def check_pdu(pdu: bytes | bytearray) -> None:
    """Look through a PDU of an association (PS3.8 9.3.5 to 9.3.8). Raises Violation."""
    kind = pdu[0]
    if kind == _DATA:
        _check_data(memoryview(pdu)[6:])
    elif kind not in (*_RELEASE, _ABORT):
        raise Violation("a PDU that has no place in an association")
    elif len(pdu) != 10:
        raise Violation("a release or an abort of another length than ten")
    elif kind == _ABORT and pdu[8] not in (0, 2):
        raise Violation("an abort from nowhere")


def _check_data(body: memoryview) -> None:
    fragments = 0
    while body:
        length = int.from_bytes(body[:4], "big")
        # A context ID and a message control header at least.
        if len(body) < 4 + length or length < 2:
            raise Violation("presentation data values that do not fit their PDU")
        fragments += 1
        if fragments > MOST_FRAGMENTS:
            raise Violation("too many presentation data values in a PDU")
        body = body[4 + length :]
    if not fragments:
        raise Violation("a data PDU without data")


def _items(content: bytes | bytearray | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Items of PS3.8 9.3: a byte of type, a byte reserved, two of length, as many as that says."""
    rest = memoryview(content)
    while rest:
        length = int.from_bytes(rest[2:4], "big")
        if len(rest) < 4 + length:
            raise Violation("items that do not fit into one another")
        yield rest[0], rest[4 : 4 + length]
        rest = rest[4 + length :]


def _title(field: bytes | bytearray) -> str:
    return bytes(field).decode("ascii", "replace").strip(" \0")


def guard(association: Association, *, abandon: Callable[[Association], None], most_threads: int) -> None:
    """Look at every PDU of an association before pynetdicom does, and end it on a violation.

    Parameters
    ----------
    abandon
        Removes what was received of a data set that will never be whole.
    most_threads
        How many threads the process may have: pynetdicom starts one for every N-EVENT-REPORT.
    """
    parts: Any = association
    dul, dimse = parts.dul, parts.dimse
    decode, act = dul._decode_pdu, dul.state_machine.do_action

    def decode_checked(pdu: bytearray) -> Any:
        try:
            check_pdu(pdu)
        except Violation as violation:
            log.warning("association aborted", why=str(violation))
            raise  # pynetdicom takes it for an invalid PDU
        return decode(pdu)

    def act_or_end(event: str) -> None:
        try:
            act(event)
        except Exception as error:
            # Such as an abort of ours that crosses one of theirs. The thread would die of it, and say so.
            log.warning("association aborted", why="an event that its state does not know", exc_info=error)
            dul.kill_dul()

    def give_up(why: str) -> None:
        log.warning("association aborted", why=why)
        abandon(association)
        dimse.message = None
        dul.event_queue.put("Evt19")

    dul._decode_pdu, dul.state_machine.do_action = decode_checked, act_or_end
    dimse.receive_primitive = MessageGuard(association, give_up, most_threads=most_threads)


class MessageGuard:
    """Takes the place of `DIMSEServiceProvider.receive_primitive`, and holds an association to PS3.8 Annex E.

    One message at a time, command before data, each in one accepted presentation context; command sets and data sets
    in memory no longer than the bounds. On a violation, and on what pynetdicom cannot understand, `on_violation` is
    called once, and nothing is taken any more.
    """

    def __init__(self, association: Association, on_violation: Callable[[str], None], *, most_threads: int) -> None:
        self._association: Any = association
        self._receive = self._association.dimse.receive_primitive
        self._on_violation = on_violation
        self._most_threads = most_threads
        self._context: int | None = None
        self._command_done = False
        self._command_fragments = 0
        self._broken = False

    def __call__(self, primitive: P_DATA) -> None:
        """Receive the fragments of one PDU."""
        if self._broken:
            return
        try:
            self._check_order(primitive)
            self._check_load()
            self._receive(primitive)
            self._check_size()
        except Violation as violation:
            self._give_up(str(violation))
        except Exception:
            # A command set that is none, a command that there is not: pynetdicom raises many kinds.
            self._give_up("a message that cannot be understood")

    def _check_order(self, primitive: P_DATA) -> None:
        if self._association.dimse.message is None:
            self._context, self._command_done, self._command_fragments = None, False, 0
        ended = False
        for context, value in primitive.presentation_data_value_list:
            is_command, is_last = bool(value[0] & 1), bool(value[0] & 2)
            if context not in self._association._accepted_cx:
                raise Violation("data for a presentation context that was not accepted")
            if ended or (self._context is not None and context != self._context):
                raise Violation("messages that are mixed up")
            if is_command == self._command_done:
                raise Violation("command and data out of order")
            self._context = context
            self._command_fragments += is_command
            if self._command_fragments > MOST_FRAGMENTS:
                raise Violation("a command set in too many pieces")
            if is_last:
                ended = self._command_done
                self._command_done = True

    def _check_load(self) -> None:
        if self._association.dimse.msg_queue.qsize() > MOST_WAITING:
            raise Violation("more requests at a time than were agreed")
        if threading.active_count() > self._most_threads:
            raise Violation("more at a time than this node has threads for")

    def _check_size(self) -> None:
        message = self._association.dimse.message
        if message is None:
            return
        if message.encoded_command_set.tell() > LARGEST_COMMAND:
            raise Violation("a command set too long")
        if message.data_set is not None and message.data_set.tell() > LARGEST_IN_MEMORY:
            raise Violation("a data set too long for its command")

    def _give_up(self, why: str) -> None:
        self._broken = True
        self._on_violation(why)
