"""Why an image was not analysed. Silence is never "no fracture": every image without a prediction has one of these.

The codes are kept in the database and printed in reports for years: add new ones, never reuse or rename one.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """A coded reason; the value is what is stored, `sentence` is what people read."""

    NOT_DICOM = "not_dicom"
    NOT_AN_IMAGE = "not_an_image"
    OTHER_MODALITY = "other_modality"
    OTHER_SOP_CLASS = "other_sop_class"
    FOR_PROCESSING = "for_processing"
    OUTSIDE_INTENDED_USE = "outside_intended_use"
    OUTSIDE_INTENDED_AGE = "outside_intended_age"
    VETERINARY = "veterinary"
    LATERALITY_CONFLICT = "laterality_conflict"
    NO_PIXELS = "no_pixels"
    UNDECODABLE = "undecodable"
    SIZE_MISMATCH = "size_mismatch"
    TOO_LARGE = "too_large"
    MULTI_FRAME = "multi_frame"
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    BLANK = "blank"
    PHOTOGRAPH = "photograph"
    TEXT = "text"
    MULTI_PANEL = "multi_panel"
    UNLIKE_TRAINING = "unlike_training"
    FILE_MISSING = "file_missing"
    FAILED = "failed"

    @property
    def sentence(self) -> str:
        """One plain sentence without patient data, for people and for the report."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.NOT_DICOM: "The file is not a DICOM object or a picture that can be read.",
    Reason.NOT_AN_IMAGE: "The object is not an image.",
    Reason.OTHER_MODALITY: "The modality is not one this model was made for.",
    Reason.OTHER_SOP_CLASS: "The SOP class is not one this node analyses.",
    Reason.FOR_PROCESSING: "The image is For Processing, not For Presentation.",
    Reason.OUTSIDE_INTENDED_USE: "The body part is outside the model's intended use.",
    Reason.OUTSIDE_INTENDED_AGE: "The patient's age is outside the model's intended use.",
    Reason.VETERINARY: "The patient is an animal.",
    Reason.LATERALITY_CONFLICT: "Study, series and image contradict each other about left and right.",
    Reason.NO_PIXELS: "The object has no pixel data.",
    Reason.UNDECODABLE: "The pixel data cannot be decoded.",
    Reason.SIZE_MISMATCH: "The pixel data do not match Rows and Columns.",
    Reason.TOO_LARGE: "The image is larger than the limit.",
    Reason.MULTI_FRAME: "Multi-frame images are not analysed.",
    Reason.UNSUPPORTED_PIXELS: "The pixel format is not supported.",
    Reason.BLANK: "The image is blank.",
    Reason.PHOTOGRAPH: "The image is a colour picture, not a radiograph.",
    Reason.TEXT: "The image shows text, not a radiograph.",
    Reason.MULTI_PANEL: "The picture is composed of several images.",
    Reason.UNLIKE_TRAINING: "The image does not look like the radiographs the model knows.",
    Reason.FILE_MISSING: "The file of the image is missing.",
    Reason.FAILED: "The analysis failed repeatedly.",
}
