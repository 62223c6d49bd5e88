"""Patients stay private: names are planted, and everything that a whole node wrote is searched for them.

Only the tables `studies` and `images`, and the DICOM files themselves, may tell whose images they are.
"""

from __future__ import annotations

import json
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.tag import Tag
from pydicom.uid import ComputedRadiographyImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from sqlalchemy import func, select

from console.ports import free_port
from dicom_node.sender import Result, send
from models.settings import Peer
from models.tables import (
    Base,
    Delivery,
    DeliveryAttempt,
    Image,
    ImageState,
    Quarantine,
    Resend,
    ResendState,
    Study,
    StudyState,
)
from tests.servers import Node, given, renewed, shut_down, wait_until
from worker.broker import client

# Each is found nowhere else, whatever piece of it is written.
NAMES = {"ascii": "Plantedname^Quirin", "latin": "Plântedfremd^Zoë", "japanese": "Plantedyamada^Tarou=榊原^鬱太郎"}
PATIENT_ID, ACCESSION, BIRTH_DATE, DESCRIPTION = "PLANTEDID-77", "PLANTEDACC-88", "19010203", "PLANTEDTEXT of a study"
PIECES = ("Planted", "Plânted", "Quirin", "Zoë", "榊原", "鬱太郎", BIRTH_DATE)
MAY_TELL = {"studies", "images", "header_revisions", "resends"}


def test_no_planted_value_is_found_in_anything_that_a_whole_node_writes(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    files = planted_files(test_data / "dicom", tmp_path)
    with refusing_archive() as archive_port:
        node = Node(given(tmp_path / "node", **settings(archive_port)), tmp_path / "node.log")
        with names_seen(tmp_path / "node", temporary) as names:
            try:
                node.start("up")
                node.wait_until_listening()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what is bad is bad for this sender, too
                    outcomes = dict(send(node.address, files, calling_ae_title="MODALITY", timeout=30))
                predicted = node.run("predict", *map(str, files))
                wait_until(lambda: at_rest(node), seconds=60, what="all is done")
                heads = node.settings.data_dir / "audit-heads"
                wait_until(lambda: list(heads.glob("*.jsonl")), what="the audit chain is signed")
                commands = audited(node, tmp_path / "node" / "export.jsonl")
                broker = client(node.settings)
                payloads = [key + (broker.dump(key) or b"") for key in broker.scan_iter()]
            finally:
                node.stop()

    # What was planted did travel, and the search would find it.
    assert [path.stem for path, outcome in outcomes.items() if outcome.result is Result.DELIVERED] == [
        path.stem for path in files if path.stem not in ("garbage", "other UIDs")
    ]
    told = told_where_it_may_be(node)
    for piece in PIECES:
        assert planted_in(told, [piece]), f"{piece} never arrived"

    written = {
        "the log": node.log.read_bytes(),
        "names of files": "\n".join(sorted(names)).encode("utf-8", "surrogateescape"),
        "what the broker holds": b"\n".join(payloads),
        "predict's output": (predicted.stdout + predicted.stderr).encode(),
        **commands,
        **{str(path): path.read_bytes() for path in other_files(node, temporary)},
        **{f"table {table}": content for table, content in tables(node)},
    }
    assert written["table audit_events"]
    assert written["table delivery_attempts"]
    assert any("appendonly" in name for name in written)
    assert any("audit-heads" in name for name in written)
    assert b'"action":"image.received"' in written[str(tmp_path / "node" / "export.jsonl")]
    assert b"instance refused" in written["the log"]
    # The folder of the test has the test's name.
    own_name = tmp_path.name.encode()
    found = {where: planted_in(content.replace(own_name, b"")) for where, content in written.items()}
    assert {where: pieces for where, pieces in found.items() if pieces} == {}


def audited(node: Node, export: Path) -> dict[str, bytes]:
    """What the commands print that look at the audit trail and run predictions again; by their names."""
    lines = {
        "audit list": ("--study", "1", "--limit", "500"),
        "audit verify": ("--json", "--records"),
        "audit export": (str(export),),
        "replay": ("--sample", "2"),
    }
    done = {name: node.run(*name.split(), *arguments) for name, arguments in lines.items()}
    assert done["audit verify"].returncode == 0, done["audit verify"].stdout
    return {name: (one.stdout + one.stderr).encode() for name, one in done.items()}


def settings(archive_port: int) -> dict[str, Any]:
    """A node that says all it can say, and whose destinations are down or refuse."""
    return {
        "log_level": "debug",
        "audit": {"head_every": 1},
        "study": {"quiet_time": 0.5},
        "delivery": {"first_wait": 0.5, "longest_wait": 1, "max_tries": 2, "timeout": 5},
        "peers": [
            Peer(name="modality", ae_title="MODALITY", role="source"),
            Peer(name="down", ae_title="DOWN", host="127.0.0.1", port=free_port(), role="destination"),
            Peer(name="refuses", ae_title="REFUSES", host="127.0.0.1", port=archive_port, role="destination"),
        ],
    }


def planted_files(source: Path, folder: Path) -> list[Path]:
    """Write images of planted patients: good ones, and ones that make every part complain."""
    kinds: dict[str, tuple[str, str, Callable[[Dataset], None] | None]] = {
        "good": ("UNC", "ascii", None),
        "latin": ("J2KR", "latin", None),
        "japanese": ("JLSL", "japanese", None),
        "bad values": ("J2KR", "ascii", bad_values),
        "bad charset": ("J2KR", "latin", None),
        "bad window": ("J2KR", "japanese", bad_window),
        "broken pixels": ("J2KR", "latin", broken_pixels),
        "no decoder": ("JPLY", "japanese", None),
        "no pixels": ("UNC", "ascii", no_pixels),
    }
    made = []
    for name, (encoding, patient, spoil) in kinds.items():
        path = renewed(source / f"WG04_RG2_{encoding}.dcm", folder / f"{name}.dcm", study=True)
        dataset = pydicom.dcmread(path)
        plant(dataset, patient)
        dataset.save_as(path)
        if spoil is not None:
            # Read anew, its elements are bytes, and are written as they are.
            changed(path, name, spoil)
        if name == "bad charset":
            path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"PLANTEDSET"))
        made.append(path)
    made.append(changed(made[0], "same UID", lambda dataset: setattr(dataset, "SeriesDescription", "again")))
    made.append(changed(made[0], "other pixels", other_pixels))
    made.append(changed(made[0], "to be examined", deflated))
    made.append(changed(made[1], "other patient", other_patient))
    made.append(changed(made[0], "other UIDs", other_uids))
    return [*made, garbage(folder)]


