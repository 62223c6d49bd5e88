"""Couriers that are killed in the middle of their work, and couriers that are told to stop."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from models.database import database_now
from models.settings import Settings, environment_of
from models.tables import Delivery, DestinationState
from tests.post import Post, peer, recording
from tests.servers import Node, wait_until
from worker.claims import Work
from worker.hints import task_name
from worker.queue import make_app

COURIER = """
import time
from models import logs
from models.database import Database
from models.settings import load_settings
from worker.deliver import Courier

settings = load_settings()
logs.configure("courier", level="info")
courier = Courier(settings, Database.of(settings))
while True:
    courier.start_lanes()
    time.sleep(0.02)
"""
REPORTS = 24
KILLS = 3


class Process:
    """A courier in a process of its own, to be killed."""

    def __init__(self, settings: Settings, log: Path) -> None:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COURIER],
                env={**ours, **environment_of(settings)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        assert self._process.poll() is None, "it ended by itself"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)


def test_whenever_its_courier_is_killed_everything_arrives_once_and_unchanged(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    log = tmp_path / "couriers.log"
    with recording() as pacs, recording() as archive:
        post = Post(make_settings(peers=[peer("pacs", pacs.port), peer("archive", archive.port)]))
        sent = [post.report() for _ in range(REPORTS)]
        begun = 0
        for _ in range(KILLS):
            courier = Process(post.settings, log)
            wait_until(lambda: len(pacs.asked) > begun or done(post), seconds=60, what="it sends")  # noqa: B023
            time.sleep(chance.uniform(0, 0.4))
            courier.kill()
            begun = len(pacs.asked)
            post.let_leases_run_out()
        courier = Process(post.settings, log)
        wait_until(lambda: done(post), seconds=90, what=f"everything is delivered; the log:\n{log.read_text()[-2000:]}")
        courier.kill()
    for scp in (pacs, archive):
        assert scp.stored == {uid: {post.digest(uid)} for uid in sent}
        # What was on its way when its courier died came twice; nothing else did.
        assert REPORTS <= len(scp.asked) <= REPORTS + KILLS
        first_times = sorted(set(scp.asked), key=scp.asked.index)
        assert first_times == sent
    delivered = [outcome for _, outcome in post.attempts() if outcome == "stored"]
    assert len(delivered) == 2 * REPORTS
    assert max(post.tries()) <= 1 + KILLS
    post.database.close()


def done(post: Post) -> bool:
    return {row.state.value for row in post.all(Delivery)} == {"delivered"}


def test_a_courier_that_is_killed_is_followed_by_another_without_anybodys_help(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    with recording(lambda uid: "hang" if pacs.asked == [uid] else 0x0000) as pacs:
        post = Post(make_settings(peers=[peer("pacs", pacs.port)]))
        sent = [post.report() for _ in range(2)]
        first = Process(post.settings, tmp_path / "first.log")
        wait_until(lambda: pacs.asked, seconds=60, what="the first courier sends")
        second = Process(post.settings, tmp_path / "second.log")
        time.sleep(1)
        assert pacs.asked == sent[:1], "one courier at a time"
        first.kill()
        wait_until(lambda: done(post), seconds=60, what="the second takes over when the lease has run out")
        second.kill()
    assert pacs.asked == [sent[0], *sent]
    assert post.tries() == [2, 1]
    post.database.close()


@pytest.mark.parametrize("make_settings", ["postgresql"], indirect=True)
def test_a_worker_that_is_told_to_stop_lets_go_of_a_destination_that_hangs(make_node: Callable[..., Node]) -> None:
    with recording(lambda _: "hang") as pacs:
        node = make_node(peers=[peer("pacs", pacs.port)], delivery={"timeout": 120})
        post = Post(node.settings)
        post.report()
        process = node.start("work", "--only", "deliver")
        with make_app(node.settings) as app:
            app.send_task(task_name(Work.DELIVER), queue=Work.DELIVER.value, retry=False)
        wait_until(lambda: pacs.asked, seconds=90, what=f"it sends; its log:\n{node.log.read_text()[-3000:]}")
        (state,) = post.all(DestinationState)
        with post.database.read() as session:
            assert state.lease_until - database_now(session) > timedelta(seconds=5)
        began = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - began < 20
    (delivery,), (state,) = post.all(Delivery), post.all(DestinationState)
    assert (delivery.state.value, delivery.tries, delivery.lease_until) == ("due", 0, None)
    assert (state.failures, state.lease_until) == (0, None)
    assert post.attempts() == [(0, "stopped")]
    post.database.close()
