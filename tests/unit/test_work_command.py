"""Which kinds of work `osteon work --only` means."""

from __future__ import annotations

import pytest
import typer

from console.work import _works
from worker.claims import Work


@pytest.mark.parametrize(
    ("only", "works"),
    [
        ("analyse", {Work.ANALYSE, Work.EXAMINE}),
        ("report,deliver", {Work.REPORT, Work.DELIVER, Work.COMMIT}),
        (" analyse , report,deliver", set(Work)),
        ("examine", {Work.EXAMINE}),
        ("commit", {Work.COMMIT}),
    ],
)
def test_who_analyses_examines_resends_too_and_who_delivers_asks_for_commitment(only: str, works: set[Work]) -> None:
    assert _works(only) == works


def test_an_unknown_kind_of_work_is_a_mistake() -> None:
    with pytest.raises(typer.BadParameter, match="allowed are"):
        _works("analyse,dream")
