"""`osteon check-report`: whether a Structured Report holds what one of Osteon's must hold. Nothing is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.objects.template import check_report as problems_of


def check_report(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="DICOM files.", metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file, for programs.")] = False,
) -> None:
    """Check reports against their template (TID 1500 as IHE AIR and Osteon narrow it); exit with 1 if any is wrong."""
    all_well = True
    for path in files:
        try:
            problems = problems_of(path.read_bytes())
            found = [{"where": problem.where, "what": problem.what} for problem in problems]
        except ValueError as error:
            found = [{"where": "", "what": str(error)}]
        all_well &= not found
        if as_json:
            print(json.dumps({"file": str(path), "problems": found}))
            continue
        for problem in found:
            print(f"{path}: {problem['where'] or 'header'}: {problem['what']}")
        if not found:
            print(f"{path}: well")
    if not all_well:
        raise typer.Exit(1)
