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

    @property
    def is_answer(self) -> bool:
        """Whether the destination said so, with a status."""
        return self.status is not None
