"""The listener as DCMTK meets it: who is answered and how, and that what was answered with success is kept exactly."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, _config
from pynetdicom.presentation import build_context
from sqlalchemy import func, select

from console.ports import free_port
from dicom_node.sender import Destination, Result, send
from models.settings import Peer
from models.tables import Image
from models.upgrade import upgrade
from tests.peers import require_peer
from tests.servers import Node, data_set_of, dcmtk, given, renewed, wait_until

MOST_ASSOCIATIONS = 4
# How storescu is told to propose the syntax that a file of the shared data has.
PROPOSE = {"UNC": "-xe", "RLE": "-xr", "JPLL": "-xs", "JPLY": "-xx", "JLSL": "-xt", "J2KR": "-xv"}
VERIFICATION = "1.2.840.10008.1.1"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One `osteon listen` for the module, on each database."""
    folder = tmp_path_factory.mktemp("listener")
    made = given(
        folder / "node",
        log_level="debug",
        database_url=None
        if request.param == "sqlite"
        else request.getfixturevalue("postgresql").new_database().render_as_string(hide_password=False),
        broker_url="redis+socket:///nonexistent/valkey.sock",
        listener={"max_associations": MOST_ASSOCIATIONS},
        peers=[
            Peer(name="modality", ae_title="MODALITY", role="source"),
            Peer(name="archive", ae_title="ARCHIVE", role="destination", host="127.0.0.1", port=1),
        ],
    )
    upgrade(made)
    listener = Node(made, folder / "node.log")
    listener.start("listen")
    listener.wait_until_listening()
    yield listener
    listener.stop()


@pytest.fixture
def sample(test_data: Path, tmp_path: Path) -> Path:
    """A radiograph that the node has not seen: RG3, JPEG 2000."""
    return renewed(test_data / "dicom" / "WG04_RG3_J2KR.dcm", tmp_path / "sample.dcm")


def test_a_known_caller_gets_an_answer_to_its_echo(node: Node) -> None:
    answer = dcmtk("echoscu", node.address)
    assert answer.exit_status == 0
    assert "Received Echo Response (Success)" in answer.output


def test_an_unknown_calling_ae_is_rejected_for_good(node: Node) -> None:
    answer = dcmtk("echoscu", node.address, calling="STRANGER")
    assert answer.exit_status != 0
    assert "Result: Rejected Permanent, Source: Service User" in answer.output
    assert "Reason: Calling AE Title Not Recognized" in answer.output


def test_a_caller_that_calls_another_ae_is_rejected_for_good(node: Node) -> None:
    answer = dcmtk("echoscu", node.address, called="SOMEONE")
    assert answer.exit_status != 0
    assert "Result: Rejected Permanent, Source: Service User" in answer.output
    assert "Reason: Called AE Title Not Recognized" in answer.output


def test_associations_beyond_the_limit_are_rejected_until_one_ends(node: Node) -> None:
    ae = AE(ae_title="MODALITY")
    ae.add_requested_context(VERIFICATION)
    host, port = node.address.host, node.address.port
    opened = [ae.associate(host, port, ae_title=node.address.ae_title) for _ in range(MOST_ASSOCIATIONS)]
    try:
        assert [association.is_established for association in opened] == [True] * MOST_ASSOCIATIONS
        answer = dcmtk("echoscu", node.address)
        assert "Result: Rejected Transient, Source: Service Provider (Presentation Related)" in answer.output
        assert "Reason: Local Limit Exceeded" in answer.output
        opened.pop().release()
        wait_until(lambda: dcmtk("echoscu", node.address).exit_status == 0, what="a place is free again")
    finally:
        for association in opened:
            association.release()


def test_what_dcmtk_sends_in_any_encoding_is_kept_as_dcmtks_own_archive_gets_it(
    node: Node, test_data: Path, tmp_path: Path
) -> None:
    # storescu writes a data set anew, without group lengths; storescp +B keeps every byte that it gets.
    archive = tmp_path / "archive"
    archive.mkdir()
    other = Destination("STORESCP", "127.0.0.1", free_port())
    storescp = [require_peer("storescp"), "-aet", other.ae_title, "+B", "-uf", "-od", archive, "+xa", str(other.port)]
    process = subprocess.Popen(storescp, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sent: dict[str, Path] = {}
    try:
        wait_until(lambda: dcmtk("echoscu", other).exit_status == 0, what="storescp answers")
        for encoding, proposal in PROPOSE.items():
            files = [
                renewed(path, tmp_path / path.name) for path in sorted((test_data / "dicom").glob(f"*_{encoding}.dcm"))
            ]
            assert len(files) == 2
            sent |= {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in files}
            for receiver in (other, node.address):
                answer = dcmtk("storescu", receiver, "-R", proposal, *files)
                assert (answer.exit_status, answer.statuses) == (0, [0x0000, 0x0000]), encoding
    finally:
        process.terminate()
        process.wait()
    reference = {pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID: p for p in archive.iterdir()}
    spooled = node.spooled()
    assert len(reference) == len(sent) == 12
    for uid, path in sent.items():
        kept, row = spooled[uid]
        assert data_set_of(kept) == data_set_of(reference[uid]), path.name
        assert kept.read_bytes()[row.digest_offset :] == data_set_of(kept)
        assert (
            pydicom.filereader.read_file_meta_info(kept).TransferSyntaxUID
            == pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
        )


def test_a_data_set_of_any_encoding_is_kept_byte_for_byte_with_its_digest_on_record(
    node: Node, test_data: Path, tmp_path: Path
) -> None:
    files = [renewed(path, tmp_path / path.name) for path in sorted((test_data / "dicom").glob("*.dcm"))]
    outcomes = dict(send(node.address, files, calling_ae_title="MODALITY", timeout=30))
    assert {path.name for path, outcome in outcomes.items() if outcome.result is not Result.DELIVERED} == set()
    spooled = node.spooled()
    for path in files:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        kept, row = spooled[header.SOPInstanceUID]
        content = kept.read_bytes()
        assert content[row.digest_offset :] == data_set_of(path), path.name
        assert row.sha256 == sha256(data_set_of(path)).hexdigest()
        assert row.size == len(content)


def test_sending_the_same_instance_again_succeeds_and_makes_no_new_work(node: Node, sample: Path) -> None:
    before = images(node)
    assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0x0000]
    files = all_files(node)
    assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0x0000]
    assert (images(node), all_files(node)) == (before + 1, files)
    assert node.half_received == []


