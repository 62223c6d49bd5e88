"""What every object of ours says of where it comes from: whose it is, of which study, who made it, when; and its UIDs.

Every UID is a digest of what it names, so that making the same thing twice gives the same file, and different content
never goes out under one UID.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta, timezone
from io import BytesIO
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as SrCode
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.headers import SourceHeader
from dicom_node.objects import anatomy
from dicom_node.objects.content import Device
from dicom_node.objects.recognise import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MANUFACTURER,
    MODEL,
    UID_PREFIX,
)

CHARACTER_SET = "ISO_IR 192"
"""Whatever the source wrote in, our objects are in UTF-8."""


def digest_uid(label: str, value: Any) -> str:
    """`2.25.` + 128 bits of a digest of `value`, which has to be JSON; `label` keeps UIDs of different things apart."""
    text = json.dumps([label, value], sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return UID_PREFIX + str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))


def start(header: SourceHeader, device: Device, sop_class: UID, *, modality: str, uid: str, series_uid: str) -> Dataset:
    """An empty object in the study of `header`, made by `device`: explicit VR little endian, in UTF-8."""
    document = Dataset()
    document.file_meta = FileMetaDataset()
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    document.SpecificCharacterSet = CHARACTER_SET
    document.SOPClassUID = sop_class
    document.SOPInstanceUID = uid
    document.StudyInstanceUID = header.study_instance_uid
    document.SeriesInstanceUID = series_uid
    document.Modality = modality
    document.Manufacturer = device.manufacturer
    document.ManufacturerModelName = device.model
    document.DeviceSerialNumber = device.serial
    document.SoftwareVersions = device.software_version
    if device.station_ae_title:
        document.StationName = device.station_ae_title
    identify(document, header)
    return document


_UNPAIRED = frozenset(
    [
        "ABDOMEN",
        "CHEST",
        "COCCYX",
        "CSPINE",
        "CTSPINE",
        "HEAD",
        "ILIUM",
        "JAW",
        "LSPINE",
        "LSSPINE",
        "MAXILLA",
        "NECK",
        "NOSE",
        "PELVIS",
        "SKULL",
        "SPINE",
        "SSPINE",
        "STERNUM",
        "TLSPINE",
        "TSPINE",
    ]
)
"""What the standard counts as one, of the parts that a radiograph may show (PS3.16, Annex L)."""


def show(document: Dataset, header: SourceHeader) -> None:
    """Say what part of the body, and which side, the source shows, as far as a series can say so (PS3.3, C.7.3.1).

    Laterality knows L and R only. It is empty where the side is not known, or is both, and absent where there is none.
    """
    if 0 < len(header.body_part_examined) <= 16:
        document.BodyPartExamined = header.body_part_examined
    side = anatomy.side(header)
    if side in ("L", "R"):
        document.Laterality = side
    elif header.body_part_examined not in _UNPAIRED:
        document.Laterality = ""


def refer(header: SourceHeader) -> Dataset:
    """Name an instance by class and UID (PS3.3, Table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.sop_class_uid
    item.ReferencedSOPInstanceUID = header.sop_instance_uid
    return item


def coded(code: SrCode) -> Dataset:
    """A code as an item of a sequence (PS3.3, Table 8.8-1)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def identify(document: Dataset, header: SourceHeader) -> None:
    """Put in patient and study exactly as the source wrote them, valid or not: a PACS matches by them."""
    patient, study = header.patient, header.study
    values = {
        "PatientName": patient.name,
        "PatientID": patient.id,
        "PatientBirthDate": patient.birth_date,
        "PatientSex": patient.sex,
        "StudyID": study.id,
        "StudyDate": study.date,
        "StudyTime": study.time,
        "AccessionNumber": study.accession_number,
        "ReferringPhysicianName": study.referring_physician,
    }
    optional = {"IssuerOfPatientID": patient.issuer, "StudyDescription": study.description}
    for keyword, value in {**values, **{name: text for name, text in optional.items() if text}}.items():
        put(document, keyword, value)


def put(document: Dataset, keyword: str, value: str) -> None:
    """Set an attribute without validation: its warnings quote the value."""
    document[keyword] = DataElement(Tag(keyword), dictionary_VR(keyword), value, validation_mode=config.IGNORE)


def local_time(header: SourceHeader, made: datetime) -> datetime:
    """`made` in the source's own offset from UTC where it declared one, since Study Date and Time are; else in UTC."""
    offset = header.timezone_offset
    if not offset:
        return made.astimezone(timezone.utc)  # noqa: UP017 (one type for both)
    minutes = int(offset[1:3]) * 60 + int(offset[3:5])
    return made.astimezone(timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)))


def date(
    document: Dataset,
    header: SourceHeader,
    made: datetime,
    *,
    of: tuple[str, ...] = ("InstanceCreation", "Series", "Content"),
) -> None:
    """Put in when instance, series and content were made; `made` by `local_time`."""
    for what in of:
        setattr(document, f"{what}Date", made.strftime("%Y%m%d"))
        setattr(document, f"{what}Time", made.strftime("%H%M%S"))
    if header.timezone_offset:
        document.TimezoneOffsetFromUTC = made.strftime("%z")


def contribute(document: Dataset, device: Device, made: datetime) -> None:
    """Name Osteon as what made the object: by this item it knows its own again, so the names stay (recognise.py)."""
    item = Dataset()
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = MODEL
    item.DeviceSerialNumber = device.serial
    item.SoftwareVersions = device.software_version
    item.ContributionDateTime = made.strftime("%Y%m%d%H%M%S%z")
    item.ContributionDescription = "Analysis of radiographs for fractures"
    item.PurposeOfReferenceCodeSequence = [coded(codes.DCM.ProcessingEquipment)]
    document.ContributingEquipmentSequence = [item]


def as_file(document: Dataset) -> bytes:
    """The document as a complete DICOM file (PS3.10), which names what wrote it."""
    document.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    document.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    buffer = BytesIO()
    document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
