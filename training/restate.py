"""Releases a bundle anew with the same model and plots and a card that says more: what the card of today holds besides.

The test split is read again with the released file, so that the read counts (`test_reads`); nothing is chosen by it.
Every figure of the old card has to come out as it stands there, else nothing is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models.clock import now
from training import evaluate
from training.bundles import written
from worker.bundle import CARD, MODEL, Bundle, Metrics

TOLERANCE = 5e-4
"""Largest difference to a figure of the old card: sums on other processors end in other digits."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add what `restate` takes."""
    parser.add_argument("bundle", type=Path, help="folder of the released bundle")
    parser.add_argument("new", type=Path, help="the new folder, e.g. worker/bundles/NAME-VERSION")
    parser.add_argument(
        "--test-reads", type=int, required=True, help="how often the test split was read, this time included"
    )


def run(options: argparse.Namespace) -> None:
    """Measure the bundle again, compare, and write the new one."""
    if options.new.exists():
        raise SystemExit(f"{options.new} exists; a released bundle is never overwritten.")
    restate(options.bundle, options.new, options.data, test_reads=options.test_reads)


def restate(old: Path, new: Path, root: Path, *, test_reads: int) -> None:
    """Write the bundle in the folder `old` anew, named NAME-VERSION as the folder `new`.

    Raises ValueError where a figure is not the old card's.
    """
    bundle = Bundle.load(old)
    name, _, number = new.name.rpartition("-")
    test = evaluate.measure(old, root, threads=2)
    before, after = bundle.card.metrics, test.metrics
    differing = differences(before, after)
    if differing:
        raise ValueError(f"Other figures than the card of {old.name} has: {', '.join(differing)}.")
    # The old card's figures stand: they are the same, and to the last digit those that were released.
    metrics = before.model_copy(update={"score_distribution": after.score_distribution, "test_reads": test_reads})
    card = bundle.card.model_copy(
        update={"name": name, "version": number, "created": now().replace(microsecond=0), "metrics": metrics}
    )
    pictures = {file: (old / file).read_bytes() for file in bundle.files if file not in (CARD, MODEL)}
    written(new, bundle.model, card, pictures)
    Bundle.load(new)
    print(f"{new}: the model of {old.name}, whose {len(before.values)} figures came out again")


def differences(before: Metrics, after: Metrics) -> list[str]:
    """Return the names of the figures that are not the same."""
    counts = ("images", "positives", "groups")
    differing = [name for name in counts if getattr(before, name) != getattr(after, name)]
    for name, one in before.values.items():
        other = after.values.get(name)
        if other is None or max(abs(one.value - other.value), abs(one.low - other.low), abs(one.high - other.high)) > (
            TOLERANCE
        ):
            differing.append(name)
    return differing
