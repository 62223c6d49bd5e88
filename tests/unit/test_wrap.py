"""Wrapping a picture: any PNG or JPEG becomes a radiograph that the rest of Osteon takes for one."""

from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import typer
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from console.send import SYNTAXES, parse_transfer_syntax
from dicom_node.headers import is_uid, read_header
from dicom_node.objects.recognise import is_own_object
from dicom_node.wrap import PictureError, wrap_picture

RAMP = np.arange(15 * 21, dtype=np.uint8).reshape(15, 21)


def wrap(picture: Path | Image.Image, **details: Any) -> FileDataset:
    return wrap_picture(picture, patient_id="P1", patient_name="Doe^Jane", **details)


def saved(image: Image.Image, folder: Path, name: str = "picture.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_a_grey_png_keeps_every_pixel(tmp_path: Path) -> None:
    dataset = wrap(saved(Image.fromarray(RAMP), tmp_path))
    assert np.array_equal(dataset.pixel_array, RAMP)
    assert (dataset.PhotometricInterpretation, dataset.BitsStored) == ("MONOCHROME2", 8)
    assert dataset.LossyImageCompression == "00"


def test_it_can_be_stored_and_read_back(tmp_path: Path) -> None:
    file = BytesIO()
    wrap(saved(Image.fromarray(RAMP), tmp_path)).save_as(file, enforce_file_format=True)
    file.seek(0)
    dataset = pydicom.dcmread(file)
    assert np.array_equal(dataset.pixel_array, RAMP)
    assert len(dataset.PixelData) % 2 == 0
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_an_open_picture_can_be_wrapped() -> None:
    assert np.array_equal(wrap(Image.fromarray(RAMP)).pixel_array, RAMP)


def test_a_jpeg_says_that_it_was_compressed_with_loss(tmp_path: Path) -> None:
    dataset = wrap(saved(Image.fromarray(RAMP), tmp_path, "picture.jpg"))
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    assert dataset.LossyImageCompressionRatio > 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "YCbCr"])
def test_colour_becomes_grey(mode: str) -> None:
    pixels = wrap(Image.fromarray(RAMP).convert("RGB").convert(mode)).pixel_array
    assert pixels.shape == RAMP.shape
    assert np.abs(pixels.astype(int) - RAMP).max() <= 51  # a palette has few colours


def test_what_is_transparent_becomes_black() -> None:
    picture = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert wrap(picture).pixel_array.max() == 0


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    wide = RAMP.astype(np.uint16) * 257
    assert np.array_equal(wrap(saved(Image.fromarray(wide), tmp_path)).pixel_array, RAMP)


def test_the_rotation_that_a_camera_notes_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    dataset = wrap(saved(Image.fromarray(RAMP), tmp_path, exif=exif))
    assert np.array_equal(dataset.pixel_array, np.rot90(RAMP, -1))


def test_what_is_known_stands_in_the_header() -> None:
    dataset = wrap(
        Image.fromarray(RAMP),
        body_part="wrist",
        laterality="L",
        view_position="ap",
        study_uid="1.2.3",
        series_uid="1.2.4",
        made_at=datetime(2026, 3, 29, 10, 15, tzinfo=UTC),
    )
    header = read_header(dataset)
    assert (header.study_instance_uid, header.series_instance_uid) == ("1.2.3", "1.2.4")
    assert (header.body_part_examined, header.laterality, header.view_position) == ("WRIST", "L", "AP")
    assert header.anatomic_region is not None
    assert header.anatomic_region.meaning == "Wrist joint"
    assert (header.study.date, header.study.time) == ("20260329", "101500")
    assert (header.patient.id, header.patient.name) == ("P1", "Doe^Jane")


def test_what_is_not_known_is_not_guessed() -> None:
    header = read_header(wrap(Image.fromarray(RAMP)))
    assert (header.body_part_examined, header.laterality, header.view_position) == ("", "U", "")
    assert (header.anatomic_region, header.study.date) == (None, "")


def test_every_picture_has_uids_of_its_own_unless_they_are_given() -> None:
    first, second = (read_header(wrap(Image.fromarray(RAMP))) for _ in range(2))
    uids = {
        uid
        for header in (first, second)
        for uid in (header.sop_instance_uid, header.series_instance_uid, header.study_instance_uid)
    }
    assert len(uids) == 6
    assert all(is_uid(uid) for uid in uids)


def test_a_wrapped_picture_is_not_taken_for_a_result_of_ours() -> None:
    assert not is_own_object(read_header(wrap(Image.fromarray(RAMP))))


def test_for_processing_is_another_sop_class() -> None:
    dataset = wrap(Image.fromarray(RAMP), presentation="FOR PROCESSING")
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.1.1.1"
    assert dataset.PresentationIntentType == "FOR PROCESSING"


