"""Where benchmarks leave their figures: JSON files in `bench-results/`."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path("bench-results")


def save(name: str, result: dict[str, Any]) -> None:
    """Write a result, with when and on what it was measured."""
    FOLDER.mkdir(exist_ok=True)
    context = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    (FOLDER / f"{name}.json").write_text(json.dumps({**context, **result}, indent=2) + "\n")


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def percentile(values: list[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]


def file_system(folder: Path) -> str:
    """Return the type of the file system that holds `folder`."""
    answer = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True)
    return answer.stdout.strip()
