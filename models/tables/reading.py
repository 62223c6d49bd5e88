"""What the model said: released bundles, predictions and their findings, and the tries that came to nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.tables.base import Base, BigId


class ModelVersion(Base):
    """A released bundle that this node has run."""

    __tablename__ = "model_versions"
    __append_only__ = True

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(32))
    bundle_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    files: Mapped[dict[str, str]] = mapped_column(JSON)
    """sha256 of every file of the bundle, by name."""
    card: Mapped[dict[str, Any]] = mapped_column(JSON)
    first_seen_at: Mapped[datetime]


class ModelActivation(Base):
    """From `at` on, this model version was active (its answers are sent), shadow (recorded only), or no shadow more."""

    __tablename__ = "model_activations"
    __append_only__ = True

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"), index=True)
    role: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(16))
    """Why it became active: settings, promoted or rolled_back (`worker.activation`)."""
    at: Mapped[datetime]
    by: Mapped[str] = mapped_column(String(64))


class Prediction(Base):
    """One run of one model version on one image."""

    __tablename__ = "predictions"
    __append_only__ = True
    __table_args__ = (UniqueConstraint("image_id", "model_version_id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"))
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"), index=True)
    role: Mapped[str] = mapped_column(String(16), server_default="active")
    """Of the model version when it read: active, or shadow, whose answers are compared and never sent."""
    input_sha256: Mapped[str] = mapped_column(String(64))
    """Digest of the model input's pixel bytes (row by row, 8 bit)."""
    input_file_id: Mapped[int | None] = mapped_column(ForeignKey("files.id"))
    """The exact model input, lossless, kept as long as the prediction."""
    pixel_sha256: Mapped[str] = mapped_column(String(64))
    pipeline_version: Mapped[int]
    software_version: Mapped[str] = mapped_column(String(32))
    decision: Mapped[str] = mapped_column(String(16))
    """Of the whole image: fracture, no_fracture or undetermined."""
    milliseconds: Mapped[float]
    created_at: Mapped[datetime]
    geometry: Mapped[dict[str, list[float]] | None] = mapped_column(JSON)
    """Where the model looked, as boxes (xmin, ymin, xmax, ymax) in source pixels: `input`, all that the model's input
    covers, its letterbox included; `drawn`, the part of the source in it."""

    findings: Mapped[list[Finding]] = relationship(order_by="Finding.id")
    model_version: Mapped[ModelVersion] = relationship()


class Finding(Base):
    """What a prediction says about one finding."""

    __tablename__ = "findings"
    __append_only__ = True

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    prediction_id: Mapped[int] = mapped_column(ForeignKey("predictions.id"), index=True)
    code_value: Mapped[str] = mapped_column(String(16))
    code_scheme: Mapped[str] = mapped_column(String(16))
    code_meaning: Mapped[str] = mapped_column(String(64))
    logit: Mapped[float]
    probability: Mapped[float]
    """Calibrated, 0 to 1."""
    absent_below: Mapped[float]
    present_from: Mapped[float]
    decision: Mapped[str] = mapped_column(String(16))

    score_map: Mapped[bytes | None] = mapped_column(LargeBinary)
    """The model's map of this finding over its whole input: an 8-bit grey PNG, 0 to 255 for a score of 0 to 1."""

    regions: Mapped[list[Region]] = relationship(order_by="Region.id")


class Region(Base):
    """Where a finding is, in source pixels; the top left corner of the top left pixel is 0, 0 (PS3.3 C.18.6)."""

    __tablename__ = "regions"
    __append_only__ = True

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    finding_id: Mapped[int] = mapped_column(ForeignKey("findings.id"), index=True)
    # Not xmin and xmax: those are PostgreSQL's own, in every table.
    x_min: Mapped[float]
    y_min: Mapped[float]
    x_max: Mapped[float]
    y_max: Mapped[float]
    peak_x: Mapped[float | None]
    peak_y: Mapped[float | None]
    outline: Mapped[list[list[float]] | None] = mapped_column(JSON)


class Attempt(Base):
    """A try at an image or a study that did not end in a prediction or a report."""

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    image_id: Mapped[int | None] = mapped_column(ForeignKey("images.id"), index=True)
    study_id: Mapped[int | None] = mapped_column(ForeignKey("studies.id"), index=True)
    lease_token: Mapped[int] = mapped_column(BigId)
    holder: Mapped[str] = mapped_column(String(128))
    ended_at: Mapped[datetime]
    error: Mapped[str] = mapped_column(Text)
    """The kind of error and where it arose, never its text."""
