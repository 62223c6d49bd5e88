"""Tell this project's own objects from a scanner's: they come back from the PACS and must not be read again."""

from __future__ import annotations

from dicom_node.headers import SourceHeader

MANUFACTURER = "Osteon"
MODEL = "Osteon"
UID_PREFIX = "2.25."

# What wrote the file (PS3.7, D.3.3.2): a UUID that was drawn once, and never changes.
IMPLEMENTATION_CLASS_UID = "2.25.27879272380985451699542845395751151531"
IMPLEMENTATION_VERSION_NAME = "OSTEON"


def is_own_object(header: SourceHeader) -> bool:
    """Whether an Osteon, this one or another, made the instance.

    Both must hold: a derived UID (`2.25.` + a digest; PS3.5, B.2) and Osteon named in the Contributing Equipment
    Sequence. Either alone is not enough: others use `2.25.` too, and a router may add us to an image that passed by.
    """
    named = any(item.manufacturer == MANUFACTURER and item.model == MODEL for item in header.contributing_equipment)
    return named and header.sop_instance_uid.startswith(UID_PREFIX)
