"""A bundle: one released model, with everything needed to trust it and to refuse it.

A bundle is a folder with `model.tflite`, `card.json`, `SHA256SUMS` and possibly plots. Nothing in it is used before
every file matches `SHA256SUMS`, and the bytes that were checked are the bytes that run. Thresholds, calibration and the
intended use come from the card and from nowhere else. Bundles are written by `training/release.py`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dicom_node.headers import SourceHeader
from dicom_node.objects.anatomy import Parts, body_parts, region_parts
from dicom_node.pixels import PIPELINE_VERSION
from dicom_node.services import SECONDARY_CAPTURE_SOP_CLASS
from models.errors import CannotStart
from models.reasons import Reason

CARD = "card.json"
MODEL = "model.tflite"
SUMS = "SHA256SUMS"


class BundleError(CannotStart):
    """The folder is not a bundle this program may use; the text names the file and what is wrong with it."""


def default_bundle_path() -> Path:
    """Return the folder of the bundle that is shipped with this version."""
    return Path(__file__).parent / "bundles" / "osteon-reader-3"


# --- the card ---------------------------------------------------------------------------------------------------------


class _Part(BaseModel):
    """A card is exact: a field nobody knows is a mistake, and nothing is changed once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputSize(_Part):
    """What `dicom_node.pixels.model_input` has to make: one grey plane, fed as float32 0 to 255."""

    rows: int = Field(gt=0, le=4096)
    columns: int = Field(gt=0, le=4096)
    pipeline_version: int


class Code(_Part):
    """A coded concept, as in a DICOM Code Sequence (PS3.3 8.8)."""

    value: str = Field(min_length=1, max_length=16)
    scheme: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class OperatingPoints(_Part):
    """Calibrated probabilities: from `present_from` on is present, below `absent_below` absent, else undetermined."""

    absent_below: float = Field(ge=0, le=1)
    present_from: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.absent_below > self.present_from:
            raise ValueError("absent_below lies above present_from")
        return self


class TemperatureParameters(_Part):
    temperature: float = Field(gt=0)


class Temperature(_Part):
    """Temperature scaling (Guo et al., ICML 2017): sigmoid(logit / temperature)."""

    method: Literal["temperature"] = "temperature"
    parameters: TemperatureParameters

    def probability(self, logit: float) -> float:
        return _sigmoid(logit / self.parameters.temperature)


class PlattParameters(_Part):
    slope: float = Field(gt=0)
    intercept: float


class Platt(_Part):
    """Platt scaling (Platt, 1999): sigmoid(slope × logit + intercept)."""

    method: Literal["platt"] = "platt"
    parameters: PlattParameters

    def probability(self, logit: float) -> float:
        return _sigmoid(self.parameters.slope * logit + self.parameters.intercept)


Calibration = Annotated[Temperature | Platt, Field(discriminator="method")]


def _sigmoid(x: float) -> float:
    """Without overflow: exp is only taken of what is not positive."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))


class Finding(_Part):
    """One thing the model looks for: its code, where its logit stands in the output vector, and how to read that."""

    code: Code
    output: int = Field(ge=0)
    operating_points: OperatingPoints
    calibration: Calibration


class Ages(_Part):
    """Patients' ages in years: from the birthday `from_years`, and until the birthday `to_years` where there is one."""

    from_years: float = Field(ge=0)
    to_years: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.to_years is not None and self.to_years <= self.from_years:
            raise ValueError("to_years does not lie above from_years")
        return self

    def include(self, age: float) -> bool:
        return self.from_years <= age and (self.to_years is None or age < self.to_years)


class IntendedUse(_Part):
    """What the model was made for. Body parts are values of Body Part Examined (PS3.16 Annex L), upper case."""

    statement: str = Field(min_length=1)
    body_parts: tuple[str, ...] = Field(min_length=1)
    ages: Ages | None = None
    limits: tuple[str, ...]


class TrainingData(_Part):
    """A data set the model learned from or was measured on, and what its licence asks us to say."""

    name: str
    citation: str
    licence: str
    attribution: str
    split: str


class Metric(_Part):
    """A measured figure with its confidence interval."""

    value: float
    low: float
    high: float


class Subgroup(_Part):
    """The same figures on a part of the images: a body region, a view, those without hardware."""

    images: int = Field(ge=0)
    positives: int = Field(ge=0)
    values: dict[str, Metric]


class FindingScores(_Part):
    """How one finding's calibrated probabilities are spread over images that the gate let pass.

    Attributes
    ----------
    code
        The finding.
    with_finding, without_finding
        How many images with and without it lie between each edge of `ScoreDistribution` and the next. Apart, since
        their share in a hospital is not that of the test set.
    present, undetermined
        The shares of these images so called, with their intervals.
    """

    code: Code
    with_finding: tuple[Annotated[int, Field(ge=0)], ...]
    without_finding: tuple[Annotated[int, Field(ge=0)], ...]
    present: Metric
    undetermined: Metric


