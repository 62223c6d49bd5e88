"""An MLLP listener that no one here wrote: that of python-hl7, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from hl7.mllp import start_hl7_server


@dataclass
class Hl7Listener:
    """Where it listens, and what it got, as its parser sees it."""

    port: int = 0
    messages: list[Any] = field(default_factory=list)


@contextmanager
def hl7_listener(code: Callable[[Any], str] = lambda _: "AA", port: int = 0) -> Iterator[Hl7Listener]:
    """Acknowledge each message with `code` of it, until the block ends."""
    listener = Hl7Listener()
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def talk(reader: Any, writer: Any) -> None:
        try:
            while True:
                message = await reader.readmessage()
                listener.messages.append(message)
                writer.writemessage(message.create_ack(code(message)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def serve() -> None:
        server = await start_hl7_server(talk, "127.0.0.1", port, encoding="utf-8")
        listener.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await server.serve_forever()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    task = loop.create_task(serve())
    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield listener
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
        loop.run_until_complete(_end_all(loop))
        loop.close()


async def _end_all(loop: asyncio.AbstractEventLoop) -> None:
    """Connections that are still open."""
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
