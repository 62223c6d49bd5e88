"""What the README tells people to do works as it is written there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydicom import dcmread
from sqlalchemy import func, select

from console.pacs import StorageScp
from models.settings import Peer, StudySettings
from models.tables import Prediction
from tests.servers import Node, given, wait_until

README = Path(__file__).resolve().parents[2] / "README.md"


def test_settings_in_the_readme_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "osteon.toml").write_text(block.group(1))
    for name in ("OSTEON_CONFIG", "OSTEON_TEST_DATA"):
        monkeypatch.delenv(name, raising=False)
    check = subprocess.run(
        [sys.executable, "-m", "console", "settings", "check"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(README.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr
    assert "er-room-1" in check.stdout


def test_files_and_links_that_the_readme_names_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    missing = [link for link in links if not link.startswith("http") and not (README.parent / link).exists()]
    assert missing == []


@pytest.mark.timeout(120)
def test_a_picture_sent_with_wrap_comes_back_as_a_report(tmp_path: Path, radiographs: dict[str, Path]) -> None:
    # A real one: the model knows a drawn limb for what it is, and reads none.
    tibia = dcmread(radiographs["RG3"])
    assert tibia.PhotometricInterpretation == "MONOCHROME1"
    stored = tibia.pixel_array.astype(float)
    picture = tmp_path / "hand.png"
    Image.fromarray((255 * (1 - stored / stored.max())).astype("uint8")).save(picture)
    pacs = StorageScp(tmp_path)
    settings = given(
        tmp_path / "node",
        study=StudySettings(quiet_time=1),
        peers=[
            Peer(name="sender", ae_title="SENDER", role="source"),
            Peer(name="pacs", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.port, role="destination"),
        ],
    )
    node = Node(settings, tmp_path / "node.log")
    try:
        node.start("up")
        node.wait_until_listening()
        to = f"OSTEON@127.0.0.1:{settings.port}"
        sent = node.run("send", str(picture), "--wrap", "--to", to, "--calling", "SENDER")
        assert sent.returncode == 0, sent.stdout + sent.stderr
        assert "delivered" in sent.stdout
        [report] = wait_until(pacs.new_reports, what="the report arrives")
        assert report.content
        with node.database.read() as session:
            assert session.scalar(select(func.count(Prediction.id))) == 1
        refused = node.run("send", str(picture), "--wrap", "--to", to, "--calling", "STRANGER")
        assert refused.returncode == 1
        assert "association_rejected" in refused.stdout
        text = node.run("send", str(README), "--to", to, "--calling", "SENDER")
        assert text.returncode == 1
        assert "not_dicom" in text.stdout
    finally:
        node.stop()
        pacs.stop()
