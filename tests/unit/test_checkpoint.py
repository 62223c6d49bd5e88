"""What pynetdicom must go on doing so that no answer is taken from the one that waits for it."""

from __future__ import annotations

import inspect
import threading

from pynetdicom import AE
from pynetdicom.association import Association

from dicom_node.checkpoint import Checkpoint, install


def test_pynetdicom_still_stops_its_reactor_by_the_event_that_ours_takes_the_place_of() -> None:
    reactor = inspect.getsource(Association._run_reactor)
    paused, held, resumed = (
        reactor.index(line)
        for line in ("self._is_paused = True", "self._reactor_checkpoint.wait()", "self._is_paused = False\n\n")
    )
    assert paused < held < resumed
    request = inspect.getsource(Association.send_c_store)
    assert request.index("self._reactor_checkpoint.clear()") < request.index("self.dimse.send_msg(")


def test_who_halts_a_checkpoint_goes_on_only_when_the_other_thread_is_held() -> None:
    checkpoint, over = Checkpoint(), threading.Event()
    passing = threading.Lock()

    def reactor() -> None:
        while not over.is_set():
            checkpoint.wait()
            with passing:
                pass

    thread = threading.Thread(target=reactor)
    thread.start()
    try:
        # As closely one after the other as a halt can follow on a pause.
        for _ in range(2000):
            assert checkpoint.halt(10)
            assert passing.acquire(blocking=False), "the other thread is beyond the checkpoint"
            checkpoint.set()
            passing.release()
    finally:
        over.set()
        checkpoint.set()
        thread.join(10)
    assert not thread.is_alive()


def test_a_halt_that_nobody_comes_to_ends() -> None:
    assert not Checkpoint().halt(0.01)


def test_a_checkpoint_that_is_set_holds_nobody() -> None:
    checkpoint = Checkpoint()
    assert checkpoint.wait(0)
    checkpoint.clear()
    assert not checkpoint.wait(0.01)
    checkpoint.set()
    assert checkpoint.wait(0.01)


def test_an_association_whose_reactor_is_held_says_so_whatever_another_thread_noted() -> None:
    association = Association(AE(), "requestor")
    install(association)
    reactor = threading.Thread(target=association._reactor_checkpoint.wait)
    association._reactor_checkpoint.clear()
    reactor.start()
    try:
        assert association._reactor_checkpoint.halt(10)
        association._is_paused = False  # as the thread that has served an N-EVENT-REPORT does
        assert association._is_paused
    finally:
        association._reactor_checkpoint.set()
        reactor.join(10)
    assert not association._is_paused
