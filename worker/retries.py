"""The one retry policy, and the decision tree of deliveries.

An error that may pass is tried again after a wait that doubles from `first` to `longest`, with up to a quarter of it
added at random so that many failures do not come back at the same moment. After `most` tries it ends where a person
sees it: an image is `failed` (and reported as not analysed), a study or a delivery `needs_attention`.

What follows a try to deliver (`after_try`, `after_association`):

==========================================================  ===========================================================
what became of it                                           what follows
==========================================================  ===========================================================
answered 0000, 0111 or, with a remark, B000, B006, B007     **delivered**
answered 0117–0119, 0122, 0124, 0211, 0212, A9xx or Cxxx    **never** again: `needs_attention`; the others go on
its SOP class or transfer syntax was not accepted, nor a    **never** again: `needs_attention`; the others go on
plain one; no DICOM file, no HL7 message; its destination
is not in the settings
the connection broke while it was sent, for the first time  **at once**, over a new association
answered otherwise (A7xx, 0110, …); no answer in time; the  **later**, after its own wait; the others go on, where the
connection broke again                                      association is over, over a new one
two associations in a row broke without one answer          the destination rests: **later** for all, after its wait
not reached; the request not answered; rejected for now     counts for all that it was asked for; **later** for all
rejected for good (an AE title that is not known there)     the same, and at once the longest wait: a person must act
its process ended with it                                   counts; **at once**, when its lease has run out
the `most`-th try                                           **never** again: `needs_attention`
==========================================================  ===========================================================

By STOW-RS (`dicom_node.network.answers`) a request for each instance takes the place of an association for a batch, and
over MLLP (`dicom_node.network.mllp`) a message with its acknowledgement. What is answered there is put into the same
rows:

==========================================================  ===========================================================
HTTP status, or what the answer says of the instance        as
==========================================================  ===========================================================
2xx, the instance is among the stored, or nothing is said   answered 0000; with a warning, with that remark
2xx, 400, 409, … with a failure reason                      answered with that status
other 4xx                                                   answered Cxxx: **never** again
408, 500, other 5xx; an answer that is not understood       answered otherwise: **later**
429, 502, 503, 504                                          rejected for now
401, 403, 407; 3xx, 404, 405, 410, 501                      rejected for good
password or token cannot be read; connection or TLS fails   not reached
==========================================================  ===========================================================

==========================================================  ===========================================================
acknowledgement                                             as
==========================================================  ===========================================================
AA, CA                                                      answered 0000
AE, CE                                                      answered Cxxx: **never** again
AR, CR                                                      answered otherwise: **later**
none in time, too long, no acknowledgement, of another      no answer in time: **later**, over a new connection
message
==========================================================  ===========================================================

The waits of a destination that is not reached end at `longest_rest`, well before those of a delivery: it may be back.
Of the associations after that only every so many-th counts as a try (`RestPolicy`).

A time-out drops the association: what was not sent over it yet was not tried. A destination that answers again is one
that was away: what only waited for it is due at once, its tries forgotten, `needs_attention` or not.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from dicom_node.outcome import (
    CONNECTION_LOST,
    NO_ASSOCIATION,
    NO_SECRET,
    NO_SUCH_SERVICE,
    NO_TLS,
    NOT_AUTHORISED,
    NOT_REACHED,
    REJECTED,
    REJECTED_FOR_NOW,
    UNAVAILABLE,
    Outcome,
    Result,
)
from dicom_node.tls import DISTRUSTED, TLS_FAILED

ENDED_WITHOUT_A_WORD = "no_try_came_to_an_end"
"""What is recorded of tries that took their process with them."""
AWAY = (
    *(NOT_REACHED, NO_ASSOCIATION, NO_TLS, DISTRUSTED, TLS_FAILED, REJECTED, REJECTED_FOR_NOW),
    *(NO_SECRET, NOT_AUTHORISED, NO_SUCH_SERVICE, UNAVAILABLE),
)
"""Reasons that speak of the destination alone: it was never asked to store this instance, or did not look at it."""
BROKEN_IN_A_ROW = 2
"""After so many associations that broke without one answer, the destination is left in peace for a while."""


class Next(StrEnum):
    """What follows a try."""

    DELIVERED = "delivered"
    AT_ONCE = "at_once"
    LATER = "later"
    NEVER = "never"


@dataclass(frozen=True)
class RetryPolicy:
    """Waits in seconds; `most` counts the first try too."""

    first: float
    longest: float
    most: int

    def used_up(self, tries: int) -> bool:
        """Return whether the `tries`-th try is one too many: those before it ended with their process."""
        return tries > self.most

    def next_wait(self, tries: int) -> timedelta | None:
        """Return how long to wait after the `tries`-th try failed (1 is the first), or None when it is given up."""
        return None if tries >= self.most else self.wait(tries)

    def wait(self, failures: int) -> timedelta:
        """Return how long to wait after so many failures in a row, however many."""
        return _spread(min(self.longest, self.first * 2 ** min(failures - 1, 30)))

    def after_try(self, outcome: Outcome, tries: int) -> tuple[Next, timedelta]:
        """Decide what follows the `tries`-th try to store an instance over an association, and after which wait."""
        if outcome.result is Result.DELIVERED:
            return Next.DELIVERED, timedelta(0)
        wait = self.next_wait(tries)
        if outcome.result is Result.REFUSED or wait is None:
            return Next.NEVER, timedelta(0)
        if outcome.reason == CONNECTION_LOST and tries == 1:
            return Next.AT_ONCE, timedelta(0)
        return Next.LATER, wait


@dataclass(frozen=True)
class RestPolicy:
    """How long a destination rests whose associations come to nothing, in seconds.

    Parameters
    ----------
    longest_rest
        The longest wait but that for a person; where it is above `longest`, `longest` is.
    """

    first: float
    longest: float
    longest_rest: float

    def after_association(self, outcome: Outcome, failures: int) -> timedelta:
        """Return how long to wait after the `failures`-th association in a row that came to nothing."""
        if outcome.result is Result.REFUSED:
            return _spread(self.longest)
        return RetryPolicy(self.first, min(self.longest, self.longest_rest), most=1).wait(failures)

    def counts(self, failures: int) -> bool:
        """Return whether that association is a try of what was to go over it: about one in `longest` is."""
        between = max(1, round(self.longest / self.longest_rest))
        doubling = 1 + max(0, math.ceil(math.log2(self.longest_rest / self.first)))
        return failures <= doubling or (failures - doubling) % between == 0


def _spread(seconds: float) -> timedelta:
    return timedelta(seconds=seconds * (1 + random.random() / 4))  # noqa: S311 (jitter, not a secret)
