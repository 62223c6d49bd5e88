"""A worker for which images of certain heights are poison: `python -m tests.faults.poisoned`, in a test alone.

Files that crash a real decoder cannot be had, so the harm is done where the decoder is called, in a real process:
`harm` stands for what a decoder can do. Leases are short, so that a test is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np
from pydicom.dataset import Dataset

import worker.analyse
import worker.isolation
import worker.leases
from dicom_node.pixels import ModelInput, model_input
from models import logs
from models.settings import load_settings
from worker import alone
from worker.app import serve
from worker.bundle import Bundle, default_bundle_path
from worker.claims import Work
from worker.queue import make_app

Decode = Callable[[Dataset, tuple[int, int]], ModelInput]
CRASHES, HANGS, EATS, SLOW = 470, 460, 450, 440
"""Rows of an image, and what becomes of the process that decodes it."""
LEASE_SECONDS = 3.0
SLOW_SECONDS = 4.0
EATEN = 4 * 1024**3


def harm(dataset: Dataset) -> None:
    """Do what a decoder does with this image."""
    if dataset.Rows == CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    if dataset.Rows == HANGS:
        # With the interpreter's lock held, as a decoder in C may: no other thread of the process runs any more.
        ctypes.PyDLL(None).sleep(600)
    if dataset.Rows == EATS:
        # Asked for and not touched: no harm is done should the limit not hold.
        eaten = [np.empty(64 * 1024**2, np.uint8) for _ in range(EATEN // (64 * 1024**2))]
        raise AssertionError(f"{len(eaten)} pieces of memory were to be had")
    if dataset.Rows == SLOW:
        time.sleep(SLOW_SECONDS)


def poison(
    decode: Callable[[Dataset, tuple[int, int]], ModelInput],
) -> Callable[[Dataset, tuple[int, int]], ModelInput]:
    """Let `harm` be done before `decode`."""

    def poisoned(dataset: Dataset, size: tuple[int, int]) -> ModelInput:
        harm(dataset)
        return decode(dataset, size)

    return poisoned


def main(arguments: list[str]) -> int:
    """With numbers, as `worker.alone`; without, as `osteon work`."""
    vars(worker.analyse)["model_input"] = poison(model_input)
    vars(worker.isolation)["COMMAND"] = [sys.executable, "-m", "tests.faults.poisoned"]
    vars(worker.leases).update(LEASE=timedelta(seconds=LEASE_SECONDS), BEAT_SECONDS=LEASE_SECONDS / 4)
    if arguments:
        return alone.main(arguments)
    settings = load_settings()
    logs.configure("worker", level=settings.log_level)
    works = frozenset((Work.ANALYSE, Work.REPORT))
    bundle = Bundle.load(settings.model_bundle or default_bundle_path())
    serve(make_app(settings), settings, works, bundle, part=f"worker-{os.getpid()}", concurrency=2)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
