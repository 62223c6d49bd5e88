"""What became of an instance that was sent: known too to those who decide what follows, and send nothing themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

NOT_REACHED = "not_reached"
NO_ASSOCIATION = "no_association"
NO_TLS = "certificate_files_not_usable"
REJECTED = "association_rejected"
REJECTED_FOR_NOW = "association_rejected_for_now"
CONNECTION_LOST = "connection_lost"
NO_ANSWER = "no_answer"
NOT_ACCEPTED = "sop_class_or_transfer_syntax_not_accepted"
NOT_TRANSCODED = "transfer_syntax_not_accepted_nor_transcoded"
NO_SECRET = "secret_file_not_usable"  # noqa: S105 (a reason)
NOT_AUTHORISED = "not_authorised"
NO_SUCH_SERVICE = "no_such_service"
UNAVAILABLE = "service_unavailable"

STORED_WITH_REMARK = (0xB000, 0xB006, 0xB007)
"""Warnings of a C-STORE (PS3.4 B.2.3) and of STOW-RS (PS3.18 Table I.2-1): the instance is kept."""
# Processing failure codes (PS3.7 Annex C) that say that the request itself is wrong, and will be wrong again.
REFUSED_FOR_GOOD = (0x0117, 0x0118, 0x0119, 0x0122, 0x0124, 0x0211, 0x0212)


class Result(StrEnum):
    """What became of an instance."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of one instance, and why."""

    result: Result
    reason: str
    status: int | None = None
    detail: str = field(default="", compare=False)
    """More about it, for a person alone."""
    said: bool = field(default=False, compare=False)
    """Whether the destination said so in other words than those of a DICOM status."""

    @property
    def is_answer(self) -> bool:
        """Whether the destination said so."""
        return self.status is not None or self.said


def judged(status: int) -> Outcome:
    """Return what a status means: that of a C-STORE (PS3.4 B.2.3), or a reason of STOW-RS, which are the same."""
    if status == 0x0000:
        return Outcome(Result.DELIVERED, "stored", status)
    if status == 0x0111:
        return Outcome(Result.DELIVERED, "already_there", status)
    if status in STORED_WITH_REMARK:
        return Outcome(Result.DELIVERED, "stored_with_remark", status)
    if status in REFUSED_FOR_GOOD or 0xA900 <= status <= 0xA9FF or 0xC000 <= status <= 0xCFFF:
        return Outcome(Result.REFUSED, "refused", status)
    return Outcome(Result.FAILED, "refused_for_now", status)
