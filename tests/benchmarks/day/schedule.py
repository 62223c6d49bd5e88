"""Who sends what, and when: drawn from a seed and the number of studies alone, so that a day can be replayed."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR

CURVE = (1, 1, 0.5, 0.5, 0.5, 1, 2, 5, 8, 9, 9, 8, 4.5, 6, 8.5, 8, 6, 5, 4, 3.5, 3, 2.5, 2, 1.5)
"""How many of the day's hundred studies are made in each hour, by the rooms and on the wards."""
EMERGENCY_CURVE = (3, 2.5, 2, 1.5, 1.5, 1.5, 2, 3, 4, 4.5, 5, 5, 5, 5, 5, 5.5, 6, 6.5, 7, 6.5, 6, 5, 4, 3)
"""The same of the emergency rooms, which never close."""
MORNING, AFTERNOON = (8, 12), (14, 17)
"""The hours of the peaks."""
OUTAGE = (14, 15)
"""The hour in which the PACS is away: the busiest of the afternoon."""
PACS_ROUNDS = (6.0, 11.5, 13.25, 17.0, 21.0, 23.75)
"""The hours at which the PACS sends whole studies again, many of them at once."""

IMAGES = {1: 60, 2: 25, 3: 10, 4: 5}
"""Of a hundred studies so many have so many images."""
STAT = 0.03
"""Of the studies that are not from the emergency rooms, so many are urgent by their header."""
LATE, AGAIN, CORRECTED = 0.02, 0.03, 0.01
"""Of the studies, so many get one of their images late, are sent again as they are, or with a corrected header."""


class Kind(StrEnum):
    """What a modality is."""

    ROOM = "room"
    EMERGENCY = "emergency room"
    PORTABLE = "portable"
    PACS = "pacs"


@dataclass(frozen=True)
class Modality:
    """A sender, and how it encodes what it makes (a name of the shared radiographs)."""

    ae_title: str
    kind: Kind
    encoding: str = "UNC"


MODALITIES = (
    *(Modality(f"DX{number}", Kind.ROOM) for number in range(1, 9)),
    *(Modality(f"CR{number}", Kind.ROOM, "RLE" if number > 3 else "JPLL") for number in range(1, 6)),
    *(Modality(f"ER{number}", Kind.EMERGENCY) for number in range(1, 3)),
    *(Modality(f"MOBILE{number}", Kind.PORTABLE, ("J2KR", "JLSL", "JPLY")[number % 3]) for number in range(1, 5)),
    Modality("PACS", Kind.PACS),
)
SHARES = {Kind.ROOM: 73, Kind.EMERGENCY: 15, Kind.PORTABLE: 12}
"""Of a hundred studies so many are made by each kind; the PACS makes none."""


@dataclass(frozen=True)
class Study:
    """A study, by its number from 1 on."""

    number: int
    modality: Modality
    images: int
    stat: bool
    """Whether its header says that it is urgent."""
    sample: str
    """Which of the shared radiographs it shows."""

    @property
    def urgent(self) -> bool:
        """Whether it goes first."""
        return self.stat or self.modality.kind is Kind.EMERGENCY


class What(StrEnum):
    """What is sent."""

    NEW = "new"
    LATE = "late"
    """The one image that was left out at first."""
    AGAIN = "again"
    """The whole study, the same bytes."""
    CORRECTED = "corrected"
    """The whole study, with another accession number."""


class Sending(NamedTuple):
    """One association: at so many seconds after midnight this modality sends these images of a study."""

    at: float
    ae_title: str
    study: int
    images: tuple[int, ...]
    what: What


@dataclass(frozen=True)
class Day:
    """A whole day: the studies, and everything that is sent, in order."""

    studies: list[Study]
    sendings: list[Sending]


def plan(seed: int, studies: int) -> Day:
    """Draw a day of so many studies."""
    chance = random.Random(f"day {seed}")
    drawn = [_study(number, chance) for number in range(1, studies + 1)]
    docked = {m.ae_title: list(_dockings(chance)) for m in MODALITIES if m.kind is Kind.PORTABLE}
    sent: dict[int, Sending] = {}
    more: list[Sending] = []
    for study in drawn:
        at = _moment(study.modality.kind, chance)
        if study.modality.kind is Kind.PORTABLE:
            times = docked[study.modality.ae_title]
            at = times[bisect_left(times, at)]
        everything = tuple(range(1, study.images + 1))
        sent[study.number] = Sending(at, study.modality.ae_title, study.number, everything, What.NEW)
    # What still has something to come is of the day until the evening.
    left = [study for study in drawn if sent[study.number].at < 18 * HOUR]
    chance.shuffle(left)
    for study in _taken(left, LATE * studies, at_least=2):
        first = sent[study.number]
        sent[study.number] = first._replace(images=first.images[:-1])
        at = first.at + chance.uniform(10 * MINUTE, HOUR)
        more.append(first._replace(at=at, images=first.images[-1:], what=What.LATE))
    for study in _taken(left, CORRECTED * studies):
        first = sent[study.number]
        more.append(first._replace(at=first.at + chance.uniform(HOUR, 5 * HOUR), what=What.CORRECTED))
    for number, study in enumerate(_taken(left, AGAIN * studies)):
        first = sent[study.number]
        if number % 2:
            more.append(first._replace(at=first.at + chance.uniform(HOUR / 2, 5 * HOUR), what=What.AGAIN))
        else:
            at = next(hour * HOUR for hour in PACS_ROUNDS if hour * HOUR > first.at + HOUR)
            more.append(first._replace(at=at, ae_title="PACS", what=What.AGAIN))
    return Day(drawn, sorted([*sent.values(), *more]))


def _study(number: int, chance: random.Random) -> Study:
    (kind,) = chance.choices(list(SHARES), list(SHARES.values()))
    modality = chance.choice([modality for modality in MODALITIES if modality.kind is kind])
    (images,) = chance.choices(list(IMAGES), list(IMAGES.values()))
    stat = kind is not Kind.EMERGENCY and chance.random() < STAT
    return Study(number, modality, images, stat, chance.choice(("RG2", "RG3")))


def _moment(kind: Kind, chance: random.Random) -> float:
    curve = EMERGENCY_CURVE if kind is Kind.EMERGENCY else CURVE
    (hour,) = chance.choices(range(24), curve)
    return (hour + chance.random()) * HOUR


def _dockings(chance: random.Random) -> Iterator[float]:
    """When a portable unit is back at its plug, and sends what it has made since."""
    at = chance.uniform(0.5, 2) * HOUR
    while at < DAY - HOUR:
        yield at
        at += chance.uniform(1, 2) * HOUR
    yield DAY - MINUTE
    # For what was made in the last minute.
    yield DAY


def _taken(left: list[Study], count: float, *, at_least: int = 1) -> list[Study]:
    """Take so many studies, one at least, out of those that are left and have so many images."""
    taken = [study for study in left if study.images >= at_least][: max(1, round(count))]
    for study in taken:
        left.remove(study)
    return taken
