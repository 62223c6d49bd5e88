"""Draws `docs/scale.svg` and prints the table of `docs/scale.md` from what `test_scale.py` left in `bench-results/`.

python -m tests.benchmarks.plot_scale
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
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
SHOWN = ("receive: new study", "claim: analyse", "sweep: a whole round", "reconcile: a step", "worklist: newest")


def main() -> None:
    """Draw and print."""
    found = {kind: json.loads((FOLDER / f"scale-{kind}.json").read_text()) for kind in DATABASES}
    _draw(found, Path("docs/scale.svg"))
    print("\n".join(_table(found)))


def _draw(found: dict[str, dict[str, Any]], target: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, layout="constrained")
    for axis, (kind, name) in zip(axes, DATABASES.items(), strict=True):
        for operation in SHOWN:
            by_size = found[kind]["milliseconds"][operation]
            least = [by_size[size]["least"] for size in by_size]
            axis.loglog([int(size) for size in by_size], least, marker="o", label=operation)
        axis.set_title(name)
        axis.set_xlabel("finished studies")
        axis.grid(which="major", alpha=0.3)
    axes[0].set_ylabel("milliseconds (least of 15)")
    axes[1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(target, metadata={"Date": None})


def _table(found: dict[str, dict[str, Any]]) -> list[str]:
    sizes = list(next(iter(found["sqlite"]["milliseconds"].values())))
    columns = [f"{name} {int(size):,}" for name in DATABASES.values() for size in (sizes[0], sizes[-1])]
    lines = [f"| milliseconds | {columns[0]} | {columns[1]} | ratio | {columns[2]} | {columns[3]} | ratio |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for operation in found["sqlite"]["milliseconds"]:
        cells = []
        for kind in DATABASES:
            by_size = found[kind]["milliseconds"][operation]
            first, last = by_size[sizes[0]]["least"], by_size[sizes[-1]]["least"]
            cells += [f"{first:.2f}", f"{last:.2f}", f"{last / first:.1f}"]
        lines.append(f"| {operation} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
