"""`osteon model`: which models are here, what is known of each, and whether one can be used; see also `model_roles`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from console import model_roles
from console.bundles import folder_of
from console.completion import bundle_names
from models import logs
from models.database import Database, DatabaseNotUpgraded, database_url
from models.settings import Settings, load_settings
from models.tables import ModelActivation, ModelVersion
from worker.activation import NO_SHADOW, SHADOW, active_version, shadow_version
from worker.bundle import Bundle, BundleError, Card, Gate, Metric, Metrics, default_bundle_path
from worker.verify import verify as verify_bundle

app = typer.Typer(
    help="The models: which are here, what is known of each, and which reads.",
    no_args_is_help=True,
    add_completion=False,
)

app.command("shadow")(model_roles.shadow)
app.command("compare")(model_roles.compare_models)
app.command("promote")(model_roles.promote)
app.command("rollback")(model_roles.rollback)

_SHORT = 12
"""As many digits of a sha256 as are shown where the whole would be in the way."""

_BUNDLE = "A bundle's folder, or the name of one that is shipped{}; default: the one in force."
_Shown = Annotated[
    str | None,
    typer.Argument(
        help=_BUNDLE.format(", or the first digits of a sha256 on record"),
        metavar="BUNDLE",
        autocompletion=bundle_names,
    ),
]
_Verified = Annotated[
    str | None, typer.Argument(help=_BUNDLE.format(""), metavar="BUNDLE", autocompletion=bundle_names)
]


@app.command("list")
def list_models() -> None:
    """List the bundles that are shipped, in force or on record, with their size of input and AUC."""
    settings = load_settings()
    logs.configure("model", level="error")
    console = Console()
    record, trouble = _on_record(settings)
    rows: dict[str, _Row] = {}
    faults = []
    for path in _here(settings):
        try:
            bundle = Bundle.load(path)
        except BundleError as error:
            faults.append(f"{path}: {error}")
        else:
            row = rows.setdefault(bundle.sha256, _Row(f"{bundle.card.name} {bundle.card.version}", bundle.card))
            row.status += _status(path, settings)
    for known in record:
        row = rows.setdefault(known.sha256, _Row(known.name, known.card))
        row.status.append(f"{known.standing} {known.at:%Y-%m-%d}")
    table = _table("Bundle", "sha256", "Input", "AUC", "Status")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for sha256, row in rows.items():
        auc = row.card and row.card.metrics.values.get("auc")
        table.add_row(
            escape(row.name),
            sha256[:_SHORT],
            f"{row.card.input.rows}×{row.card.input.columns}" if row.card else "–",
            _with_interval(auc) if auc else "–",
            ", ".join(row.status),
        )
    console.print(table)
    for fault in faults:
        console.print(f"[red]Cannot be used:[/] {escape(fault)}", highlight=False, soft_wrap=True)
    if trouble:
        console.print(f"[yellow]Note:[/] {escape(trouble)}", highlight=False)


@app.command()
def show(which: _Shown = None) -> None:
    """Show a model's card: what it is for, its limits, how well it does, and what it was trained on."""
    settings = load_settings()
    logs.configure("model", level="error")
    console = Console()
    try:
        card, sha256 = _find(which, settings)
    except BundleError as error:
        _fail(error)
    _heading(console, card, sha256)
    _use(console, card)
    _findings(console, card)
    _measured(console, "Measured", card.metrics)
    if card.cross_validation is not None:
        _measured(console, "Measured across the folds", card.cross_validation)
    if card.gate is not None:
        _gate(console, card.gate)
    if card.comparison:
        _comparison(console, card)
    _training(console, card)


@app.command()
def verify(which: _Verified = None) -> None:
    """Check a bundle's sums and card, load its model, and run it on a drawn limb and on an empty image.

    Exit status 0 when it can be used, 1 with the file and its fault when not. Compare the sha256 with the one that was
    published, and with the one in a report: it names every file of the bundle.
    """
    settings = load_settings()
    logs.configure("model", level="error")
    path = folder_of(which, settings)
    try:
        found = verify_bundle(path)
    except BundleError as error:
        _fail(f"{path}: {error}")
    card = found.bundle.card
    outputs = "logits" + (", map" if card.heatmap else "") + (", distance" if card.gate else "")
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_row("bundle", escape(f"{card.name} {card.version}, {path}"))
    table.add_row(
        "files", f"{len(found.bundle.files)} match their sums: {escape(', '.join(sorted(found.bundle.files)))}"
    )
    table.add_row("card", f"valid, for pixel pipeline {card.input.pipeline_version}, which is this version's")
    table.add_row("model", f"loads; a drawn limb and an empty image give finite {outputs}")
    table.add_row("time", f"{found.empty.milliseconds:.1f} ms an image on one core")
    console.print(table, highlight=False)
    console.print(f"sha256  {found.bundle.sha256}", highlight=False, soft_wrap=True)