class ScoreDistribution(_Part):
    """What the scores of the measured images look like: what those of a hospital are compared with (`worker.drift`).

    Attributes
    ----------
    edges
        Calibrated probabilities, from 0 to 1. A score that is an edge lies above it, and 1 in the last bin.
    findings
        In the card's order.
    refused
        The share of all measured images that the gate refused, with its interval.
    """

    edges: tuple[float, ...] = Field(min_length=2)
    findings: tuple[FindingScores, ...] = Field(min_length=1)
    refused: Metric

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(low >= high for low, high in pairwise(self.edges)) or (self.edges[0], self.edges[-1]) != (0, 1):
            raise ValueError("edges do not rise from 0 to 1")
        for one in self.findings:
            if not len(one.with_finding) == len(one.without_finding) == len(self.edges) - 1:
                raise ValueError("there is not one count between every two edges")
            if not sum(one.with_finding) or not sum(one.without_finding):
                raise ValueError("a distribution of no images")
        return self


class Metrics(_Part):
    """The released file measured through the worker's own predictor on images it never saw.

    Attributes
    ----------
    dataset
        Which images, and what they were used for before.
    images, positives, groups
        How many there are, with the finding, and as groups that resampling keeps whole.
    interval
        How the intervals were made.
    values
        The figures by name.
    subgroups
        Figures of parts of the images, by the part's name.
    baselines
        What a reader without any skill reaches, by the figure's name: without it a figure cannot be judged.
    test_reads
        How often these images were read to measure a release, this time included: every look is a chance to fit them.
    score_distribution
        How the scores are spread; older bundles do not say.
    """

    dataset: str
    images: int = Field(ge=0)
    positives: int = Field(ge=0)
    groups: int = Field(ge=0)
    interval: str
    values: dict[str, Metric]
    subgroups: dict[str, Subgroup] = {}
    baselines: dict[str, float] = {}
    test_reads: int | None = Field(default=None, ge=1)
    score_distribution: ScoreDistribution | None = None


class ComparedArchitecture(_Part):
    """One row of the table by which the architecture was chosen: all from the same data, folds and budget.

    `megabytes` is the size of its LiteRT file, `milliseconds` the time for one image on two cores.
    """

    name: str
    input: str
    parameters: int = Field(ge=0)
    megabytes: float = Field(ge=0)
    milliseconds: float | None = Field(default=None, ge=0)
    values: dict[str, float]
    note: str


class Heatmap(_Part):
    """The model's output "map" has `rows` × `columns` cells; each holds a score of 0 to 1 for each finding.

    A region is made of the cells around the best one, joined by their edges, whose score is at least `region_share`
    of its score.
    """

    rows: int = Field(gt=0, le=4096)
    columns: int = Field(gt=0, le=4096)
    region_share: float = Field(gt=0, le=1)


class Negative(_Part):
    """Images that are no radiographs the model knows, on which the gate was tried, and how many it refused.

    `refused` counts those refused for any reason, `refused_by_features` those whose distance alone refuses them.
    """

    name: str
    description: str
    images: int = Field(ge=0)
    refused: int = Field(ge=0)
    refused_by_features: int = Field(ge=0)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if not self.refused_by_features <= self.refused <= self.images:
            raise ValueError("more are refused than there are")
        return self


class Gate(_Part):
    """When the model does not answer: its features lie farther from training's than `refuse_above`.

    Attributes
    ----------
    refuse_above
        The largest value of the model's output "distance" that is still read.
    method
        How the distance is measured and how the limit was chosen, in words.
    negatives
        Everything it was tried on. No more is claimed.
    false_refusals
        The share of radiographs of the intended kind that it refuses, where that was measured with an interval.
    accepted_images, accepted_refused
        How many such radiographs were tried, and how many were refused.
    """

    refuse_above: float = Field(ge=0)
    method: str
    negatives: tuple[Negative, ...]
    false_refusals: Metric | None = None
    accepted_images: int = Field(ge=0)
    accepted_refused: int = Field(ge=0)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.accepted_refused > self.accepted_images:
            raise ValueError("more are refused than there are")
        return self


class Card(_Part):
    """`card.json`: what the model is, what it is for, and how well it does.

    `heatmap` and `gate` stand where the model has the outputs "map" and "distance". `cross_validation` is measured on
    images that are no fold's own training images; `comparison` is the table by which the architecture was chosen.
    """

    schema_version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)
    version: str = Field(pattern=r"^[0-9]+(\.[0-9]+){0,2}$", max_length=16)
    created: datetime
    input: InputSize
    image_modalities: tuple[str, ...] = Field(min_length=1)
    findings: tuple[Finding, ...] = Field(min_length=1)
    intended_use: IntendedUse
    training_data: tuple[TrainingData, ...]
    metrics: Metrics
    software: dict[str, str]
    heatmap: Heatmap | None = None
    gate: Gate | None = None
    cross_validation: Metrics | None = None
    comparison: tuple[ComparedArchitecture, ...] = ()


