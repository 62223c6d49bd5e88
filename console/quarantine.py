"""`osteon quarantine`: what contradicts what is on record, and what a person decides about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.orm import Session

from console.arguments import row_id
from console.person import person
from console.start import open_database, saying_plainly
from dicom_node.changes import IDENTITY, changed
from dicom_node.current import newest_header
from dicom_node.headers import SourceHeader
from dicom_node.quarantine import OTHER_PATIENT
from dicom_node.resolve import CannotResolve, Decision, decisions_for, resolve
from dicom_node.spool import Spool
from models import audit, logs
from models.database import Database
from models.settings import Settings, load_settings
from models.tables import File, FileKind, Image, Quarantine, Resend, Study

app = typer.Typer(
    help="What contradicts what is on record, and what a person decides about it.",
    no_args_is_help=True,
    add_completion=False,
)

_Id = Annotated[int, typer.Argument(parser=row_id, help="The row's number, as `list` shows it.", metavar="ID")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_By = Annotated[str | None, typer.Option(help="Who decides; default: the login name.", metavar="NAME")]


@app.command("list")
def list_rows(
    everything: Annotated[bool, typer.Option("--all", help="Also what is resolved.")] = False, as_json: _Json = False
) -> None:
    """List what waits for a person, oldest first, without patient data."""
    with _opened() as (_, database), database.read() as session:
        rows = listed(session, everything=everything)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("Nothing in quarantine." if everything else "Nothing in quarantine waits for a person.")
        return
    table = Table("ID", "Study", "Study Instance UID", "Reason", "Source", "Received", "Resolved", box=None)
    for row in rows:
        resolved = f"{row['resolution']} by {row['resolved_by']}" if row["resolved"] else "–"
        cells = (row["id"], row["study"], row["study_instance_uid"], row["reason"], row["source"], row["received"])
        table.add_row(*(str(cell) for cell in cells), resolved)
    Console(width=None if Console().is_terminal else 240).print(table, markup=False, highlight=False)


@app.command()
def show(
    number: _Id,
    patient: Annotated[
        bool, typer.Option("--patient", help="Also whose images they are; that you looked is put on record.")
    ] = False,
    as_json: _Json = False,
    by: _By = None,
) -> None:
    """Show one row: the two instances, what differs in their headers, and what can be decided."""
    with _opened() as (settings, database):
        with database.read() as session:
            found = _details(session, settings, number, patient=patient)
        if found is None:
            _fail(f"there is no row {number} in the quarantine")
        if patient:
            who = person(by)
            with database.write() as session:
                audit.viewed(
                    session, actor=who, study_id=found["study"], where="osteon quarantine show", quarantine=number
                )
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for key, value in found.items():
        table.add_row(key.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value or "–"))
    Console(width=None if Console().is_terminal else 240).print(table, markup=False, highlight=False)


@app.command("resolve")
def resolve_row(
    number: _Id,
    decision: Annotated[
        Decision,
        typer.Option(
            "--as",
            help="keep the image on record, or replace it by the newcomer; accept that it is one patient, or exclude "
            "the image from the study's report.",
        ),
    ],
    by: _By = None,
) -> None:
    """Decide about one row. The study goes on when nothing about it is open any more."""
    with _opened() as (settings, database):
        try:
            resolve(database, settings, number, decision, by=person(by))
        except CannotResolve as error:
            _fail(str(error))
    print(f"Row {number} is resolved: {decision.value}.")


@contextmanager
def _opened() -> Iterator[tuple[Settings, Database]]:
    settings = load_settings()
    logs.configure("quarantine", level="error")
    with saying_plainly(), closing(open_database(settings)) as database:
        yield settings, database


def listed(session: Session, *, everything: bool) -> list[dict[str, Any]]:
    """Return what is open, or everything, oldest first."""
    query = select(Quarantine, Study.study_instance_uid).join(Study, Study.id == Quarantine.study_id)
    if not everything:
        query = query.where(Quarantine.resolved_at.is_(None))
    return [_row(row, uid) for row, uid in session.execute(query.order_by(Quarantine.id))]


def _row(row: Quarantine, study_instance_uid: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "study": row.study_id,
        "study_instance_uid": study_instance_uid,
        "reason": row.reason,
        "source": row.calling_ae_title,
        "received": _time(row.received_at),
        "resolved": None if row.resolved_at is None else _time(row.resolved_at),
        "resolution": row.resolution,
        "resolved_by": row.resolved_by,
    }


def _details(session: Session, settings: Settings, number: int, *, patient: bool) -> dict[str, Any] | None:
    row = session.get(Quarantine, number)
    if row is None:
        return None
    study = session.get_one(Study, row.study_id)
    image = session.get_one(Image, row.image_id)
    kept = session.scalars(select(File).where(File.image_id == image.id, File.kind == FileKind.INSTANCE)).first()
    newcomer = None if row.file_id is None else session.get_one(File, row.file_id)
    header, other = _two_headers(session, row, image, study)
    found = _row(row, study.study_instance_uid) | {
        "image": image.id,
        "sop_instance_uid": image.sop_instance_uid,
        "image_received": _time(image.received_at),
        "image_state": image.state.value,
        "image_reason": image.reason,
        "image_file": _path(settings, kept),
        "newcomer_file": _path(settings, newcomer),
        "headers_differ_in": "unknown" if other is None else _differences(row, header, other),
        "can_be_resolved_as": [decision.value for decision in decisions_for(row.reason)],
    }
    if patient:
        found |= {"image_is_of": _person(header)}
        found |= {"study_is_of" if row.reason == OTHER_PATIENT else "newcomer_is_of": other and _person(other)}
    return found


def _two_headers(
    session: Session, row: Quarantine, image: Image, study: Study
) -> tuple[SourceHeader, SourceHeader | None]:
    """Return the image's header, and the one that it contradicts: of the newcomer, or of the study's first image."""
    header = newest_header(session, image)
    if row.reason == OTHER_PATIENT:
        first = session.scalars(
            select(Image)
            .where(Image.study_id == study.id, Image.id != image.id, Image.replaced_at.is_(None))
            .order_by(Image.id)
            .limit(1)
        ).first()
        return header, None if first is None else newest_header(session, first)
    resent = session.scalars(
        select(Resend.header).where(Resend.image_id == image.id, Resend.dataset_sha256 == row.dataset_sha256)
    ).first()
    return header, None if resent is None else SourceHeader.from_json(resent)


def _differences(row: Quarantine, header: SourceHeader, other: SourceHeader) -> list[str]:
    """Return the keywords that differ; of two images of one study only those that say whose it is."""
    return [word for word in changed(header, other) if row.reason != OTHER_PATIENT or word in IDENTITY]


def _person(header: SourceHeader) -> str:
    patient = header.patient
    parts = (patient.name, patient.id, patient.issuer, patient.birth_date, patient.sex, header.study.accession_number)
    return " | ".join(part or "–" for part in parts)


def _path(settings: Settings, file: File | None) -> str | None:
    if file is None or file.removed_at is not None:
        return None
    return str(Spool(settings.data_dir / "spool").where(file.key))


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _fail(why: str) -> NoReturn:
    Console(stderr=True).print(why, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)
