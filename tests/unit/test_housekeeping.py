"""Chores are done when they are due, and one that fails does not keep the others from being done."""

from __future__ import annotations

import threading

from dicom_node.spool import SpoolError
from worker.housekeeping import Chore, keep_house


def test_each_chore_is_done_in_its_own_time_and_one_that_fails_stops_no_other() -> None:
    stop, done = threading.Event(), []

    def quick() -> float:
        done.append("quick")
        if done.count("quick") == 3:
            stop.set()
        return 0.01

    def slow() -> float:
        done.append("slow")
        return 3600

    def failing() -> float:
        done.append("failing")
        raise SpoolError("the spool cannot be read")

    chores = [Chore("failing", failing), Chore("quick", quick), Chore("slow", slow)]
    keep_house(chores, stop)
    assert sorted(done) == ["failing", "quick", "quick", "quick", "slow"]
    assert [chore.failing for chore in chores] == [True, False, False]
