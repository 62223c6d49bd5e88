"""A small file system that tests may fill: a tmpfs of root's, or one in a mount namespace of an ordinary user's own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of `size`, such as `16m`; skip where the system allows neither way."""
    mounted = folder / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mounted)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode == 0:
        try:
            yield mounted
        finally:
            subprocess.run(["umount", "--lazy", str(mounted)], check=True)
        return
    # Others of the same user reach what is mounted in the namespace by way of the process that holds it.
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", '"$@" && echo mounted && exec cat', "sh"]
    with subprocess.Popen(
        [*command, *mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip("mounting a small file system is not allowed here, not even in a namespace of one's own")
        try:
            yield Path(f"/proc/{holder.pid}/root{mounted.absolute()}")
        finally:
            holder.stdin.close()
