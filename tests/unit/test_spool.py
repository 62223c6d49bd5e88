"""The spool keeps bytes so that they survive a power cut, or says that it could not, and then keeps nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicom_node.spool import STALE_AFTER_SECONDS, Incoming, Spool, SpoolError


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


class Recorder:
    """Writes down each fsync and rename, with the size that a file had when it was synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.steps: list[tuple[str, str, int | None]] = []
        self.fail_at: int | None = None
        fsync, rename = os.fsync, os.rename

        def record_fsync(handle: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            self._note("fsync", path.relative_to(root), None if path.is_dir() else os.fstat(handle).st_size)
            fsync(handle)

        def record_rename(source: Path, target: Path) -> None:
            self._note("rename", Path(target).relative_to(root), None)
            rename(source, target)

        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "rename", record_rename)

    def _note(self, call: str, path: Path, size: int | None) -> None:
        if self.fail_at == len(self.steps):
            raise OSError(errno.EIO, "Input/output error")
        self.steps.append((call, str(path), size))


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Let the kernel refuse larger files, as it refuses to write on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def received(spool: Spool, data: bytes = b"some bytes") -> Incoming:
    incoming = spool.incoming()
    incoming.write(data)
    return incoming


def everything_in(spool: Spool) -> list[Path]:
    return [path for path in spool.root.rglob("*") if path.is_file()]


def test_what_was_put_comes_back_byte_for_byte(spool: Spool) -> None:
    data = os.urandom(3_000_000)
    key, digest = spool.put_bytes(data)
    with spool.open(key) as file:
        assert file.read() == data
    assert digest == hashlib.sha256(data).hexdigest()


