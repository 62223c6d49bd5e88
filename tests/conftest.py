"""Fixtures that several rooms of tests share."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import structlog

from models.database import Database, database_url
from models.settings import Settings
from models.upgrade import upgrade
from tests.servers import Node, PostgreSQL, Valkey, given


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `tests/faults/test_chaos.py`."""
    group = parser.getgroup("osteon")
    group.addoption("--chaos-seed", type=int, action="append", default=[], help="replay this seed (repeatable)")
    group.addoption("--chaos-runs", type=int, default=0, help="run so many seeds drawn at random")
    group.addoption("--chaos-stop", type=float, default=4.0, help="most seconds that a broker or database stands still")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seeds once, for all processes that run tests."""
    if not hasattr(config, "workerinput"):
        drawn = [random.randrange(10**6) for _ in range(config.option.chaos_runs)]
        config.option.chaos_seed = [*config.option.chaos_seed, *drawn]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let training come last: TensorFlow, once loaded, stays in the process, with its threads and a gigabyte."""
    items.sort(key=lambda item: "training" in item.path.parts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which seeds of `tests/faults/test_chaos.py` failed, so that they can be replayed."""
    seeds: dict[int, bool] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, seed in getattr(report, "user_properties", ()):
                if name == "chaos seed":
                    seeds[seed] = seeds.get(seed, True) and not report.failed
    if seeds:
        failed = sorted(seed for seed, passed in seeds.items() if not passed)
        said = f"{len(seeds)} seeds, {len(failed)} failed"
        terminalreporter.write_line(f"chaos: {said}: {failed}, kept in build/chaos" if failed else f"chaos: {said}")


_LOGGERS = [
    (logger, logger.level, logger.propagate)
    for logger in map(logging.getLogger, (None, "osteon", "pynetdicom", "pydicom", "celery", "kombu", "py.warnings"))
]
"""How they were before any test."""


@pytest.fixture(autouse=True)
def _log_of_the_next_test() -> Iterator[None]:
    """Leave no configured log behind: what `models.logs.configure` sets is of the whole process.

    A logger that is first used under a configured structlog is never captured again. A fixture of a module may have
    configured it before this one begins, so that what stood before is asked for only where pytest changes it itself.
    """
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    handlers = list(root.handlers)
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        logging.captureWarnings(False)
        # Pytest's own are of other classes.
        root.handlers[:] = [handler for handler in handlers if type(handler) is not logging.StreamHandler]
        for logger, level, propagate in _LOGGERS:
            logger.setLevel(level)
            logger.propagate = propagate
        sys.excepthook, threading.excepthook = hooks


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of shared radiographs (OSTEON_TEST_DATA); skips where it is missing, except in CI."""
    folder = Path(os.environ.get("OSTEON_TEST_DATA", "../shared/data"))
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"the shared radiographs are missing: {folder}")
        pytest.skip(f"the shared radiographs are missing: {folder} (set OSTEON_TEST_DATA)")
    return folder.absolute()


@pytest.fixture(scope="session")
def radiographs() -> dict[str, Path]:
    """RG1 (a chest) and RG3 (a distal tibia) of the `pydicom-data` package, uncompressed CR."""
    data = files("data_store").joinpath("data")
    return {name: Path(str(data.joinpath(f"{name}_UNCR.dcm"))) for name in ("RG1", "RG3")}


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    """One PostgreSQL server for the session."""
    server = PostgreSQL(tmp_path_factory.mktemp("postgresql"))
    yield server
    server.stop()


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A real Valkey server, started."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "postgresql"])
def make_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Settings]:
    """Make settings whose database, empty, is SQLite in one run of the test and PostgreSQL in the other."""
    if request.param == "sqlite":
        return lambda **settings: given(tmp_path / "node", **settings)
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url = server.new_database().render_as_string(hide_password=False)
    return lambda **settings: given(tmp_path / "node", database_url=url, **settings)


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings on each database, with its tables made."""
    made = make_settings()
    upgrade(made)
    return made


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """Each database, with its tables made."""
    opened = Database(database_url(settings))
    yield opened
    opened.close()


@pytest.fixture
def make_node(make_settings: Callable[..., Settings], valkey: Valkey, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Make a node on each database and a real Valkey; it is stopped when the test ends."""
    nodes: list[Node] = []

    def make(**settings: Any) -> Node:
        made = make_settings(broker_url=valkey.url, **settings)
        upgrade(made)
        nodes.append(Node(made, tmp_path / f"node-{len(nodes)}.log"))
        return nodes[-1]

    yield make
    for node in nodes:
        node.stop()
