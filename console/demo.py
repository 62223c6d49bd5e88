"""`osteon demo`: real radiographs travel the whole road, to a PACS on this machine, before your eyes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import pydicom
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from console.pacs import Pacs, PacsNotStarted, ReceivedReport, open_pacs
from console.ports import free_port
from dicom_node.objects.content import DISCLAIMER
from dicom_node.objects.tree import render_tree
from dicom_node.sender import Destination, Outcome, Result, echo, send
from models import logs
from models.database import Database
from models.reasons import Reason
from models.settings import GivenSettings, ListenerSettings, Peer, Settings, StudySettings, WebSettings, environment_of
from models.tables import Image, Prediction
from worker.lifeline import die_with_parent

RADIOGRAPHS = ("RG1_UNCR.dcm", "RG3_UNCR.dcm")
MODALITY = "MODALITY"
QUIET_SECONDS = 2.0
START_SECONDS = 60.0
REPORT_SECONDS = 60.0
STOP_SECONDS = 12.0


class DemoFailed(Exception):
    """Something on the road did not work; the message says what."""


@dataclass(frozen=True)
class Sent:
    """A radiograph that the node took."""

    path: Path
    study_instance_uid: str
    sop_instance_uid: str
    answered_at: float


@dataclass(frozen=True)
class Arrival:
    """A report in the PACS, and how long after the last C-STORE answer it was there."""

    report: ReceivedReport
    seconds: float


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the node and the PACS running until Ctrl-C.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where the demo keeps its files; default: a new folder.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Model bundle; default: the one released.")] = None,
) -> None:
    """Start a node and a PACS, send real radiographs, and show the reports that arrive."""
    console = Console()
    logs.configure("demo", level="error")
    home = (folder or Path(tempfile.mkdtemp(prefix="osteon-demo-"))).absolute()
    home.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with open_pacs(home / "pacs") as pacs:
            settings = _settings(home / "node", bundle, pacs)
            with _node(console, settings, home / "node.log"):
                arrivals, sent = _travel(console, settings, pacs)
                _account(console, settings, sent, arrivals, home)
                if keep:
                    _wait(console, settings, pacs)
    except (DemoFailed, PacsNotStarted) as error:
        console.print(f"[bold red]The demo failed:[/] {escape(str(error))}")
        console.print(f"The node's log: {escape(str(home / 'node.log'))}", highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Stopped.")
        raise typer.Exit(0 if keep else 130) from None


def radiographs() -> list[Path]:
    """Return the CR radiographs of the `pydicom-data` package: RG1, a chest, and RG3, a distal tibia (NEMA WG04)."""
    data = files("data_store").joinpath("data")
    return [Path(str(data.joinpath(name))) for name in RADIOGRAPHS]


def _settings(data_dir: Path, bundle: Path | None, pacs: Pacs) -> Settings:
    return GivenSettings(
        ae_title="OSTEON",
        host="127.0.0.1",
        port=free_port(),
        data_dir=data_dir,
        model_bundle=bundle,
        study=StudySettings(quiet_time=QUIET_SECONDS),
        listener=ListenerSettings(min_free_bytes=0),
        web=WebSettings(enabled=False),
        peers=[
            Peer(name="modality", ae_title=MODALITY, role="source"),
            Peer(name="pacs", ae_title=pacs.ae_title, host="127.0.0.1", port=pacs.port, role="destination"),
        ],
    )


def _travel(console: Console, settings: Settings, pacs: Pacs) -> tuple[list[Arrival], list[Sent]]:
    sent = _send(console, settings)
    wanted = {item.study_instance_uid for item in sent}
    last_answer = max(item.answered_at for item in sent)
    arrivals: list[Arrival] = []
    with console.status(
        f"Waiting for {len(wanted)} reports at the PACS (a study is complete after {QUIET_SECONDS:g} s)"
    ):
        until = time.monotonic() + REPORT_SECONDS
        while wanted:
            for report in pacs.new_reports():
                if report.study_instance_uid in wanted:
                    wanted.remove(report.study_instance_uid)
                    arrivals.append(Arrival(report, report.arrived_at - last_answer))
            if time.monotonic() > until:
                raise DemoFailed(f"{len(wanted)} of {len(sent)} reports did not arrive within {REPORT_SECONDS:g} s")
            time.sleep(0.02)
    console.print(f"[green]✓[/] {len(arrivals)} reports arrived at the PACS")
    return arrivals, sent


def _send(console: Console, settings: Settings) -> list[Sent]:
    node = Destination(settings.ae_title, settings.host, settings.port)
    sent: list[Sent] = []
    paths = radiographs()
    with console.status("Sending radiographs by C-STORE"):
        for path, outcome in send(node, paths, calling_ae_title=MODALITY, timeout=30):
            if outcome.result is not Result.DELIVERED:
                raise DemoFailed(f"{path.name} was not stored: {_said(outcome)}")
            header = pydicom.dcmread(path, stop_before_pixels=True)
            sent.append(Sent(path, header.StudyInstanceUID, header.SOPInstanceUID, time.monotonic()))
    console.print(f"[green]✓[/] {len(sent)} radiographs sent by C-STORE, each answered with success")
    return sent


def _account(console: Console, settings: Settings, sent: list[Sent], arrivals: list[Arrival], home: Path) -> None:
    """Print what was sent, what was decided, how long it took, and what the reports say."""
    table = Table("Radiograph", "Body part", "Decision", "Probability", "Report in the PACS after", title="The road")
    by_study = {arrival.report.study_instance_uid: arrival for arrival in arrivals}
    database = Database.of(settings)
    for item in sent:
        body_part, decision, probability = _decision(database, item)
        seconds = by_study[item.study_instance_uid].seconds
        table.add_row(item.path.name, body_part, decision, probability, f"{seconds:.2f} s")
    database.close()
    console.print()
    console.print(table)
    console.print(f"Times run from the last C-STORE answer and include {QUIET_SECONDS:g} s of quiet.", style="dim")
    console.print(f"{DISCLAIMER}.", style="bold")
    for number, item in enumerate(sent, start=1):
        report = by_study[item.study_instance_uid].report
        path = home / "reports" / f"report-{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(report.content)
        console.print()
        console.print(_tree(item, report, path))


def _decision(database: Database, item: Sent) -> tuple[str, str, str]:
    with database.read() as session:
        image = session.scalars(select(Image).where(Image.sop_instance_uid == item.sop_instance_uid)).one()
        prediction = session.scalars(
            select(Prediction).where(Prediction.image_id == image.id).options(selectinload(Prediction.findings))
        ).first()
    if prediction is None:
        return image.body_part, f"not analysed: {Reason(image.reason or Reason.FAILED).sentence}", "–"
    colours = {"fracture": "red", "no_fracture": "green", "undetermined": "yellow"}
    text = prediction.decision.replace("_", " ")
    return (
        image.body_part,
        f"[{colours[prediction.decision]}]{text}[/]",
        " ".join(f"{finding.probability:.1%}" for finding in prediction.findings),
    )


def _tree(item: Sent, report: ReceivedReport, path: Path) -> Tree:
    title = f"[bold]{item.path.name}[/] → Structured Report [dim]{escape(str(path))}[/] ({escape(report.where)})"
    lines = render_tree(report.content)
    root = Tree(title)
    branches = {-1: root}
    for depth, line in lines:
        branches[depth] = branches[depth - 1].add(escape(line))
    return root


def _wait(console: Console, settings: Settings, pacs: Pacs) -> None:
    console.print()
    console.print(f"Node: {settings.ae_title}@{settings.host}:{settings.port} (calling AE title {MODALITY})")
    console.print(f"PACS: {pacs.ae_title}@127.0.0.1:{pacs.port} ({pacs.description})")
    console.print(
        f"Send more: osteon send PATH --to {settings.ae_title}@{settings.host}:{settings.port} --calling {MODALITY}"
    )
    console.print("Ctrl-C stops both.")
    while True:
        time.sleep(1)


@contextmanager
def _node(console: Console, settings: Settings, log_path: Path) -> Iterator[None]:
    """Run `osteon up` with these settings until the block ends."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OSTEON_")}
    parent = os.getpid()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "console", "up"],
            env={**environment, **environment_of(settings)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is for the demo, which stops the node itself.
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )
    try:
        with console.status("Starting the node: broker, database, listener, workers, sweeper"):
            _wait_for_node(settings, process)
        console.print(f"[green]✓[/] Node {settings.ae_title} listens on {settings.host}:{settings.port}")
        yield
    finally:
        _stop(process)


def _wait_for_node(settings: Settings, process: subprocess.Popen[bytes]) -> None:
    node = Destination(settings.ae_title, settings.host, settings.port)
    until = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None:
            raise DemoFailed(f"the node stopped with status {process.returncode} while starting")
        if _is_open(settings) and echo(node, calling_ae_title=MODALITY, timeout=5).result is Result.DELIVERED:
            return
        if time.monotonic() > until:
            raise DemoFailed(f"the node did not start within {START_SECONDS:g} s")
        time.sleep(0.1)


def _is_open(settings: Settings) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((settings.host, settings.port)) == 0


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _said(outcome: Outcome) -> str:
    return outcome.reason if outcome.status is None else f"{outcome.reason} ({outcome.status:04X})"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
