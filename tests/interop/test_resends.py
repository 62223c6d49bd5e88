"""What comes again as other people's tools make it: recompressed, corrected and changed by DCMTK, sent by storescu."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from sqlalchemy import select

from dicom_node.spool import Spool
from models.settings import Peer
from models.tables import HeaderRevision, Image, Quarantine, Resend, ResendState, Study
from models.upgrade import upgrade
from tests.peers import require_peer
from tests.servers import Node, dcmtk, given, renewed
from worker.examine import Examiner

UNCOMPRESSED, PROPOSE = "-xe", {"RLE": "-xr", "JPLL": "-xs", "JPLY": "-xx", "JLSL": "-xt", "J2KR": "-xv"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One `osteon listen` that refuses other pixels where it sees them."""
    folder = tmp_path_factory.mktemp("resends")
    made = given(
        folder / "node",
        broker_url="redis+socket:///nonexistent/valkey.sock",
        listener={"other_pixels_status": "0111"},
        peers=[Peer(name="modality", ae_title="MODALITY", role="source")],
    )
    upgrade(made)
    listener = Node(made, folder / "node.log")
    listener.start("listen")
    listener.wait_until_listening()
    yield listener
    listener.stop()


@pytest.fixture
def first(node: Node, test_data: Path, tmp_path: Path) -> Path:
    """RG3, uncompressed, under a UID of its own; the node has it."""
    path = renewed(test_data / "dicom" / "WG04_RG3_UNC.dcm", tmp_path / "first.dcm", study=True)
    assert sent(node, path, UNCOMPRESSED) == [0x0000]
    return path


def sent(node: Node, path: Path, proposal: str) -> list[int]:
    return dcmtk("storescu", node.address, "-R", proposal, path).statuses


def made_by(program: str, *arguments: str | Path) -> None:
    subprocess.run([require_peer(program), *arguments], check=True, capture_output=True, timeout=60)


def under_the_uids_of(first: Path, source: Path, target: Path) -> Path:
    dataset, uids = pydicom.dcmread(source), pydicom.dcmread(first, stop_before_pixels=True)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(dataset, keyword, uids[keyword].value)
    dataset.file_meta.MediaStorageSOPInstanceUID = uids.SOPInstanceUID
    dataset.save_as(target)
    return target


def resends(node: Node, first: Path) -> list[ResendState]:
    uid = pydicom.dcmread(first, stop_before_pixels=True).SOPInstanceUID
    with node.database.read() as session:
        mine = select(Resend.state).join(Image, Image.id == Resend.image_id).where(Image.sop_instance_uid == uid)
        return list(session.scalars(mine.order_by(Resend.id)))


def examine_all(node: Node) -> None:
    examiner = Examiner(node.settings, node.database, Spool(node.settings.data_dir / "spool"))
    for _ in range(20):
        if not examiner.examine_next():
            return
    raise AssertionError("it never ends")


def test_what_dcmtk_or_another_encoder_recompressed_without_loss_is_the_same_image(
    node: Node, first: Path, test_data: Path, tmp_path: Path
) -> None:
    copies = {}
    for program, options, encoding in (
        ("dcmcjpls", [], "JLSL"),
        ("dcmcjpeg", ["+e1"], "JPLL"),
        ("dcmcrle", [], "RLE"),
    ):
        path = tmp_path / f"{program}.dcm"
        made_by(program, *options, first, path)
        copies[path] = PROPOSE[encoding]
    for encoding in ("JPLL", "JLSL", "J2KR"):
        source = test_data / "dicom" / f"WG04_RG3_{encoding}.dcm"
        copies[under_the_uids_of(first, source, tmp_path / f"{encoding}.dcm")] = PROPOSE[encoding]
    back = tmp_path / "back.dcm"
    made_by("dcmdjpls", "+ti", tmp_path / "dcmcjpls.dcm", back)
    copies[back] = "-xi"
    for path, proposal in copies.items():
        assert sent(node, path, proposal) == [0x0000], path.name
    assert resends(node, first).count(ResendState.WAITING) == 6, "uncompressed again, the bytes tell"
    examine_all(node)
    assert set(resends(node, first)) == {ResendState.REVISION}
    assert len(resends(node, first)) == 7


def test_what_dcmodify_corrected_is_known_without_decoding_and_the_study_has_the_new_name(
    node: Node, first: Path, tmp_path: Path
) -> None:
    corrected = tmp_path / "corrected.dcm"
    corrected.write_bytes(first.read_bytes())
    made_by("dcmodify", "-nb", "-m", "PatientName=Corrected^Name", "-i", "OperatorsName=Someone", corrected)
    assert sent(node, corrected, UNCOMPRESSED) == [0x0000]
    assert resends(node, first) == [ResendState.REVISION]
    uid = pydicom.dcmread(first, stop_before_pixels=True).StudyInstanceUID
    with node.database.read() as session:
        study = session.scalars(select(Study).where(Study.study_instance_uid == uid)).one()
        changed = session.scalars(
            select(HeaderRevision.changed).join(Image).where(Image.study_id == study.id).order_by(HeaderRevision.id)
        ).all()
    assert (study.patient_name, study.generation, changed[-1]) == ("Corrected^Name", 2, ["PatientName"])


def test_other_pixels_get_the_status_of_the_settings_and_are_quarantined_all_the_same(
    node: Node, first: Path, test_data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.dcm"
    dataset = pydicom.dcmread(first)
    dataset.PixelData = bytes([dataset.PixelData[0] ^ 1]) + dataset.PixelData[1:]
    dataset.save_as(other)
    assert sent(node, other, UNCOMPRESSED) == [0x0111]
    assert sent(node, other, UNCOMPRESSED) == [0x0111], "however often it is asked"
    lossy = under_the_uids_of(first, test_data / "dicom" / "WG04_RG3_JPLY.dcm", tmp_path / "lossy.dcm")
    assert sent(node, lossy, PROPOSE["JPLY"]) == [0x0000], "without decoding it cannot be told"
    examine_all(node)
    assert resends(node, first) == [ResendState.CONFLICT] * 2
    assert sent(node, lossy, PROPOSE["JPLY"]) == [0x0111], "now it is known"
    with node.database.read() as session:
        reasons = session.scalars(select(Quarantine.reason)).all()
    assert list(reasons) == ["same_uid_other_pixels"] * 2
    assert "Compressed" not in node.log.read_text()
