"""`osteon audit`: who did what, whether that is still as it was recorded, and a copy of it for elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from console.person import person
from console.start import failing_plainly, open_database
from models import audit, logs
from models.audit_check import KEY_CREATED, Verdict, check
from models.audit_export import ExportVerdict, Made, NotAnExport, check_export
from models.audit_export import export as export_events
from models.audit_heads import head_files, heads_folder, newest, read_heads
from models.audit_records import Compared, check_records
from models.audit_search import Entry, Position, Search, search, study_of
from models.database import Database
from models.errors import CannotStart
from models.settings import Settings, load_settings
from models.signing import PublicKey, known_keys, private_path, read_public_key, rotate, signing_key
from models.tables import AuditEvent

app = typer.Typer(help="Who did what, and whether the record of it stands.", no_args_is_help=True, add_completion=False)

WIDTH = 240

_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_By = Annotated[str | None, typer.Option(help="Who does it; default: the login name.", metavar="NAME")]
_Since = Annotated[
    str | None, typer.Option("--from", help="From this time on: a day, or a day and a time (UTC).", metavar="TIME")
]
_Before = Annotated[
    str | None, typer.Option("--to", help="Up to this time; of a day, to its end (UTC).", metavar="TIME")
]
_Study = Annotated[
    str | None, typer.Option(help="Of one study: its Study Instance UID, or its number.", metavar="STUDY")
]


@app.command("list")
def list_events(
    actor: Annotated[
        str | None,
        typer.Option(
            "--by", help="By this person or part of the node; `worker@*` for all that begin so.", metavar="NAME"
        ),
    ] = None,
    study: _Study = None,
    since: _Since = None,
    before: _Before = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Of this kind: `image.analysed`; `report.*` for all that begin so.", metavar="KIND"),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="About this: `delivery` for all deliveries, `delivery:12` for one.", metavar="WHAT"),
    ] = None,
    after: Annotated[int | None, typer.Option(help="Go on behind this event: the next page.", metavar="EVENT")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="List no more than so many.")] = 50,
    as_json: _Json = False,
) -> None:
    """List what was done, newest first, without patient data."""
    with _opened() as (_, database), database.read() as session:
        about, number = _subject(subject)
        wanted = Search(
            actor=actor,
            action=kind,
            study_id=_study(session, study),
            subject=about,
            subject_id=number,
            since=_moment(since, "--from"),
            before=_moment(before, "--to", end=True),
        )
        page = search(session, wanted, after=_position(session, after), size=limit)
    rows = [_row(entry) for entry in page.entries]
    following = None if page.following is None else page.following.event_id
    if as_json:
        print(json.dumps({"events": rows, "following": following}, indent=2))
        return
    if not rows:
        print("No such event.")
        return
    table = Table("Event", "Time (UTC)", "Who", "What", "About", "Details", "Place", box=None)
    for row in rows:
        details = ", ".join(f"{key} {value}" for key, value in row["details"].items() if value is not None)
        about = row["subject"] + ("" if row["subject_id"] is None else f" {row['subject_id']}")
        at = row["at"][:19].replace("T", " ")
        table.add_row(str(row["id"]), at, row["actor"], row["action"], about, details, str(row["place"] or "–"))
    _console().print(table, markup=False, highlight=False)
    if following is not None:
        print(f"More: --after {following}")


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(help="An export; default: the whole trail in the database.", metavar="FILE")
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="Trust this public key alone, from `osteon audit key` (repeatable).", metavar="FILE"),
    ] = None,
    heads: Annotated[
        list[Path] | None,
        typer.Option(
            help="Signed heads kept elsewhere: a copy of the folder or a log (repeatable). Default: the data folder's.",
            metavar="PATH",
        ),
    ] = None,
    records: Annotated[
        bool, typer.Option("--records", help="Also compare every prediction and report with what its event says of it.")
    ] = False,
    progress: Annotated[bool, typer.Option("--progress", help="Say on standard error how far it is.")] = False,
    as_json: _Json = False,
) -> None:
    """Check the audit trail, or an export of it on any machine, without database and settings.

    Exit status 0 if all is as it was recorded, 1 if not, 2 if it cannot be checked.
    """
    try:
        keys = {found.id: found for found in map(read_public_key, key or ())}
        if file is not None:
            _verify_file(file, keys, as_json=as_json)
        else:
            _verify_database(keys, heads, records=records, progress=progress, as_json=as_json)
    except (CannotStart, NotAnExport) as error:
        _fail(f"Cannot be checked: {error}", status=2)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The file to make; it must not be there.", metavar="FILE")],
    since: _Since = None,
    before: _Before = None,
    study: _Study = None,
    by: _By = None,
    as_json: _Json = False,
) -> None:
    """Write audit events into a signed file that `osteon audit verify FILE` checks anywhere; that is an event too."""
    with _opened() as (settings, database):
        with database.read() as session:
            wanted = Search(
                study_id=_study(session, study),
                since=_moment(since, "--from"),
                before=_moment(before, "--to", end=True),
            )
        who = person(by)
        signing = signing_key(settings)
        if signing.created:
            _record_key(database, who, KEY_CREATED, key=signing.public.id, used_for="export")

        def record(made: Made) -> None:
            with database.write() as session:
                audit.record(
                    session,
                    actor=who,
                    action="audit.exported",
                    subject="study" if wanted.study_id else "audit",
                    subject_id=wanted.study_id,
                    sha256=made.sha256,
                    events=made.events,
                    since=wanted.since.isoformat() if wanted.since else None,
                    before=wanted.before.isoformat() if wanted.before else None,
                    key=made.key,
                )

        head = newest(heads_folder(settings), known_keys(settings))
        try:
            made = export_events(database, file, wanted, by=who, key=signing, head=head, record=record)
        except OSError as error:
            _fail(f"{file}: not written ({error.strerror or error})", status=1)
    if as_json:
        print(json.dumps({"file": str(file), "events": made.events, "sha256": made.sha256, "key": made.key}))
    else:
        print(f"{file}: {made.events} event{'' if made.events == 1 else 's'}, sha256 {made.sha256}, key {made.key}")


@app.command("key")
def show_key(
    new: Annotated[
        bool, typer.Option("--rotate", help="Sign with a new key from now on; old ones stay known.")
    ] = False,
    by: _By = None,
    as_json: _Json = False,
) -> None:
    """Print the public key that heads and exports are signed with; keep it where this node cannot reach it."""
    with _opened() as (settings, database):
        if new:
            who = person(by)
            old, signing = rotate(settings)
            _record_key(database, who, "audit.key_rotated", key=signing.public.id, replaces=old)
        else:
            signing = signing_key(settings)
            if signing.created:
                _record_key(database, person(by), KEY_CREATED, key=signing.public.id, used_for="key")
        others = sorted(set(known_keys(settings)) - {signing.public.id})
    if as_json:
        found = {"key": signing.public.id, "public_key": signing.public.pem, "others": others}
        print(json.dumps(found | {"private_key": str(private_path(settings))}, indent=2))
        return
    print(signing.public.pem, end="")
    # Not into the file that the key is kept in.
    said = "".join(f"before {old}\n" for old in others)
    typer.echo(f"key {signing.public.id}\n{said}", err=True, nl=False)


# --- checking ---------------------------------------------------------------------------------------------------------


def _verify_file(file: Path, keys: dict[str, PublicKey], *, as_json: bool) -> None:
    if len(keys) > 1:
        raise typer.BadParameter("a file is signed with one key", param_hint="--key")
    verdict = check_export(file, next(iter(keys.values()), None))
    if as_json:
        _print_export_as_json(verdict)
    elif verdict.well:
        print(f"{file}: {verdict.events} events as they were exported, signed with the key {verdict.key}")
        if not keys:
            print(
                "The key came with the file: compare it with what `osteon audit key` says there, or give it with --key."
            )
    else:
        _print_faults(verdict.faults, verdict.more_faults)
    if not verdict.well:
        raise typer.Exit(1)


def _verify_database(
    keys: dict[str, PublicKey], heads: list[Path] | None, *, records: bool, progress: bool, as_json: bool
) -> None:
    compared: Compared | None = None
    try:
        with _opened() as (settings, database):
            folders = heads or [heads_folder(settings)]
            files = [file for place in folders for file in (head_files(place) if place.is_dir() else [place])]
            missing = [place for place in heads or () if not place.exists()]
            if missing:
                _fail(f"{missing[0]}: there is no such file or folder", status=2)
            where = ", ".join(map(str, folders))
            existing = [file for file in files if file.exists()]
            tell = _tell if progress else None
            verdict = check(database, read_heads(existing), keys or known_keys(settings), where=where, progress=tell)
            if records:
                compared = check_records(database, verdict)
    except typer.Exit:
        raise typer.Exit(2) from None
    if as_json:
        _print_as_json(verdict, compared)
    else:
        _print_verdict(verdict, compared)
    if not verdict.well:
        raise typer.Exit(1)


def _tell(done: int, of: int) -> None:
    print(f"checked {done} of {of}", file=sys.stderr, flush=True)


def _print_verdict(verdict: Verdict, compared: Compared | None) -> None:
    print(f"{verdict.events} events, {verdict.places} places in the chain, {verdict.heads} signed heads")
    if verdict.unchained:
        print(f"{verdict.unchained} event{' has' if verdict.unchained == 1 else 's have'} no place in the chain yet")
    if verdict.signed_to:
        print(f"signed to place {verdict.signed_to}, at {verdict.signed_at}")
    if compared is not None:
        print(f"compared with their events: {compared.predictions} predictions, {compared.reports} reports")
    for note in verdict.notes:
        print(f"note: {note}")
    if verdict.well:
        print("All is as it was recorded.")
    else:
        _print_faults([fault.what for fault in verdict.faults], verdict.more_faults)


def _print_faults(faults: list[str], more: int) -> None:
    for what in faults:
        print(f"BROKEN: {what}")
    if more:
        print(f"… and {more} more")


def _print_as_json(verdict: Verdict, compared: Compared | None) -> None:
    found: dict[str, Any] = {
        "well": verdict.well,
        "events": verdict.events,
        "places": verdict.places,
        "unchained": verdict.unchained,
        "heads": verdict.heads,
        "signed_to": verdict.signed_to,
        "signed_at": verdict.signed_at,
        "faults": [{"what": fault.what, "place": fault.place, "event": fault.event_id} for fault in verdict.faults],
        "more_faults": verdict.more_faults,
        "notes": verdict.notes,
        "compared": None if compared is None else asdict(compared),
    }
    print(json.dumps(found, indent=2))


def _print_export_as_json(verdict: ExportVerdict) -> None:
    found: dict[str, Any] = {
        "well": verdict.well,
        "events": verdict.events,
        "key": verdict.key,
        "header": verdict.header,
        "faults": verdict.faults,
        "more_faults": verdict.more_faults,
    }
    print(json.dumps(found, indent=2))


# --- what is asked for ------------------------------------------------------------------------------------------------


@contextmanager
def _opened() -> Iterator[tuple[Settings, Database]]:
    settings = load_settings()
    logs.configure("audit", level="error")
    with failing_plainly(), closing(open_database(settings)) as database:
        yield settings, database


def _study(session: Session, named: str | None) -> int | None:
    if named is None:
        return None
    found = study_of(session, named)
    if found is None:
        _fail(f"there is no study {named}", status=1)
    return found


def _position(session: Session, event_id: int | None) -> Position | None:
    if event_id is None:
        return None
    event = session.get(AuditEvent, event_id)
    if event is None:
        _fail(f"there is no event {event_id}", status=1)
    return Position(event.at, event.id)


def _subject(named: str | None) -> tuple[str | None, int | None]:
    if named is None:
        return None, None
    kind, _, number = named.partition(":")
    if number and not (number.isascii() and number.isdigit() and len(number) < 19):
        raise typer.BadParameter("`delivery` or `delivery:12`", param_hint="--subject")
    return kind, int(number) if number else None


def _moment(text: str | None, option: str, *, end: bool = False) -> datetime | None:
    """Return a time in UTC; of a day its beginning, or where its end is asked for, that of the next."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("a day (2026-01-31) or a time (2026-01-31T12:00)", param_hint=option) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment + timedelta(days=1) if end and len(text) <= len("2026-01-31") else moment


def _row(entry: Entry) -> dict[str, Any]:
    event = entry.event
    return {
        "id": event.id,
        "at": event.at.isoformat(),
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
        "subject_id": event.subject_id,
        "details": event.details,
        "place": entry.place,
    }


def _record_key(database: Database, who: str, action: str, **details: str) -> None:
    with database.write() as session:
        audit.record(session, actor=who, action=action, subject="signing_key", subject_id=None, **details)


def _console() -> Console:
    return Console(width=None if Console().is_terminal else WIDTH)


def _fail(why: str, *, status: int) -> NoReturn:
    Console(stderr=True).print(why, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(status)
