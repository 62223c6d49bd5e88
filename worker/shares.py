"""Shares of counts, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

Z = 1.959963984540054
"""Of the normal distribution, for 95 %."""


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    of: int

    @property
    def value(self) -> float | None:
        """0 to 1; None of nothing."""
        return self.count / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, 0 to 1."""
        return wilson(self.count, self.of)


def wilson(count: int, of: int, z: float = Z) -> tuple[float, float]:
    """Return the score interval of a share (Wilson, J. Am. Stat. Assoc. 22, 209-212, 1927); of nothing, 0 to 1.

    It holds its 95 % with few counts and with shares near 0 and 1, where the usual one has no width at all
    (Newcombe, Statistics in Medicine 17, 857-872, 1998). Raises ValueError for more than all, or less than none.
    """
    if not 0 <= count <= of:
        raise ValueError(f"{count} of {of}")
    if of == 0:
        return 0.0, 1.0
    middle = (count + z * z / 2) / (of + z * z)
    half = z / (of + z * z) * sqrt(count * (of - count) / of + z * z / 4)
    # At the ends the formula gives 0 and 1 but for rounding.
    return (0.0 if count == 0 else middle - half), (1.0 if count == of else middle + half)
