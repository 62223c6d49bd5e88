"""The tables of the record. Import them from here: `from models.tables import Study, Image`."""

from models.tables.audit import AuditChain, AuditEvent, Review
from models.tables.base import Base, Claimable, Installation
from models.tables.intake import (
    Association,
    File,
    FileKind,
    HeaderRevision,
    Image,
    ImageState,
    Quarantine,
    Resend,
    ResendState,
    Study,
    StudyState,
)
from models.tables.people import User, WebSession
from models.tables.reading import Attempt, Finding, ModelActivation, ModelVersion, Prediction, Region
from models.tables.reporting import (
    Commitment,
    CommitmentRequest,
    CommitmentRequestState,
    Delivery,
    DeliveryAttempt,
    DeliveryState,
    DestinationState,
    Report,
    ReportInput,
)

__all__ = [
    "Association",
    "Attempt",
    "AuditChain",
    "AuditEvent",
    "Base",
    "Claimable",
    "Commitment",
    "CommitmentRequest",
    "CommitmentRequestState",
    "Delivery",
    "DeliveryAttempt",
    "DeliveryState",
    "DestinationState",
    "File",
    "FileKind",
    "Finding",
    "HeaderRevision",
    "Image",
    "ImageState",
    "Installation",
    "ModelActivation",
    "ModelVersion",
    "Prediction",
    "Quarantine",
    "Region",
    "Report",
    "ReportInput",
    "Resend",
    "ResendState",
    "Review",
    "Study",
    "StudyState",
    "User",
    "WebSession",
]
