"""Processor time of a node's parts: `osteon up` and the processes under it."""

from __future__ import annotations

import psutil

from tests.servers import Node


def processor_seconds(node: Node) -> dict[str, float]:
    """Return what each part took so far, its children included, by the command that started it."""
    up = psutil.Process(next(iter(node._processes.values())).pid)
    spent = {"up": _of(up)}
    for part in up.children():
        words = part.cmdline()
        name = " ".join(words[3:6]) if words[1:3] == ["-m", "console"] else "broker"
        spent[name] = sum(_of(process) for process in (part, *part.children(recursive=True)))
    return spent


def _of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
