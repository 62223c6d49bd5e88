"""The heatmap: what is drawn, what is never drawn, and what its header says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array

from dicom_node.headers import Patient, read_header
from dicom_node.objects.content import Algorithm, ImageOutcome, Predecessor
from dicom_node.objects.heatmap import (
    MOST_BYTES,
    HeatmapContent,
    Picture,
    build_heatmap,
    colour_map,
    draw,
    render_heatmap_series_uid,
    render_heatmap_uid,
)
from dicom_node.objects.recognise import is_own_object
from models.reasons import Reason
from tests.companions import DIGEST, HEATMAP, heatmap, picture
from tests.reports import BARE, DISLOCATION, GSPS, REGION, header, image, reading, unread

LARGE = 1000
"""Not enlarged, and so found again pixel by pixel."""
GROUND = 16


def large(grey: int = 90, *, scores: float | None = None) -> Picture:
    pixels = np.full((LARGE, LARGE), grey, dtype=np.uint8)
    return Picture(pixels, None if scores is None else np.full(pixels.shape, scores, dtype=np.float32), LARGE, LARGE)


def middle(content: HeatmapContent) -> np.ndarray[Any, Any]:
    """The part of the drawing between the bands."""
    assert content.picture is not None
    rows, columns = content.picture.pixels.shape
    drawn = draw(content)
    top = next(at for at in range(len(drawn)) if (drawn[at] != GROUND).all())
    return drawn[top : top + rows, :columns]


def built(content: HeatmapContent) -> Dataset:
    return pydicom.dcmread(BytesIO(build_heatmap(content)))


# What is drawn.


@pytest.mark.parametrize("decision", ["no_fracture", "undetermined"])
def test_without_a_fracture_nothing_is_in_colour_and_nothing_is_marked(decision: Any) -> None:
    content = heatmap(image(decision=decision, region=REGION), picture())
    drawn = draw(content)
    assert (drawn == drawn[:, :, :1]).all()
    assert np.array_equal(drawn, draw(heatmap(image(decision=decision), picture(scores=False))))


@pytest.mark.parametrize("decision", ["no_fracture", "undetermined"])
def test_without_a_fracture_nothing_is_in_colour_once_it_is_decoded_either(decision: Any) -> None:
    decoded = pixel_array(built(heatmap(image(decision=decision, region=REGION), picture()))).astype(int)
    assert np.abs(decoded - decoded[:, :, :1]).max() <= 1


def test_the_radiograph_is_shown_as_it_is_and_no_word_is_written_on_it() -> None:
    ramp = np.linspace(20, 255, LARGE * LARGE).reshape(LARGE, LARGE).astype(np.uint8)
    content = heatmap(image(decision="no_fracture"), Picture(ramp, None, LARGE, LARGE))
    assert np.array_equal(middle(content), np.repeat(ramp[:, :, None], 3, axis=2))


def test_a_region_is_outlined_where_it_is() -> None:
    content = heatmap(image(region=(300, 200, 500, 640), rows=LARGE, columns=LARGE), large())
    changed = (middle(content) != 90).any(axis=2)
    down, across = (np.flatnonzero(changed.any(axis=side)) for side in (1, 0))
    assert 192 <= down[0] < 200
    assert 640 <= down[-1] < 648
    assert 292 <= across[0] < 300
    assert 500 <= across[-1] < 508
    assert not changed[200:640, 300:500].any()


@pytest.mark.parametrize("source", [(2000, 2000), (500, 500), (500, 4000)])
def test_regions_are_in_pixels_of_the_source_whatever_the_picture_s_size(source: tuple[int, int]) -> None:
    down, across = source[0] / LARGE, source[1] / LARGE
    region = (300 * across, 200 * down, 500 * across, 640 * down)
    shown = replace(large(), source_rows=source[0], source_columns=source[1])
    content = heatmap(image(region=region, rows=source[0], columns=source[1]), shown)
    expected = heatmap(image(region=(300, 200, 500, 640), rows=LARGE, columns=LARGE), large())
    assert np.array_equal(middle(content), middle(expected))


@pytest.mark.parametrize("grey", [0, 90, 255])
def test_an_outline_is_seen_on_any_grey(grey: int) -> None:
    shown = middle(heatmap(image(region=(300, 200, 500, 640), rows=LARGE, columns=LARGE), large(grey))).astype(int)
    assert max(abs(int(shown.max()) - grey), abs(int(shown.min()) - grey)) > 120


def test_the_colour_lies_where_the_scores_are_and_bone_is_seen_through_it() -> None:
    stripes = np.tile(np.array([60, 200], dtype=np.uint8).repeat(10), (LARGE, LARGE // 20))
    scores = np.zeros((LARGE, LARGE), dtype=np.float32)
    scores[400:600] = 1.0
    scores[700:800] = 0.1
    shown = middle(heatmap(image(), Picture(stripes, scores, LARGE, LARGE)))
    plain = np.repeat(stripes[:, :, None], 3, axis=2)
    assert np.array_equal(shown[:400], plain[:400])
    assert np.array_equal(shown[700:800], plain[700:800])
    laid_over = shown[400:600].astype(int)
    assert (np.ptp(laid_over, axis=2) > 30).all()
    assert (laid_over[:, 10] - laid_over[:, 0] >= 50).all()


def test_the_higher_the_score_the_stronger_and_lighter_the_colour() -> None:
    shown = [middle(heatmap(image(), large(scores=score)))[500, 500].astype(int) for score in (0.3, 0.5, 0.7, 0.9)]
    assert (np.diff([np.abs(colour - 90).max() for colour in shown]) > 0).all()
    lightness = colour_map().astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= -0.8).all()  # of rounding to bytes
    assert lightness[-1] > 3 * lightness[0]


def test_a_score_that_is_no_number_is_no_score() -> None:
    assert np.array_equal(
        middle(heatmap(image(), large(scores=float("nan")))), middle(heatmap(image(), large(scores=0)))
    )


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), (1024, 333), (512, 410), (1, 1024)])
def test_any_shape_is_drawn(shape: tuple[int, int]) -> None:
    scores = np.ones(shape, dtype=np.float32)
    shown = Picture(np.full(shape, 7, dtype=np.uint8), scores, *shape)
    document = built(heatmap(image(region=(0, 0, shape[1], shape[0]), rows=shape[0], columns=shape[1]), shown))
    assert pixel_array(document).shape == (document.Rows, document.Columns, 3)
    assert document.Columns >= 640
    assert document.Columns % 2 == 0


def test_nothing_of_the_patient_is_drawn() -> None:
    other = image(region=REGION, patient=Patient(name="Roe^Richard", id="PID-2"))
    assert np.array_equal(draw(heatmap(image(region=REGION), picture())), draw(heatmap(other, picture())))


def test_words_that_are_too_long_are_set_smaller_and_not_cut() -> None:
    long = replace(image(), algorithm=Algorithm("a" * 64, "1.0.0", "Osteon", "ab" * 32))
    drawn = draw(heatmap(long, large(), label="Image 12 " + "W" * 40))
    for edge in (drawn[:60, LARGE - 10 :], drawn[-60:, LARGE - 10 :]):
        assert (edge == GROUND).all()


def test_a_picture_stays_small_enough_for_a_row_of_the_database() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1024, 1024), dtype=np.uint8)
    document = built(heatmap(image(), Picture(noise, None, 1024, 1024)))
    assert len(document.PixelData) <= MOST_BYTES


# Cards.


@pytest.mark.parametrize("reason", Reason)
def test_an_image_that_was_not_analysed_gets_a_card_that_says_why(reason: Reason) -> None:
    content = heatmap(unread(1, reason))
    document = built(content)
    assert reason.sentence in document.ImageComments
    assert "not analysed" in document.ImageComments
    assert document.BurnedInAnnotation == "NO"
    assert document.ConversionType == "SYN"
    drawn = draw(content)
    assert (drawn == drawn[:, :, :1]).all()
    assert drawn.mean() < 40


def test_every_reason_has_a_card_of_its_own() -> None:
    assert len({draw(heatmap(unread(1, reason))).tobytes() for reason in Reason}) == len(Reason)


def test_an_image_whose_picture_cannot_be_had_gets_a_card_with_its_decision() -> None:
    content = heatmap(image())
    assert "Fracture found, certainty 83 %" in built(content).ImageComments
    assert not np.array_equal(draw(content), draw(heatmap(image(decision="no_fracture"))))


# The header.


def test_it_names_its_source_its_algorithm_and_that_it_is_derived() -> None:
    document = built(heatmap(image(), picture(), number=3))
    assert document.SOPClassUID == HEATMAP
    assert document.file_meta.TransferSyntaxUID.name == "JPEG Baseline (Process 1)"
    assert document.ImageType == ["DERIVED", "SECONDARY", "AI_RESULT"]
    [source] = document.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == header().sop_instance_uid
    assert source.ReferencedSOPClassUID == header().sop_class_uid
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    [series] = document.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == header().series_instance_uid
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == header().sop_instance_uid
    assert "osteon-fracture 1.0.0" in document.DerivationDescription
    assert "ab" * 32 in document.DerivationDescription
    assert "AI result, not for primary diagnosis" in document.DerivationDescription
    assert [code.CodeValue for code in document.DerivationCodeSequence] == ["113085", "113040"]
    assert (document.LossyImageCompression, document.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert document.LossyImageCompressionRatio > 1
    assert "BurnedInAnnotation" not in document
    assert document.InstanceNumber == 3
    assert (document.BodyPartExamined, document.Laterality) == ("WRIST", "L")
    assert document.StudyInstanceUID == header().study_instance_uid
    assert document.SeriesInstanceUID != header().series_instance_uid


def test_an_object_that_is_no_image_is_not_named_as_one() -> None:
    document = built(heatmap(unread(2, Reason.NOT_AN_IMAGE, sop_class_uid=GSPS, modality="PR")))
    assert "SourceImageSequence" not in document
    assert document.SourceInstanceSequence[0].ReferencedSOPClassUID == GSPS
    assert document.Modality == "OT"


@pytest.mark.parametrize(("stated", "expected"), [("DX", "DX"), ("CR", "CR"), ("", "DX"), ("PR", "DX")])
def test_its_modality_is_what_acquired_the_source(stated: str, expected: str) -> None:
    assert built(heatmap(image(modality=stated), picture())).Modality == expected


@pytest.mark.parametrize(("stated", "expected"), [("L", "L"), ("R", "R"), ("B", ""), ("U", ""), ("", "")])
def test_a_side_is_stated_where_the_series_can_state_it(stated: str, expected: str) -> None:
    assert built(heatmap(image(laterality=stated), picture())).Laterality == expected


def test_several_findings_are_all_named() -> None:
    outcome = ImageOutcome(header(), (reading(region=REGION), replace(reading("no_fracture"), code=DISLOCATION)))
    comments = built(heatmap(outcome, picture())).ImageComments
    assert "Fracture found, certainty 83 %" in comments
    assert "Dislocation: absent, certainty 3 %" in comments


@pytest.mark.parametrize("outcome", [image(region=REGION), image(**BARE), unread(1, Reason.BLANK)])
def test_it_is_known_again_when_it_comes_back(outcome: ImageOutcome) -> None:
    shown = picture() if outcome.readings else None
    assert is_own_object(read_header(built(heatmap(outcome, shown))))


def test_times_are_in_the_source_s_own_offset() -> None:
    document = built(heatmap(image(timezone_offset="-0430"), picture()))
    assert (document.ContentDate, document.ContentTime) == ("20260329", "190015")
    assert "SeriesDate" not in document  # a series is made of several times


# Its UIDs.


def test_equal_content_gives_equal_bytes() -> None:
    assert build_heatmap(heatmap(image(region=REGION), picture())) == build_heatmap(
        heatmap(image(region=REGION), picture())
    )


def test_its_uids_can_be_told_without_a_picture_and_do_not_know_the_time() -> None:
    content = heatmap(image(region=REGION), picture())
    bare = replace(content, picture=None, created_at=content.created_at + timedelta(days=3))
    document = built(content)
    assert render_heatmap_uid(bare) == document.SOPInstanceUID
    assert render_heatmap_series_uid(bare) == document.SeriesInstanceUID


def test_a_change_of_what_is_drawn_or_said_gives_a_new_uid() -> None:
    base = heatmap(image(), picture())
    others = [
        heatmap(image(decision="no_fracture"), picture()),
        heatmap(image(region=REGION), picture()),
        heatmap(image(2), picture()),
        heatmap(image(laterality="R"), picture()),
        heatmap(image(patient=Patient(name="Roe^Richard")), picture()),
        heatmap(unread(1, Reason.BLANK)),
        heatmap(unread(1, Reason.FAILED)),
        heatmap(image()),
        *(
            replace(base, **{name: value})
            for name, value in {
                "installation_uid": "2.25.9",
                "device": replace(base.device, software_version="9"),
                "algorithm": replace(base.algorithm, version="9"),
                "label": "Image 9",
                "number": 9,
                "source_digest": "00",
                "series_number": 9,
                "series_description": "nine",
                "predecessor": Predecessor("2.25.9", "2.25.8"),
            }.items()
        ),
    ]
    assert len({render_heatmap_uid(content) for content in [base, *others]}) == 1 + len(others)


def test_pictures_of_one_side_share_a_series_and_of_the_other_have_their_own() -> None:
    series = render_heatmap_series_uid(heatmap(image(), picture()))
    assert render_heatmap_series_uid(heatmap(image(2, "no_fracture"), picture(), number=2)) == series
    assert render_heatmap_series_uid(heatmap(unread(3, Reason.BLANK), number=3)) == series
    assert render_heatmap_series_uid(heatmap(image(laterality="R"), picture())) != series


def test_the_uid_of_one_content_is_what_it_was() -> None:
    """If this fails, what is rendered has changed: raise BUILDER_VERSION, and then this number."""
    assert (
        render_heatmap_uid(heatmap(image(region=REGION), picture())) == "2.25.158937675583673577960578961256240055054"
    )


# What it refuses.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"installation_uid": "x"}, "installation_uid"),
        ({"created_at": heatmap(image()).created_at.replace(tzinfo=None)}, "UTC"),
        ({"source_digest": ""}, "source_digest"),
        ({"image": unread(1, Reason.BLANK)}, "card only"),
    ],
)
def test_content_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        heatmap(**({"image": image(), "shown": picture(), "source_digest": DIGEST} | changes))


@pytest.mark.parametrize(
    ("pixels", "scores", "source", "message"),
    [
        (np.zeros((4, 4), np.uint16), None, (4, 4), "grey bytes"),
        (np.zeros((4, 4, 3), np.uint8), None, (4, 4), "grey bytes"),
        (np.zeros((0, 4), np.uint8), None, (4, 4), "grey bytes"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.float32), (4, 4), "shape"),
        (np.zeros((4, 4), np.uint8), None, (0, 4), "size"),
    ],
)
def test_a_picture_that_is_none_is_refused(pixels: Any, scores: Any, source: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Picture(pixels, scores, *source)