def test_a_destination_may_verify_but_not_store(node: Node, sample: Path) -> None:
    before = images(node)
    assert dcmtk("echoscu", node.address, calling="ARCHIVE").exit_status == 0
    answer = dcmtk("storescu", node.address, "-R", "-xv", sample, calling="ARCHIVE")
    assert answer.statuses == [0x0124]
    assert (images(node), node.half_received) == (before, [])


def test_a_data_set_whose_uid_is_not_that_of_the_command_is_refused(node: Node, sample: Path) -> None:
    before = images(node)
    dataset = pydicom.dcmread(sample)
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.save_as(sample)
    assert answer_to(node, sample).Status == 0xA900
    assert (images(node), node.half_received) == (before, [])


@pytest.mark.parametrize("kind", ["garbage", "no UIDs", "cut off in its header", "nothing"])
def test_what_is_no_data_set_is_refused_without_a_word_of_what_is_in_it(node: Node, kind: str, tmp_path: Path) -> None:
    before = images(node)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.5"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    name = b"\x10\x00\x10\x00PN\x0e\x00Planted^Person"
    body = {
        "garbage": b"Planted^Person" * 500,
        "no UIDs": name,
        "cut off in its header": b"\x08\x00\x16\x00UI\x1a\x001.2.840.10008.5.1" + name[:9],
        "nothing": b"",
    }[kind]
    path = tmp_path / "broken.dcm"
    with path.open("wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, meta)
        file.write(body)
    answer = answer_to(node, path)
    assert answer.Status == 0xC000
    assert 0 < len(answer.ErrorComment) <= 64
    assert "Planted" not in str(answer)
    assert (images(node), node.half_received) == (before, [])
    assert "Planted" not in node.log.read_text()
    assert dcmtk("echoscu", node.address).exit_status == 0


def test_a_sop_class_that_is_not_accepted_is_rejected_with_its_context_alone(node: Node) -> None:
    ae = AE(ae_title="MODALITY")
    contexts = [build_context(MRImageStorage), build_context(ComputedRadiographyImageStorage)]
    association = ae.associate(node.address.host, node.address.port, contexts, node.address.ae_title)
    try:
        assert [(str(c.abstract_syntax), c.result) for c in association.rejected_contexts] == [(MRImageStorage, 0x03)]
        assert [c.abstract_syntax for c in association.accepted_contexts] == [ComputedRadiographyImageStorage]
    finally:
        association.release()


def test_neither_the_spools_names_nor_the_log_tell_whose_images_they_are(
    node: Node, sample: Path, tmp_path: Path
) -> None:
    assert dcmtk("storescu", node.address, "-R", "-xv", sample).statuses == [0x0000]
    header = pydicom.dcmread(sample, stop_before_pixels=True)
    told = [str(header.PatientName), str(header.PatientID), "CompressedSamples", header.StudyInstanceUID]
    written = "\n".join([node.log.read_text(), *(str(path.relative_to(tmp_path.parent)) for path in all_files(node))])
    assert "instance stored" in written
    assert [value for value in told if value in written] == []


def images(node: Node) -> int:
    """How many images are on record."""
    with node.database.read() as session:
        return session.scalars(select(func.count()).select_from(Image)).one()


def all_files(node: Node) -> list[Path]:
    """Every file in the spool."""
    return sorted(path for path in (node.settings.data_dir / "spool").rglob("*") if path.is_file())


def answer_to(node: Node, path: Path) -> Dataset:
    """The C-STORE-RSP to a file sent as it is: the command's UIDs are those of the file meta information."""
    meta = pydicom.filereader.read_file_meta_info(path)
    association = AE(ae_title="MODALITY").associate(
        node.address.host,
        node.address.port,
        [build_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)],
        node.address.ae_title,
    )
    assert association.is_established
    before = _config.STORE_SEND_CHUNKED_DATASET
    _config.STORE_SEND_CHUNKED_DATASET = True
    try:
        return association.send_c_store(path)
    finally:
        _config.STORE_SEND_CHUNKED_DATASET = before
        association.release()
