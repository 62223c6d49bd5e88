"""The data folder: its space, its permissions, and whether what is written to it stays."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from console.doctor.verdict import Finding, warning, well, wrong
from models.database import database_url
from models.settings import Settings

AREA = "disk"
SLOW_SECONDS = 0.25
FEW_INODES = 0.02
GIB = 1024**3
_NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "fuse.glusterfs", "9p", "ceph", "lustre")
_MEMORY = ("tmpfs", "ramfs")


def look_at_disk(settings: Settings) -> Iterator[Finding]:
    """Look at the data folder, and write a small file there that is removed at once."""
    data = settings.data_dir.absolute()
    if not data.is_dir():
        yield warning(AREA, f"there is no data folder yet: {data}", "`osteon up` makes it; or is it not mounted?")
        return
    try:
        yield from _permissions(data)
        spool = data / "spool"
        place = spool if spool.is_dir() else data
        yield from _space(settings, place)
        yield from _file_system(settings, data, place)
        if spool.is_dir():
            yield from _one_file_system(spool)
            yield from _aside(spool)
        yield _synced(spool / "incoming" if (spool / "incoming").is_dir() else place)
    except PermissionError as error:
        yield wrong(AREA, f"may not be looked at: {error.filename}", "run this as the user that the node runs as")


def up_runs(settings: Settings) -> bool:
    """Whether an `osteon up` holds the data folder."""
    lock = settings.data_dir / "run" / "up.lock"
    try:
        inode = lock.stat().st_ino
        held = Path("/proc/locks").read_text("ascii", errors="replace")
    except OSError:
        return False
    # Not asked by locking it: that would keep an `up` that starts now from it.
    return any(f":{inode} " in line and "FLOCK" in line for line in held.splitlines())


def _permissions(data: Path) -> Iterator[Finding]:
    found = data.stat()
    owner = _name_of(found.st_uid)
    if found.st_mode & (stat.S_IROTH | stat.S_IXOTH | stat.S_IWOTH):
        todo = f"chmod o-rwx {data}"
        yield warning(AREA, f"{data} is open to every user of this host, and holds patient data", todo)
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        said = f"{data} belongs to {owner}, and you are {_name_of(os.geteuid())}"
        yield warning(AREA, said, f"run the node, and this, as {owner}")
    else:
        yield well(AREA, f"{data} belongs to {owner}")


@dataclass(frozen=True)
class Space:
    """What is left of the file system of the spool, in bytes."""

    free: float
    total: float
    floor: float
    """Below this, every C-STORE is refused."""

    def judged(self) -> Finding:
        """Return how it is."""
        said = (
            f"{self.free / GIB:.1f} of {self.total / GIB:.1f} GiB are free; "
            f"C-STORE is refused below {self.floor / GIB:.1f} GiB"
        )
        todo = "make room, set retention.days, or move the data folder to a larger disk"
        if self.free < self.floor:
            return wrong(AREA, said, f"{todo}: until then every C-STORE is answered with A700")
        return warning(AREA, said, todo) if self.free < 2 * self.floor else well(AREA, said)


def space_of(settings: Settings) -> Space:
    """Look how much space is left where received files are put. Raises OSError."""
    spool = settings.data_dir.absolute() / "spool"
    disk = shutil.disk_usage(spool if spool.is_dir() else spool.parent)
    floor = max(settings.listener.min_free_bytes, disk.total * settings.listener.min_free_percent / 100)
    return Space(disk.free, disk.total, floor)


def _space(settings: Settings, place: Path) -> Iterator[Finding]:
    yield space_of(settings).judged()
    nodes = os.statvfs(place)
    if nodes.f_files and nodes.f_favail < nodes.f_files * FEW_INODES:
        said = f"{nodes.f_favail} of {nodes.f_files} files are left to its file system (inodes)"
        yield warning(AREA, said, "remove small files there, or make a file system with more inodes")


def _file_system(settings: Settings, data: Path, place: Path) -> Iterator[Finding]:
    kind = file_system_of(place)
    if kind in _MEMORY:
        said = f"{place} lies in memory ({kind}): what was answered with success is lost when the host stops"
        yield wrong(AREA, said, "put the data folder on a disk")
    elif kind == "overlay":
        said = f"{place} lies in the container's own layer: it goes when the container does"
        yield warning(AREA, said, "mount a volume there")
    url = database_url(settings)
    if url.get_backend_name() == "sqlite" and url.database and file_system_of(Path(url.database)).startswith(_NETWORK):
        said = f"SQLite lies on a network file system ({file_system_of(data)}), where its locks and its log do not hold"
        yield wrong(AREA, said, "move data_dir to a local disk, or use PostgreSQL")


def file_system_of(path: Path) -> str:
    """Return the kind of file system a path lies on (proc_pid_mountinfo(5)); "" where that is not known."""
    path = path.resolve()
    found = (-1, "")
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        # Of several mounts at one place the last hides the others.
        if path.is_relative_to(point) and len(point.parts) >= found[0]:
            found = (len(point.parts), after.split()[0])
    return found[1]


def _one_file_system(spool: Path) -> Iterator[Finding]:
    """A file is received in `incoming` and moved: across file systems that would be no single step."""
    incoming = spool / "incoming"
    if not incoming.is_dir():
        yield wrong(
            AREA, f"{incoming} is missing", "is the spool's file system mounted? The listener makes it when it starts"
        )
        return
    device = incoming.stat().st_dev
    elsewhere = sorted(path.name for path in spool.iterdir() if path.is_dir() and path.stat().st_dev != device)
    if elsewhere:
        said = f"folders of the spool lie on another file system than incoming/: {', '.join(elsewhere)}"
        yield wrong(AREA, said, "keep all of spool/ on one file system: what is received cannot be moved across")
    else:
        yield well(AREA, "the spool lies on one file system")


def _aside(spool: Path) -> Iterator[Finding]:
    orphans = spool / "orphans"
    count = sum(1 for _ in orphans.iterdir()) if orphans.is_dir() else 0
    if count:
        said = f"{count} file{'s' if count > 1 else ''} in spool/orphans that no row names"
        todo = "after a restored backup: send them to the node again; else they go by themselves (docs/operating.md)"
        yield warning(AREA, said, todo)


def _synced(folder: Path) -> Finding:
    """Write a file durably as the listener does."""
    # A name that the spool's own tidying removes, should we be killed here.
    probe = folder / f"{uuid.uuid4().hex}.probe"
    began = time.monotonic()
    try:
        with probe.open("xb") as file:
            file.write(b"osteon doctor\n" * 300)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        said = f"{folder} cannot be written durably: {error.strerror}"
        return wrong(AREA, said, "mend the file system: until then every C-STORE is answered with A700")
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    seconds = time.monotonic() - began
    said = f"a file and its folder are synced in {seconds * 1000:.0f} ms"
    if seconds > SLOW_SECONDS:
        return warning(AREA, said, "every instance waits for that before it is answered: use a faster disk")
    return well(AREA, said)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
