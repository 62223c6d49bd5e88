"""`osteon studies`: the worklist on a terminal, newest first, found as `models.worklist` finds them.

Whose studies they are is shown with --patient only, and then it is on record who looked. That somebody looked for a
patient's studies is on record too: the answer says whose they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from sqlalchemy.orm import Session

from console.arguments import row_id
from console.completion import source_titles
from console.person import person
from console.start import open_database, saying_plainly
from console.tables import console, moment, print_rows
from models import audit, logs
from models.settings import load_settings
from models.tables import Study, StudyState
from models.worklist import MOST_A_PAGE, Entry, Position, Search, worklist


class Decided(StrEnum):
    """What a report says of a study."""

    FRACTURE = "fracture"
    NO_FRACTURE = "no_fracture"
    UNDETERMINED = "undetermined"


_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]


def studies(
    patient_id: Annotated[
        str | None, typer.Option(help="Only this patient's, by ID; that you looked is put on record.", metavar="ID")
    ] = None,
    accession: Annotated[
        str | None, typer.Option(help="Only of this accession number; put on record too.", metavar="NUMBER")
    ] = None,
    date: Annotated[
        str | None, typer.Option(help="Only of this Study Date, by the sender's clock.", metavar="YYYY-MM-DD")
    ] = None,
    calling: Annotated[
        str | None, typer.Option(help="Only of this calling AE title.", metavar="AET", autocompletion=source_titles)
    ] = None,
    decision: Annotated[Decided | None, typer.Option(help="Only where the newest report says this.")] = None,
    state: Annotated[StudyState | None, typer.Option(help="Only in this state.")] = None,
    received_from: Annotated[
        datetime | None,
        typer.Option(
            "--from", formats=_TIMES, metavar="TIME", help="Only those whose first image came then or later …"
        ),
    ] = None,
    received_before: Annotated[
        datetime | None,
        typer.Option("--before", formats=_TIMES, metavar="TIME", help="… and those whose first came earlier (UTC)."),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(parser=row_id, help="Begin behind this study, where the last page ended.", metavar="STUDY"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_A_PAGE, help="So many a page.")] = 50,
    patient: Annotated[
        bool, typer.Option("--patient", help="Also whose they are; that you looked is put on record.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List studies, the newest first, without patient data unless asked; one page at a time."""
    search = Search(
        patient_id=patient_id,
        accession_number=accession,
        study_date=None if date is None else study_date(date),
        calling_ae_title=calling,
        decision=decision,
        state=state,
        received_from=None if received_from is None else received_from.replace(tzinfo=UTC),
        received_before=None if received_before is None else received_before.replace(tzinfo=UTC),
    )
    settings = load_settings()
    logs.configure("studies", level="error")
    with saying_plainly(), closing(open_database(settings)) as database:
        with database.read() as session:
            page = worklist(session, search, after=_position(session, after), size=limit)
        rows = [listed(entry, patient=patient) for entry in page.entries]
        if patient or patient_id is not None or accession is not None:
            with database.write() as session:
                viewed(session, [row["study"] for row in rows], where="osteon studies")
    following = None if page.following is None else page.following.study_id
    if as_json:
        print(json.dumps({"studies": rows, "following": following}, indent=2, ensure_ascii=False))
        return
    to = console()
    if not rows:
        to.print("No such study.")
    print_rows(to, "Studies (times in UTC)", rows, without=("study_instance_uid", "generation"))
    if following is not None:
        to.print(f"More follow: the same command with --after {following}", highlight=False)


def viewed(session: Session, studies: Sequence[int], *, where: str) -> None:
    """Put on record that whoever runs this saw whose studies these are, or looked for a patient who has none here."""
    who = person()
    for study_id in studies:
        audit.viewed(session, actor=who, study_id=study_id, where=where)
    if not studies:
        audit.record(session, actor=who, action=audit.VIEWED, subject="study", subject_id=None, where=where)


def listed(entry: Entry, *, patient: bool) -> dict[str, Any]:
    """Return a study of the worklist for a program."""
    study = entry.study
    found: dict[str, Any] = {
        "study": study.id,
        "study_instance_uid": study.study_instance_uid,
        "first_image": moment(study.first_image_at),
        "source": study.calling_ae_title,
        "study_date": study.study_date,
        "urgent": study.urgent,
        "state": study.state.value,
        "reason": study.reason,
        "decision": study.decision,
        "images": entry.images,
        "waiting": entry.waiting,
        "generation": study.generation,
    }
    return found | (person_of(study) if patient else {})


def person_of(study: Study) -> dict[str, str]:
    """Return whose study it is, and what its source calls it."""
    return {
        "patient_name": study.patient_name,
        "patient_id": study.patient_id,
        "issuer_of_patient_id": study.issuer_of_patient_id,
        "birth_date": study.patient_birth_date,
        "sex": study.patient_sex,
        "accession_number": study.accession_number,
        "description": study.study_description,
    }


def study_date(text: str) -> str:
    """Read a day, written YYYY-MM-DD or as DICOM does."""
    plain = text.strip()
    if re.fullmatch(r"\d{4}-\d\d-\d\d|\d{8}", plain):
        plain = plain.replace("-", "")
        try:
            datetime.strptime(plain, "%Y%m%d").replace(tzinfo=UTC)
        except ValueError:
            plain = ""
        if plain:
            return plain
    raise typer.BadParameter(f"{text!r} is no day such as 2026-03-31", param_hint="--date")


def _position(session: Session, after: int | None) -> Position | None:
    if after is None:
        return None
    study = session.get(Study, after)
    if study is None:
        raise typer.BadParameter(f"there is no study {after}", param_hint="--after")
    return Position(study.first_image_at, study.id)
