"""`osteon doctor`: everything that a node needs, looked at at once, and what to do about what is not well.

Exit status 0: nothing is wrong; 1: something is; 2: the settings cannot be read, or the command is mistaken.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from console.completion import destination_names
from console.doctor.broker import look_at_broker
from console.doctor.certificates import look_at_certificates
from console.doctor.clocks import look_at_clock
from console.doctor.disk import look_at_disk
from console.doctor.drift import look_at_drift
from console.doctor.peers import area_of, look_at_peer
from console.doctor.ports import look_at_ports
from console.doctor.provider import look_at_provider
from console.doctor.reader import look_at_model
from console.doctor.record import look_at_record
from console.doctor.rounds import Check, go_round
from console.doctor.trial import FOUND_WITHIN_SECONDS, send_test
from console.doctor.values import look_at_settings
from console.doctor.verdict import Finding, Standing
from console.doctor.work import look_at_parts, look_at_work
from models import logs
from models.settings import Peer, Settings, load_settings

PARTS_SECONDS = 1.5
BEYOND_SECONDS = 6.0
"""What a check may take beyond one answer that does not come."""
_COLOURS = {Standing.OK: "green", Standing.WARNING: "yellow", Standing.WRONG: "bold red"}


def doctor(
    timeout: Annotated[
        float, typer.Option(min=0.5, max=60, help="Seconds to wait for each answer of a peer.", metavar="SECONDS")
    ] = 3.0,
    test: Annotated[
        list[str] | None,
        typer.Option(
            "--send-test",
            metavar="PEER",
            autocompletion=destination_names,
            help="Also send this peer a test report of the patient OSTEON^TEST, and look for it there. It stays there.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at everything a node needs, and say what to do about what is not well; exit with 1 if anything is wrong.

    Nothing is changed, and nothing is left at a peer unless --send-test asks for it.
    """
    settings = load_settings()
    logs.configure("doctor", level="error")
    tested = [_peer(settings, name) for name in dict.fromkeys(test or ())]
    seconds = 2 * timeout + BEYOND_SECONDS + (FOUND_WITHIN_SECONDS + 2 * timeout if tested else 0)
    done = go_round(checks(settings, tested, timeout), seconds=seconds)
    well = all(finding.standing is not Standing.WRONG for finding in done.findings)
    if as_json:
        print(json.dumps({"well": well, "findings": [finding.as_json() for finding in done.findings]}, indent=2))
    else:
        _print(done.findings)
    if done.cut_off:
        # A thread of a library may wait for as long as it likes, and Python would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if well else 1)
    raise typer.Exit(0 if well else 1)


def checks(settings: Settings, tested: Sequence[Peer], timeout: float) -> list[Check]:
    """Return all that is looked at, in the order in which it is told."""
    return [
        Check("settings", partial(look_at_settings, settings)),
        Check("database", partial(look_at_record, settings)),
        Check("broker", partial(look_at_broker, settings)),
        Check("disk", partial(look_at_disk, settings)),
        Check("clock", partial(look_at_clock, settings)),
        Check("model", partial(look_at_model, settings)),
        Check("drift", partial(look_at_drift, settings)),
        Check("port", partial(look_at_ports, settings, timeout)),
        Check("tls", partial(look_at_certificates, settings)),
        Check("sign-in", partial(look_at_provider, settings, timeout)),
        Check("parts", partial(look_at_parts, settings, PARTS_SECONDS)),
        Check("work", partial(look_at_work, settings)),
        *(Check(area_of(peer), partial(look_at_peer, settings, peer, timeout)) for peer in settings.peers),
        *(Check(area_of(peer), partial(send_test, settings, peer, timeout)) for peer in tested),
    ]


def _peer(settings: Settings, name: str) -> Peer:
    peer = settings.peer(name)
    if peer is None or not peer.is_destination:
        names = ", ".join(known.name for known in settings.destinations) or "none"
        raise typer.BadParameter(f"{name!r} is no destination; there are: {names}", param_hint="--send-test")
    return peer


def _print(findings: Sequence[Finding]) -> None:
    console = Console()
    if not console.is_terminal:
        for finding in findings:
            print(f"{finding.standing.value:<8} {finding.area}: {finding.said}")
            if finding.todo:
                print(f"{'':<8}   → {finding.todo}")
        print(_summary(findings))
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("standing", "area", "said"):
        table.add_column(column, overflow="fold", no_wrap=column != "said")
    last = ""
    for finding in findings:
        colour = _COLOURS[finding.standing]
        said = escape(finding.said) + (f"\n[italic]→ {escape(finding.todo)}[/]" if finding.todo else "")
        # The word says it too: colours are not seen by everyone, and not in every file.
        standing = f"[{colour}]{finding.standing.value}[/]"
        table.add_row(standing, "" if finding.area == last else escape(finding.area), said)
        last = finding.area
    console.print(table, highlight=False)
    console.print(_summary(findings), highlight=False)


def _summary(findings: Sequence[Finding]) -> str:
    count = {standing: sum(finding.standing is standing for finding in findings) for standing in Standing}
    if not count[Standing.WRONG] and not count[Standing.WARNING]:
        return "All is well."
    said = f"{count[Standing.WRONG]} wrong, {count[Standing.WARNING]} to look at"
    return f"{said}, {count[Standing.OK]} well."
