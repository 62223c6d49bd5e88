"""Makes sure that pynetdicom's reactor stands still while an answer is waited for.

Before it sends a request, pynetdicom stops the association's reactor thread, which would take the answer off the queue
and drop it as unexpected: it clears `_reactor_checkpoint` and waits for `_is_paused`. That flag is up already while the
reactor is on its way out of its last pause, so that a request that follows closely on an answer may run beside it. Of
2,000 C-STOREs in a row on a busy machine four lost their answers so (pynetdicom 3.0.4), each of which cost a time-out
and an association, for an instance that was stored. This event knows who stands at it.

The flag can be wrong the other way too: a thread that has served an N-EVENT-REPORT takes it down while the reactor is
held, and who then releases the association waits for ever. Here the flag is up as long as the reactor is held.
"""

from __future__ import annotations

import threading
from typing import Any

from pynetdicom.association import Association


class Checkpoint(threading.Event):
    """An event whose `halt` returns when the one thread that passes it is held."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._held = False
        self.set()

    @property
    def held(self) -> bool:
        """Whether the thread is held."""
        return self._held

    def set(self) -> None:
        """Let the thread pass."""
        super().set()
        with self._changed:
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Pass, if it is set; else be held until it is, or until `timeout` is over."""
        with self._changed:
            if not self.is_set():
                self._held = True
                self._changed.notify_all()
                self._changed.wait_for(self.is_set, timeout)
                self._held = False
            return self.is_set()

    def halt(self, seconds: float) -> bool:
        """Clear it, and wait until the thread is held; return whether it is within `seconds`."""
        with self._changed:
            self.clear()
            return self._changed.wait_for(lambda: self._held, seconds)


class _Requestor(Association):
    """An association whose flag tells the truth about its reactor."""

    @property
    def _is_paused(self) -> bool:
        return bool(self.__dict__["_is_paused"]) or self._reactor_checkpoint.held  # type: ignore[attr-defined]

    @_is_paused.setter
    def _is_paused(self, paused: bool) -> None:
        self.__dict__["_is_paused"] = paused


def install(association: Association) -> None:
    """Put a Checkpoint in the place of the association's own. Before its thread starts."""
    association._reactor_checkpoint = Checkpoint()
    association.__class__ = _Requestor


def halt_reactor(association: Association, seconds: float) -> None:
    """Hold the reactor, before a request is sent. Where its thread has ended, nobody takes an answer away."""
    checkpoint: Any = association._reactor_checkpoint
    if isinstance(checkpoint, Checkpoint) and association.is_alive():
        checkpoint.halt(seconds)
