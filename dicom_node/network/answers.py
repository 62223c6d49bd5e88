"""What the answer to a STOW-RS request means (PS3.18 10.5.3): of the one instance that was sent, or of the service."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from dicom_node.outcome import NO_SUCH_SERVICE, NOT_AUTHORISED, UNAVAILABLE, Outcome, Result, judged

MOST_OF_AN_ANSWER = 1_048_576
"""Bytes of the longest answer that is read; they have some hundred."""
NOT_AUTHORISED_STATUSES, NO_SUCH_SERVICE_STATUSES = (401, 403, 407), (404, 405, 410, 501)
UNAVAILABLE_STATUSES = (429, 502, 503, 504)
NOT_UNDERSTOOD = "answer_not_understood"
# Failed SOP Sequence, Failure Reason, Referenced SOP Sequence, Warning Reason (PS3.18 10.5.3.2, PS3.3 C.14).
_FAILED, _FAILURE_REASON, _STORED, _WARNING_REASON = "00081198", "00081197", "00081199", "00081196"
_REASONS = (_FAILURE_REASON, _WARNING_REASON)
_SOME = 202
"""Some of what was sent is stored: of one instance, this says nothing."""
_TOO_SLOW = 408
_Items = dict[str, list[dict[str, int]]]
"""By sequence, the reasons that are in each item."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `announced` says whether its end was told before, since else it may have been cut."""

    status: int
    content: bytes
    announced: bool = True


def judge(answer: Answer) -> tuple[Outcome, bool]:
    """Return what an answer means, and whether it speaks of the service as a whole and not of this instance.

    What the service says of the instance goes before the HTTP status; a success has to be one of this service, and not
    of a page to sign in with, which has status 200 as well.
    """
    status, number = answer.status, f"HTTP status {answer.status}"
    if status in NOT_AUTHORISED_STATUSES:
        return Outcome(Result.REFUSED, NOT_AUTHORISED, detail=number), True
    if status in NO_SUCH_SERVICE_STATUSES or 300 <= status < 400:
        return Outcome(Result.REFUSED, NO_SUCH_SERVICE, detail=number), True
    if status in UNAVAILABLE_STATUSES:
        return Outcome(Result.FAILED, UNAVAILABLE, detail=number), True
    said = _of_instance(answer.content)
    if said is not None:
        return said, False
    if 200 <= status < 300:
        if status != _SOME and not answer.content and answer.announced:
            return judged(0x0000), False
        return Outcome(Result.FAILED, NOT_UNDERSTOOD, said=True), False
    refused = 400 <= status < 500 and status != _TOO_SLOW
    return Outcome(Result.REFUSED if refused else Result.FAILED, f"http_{status}", said=True), False


def _of_instance(content: bytes) -> Outcome | None:
    """Return what a Store Instances Response says of the one instance; None where it says nothing."""
    if len(content) > MOST_OF_AN_ANSWER:
        return None
    try:
        found = _in_xml(content) if content.lstrip().startswith(b"<") else _in_json(content)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        ElementTree.ParseError,
    ):
        return None
    if found.get(_FAILED):
        reason = found[_FAILED][0].get(_FAILURE_REASON)
        return Outcome(Result.FAILED, "refused_for_now", said=True) if reason is None else _refused(reason)
    if found.get(_STORED):
        remark = found[_STORED][0].get(_WARNING_REASON)
        return judged(0x0000) if remark is None else Outcome(Result.DELIVERED, "stored_with_remark", remark)
    return None


def _refused(reason: int) -> Outcome:
    """A failure with a reason of success is none to be believed."""
    outcome = judged(reason)
    known = outcome.result is not Result.DELIVERED or outcome.reason == "already_there"
    return outcome if known else Outcome(Result.FAILED, "refused_for_now", reason)


def _in_json(content: bytes) -> _Items:
    """PS3.18 F.2; some put the one data set into an array."""
    parsed = json.loads(content)
    module = parsed[0] if isinstance(parsed, list) else parsed
    return {
        sequence: [
            _reasons((reason, (item.get(reason) or {}).get("Value")) for reason in _REASONS)
            for item in (module.get(sequence) or {}).get("Value") or ()
        ]
        for sequence in (_FAILED, _STORED)
    }


def _in_xml(content: bytes) -> _Items:
    """PS3.19 A.1, for services that answer in XML whatever they are asked for."""
    root = ElementTree.fromstring(content)  # noqa: S314 (short, and expat bounds what entities become)
    return {
        attribute.attrib.get("tag", ""): [
            _reasons((inner.attrib.get("tag", ""), ["".join(inner.itertext())]) for inner in item) for item in attribute
        ]
        for attribute in root
    }


def _reasons(found: Iterable[tuple[str, Any]]) -> dict[str, int]:
    """Those that are one (VR US)."""
    numbers = {tag: int(values[0]) for tag, values in found if tag in _REASONS and values}
    return {tag: number for tag, number in numbers.items() if 0 <= number <= 0xFFFF}
