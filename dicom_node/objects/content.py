"""What a report says, as plain frozen dataclasses, and the one rule that turns the images' outcomes into an impression.

The builders of this folder read nothing else: no database, no clock, no settings. Equal content gives equal bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from dicom_node.headers import Code, SourceHeader, is_uid
from models.reasons import Reason

Decision = Literal["fracture", "no_fracture", "undetermined"]
Kind = Literal["comprehensive_3d", "comprehensive"]
Region = tuple[float, float, float, float]

FRACTURE = Code("125605004", "SCT", "Fracture of bone")
DISCLAIMER = "AI result, not for primary diagnosis"


@dataclass(frozen=True, slots=True)
class Device:
    """The installation that speaks: what stands in the equipment modules and as the device observer."""

    serial: str  # the installation's id
    software_version: str
    station_ae_title: str = ""
    manufacturer: str = "Osteon"
    model: str = "Osteon"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """The model bundle that was used; `bundle_sha256` in hexadecimal."""

    name: str
    version: str
    manufacturer: str
    bundle_sha256: str


@dataclass(frozen=True, slots=True)
class FindingOutcome:
    """What the model found on one image for one finding.

    Parameters
    ----------
    probability
        Calibrated, 0 to 1.
    decision
        "no_fracture" below `absent_below`, "fracture" from `present_from`, else "undetermined": decided by the caller,
        with the bundle's thresholds, and printed here.
    region
        Where, as (xmin, ymin, xmax, ymax) in source pixels: 0, 0 is the top left corner of the top left pixel and
        Columns, Rows the bottom right corner of the image (PS3.3, C.18.6). Only rendered for "fracture".
    """

    probability: float
    decision: Decision
    absent_below: float
    present_from: float
    region: Region | None = None
    code: Code = FRACTURE

    def __post_init__(self) -> None:
        for name in ("probability", "absent_below", "present_from"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is not between 0 and 1")
        if self.absent_below > self.present_from:
            raise ValueError("absent_below is above present_from")
        if self.decision not in ("fracture", "no_fracture", "undetermined"):
            raise ValueError("decision is none of the three")
        if self.region is not None:
            xmin, ymin, xmax, ymax = self.region
            if not all(math.isfinite(edge) for edge in self.region) or not (0 <= xmin < xmax and 0 <= ymin < ymax):
                raise ValueError("region is not a box")


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """One image of the study: either read, with one outcome for each finding, or not analysed, with the reason."""

    header: SourceHeader
    readings: tuple[FindingOutcome, ...] = ()
    not_analysed: Reason | None = None
    algorithm: Algorithm | None = None  # the bundle that read this image, where it is not the content's

    def __post_init__(self) -> None:
        if bool(self.readings) == (self.not_analysed is not None):
            raise ValueError("an image has readings or a reason why it was not analysed, and never both")
        codes = [(reading.code.value, reading.code.scheme) for reading in self.readings]
        if len(set(codes)) != len(codes):
            raise ValueError("an image has two readings of one finding")
        for reading in self.readings:
            self._check_region(reading.region)

    def _check_region(self, region: Region | None) -> None:
        columns, rows = self.header.columns, self.header.rows
        if region is not None and ((columns and region[2] > columns) or (rows and region[3] > rows)):
            raise ValueError("region reaches beyond the image")


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The report that this one replaces (PS3.3, C.17.2.2): same study, same SOP class."""

    sop_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True)
