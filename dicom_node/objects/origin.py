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

from highdicom.base_content import ContributingEquipment
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import UID

from dicom_node.headers import SourceHeader
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


def date(document: Dataset, header: SourceHeader, made: datetime) -> None:
    """Put in when instance, series and content were made; `made` by `local_time`."""
    for what in ("InstanceCreation", "Series", "Content"):
        setattr(document, f"{what}Date", made.strftime("%Y%m%d"))
        setattr(document, f"{what}Time", made.strftime("%H%M%S"))
    if header.timezone_offset:
        document.TimezoneOffsetFromUTC = made.strftime("%z")


def contribute(document: Dataset, device: Device, made: datetime) -> None:
    """Name Osteon as what made the object: by this item it knows its own again, so the names are fixed (recognise.py).

    Called last: highdicom adds itself, with the machine's clock, and equal content must give equal bytes.
    """
    document.ContributingEquipmentSequence = [
        ContributingEquipment(
            manufacturer=MANUFACTURER,
            purpose_of_reference=codes.DCM.ProcessingEquipment,
            manufacturer_model_name=MODEL,
            device_serial_number=device.serial,
            software_versions=device.software_version,
            contribution_datetime=made.strftime("%Y%m%d%H%M%S%z"),
            contribution_description="Analysis of radiographs for fractures",
        )
    ]


def as_file(document: Dataset) -> bytes:
    """The document as a complete DICOM file (PS3.10), which names what wrote it."""
    document.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    document.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    buffer = BytesIO()
    document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
