"""A peer that never answers a TCP SYN, without a firewall and without a network: its queue of connections is full."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

MOST = 16
ANSWERS_WITHIN_SECONDS = 0.3


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that nobody can connect to, and that refuses nobody. Linux drops what a full queue has no place for."""
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = server.getsockname()[1]
        for _ in range(MOST):
            waiting = opened.enter_context(socket.socket())
            waiting.settimeout(ANSWERS_WITHIN_SECONDS)
            try:
                waiting.connect(("127.0.0.1", port))
            except TimeoutError:
                yield port
                return
        raise AssertionError(f"the queue takes {MOST} connections")
