"""A C-STORE's data set goes straight into the spool, hashed on the way; what breaks off leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.presentation import build_context
from sqlalchemy import select

from dicom_node import spool as spooling
from dicom_node.file_meta import file_head
from dicom_node.listener import Listener
from dicom_node.objects.recognise import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.sender import Destination, Result, echo, send
from dicom_node.spool import Spool
from models.database import Database
from models.settings import Peer, Settings
from models.tables import File, Image, Quarantine
from models.upgrade import upgrade
from tests import dicom_bytes
from tests.phantom import limb
from tests.radiographs import radiograph
from tests.servers import given, wait_until

DX = DigitalXRayImageStorageForPresentation
# Explicit little endian: SOP Class UID, SOP Instance UID, then more than one fragment of private bytes.
DATA_SET = b"".join(
    (
        b"\x08\x00\x16\x00UI\x1c\x00" + DX.encode() + b"\x00",
        b"\x08\x00\x18\x00UI\x08\x00" + b"1.2.3.4\x00",
        b"\x20\x00\x0d\x00UI\x06\x00" + b"1.2.3\x00",
        b"\x20\x00\x0e\x00UI\x08\x00" + b"1.2.3.3\x00",
        b"\x29\x00\x10\x00LO\x04\x00ACME",
        b"\x29\x00\x10\x10OB\x00\x00" + (100_000).to_bytes(4, "little") + os.urandom(100_000),
    )
)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "node" / "spool")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = given(tmp_path / "node", peers=[Peer(name="room", ae_title="ROOM", role="source")])
    upgrade(made)
    return made


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = Database.of(settings)
    yield opened
    opened.close()


@pytest.fixture
def listener(settings: Settings, database: Database, spool: Spool) -> Iterator[Listener]:
    started = Listener(settings, database, spool, lambda: None)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """A DICOM file whose data set is DATA_SET."""
    path = tmp_path / "instance.dcm"
    path.write_bytes(file_head(DX, "1.2.3.4", ExplicitVRLittleEndian) + DATA_SET)
    return path


def incoming_files(spool: Spool) -> list[Path]:
    return list((spool.root / "incoming").iterdir())


def test_the_head_of_a_file_is_what_pydicom_reads_as_file_meta_information(tmp_path: Path) -> None:
    path = tmp_path / "head.dcm"
    for uid in ("1.2.3.4", "1.2.3.45"):
        head = file_head(DX, uid, ExplicitVRLittleEndian)
        path.write_bytes(head)
        meta = read_file_meta_info(path)
        assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (DX, uid)
        assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert (meta.ImplementationClassUID, meta.ImplementationVersionName) == (
            IMPLEMENTATION_CLASS_UID,
            IMPLEMENTATION_VERSION_NAME,
        )
        assert meta.FileMetaInformationVersion == b"\x00\x01"
        assert meta.FileMetaInformationGroupLength == len(head) - 128 - 4 - 12


def test_what_a_sender_sent_is_kept_byte_for_byte_and_recorded_with_its_digest(
    listener: Listener, settings: Settings, database: Database, spool: Spool, instance: Path
) -> None:
    address = Destination(settings.ae_title, "127.0.0.1", listener.port)
    ((_, outcome),) = send(address, [instance], calling_ae_title="ROOM", timeout=10)
    assert (outcome.result, outcome.status) == (Result.DELIVERED, 0)
    with database.read() as session:
        image = session.scalars(select(Image)).one()
        file = session.scalars(select(File)).one()
    with spool.open(file.key) as kept:
        content = kept.read()
    assert content[file.digest_offset :] == DATA_SET
    assert image.dataset_sha256 == file.sha256 == hashlib.sha256(DATA_SET).hexdigest()
    assert file.size == len(content)
    assert image.transfer_syntax_uid == ExplicitVRLittleEndian
    assert dcmread(BytesIO(content)).SOPInstanceUID == "1.2.3.4"
    assert incoming_files(spool) == []


def test_an_instance_that_is_sent_twice_is_kept_once(
    listener: Listener, settings: Settings, spool: Spool, instance: Path
) -> None:
    address = Destination(settings.ae_title, "127.0.0.1", listener.port)
    for _ in range(2):
        ((_, outcome),) = send(address, [instance], calling_ae_title="ROOM", timeout=10)
        assert outcome.status == 0
    assert len([path for path in spool.root.rglob("*") if path.is_file()]) == 1


STORE = dicom_bytes.command(0x0001, uid=DX, with_data_set=True)
REQUEST = dicom_bytes.request("ROOM", "OSTEON", dicom_bytes.context(1, DX, [ExplicitVRLittleEndian]))


def test_a_success_has_no_error_comment_also_where_the_pixels_are_others(
    listener: Listener, settings: Settings, database: Database
) -> None:
    pictures = [limb(72, 60), 255 - limb(72, 60)]
    instances = [radiograph(picture, study_uid="1.2", series_uid="1.2.1") for picture in pictures]
    for instance in instances:
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = "1.2.1.1"
    ae = AE(ae_title="ROOM")
    contexts = [build_context(instances[0].SOPClassUID, instances[0].file_meta.TransferSyntaxUID)]
    association = ae.associate("127.0.0.1", listener.port, contexts, settings.ae_title)
    answers = [association.send_c_store(instance) for instance in instances]
    association.release()
    assert [answer.Status for answer in answers] == [0x0000, 0x0000]
    assert ["ErrorComment" in answer for answer in answers] == [False, False]
    with database.read() as session:
        assert session.scalars(select(Quarantine.reason)).all() == ["same_uid_other_pixels"]


def test_an_association_that_breaks_off_in_the_middle_of_an_instance_leaves_no_file(
    listener: Listener, database: Database, spool: Spool
) -> None:
    for last_words in (dicom_bytes.ABORT, b""):
        with closing(socket.create_connection(("127.0.0.1", listener.port), timeout=5)) as peer:
            peer.sendall(REQUEST)
            assert peer.recv(1) == dicom_bytes.ACCEPTED
            peer.sendall(dicom_bytes.data(dicom_bytes.fragment(1, STORE, command=True, last=True)))
            peer.sendall(dicom_bytes.data(dicom_bytes.fragment(1, DATA_SET[:50_000], command=False, last=False)))
            wait_until(lambda: incoming_files(spool), what="the instance has begun to arrive")
            peer.sendall(last_words)
        wait_until(lambda: not incoming_files(spool), what="its file is removed")
    with database.read() as session:
        assert session.scalars(select(Image)).all() == []


def test_a_data_set_in_pieces_of_any_size_is_kept_as_it_was_sent(
    listener: Listener, database: Database, spool: Spool
) -> None:
    drawn = random.Random(3)
    pieces, at = [], 0
    while at < len(DATA_SET):
        size = drawn.choice([0, 1, 7, 1000, 16_378, 40_000])
        pieces.append(DATA_SET[at : at + size])
        at += size
    sent = dicom_bytes.data(dicom_bytes.fragment(1, STORE, command=True, last=True))
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        sent += dicom_bytes.data(dicom_bytes.fragment(1, piece, command=False, last=last))
    with closing(socket.create_connection(("127.0.0.1", listener.port), timeout=10)) as peer:
        peer.sendall(REQUEST)
        assert peer.recv(1) == dicom_bytes.ACCEPTED
        at = 0
        while at < len(sent):
            # Also across the borders of PDUs and of what the listener reads at once.
            size = drawn.choice([1, 5, 6, 4096, 70_000, 300_000])
            peer.sendall(sent[at : at + size])
            at += size
        peer.sendall(dicom_bytes.RELEASE)
        while peer.recv(65_536):
            continue
    with database.read() as session:
        file = session.scalars(select(File)).one()
    with spool.open(file.key) as kept:
        assert kept.read()[file.digest_offset :] == DATA_SET
    assert file.sha256 == hashlib.sha256(DATA_SET).hexdigest()


def test_a_spool_that_has_become_read_only_is_answered_with_a700(
    listener: Listener, settings: Settings, spool: Spool, instance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    address = Destination(settings.ae_title, "127.0.0.1", listener.port)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        patched.setattr(Path, "rename", refuse)
        ((_, outcome),) = send(address, [instance], calling_ae_title="ROOM", timeout=10)
    assert outcome.status == 0xA700
    for path in incoming_files(spool):
        path.unlink()


def test_a_data_set_without_end_stops_at_the_low_space_mark(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "LOOK_EVERY_BYTES", 1000)
    incoming = spool.incoming()
    incoming.write(bytes(900))
    monkeypatch.setattr(incoming, "_has_space", lambda: False)
    incoming.write(bytes(50))
    assert not incoming.failed
    incoming.write(bytes(100))
    assert incoming.failed
    assert incoming_files(spool) == []


# --- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pdu_type", [b"\x01", b"\x04"], ids=["A-ASSOCIATE-RQ", "P-DATA-TF"])
def test_a_pdu_that_is_announced_with_four_gigabytes_ends_its_connection_at_once_and_others_are_answered(
    listener: Listener, settings: Settings, pdu_type: bytes
) -> None:
    assert settings.listener.idle_timeout > 30
    assert settings.listener.association_timeout > 10
    with closing(socket.create_connection(("127.0.0.1", listener.port), timeout=5)) as peer:
        peer.sendall(pdu_type + b"\x00\xff\xff\xff\xff" + b"\x00" * 100)
        assert until_hung_up(peer) < 9
    assert answers(listener, settings)


def test_a_data_pdu_longer_than_was_agreed_ends_the_association(listener: Listener, settings: Settings) -> None:
    ae = AE(ae_title="ROOM")
    contexts = [build_context(DX, ExplicitVRLittleEndian)]
    association = ae.associate("127.0.0.1", listener.port, contexts, settings.ae_title)
    assert association.is_established
    dul: Any = association.dul
    dul.socket.socket.sendall(b"\x04\x00\xff\xff\xff\xff" + b"\x00" * 100)
    wait_until(lambda: not association.is_established, seconds=20, what="the association is ended")
    assert answers(listener, settings)


def test_a_peer_that_drips_single_bytes_is_let_go_of_after_the_idle_timeout(
    tmp_path: Path, database: Database, spool: Spool
) -> None:
    limits = {"idle_timeout": 1, "association_timeout": 1}
    settings = given(tmp_path / "node", peers=[Peer(name="room", ae_title="ROOM", role="source")], listener=limits)
    listener = Listener(settings, database, spool, lambda: None)
    listener.start()
    try:
        with closing(socket.create_connection(("127.0.0.1", listener.port), timeout=5)) as peer:
            peer.sendall(b"\x01\x00\x00\x00\x10\x00")
            peer.settimeout(0.1)
            assert until_hung_up(peer, drip=b"\x00") < 30
        assert answers(listener, settings)
    finally:
        listener.stop()


def answers(listener: Listener, settings: Settings) -> bool:
    address = Destination(settings.ae_title, "127.0.0.1", listener.port)
    return echo(address, calling_ae_title="ROOM", timeout=5).result is Result.DELIVERED


def until_hung_up(peer: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the other side closes the connection, at most forty; `drip` goes out after each wait in vain."""
    began = time.monotonic()
    while time.monotonic() - began < 40:
        try:
            if peer.recv(4096) == b"":
                break
        except TimeoutError:
            if not drip:
                continue
            try:
                peer.sendall(drip)
            except OSError:
                break
        except ConnectionError:
            break
    return time.monotonic() - began
