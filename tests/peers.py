"""Programs that no one here wrote, against which Osteon is checked: DCMTK, dicom3tools, PixelMed, Orthanc."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# What is not a command on the PATH: in which folder, and the pattern of its name there.
_FILES = {
    "pixelmed.jar": (Path("/usr/share/java"), "pixelmed.jar"),
    "orthanc-dicomweb": (Path("/usr/lib/orthanc"), "libOrthancDicomWeb.so*"),
}


def require_peer(name: str) -> Path:
    """Find a peer program (such as "dciodvfy"), or "pixelmed.jar", or "orthanc-dicomweb", a plugin of Orthanc.

    Without it the test is skipped, and says so; with OSTEON_REQUIRE_PEERS=1, as in continuous integration, it fails:
    a check that silently did not run looks like one that passed.
    """
    found = _find(name)
    if found is not None:
        return found
    message = f"{name} is not installed: run `make peers`"
    if os.environ.get("OSTEON_REQUIRE_PEERS") == "1":
        pytest.fail(message)
    pytest.skip(message)


def _find(name: str) -> Path | None:
    if name in _FILES:
        folder, pattern = _FILES[name]
        return next((path for path in sorted(folder.glob(pattern)) if path.is_file()), None)
    command = shutil.which(name)
    # A virtual environment may hold another program of the same name: pynetdicom installs an echoscu, too.
    if command is not None and _is_python(Path(command)):
        elsewhere = [p for p in os.get_exec_path() if Path(p).resolve() != Path(command).parent.resolve()]
        command = shutil.which(name, path=os.pathsep.join(elsewhere))
    return None if command is None else Path(command)


def _is_python(command: Path) -> bool:
    with command.open("rb") as file:
        first = file.readline(200)
    return first.startswith(b"#!") and b"python" in first