# --- which bundles there are ------------------------------------------------------------------------------------------


@dataclass
class _Row:
    name: str
    card: Card | None
    status: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Known:
    """A bundle that this node has run; without a card where that is one of another version of this program."""

    name: str
    sha256: str
    card: Card | None
    at: datetime
    standing: str


def _here(settings: Settings) -> list[Path]:
    """Return the folders of the bundles that are shipped, and of the one in force where it is another."""
    default = default_bundle_path()
    found = sorted(folder for folder in default.parent.iterdir() if folder.is_dir())
    if settings.model_bundle is not None and settings.model_bundle.resolve() not in found:
        found.append(settings.model_bundle)
    return found


def _status(path: Path, settings: Settings) -> list[str]:
    default = default_bundle_path()
    is_shipped = path.parent == default.parent
    in_force = path.resolve() == (settings.model_bundle or default).resolve()
    marks = {"shipped": is_shipped, "default": path == default, "in force": in_force}
    return [mark for mark, holds in marks.items() if holds]


def _on_record(settings: Settings) -> tuple[list[_Known], str | None]:
    """Return the bundles on record, by when they were activated last, or why the record was not read."""
    url = database_url(settings)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return [], "there is no record yet: no worker has run here."
    database = Database(url)
    try:
        database.require_upgraded()
        with database.read() as session:
            rows = session.execute(
                select(ModelActivation.at, ModelActivation.role, ModelVersion)
                .join(ModelVersion, ModelVersion.id == ModelActivation.model_version_id)
                .where(ModelActivation.role != NO_SHADOW)
                .order_by(ModelActivation.id.desc())
            ).all()
            active, shadow = active_version(session), shadow_version(session)
    except DatabaseNotUpgraded as error:
        return [], f"the record was not read: {error}."
    except SQLAlchemyError as error:
        return [], f"the record was not read: no answer ({type(error).__name__})."
    finally:
        database.close()
    found: dict[str, _Known] = {}
    for at, role, version in rows:
        name, sha256 = f"{version.name} {version.version}", version.bundle_sha256
        in_force = version is (shadow if role == SHADOW else active)
        past = "was a shadow since" if role == SHADOW else "activated"
        standing = f"{role} since" if in_force else past
        found.setdefault(sha256, _Known(name, sha256, _card(version), at, standing))
    return list(found.values()), None


def _card(version: ModelVersion) -> Card | None:
    try:
        return Card.model_validate_json(json.dumps(version.card))
    except ValidationError:
        return None


def _find(which: str | None, settings: Settings) -> tuple[Card, str]:
    """Return card and sha256 of a bundle, from its folder or from the record. Raises BundleError."""
    folder = folder_of(which, settings)
    if which is None or folder.is_dir():
        bundle = Bundle.load(folder)
        return bundle.card, bundle.sha256
    known, trouble = _on_record(settings)
    alike = [one for one in known if one.sha256.startswith(which.lower())]
    if len(alike) == 1 and alike[0].card is not None:
        return alike[0].card, alike[0].sha256
    if alike:
        raise BundleError(f"{which}: {'begins several sums' if len(alike) > 1 else 'its card is of another version'}")
    shipped = ", ".join(path.name for path in _here(settings))
    raise BundleError(f"{which}: no folder, no bundle that is shipped ({shipped}), and none on record. {trouble or ''}")


