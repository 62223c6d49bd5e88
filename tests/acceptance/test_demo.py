"""What a new user does first: `make demo`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import psutil
import pydicom
import pytest

from tests.peers import require_peer
from worker.bundle import default_bundle_path

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(params=["orthanc", "without orthanc"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has Orthanc, and of one who has not."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
    if request.param == "orthanc":
        require_peer("Orthanc")
        return mine
    empty = tmp_path / "bin"
    empty.mkdir()
    return {**mine, "PATH": str(empty)}


def test_demo_brings_a_report_for_each_radiograph_to_the_pacs_and_leaves_nothing_running(
    environment: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "demo"
    demo = subprocess.run(
        [sys.executable, "-m", "console", "demo", "--folder", str(home)],
        env={**environment, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr + (home / "node.log").read_text()
    assert "2 reports arrived" in demo.stdout
    assert "AI result, not for primary diagnosis" in demo.stdout
    chest = next(line for line in demo.stdout.splitlines() if "CHEST" in line)
    assert "not analysed" in chest
    tibia = next(line for line in demo.stdout.splitlines() if "EXTREMITY" in line)
    assert re.search(r"(fracture|undetermined).*\d%.*\d s", tibia)
    reports = [pydicom.dcmread(BytesIO(path.read_bytes())) for path in sorted((home / "reports").iterdir())]
    assert {report.SOPClassUID.name for report in reports} == {"Comprehensive 3D SR Storage"}
    assert not [p for p in psutil.process_iter() if _belongs_to(p, home)]


def test_demo_keeps_running_with_keep_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    empty = tmp_path / "bin"
    empty.mkdir()
    output = tmp_path / "output"
    with output.open("w") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "console", "demo", "--keep", "--folder", str(home)],
            env={**os.environ, "PATH": str(empty), "COLUMNS": "160"},
            stdout=file,
            stderr=file,
            # Where the tests run in the background, Ctrl-C is ignored by all that they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    try:
        until = time.monotonic() + 120
        while "Ctrl-C stops both" not in output.read_text():
            assert demo.poll() is None, output.read_text()
            assert time.monotonic() < until, output.read_text()
            time.sleep(0.2)
        assert re.search(r"Node: OSTEON@127\.0\.0\.1:\d+", output.read_text())
        assert re.search(r"PACS: DEMOPACS@127\.0\.0\.1:\d+", output.read_text())
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
    finally:
        # It takes its node with it.
        demo.kill()
        demo.wait()
    assert not [p for p in psutil.process_iter() if _belongs_to(p, home)]


def test_demo_ends_with_status_1_when_the_model_bundle_is_damaged(tmp_path: Path) -> None:
    bundle = shutil.copytree(default_bundle_path(), tmp_path / "bundle")
    (bundle / "card.json").write_bytes((bundle / "card.json").read_bytes() + b" ")
    empty = tmp_path / "bin"
    empty.mkdir()
    demo = subprocess.run(
        [sys.executable, "-m", "console", "demo", "--folder", str(tmp_path / "demo"), "--bundle", str(bundle)],
        env={**os.environ, "PATH": str(empty)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert demo.returncode == 1
    assert "The demo failed" in demo.stdout
    assert "card.json" in (tmp_path / "demo" / "node.log").read_text()


def _belongs_to(process: psutil.Process, home: Path) -> bool:
    try:
        described = " ".join(process.cmdline()) + " ".join(process.environ().values())
    except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    return str(home) in described