def test_the_whole_file_is_synced_then_moved_and_then_its_folder_is_synced(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming = received(spool, b"x" * 2_500_000)
    recorder = Recorder(monkeypatch, spool.root)
    key = spool.put_durable(incoming)
    assert (
        recorder.steps
        == [
            ("fsync", f"incoming/{incoming.path.name}", 2_500_000),
            ("fsync", ".", None),  # the new folder's own entry
            ("rename", f"{key[:2]}/{key[2:]}", None),
            ("fsync", key[:2], None),
        ]
    )


def test_a_folder_that_another_process_made_is_not_taken_to_be_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other may not have synced it yet."""
    monkeypatch.setattr("dicom_node.spool.uuid.uuid4", lambda: type("Uuid", (), {"hex": os.urandom(1).hex() * 16}))
    spool = Spool(tmp_path / "spool")
    for folder in range(256):
        (spool.root / f"{folder:02x}").mkdir()
    incoming = received(spool)
    recorder = Recorder(monkeypatch, spool.root)
    spool.put_durable(incoming)
    assert [(call, path) for call, path, _ in recorder.steps].index(("fsync", ".")) == 1


def test_the_folder_of_the_spool_is_synced_into_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, tmp_path)
    Spool(tmp_path / "spool")
    assert recorder.steps == [("fsync", ".", None)]


@pytest.mark.parametrize("step", range(4))
def test_when_the_disk_fails_at_any_step_nothing_is_kept(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    incoming = received(spool)
    Recorder(monkeypatch, spool.root).fail_at = step
    with pytest.raises(SpoolError):
        spool.put_durable(incoming)
    assert everything_in(spool) == []


def test_a_write_that_failed_is_remembered_until_the_end_and_leaves_nothing(spool: Spool) -> None:
    incoming = spool.incoming()
    with files_no_larger_than(1_000_000):
        # What remains behind the limit is more than the buffer takes.
        assert incoming.write(b"x" * 3_000_000) == 3_000_000
    assert incoming.failed
    incoming.write(b"and it goes on, since an exception here would abort the association")
    with pytest.raises(SpoolError):
        incoming.finish()
    with pytest.raises(SpoolError):
        spool.put_durable(incoming)
    assert everything_in(spool) == []


def test_a_write_that_fails_only_when_the_buffer_is_flushed_is_noticed_too(spool: Spool) -> None:
    incoming = received(spool, b"x" * 2000)
    with files_no_larger_than(1000), pytest.raises(SpoolError):
        incoming.finish()
    assert everything_in(spool) == []


def test_the_text_of_a_spool_error_names_no_path(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    incoming = received(spool)
    Recorder(monkeypatch, spool.root).fail_at = 0
    with pytest.raises(SpoolError) as error:
        spool.put_durable(incoming)
    assert str(spool.root) not in str(error.value)


def test_below_the_low_space_mark_nothing_is_begun(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", min_free_bytes=2**62)
    incoming = received(spool)
    assert not spool.has_space()
    assert incoming.failed
    assert everything_in(spool) == []
    with pytest.raises(SpoolError):
        spool.put_durable(incoming)


def test_a_spool_whose_folder_is_gone_refuses_instead_of_raising_in_the_reactor(spool: Spool) -> None:
    (spool.root / "incoming").rmdir()
    incoming = received(spool)
    assert incoming.failed


def test_keys_are_opaque_and_never_the_same(spool: Spool) -> None:
    keys = {spool.put_bytes(b"the same bytes")[0] for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)


@pytest.mark.parametrize(
    "key",
    ["", "..", "../../etc/passwd", "/etc/passwd", "a" * 31, "a" * 33, "../" + "a" * 29, "a" * 16 + "/" + "a" * 15],
)
def test_a_key_that_is_none_reaches_no_file(spool: Spool, key: str) -> None:
    for use in (spool.open, spool.delete):
        with pytest.raises(ValueError, match="not a key"):
            use(key)


def test_a_deleted_file_is_gone_and_deleting_it_again_does_nothing(spool: Spool) -> None:
    key, _ = spool.put_bytes(b"some bytes")
    spool.delete(key)
    spool.delete(key)
    with pytest.raises(FileNotFoundError):
        spool.open(key)


def test_half_received_files_are_removed_only_when_they_are_old(spool: Spool) -> None:
    old, fresh = received(spool, b"x" * 2_000_000), received(spool, b"x" * 2_000_000)
    long_ago = time.time() - STALE_AFTER_SECONDS - 1
    os.utime(old.path, (long_ago, long_ago))
    key, _ = spool.put_bytes(b"kept")
    os.utime(spool._path(key), (long_ago, long_ago))
    assert spool.remove_stale() == 1
    assert not old.path.exists()
    assert fresh.path.exists()
    spool.open(key).close()


def test_an_incoming_file_that_nobody_holds_any_more_is_removed(spool: Spool) -> None:
    incoming = received(spool)
    assert len(everything_in(spool)) == 1
    del incoming
    assert everything_in(spool) == []


def test_a_kept_file_stays_when_its_incoming_is_dropped(spool: Spool) -> None:
    incoming = received(spool)
    key = spool.put_durable(incoming)
    incoming.discard()
    del incoming
    with spool.open(key) as file:
        assert file.read() == b"some bytes"


def test_the_digest_covers_what_comes_after_its_beginning(spool: Spool) -> None:
    incoming = received(spool, b"preamble and meta")
    incoming.begin_digest()
    incoming.write(b"data ")
    incoming.write(memoryview(b"set"))
    assert incoming.digest_offset == len(b"preamble and meta")
    assert incoming.sha256 == hashlib.sha256(b"data set").hexdigest()
    with spool.open(spool.put_durable(incoming)) as file:
        assert file.read() == b"preamble and metadata set"


def test_many_threads_may_put_at_once(spool: Spool) -> None:
    keys: list[tuple[str, int]] = []

    def put(number: int) -> None:
        keys.extend((spool.put_bytes(b"%d" % number)[0], number) for _ in range(10))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 40
    for key, number in keys:
        with spool.open(key) as file:
            assert file.read() == b"%d" % number
