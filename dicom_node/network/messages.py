"""Takes the bytes of an association apart: PDUs (PS3.8 9.3), presentation data values, messages (PS3.8 Annex E).

Bytes go from the buffer that the socket was read into to whoever wants a data set, without another copy; nothing but
a command set, and the few bytes of a header that was cut in two, is kept. Everything is measured before it is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from enum import Enum
from typing import Protocol

from dicom_node.network.dimse import Command, parse_command
from dicom_node.network.requests import Violation

MOST_FRAGMENTS = 128
"""Presentation data values that a command set comes in. Senders use one or two."""
LARGEST_COMMAND = 16 * 1024
"""Bytes of a command set; the longest that the standard knows has a few UIDs and a comment."""

_DATA, _RELEASE_REQUEST, _ABORT = 0x04, 0x05, 0x07
_COMMAND, _LAST = 1, 2


class Sink(Protocol):
    """Takes a data set, piece by piece."""

    def write(self, data: memoryview, /) -> object:
        """Take the next piece, which is gone when this returns. Raises Violation where it is too much."""


class End(Enum):
    """How a peer ends an association."""

    RELEASE = "release"
    ABORT = "abort"


class MessageReader:
    """Reads the messages of one association.

    Parameters
    ----------
    contexts
        The IDs of the accepted presentation contexts.
    largest_pdu
        Bytes that were offered.
    on_command
        Called with context ID and command; returns who takes its data set.
    on_message
        Called when a message, data set included, is there.
    """

    def __init__(
        self,
        contexts: Container[int],
        largest_pdu: int,
        *,
        on_command: Callable[[int, Command], Sink | None],
        on_message: Callable[[int, Command, Sink | None], None],
    ) -> None:
        self._contexts = contexts
        self._largest_pdu = largest_pdu
        self._on_command = on_command
        self._on_message = on_message
        self._header = bytearray()
        self._kind = 0
        self._pdu_left = 0
        self._value_left = 0
        self._fragments = 0
        self._is_last = False
        self._context = 0  # of the message that has begun; there is no context 0
        self._command_set = bytearray()
        self._command_fragments = 0
        self._command: Command | None = None
        self._sink: Sink | None = None
        self.pdus = 0
        """How many have begun."""
        self.pdu_length = 0
        """Of the one that began last."""

    @property
    def in_pdu(self) -> bool:
        """Whether the rest of a PDU is still to come."""
        return self._pdu_left > 0 or self._value_left > 0 or bool(self._header)

    @property
    def in_message(self) -> bool:
        """Whether the rest of a message is still to come."""
        return self._context != 0

    @property
    def kept(self) -> int:
        """Bytes that are held."""
        return len(self._command_set) + len(self._header)

    def feed(self, data: memoryview) -> End | None:
        """Take what has arrived. Say how the association ends, where it does.

        Raises
        ------
        Violation
            The peer goes beyond a bound or breaks a rule of PS3.8.
        """
        at, end = 0, len(data)
        while at < end:
            if self._value_left:
                piece = data[at : at + self._value_left]
                at += len(piece)
                self._value_left -= len(piece)
                if (ended := self._take(piece)) is not None:
                    return ended
                continue
            header = data[at : at + 6 - len(self._header)]
            at += len(header)
            if self._header or len(header) < 6:
                self._header += header
                if len(self._header) < 6:
                    break
                header = memoryview(bytes(self._header))
                self._header.clear()
            if self._pdu_left:
                self._begin_value(header)
            else:
                self._begin_pdu(header)
        return None

    def _begin_pdu(self, header: memoryview) -> None:
        self.pdus += 1
        self._kind, length = header[0], int.from_bytes(header[2:6], "big")
        self.pdu_length = length
        if self._kind == _DATA:
            if length > self._largest_pdu:
                raise Violation("a longer PDU than this node offers to take")
            if not length:
                raise Violation("a data PDU without data")
            self._pdu_left, self._fragments = length, 0
        elif self._kind not in (_RELEASE_REQUEST, _ABORT):
            raise Violation("a PDU that has no place in an association")
        elif length != 4:
            raise Violation("a release or an abort of another length than ten")
        else:
            self._value_left = length

    def _begin_value(self, header: memoryview) -> None:
        """Begin a presentation data value, of which context ID and message control header have been read."""
        length, context, control = int.from_bytes(header[:4], "big"), header[4], header[5]
        self._pdu_left -= 4 + length
        if length < 2 or self._pdu_left < 0 or 0 < self._pdu_left < 6:
            raise Violation("presentation data values that do not fit their PDU")
        self._fragments += 1
        if context not in self._contexts:
            raise Violation("data for a presentation context that was not accepted")
        if not self._context:
            self._context, self._command, self._command_fragments = context, None, 0
            if self._fragments > 1:
                raise Violation("messages that are mixed up")
        elif context != self._context:
            raise Violation("messages that are mixed up")
        is_command, self._is_last = bool(control & _COMMAND), bool(control & _LAST)
        if is_command != (self._command is None):
            raise Violation("command and data out of order")
        self._command_fragments += is_command
        if self._command_fragments > MOST_FRAGMENTS:
            raise Violation("a command set in too many pieces")
        self._value_left = length - 2
        if not self._value_left:
            self._end_value()

    def _take(self, piece: memoryview) -> End | None:
        if self._kind != _DATA:
            if self._value_left:
                return None
            return End.RELEASE if self._kind == _RELEASE_REQUEST else End.ABORT
        if self._command is None:
            if len(self._command_set) + len(piece) > LARGEST_COMMAND:
                raise Violation("a command set too long")
            self._command_set += piece
        elif self._sink is not None:
            self._sink.write(piece)
        if not self._value_left:
            self._end_value()
        return None

    def _end_value(self) -> None:
        if not self._is_last:
            return
        context = self._context
        if self._command is None:
            self._command = parse_command(self._command_set)
            self._command_set.clear()
            self._sink = self._on_command(context, self._command)
            if self._command.has_data_set:
                return
        command, sink = self._command, self._sink
        self._context, self._command, self._sink = 0, None, None
        if self._pdu_left:
            raise Violation("messages that are mixed up")
        self._on_message(context, command, sink)
