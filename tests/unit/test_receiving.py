"""What pynetdicom must go on doing so that a C-STORE's data set goes straight into the spool, hashed on the way."""

from __future__ import annotations

import gc
import hashlib
import inspect
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.presentation import build_context
from pynetdicom.transport import AssociationSocket
from sqlalchemy import select

from console.ports import free_port
from dicom_node import receiving
from dicom_node.listener import Listener
from dicom_node.receiving import Receiver
from dicom_node.sender import Destination, Result, echo, send
from dicom_node.spool import Spool
from models.database import Database
from models.settings import Peer, Settings
from models.tables import File, Image
from models.upgrade import upgrade
from tests.servers import given, wait_until

messages: Any = import_module("pynetdicom.dimse_messages")
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


@pytest.fixture(autouse=True)
def _pynetdicom_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver changes pynetdicom for the whole process: put it back after each test."""
    for owner, name in (
        (_config, "STORE_RECV_CHUNKED_DATASET"),
        (_config, "STORE_SEND_CHUNKED_DATASET"),
        (messages, "NamedTemporaryFile"),
        (messages, "write_file_meta_info"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))


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
    meta = BytesIO()
    receiving._write_file_meta_info(
        meta,
        messages.create_file_meta(sop_class_uid=DX, sop_instance_uid="1.2.3.4", transfer_syntax=ExplicitVRLittleEndian),
    )
    path = tmp_path / "instance.dcm"
    path.write_bytes(b"\x00" * 128 + b"DICM" + meta.getvalue() + DATA_SET)
    return path


def store_request(data_set: bytes = DATA_SET) -> Any:
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = DX
    request.AffectedSOPInstanceUID = "1.2.3.4"
    request.Priority = 2
    request.DataSet = BytesIO(data_set)
    message = messages.C_STORE_RQ()
    message.primitive_to_message(request)
    return message


def incoming_files(spool: Spool) -> list[Path]:
    return list((spool.root / "incoming").iterdir())


def test_pynetdicom_still_has_the_names_that_the_receiver_puts_its_own_in_place_of() -> None:
    assert callable(messages.NamedTemporaryFile)
    assert callable(messages.write_file_meta_info)
    assert _config.STORE_RECV_CHUNKED_DATASET is False


def test_a_receiver_that_is_uninstalled_leaves_pynetdicom_as_it_was_or_to_the_one_that_came_after_it(
    spool: Spool,
) -> None:
    def in_place() -> tuple[Any, ...]:
        return (
            _config.STORE_RECV_CHUNKED_DATASET,
            messages.NamedTemporaryFile,
            messages.write_file_meta_info,
        )

    before = in_place()
    first, second = Receiver(spool), Receiver(spool)
    first.install()
    second.install()
    first.uninstall()
    assert in_place() == (True, second._new_file, second._write_file_meta)
    second.uninstall()
    assert in_place() == before


def test_a_decoded_message_lies_in_the_spool_as_preamble_meta_and_data_set_with_the_digest_of_the_data_set(
    spool: Spool,
) -> None:
    receiver = Receiver(spool)
    receiver.install()
    context = build_context(DX, ExplicitVRLittleEndian)
    association: Any = SimpleNamespace(_accepted_cx={1: context})
    received = messages.DIMSEMessage()
    fragments = list(store_request().encode_msg(1, 16384))
    assert len(fragments) > 3
    ends = [received.decode_msg(fragment, association) for fragment in fragments]
    assert ends == [False] * (len(fragments) - 1) + [True]

    request: Any = received.message_to_primitive()
    incoming = receiver.find(request._dataset_path)
    incoming.finish()
    content = incoming.path.read_bytes()
    assert content[:132] == b"\x00" * 128 + b"DICM"
    meta = read_file_meta_info(incoming.path)
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (DX, "1.2.3.4")
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert content[incoming.digest_offset :] == DATA_SET
    assert incoming.sha256 == hashlib.sha256(DATA_SET).hexdigest()
    assert incoming.size == len(content)
    assert request._dataset_file is incoming, "pynetdicom closes and removes it when the request was handled"


def test_a_message_that_is_dropped_half_way_leaves_no_file(spool: Spool) -> None:
    Receiver(spool).install()
    association: Any = SimpleNamespace(_accepted_cx={1: build_context(DX, ExplicitVRLittleEndian)})
    received = messages.DIMSEMessage()
    for fragment in list(store_request().encode_msg(1, 16384))[:3]:
        received.decode_msg(fragment, association)
    assert len(incoming_files(spool)) == 1
    del received
    assert incoming_files(spool) == []


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


def test_an_association_that_breaks_off_in_the_middle_of_an_instance_leaves_no_file(
    listener: Listener, settings: Settings, database: Database, spool: Spool
) -> None:
    ae = AE(ae_title="ROOM")
    association = ae.associate(
        "127.0.0.1", listener.port, [build_context(DX, ExplicitVRLittleEndian)], settings.ae_title
    )
    assert association.is_established
    context = association.accepted_contexts[0].context_id
    for fragment in list(store_request().encode_msg(context, 16384))[:4]:
        association.dul.send_pdu(fragment)
    wait_until(lambda: incoming_files(spool), seconds=5, what="the instance has begun to arrive")
    association.abort()
    wait_until(lambda: not incoming_files(spool), seconds=5, what="its file is removed")
    time.sleep(0.1)
    with database.read() as session:
        assert session.scalars(select(Image)).all() == []


# --- bounds -------------------------------------------------------------------------------------------------------


def test_pynetdicom_still_reads_every_pdu_through_the_method_that_the_bounded_reader_takes_the_place_of() -> None:
    assert list(inspect.signature(AssociationSocket.recv).parameters) == ["self", "nr_bytes"]
    source = inspect.getsource(DULServiceProvider)
    assert source.count("self.socket.recv(") == 2, "six bytes of PDU header, then the rest"
    assert ".socket.socket.recv" not in source


@pytest.mark.parametrize("pdu_type", [b"\x01", b"\x04"], ids=["A-ASSOCIATE-RQ", "P-DATA-TF"])
def test_a_pdu_that_is_announced_with_four_gigabytes_ends_its_connection_at_once_and_others_are_answered(
    listener: Listener, settings: Settings, pdu_type: bytes
) -> None:
    assert settings.listener.idle_timeout > 30
    assert settings.listener.association_timeout > 10
    with closing(socket.create_connection(("127.0.0.1", listener.port), timeout=5)) as peer:
        peer.sendall(pdu_type + b"\x00\xff\xff\xff\xff" + b"\x00" * 100)
        assert until_hung_up(peer) < 3
    assert answers(listener, settings)


def test_a_data_pdu_longer_than_was_agreed_ends_the_association(listener: Listener, settings: Settings) -> None:
    ae = AE(ae_title="ROOM")
    contexts = [build_context(DX, ExplicitVRLittleEndian)]
    association = ae.associate("127.0.0.1", listener.port, contexts, settings.ae_title)
    assert association.is_established
    dul: Any = association.dul
    dul.socket.socket.sendall(b"\x04\x00\xff\xff\xff\xff" + b"\x00" * 100)
    wait_until(lambda: not association.is_established, seconds=3, what="the association is ended")
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
            assert until_hung_up(peer, drip=b"\x00") < 4
        assert answers(listener, settings)
    finally:
        listener.stop()


def test_a_connection_that_cannot_be_made_is_closed_at_once() -> None:
    nowhere = Destination("PACS", "127.0.0.1", free_port())
    gc.collect()
    gc.disable()
    try:
        before = open_sockets()
        assert echo(nowhere, calling_ae_title="ROOM", timeout=5).result is Result.FAILED
        wait_until(lambda: open_sockets() == before, seconds=5, what="nothing of the connection is left")
    finally:
        gc.enable()


def open_sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            count += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return count


def answers(listener: Listener, settings: Settings) -> bool:
    address = Destination(settings.ae_title, "127.0.0.1", listener.port)
    return echo(address, calling_ae_title="ROOM", timeout=5).result is Result.DELIVERED


def until_hung_up(peer: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the other side closes the connection, at most ten; `drip` goes out after each wait in vain."""
    began = time.monotonic()
    while time.monotonic() - began < 10:
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
