"""What others say of a report: dicom3tools, DCMTK, and PixelMed, the gate of IHE AIR."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.peers import require_peer

LAUNCHER = Path(__file__).with_name("Validate.java")
# DCMTK's checker of value representations stops at UTF-8; it says so of every object in UTF-8.
_UTF8_NOTE = "W: The VR checker does not support this Specific Character Set: ISO_IR 192"
_JAVA = [
    # It runs for seconds only: the second compiler would take longer than it saves.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    *(f"-Djdk.xml.{limit}=0" for limit in ("xpathExprGrpLimit", "xpathExprOpLimit", "xpathTotalOpLimit")),
]


def dicom3tools(path: Path) -> list[str]:
    """The errors that dciodvfy finds; fails where it does not know the object."""
    lines = run(require_peer("dciodvfy"), path)
    assert {"Comprehensive3DSR", "ComprehensiveSR"} & set(lines), lines
    return [line for line in lines if line.startswith("Error")]


def dcmtk(path: Path) -> list[str]:
    """What dsrdump complains of, warnings included."""
    lines = run(require_peer("dsrdump"), "+Pu", "+Pc", "+Pt", path)
    complaints = [line for line in lines if line.startswith(("E:", "W:", "F:")) and line != _UTF8_NOTE]
    assert complaints or any('(126000,DCM,"Imaging Measurement Report")' in line for line in lines)
    return complaints


def pixelmed(reports: Mapping[str, bytes], folder: Path) -> dict[str, list[str]]:
    """The errors that PixelMed's validator finds in each report: by one JVM, which loads its rules once.

    The launcher is compiled by the JVM that runs it; one without a compiler validates one report after the other.
    """
    java, jar = require_peer("java"), require_peer("pixelmed.jar")
    paths = {name: folder / f"{number}.dcm" for number, name in enumerate(reports)}
    for name, path in paths.items():
        path.write_bytes(reports[name])
    command = [java, *_JAVA, "-cp", jar]
    said = "\n".join(run(*command, LAUNCHER, *paths.values())).split("FILE ")
    if len(said) - 1 != len(paths):
        each = ["\n".join(run(*command, "com.pixelmed.validate.DicomSRValidator", path)) for path in paths.values()]
        said = ["", *each]
    found = {}
    for name, text in zip(paths, said[1:], strict=True):
        # Its exit code is always 0, and a validator that fell over finds no error either.
        assert "Root Template Validation Complete" in text, text
        found[name] = [line for line in text.splitlines() if line.startswith("Error")]
    return found


def run(*command: str | Path) -> list[str]:
    """Run a program to its end; what it said on both channels, in lines."""
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=300, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
