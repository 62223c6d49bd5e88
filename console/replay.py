"""`osteon replay`: does a stored prediction come out again?"""

from __future__ import annotations

import json
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from console.person import person
from console.start import failing_plainly, open_database
from dicom_node.spool import Spool
from models import logs
from models.audit_search import study_of
from models.database import Database
from models.settings import load_settings
from worker.replay import Outcome, Replay, Replayer, Source, of_study, sample


class _From(StrEnum):
    INPUT = "input"
    FILE = "file"
    BOTH = "both"


def replay(
    predictions: Annotated[
        list[int] | None, typer.Argument(help="Predictions, by their numbers.", metavar="PREDICTION")
    ] = None,
    drawn: Annotated[int | None, typer.Option("--sample", min=1, help="So many, drawn at random.", metavar="N")] = None,
    study: Annotated[
        str | None, typer.Option(help="All of a study: its Study Instance UID, or its number.", metavar="STUDY")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Where the bundle lies; default: looked for here.", metavar="FOLDER")
    ] = None,
    source: Annotated[
        _From, typer.Option("--from", help="The kept exact input, the received file, or both where they are there.")
    ] = _From.BOTH,
    by: Annotated[str | None, typer.Option(help="Who does it; default: the login name.", metavar="NAME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run stored predictions again, from the stored image and the same bundle, and say what differs. That is audited.

    Exit status 0 if all come out the same, 1 if one differs, 2 if one cannot be run.
    """
    if sum((bool(predictions), drawn is not None, study is not None)) != 1:
        raise typer.BadParameter("name predictions, or --sample, or --study", param_hint="PREDICTION…")
    sources = tuple(Source) if source is _From.BOTH else (Source(source.value),)
    settings = load_settings()
    logs.configure("replay", level="error")
    who = person(by)
    found: list[Replay] = []
    try:
        with failing_plainly(), closing(open_database(settings)) as database:
            wanted = predictions or _chosen(database, drawn, study)
            spool = Spool(settings.data_dir / "spool")
            replayer = Replayer(settings, database, spool, actor=who, bundle=bundle)
            for number in wanted:
                found.append(replayer.replay(number, sources))
                if not as_json:
                    _print(found[-1])
    except LookupError as error:
        _fail(str(error))
    except typer.Exit:
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps({"replays": [_as_json(one) for one in found]}, indent=2))
    elif len(found) != 1:
        counts = ", ".join(f"{sum(one.outcome is outcome for one in found)} {outcome}" for outcome in Outcome)
        print(f"{len(found)} predictions: {counts}")
    outcomes = {one.outcome for one in found}
    if Outcome.DIFFERS in outcomes:
        raise typer.Exit(1)
    if Outcome.IMPOSSIBLE in outcomes:
        raise typer.Exit(2)


def _chosen(database: Database, drawn: int | None, study: str | None) -> list[int]:
    with database.read() as session:
        if drawn is not None:
            return sample(session, drawn)
        study_id = study_of(session, study or "")
        if study_id is None:
            raise LookupError(f"there is no study {study}")
        return of_study(session, study_id)


def _print(found: Replay) -> None:
    sources = " and the ".join({Source.INPUT: "kept input", Source.FILE: "received file"}[one] for one in found.ran)
    said = {
        Outcome.SAME: f"the same, from the {sources}",
        Outcome.DIFFERS: "DIFFERS",
        Outcome.IMPOSSIBLE: "cannot be run again",
    }
    print(f"prediction {found.prediction}: {said[found.outcome]}")
    for difference in found.differences:
        print(f"  {difference.source}: {difference.what}: recorded {difference.recorded}, now {difference.found}")
    for why in found.why:
        print(f"  {why}")
    for line in dict.fromkeys(found.compared):
        print(f"  {line}")


def _as_json(found: Replay) -> dict[str, Any]:
    return {
        "prediction": found.prediction,
        "outcome": found.outcome.value,
        "ran_from": [source.value for source in found.ran],
        "bundle": found.bundle,
        "differences": [
            {"from": one.source.value, "what": one.what, "recorded": one.recorded, "now": one.found}
            for one in found.differences
        ],
        "notes": found.why,
        "compared": found.compared,
    }


def _fail(why: str) -> NoReturn:
    typer.echo(why, err=True)
    raise typer.Exit(2)
