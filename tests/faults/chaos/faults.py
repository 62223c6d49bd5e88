"""What breaks, and when: drawn from a seed, some of them together.

The moments are not times but points of the way, since a time means something else on every machine: how many
instances are acknowledged, then how many reports have arrived. Then up to a quarter of a second of chance is added.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.chaos.site import Site

FULL_SECONDS = (1.0, 3.0)
LEFT_BYTES = 4096
"""What a full disk still takes."""
LATE = 4
"""How many break once more after the last instance was sent."""

Fault = Callable[[Site, random.Random], str]


def _kill(part: str) -> Fault:
    def fault(site: Site, chance: random.Random) -> str:  # noqa: ARG001
        return f"kill the {part}" if site.parts[part].kill() else f"the {part} is dead already"

    return fault


def _kill_child(part: str) -> Fault:
    def fault(site: Site, chance: random.Random) -> str:
        return f"kill a child of the {part}" if site.parts[part].kill_child(chance) else f"the {part} has no child"

    return fault


def _kill_broker(site: Site, chance: random.Random) -> str:
    if not site.valkey.alive:
        return "the broker is dead already"
    site.valkey.kill()
    pause = chance.uniform(0.2, 2)
    site.later(pause, site.valkey.start)
    return f"kill the broker, which loses what it had, for {pause:.1f} s"


def _kill_database(site: Site, chance: random.Random) -> str:
    if not site.postgresql.alive:
        return "PostgreSQL is dead already"
    site.postgresql.kill()
    pause = chance.uniform(0.2, 2)
    site.later(pause, site.postgresql.start)
    return f"kill PostgreSQL for {pause:.1f} s"


def _stop_broker(site: Site, chance: random.Random) -> str:
    seconds = chance.uniform(1, site.longest_stop)
    site.valkey.suspend()
    site.later(seconds, site.valkey.resume)
    return f"stop the broker for {seconds:.1f} s"


def _stop_database(site: Site, chance: random.Random) -> str:
    seconds = chance.uniform(1, site.longest_stop)
    site.postgresql.suspend()
    site.later(seconds, site.postgresql.resume)
    return f"stop PostgreSQL for {seconds:.1f} s"


def _cut_senders(site: Site, chance: random.Random) -> str:
    cuts = [(False, chance.randrange(40_000)), (True, chance.randrange(1_000)), (False, chance.randrange(80_000))]
    for back, after in cuts:
        site.to_listener.cut(back=back, after=after)
    return f"cut three senders' connections, (of the answers, after bytes): {cuts}"


def _cut_courier(site: Site, chance: random.Random) -> str:
    cuts = [(False, chance.randrange(10_000)), (True, chance.randrange(1_000))]
    for back, after in cuts:
        site.to_pacs.cut(back=back, after=after)
    return f"cut two of the courier's connections, (of the answers, after bytes): {cuts}"


def _fill_disk(site: Site, chance: random.Random) -> str:
    seconds = chance.uniform(*FULL_SECONDS)
    filler = site.disk / f"filler-{chance.randrange(10**9)}"
    fill(filler)
    site.later(seconds, filler.unlink)
    return f"fill the spool's disk for {seconds:.1f} s"


def fill(filler: Path) -> None:
    """Take all but the last few bytes of a file system, while others write to it."""
    with filler.open("wb") as file:
        for attempt in range(1, 100):
            found = os.statvfs(filler.parent)
            try:
                os.posix_fallocate(file.fileno(), 0, max(found.f_bavail * found.f_frsize - attempt * LEFT_BYTES, 1))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            else:
                return


KINDS: dict[str, Fault] = {
    **{f"kill {part}": _kill(part) for part in ("listener", "worker", "courier", "sweeper", "pacs")},
    **{f"kill a child of {part}": _kill_child(part) for part in ("worker", "courier")},
    "kill broker": _kill_broker,
    "kill database": _kill_database,
    "stop broker": _stop_broker,
    "stop database": _stop_database,
    "cut senders": _cut_senders,
    "cut courier": _cut_courier,
    "fill disk": _fill_disk,
}
# A server that was killed cannot be stopped at the same moment.
NOT_TOGETHER = ({"kill broker", "stop broker"}, {"kill database", "stop database"})


@dataclass(frozen=True)
class Moment:
    """At this point of the way these break together."""

    progress: float
    delay: float
    kinds: tuple[str, ...]

    def __str__(self) -> str:
        return f"at {self.progress:.2f}: {' + '.join(self.kinds)}"


def plan(seed: int) -> list[Moment]:
    """Draw when what breaks: every kind once while instances come in, a few again while the last reports go out."""
    chance = random.Random(f"plan {seed}")
    early, late = _groups(list(KINDS), chance), _groups(chance.sample(list(KINDS), LATE), chance)
    points = [chance.uniform(0.02, 0.95) for _ in early] + [chance.uniform(1.0, 1.9) for _ in late]
    moments = [
        Moment(point, chance.uniform(0, 0.25), tuple(group))
        for point, group in zip(points, [*early, *late], strict=True)
    ]
    return sorted(moments, key=lambda moment: moment.progress)


def _groups(kinds: list[str], chance: random.Random) -> list[list[str]]:
    """Put kinds together at random, one to four of them."""
    chance.shuffle(kinds)
    groups: list[list[str]] = []
    while kinds:
        size = chance.choice((1, 1, 1, 2, 2, 3, 4))
        groups.append(kinds[:size])
        kinds = kinds[size:]
    for group in list(groups):
        apart = [max(pair) for pair in NOT_TOGETHER if pair <= set(group)]
        groups += [[group.pop(group.index(kind))] for kind in apart]
    return groups