def test_a_name_in_any_script_is_kept() -> None:
    dataset = wrap_picture(Image.fromarray(RAMP), patient_id="P1", patient_name="Yamada^Tarou=山田^太郎")
    assert read_header(dataset).patient.name == "Yamada^Tarou=山田^太郎"


@pytest.mark.parametrize("content", [b"", b"Doe^Jane", b"GIF89a" + b"\0" * 100, b"\0" * 128 + b"DICM"])
def test_what_is_no_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "Doe^Jane.png"
    path.write_bytes(content)
    with pytest.raises(PictureError) as caught:
        wrap(path)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg"])
def test_a_picture_that_ends_too_early_is_refused(name: str, tmp_path: Path) -> None:
    path = saved(Image.effect_noise((64, 64), 50), tmp_path, name)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(PictureError, match="damaged"):
        wrap(path)


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(Image.fromarray(RAMP), tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match="too large"):
        wrap(path)


def test_a_picture_with_more_columns_than_dicom_can_count_is_refused() -> None:
    with pytest.raises(PictureError, match="too large"):
        wrap(Image.new("L", (65536, 1)))


def test_floating_point_pixels_are_refused_since_their_range_is_unknown() -> None:
    with pytest.raises(PictureError):
        wrap(Image.new("F", (2, 2)))


@pytest.mark.parametrize("details", [{"laterality": "left"}, {"presentation": "FOR FUN"}])
def test_values_that_are_none_are_refused(details: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"laterality|presentation"):
        wrap(Image.fromarray(RAMP), **details)


@pytest.mark.parametrize(
    ("details", "sop_class", "modality"),
    [
        ({}, DigitalXRayImageStorageForPresentation, "DX"),
        ({"presentation": "FOR PROCESSING"}, DigitalXRayImageStorageForProcessing, "DX"),
        ({"wrapped_as": "CR"}, ComputedRadiographyImageStorage, "CR"),
        ({"wrapped_as": "SC"}, SecondaryCaptureImageStorage, "OT"),
    ],
)
def test_a_picture_can_be_wrapped_as_another_kind_of_image(
    details: dict[str, Any], sop_class: str, modality: str
) -> None:
    dataset = wrap(Image.fromarray(RAMP), **details)
    assert (dataset.SOPClassUID, dataset.file_meta.MediaStorageSOPClassUID) == (sop_class, sop_class)
    assert dataset.Modality == modality
    assert dataset.BurnedInAnnotation == "YES"
    assert np.array_equal(dataset.pixel_array, RAMP)


@pytest.mark.parametrize(
    "details",
    [
        {"wrapped_as": "CT"},
        {"presentation": "FOR FUN"},
        {"wrapped_as": "CR", "presentation": "FOR PROCESSING"},
        {"laterality": "LEFT"},
    ],
)
def test_a_kind_of_image_that_does_not_exist_is_refused(details: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(?i)none|neither|only"):
        wrap(Image.fromarray(RAMP), **details)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1])
def test_a_picture_can_be_wrapped_in_another_transfer_syntax(syntax: str) -> None:
    dataset = wrap(Image.fromarray(RAMP), transfer_syntax=syntax)
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(dataset.pixel_array, RAMP)


def test_a_jpeg_that_is_compressed_again_says_so_twice(tmp_path: Path) -> None:
    dataset = wrap(saved(Image.fromarray(RAMP), tmp_path, "picture.jpg"), transfer_syntax=JPEGBaseline8Bit)
    assert list(dataset.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_10918_1"]
    assert len(dataset.LossyImageCompressionRatio) == 2


@pytest.mark.parametrize("name", ["JPEGLosslessSV1", "jpeglosslesssv1", " JPEGLosslessSV1"])
def test_a_transfer_syntax_is_named_by_its_keyword(name: str) -> None:
    assert parse_transfer_syntax(name) == JPEGLosslessSV1


@pytest.mark.parametrize("name", ["", "MPEG2MPML", "ExplicitVRBigEndian", "1.2.840.10008.1.2.4.70"])
def test_what_names_no_transfer_syntax_that_can_be_written_is_refused(name: str) -> None:
    with pytest.raises(typer.BadParameter, match="JPEGLosslessSV1"):
        parse_transfer_syntax(name)


def test_without_the_encoders_only_uncompressed_pixels_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("console.send.find_spec", lambda _: None)
    assert parse_transfer_syntax("ImplicitVRLittleEndian") == "1.2.840.10008.1.2"
    with pytest.raises(typer.BadParameter, match="imagecodecs"):
        parse_transfer_syntax("JPEG2000")


def test_every_transfer_syntax_can_hold_a_picture() -> None:
    for syntax in SYNTAXES.values():
        assert wrap(Image.fromarray(RAMP), transfer_syntax=syntax).file_meta.TransferSyntaxUID == syntax
