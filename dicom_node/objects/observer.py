"""The content items with which a document says its language and that a device speaks (PS3.16, TID 1204, 1001, 1004)."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_node.objects import items
from dicom_node.objects.content import Device

_ENGLISH_US = Code("en-US", "RFC5646", "English (United States)")


def language() -> bytes:
    """The language of the document."""
    return items.code(codes.DCM.LanguageOfContentItemAndDescendants, _ENGLISH_US, items.HAS_CONCEPT_MOD)


def device_observer(installation_uid: str, device: Device) -> Iterator[bytes]:
    """Who observed: this installation."""
    yield items.code(codes.DCM.ObserverType, codes.DCM.Device, items.HAS_OBS_CONTEXT)
    yield items.uid(codes.DCM.DeviceObserverUID, installation_uid, items.HAS_OBS_CONTEXT)
    texts = {
        codes.DCM.DeviceObserverName: device.station_ae_title or device.model,
        codes.DCM.DeviceObserverManufacturer: device.manufacturer,
        codes.DCM.DeviceObserverModelName: device.model,
        codes.DCM.DeviceObserverSerialNumber: device.serial,
    }
    for name, value in texts.items():
        yield items.text(name, value, items.HAS_OBS_CONTEXT)
