"""How soon the console shows something: the worklist's first paint with a hundred thousand studies (or
OSTEON_BENCH_STUDIES), a page further, a search, a file that is tried; and what it takes when nobody looks and when
somebody does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from console.ports import free_port
from models.database import database_url
from models.settings import WebSettings
from models.upgrade import upgrade
from tests.benchmarks.results import save, spread
from tests.filled import fill
from tests.peers import require_peer
from tests.servers import Node, given, wait_until

STUDIES = int(os.environ.get("OSTEON_BENCH_STUDIES", "100000"))
LOADS = 7
IDLE_SECONDS = 30.0

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A record of so many studies, and nothing that runs."""
    made = Node(given(tmp_path / "node", web=WebSettings(port=free_port()).model_dump()), tmp_path / "node.log")
    upgrade(made.settings)
    fill(database_url(made.settings), finished=range(1, STUDIES + 1), waiting=range(30))
    yield made
    made.stop()


@pytest.fixture
def browser() -> Iterator[Browser]:
    chromium = require_peer("chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def test_the_console_is_seen_soon(
    node: Node, browser: Browser, radiographs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    process = psutil.Process(node.start("web").pid)
    wait_until(lambda: "serving" in node.log.read_text(), what="the console serves")
    address = f"http://127.0.0.1:{node.settings.web.port}"
    browser.new_page().goto(f"{address}/_stcore/health")
    served = time.monotonic() - begun
    painted, new, again, older, found = [], [], [], [], []
    for _ in range(LOADS):
        context = browser.new_context(viewport={"width": 1600, "height": 1000})
        page = context.new_page()
        # The first time with nothing in the browser's cache, and then with what it kept.
        new.append(_seconds(lambda page=page: _open(page, address)))  # type: ignore[misc]
        painted.append(_first_paint(page))
        again.append(_seconds(lambda page=page: _open(page, address)))  # type: ignore[misc]
        older.append(_seconds(lambda page=page: _older(page)))  # type: ignore[misc]
        found.append(_seconds(lambda page=page: _search(page)))  # type: ignore[misc]
        context.close()
    tried = _tried(browser, address, radiographs["RG3"])
    memory = process.memory_full_info().uss / 2**20
    nobody = _share(process)
    page = browser.new_page()
    _open(page, address)
    somebody = _share(process)
    result = {
        "studies": STUDIES,
        "seconds until it serves": served,
        "seconds to the first contentful paint, nothing cached": spread(painted),
        "seconds until the worklist stands, nothing cached": spread(new),
        "seconds until the worklist stands, cached": spread(again),
        "seconds to the next page": spread(older),
        "seconds to the studies of one patient": spread(found),
        "seconds for a tried file": tried,
        "memory in MB": memory,
        "percent of a core, nobody looks": nobody,
        "percent of a core, one worklist open": somebody,
    }
    save("web", result)
    with capsys.disabled():
        print()
        for name, value in result.items():
            print(f"{name}: {value}")


def _seconds(do: Callable[[], None]) -> float:
    begun = time.monotonic()
    do()
    return time.monotonic() - begun


def _open(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("table", name="Studies").wait_for()


def _older(page: Page) -> None:
    page.get_by_role("button", name="Older").click()
    page.get_by_text("Page 2,").wait_for()


def _first_paint(page: Page) -> float:
    """W3C Paint Timing, from the beginning of the navigation."""
    milliseconds: float = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    return milliseconds / 1000


def _search(page: Page) -> None:
    patient = page.get_by_role("table", name="Studies").get_by_role("row").nth(20).get_by_role("cell").nth(1)
    page.get_by_label("Patient ID").fill(patient.inner_text())
    page.keyboard.press("Enter")
    page.get_by_text("Page 1,").wait_for()


def _tried(browser: Browser, address: str, file: Path) -> float:
    page = browser.new_page()
    page.goto(f"{address}/try")
    chosen = page.get_by_test_id("stFileUploaderDropzoneInput")
    chosen.wait_for(state="attached")

    def try_it() -> None:
        chosen.set_input_files(file)
        page.get_by_alt_text("The model's map over the radiograph").wait_for()

    taken = _seconds(try_it)
    page.close()
    return taken


def _share(process: psutil.Process) -> float:
    """What it takes of a processor, in percent."""
    before = process.cpu_times()
    time.sleep(IDLE_SECONDS)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / IDLE_SECONDS
