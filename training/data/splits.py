"""Splits of whole groups: neighbouring images are often of one patient, and a reader that knew one would know the next.

The test split is for `training.evaluate` alone; nothing is chosen on it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.data.sample import Sample


@dataclass(frozen=True)
class Split:
    """Three sets of samples that share no group."""

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]


def split(samples: Iterable[Sample], *, validation_fold: int) -> Split:
    """Hold one fold of the training split out for choosing, calibration and thresholds."""
    kept = list(samples)
    return Split(
        train=tuple(sample for sample in kept if sample.fold is not None and sample.fold != validation_fold),
        validation=tuple(sample for sample in kept if sample.fold == validation_fold),
        test=tuple(sample for sample in kept if sample.fold is None),
    )


def split_groups(
    samples: Sequence[Sample], *, shares: tuple[float, float, float] = (0.7, 0.15, 0.15), seed: int = 0
) -> Split:
    """Split by whole groups into train, validation and test, for a source that states no split.

    Each part gets its share of either label as nearly as whole groups allow: the largest groups are placed first, each
    where most is missing. The same samples, in whatever order, shares and seed give the same split.

    Raises ValueError for shares that are negative or do not sum to 1.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"The shares of a split are not negative and sum to 1, unlike {shares}.")
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)

    def place(group: str) -> tuple[int, str]:
        return -len(groups[group]), hashlib.sha256(f"{seed} {group}".encode()).hexdigest()

    total = _counts(samples)
    missing = [[share * count for count in total] for share in shares]
    home: dict[str, int] = {}
    for group in sorted(groups, key=place):
        counts = _counts(groups[group])
        home[group] = max(
            (part for part in range(3) if shares[part] > 0),
            key=lambda part: sum(
                count * missing[part][label] / (shares[part] * max(total[label], 1))
                for label, count in enumerate(counts)
            ),
        )
        for label, count in enumerate(counts):
            missing[home[group]][label] -= count
    parts = [tuple(sample for sample in samples if home[sample.group] == part) for part in range(3)]
    made = Split(*parts)
    check_groups(made)
    return made


def check_groups(made: Split) -> None:
    """Raise ValueError, naming the first such group, when a group lies in more than one part."""
    home: dict[str, str] = {}
    for part, samples in (("train", made.train), ("validation", made.validation), ("test", made.test)):
        for sample in samples:
            if home.setdefault(sample.group, part) != part:
                raise ValueError(f"Group {sample.group} lies in {home[sample.group]} and in {part}.")


def _counts(samples: Iterable[Sample]) -> tuple[int, int]:
    fractured = [sample.fractured for sample in samples]
    return fractured.count(False), fractured.count(True)
