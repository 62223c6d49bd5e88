"""The queue of hints, with a real broker."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Consumer, Message

from tests.servers import Valkey, given, wait_until
from worker.broker import client, queue_length
from worker.claims import Work
from worker.hints import MOST_WITH_PAUSE, Hints, task_name
from worker.queue import make_app


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A broker of this test's own, which it may stop."""
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.resume()
    server.kill()


@pytest.mark.parametrize("answer", ["ack_log_error", "reject_log_error"])
def test_a_worker_takes_the_next_hint_where_the_last_could_not_be_acknowledged(
    own_valkey: Valkey, tmp_path: Path, answer: str
) -> None:
    app = make_app(given(tmp_path / "node", broker_url=own_valkey.url))
    (queue,) = (queue for queue in app.conf.task_queues if queue.name == Work.ANALYSE.value)
    for _ in range(2):
        app.send_task(task_name(Work.ANALYSE), queue=queue.name)
    taken: list[Message] = []
    with (
        app.connection_for_read() as connection,
        Consumer(connection, [queue], on_message=taken.append, prefetch_count=1),
    ):
        connection.drain_events(timeout=20)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=1)
        assert len(taken) == 1, "a worker of one process takes one hint at a time"

        own_valkey.suspend()
        getattr(taken[0], answer)(logging.getLogger(), connection.connection_errors)
        own_valkey.resume()
        connection.drain_events(timeout=20)
        assert len(taken) == 2


def test_with_a_pause_the_first_hint_leaves_at_once_and_of_a_flood_only_some(valkey: Valkey, tmp_path: Path) -> None:
    settings = given(tmp_path / "node", broker_url=valkey.url)
    hints = Hints(make_app(settings), pause=0.5)
    with client(settings) as broker:
        broker.delete(Work.ANALYSE.value)
        begun = time.monotonic()
        for _ in range(1000):
            hints.give(Work.ANALYSE)
        wait_until(lambda: queue_length(broker, Work.ANALYSE.value) > 0, what="the first is sent")
        assert queue_length(broker, Work.ANALYSE.value) <= 1 + (time.monotonic() - begun) / 0.5
        assert hints.unsent(Work.ANALYSE) <= MOST_WITH_PAUSE + 1
        wait_until(lambda: hints.unsent(Work.ANALYSE) == 0, what="all that were kept are sent")
        broker.delete(Work.ANALYSE.value)
