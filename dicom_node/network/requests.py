"""Association requests (PS3.8 9.3.2): measured before pynetdicom makes objects of them, then negotiated by it.

pynetdicom makes a Python object, of up to a kilobyte, of every four bytes that claim to be an item, and raises many
kinds of errors. Here all of it is measured first; a peer that goes beyond, or beyond the rules of PS3.8, is hung up on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.pdu_primitives import ImplementationClassUIDNotification as _ImplementationClass
from pynetdicom.pdu_primitives import ImplementationVersionNameNotification as _ImplementationVersion
from pynetdicom.pdu_primitives import MaximumLengthNotification as _MaximumLength
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from dicom_node.headers import is_uid
from dicom_node.objects.recognise import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

LARGEST_REQUEST = 256 * 1024
"""Bytes of an A-ASSOCIATE-RQ: 128 presentation contexts with 40 transfer syntaxes each stay below."""
MOST_CONTEXTS = 128
"""Presentation context IDs are odd and fit a byte (PS3.8 9.3.2.2)."""
MOST_ITEMS = 8192
"""Items and sub-items of an A-ASSOCIATE-RQ: abstract and transfer syntaxes, roles, negotiations."""
SMALLEST_PDU = 128
"""Bytes that a peer has to take in a PDU: the standard lets it take seven, which nobody means."""
MOST_SENT = 16_384
"""Bytes of a PDU of ours to a peer that takes any length."""
APPLICATION_CONTEXT = UID("1.2.840.10008.3.1.1.1")

_REQUEST = 0x01
_FIXED_PART = 68
_APPLICATION_ITEM, _CONTEXT_ITEM, _CONTEXT_FIXED_PART, _USER_ITEM = 0x10, 0x20, 4, 0x50
_ABSTRACT_ITEM, _TRANSFER_ITEM = 0x30, 0x40
_LENGTH_ITEM, _ROLE_ITEM = 0x51, 0x54
# For a UID that is none: of a syntax that nobody supports.
_NOBODYS = b"2.25.0"


class Violation(Exception):
    """The peer goes beyond a bound or breaks a rule; the text says which, in words of ours only."""


@dataclass(frozen=True)
class Context:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: UID


@dataclass(frozen=True)
class Accepted:
    """What was negotiated, by presentation context ID; `answer` is the A-ASSOCIATE-AC."""

    contexts: Mapping[int, Context]
    largest_pdu: int
    """Bytes that the peer takes in one PDU, after its six of header."""
    answer: bytes


@dataclass(frozen=True)
class Asked:
    """Who calls whom, and how, in an A-ASSOCIATE-RQ. AE titles without padding."""

    called: str
    calling: str
    protocol_version: int
    """Bit 0 is set for the only version that there is."""
    application_context: str


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


def check_request(body: bytes | bytearray) -> Asked:
    """Look through an A-ASSOCIATE-RQ, without its six bytes of header (PS3.8 9.3.2).

    Raises
    ------
    Violation
        Items that do not fit into one another, more of them than the bounds, or presentation context IDs that are even
        or twice there.
    """
    ids: set[int] = set()
    items = 0
    application_context = ""
    for kind, content in _items(body[_FIXED_PART:]):
        items += 1
        if kind == _APPLICATION_ITEM:
            application_context = bytes(content).decode("ascii", "replace").strip("\0 ")
        elif kind == _CONTEXT_ITEM:
            if len(content) < _CONTEXT_FIXED_PART or content[0] % 2 == 0 or content[0] in ids:
                raise Violation("a presentation context without an ID of its own")
            ids.add(content[0])
            items += sum(1 for _ in _items(content[_CONTEXT_FIXED_PART:]))
        elif kind == _USER_ITEM:
            items += sum(1 for _ in _items(content))
        if items > MOST_ITEMS:
            raise Violation("an association request of too many items")
    return Asked(
        called=_title(body[4:20]),
        calling=_title(body[20:36]),
        protocol_version=int.from_bytes(body[:2], "big"),
        application_context=application_context,
    )


def _decode(request: bytes) -> A_ASSOCIATE:
    """Make pynetdicom's objects of what matters in a request that was looked through.

    What is unknown is to be ignored (PS3.8 9.3.1), and what does not change the answer need not be right: pynetdicom
    would not take an AE title or a version name that is padded with nulls, nor a kind of user identity of later years,
    nor any context where the syntax of one is no UID.
    """
    body = request[6:]
    asked = check_request(body)
    titles = b"".join(title.encode("ascii", "replace").ljust(16)[:16] for title in (asked.called, asked.calling))
    items = []
    for kind, content in _items(body[_FIXED_PART:]):
        if kind == _APPLICATION_ITEM:
            items.append(_item(kind, content))
        elif kind == _CONTEXT_ITEM:
            items.append(_item(kind, bytes(content[:_CONTEXT_FIXED_PART]) + _syntaxes(content[_CONTEXT_FIXED_PART:])))
        elif kind == _USER_ITEM:
            items.append(_item(kind, _negotiated(content)))
    rest = body[:4] + titles + bytes(32) + b"".join(items)
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(bytes((_REQUEST, 0)) + len(rest).to_bytes(4, "big") + rest)
    return decoded.to_primitive()


class Negotiation:
    """What the listener offers, and the answer to each request (PS3.8 9.3.3). Threads may share one.

    Parameters
    ----------
    contexts
        What is supported, with roles where they are negotiated.
    largest_pdu
        Bytes that a peer may send in one PDU.
    """

    def __init__(self, contexts: list[PresentationContext], *, largest_pdu: int) -> None:
        self._contexts = contexts
        self._largest_pdu = largest_pdu

    def accept(self, request: bytes) -> Accepted:
        """Negotiate an A-ASSOCIATE-RQ that was looked through; accepted even where no context is, as PS3.8 has it.

        Raises
        ------
        Violation
            It cannot be understood, or no answer fits what the peer takes.
        """
        try:
            return self._accept(_decode(request))
        except Violation:
            raise
        except Exception:
            # pynetdicom raises many kinds.
            raise Violation("an association request that cannot be understood") from None

    def _accept(self, asked: A_ASSOCIATE) -> Accepted:
        roles = {
            item.sop_class_uid: (item.scu_role, item.scp_role)
            for item in asked.user_information
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation) and item.sop_class_uid is not None
        }
        results, agreed = negotiate_as_acceptor(asked.presentation_context_definition_list, self._contexts, roles)
        largest = next(
            (item.maximum_length_received for item in asked.user_information if isinstance(item, _MaximumLength)), 0
        )
        if 0 < largest < SMALLEST_PDU:
            raise Violation("an association request that leaves no room for answers")
        return Accepted(
            contexts={
                context.context_id: Context(str(context.abstract_syntax), UID(context.transfer_syntax[0]))
                for context in results
                if context.result == 0 and context.context_id is not None
            },
            largest_pdu=largest or MOST_SENT,
            answer=self._answer(asked, results, agreed),
        )

    def _answer(self, asked: A_ASSOCIATE, results: list[PresentationContext], roles: list[Any]) -> bytes:
        answer = A_ASSOCIATE()
        answer.application_context_name = APPLICATION_CONTEXT
        # Sent back as they came, and not to be tested (PS3.8 9.3.3).
        answer.calling_ae_title, answer.called_ae_title = asked.calling_ae_title, asked.called_ae_title
        answer.result, answer.result_source = 0, 1
        answer.presentation_context_definition_results_list = results
        length, implementation, version = _MaximumLength(), _ImplementationClass(), _ImplementationVersion()
        length.maximum_length_received = self._largest_pdu
        implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        answer.user_information = [length, implementation, version, *roles]
        pdu = A_ASSOCIATE_AC()
        pdu.from_primitive(answer)
        return bytes(pdu.encode())


def _items(content: bytes | bytearray | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Items of PS3.8 9.3: a byte of type, a byte reserved, two of length, as many as that says."""
    rest = memoryview(content)
    while rest:
        length = int.from_bytes(rest[2:4], "big")
        if len(rest) < 4 + length:
            raise Violation("items that do not fit into one another")
        yield rest[0], rest[4 : 4 + length]
        rest = rest[4 + length :]


