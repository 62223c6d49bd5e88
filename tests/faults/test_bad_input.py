"""What no peer should send: each gets a clear end, and the node goes on as if nothing had been."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import encapsulate, get_frame
from pynetdicom import AE
from sqlalchemy import func, select

from console.ports import free_port
from dicom_node.objects.tree import render_tree
from dicom_node.sender import Destination
from models.reasons import Reason
from models.settings import Peer
from models.tables import Image, ImageState, Prediction, Report, ReportInput, Study
from models.upgrade import upgrade
from tests.servers import Node, dcmtk, given, renewed, wait_until

TIMEOUT = 2.0
MOST_ASSOCIATIONS = 3


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A whole node whose patience is short."""
    folder = tmp_path_factory.mktemp("node")
    made = given(
        folder / "node",
        listener={
            "max_associations": MOST_ASSOCIATIONS,
            "association_timeout": TIMEOUT,
            "idle_timeout": TIMEOUT,
        },
        study={"quiet_time": 0.5},
        peers=[Peer(name="modality", ae_title="MODALITY", role="source")],
    )
    upgrade(made)
    whole = Node(made, folder / "node.log")
    whole.start("up")
    whole.wait_until_listening()
    yield whole
    whole.stop()


@pytest.fixture
def sample(test_data: Path, tmp_path: Path) -> Path:
    """A good radiograph in a study of its own: RG2 (a hip), uncompressed."""
    return renewed(test_data / "dicom" / "WG04_RG2_UNC.dcm", tmp_path / "sample.dcm", study=True)


@pytest.fixture
def goes_on(node: Node, sample: Path) -> Iterator[None]:
    """After the test the node answers, stores a good image, and has nothing of the bad one."""
    before = images(node)
    yield
    wait_until(lambda: node.half_received == [], what="nothing half-received is left")
    assert images(node) == before
    wait_until(lambda: dcmtk("echoscu", node.address).exit_status == 0, what="it answers")
    assert dcmtk("storescu", node.address, "-R", "-xe", sample).statuses == [0x0000]
    assert images(node) == before + 1
    # The worker's own files pass through the same folder, for a moment.
    wait_until(lambda: node.half_received == [], what="nothing half-received is left")
    assert "uncaught" not in node.log.read_text()
    assert "died" not in node.log.read_text()


@pytest.mark.usefixtures("goes_on")
@pytest.mark.parametrize(
    "bytes_",
    [
        b"GET / HTTP/1.1\r\nHost: osteon\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x7f" * 500,
        b"\x01\x00\xff\xff\xff\xff" + b"\x00" * 5000,
        b"\x01\x00\x00\x00\x00\x04\x00\x01\x00\x00",
        b"\x04\x00\x00\x00\x00\x0a" + b"\x00" * 10,
        bytes(range(256)) * 100,
    ],
    ids=["HTTP", "TLS", "an endless A-ASSOCIATE-RQ", "an A-ASSOCIATE-RQ too short", "data before all", "noise"],
)
def test_a_peer_that_does_not_speak_dicom_is_hung_up_on(node: Node, bytes_: bytes) -> None:
    with connection(node) as peer:
        peer.sendall(bytes_)
        assert hangs_up(peer, 15 * TIMEOUT)


@pytest.mark.usefixtures("goes_on")
def test_a_peer_that_says_nothing_is_hung_up_on(node: Node) -> None:
    with connection(node) as peer:
        begun = time.monotonic()
        assert hangs_up(peer, 15 * TIMEOUT)
        assert time.monotonic() - begun > TIMEOUT / 2


@pytest.mark.usefixtures("goes_on")
def test_many_idle_connections_keep_nobody_from_being_served(node: Node) -> None:
    begun = time.monotonic()
    with ExitStack() as opened:
        for _ in range(40 * MOST_ASSOCIATIONS):
            opened.enter_context(connection(node))
        assert dcmtk("echoscu", node.address).exit_status == 0
        # As many at a time as there may be associations, they would take forty times the timeout.
        assert time.monotonic() - begun < 10 * TIMEOUT


@pytest.mark.usefixtures("goes_on")
def test_associations_that_fall_silent_give_their_places_back(node: Node) -> None:
    ae = AE(ae_title="MODALITY")
    ae.add_requested_context("1.2.840.10008.1.1")
    ae.network_timeout = None
    host, port = node.address.host, node.address.port
    silent = [ae.associate(host, port, ae_title=node.address.ae_title) for _ in range(MOST_ASSOCIATIONS)]
    try:
        assert all(association.is_established for association in silent)
        assert "Local Limit Exceeded" in dcmtk("echoscu", node.address).output
        wait_until(
            lambda: dcmtk("echoscu", node.address).exit_status == 0,
            what="a silent association is ended",
        )
    finally:
        for association in silent:
            association.abort()


@pytest.mark.usefixtures("goes_on")
@pytest.mark.parametrize("then", ["hangs up", "falls silent"])
def test_a_data_set_that_is_cut_off_in_the_middle_leaves_nothing(
    node: Node, test_data: Path, tmp_path: Path, then: str
) -> None:
    cut_off = renewed(test_data / "dicom" / "WG04_RG2_UNC.dcm", tmp_path / "cut.dcm", study=True)
    with proxy(node, after=3_000_003, silent=then == "falls silent") as between:
        answer = dcmtk("storescu", between.address, "-R", "-xe", "-td", "20", cut_off)
        assert between.cut
    assert answer.statuses == []
    assert answer.exit_status != 0


def no_pixels(dataset: pydicom.Dataset) -> None:
    del dataset.PixelData


def other_modality(dataset: pydicom.Dataset) -> None:
    dataset.Modality = "MR"


def too_few_rows(dataset: pydicom.Dataset) -> None:
    dataset.Rows -= 100


