"""A wire between two of the node's neighbours, which can be cut at any byte."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass

PIECE = 16_384


@dataclass
class _Cut:
    """A cut to come: in one direction, after so many bytes."""

    back: bool
    left: int


class Wire:
    """Listens on a port and passes on to `target`; whoever carries the byte where a cut is due loses both ends.

    A target that does not listen is as good as cut: the caller is hung up on.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._lock = threading.Lock()
        self._cuts: list[_Cut] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.done = 0
        self._run(self._accept)

    def cut(self, *, back: bool, after: int) -> None:
        """Cut the connection that carries the `after`th byte from now on: of the answers where `back`."""
        with self._lock:
            self._cuts.append(_Cut(back, after))

    def close(self) -> None:
        """Hang up on everybody."""
        # Without it, accept() would not notice.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for connection in self._open:
                _hang_up(connection)
        for thread in self._threads:
            thread.join(10)

    def _run(self, what: object, *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)  # type: ignore[arg-type]
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                return
            try:
                called = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                caller.close()
                continue
            called.settimeout(None)
            with self._lock:
                self._open |= {caller, called}
            self._run(self._carry, caller, called)

    def _carry(self, caller: socket.socket, called: socket.socket) -> None:
        back = threading.Thread(target=self._pass, args=(called, caller, True), daemon=True)
        back.start()
        self._pass(caller, called, False)
        back.join()
        with self._lock:
            self._open -= {caller, called}
        caller.close()
        called.close()

    def _pass(self, source: socket.socket, target: socket.socket, back: bool) -> None:
        try:
            while data := source.recv(PIECE):
                kept = self._until_the_cut(len(data), back)
                target.sendall(data[:kept])
                if kept < len(data):
                    _reset(source, target)
                    return
            target.shutdown(socket.SHUT_WR)
        except OSError:
            _hang_up(source)
            _hang_up(target)

    def _until_the_cut(self, length: int, back: bool) -> int:
        """Return how many of the next `length` bytes still go through."""
        with self._lock:
            for cut in self._cuts:
                if cut.back == back:
                    if cut.left < length:
                        self._cuts.remove(cut)
                        self.done += 1
                        return cut.left
                    cut.left -= length
        return length


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _reset(*connections: socket.socket) -> None:
    """End connections as a router does that forgot them."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _hang_up(connection)