def _item(kind: int, content: bytes | memoryview) -> bytes:
    return bytes((kind, 0)) + len(content).to_bytes(2, "big") + content


def _syntaxes(content: memoryview) -> bytes:
    """Return the sub-items of a presentation context that there may be."""
    found: dict[int, list[bytes]] = {_ABSTRACT_ITEM: [], _TRANSFER_ITEM: []}
    for kind, value in _items(content):
        if kind in found:
            found[kind].append(_uid(value) or _NOBODYS)
    return b"".join(_item(kind, uid) for kind, uids in found.items() for uid in dict.fromkeys(uids))


def _negotiated(content: memoryview) -> bytes:
    """Return the sub-items of user information that change the answer. Raises Violation."""
    kept = []
    for kind, value in _items(content):
        if kind == _LENGTH_ITEM:
            kept.append(_item(kind, value))
        elif kind == _ROLE_ITEM:
            # PS3.7 D.3.3.4: a class, and whether each role is proposed.
            uid, roles = value[2:-2], value[-2:]
            if len(value) != 4 + int.from_bytes(value[:2], "big"):
                raise Violation("items that do not fit into one another")
            if (named := _uid(uid)) and max(roles) <= 1:
                kept.append(_item(kind, len(named).to_bytes(2, "big") + named + bytes(roles)))
    return b"".join(kept)


def _uid(field: memoryview) -> bytes:
    """Return a UID without padding, of whatever kind; empty where it is none."""
    uid = bytes(field).strip(b"\0 ")
    return uid if is_uid(uid.decode("ascii", "replace")) else b""


def _title(field: bytes | bytearray) -> str:
    return bytes(field).decode("ascii", "replace").strip(" \0")
