"""What counts now: the images that nobody replaced or excluded, each with the newest header that its sender gave it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_node.headers import SourceHeader
from models.tables import HeaderRevision, Image


@dataclass(frozen=True)
class Newest:
    """An image's newest header, and when it came."""

    header: SourceHeader
    received_at: datetime
    revision_id: int
    """0 for the header that the image came with."""


def newest_header(session: Session, image: Image) -> SourceHeader:
    """Return the header of the image's newest revision, or the one that it came with."""
    revised = session.scalars(
        select(HeaderRevision.header)
        .where(HeaderRevision.image_id == image.id)
        .order_by(HeaderRevision.id.desc())
        .limit(1)
    ).first()
    return SourceHeader.from_json(image.header if revised is None else revised)


def newest_headers(session: Session, study_id: int) -> dict[int, Newest]:
    """Return the newest header of every image of a study that counts, by the image's id, in the order they came."""
    images = session.execute(
        select(Image.id, Image.header, Image.received_at)
        .where(Image.study_id == study_id, Image.replaced_at.is_(None))
        .order_by(Image.id)
    )
    found = {id_: Newest(SourceHeader.from_json(header), received_at, 0) for id_, header, received_at in images}
    revisions = session.scalars(
        select(HeaderRevision)
        .join(Image, Image.id == HeaderRevision.image_id)
        .where(Image.study_id == study_id, Image.replaced_at.is_(None))
        .order_by(HeaderRevision.id)
    )
    for revision in revisions:
        header = SourceHeader.from_json(revision.header)
        found[revision.image_id] = Newest(header, revision.received_at, revision.id)
    return found