class ReportContent:
    """Everything a report renders. Images are put into a fixed order, so that the order of the rows does not matter.

    Parameters
    ----------
    installation_uid
        UID of this installation, the device observer (PS3.16, TID 1004).
    created_at
        Aware, UTC. It is printed, but does not take part in the UIDs.
    images
        All images of the study, at least one; the first in order gives patient and study.
    algorithm
        The bundle that read the images which name none of their own.
    predecessor
        Of the same kind.
    kind
        As which SOP class it is written; the content is the same.

    Raises
    ------
    ValueError
        If the images are none, are repeated, or are of several studies; if the time is not UTC; if a UID is not one.
    """

    installation_uid: str
    device: Device
    algorithm: Algorithm
    created_at: datetime
    images: tuple[ImageOutcome, ...]
    predecessor: Predecessor | None = None
    series_number: int = 9900
    series_description: str = "Osteon fracture report"
    kind: Kind = "comprehensive_3d"

    def __post_init__(self) -> None:
        if not is_uid(self.installation_uid):
            raise ValueError("installation_uid is not a UID")
        if self.created_at.utcoffset() != timedelta(0):
            raise ValueError("created_at is not in UTC")
        if len({image.header.study_instance_uid for image in self.images}) != 1:
            raise ValueError("a report speaks of the images of exactly one study")
        if len({image.header.sop_instance_uid for image in self.images}) != len(self.images):
            raise ValueError("an image stands in the report twice")
        object.__setattr__(self, "images", tuple(sorted(self.images, key=_place)))


@dataclass(frozen=True, slots=True)
class Impression:
    """The answer for the whole study: the decision, and one plain text for people."""

    decision: Decision
    text: str


def impression(content: ReportContent) -> Impression:
    """Sum the images up in a decision and in words.

    One fracture makes the study "fracture"; only a study in which every image was read and shows none is "no_fracture";
    everything else is "undetermined". What was not analysed is never counted as healthy. Objects of the study that are
    no images, such as a presentation state, neither help nor hinder.
    """
    images = [image for image in content.images if image.not_analysed is not Reason.NOT_AN_IMAGE]
    counts = Counter(_image_decision(image) for image in images)
    decision = study_decision(content)
    sentences = {
        "fracture": f"Fracture found on {counts['fracture']} of {_images(len(images))}.",
        "no_fracture": f"No fracture found on {counts['no_fracture']} of {_images(len(images))}.",
        "undetermined": "Undetermined: a fracture is neither found nor excluded.",
    }
    text = [sentences[decision]]
    if decision != "no_fracture" and counts["no_fracture"]:
        text.append(f"No fracture found: {_images(counts['no_fracture'])}.")
    if counts["undetermined"]:
        text.append(f"Undetermined: {_images(counts['undetermined'])}.")
    if counts[None]:
        text.append(f"Not analysed: {_images(counts[None])}.")
    return Impression(decision, " ".join([*text, f"{DISCLAIMER}."]))


def study_decision(content: ReportContent, finding: Code | None = None) -> Decision:
    """Decide for the whole study, as `impression` says: for one finding, or for all of them together."""
    images = [image for image in content.images if image.not_analysed is not Reason.NOT_AN_IMAGE]
    decisions = {_image_decision(image, finding) for image in images}
    if "fracture" in decisions:
        return "fracture"
    return "no_fracture" if decisions == {"no_fracture"} else "undetermined"


def overall(decisions: Iterable[Decision]) -> Decision | None:
    """Return the decision of an image with several findings: any fracture, else anything undetermined, else none."""
    found = set(decisions)
    order: tuple[Decision, ...] = ("fracture", "undetermined", "no_fracture")
    return next((decision for decision in order if decision in found), None)


def _image_decision(image: ImageOutcome, finding: Code | None = None) -> Decision | None:
    return overall(reading.decision for reading in image.readings if finding in (None, reading.code))


def image_name(number: int, header: SourceHeader) -> str:
    """What people are told of the `number`-th image of the study, from 1: as "Image 2 (LL)"."""
    return f"Image {number} ({header.view_position})" if header.view_position else f"Image {number}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _place(image: ImageOutcome) -> tuple[bool, int, str, bool, int, str]:
    header = image.header
    series, instance = header.series_number, header.instance_number
    return (
        series is None,
        series or 0,
        header.series_instance_uid,
        instance is None,
        instance or 0,
        header.sop_instance_uid,
    )
