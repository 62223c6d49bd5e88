"""Every way out to real receivers: Orthanc by STOW-RS, python-hl7 over MLLP, archives that take one transfer syntax."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from console.ports import free_port
from models.settings import Peer
from models.tables import Delivery, DeliveryAttempt, Report
from tests.hl7_listener import hl7_listener
from tests.peers import require_peer
from tests.post import Post, data_set, peer
from tests.radiographs import radiograph
from tests.receivers import PASSWORD, dicomweb, service, stored_of, storescp
from tests.servers import given, orthanc


@pytest.fixture
def make_post(tmp_path: Path) -> Iterator[Callable[..., Post]]:
    posts: list[Post] = []

    def make(*peers: Peer, **delivery: Any) -> Post:
        posts.append(
            Post(given(tmp_path / "node", peers=list(peers), delivery={"timeout": 20, "first_wait": 30, **delivery}))
        )
        return posts[-1]

    yield make
    for post in posts:
        post.courier.stop()
        post.database.close()


def outcomes(post: Post) -> list[tuple[str, int | None]]:
    return [(row.outcome, row.status) for row in post.all(DeliveryAttempt)]


# --- STOW-RS ----------------------------------------------------------------------------------------------------------


def test_orthanc_has_each_report_once_with_the_bytes_on_record(make_post: Callable[..., Post], tmp_path: Path) -> None:
    with dicomweb(tmp_path / "orthanc") as http:
        post = make_post(service(tmp_path, http))
        for _ in range(3):
            post.report()
        post.deliver()
        received = stored_of(http, PASSWORD)
        assert post.states() == ["delivered"] * 3
        assert outcomes(post) == [("stored", 0x0000)] * 3
        on_record = [data_set(report.content) for report in post.all(Report)]
        assert sorted(data_set(content) for content in received) == sorted(on_record)
        # Sent again, as after an answer that was lost, it is still there once.
        post.restart_all()
        post.deliver()
        assert post.states() == ["delivered"] * 3
        assert sorted(data_set(content) for content in stored_of(http, PASSWORD)) == sorted(on_record)


def test_a_wrong_password_lets_the_destination_rest_and_a_mended_one_brings_everything(
    make_post: Callable[..., Post], tmp_path: Path
) -> None:
    with dicomweb(tmp_path / "orthanc") as http:
        post = make_post(service(tmp_path, http, password="wrong"), longest_wait=1000)
        for _ in range(2):
            post.report()
        post.deliver()
        assert post.states() == ["due"] * 2
        assert {outcome for outcome, _ in outcomes(post)} == {"not_authorised"}
        state = post.destination()
        assert (state.failures, state.reason) == (1, "not_authorised")
        service(tmp_path, http)  # writes the right one
        post.restart_all()
        post.deliver()
        assert post.states() == ["delivered"] * 2
        assert post.tries() == [1, 1], "the tries before are forgotten"


def test_a_path_where_there_is_no_service_lets_the_destination_rest(
    make_post: Callable[..., Post], tmp_path: Path
) -> None:
    with dicomweb(tmp_path / "orthanc") as http:
        post = make_post(service(tmp_path, http, url=f"http://127.0.0.1:{http}/nothing-here"))
        post.report()
        post.deliver()
    assert post.states() == ["due"]
    assert post.destination().reason == "no_such_service"


def test_a_service_that_is_down_gets_it_when_it_is_back(make_post: Callable[..., Post], tmp_path: Path) -> None:
    port = free_port()
    post = make_post(service(tmp_path, port))
    post.report()
    post.deliver()
    assert (post.states(), post.destination().reason) == (["due"], "not_reached")
    with dicomweb(tmp_path / "orthanc", http_port=port):
        post.restart_all()
        post.deliver()
        assert len(stored_of(port, PASSWORD)) == 1
    assert post.states() == ["delivered"]


def test_a_report_that_orthanc_cannot_read_is_refused_and_the_next_goes_on(
    make_post: Callable[..., Post], tmp_path: Path
) -> None:
    with dicomweb(tmp_path / "orthanc") as http:
        post = make_post(service(tmp_path, http))
        post.report(hl7=True)
        post.report()
        post.deliver()
    assert post.states() == ["needs_attention", "delivered"]
    assert [outcome for outcome, _ in outcomes(post)] == ["not_dicom", "stored"]


# --- HL7 --------------------------------------------------------------------------------------------------------------


def listener(port: int) -> Peer:
    return Peer(name="pacs", protocol="hl7", role="destination", host="127.0.0.1", port=port)


def test_python_hl7_gets_each_message_once_over_one_connection(make_post: Callable[..., Post]) -> None:
    with hl7_listener() as ris:
        post = make_post(listener(ris.port))
        for _ in range(3):
            post.report(hl7=True)
        post.deliver()
    assert post.states() == ["delivered"] * 3
    assert outcomes(post) == [("acknowledged", None)] * 3
    assert [str(message).encode() for message in ris.messages] == [row.content for row in post.all(Report)]
    assert str(ris.messages[0]["PID.F5.R1.C1"]) == "Doe"


def test_each_message_is_judged_by_its_own_acknowledgement(make_post: Callable[..., Post]) -> None:
    codes = iter(["AE", "AA", "AR", "AA"])
    with hl7_listener(lambda _: next(codes)) as ris:
        post = make_post(listener(ris.port))
        for _ in range(4):
            post.report(hl7=True)
        post.deliver()
    assert post.states() == ["needs_attention", "delivered", "due", "delivered"]
    assert len(ris.messages) == 4
    assert post.destination().failures == 0, "it does answer"


def test_a_listener_that_is_down_gets_it_when_it_is_back(make_post: Callable[..., Post]) -> None:
    port = free_port()
    post = make_post(listener(port))
    post.report(hl7=True)
    post.report()
    post.deliver()
    assert (post.states(), post.destination().reason) == (["due"] * 2, "not_reached")
    with hl7_listener(port=port) as ris:
        post.restart_all()
        post.deliver()
    assert post.states() == ["delivered", "needs_attention"], "a DICOM object is no message"
    assert len(ris.messages) == 1


# --- transfer syntaxes ------------------------------------------------------------------------------------------------


def same(received: pydicom.FileDataset, stored: bytes) -> None:
    """Attribute by attribute, those of every item of every sequence too."""
    assert [*received.iterall()] == [*pydicom.dcmread(io.BytesIO(stored)).iterall()]


def test_an_archive_that_takes_implicit_vr_alone_gets_the_same_report_attribute_by_attribute(
    make_post: Callable[..., Post], tmp_path: Path
) -> None:
    with storescp(tmp_path / "archive", "+xi") as port:
        post = make_post(peer("pacs", port))
        post.report()
        post.deliver()
    assert (post.states(), outcomes(post)) == (["delivered"], [("stored", 0x0000)])
    (path,) = (tmp_path / "archive").iterdir()
    received = pydicom.dcmread(path)
    assert received.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    same(received, post.only(Report).content)


def test_orthanc_that_takes_implicit_vr_alone_gets_it_too(make_post: Callable[..., Post], tmp_path: Path) -> None:
    require_peer("Orthanc")
    accepted = {"AcceptedTransferSyntaxes": [str(ImplicitVRLittleEndian)]}
    with orthanc(tmp_path / "orthanc", more=accepted) as (port, http):
        post = make_post(peer("pacs", port))
        post.report()
        post.deliver()
        (received,) = stored_of(http)
    assert post.states() == ["delivered"]
    found = pydicom.dcmread(io.BytesIO(received))
    assert found.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    same(found, post.only(Report).content)


def test_where_the_stored_syntax_is_taken_the_stored_bytes_go_out(
    make_post: Callable[..., Post], tmp_path: Path
) -> None:
    with storescp(tmp_path / "archive") as port:
        post = make_post(peer("pacs", port))
        post.report()
        post.deliver()
    (path,) = (tmp_path / "archive").iterdir()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert data_set(path.read_bytes()) == data_set(post.only(Report).content)


def test_a_compressed_picture_is_sent_as_it_is_or_decompressed_and_still_says_what_was_lost(
    make_post: Callable[..., Post], tmp_path: Path
) -> None:
    made = coloured()
    with storescp(tmp_path / "modern", "+xy") as takes_jpeg, storescp(tmp_path / "plain", "+xi") as takes_none:
        post = make_post(peer("modern", takes_jpeg), peer("plain", takes_none))
        post.report(made=made)
        post.deliver()
    assert {row.state.value for row in post.all(Delivery)} == {"delivered"}
    (as_it_is,), (decompressed,) = (list((tmp_path / name).iterdir()) for name in ("modern", "plain"))
    assert data_set(as_it_is.read_bytes()) == data_set(made)
    found, stored = pydicom.dcmread(decompressed), pydicom.dcmread(io.BytesIO(made))
    assert found.SOPInstanceUID == stored.SOPInstanceUID
    assert (found.PhotometricInterpretation, found.PlanarConfiguration) == ("RGB", 0)
    assert (found.LossyImageCompression, found.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert len(found.PixelData) == found.Rows * found.Columns * 3
    judged = subprocess.run([require_peer("dciodvfy"), decompressed], capture_output=True, timeout=60, check=False)
    assert [line for line in judged.stderr.decode("utf-8", "replace").splitlines() if line.startswith("Error")] == []


def coloured() -> bytes:
    """A Secondary Capture in JPEG Baseline."""
    picture = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, np.ones((8, 8), dtype=np.uint8))
    buffer = io.BytesIO()
    dataset = radiograph(picture, kind="SC", colour="RGB", transfer_syntax=JPEGBaseline8Bit)
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