def plant(dataset: Dataset, patient: str) -> None:
    charsets = {"ascii": "ISO_IR 100", "latin": "ISO_IR 100", "japanese": ["", "ISO 2022 IR 87"]}
    dataset.SpecificCharacterSet = charsets[patient]
    dataset.PatientName = dataset.ReferringPhysicianName = NAMES[patient]
    dataset.PatientID, dataset.AccessionNumber = PATIENT_ID, ACCESSION
    dataset.PatientBirthDate, dataset.StudyDescription = BIRTH_DATE, DESCRIPTION


def bad_values(dataset: Dataset) -> None:
    """Values that no parser of their kind takes, and some far too long."""
    spoil(dataset, "PatientBirthDate", b"PLANTEDBIRTH")
    spoil(dataset, "StudyDate", b"PLANTEDDATE ")
    spoil(dataset, "StudyTime", b"PLANTEDTIME ")
    spoil(dataset, "InstanceNumber", b"PLANTEDNUMBER ")
    spoil(dataset, "SeriesNumber", b"PLANTEDSERIES ")
    spoil(dataset, "AccessionNumber", b"PLANTEDACCESSION" * 8)
    spoil(dataset, "PatientID", b"PLANTEDID\\SECOND" * 8)
    spoil(dataset, "PatientName", b"Planted^A^B^C^D^E^F=" * 9)
    spoil(dataset, "PatientSex", b"PLANTEDSEX")


def bad_window(dataset: Dataset) -> None:
    """What the pixels' way reads, and not the header's."""
    spoil(dataset, "WindowCenter", b"PLANTEDCENTRE ")
    spoil(dataset, "WindowWidth", b"PLANTEDWIDTH")
    spoil(dataset, "RescaleSlope", b"PLANTEDSLOPE")
    spoil(dataset, "RescaleIntercept", b"PLANTED1")


def broken_pixels(dataset: Dataset) -> None:
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[:500] + b"Plantedname in the pixels " * 500])


def no_pixels(dataset: Dataset) -> None:
    del dataset.PixelData


def other_patient(dataset: Dataset) -> None:
    uid = dataset.SOPInstanceUID[:-1] + ("1" if dataset.SOPInstanceUID[-1] != "1" else "2")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.PatientID = "PLANTEDID-OTHER"


def other_pixels(dataset: Dataset) -> None:
    dataset.PixelData = b"Plantedname in the pixels " + dataset.PixelData[26:]


