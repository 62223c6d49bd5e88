"""Contents of what accompanies a report, for tests: heatmaps, presentation states, key objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.headers import read_header
from dicom_node.objects.content import FindingOutcome, ImageOutcome, Region, ReportContent
from dicom_node.objects.heatmap import HeatmapContent, Picture
from dicom_node.objects.key_objects import KeyObject, KeyObjectContent, Use
from dicom_node.objects.presentation_state import PresentationStateContent, has_regions, read_grayscale
from dicom_node.objects.report import SOP_CLASS_UID as REPORT
from tests.reports import content, header, reading, variants

DIGEST = "5f" * 32
ONE = content()
HEATMAP = "1.2.840.10008.5.1.4.1.1.7"


def picture(
    rows: int = 176, columns: int = 150, *, scores: bool = True, source: tuple[int, int] = (1760, 1500)
) -> Picture:
    """A ramp of grey, and scores with one peak in its middle."""
    pixels = np.linspace(0, 255, rows * columns).reshape(rows, columns).astype(np.uint8)
    down, across = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    peak = np.exp(-8 * (down**2 + across**2)).astype(np.float32)
    return Picture(pixels, peak if scores else None, *source)


def heatmap(image: ImageOutcome, shown: Picture | None = None, **changes: Any) -> HeatmapContent:
    """A heatmap of one image; without a picture, a card."""
    given: dict[str, Any] = {
        "installation_uid": ONE.installation_uid,
        "device": ONE.device,
        "algorithm": ONE.algorithm,
        "created_at": ONE.created_at,
        "image": image,
        "label": "Image 1 (AP)",
        "source_digest": "" if shown is None else DIGEST,
        "picture": shown,
    }
    return HeatmapContent(**(given | changes))


def state(image: ImageOutcome, source: Dataset, **changes: Any) -> PresentationStateContent:
    """A presentation state of one image, whose data set tells how it is shown."""
    given: dict[str, Any] = {
        "installation_uid": ONE.installation_uid,
        "device": ONE.device,
        "algorithm": ONE.algorithm,
        "created_at": ONE.created_at,
        "image": image,
        "source_digest": DIGEST,
        "grayscale": read_grayscale(source),
    }
    return PresentationStateContent(**(given | changes))


def read(source: Dataset, *regions: Region) -> ImageOutcome:
    """The outcome of an image with a fracture in the first region, and other findings in the others."""
    from dataclasses import replace

    from dicom_node.headers import Code

    readings: list[FindingOutcome] = []
    for number, region in enumerate(regions):
        found = reading(region=region)
        readings.append(
            found if not number else replace(found, code=Code(f"F{number}", "99OSTEON", f"Finding {number}"))
        )
    return ImageOutcome(read_header(source), readings=tuple(readings))


def selection(use: Use = "of_interest", *objects: KeyObject, **changes: Any) -> KeyObjectContent:
    """A selection of the images with a fracture, or of superseded objects."""
    flagged = [KeyObject.of(header(1)), KeyObject.of(header(2))]
    superseded = [
        KeyObject(REPORT, "2.25.1", "2.25.10"),
        KeyObject(HEATMAP, "2.25.2", "2.25.20"),
        KeyObject(HEATMAP, "2.25.3", "2.25.20"),
        KeyObject("1.2.840.10008.5.1.4.1.1.11.1", "2.25.4", "2.25.40"),
        KeyObject("1.2.840.10008.5.1.4.1.1.88.59", "2.25.5", "2.25.50"),
    ]
    given: dict[str, Any] = {
        "installation_uid": ONE.installation_uid,
        "device": ONE.device,
        "algorithm": ONE.algorithm,
        "created_at": ONE.created_at,
        "header": header(),
        "use": use,
        "objects": objects or tuple(flagged if use == "of_interest" else superseded),
    }
    return KeyObjectContent(**(given | changes))


def heatmaps() -> dict[str, HeatmapContent]:
    """Name and content of every heatmap that the reports of `tests.reports.variants` are accompanied by."""
    made = {}
    for name, report in variants().items():
        for number, image in enumerate(report.images, start=1):
            shown = picture() if image.not_analysed is None else None
            made[f"{name} {number}"] = heatmap(image, shown, label=f"Image {number}", number=number)
    made["no picture to be had"] = heatmap(content().images[0])
    made["a bundle without a score map"] = heatmap(content().images[0], picture(scores=False))
    return made


def with_regions(report: ReportContent) -> list[ImageOutcome]:
    """The images of a report that get a presentation state."""
    return [image for image in report.images if has_regions(image)]
