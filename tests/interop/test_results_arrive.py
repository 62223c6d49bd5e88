"""Everything that goes out of a study, over every way at once, to receivers that no one here wrote."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
import structlog
from pydicom.uid import ImplicitVRLittleEndian

from dicom_node.headers import read_header
from dicom_node.objects.recognise import is_own_object
from dicom_node.wrap import wrap_picture
from models import clock
from models.settings import ObjectKind, Peer
from models.tables import Delivery, DeliveryState, Report
from models.upgrade import upgrade
from tests.hl7_listener import hl7_listener
from tests.peers import require_peer
from tests.post import data_set
from tests.receivers import PASSWORD, dicomweb, service, stored_of, storescp
from tests.servers import given, orthanc

pytest.importorskip("ai_edge_litert")

from tests import litert
from tests.site import Site

EVERY: tuple[ObjectKind, ...] = (
    "comprehensive_3d",
    "comprehensive",
    "heatmap",
    "presentation_state",
    "key_objects",
    "rejection_note",
)


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def receive(site: Site, name: str = "Doe^Jane", version: str = "1") -> None:
    """A study of two images, one with a fracture."""
    for number, edge in enumerate((40, 20), start=1):
        dataset = wrap_picture(
            litert.white_square((120, 200, 120 + edge, 200 + edge)),
            patient_id="PID-1",
            patient_name=name,
            study_uid="1.2.3",
            series_uid="1.2.3.3",
            sop_instance_uid=f"1.2.3.4.{number}",
            body_part="WRIST",
            instance_number=number,
        )
        dataset.ProtocolName = version
        site.receive(dataset)
    site.settle()


def without_meta(content: bytes) -> str:
    """The data set as text, whatever its transfer syntax; without pixels, which may have been decompressed."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    for keyword in ("PixelData", "PhotometricInterpretation", "PlanarConfiguration"):
        if keyword in dataset:
            del dataset[keyword]
    return str(dataset.to_json())


def test_every_object_arrives_over_every_way_as_it_is_on_record_and_what_is_corrected_is_rejected(
    tmp_path: Path,
) -> None:
    require_peer("Orthanc")
    folder = tmp_path / "plain"
    with (
        clock.frozen(datetime(2026, 1, 1, 12, tzinfo=UTC)),
        orthanc(tmp_path / "pacs") as (port, http),
        dicomweb(tmp_path / "web") as web,
        hl7_listener() as ris,
        storescp(folder, "+xi") as plain_port,
    ):
        address = {"host": "127.0.0.1", "role": "destination"}
        peers = [
            Peer(name="room", ae_title="ROOM", role="source"),
            Peer(name="archive", ae_title="PACS", port=port, sends=EVERY, **address),
            Peer(name="plain", ae_title="PACS", port=plain_port, sends=("comprehensive", "heatmap"), **address),
            Peer(name="ris", protocol="hl7", port=ris.port, **address),
            service(tmp_path, web, sends=EVERY),
        ]
        settings = given(tmp_path / "node", peers=peers)
        upgrade(settings)
        site = Site(settings, litert.predictor(tmp_path / "bundle"))
        receive(site)
        site.deliver()
        assert {row.state for row in site.all(Delivery)} == {DeliveryState.DELIVERED}
        receive(site, name="Roe^Jane", version="2")
        site.deliver()
        assert {row.state for row in site.all(Delivery)} == {DeliveryState.DELIVERED}

        made = {report.id: report for report in site.all(Report)}
        to: dict[str, list[Report]] = {}
        for delivery in site.all(Delivery):
            to.setdefault(delivery.destination, []).append(made[delivery.report_id])
        kinds = [*EVERY[:2], "key_objects", "heatmap", "presentation_state", "heatmap"]
        assert [report.kind for report in to["archive"]] == [*kinds, *kinds, "rejection_note"]
        for name, received in (("archive", stored_of(http)), ("pacs", stored_of(web, PASSWORD))):
            assert sorted(map(data_set, received)) == sorted(data_set(report.content) for report in to[name])
            assert all(is_own_object(read_header(pydicom.dcmread(io.BytesIO(content)))) for content in received)

        written = [path.read_bytes() for path in folder.iterdir()]
        syntaxes = {pydicom.dcmread(io.BytesIO(content)).file_meta.TransferSyntaxUID for content in written}
        assert syntaxes == {ImplicitVRLittleEndian}
        assert sorted(map(without_meta, written)) == sorted(without_meta(report.content) for report in to["plain"])

        messages = [str(message) for message in ris.messages]
        assert len(messages) == 2
        assert "Roe^Jane" in messages[1]
        site.courier.stop()
        site.close()
