"""Draws `docs/cost.svg` and prints the tables of `docs/speed.md` from what `test_cost.py` left in `bench-results/`.

python -m tests.benchmarks.plot_cost
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib

from tests.benchmarks.results import FOLDER

matplotlib.use("svg")
matplotlib.rcParams["svg.fonttype"] = "none"
os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
PARTS = {
    "listen": "listener",
    "work --only analyse": "worker",
    "work --only report,deliver": "courier",
    "sweep": "sweeper",
}
OTHERS = ("up", "broker")

Spreads = dict[str, dict[str, dict[str, float]]]


def main() -> None:
    """Draw and print."""
    size, study, workers = (
        json.loads((FOLDER / f"cost-{name}.json").read_text()) for name in ("size", "study", "workers")
    )
    _draw(size, study["of_each_image"], workers["by_workers"], Path("docs/cost.svg"))
    tables = [_by_study(study["of_each_image"]), _by_size(size), _by_workers(workers["by_workers"])]
    print("\n\n".join("\n".join(table) for table in tables))


def _draw(size: dict[str, Any], study: Spreads, workers: Spreads, target: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9.6, 6.4), layout="constrained")
    below = [0.0] * len(study)
    for name, label in {**PARTS, "others": "broker, up"}.items():
        heights = [_part(spreads, name) for spreads in study.values()]
        axes[0, 0].bar(list(study), heights, bottom=below, label=label)
        below = [one + more for one, more in zip(below, heights, strict=True)]
    axes[0, 0].set_title("a study of so many images")
    axes[0, 0].set_ylabel("processor ms an image")
    axes[0, 0].margins(y=0.45)  # room for the legend
    axes[0, 0].legend(fontsize="small", loc="upper right", ncols=2)
    for axis, kind in ((axes[0, 1], "receive"), (axes[1, 0], "read")):
        for what, label, style in (("processor_milliseconds", "processor", "o-"), ("milliseconds", "elapsed", "o:")):
            axis.errorbar(*_points(size, kind, what), fmt=style, markersize=4, capsize=2, label=label)
        axis.set_title(f"{kind} an image of so many MB")
        axis.set_ylabel("ms an image")
        axis.legend(fontsize="small")
    rates = [spreads["rate"]["median"] for spreads in workers.values()]
    axes[1, 1].plot(list(workers), rates, "o-", label="read")
    axes[1, 1].plot(list(workers), [rates[0] * int(number) for number in workers], ":", color="grey", label="in step")
    axes[1, 1].set_title("so many processes read")
    axes[1, 1].set_ylabel("images a second, 10 MB")
    axes[1, 1].legend(fontsize="small")
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
        axis.grid(which="major", axis="y", alpha=0.3)
    figure.savefig(target, metadata={"Date": None})


def _part(spreads: dict[str, dict[str, float]], name: str) -> float:
    if name == "others":
        return sum(spreads[other]["median"] for other in OTHERS)
    return spreads[name]["median"]


def _points(size: dict[str, Any], kind: str, what: str) -> tuple[list[float], list[float], list[list[float]]]:
    """Megabytes, medians, and how far the least and the most are from them."""
    spreads = [of_size[what] for of_size in size[kind].values()]
    medians = [one["median"] for one in spreads]
    away = [[one["median"] - one["least"] for one in spreads], [one["most"] - one["median"] for one in spreads]]
    return list(size["megabytes"].values()), medians, away


def _by_study(study: Spreads) -> list[str]:
    lines = [f"| images of a study | {' | '.join(PARTS.values())} | all parts | elapsed |"]
    lines.append("|---" + "|---:" * (len(PARTS) + 2) + "|")
    for images, spreads in study.items():
        cells = [f"{spreads[name]['median']:.0f}" for name in (*PARTS, "all parts", "milliseconds")]
        lines.append(f"| {images} | {' | '.join(cells)} |")
    return lines


def _by_size(size: dict[str, Any]) -> list[str]:
    lines = [
        "| MB | receive: processor ms | elapsed ms | read: processor ms | elapsed ms |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in size["megabytes"]:
        cells = [
            f"{size[kind][name][what]['median']:.1f}"
            for kind in ("receive", "read")
            for what in ("processor_milliseconds", "milliseconds")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, *(_slope(size, kind) for kind in ("receive", "read"))]


def _slope(size: dict[str, Any], kind: str) -> str:
    """The straight line through the processor times, by least squares."""
    x, y, _ = _points(size, kind, "processor_milliseconds")
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - middle_x) ** 2 for a in x
    )
    return f"{kind}: {middle_y - slope * middle_x:.1f} ms and {slope:.2f} ms for each MB"


def _by_workers(workers: Spreads) -> list[str]:
    lines = ["| processes | images a second | times as many | processor ms an image |", "|---|---:|---:|---:|"]
    first = next(iter(workers.values()))["rate"]["median"]
    for number, spreads in workers.items():
        rate = spreads["rate"]["median"]
        lines.append(f"| {number} | {rate:.2f} | {rate / first:.2f} | {spreads['cpu']['median']:.0f} |")
    return lines


if __name__ == "__main__":
    main()
