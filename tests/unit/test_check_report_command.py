"""`osteon check-report` as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dicom_node.objects.report import build_report
from tests.reports import content


def check(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "console", "check-report", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout


def test_a_report_of_ours_is_well_and_any_other_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    ours, damaged, other = tmp_path / "ours.dcm", tmp_path / "damaged.dcm", tmp_path / "other.dcm"
    report = build_report(content())
    ours.write_bytes(report)
    damaged.write_bytes(report.replace(b"Observer Type ", b"Observer Tipe "))
    other.write_bytes(b"no DICOM")

    assert check(ours) == (0, f"{ours}: well\n")
    code, said = check(ours, damaged, other)
    assert code == 1
    assert said.splitlines() == [
        f"{ours}: well",
        f"{damaged}: 1.2: the meaning of (121005, DCM) is not 'Observer Type'",
        f"{other}: header: the bytes are not a DICOM file",
    ]

    code, said = check("--json", damaged)
    assert code == 1
    problem = {"where": "1.2", "what": "the meaning of (121005, DCM) is not 'Observer Type'"}
    assert json.loads(said) == {"file": str(damaged), "problems": [problem]}