def _fail(error: BundleError | str) -> NoReturn:
    Console(stderr=True).print(f"[bold red]Cannot be used:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


# --- the card in a terminal -------------------------------------------------------------------------------------------


def _heading(console: Console, card: Card, sha256: str) -> None:
    console.print(f"[bold]{card.name} {card.version}[/]", highlight=False)
    _pairs(
        console,
        {
            "sha256": sha256,
            "made": f"{card.created:%Y-%m-%d %H:%M} UTC",
            "input": f"{card.input.rows} × {card.input.columns} pixels, pixel pipeline {card.input.pipeline_version}",
            "heatmap": _heatmap(card),
            "software": ", ".join(f"{name} {version}" for name, version in card.software.items()),
        },
    )


def _heatmap(card: Card) -> str:
    if card.heatmap is None:
        return "none: it does not say where"
    return f"{card.heatmap.rows} × {card.heatmap.columns} cells, region from {card.heatmap.region_share:g} of the peak"


def _use(console: Console, card: Card) -> None:
    use = card.intended_use
    _title(console, "What for")
    _paragraph(console, use.statement)
    ages = "not stated"
    if use.ages is not None:
        until = "" if use.ages.to_years is None else f" to {use.ages.to_years:g}"
        ages = f"from {use.ages.from_years:g}{until} years"
    images = ", ".join(card.image_modalities)
    _pairs(console, {"modalities": images, "body parts": ", ".join(use.body_parts), "ages": ages})
    _title(console, "Limits")
    for limit in use.limits:
        _paragraph(console, limit, bullet=True)


def _findings(console: Console, card: Card) -> None:
    _title(console, "Findings")
    table = _table("Finding", "Code", "Absent below", "Present from", "Calibration")
    for finding in card.findings:
        points, code = finding.operating_points, finding.code
        calibration = finding.calibration
        parameters = [f"{name} {_number(value)}" for name, value in calibration.parameters.model_dump().items()]
        table.add_row(
            escape(code.meaning),
            escape(f"{code.value} {code.scheme}"),
            _number(points.absent_below),
            _number(points.present_from),
            f"{calibration.method}: {', '.join(parameters)}" if len(parameters) > 1 else parameters[0],
        )
    _put(console, table)


def _measured(console: Console, title: str, metrics: Metrics) -> None:
    _title(console, title)
    _paragraph(console, metrics.dataset)
    counts = f"{metrics.images} images, {metrics.positives} with the finding, {metrics.groups} groups"
    reads = {} if metrics.test_reads is None else {"test reads": f"{metrics.test_reads}, this release's included"}
    _pairs(console, {"images": counts, "interval": metrics.interval} | reads)
    table = _table("Figure", "Value", "Interval", *(["Without skill"] if metrics.baselines else []))
    for name, metric in metrics.values.items():
        beside = [_number(metrics.baselines[name])] if name in metrics.baselines else []
        table.add_row(_words(name), _number(metric.value), _interval(metric), *beside)
    for name, baseline in metrics.baselines.items():
        if name not in metrics.values:
            table.add_row(_words(name), "", "", _number(baseline))
    _put(console, table)
    if metrics.subgroups:
        table = _table("Part", "Images", "Positive", "Figure", "Value", "Interval")
        for part, group in metrics.subgroups.items():
            first = [_words(part), str(group.images), str(group.positives)]
            for name, metric in group.values.items():
                table.add_row(*first, _words(name), _number(metric.value), _interval(metric))
                first = ["", "", ""]
            if not group.values:
                table.add_row(*first, "–", "", "")
        _put(console, table)


def _gate(console: Console, gate: Gate) -> None:
    _title(console, "What it refuses")
    _paragraph(console, gate.method)
    accepted = f"{gate.accepted_refused} of {gate.accepted_images} radiographs of the intended kind"
    if gate.false_refusals is not None:
        accepted += f": {_with_interval(gate.false_refusals)}"
    _pairs(console, {"limit": f"refused above the distance {_number(gate.refuse_above)}", "false refusals": accepted})
    table = _table("Tried on", "Images", "Refused", "By features", "What they are")
    for negative in gate.negatives:
        counts = (negative.images, negative.refused, negative.refused_by_features)
        table.add_row(escape(negative.name), *map(str, counts), escape(negative.description))
    _put(console, table)


def _comparison(console: Console, card: Card) -> None:
    _title(console, "Architectures that were compared")
    names = list(dict.fromkeys(name for row in card.comparison for name in row.values))
    table = _table("Architecture", "Input", "Parameters", "MB", "ms", *map(_words, names), "Note")
    for row in card.comparison:
        table.add_row(
            escape(row.name),
            escape(row.input),
            f"{row.parameters / 1e6:.1f} M",
            f"{row.megabytes:.1f}",
            "–" if row.milliseconds is None else f"{row.milliseconds:.0f}",
            *(_number(row.values[name]) if name in row.values else "–" for name in names),
            escape(row.note),
        )
    _put(console, table)


def _training(console: Console, card: Card) -> None:
    for data in card.training_data:
        _title(console, f"Data: {data.name}")
        _pairs(
            console,
            {"licence": data.licence, "attribution": data.attribution, "citation": data.citation, "split": data.split},
        )


# --- how things are put -----------------------------------------------------------------------------------------------


def _title(console: Console, text: str) -> None:
    console.print(f"\n[bold]{escape(text)}[/]", highlight=False)


def _paragraph(console: Console, text: str, *, bullet: bool = False) -> None:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(*(["•"] if bullet else []), escape(text))
    _put(console, table)


def _pairs(console: Console, pairs: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in pairs.items():
        table.add_row(f"[dim]{name}[/]", escape(value))
    _put(console, table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _put(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 2), expand=False), highlight=False)


def _words(name: str) -> str:
    return " ".join(_SPELLED.get(word, escape(word)) for word in name.split("_"))


_SPELLED = {"auc": "AUC", "ppv": "PPV", "npv": "NPV", "brier": "Brier"}


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _interval(metric: Metric) -> str:
    return f"{_number(metric.low)}–{_number(metric.high)}"


def _with_interval(metric: Metric) -> str:
    return f"{_number(metric.value)} ({_interval(metric)})"
