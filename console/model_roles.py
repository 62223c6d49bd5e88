"""`osteon model shadow`, `compare`, `promote`, `rollback`: which model reads, and which reads beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from console.bundles import folder_of
from console.person import person
from console.start import failing_plainly, open_database
from models import logs
from models.database import Database
from models.settings import Settings, load_settings
from models.tables import ModelVersion
from worker import activation
from worker.bundle import BundleError
from worker.comparison import Compared, compare, disagreements
from worker.verify import verify

_WORDS = {"fracture": "present", "no_fracture": "absent", "undetermined": "undetermined"}
MOST_SHOWN = 20


def shadow(
    bundle: Annotated[str | None, typer.Argument(help="The folder of a bundle.", metavar="BUNDLE")] = None,
    off: Annotated[bool, typer.Option("--off", help="Let nothing read beside the active model any more.")] = False,
) -> None:
    """Let a second model read every image beside the active one: recorded, compared, never sent.

    The bundle is checked, run once, and copied into the data folder. Reading takes about as much longer as the second
    model needs. Workers take it up within seconds.
    """
    if (bundle is None) != off:
        raise typer.BadParameter("name a bundle, or --off", param_hint="BUNDLE")
    with _changing() as (settings, database):
        if bundle is None:
            version = activation.end_shadow(database, by=person())
            print(f"{_name(database, version)} reads no more")
            return
        found = verify(folder_of(bundle, settings)).bundle
        version = activation.set_shadow(settings, database, found, by=person())
        print(f"{_name(database, version)} reads beside the active model: `osteon model compare` shows what it says")


def promote() -> None:
    """Make the shadow model the active one: from now on its answers are sent. What was sent stays as it is."""
    with _changing() as (settings, database):
        print(f"{_name(database, activation.promote(settings, database, by=person()))} is active")


def rollback() -> None:
    """Make the model active again that was so before the present one."""
    with _changing() as (settings, database):
        print(f"{_name(database, activation.roll_back(settings, database, by=person()))} is active again")


def compare_models(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Compare what the shadow model says with what was sent: decisions and probabilities, on the same images."""
    with _changing() as (_, database), database.read() as session:
        version = activation.shadow_version(session)
        if version is None:
            raise activation.CannotActivate("there is no shadow model")
        found = compare(session, version)
        apart = disagreements(session, version, limit=MOST_SHOWN)
        name = f"{version.name} {version.version}"
    if as_json:
        findings = [{**dataclasses.asdict(one), "images": one.images, "agreement": one.agreement} for one in found]
        keys = ("study", "image", "sent", "shadow")
        print(
            json.dumps(
                {"shadow": name, "findings": findings, "apart": [dict(zip(keys, row, strict=True)) for row in apart]}
            )
        )
        return
    console = Console()
    if not found:
        console.print(f"{escape(name)} has read no image yet.", highlight=False)
    for one in found:
        _print(console, name, one)
    for study, image, sent, said in apart:
        console.print(
            f"image {image} of study {study}: {_WORDS.get(sent, sent)} was sent, the shadow says "
            f"{_WORDS.get(said, said)}",
            highlight=False,
        )


def _print(console: Console, name: str, one: Compared) -> None:
    console.print(
        f"[bold]{escape(one.finding)}[/]: {escape(name)} decides like the active model on {one.agreement:.1%} of "
        f"{one.images} images; probabilities differ by {one.mean_difference:.3f} on average, "
        f"{one.largest_difference:.3f} at most",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("sent")
    for word in _WORDS.values():
        table.add_column(f"shadow: {word}", justify="right")
    counts = {(cell.active, cell.shadow): cell.images for cell in one.cells}
    for active, word in _WORDS.items():
        table.add_row(word, *(str(counts.get((active, beside), 0)) for beside in _WORDS))
    console.print(table)


@contextmanager
def _changing() -> Iterator[tuple[Settings, Database]]:
    """Settings and record, with what goes wrong said in a sentence."""
    settings = load_settings()
    logs.configure("model", level="error")
    with failing_plainly(), closing(open_database(settings)) as database:
        try:
            yield settings, database
        except (activation.CannotActivate, BundleError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None


def _name(database: Database, version_id: int) -> str:
    with database.read() as session:
        version = session.get_one(ModelVersion, version_id)
        return f"{version.name} {version.version} ({version.bundle_sha256[:12]})"
