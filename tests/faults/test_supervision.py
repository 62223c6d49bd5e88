"""`osteon up` as its administrator meets it: it stops whole, restarts what dies, and says when something is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from models.settings import Peer
from models.tables import Base, ModelActivation, Prediction, Report
from models.upgrade import upgrade
from tests.servers import Node, Valkey, dcmtk, given, renewed, wait_until
from worker.bundle import default_bundle_path

STOP_SECONDS = 10.0
PARTS = ("broker", "listener", "worker", "courier", "sweeper")
PEERS = [Peer(name="modality", ae_title="MODALITY", role="source")]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One whole node with the embedded broker, which every test leaves whole."""
    folder = tmp_path_factory.mktemp("node")
    whole = Node(given(folder / "node", study={"quiet_time": 0.5}, peers=PEERS), folder / "node.log")
    whole.start("up")
    wait_until_whole(whole)
    yield whole
    whole.stop()


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[Node]:
    """A whole node for one test, to be ended by it."""
    whole = Node(given(tmp_path / "node", peers=PEERS), tmp_path / "node.log")
    yield whole
    whole.stop()


@pytest.fixture
def sample(test_data: Path, tmp_path: Path) -> Path:
    """A radiograph in a study of its own."""
    return renewed(test_data / "dicom" / "WG04_RG2_J2KR.dcm", tmp_path / "sample.dcm", study=True)


@pytest.mark.parametrize("health", ["healthy", "unhealthy"])
def test_every_part_answers_for_its_health(node: Node, tmp_path: Path, health: str) -> None:
    asked = node if health == "healthy" else Node(given(tmp_path / "nothing"), tmp_path / "log")
    parts = (*PARTS, "database")
    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(parts, pool.map(lambda part: asked.run("health", part), parts), strict=True))
    for part, answer in answers.items():
        assert answer.returncode == (0 if health == "healthy" else 1), f"{part}: {answer.stdout}{answer.stderr}"
        assert answer.stdout.startswith(f"{part}: ")
        assert (answer.stdout == f"{part}: healthy\n") == (health == "healthy")
        assert "Traceback" not in answer.stderr


def test_a_worker_that_stands_still_is_unhealthy(node: Node) -> None:
    worker = psutil.Process(part_pids(node)["worker"])
    worker.suspend()
    try:
        answer = node.run("health", "worker")
    finally:
        worker.resume()
    assert (answer.returncode, answer.stdout) == (1, "worker: no answer\n")


def test_parts_are_told_apart_by_their_command_lines_and_have_no_file_of_their_supervisor(node: Node) -> None:
    pids = part_pids(node)
    commands = {
        "listener": "-m console listen",
        "worker": "-m console work --only analyse",
        "courier": "-m console work --only report,deliver --concurrency 2",
        "sweeper": "-m console sweep",
    }
    for part, command in commands.items():
        process = psutil.Process(pids[part])
        for member in (process, *process.children()):
            assert " ".join(member.cmdline()).rstrip() == f"{sys.executable} {command}"
            assert not [file for file in member.open_files() if file.path.endswith("up.lock")]
    # What forks has no thread that could hold a lock meanwhile, and nothing open but its lock and its output.
    supervisor = psutil.Process(pids["worker"]).parent()
    assert supervisor is not None
    assert (supervisor.num_threads(), supervisor.num_fds()) == (1, 4)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_killed_is_started_again_and_said_so(node: Node, part: str) -> None:
    before = part_pids(node)[part]
    children = psutil.Process(before).children(recursive=True)
    deaths = len(said_of_deaths(node, part))
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: part_pids(node)[part] != before, what=f"the {part} is started again")
    (said,) = said_of_deaths(node, part)[deaths:]
    assert said["status"] == -signal.SIGKILL
    assert said["level"] == "error"
    _, left = psutil.wait_procs(children, timeout=20)
    assert left == [], "children outlived their part"


def test_a_node_whose_parts_were_all_killed_at_once_carries_the_next_study_the_whole_road(
    node: Node, sample: Path
) -> None:
    before_all = part_pids(node)
    for pid in before_all.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not set(part_pids(node).values()) & set(before_all.values()), what="all are started again")
    node.wait_until_listening()
    before = reports(node)
    assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0x0000]
    wait_until(lambda: reports(node) == before + 1, what="the study is reported")


def test_a_worker_child_that_is_killed_is_replaced(node: Node, test_data: Path, tmp_path: Path) -> None:
    parent = psutil.Process(part_pids(node)["worker"])
    (child,) = wait_until(parent.children, what="the worker has its child")
    child.kill()
    child.wait(5)
    before = reports(node)
    sample = renewed(test_data / "dicom" / "WG04_RG2_JLSL.dcm", tmp_path / "another.dcm", study=True)
    assert dcmtk("storescu", node.address, "-R", "-xt", sample).statuses == [0x0000]
    wait_until(lambda: reports(node) == before + 1, what="the study is reported")
    assert part_pids(node)["worker"] == parent.pid


def test_a_broker_that_stands_still_delays_no_answer(node: Node, test_data: Path, tmp_path: Path) -> None:
    broker = psutil.Process(part_pids(node)["broker"])
    before = reports(node)
    broker.suspend()
    try:
        assert min(seconds_to_store(node, 3, test_data, tmp_path)) < 1.0
    finally:
        broker.resume()
    wait_until(lambda: reports(node) == before + 3, seconds=60, what="the studies are reported")