def _parsed(content: bytes) -> Card:
    try:
        return Card.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole file"
        raise BundleError(f"{CARD}: {where}: {first['msg']}") from None


# --- the folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file has been checked.

    Attributes
    ----------
    path
        The folder it came from.
    card
        Its card.
    sha256
        SHA-256 of the file `SHA256SUMS`, hex: it names all the other files' contents, and so identifies the bundle.
    files
        SHA-256 of every other file, by name.
    model
        The content of `model.tflite`, as it was checked.
    """

    path: Path
    card: Card
    sha256: str
    files: Mapping[str, str]
    model: bytes = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check the bundle in the folder `path`.

        Raises
        ------
        BundleError
            A file is missing, is there without a sum, or does not match its sum; the card is not valid; or the bundle
            was made for another version of the pixel pipeline, so that its measured figures would not hold.
        """
        contents, sums = _checked_files(path)
        card = _parsed(contents[CARD])
        if card.input.pipeline_version != PIPELINE_VERSION:
            raise BundleError(
                f"{CARD}: made for pixel pipeline {card.input.pipeline_version}, this program has {PIPELINE_VERSION}"
            )
        return cls(
            path=path,
            card=card,
            sha256=_sha256(contents[SUMS]),
            files=sums,
            model=contents[MODEL],
        )

    def accepts(self, header: SourceHeader) -> Reason | None:
        """Return why an image is not one for this model, or None when nothing stated speaks against it.

        Only what is stated is judged: scanners leave Body Part Examined out or empty too often to refuse that, and a
        birth date is not always there. A Secondary Capture often states "OT" (other) as its modality, or none: that
        says no more of where it comes from than its SOP class, and the site has allowed that.
        """
        if self._is_of_other_modality(header):
            return Reason.OTHER_MODALITY
        if self._shows_another_part(header):
            return Reason.OUTSIDE_INTENDED_USE
        ages = self.card.intended_use.ages
        if ages is not None and header.age is not None and not ages.include(header.age):
            return Reason.OUTSIDE_INTENDED_AGE
        return None

    def _is_of_other_modality(self, header: SourceHeader) -> bool:
        accepted = {"", *map(_normal, self.card.image_modalities)}
        if header.sop_class_uid == SECONDARY_CAPTURE_SOP_CLASS:
            accepted.add("OT")
        return _normal(header.modality) not in accepted

    def _shows_another_part(self, header: SourceHeader) -> bool:
        """Judge Body Part Examined and Anatomic Region Sequence, both where both are there.

        Every part named has to be intended, also one in a text that is not understood otherwise: an unknown word does
        not hide a chest. A text that is not understood as a whole is refused where it stands alone, and passed over
        beside one that is: a private code must not refuse what is plainly called a hand.
        """
        intended = frozenset[str]().union(*(_intended(part) for part in self.card.intended_use.body_parts))
        by_text, by_code = body_parts(header.body_part_examined), region_parts(header.anatomic_region)
        if not by_text.understood and _normal(header.body_part_examined) in intended:  # a word of the card's own
            by_text = Parts()
        stated = [parts for parts in (by_text, by_code) if parts != Parts()]
        nothing_understood = stated and not any(parts.understood for parts in stated)
        return bool(nothing_understood) or not by_text.named | by_code.named <= intended


def _intended(part: str) -> frozenset[str]:
    parts = body_parts(part)
    return parts.named if parts.named and parts.understood else frozenset({_normal(part)})


def _normal(value: str) -> str:
    return re.sub(r"[\s_-]", "", value).upper()


_SUM_LINE = re.compile(r"(?P<sum>[0-9a-f]{64}) [ *](?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)")


def _checked_files(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the content of every file in the folder, and the sums against which they were checked.

    Those of SHA256SUMS, as sha256sum writes it.
    """
    sums_content = _content(path, SUMS)
    expected: dict[str, str] = {}
    for line in sums_content.decode("utf-8", errors="replace").splitlines():
        parts = _SUM_LINE.fullmatch(line)
        if parts is None or parts["name"] in expected:
            raise BundleError(f"{SUMS}: a line is not a sum, two spaces and a file name of its own")
        expected[parts["name"]] = parts["sum"]
    for name in (MODEL, CARD):
        if name not in expected:
            raise BundleError(f"{name}: not named in {SUMS}")
    for entry in sorted(path.iterdir()):
        if entry.name not in expected and entry.name != SUMS:
            raise BundleError(f"{entry.name}: not named in {SUMS}")

    contents = {SUMS: sums_content}
    for name, sha256 in expected.items():
        contents[name] = _content(path, name)
        if _sha256(contents[name]) != sha256:
            raise BundleError(f"{name}: does not match {SUMS}")
    return contents, expected


def _content(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{name}: cannot be read ({error.strerror})") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
