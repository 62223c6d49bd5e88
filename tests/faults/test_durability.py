"""Success means safe: what the system calls of a real listener say of it, and what is left of a killed one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from models.settings import Peer
from models.upgrade import upgrade
from tests.peers import require_peer
from tests.servers import Node, data_set_of, dcmtk, given, renewed, wait_until

TRACED = "fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,sendto,sendmsg,write,pwrite64"


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A listener; on PostgreSQL where the test asks for it."""
    url = None
    if getattr(request, "param", "sqlite") == "postgresql":
        url = request.getfixturevalue("postgresql").new_database().render_as_string(hide_password=False)
    made = given(
        tmp_path / "node",
        database_url=url,
        broker_url="redis+socket:///nonexistent/valkey.sock",
        peers=[Peer(name="modality", ae_title="MODALITY", role="source")],
    )
    upgrade(made)
    listener = Node(made, tmp_path / "node.log")
    yield listener
    listener.stop()


@pytest.fixture
def sample(test_data: Path, tmp_path: Path) -> Path:
    """A radiograph: RG3, JPEG 2000."""
    return renewed(test_data / "dicom" / "WG04_RG3_J2KR.dcm", tmp_path / "sample.dcm")


def test_success_is_answered_only_after_file_folder_and_record_are_on_disk(
    node: Node, sample: Path, tmp_path: Path
) -> None:
    process = node.start("listen")
    node.wait_until_listening()
    trace = tmp_path / "trace"
    tracer = attach(process.pid, trace)
    try:
        # Twice: the second image may find its folder made, its record's file long enough, or neither.
        assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0x0000]
        other = renewed(sample, tmp_path / "other.dcm")
        assert dcmtk("storescu", node.address, "-R", "-xv", other).statuses == [0x0000]
    finally:
        tracer.terminate()
        tracer.wait()
    calls = read_trace(trace)
    answers = [call for call in calls if call.name in ("sendto", "sendmsg") and re.search(r'"\\4\\0', call.text)]
    assert len(answers) == 2
    spool = node.settings.data_dir.absolute() / "spool"
    begin = 0
    for answer in answers:
        during = [call for call in calls if begin <= call.begun and call.begun <= answer.begun]
        begin = answer.ended
        moved = only(during, "rename", str(spool / "incoming"))
        received, kept = re.findall(r'"([^"]+)"', moved.text)
        file_synced = only(during, "fsync", f"<{received}>")
        folder_synced = only([c for c in during if c.begun > moved.ended], "fsync", f"<{Path(kept).parent}>")
        committed = [
            call
            for call in during
            if call.name in ("fsync", "fdatasync")
            and "osteon.db-wal>" in call.text
            and call.begun > folder_synced.ended
        ]
        assert committed, "the record was not synced between the folder and the answer"
        assert file_synced.succeeded
        assert moved.succeeded
        assert folder_synced.succeeded
        assert committed[-1].succeeded
        assert file_synced.ended < moved.begun
        assert moved.ended < folder_synced.begun
        assert committed[-1].ended < answer.begun
        # Nothing is written to the file behind its back, and to the record only what is synced.
        assert not [c for c in during if c.name == "write" and c.text.count(received) and c.begun > file_synced.begun]
        logged = [c for c in during if c.name.startswith(("write", "pwrite")) and "osteon.db-wal>" in c.text]
        assert logged
        assert max(c.ended for c in logged) < committed[-1].begun
        for made in [c for c in during if c.name.startswith("mkdir") and c.succeeded]:
            parent_synced = only([c for c in during if c.begun > made.ended], "fsync", f"<{spool}>")
            assert parent_synced.ended < answer.begun
    assert len(node.spooled()) == 2


@pytest.mark.parametrize("node", ["sqlite", "postgresql"], indirect=True)
def test_what_was_answered_with_success_outlives_a_listener_that_is_killed(node: Node, sample: Path) -> None:
    process = node.start("listen")
    node.wait_until_listening()
    answer = dcmtk("storescu", node.address, "-R", "-xv", "--abort", sample)
    process.kill()
    process.wait()
    assert answer.statuses == [0x0000]
    ((file, row),) = node.spooled().values()
    assert sha256(file.read_bytes()[row.digest_offset :]).hexdigest() == row.sha256
    assert file.read_bytes()[row.digest_offset :] == data_set_of(file)
    node.start("listen")
    node.wait_until_listening()
    assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0x0000]
    assert next(iter(node.spooled().values()))[0] == file


@dataclass(frozen=True)
class Call:
    """A system call: the numbers of the lines where it begins and ends, and what strace wrote of it."""

    name: str
    text: str
    begun: int
    ended: int

    @property
    def succeeded(self) -> bool:
        """Whether it returned something else than an error."""
        return not re.search(r"= -1 E[A-Z]+", self.text)


def attach(pid: int, trace: Path) -> subprocess.Popen[bytes]:
    """Begin to write a process's system calls, of all its threads, into `trace`."""
    strace = require_peer("strace")
    said = trace.with_suffix(".err")
    with said.open("wb") as errors:
        tracer = subprocess.Popen(
            [strace, "-f", "-y", "-s", "64", "-e", f"trace={TRACED}", "-o", trace, "-p", str(pid)], stderr=errors
        )
    wait_until(lambda: tracer.poll() is not None or "attached" in said.read_text(), what="strace attaches")
    if tracer.poll() is not None:
        pytest.skip(f"tracing is not permitted here: {said.read_text().strip()}")
    return tracer


def read_trace(trace: Path) -> list[Call]:
    """Return the calls in the order in which they began, those that other threads interrupted put together again."""
    calls: list[Call] = []
    unfinished: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(trace.read_text(errors="replace").splitlines()):
        thread, text = line.split(None, 1)
        if text.endswith("<unfinished ...>"):
            unfinished[thread] = (number, text.removesuffix("<unfinished ...>"))
        elif resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", text):
            if thread in unfinished:
                begun, first = unfinished.pop(thread)
                calls.append(Call(first.split("(")[0], first + resumed[1], begun, number))
        elif "(" in text and not text.startswith(("+++", "---")):
            calls.append(Call(text.split("(")[0], text, number, number))
    return sorted(calls, key=lambda call: call.begun)


def only(calls: list[Call], name: str, argument: str) -> Call:
    """Return the one call of this kind that has `argument`."""
    found = [call for call in calls if call.name.startswith(name) and argument in call.text]
    assert len(found) == 1, f"{len(found)} calls of {name} for {argument}"
    return found[0]