def test_a_second_node_on_the_same_data_folder_is_refused_and_the_first_goes_on(node: Node, sample: Path) -> None:
    before, pids = reports(node), part_pids(node)
    second = node.run("up")
    assert second.returncode == 1
    assert f"another `osteon up` runs on {node.settings.data_dir.absolute()}" in second.stderr
    assert "Traceback" not in second.stderr
    assert part_pids(node) == pids
    assert all(psutil.pid_exists(pid) for pid in pids.values())
    assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0x0000]
    wait_until(lambda: reports(node) == before + 1, what="the study is reported")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_it_stops_whole_within_ten_seconds(own_node: Node, number: signal.Signals) -> None:
    process = own_node.start("up")
    family = wait_until_whole(own_node)
    begun = time.monotonic()
    # A terminal sends Ctrl-C to every process of the group.
    (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
    assert process.wait(STOP_SECONDS) == 0
    assert time.monotonic() - begun < STOP_SECONDS
    assert alive(family) == []
    assert [p for p in psutil.process_iter() if in_group(p, process.pid)] == []
    assert own_node.log_lines()[-1]["event"] == "stopped"
    assert not [line for line in own_node.log_lines() if line["event"].startswith(("uncaught", "part died"))]


def test_a_killed_supervisor_leaves_no_part_behind_not_even_one_that_stands_still(own_node: Node) -> None:
    process = own_node.start("up")
    family = wait_until_whole(own_node)
    # One that stands still cannot notice by itself that its parent is gone.
    worker = psutil.Process(part_pids(own_node)["worker"])
    for still in (*worker.children(), psutil.Process(part_pids(own_node)["sweeper"])):
        still.suspend()
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(family, timeout=20)
    said = alive(left)
    for outlived in left:
        outlived.kill()
    assert said == []


@pytest.mark.parametrize("command", [("up",), ("work", "--only", "analyse")], ids=["up", "work"])
@pytest.mark.parametrize("damaged", ["model.tflite", "card.json"])
def test_a_bundle_with_a_wrong_checksum_is_refused_at_start_with_the_file_named(
    tmp_path: Path, command: tuple[str, ...], damaged: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(default_bundle_path(), bundle)
    content = bytearray((bundle / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / damaged).write_bytes(content)
    refused = Node(given(tmp_path / "node", model_bundle=bundle), tmp_path / "log")
    if command != ("up",):
        upgrade(refused.settings)
    done = refused.run(*command)
    assert done.returncode == 1
    assert damaged in done.stderr
    assert "not started" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_broker_images_are_stored_quickly_and_read_once_it_is_back(test_data: Path, tmp_path: Path) -> None:
    valkey = Valkey(tmp_path)
    valkey.start()
    settings = given(tmp_path / "node", broker_url=valkey.url, study={"quiet_time": 0.5}, peers=PEERS)
    whole = Node(settings, tmp_path / "node.log")
    try:
        whole.start("up")
        wait_until_whole(whole)
        valkey.kill()
        assert min(seconds_to_store(whole, 3, test_data, tmp_path)) < 1.0
        time.sleep(1)
        assert reports(whole) == 0
        valkey.start()
        wait_until(lambda: reports(whole) == 3, seconds=60, what="the studies are reported")
        assert counted(whole, Prediction) == 3
    finally:
        whole.stop()
        valkey.kill()


def wait_until_whole(node: Node) -> list[psutil.Process]:
    """Wait until every part does its work; return all processes below the supervisor."""
    node.wait_until_listening()
    wait_until(lambda: "courier" in part_pids(node), what="the last part is started")
    pids = part_pids(node)
    workers = [psutil.Process(pids[part]) for part in ("worker", "courier")]
    wait_until(lambda: all(worker.children() for worker in workers), what="the workers have their children")
    wait_until(lambda: counted(node, ModelActivation), what="the worker has loaded its model")
    beat = node.settings.data_dir / "run"
    wait_until(lambda: list(beat.glob("sweeper-*")), what="the sweeper has swept")
    return psutil.Process(psutil.Process(pids["listener"]).ppid()).children(recursive=True)


def part_pids(node: Node) -> dict[str, int]:
    """The process id of each part as the log last said it."""
    return {line["part_name"]: line["pid"] for line in node.log_lines() if line["event"] == "part started"}


def said_of_deaths(node: Node, part: str) -> list[dict[str, object]]:
    """What the log says of a part's deaths."""
    return [line for line in node.log_lines() if line["event"].startswith("part died") and line["part_name"] == part]


def alive(processes: list[psutil.Process]) -> list[tuple[int, list[str]]]:
    """Those that still run."""
    return [(p.pid, p.cmdline()) for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def seconds_to_store(node: Node, times: int, test_data: Path, folder: Path) -> list[float]:
    """How long storescu took each time. Waiting for a broker takes its time each time, standing still only once."""
    took = []
    for number in range(times):
        sample = renewed(test_data / "dicom" / "WG04_RG2_J2KR.dcm", folder / f"{number}.dcm", study=True)
        begun = time.monotonic()
        assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0x0000]
        took.append(time.monotonic() - begun)
    return took


def reports(node: Node) -> int:
    """How many reports are on record."""
    return counted(node, Report)


def counted(node: Node, table: type[Base]) -> int:
    """How many rows a table has."""
    with node.database.read() as session:
        return session.scalars(select(func.count()).select_from(table)).one()
