"""What is not read whatever the model: by its SOP class, for processing, animals, and sides that contradict."""

from __future__ import annotations

from itertools import permutations

import pytest
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from dicom_node.eligibility import reason_not_to_read
from dicom_node.headers import Sides
from models.reasons import Reason
from models.settings import GivenSettings
from tests.reports import GSPS, header

SETTINGS = GivenSettings()
FOR_PROCESSING_ALLOWED = GivenSettings(analysis={"analyse_for_processing": True})
SECONDARY_CAPTURE_ALLOWED = GivenSettings(listener={"accept_secondary_capture": True})
LEVELS = ("image", "series", "region", "series_text", "study_text")


@pytest.mark.parametrize(
    ("sop_class", "expected"),
    [
        (ComputedRadiographyImageStorage, None),
        (DigitalXRayImageStorageForPresentation, None),
        (DigitalXRayImageStorageForProcessing, Reason.FOR_PROCESSING),
        (SecondaryCaptureImageStorage, Reason.OTHER_SOP_CLASS),
        (CTImageStorage, Reason.OTHER_SOP_CLASS),
        (GSPS, Reason.NOT_AN_IMAGE),
        ("1.2.999", Reason.NOT_AN_IMAGE),
    ],
)
def test_an_instance_is_read_by_its_sop_class(sop_class: str, expected: Reason | None) -> None:
    assert reason_not_to_read(header(sop_class_uid=sop_class), SETTINGS) is expected


def test_a_secondary_capture_is_read_where_the_site_takes_it() -> None:
    capture = header(sop_class_uid=SecondaryCaptureImageStorage)
    assert reason_not_to_read(capture, SECONDARY_CAPTURE_ALLOWED) is None


@pytest.mark.parametrize(
    "sop_class", [ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, SecondaryCaptureImageStorage]
)
def test_an_image_of_any_class_that_says_it_is_for_processing_is_read_only_where_the_site_says_so(
    sop_class: str,
) -> None:
    stated = header(sop_class_uid=sop_class, presentation_intent="FOR PROCESSING")
    both = GivenSettings(listener={"accept_secondary_capture": True}, analysis={"analyse_for_processing": True})
    assert reason_not_to_read(stated, SECONDARY_CAPTURE_ALLOWED) is Reason.FOR_PROCESSING
    assert reason_not_to_read(stated, both) is None
    shown = header(sop_class_uid=sop_class, presentation_intent="FOR PRESENTATION")
    assert reason_not_to_read(shown, SECONDARY_CAPTURE_ALLOWED) is None


def test_the_class_for_processing_is_not_made_presentable_by_what_it_states() -> None:
    image = header(sop_class_uid=DigitalXRayImageStorageForProcessing, presentation_intent="FOR PRESENTATION")
    assert reason_not_to_read(image, SETTINGS) is Reason.FOR_PROCESSING
    assert reason_not_to_read(image, FOR_PROCESSING_ALLOWED) is None


def test_an_animal_is_not_read() -> None:
    assert reason_not_to_read(header(animal=True), SETTINGS) is Reason.VETERINARY


@pytest.mark.parametrize(("right", "left"), list(permutations(LEVELS, 2)))
def test_right_at_one_level_and_left_at_another_is_a_conflict_whichever_they_are(right: str, left: str) -> None:
    image = header(sides=Sides(**{right: "R", left: "L"}))
    assert reason_not_to_read(image, SETTINGS) is Reason.LATERALITY_CONFLICT


@pytest.mark.parametrize("side", ["R", "L", "B", "U", ""])
@pytest.mark.parametrize("other", ["B", "U", ""])
def test_both_unpaired_and_nothing_contradict_no_side(side: str, other: str) -> None:
    for level, further in permutations(LEVELS, 2):
        assert reason_not_to_read(header(sides=Sides(**{level: side, further: other})), SETTINGS) is None


def test_levels_that_agree_are_no_conflict() -> None:
    assert reason_not_to_read(header(sides=Sides("L", "L", "L", "L", "L")), SETTINGS) is None


def test_an_object_that_is_no_image_says_so_first() -> None:
    report = header(sop_class_uid=GSPS, animal=True, sides=Sides("R", "L"), presentation_intent="FOR PROCESSING")
    assert reason_not_to_read(report, SETTINGS) is Reason.NOT_AN_IMAGE