def too_many_columns(dataset: pydicom.Dataset) -> None:
    dataset.Columns = 60_000


def rows_in_the_codestream_differ(dataset: pydicom.Dataset) -> None:
    dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows


def broken_codestream(dataset: pydicom.Dataset) -> None:
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[:2000] + bytes(len(frame) - 2000)])


def progressive(dataset: pydicom.Dataset) -> None:
    frame = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
    frame[frame.index(b"\xff\xc1") + 1] = 0xC2
    dataset.PixelData = encapsulate([bytes(frame)])


NOT_ANALYSABLE = {
    "without pixels": ("UNC", no_pixels, {Reason.NO_PIXELS}),
    "of another modality": ("UNC", other_modality, {Reason.OTHER_MODALITY}),
    "with fewer rows than pixels": ("UNC", too_few_rows, {Reason.SIZE_MISMATCH}),
    "with more columns than pixels": ("UNC", too_many_columns, {Reason.SIZE_MISMATCH, Reason.TOO_LARGE}),
    "whose codestream has other rows": ("J2KR", rows_in_the_codestream_differ, {Reason.SIZE_MISMATCH}),
    "with a broken codestream": ("J2KR", broken_codestream, {Reason.UNDECODABLE}),
    "with a progressive codestream": ("JPLY", progressive, {Reason.UNDECODABLE}),
}


def test_what_cannot_be_read_is_reported_as_not_analysed_with_its_reason_and_never_as_no_fracture(
    node: Node, test_data: Path, tmp_path: Path
) -> None:
    proposals = {"UNC": "-xe", "J2KR": "-xv", "JPLY": "-xx"}
    studies: dict[str, str] = {}
    for number, (name, (encoding, change, _)) in enumerate(NOT_ANALYSABLE.items()):
        path = tmp_path / f"{number}.dcm"
        renewed(test_data / "dicom" / f"WG04_RG2_{encoding}.dcm", path, study=True)
        dataset = pydicom.dcmread(path)
        if change is not None:
            change(dataset)
            dataset.save_as(path)
        studies[name] = dataset.StudyInstanceUID
        assert dcmtk("storescu", node.address, "-R", proposals[encoding], path).statuses == [0x0000], name
    for name, (_, _, reasons) in NOT_ANALYSABLE.items():
        judged = wait_until(lambda uid=studies[name]: outcome(node, uid), seconds=60, what=f"a report of one {name}")
        assert judged.state is ImageState.NOT_ANALYSED, name
        assert judged.reason in reasons, name
        assert judged.predictions == 0
        assert judged.input_reason == judged.reason
        assert judged.impression == "undetermined"
        assert Reason(judged.reason).sentence in judged.text, name
        assert "Absent" not in judged.text


@dataclass(frozen=True)
class Judged:
    """What became of a study's one image."""

    state: ImageState
    reason: str
    predictions: int
    input_reason: str
    impression: str
    text: str


def outcome(node: Node, study_uid: str) -> Judged | None:
    with node.database.read() as session:
        found = session.execute(
            select(Image, Report, ReportInput.reason)
            .join(Study, Study.id == Image.study_id)
            .join(ReportInput, ReportInput.image_id == Image.id)
            .join(Report, Report.id == ReportInput.report_id)
            .where(Study.study_instance_uid == study_uid)
        ).one_or_none()
        if found is None:
            return None
        image, report, reason = found
        predictions = session.scalars(
            select(func.count()).select_from(Prediction).where(Prediction.image_id == image.id)
        ).one()
    text = "\n".join(line for _, line in render_tree(report.content))
    return Judged(image.state, image.reason, predictions, reason, report.impression, text)


def images(node: Node) -> int:
    """How many images are on record."""
    with node.database.read() as session:
        return session.scalars(select(func.count()).select_from(Image)).one()


@contextmanager
def connection(node: Node) -> Iterator[socket.socket]:
    with closing(socket.create_connection((node.address.host, node.address.port), timeout=10)) as peer:
        yield peer


def hangs_up(peer: socket.socket, seconds: float) -> bool:
    """Whether the other side closes the connection within `seconds`, whatever it says before."""
    peer.settimeout(seconds)
    try:
        while peer.recv(4096):
            continue
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


class Proxy:
    """Passes on what the two sides say, until a number of bytes went to the node; then it hangs up or falls silent."""

    def __init__(self, node: Node, *, after: int, silent: bool) -> None:
        self.cut = False
        self._node, self._after, self._silent = node, after, silent
        self._server = socket.create_server(("127.0.0.1", free_port()))
        self.address = Destination(node.address.ae_title, "127.0.0.1", self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Wait for its end."""
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        peer, _ = self._server.accept()
        with closing(peer), connection(self._node) as node:
            back = threading.Thread(target=self._pass_back, args=(node, peer))
            back.start()
            left = self._after
            while left and (data := peer.recv(min(left, 65_536))):
                node.sendall(data)
                left -= len(data)
            self.cut = left == 0
            if self._silent:
                assert hangs_up_after(back, 5 * TIMEOUT)
            for side in (node, peer):
                side.shutdown(socket.SHUT_RDWR)
            back.join()

    @staticmethod
    def _pass_back(node: socket.socket, peer: socket.socket) -> None:
        node.settimeout(None)
        try:
            while data := node.recv(65_536):
                peer.sendall(data)
        except OSError:
            return


def hangs_up_after(back: threading.Thread, seconds: float) -> bool:
    """Whether the node closes its side within `seconds`, which ends the thread that listens to it."""
    back.join(seconds)
    return not back.is_alive()


@contextmanager
def proxy(node: Node, *, after: int, silent: bool) -> Iterator[Proxy]:
    between = Proxy(node, after=after, silent=silent)
    try:
        yield between
    finally:
        between.close()
