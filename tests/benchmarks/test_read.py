"""What reading costs beyond decoding and predicting: images per second with one and two workers, and step by step.

Three things are done with the same files (`reading`): `bare`, `prepared` and `pipeline`. Processor time is compared
beside time, since other work on the machine makes only the latter longer.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from models.settings import Peer, Settings
from models.upgrade import upgrade
from tests.benchmarks.reading import SIZE, drained, fill, radiograph_of, steps
from tests.benchmarks.results import file_system, save, spread
from tests.servers import Node

IMAGES = 12
"""In each round, shared among the workers."""
ROUNDS = 3

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]
pytest.importorskip("ai_edge_litert")


def test_images_a_second_beside_decoding_and_predicting_alone(
    make_settings: Callable[..., Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source")])
    upgrade(settings)
    node = Node(settings, tmp_path / "log")
    image = radiograph_of(tmp_path / "limb.dcm")
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(ROUNDS):
        for workers in (1, 2):
            for kind in ("bare", "prepared", "pipeline"):
                if kind == "pipeline":
                    fill(settings, image, IMAGES)
                found[f"{kind}, {workers}"].append(drained(node, kind, workers, image, IMAGES))
    result = {
        "database": node.database.engine.dialect.name,
        "file_system": file_system(tmp_path),
        "image": f"{SIZE[0]} x {SIZE[1]}, 12 bits, uncompressed",
        "images_per_second": {name: spread([one["rate"] for one in all_]) for name, all_ in found.items()},
        "processor_milliseconds": {name: spread([one["cpu"] for one in all_]) for name, all_ in found.items()},
        "overhead": {
            f"over {peer}, {workers}": {
                what: _overhead(found[f"pipeline, {workers}"], found[f"{peer}, {workers}"], what)
                for what in ("rate", "cpu")
            }
            for peer in ("bare", "prepared")
            for workers in (1, 2)
        },
        "steps_processor_milliseconds": steps(node, image),
    }
    node.database.close()
    save(f"read-{result['database']}", result)
    with capsys.disabled():
        print("\n" + json.dumps(result, indent=1))


def _overhead(pipeline: list[dict[str, float]], peer: list[dict[str, float]], what: str) -> float:
    """The pipeline's cost over its peer's in the same round, less one: the median of the rounds."""
    ratios = [
        other["rate"] / one["rate"] if what == "rate" else one["cpu"] / other["cpu"]
        for one, other in zip(pipeline, peer, strict=True)
    ]
    return statistics.median(ratios) - 1
