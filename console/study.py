"""`osteon study`: one study whole, on a terminal or for a program; its objects as files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from sqlalchemy import select
from sqlalchemy.orm import Session

from console.person import person
from console.start import open_database, saying_plainly
from console.studies import person_of, viewed
from console.study_record import find, whole
from console.tables import console, print_fields, print_rows, shown
from dicom_node.objects.tree import render_tree
from models import audit, logs
from models.errors import CannotStart
from models.settings import load_settings
from models.tables import Report

_MAIN = "comprehensive_3d"
_INDENT = 2
_LONG_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


def study(
    which: Annotated[str, typer.Argument(help="The study's number, or its Study Instance UID.", metavar="STUDY")],
    patient: Annotated[
        bool, typer.Option("--patient", help="Also whose it is; that you looked is put on record.")
    ] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Also the newest report as it reads.")] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            metavar="FOLDER",
            help="Write every object that was made of it there, as DICOM files. They hold patient data: it is put on "
            "record.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show one study whole: images, what was found, what was made and sent, and what the audit trail says of it."""
    if not re.fullmatch(r"[0-9.]{1,64}", which):
        raise typer.BadParameter(f"{which!r} is neither a number nor a UID", param_hint="STUDY")
    settings = load_settings()
    logs.configure("study", level="error")
    with saying_plainly(), closing(open_database(settings)) as database:
        with database.read() as session:
            row = find(session, which)
            if row is None:
                raise CannotStart(f"there is no study {which}")
            found = whole(session, row)
            if patient:
                found["patient"] = person_of(row)
            if tree:
                found["tree"] = _tree(session, row.id)
        if patient:
            with database.write() as session:
                viewed(session, [row.id], where="osteon study")
        if export is not None:
            with database.write() as session:
                audit.record(session, actor=person(), action="study.exported", subject="study", subject_id=row.id)
            with database.read() as session:
                found["exported"] = _export(session, row.id, export)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print(console(), found)


def _tree(session: Session, study_id: int) -> list[tuple[int, str]] | None:
    newest = select(Report.content).where(Report.study_id == study_id, Report.kind == _MAIN)
    content = session.scalars(newest.order_by(Report.revision.desc()).limit(1)).first()
    return None if content is None else render_tree(content)


def _export(session: Session, study_id: int, folder: Path) -> list[str]:
    """Write the objects, readable by their owner only; nothing that is there already is replaced."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = []
    objects = select(Report.id, Report.kind, Report.revision).where(Report.study_id == study_id).order_by(Report.id)
    for report_id, kind, revision in session.execute(objects).all():
        # A message is no DICOM file.
        suffix = "hl7" if kind.startswith("hl7") else "dcm"
        path = folder / f"study-{study_id}-{report_id}-{kind}-{revision}.{suffix}"
        content = session.scalars(select(Report.content).where(Report.id == report_id)).one()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        written.append(str(path))
    return written


# --- for a person -----------------------------------------------------------------------------------------------------


def _print(to: Console, found: dict[str, Any]) -> None:
    print_fields(to, f"Study {found['study']['study']} (times in UTC)", found["study"])
    if "patient" in found:
        print_fields(to, "Patient", found["patient"])
    _print_images(to, found)
    objects = [row | {"rests_on": _inputs(row["rests_on"])} for row in found["objects"]]
    print_rows(to, "Objects", objects, without=("sha256", "superseded_sop_instance_uid", "generation"))
    print_rows(to, "Deliveries", found["deliveries"], without=("attempts", "commitments", "created_at"))
    for what in ("attempts", "commitments"):
        rows = [{"delivery": one["delivery"]} | row for one in found["deliveries"] for row in one[what]]
        print_rows(to, f"Delivery {what}" if what == "attempts" else "Storage commitment", rows)
    print_rows(to, "Came again", found["came_again"], without=("dataset_sha256",))
    print_rows(to, "Quarantine", found["quarantine"])
    if "tree" in found:
        _print_tree(to, found["tree"])
    events = [event | {"details": _LONG_DIGEST.sub(r"\1…", shown(event["details"]))} for event in found["events"]]
    print_rows(to, "Audit trail", events)
    if found["more_events"]:
        to.print("Older events are not shown.")
    for path in found.get("exported", ()):
        to.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


def _print_images(to: Console, found: dict[str, Any]) -> None:
    images = found["images"]
    of_each = (
        "sop_class",
        "modality",
        "body_part",
        "view",
        "laterality",
        "received",
        "from",
        "state",
        "reason",
        "unusable",
    )
    rows = [
        {"image": image["image"]}
        | {key: image[key] for key in of_each}
        | {
            "replaced": image["replaced_at"],
            "file": _file(image["file"]),
            "sop_instance_uid": image["sop_instance_uid"],
        }
        for image in images
    ]
    print_rows(to, "Images", rows)
    readings = [
        {
            "image": image["image"],
            "prediction": prediction["prediction"],
            "finding": finding["finding"],
            "decision": finding["decision"],
            "probability": f"{finding['probability']:.1%}",
            "absent_below": f"{finding['absent_below']:.1%}",
            "present_from": f"{finding['present_from']:.1%}",
            # Where a map is highest is no finding by itself.
            "region": _boxes(finding["regions"]) if finding["decision"] == "fracture" else None,
            "model": prediction["model"],
            "role": prediction["role"],
            "milliseconds": prediction["milliseconds"],
            "made_at": prediction["made_at"],
        }
        for image in images
        for prediction in image["predictions"]
        for finding in prediction["findings"]
    ]
    print_rows(to, "Readings", readings)
    print_rows(to, "Models", found["models"])
    failed = [{"image": image["image"]} | attempt for image in images for attempt in image["failed_attempts"]]
    print_rows(to, "Failed attempts", failed)


def _print_tree(to: Console, tree: Sequence[tuple[int, str]] | None) -> None:
    to.print("[bold]Report[/]")
    if tree is None:
        to.print("There is none yet.")
    for depth, line in tree or ():
        to.print(" " * (_INDENT * depth) + line, markup=False, highlight=False, soft_wrap=True)


def _inputs(inputs: list[dict[str, Any]]) -> str:
    return ", ".join(f"image {one['image']}" + (f" ({one['reason']})" if one["reason"] else "") for one in inputs)


def _boxes(regions: list[dict[str, Any]]) -> str:
    return ", ".join("({:.0f}, {:.0f})–({:.0f}, {:.0f})".format(*region["box"]) for region in regions)


def _file(file: dict[str, Any] | None) -> str:
    if file is None:
        return "none"
    if file["removed_at"]:
        return f"removed {shown(file['removed_at'])}"
    return f"missing since {shown(file['missing_at'])}" if file["missing_at"] else f"{file['size']} bytes"