def deflated(dataset: Dataset) -> None:
    """The same pixels, for the worker to say so."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


def other_uids(dataset: Dataset) -> None:
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"


def spoil(dataset: Dataset, keyword: str, value: bytes) -> None:
    """Set the bytes of a value as they are, checked by nobody."""
    tag = Tag(keyword)
    value += b" " * (len(value) % 2)
    dataset[tag] = RawDataElement(tag, pydicom.datadict.dictionary_VR(tag), len(value), value, 0, False, True, True)


def changed(source: Path, name: str, change: Callable[[Dataset], None]) -> Path:
    dataset = pydicom.dcmread(source)
    change(dataset)
    path = source.with_stem(name)
    dataset.save_as(path)
    return path


def garbage(folder: Path) -> Path:
    """A DICOM file whose data set is none."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.5"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / "garbage.dcm"
    with path.open("wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, meta)
        file.write(b"\x10\x00\x10\x00PN\x0e\x00Planted^Quirin" + b"Planted^Quirin" * 99)
    return path


@contextmanager
def refusing_archive() -> Iterator[int]:
    """An archive that refuses every report, and names the patient in its Error Comment."""

    def refuse(_event: evt.Event) -> Dataset:
        answer = Dataset()
        answer.Status = 0xC000
        answer.ErrorComment = "Planted patient unknown: Quirin"
        return answer

    ae = AE(ae_title="REFUSES")
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.88.34", ExplicitVRLittleEndian)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, refuse)])
    try:
        yield server.server_address[1]
    finally:
        shut_down(ae)


@contextmanager
def names_seen(*folders: Path) -> Iterator[set[str]]:
    """Collect the names of all files, those too that exist for a moment only."""
    names: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            for folder in folders:
                try:
                    names.update(str(path.relative_to(folder)) for path in folder.rglob("*"))
                except FileNotFoundError:
                    continue  # gone while it was listed

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield names
    finally:
        stop.set()
        looking.join()


def at_rest(node: Node) -> bool:
    """Whether every image was dealt with, every study reported or left to a person, each report tried everywhere."""
    with node.database.read() as session:
        waiting = session.scalars(
            select(func.count()).select_from(Image).where(Image.state == ImageState.RECEIVED)
        ).one()
        open_ = session.scalars(
            select(func.count())
            .select_from(Study)
            .where(Study.state.not_in((StudyState.REPORTED, StudyState.NEEDS_ATTENTION)))
        ).one()
        deliveries = session.scalars(select(func.count()).select_from(Delivery)).one()
        tried = session.scalars(select(func.count(DeliveryAttempt.delivery_id.distinct()))).one()
        unexamined = session.scalars(select(Resend.id).where(Resend.state == ResendState.WAITING)).all()
        quarantined = session.scalars(select(func.count()).select_from(Quarantine)).one()
    return not waiting and not open_ and not unexamined and 0 < deliveries == tried and quarantined == 2


def other_files(node: Node, temporary: Path) -> list[Path]:
    """Every file that was written, but those where DICOM objects and the record lie."""
    data = node.settings.data_dir
    objects = {path for path, _ in node.spooled().values()}
    found = [path for folder in (data, temporary) for path in folder.rglob("*") if path.is_file()]
    return [
        path
        for path in found
        if path.absolute() not in objects and not path.name.startswith("osteon.db") and not is_dicom(path)
    ]


def is_dicom(path: Path) -> bool:
    return path.read_bytes()[128:132] == b"DICM"


def tables(node: Node) -> Iterator[tuple[str, bytes]]:
    """The content of every table that may not tell; of reports all but the DICOM object itself."""
    with node.database.read() as session:
        for table in Base.metadata.sorted_tables:
            if table.name not in MAY_TELL:
                columns = [column for column in table.columns if (table.name, column.name) != ("reports", "content")]
                yield table.name, repr(session.execute(select(*columns)).all()).encode()
    node.database.close()


def told_where_it_may_be(node: Node) -> bytes:
    with node.database.read() as session:
        rows = session.execute(select(Base.metadata.tables["studies"])).all()
        headers = session.execute(select(Base.metadata.tables["images"])).all()
    node.database.close()
    return repr((rows, headers)).encode()


def planted_in(content: bytes, pieces: list[str] | tuple[str, ...] = PIECES) -> list[str]:
    """Return the planted pieces that occur in `content`, in whatever way they may be written there."""
    lowered = content.lower()
    return [piece for piece in pieces if any(form.lower() in lowered for form in forms(piece))]


def forms(piece: str) -> set[bytes]:
    """The bytes of a piece in files, in JSON, and as Python shows text and bytes."""
    if piece.isascii():
        return {piece.encode()}
    own = "latin-1" if max(piece) < "Ā" else "iso2022_jp"
    encoded = {piece.encode("utf-8"), piece.encode(own).removeprefix(b"\x1b$B").removesuffix(b"\x1b(B")}
    shown = {repr(form)[2:-1].encode() for form in encoded}
    return encoded | shown | {piece.encode("ascii", "backslashreplace"), json.dumps(piece)[1:-1].encode()}
