"""How often a source that is well is called silent, and how soon one that stopped is missed: by simulation.

A source sends at random (Poisson) by the habit of its hours; from week to week its volume varies by a tenth. Holidays
are ten days a year on which it sends a tenth. The rule is that of the node (`models.silence.is_missed`).
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from models.silence import LEAST_PAUSE, WEEKS, is_missed
from tests.benchmarks.results import save

HOURS = 24 * 7
LEAST_HOURS = LEAST_PAUSE.total_seconds() / 3600
STOPS = 200
CASES = [(name, volume) for name in ("clinic", "hospital") for volume in (50, 250, 1000)]

pytestmark = pytest.mark.timeout(1800)


def habit(name: str) -> NDArray[np.float64]:
    """What share of a week's studies comes in each hour: a clinic by day, a hospital always and less at night."""
    day, hour = np.divmod(np.arange(HOURS), 24)
    working = (day < 5) & (hour >= 7) & (hour < 17 + (name == "hospital"))
    quiet = np.where((day >= 5) & (hour >= 8) & (hour < 20), 0.35, 0.15) if name == "hospital" else np.zeros(HOURS)
    shares: NDArray[np.float64] = np.where(working, 1.0, quiet)
    shares /= shares.sum()
    return shares


def simulated(shares: NDArray[np.float64], volume: int, weeks: int, holidays: int) -> NDArray[np.float64]:
    """When the studies of so many weeks come, in hours."""
    random = np.random.default_rng(7)
    rates = np.outer(volume * random.lognormal(0, 0.1, weeks), shares)
    for day in random.choice(weeks * 7, holidays * weeks // 52, replace=False):
        rates.reshape(-1, 24)[day] *= 0.1
    counts = random.poisson(rates).ravel()
    came: NDArray[np.float64] = np.repeat(np.arange(counts.size), counts) + random.random(counts.sum())
    return np.sort(came)


def missed(came: NDArray[np.float64], last: float, now: float) -> bool:
    """Whether nothing since `last` is called silence at `now`."""
    back = HOURS * np.arange(1, WEEKS + 1)
    counts = np.searchsorted(came, now - back, "right") - np.searchsorted(came, last - back, "right")
    return now - last >= LEAST_HOURS and is_missed([int(count) for count in counts])


def delay(came: NDArray[np.float64], stopped: float) -> float:
    """After how many hours a source that stopped then is missed."""
    last = float(came[np.searchsorted(came, stopped) - 1])
    now = stopped
    while not missed(came, last, now):
        now += 0.25
    return now - stopped


def test_false_alarms_and_delays(capsys: pytest.CaptureFixture[str]) -> None:
    result = {}
    for name, volume in CASES:
        years = 6 if volume == 1000 else 20
        found: dict[str, float] = {"years": years}
        for holidays in (0, 10):
            came = simulated(habit(name), volume, 52 * years, holidays)
            pauses = itertools.pairwise(came.tolist())
            alarms = sum(missed(came, last, now) for last, now in pauses if last > (WEEKS + 1) * HOURS)
            found[f"false alarms a year, {holidays} holidays"] = round(alarms / years, 2)
        came = simulated(habit(name), volume, 52 * years, 0)
        stops = np.random.default_rng(8).uniform(10 * HOURS, came[-1] - HOURS, STOPS)
        hours = np.percentile([delay(came, stopped) for stopped in stops], [50, 90, 100])
        found |= dict(zip(("hours until missed", "90 %", "most"), map(float, hours.round(1)), strict=True))
        result[f"{name}, {volume} a week"] = found
    save("silence", result)
    with capsys.disabled():
        for case, figures in result.items():
            print(f"\n{case}: {figures}")
