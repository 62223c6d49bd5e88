"""Success means safe: what the system calls of a real listener say of it, and what is left of a killed one."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid

from models import audit
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


def test_a_commit_whose_sync_fails_is_answered_with_a700_and_keeps_the_file_since_it_may_be_on_disk(
    node: Node, sample: Path, tmp_path: Path
) -> None:
    process = node.start("listen")
    node.wait_until_listening()
    tracer = attach(process.pid, tmp_path / "trace", "-e", "inject=fdatasync:error=EIO")
    try:
        assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0xA700]
    finally:
        tracer.terminate()
        tracer.wait()
    said = [line for line in node.log_lines() if line["event"] == "commit undecided"]
    assert [line["instances"] for line in said] == [1]
    (kept,) = (path for path in (node.settings.data_dir / "spool").glob("??/*"))
    assert pydicom.dcmread(kept).SOPInstanceUID == pydicom.dcmread(sample).SOPInstanceUID
    assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0x0000], "when the disk is well again"


def test_images_that_arrive_together_share_commits_and_each_is_answered_after_the_commit_that_holds_it(
    node: Node, radiographs: dict[str, Path], tmp_path: Path
) -> None:
    studies = [small_study(radiographs["RG3"], tmp_path / str(number), images=4) for number in range(8)]
    process = node.start("listen")
    node.wait_until_listening()
    trace = tmp_path / "trace"
    # Long enough to show a page of the record and a whole answer; and a disk that takes its time for the record.
    tracer = attach(process.pid, trace, "-s", "4200", "-e", "inject=fdatasync:delay_exit=100000")
    try:
        with ThreadPoolExecutor(len(studies)) as senders:
            sent = senders.map(lambda study: dcmtk("storescu", node.address, "-R", "-xi", "+sd", study), studies)
            assert [answer.statuses for answer in sent] == [[0x0000] * 4] * 8
    finally:
        tracer.terminate()
        tracer.wait()
    calls = read_trace(trace)
    record_synced = [call for call in calls if call.name in ("fsync", "fdatasync") and "osteon.db-wal>" in call.text]
    written = [call for call in calls if call.name == "pwrite64" and "osteon.db-wal>" in call.text]
    stored, commits = node.spooled(), set()
    assert len(stored) == 32
    for uid, (path, row) in stored.items():
        moved = only(calls, "rename", str(path))
        received, kept = re.findall(r'"([^"]+)"', moved.text)
        # What is compared with the answer: its own file, its folder after that, and the sync after its row's key.
        file_synced = only(calls, "fsync", f"<{received}>")
        folder_synced = first(calls, "fsync", f"<{Path(kept).parent}>", after=moved.ended)
        logged = first(written, "pwrite64", row.key, after=folder_synced.ended)
        committed = first(record_synced, "f", "osteon.db-wal>", after=logged.ended)
        answer = only(calls, "send", '"\\4\\0', uid)
        assert all(call.succeeded for call in (moved, file_synced, folder_synced, logged, committed))
        assert file_synced.ended < moved.begun
        assert committed.ended < answer.begun
        commits.add(committed)
    assert len(commits) < len(stored), f"{len(commits)} commits for {len(stored)} images"


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


def test_a_file_whose_listener_was_killed_before_its_row_was_written_is_set_aside_and_can_be_sent_again(
    node: Node, radiographs: dict[str, Path], tmp_path: Path
) -> None:
    (sample,) = small_study(radiographs["RG3"], tmp_path / "study", images=1).iterdir()
    spool = node.settings.data_dir.absolute() / "spool"
    process = node.start("listen")
    node.wait_until_listening()
    lock = sqlite3.connect(node.settings.data_dir / "osteon.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as sender:
        sending = sender.submit(dcmtk, "storescu", node.address, "-R", "-xe", sample)
        (file,) = wait_until(lambda: list(spool.glob("??/*")), what="the file is in its place")
        process.kill()
        process.wait()
        assert sending.result().statuses == []
    lock.close()
    node.start("listen")
    node.wait_until_listening()
    assert dcmtk("storescu", node.address, "-R", "-xe", sample).statuses == [0x0000]
    ((kept, _),) = node.spooled().values()
    assert kept != file
    assert file.exists(), "as long as it is young, its row may be about to be written"
    hours_ago = time.time() - 2 * 3600
    for path in (file, kept):
        os.utime(path, (hours_ago, hours_ago))
    # The first pass, when it starts, takes ten seconds.
    node.start("sweep")
    aside = spool / "orphans" / (file.parent.name + file.name)
    wait_until(aside.exists, seconds=90, what="the file is set aside")
    assert kept.exists()
    assert "files without rows set aside" in [line["event"] for line in node.log_lines()]


def test_a_head_of_the_audit_chain_is_on_disk_after_the_chain_and_before_the_log_says_so(tmp_path: Path) -> None:
    made = given(tmp_path / "node", audit={"head_every": 0.5}, broker_url="redis+socket:///nonexistent/valkey.sock")
    upgrade(made)
    node = Node(made, tmp_path / "node.log")
    heads = made.data_dir / "audit-heads"
    process = node.start("sweep")
    wait_until(lambda: (made.data_dir / "run").is_dir(), seconds=60, what="the sweeper runs")
    trace = tmp_path / "trace"
    tracer = attach(process.pid, trace)
    try:
        with node.database.write() as session:
            audit.record(session, actor="test", action="tested", subject="study", subject_id=None)
        wait_until(lambda: "audit head" in [line["event"] for line in node.log_lines()], what="a head is signed")
    finally:
        tracer.terminate()
        tracer.wait(20)
        node.stop()
    (file,) = heads.iterdir()
    calls = read_trace(trace)
    written = first(calls, "write", file.name, after=-1)
    chained = [call for call in calls if "sync" in call.name and "osteon.db-wal" in call.text]
    assert any(call.ended < written.begun for call in chained), "the place is on disk before its head"
    synced = first(calls, "fsync", file.name, after=written.ended)
    folder = first(calls, "fsync", f"{heads.name}>", after=synced.ended)
    logged = first(calls, "write", "osteon audit head", after=-1)
    assert "node.log" in logged.text
    assert synced.ended < folder.begun
    assert folder.ended < logged.begun


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


def small_study(source: Path, folder: Path, *, images: int) -> Path:
    """Write images of 64 × 64 pixels, of one new study, into a new folder; return it."""
    folder.mkdir()
    image = pydicom.dcmread(source)
    image.Rows = image.Columns = 64
    image.PixelData = bytes(64 * 64 * 2)
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    for number in range(images):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.save_as(folder / f"{number}.dcm")
    return folder


def attach(pid: int, trace: Path, *options: str) -> subprocess.Popen[bytes]:
    """Begin to write a process's system calls, of all its threads, into `trace`; `options` of strace overrule ours."""
    strace = require_peer("strace")
    said = trace.with_suffix(".err")
    with said.open("wb") as errors:
        tracer = subprocess.Popen(
            [strace, "-f", "-y", "-s", "64", "-e", f"trace={TRACED}", *options, "-o", trace, "-p", str(pid)],
            stderr=errors,
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


def only(calls: list[Call], name: str, *arguments: str) -> Call:
    """Return the one call of this kind that has all `arguments`."""
    found = [call for call in calls if call.name.startswith(name) and all(one in call.text for one in arguments)]
    assert len(found) == 1, f"{len(found)} calls of {name} for {arguments}"
    return found[0]


def first(calls: list[Call], name: str, argument: str, *, after: int) -> Call:
    """Return the first call of this kind that has `argument` and begins behind a line of the trace."""
    found = [call for call in calls if call.name.startswith(name) and argument in call.text and call.begun > after]
    assert found, f"no call of {name} for {argument}"
    return found[0]
