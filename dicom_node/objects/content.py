"""What a report says, as plain frozen dataclasses, and the one rule that turns the images' outcomes into an impression.

The builders of this folder read nothing else: no database, no clock, no settings. Equal content gives equal bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from dicom_node.headers import Code, SourceHeader, is_uid
from dicom_node.objects.anatomy import laterality
from models.reasons import Reason

Decision = Literal["fracture", "no_fracture", "undetermined"]
Kind = Literal["comprehensive_3d", "comprehensive"]
Region = tuple[float, float, float, float]

FRACTURE = Code("125605004", "SCT", "Fracture of bone")
DISCLAIMER = "AI result, not for primary diagnosis"
PRESENCE: dict[Decision, Code] = {
    "fracture": Code("52101004", "SCT", "Present"),
    "no_fracture": Code("272519000", "SCT", "Absent"),
    "undetermined": Code("373068000", "SCT", "Undetermined"),
}
"""What a decision is in codes."""


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
    """Sum the images up in a decision and in words: each finding by itself, and where it was found.

    One fracture makes the study "fracture"; only a study in which every image was read and shows none is "no_fracture";
    everything else is "undetermined". What was not analysed is never counted as healthy. Objects of the study that are
    no images, such as a presentation state, neither help nor hinder.
    """
    text = [sentence for finding in findings(content) for sentence in _sentences(content, finding)]
    unread = sum(image.not_analysed is not None for _, image in _images_of(content))
    if unread:
        text.append(f"Not analysed: {_images(unread)}.")
    if content.predecessor is not None:
        text.append("This report replaces an earlier one.")
    return Impression(study_decision(content), " ".join([*text, f"{DISCLAIMER}."]))


def findings(content: ReportContent) -> list[Code]:
    """What was looked for, in the order of the images; where none was read, what would have been."""
    found = {reading.code: None for image in content.images for reading in image.readings}
    return list(found) or [FRACTURE]


def image_name(number: int, header: SourceHeader) -> str:
    """What an image is called, the `number`-th of its report: "Image 2 (LL, left)"."""
    side = laterality(header)
    known = [header.view_position, "" if side is None else side.meaning.lower()]
    told = ", ".join(word for word in known if word)
    return f"Image {number} ({told})" if told else f"Image {number}"


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


def _sentences(content: ReportContent, finding: Code) -> Iterator[str]:
    images = _images_of(content)
    decided = [(number, image, _image_decision(image, finding)) for number, image in images]
    counts = Counter(decision for _, _, decision in decided)
    decision = study_decision(content, finding)
    of_all = f"on {counts[decision]} of {_images(len(images))}"
    names = [image_name(number, image.header) for number, image, made in decided if made == "fracture"]
    seen = ", ".join(name[0].lower() + name[1:] for name in names)
    if finding == FRACTURE:
        yield {
            "fracture": f"Fracture found {of_all}: {seen}.",
            "no_fracture": f"No fracture found {of_all}.",
            "undetermined": "Undetermined: a fracture is neither found nor excluded.",
        }[decision]
    else:
        yield {
            "fracture": f"{finding.meaning} found {of_all}: {seen}.",
            "no_fracture": f"{finding.meaning} not found {of_all}.",
            "undetermined": f"Undetermined: {finding.meaning} is neither found nor excluded.",
        }[decision]
    unasked = sum(made is None and image.not_analysed is None for _, image, made in decided)
    rest = {
        "No fracture found" if finding == FRACTURE else f"{finding.meaning} not found": counts["no_fracture"],
        "Undetermined": counts["undetermined"],
        f"{finding.meaning} not looked for": unasked,
    }
    for what, count in rest.items():
        if count and decision != "no_fracture":
            yield f"{what}: {_images(count)}."


def _images_of(content: ReportContent) -> list[tuple[int, ImageOutcome]]:
    """The images with their numbers, without the objects that are none."""
    numbered = enumerate(content.images, start=1)
    return [(number, image) for number, image in numbered if image.not_analysed is not Reason.NOT_AN_IMAGE]


def _image_decision(image: ImageOutcome, finding: Code | None = None) -> Decision | None:
    return overall(reading.decision for reading in image.readings if finding in (None, reading.code))


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
