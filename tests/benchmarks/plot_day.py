"""Draws `docs/day.svg` and prints the tables of `docs/day.md` from what `test_day.py` left in `bench-results/`.

python -m tests.benchmarks.plot_day
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib

from tests.benchmarks.day.schedule import OUTAGE
from tests.benchmarks.results import FOLDER, percentile

matplotlib.use("svg")
matplotlib.rcParams["svg.fonttype"] = "none"
os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
SHOWN = {"images": "images to be read", "complete": "studies to be reported", "deliveries": "reports to be sent"}
CLASSES = (("routine", False, "C0"), ("urgent", True, "C3"))
SLICES = 2
"""Of an hour, for the percentiles of the waits."""
SMALLEST = 0.05
"""Seconds; less is drawn as this."""


def main() -> None:
    """Draw and print."""
    found = json.loads((FOLDER / "day.json").read_text())
    _draw(found, Path("docs/day.svg"))
    print("\n".join([*_waits(found), "", *_answers(found), "", *_others(found)]))


def _draw(found: dict[str, Any], target: Path) -> None:
    from matplotlib import pyplot, ticker

    figure, (sent, waiting, waited) = pyplot.subplots(
        3, 1, figsize=(9.6, 7.6), sharex=True, layout="constrained", height_ratios=(1, 2, 2)
    )
    for axis in (sent, waiting, waited):
        axis.axvspan(*OUTAGE, color="grey", alpha=0.2, linewidth=0)
        axis.grid(which="major", alpha=0.3)
    hours = range(len(found["images_sent_by_hour"]))
    sent.bar([hour + 0.5 for hour in hours], found["images_sent_by_hour"], width=0.9, color="C7")
    sent.set_ylabel("images sent\nin an hour")
    sent.text(sum(OUTAGE) / 2, sent.get_ylim()[1], "the PACS is away", ha="center", va="bottom", fontsize="small")
    samples = found["backlog"]["samples"]
    for name, label in SHOWN.items():
        column = found["backlog"]["fields"].index(name)
        waiting.plot([one[0] for one in samples], [one[column] for one in samples], linewidth=1.2, label=label)
    waiting.set_ylabel("waiting")
    waiting.legend(fontsize="small", loc="upper left")
    for name, urgent, colour in CLASSES:
        middles, half, most = _by_slice(found["waits"]["of_each"], urgent=urgent)
        waited.semilogy(middles, half, color=colour, marker="o", markersize=3, label=f"{name}, median")
        waited.semilogy(middles, most, color=colour, linestyle=":", label=f"{name}, p95")
    waited.yaxis.set_major_formatter("{x:g}")
    waited.yaxis.set_minor_formatter("{x:g}")
    waited.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    waited.set_ylabel("seconds from the last answer\nto the report in the PACS")
    waited.set_xlabel("hour of the day")
    waited.set_xlim(0, max(24.0, samples[-1][0]))
    waited.set_xticks(range(0, 25, 2))
    waited.legend(fontsize="small", loc="upper left")
    figure.savefig(target, metadata={"Date": None})


def _by_slice(waits: list[list[Any]], *, urgent: bool) -> tuple[list[float], list[float], list[float]]:
    """The middle of each part of an hour with enough studies, and the median and 95th percentile of their waits."""
    middles, half, most = [], [], []
    for number in range(24 * SLICES):
        start, end = number / SLICES, (number + 1) / SLICES
        values = [wait[3] for wait in waits if start <= wait[0] < end and wait[1] is urgent]
        if values:
            middles.append((start + end) / 2)
            half.append(max(SMALLEST, percentile(values, 50)))
            most.append(max(SMALLEST, percentile(values, 95)))
    return middles, half, most


def _waits(found: dict[str, Any]) -> list[str]:
    lines = [
        "| answered in | urgent: studies | p50 | p95 | p99 | most | routine: studies | p50 | p95 | p99 | most |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for window, classes in found["seconds_waited_beyond_the_quiet_time"].items():
        cells = [_cells(classes[name]["in_the_pacs"], "{:.1f}") for name in ("urgent", "routine")]
        lines.append(f"| {window} | {' | '.join(cells)} |")
    return lines


def _answers(found: dict[str, Any]) -> list[str]:
    lines = ["| C-STORE answers, ms | images | p50 | p95 | p99 | most |", "|---|---:|---:|---:|---:|---:|"]
    for window, spread in found["c_store_answer_milliseconds"].items():
        lines.append(f"| {window} | {_cells(spread, '{:.0f}')} |")
    return lines


def _cells(spread: dict[str, float], form: str) -> str:
    values = [form.format(spread[name]) if name in spread else "" for name in ("p50", "p95", "p99", "most")]
    return " | ".join([str(spread["count"]), *values])


def _others(found: dict[str, Any]) -> list[str]:
    lines = ["| | most waiting | next to none again at |", "|---|---:|---|"]
    hours = found["empty_again_at_hour"]
    for name, label in SHOWN.items():
        again = [f"{_clock(hour)} ({what.split(', ')[1]})" for what, hour in hours.items() if _is_of(what, name)]
        lines.append(f"| {label} | {found['most_waiting'][name]} | {', '.join(again)} |")
    return lines


def _is_of(what: str, name: str) -> bool:
    return what.startswith({"images": "images", "complete": "studies", "deliveries": "deliveries"}[name])


def _clock(hour: float | None) -> str:
    return "never" if hour is None else f"{int(hour)}:{int(hour % 1 * 60):02}"


if __name__ == "__main__":
    main()
