"""A data set, whatever it came as: its samples, and by name what was left out and why."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.data.sample import Sample
from training.data.splits import split_groups


@dataclass(frozen=True)
class Problem:
    """A file that is left out.

    Attributes
    ----------
    file
        Its path within the data set, as the source names it.
    reason
        Why; names no patient.
    """

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """Labelled images from one source.

    Attributes
    ----------
    name
        The folder's.
    samples
        What can be used, in the source's order.
    problems
        What was left out.
    """

    name: str
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Found:
    """A labelled file before it is compared with the others; `split` is None where the source states none."""

    name: str
    path: Path
    sha256: str
    fractured: bool
    group: str
    split: str | None


def assembled(name: str, found: Sequence[Found], problems: Iterable[Problem], *, seed: int = 0) -> Dataset:
    """Return the data set of what was found, without contradictions and copies.

    The same bytes under both labels are all left out: nobody knows which is right. The same bytes twice under one label
    and split are kept once. In two splits they stay: that is a leak, for `training.leaks` to find and its author to
    mend. Where no file states a split, whole groups are drawn into train, validation and test (70, 15 and 15 %).
    """
    left_out = list(problems)
    by_content: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        by_content[one.sha256].append(one)
    kept: list[Found] = []
    seen: dict[tuple[str, str | None], str] = {}
    for one in found:
        other = next((twin for twin in by_content[one.sha256] if twin.fractured != one.fractured), None)
        first = seen.setdefault((one.sha256, one.split), one.name)
        if other is not None:
            left_out.append(
                Problem(one.name, f"contradictory: {other.name} holds the same bytes under the other label")
            )
        elif first != one.name:
            left_out.append(Problem(one.name, f"duplicate of {first}"))
        else:
            kept.append(one)
    samples = [
        Sample(
            path=one.path,
            sha256=one.sha256,
            fractured=one.fractured,
            group=one.group,
            fold=None,
            hardware=False,
            split=one.split or "train",
        )
        for one in kept
    ]
    if kept and not any(one.split for one in kept):
        samples = _drawn(samples, seed)
    return Dataset(name, tuple(samples), tuple(left_out))


def _drawn(samples: Sequence[Sample], seed: int) -> list[Sample]:
    parts = split_groups(samples, seed=seed)
    home = {
        sample.path: part
        for part, of in (("train", parts.train), ("validation", parts.validation), ("test", parts.test))
        for sample in of
    }
    return [replace(sample, split=home[sample.path]) for sample in samples]


def digest(text: str) -> str:
    """Return a name for a group that gives nothing away of the text it was made from."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
