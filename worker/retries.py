"""The one retry policy.

An error that may pass is tried again after a wait that doubles from `first` to `longest`, with up to a quarter of it
added at random so that many failures do not come back at the same moment. After `most` tries it ends where a person
sees it: an image is `failed` (and reported as not analysed), a study or a delivery `needs_attention`. A refusal that
will not change by waiting is not tried again at all (`dicom_node.sender.Result.REFUSED`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

ENDED_WITHOUT_A_WORD = "no_try_came_to_an_end"
"""What is recorded of tries that took their process with them."""


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
        if tries >= self.most:
            return None
        wait = min(self.longest, self.first * 2 ** min(tries - 1, 30))
        return timedelta(seconds=wait * (1 + random.random() / 4))  # noqa: S311 (jitter, not a secret)
