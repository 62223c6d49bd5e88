"""The one retry policy.

An error that may pass is tried again after a wait that doubles from `first` to `longest`, with up to a quarter of it
added at random so that many failures do not come back at the same moment. After `most` tries it ends where a person
sees it: an image is `failed` (and reported as not analysed), a study or a delivery `needs_attention`. A refusal that
will not change by waiting is not tried again at all (`dicom_node.sender.Outcome.permanent`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class RetryPolicy:
    """Waits in seconds; `most` counts the first try too."""

    first: float
    longest: float
    most: int

    def next_wait(self, tries: int) -> timedelta | None:
        """Return how long to wait after the `tries`-th try failed (1 is the first), or None when it is given up."""
        if tries >= self.most:
            return None
        wait = min(self.longest, self.first * 2 ** min(tries - 1, 30))
        return timedelta(seconds=wait * (1 + random.random() / 4))  # noqa: S311 (jitter, not a secret)
