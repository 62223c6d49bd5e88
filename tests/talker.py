"""A TCP server that says what it is told to, to whoever comes: whole answers, halves, single bytes, nothing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field


@dataclass
class Talker:
    """What is known of it; `over` is set when it is to end."""

    port: int
    over: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    asked: threading.Event = field(default_factory=threading.Event)
    """Set when something was read."""
    heard: list[bytes] = field(default_factory=list)

    def listen(self, connection: socket.socket, until: Callable[[bytes], bool]) -> bytes:
        """Read until it is enough; b"" where the other side has hung up before."""
        read = b""
        while not until(read):
            piece = connection.recv(65_536)
            if not piece:
                return b""
            read += piece
        self.heard.append(read)
        self.asked.set()
        return read

    def drip(self, connection: socket.socket, said: bytes, seconds: float = 0.05) -> None:
        """Say it byte by byte, and begin again."""
        while True:
            for at in range(len(said)):
                if self.over.wait(seconds):
                    return
                connection.sendall(said[at : at + 1])


Talk = Callable[[Talker, socket.socket], None]


@contextmanager
def talking(talk: Talk, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Talker]:
    """Run `talk` in a thread for each connection, which is closed afterwards; give what is known of it."""
    threads: list[threading.Thread] = []
    with closing(socket.create_server(("127.0.0.1", port))) as server:
        server.settimeout(0.1)
        talker = Talker(server.getsockname()[1])

        def hold(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                connection.settimeout(30)
                with closing(tls.wrap_socket(connection, server_side=True) if tls else connection) as held:
                    talk(talker, held)

        def serve() -> None:
            while not talker.over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection = server.accept()[0]
                    talker.connections += 1
                    threads.append(threading.Thread(target=hold, args=(connection,)))
                    threads[-1].start()

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield talker
        finally:
            talker.over.set()
            for thread in (serving, *threads):
                thread.join(30)
