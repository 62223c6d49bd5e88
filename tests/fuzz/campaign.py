"""Runs a fuzz target in a process of its own, so that its crash is told and its seeds are removed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """What an input may be, and may take, before it is a finding."""

    longest_input: int
    seconds_an_input: int
    megabytes: int


def run(target: str, seeds: Sequence[bytes], limits: Limits) -> int:
    """Change `seeds` for so many seconds, or try a file again; the command line has one or the other, and a folder."""
    what, folder = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "build/fuzz")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", target, "--"]
    if not what.isdigit():
        return subprocess.run([*command, what], check=False).returncode
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = {
            "max_total_time": what,
            "max_len": limits.longest_input,
            "timeout": limits.seconds_an_input,
            "rss_limit_mb": limits.megabytes,
            "artifact_prefix": f"{folder}/",
            "print_final_stats": 1,
        }
        given = [f"-{name}={value}" for name, value in options.items()]
        return subprocess.run([*command, *given, corpus], check=False).returncode
