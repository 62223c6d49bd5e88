"""Whatever dies on the way, nothing that was answered with success is lost: real parts, broken at random moments.

Five seeds run with every change; `make faults RUNS=200` draws others for a long night, `--chaos-seed=N` replays one.
A run that failed leaves its folder, with every part's log and what broke when, in `build/chaos`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.upgrade import upgrade
from tests.faults.chaos.faults import KINDS, plan
from tests.faults.chaos.instances import Instance, make_bundle, make_instances
from tests.faults.chaos.postgresql import OwnPostgreSQL
from tests.faults.chaos.run import broken_while_sending, judged, settled
from tests.faults.chaos.site import Site
from tests.faults.small_disk import small_disk
from tests.servers import PostgreSQL, given

SEEDS = (1, 2, 3, 4, 5)
KEPT = Path("build/chaos")
DISK = "24m"

pytestmark = pytest.mark.timeout(900)
pytest.importorskip("ai_edge_litert")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the fixed seeds, or what the command line asks for."""
    if "seed" not in metafunc.fixturenames:
        return
    metafunc.parametrize("seed", metafunc.config.getoption("--chaos-seed") or SEEDS)


@pytest.fixture(scope="module")
def empty(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgreSQL]:
    """A stopped server whose database has its tables: each run begins with a copy."""
    folder = tmp_path_factory.mktemp("empty")
    server = OwnPostgreSQL(postgresql, folder / "log")
    server.start()
    server.wait()
    server.create()
    upgrade(given(folder / "node", database_url=server.url))
    server.stop()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> list[Instance]:
    """300 instances of 40 studies."""
    return make_instances(tmp_path_factory.mktemp("instances"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes next to no time."""
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system for the spool."""
    with small_disk(tmp_path, DISK) as mounted:
        yield mounted


@pytest.fixture
def site(
    seed: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    empty: OwnPostgreSQL,
    postgresql: PostgreSQL,
    instances: list[Instance],
    bundle: Path,
    disk: Path,
) -> Iterator[Site]:
    """Everything, running; its folder is kept where the run failed."""
    request.node.user_properties.append(("chaos seed", seed))
    server = OwnPostgreSQL(postgresql, tmp_path / "postgresql.log", like=empty)
    made = Site(tmp_path, server, bundle, instances, seed=seed, disk=disk)
    try:
        made.longest_stop = request.config.getoption("--chaos-stop")
        made.start()
        yield made
    finally:
        made.stop()
        if not hasattr(request.node, "judged"):
            kept = KEPT / str(seed)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(tmp_path, kept, symlinks=True)
        server.remove()


def test_a_seed_draws_every_kind_while_instances_come_in_and_the_same_moments_again() -> None:
    for number in range(200):
        moments = plan(number)
        assert moments == plan(number)
        early = [kind for moment in moments if moment.progress < 1 for kind in moment.kinds]
        assert sorted(early) == sorted(KINDS)
    assert plan(1) != plan(2)


def test_nothing_that_was_answered_with_success_is_lost_whatever_dies_on_the_way(
    seed: int, site: Site, request: pytest.FixtureRequest
) -> None:
    moments = plan(seed)
    site.say(f"seed {seed}: " + "; ".join(map(str, moments)))
    broken_while_sending(site, moments)
    site.say("all is sent")
    settled(site)
    site.say("all is settled")
    found = judged(site)
    for problem in found:
        site.say(problem)
    assert not found, f"seed {seed}: {found}"
    request.node.judged = True
