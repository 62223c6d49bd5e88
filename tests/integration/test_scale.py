"""What a node does all day reads as little of a large record as of a small one, on both databases.

Nothing is timed. On SQLite the instructions of its virtual machine are counted, on PostgreSQL the rows that EXPLAIN
ANALYZE saw read; a statement that lost its index shows in both, and in its plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import event

from models.database import Database, database_url
from models.tables import Base
from models.upgrade import upgrade
from tests.daily import OPERATIONS, Daily, statements
from tests.filled import fill
from tests.servers import given

SMALL, LARGE = 1000, 4000
"""Finished studies; three for each four of them wait."""
SLACK = {"sqlite": 2000, "postgresql": 300}
"""Instructions and rows that do not count: what the operations before left behind."""
FEW_ROWS = {"installation", "destinations", "model_versions", "model_activations", "alembic_version"}
MANY_ROWS = {table.name for table in Base.metadata.sorted_tables} - FEW_ROWS
# Hold only what is open: quarantined, or to be committed.
OF_WHAT_IS_OPEN = re.compile("ix_quarantine_unresolved|ix_deliveries_(destination_)?commit_due_at")
# Of four thousand studies, a thousand may well be read with the rest.
IN_BULK = {"osteon reconcile: 1000 studies"}
# Up to a thousand deliveries are counted; and PostgreSQL combines several indexes where what they find is little.
GROWS = {"osteon deliveries --state delivered", "worklist: AE, decision and state"}
# What waits is counted, up to ten thousand of a stage, and so are the events of a day: here of all that waits.
GROWS |= {"operations: queue", "operations: throughput"}


@dataclass
class Seen:
    """What one operation did."""

    work: int = 0
    plans: dict[str, list[str]] = field(default_factory=dict)
    """By statement."""


@dataclass(frozen=True)
class Grown:
    """What every operation did on a small and on a large record."""

    kind: str
    small: dict[str, Seen]
    large: dict[str, Seen]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    def looked_at(studies: int) -> dict[str, Seen]:
        folder = tmp_path_factory.mktemp("grown")
        url = {}
        if request.param == "postgresql":
            new = request.getfixturevalue("postgresql").new_database()
            url = {"database_url": new.render_as_string(hide_password=False)}
        settings = given(folder, **url)
        upgrade(settings)
        fill(database_url(settings), finished=range(1, studies + 1), waiting=range(studies * 3 // 4))
        with closing(Database(database_url(settings))) as database:
            return dict(_look(database, Daily(settings, database, studies)))

    return Grown(request.param, looked_at(SMALL), looked_at(LARGE))


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in IN_BULK])
def test_no_statement_reads_a_table_that_grows_from_end_to_end(grown: Grown, operation: str) -> None:
    scans = [
        (" ".join(statement.split())[:200], line)
        for statement, plan in grown.large[operation].plans.items()
        for line in plan
        if _is_scan(line, plan, statement)
    ]
    assert scans == []


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in IN_BULK | GROWS])
def test_an_operation_reads_no_more_of_a_large_record_than_of_a_small_one(grown: Grown, operation: str) -> None:
    small, large = grown.small[operation].work, grown.large[operation].work
    assert large <= 1.3 * small + SLACK[grown.kind]


def test_spool_and_record_are_compared_by_indexes_alone(grown: Grown) -> None:
    read = {line for plan in grown.large["reconcile: a step"].plans.values() for line in plan}
    for column in ("removed_at", "missing_at"):
        assert any(re.match(rf"SEARCH files USING .*ix_files_key_{column}\b", line) for line in read), read
    by_range = [line for line in read if "SEARCH" in line and "key>" in line]
    assert [line for line in by_range if "COVERING" not in line] == []


def _look(database: Database, daily: Daily) -> Iterator[tuple[str, Seen]]:
    """Do everything, once to get used to it and once to be looked at."""
    instructions = _counted(database)
    for name, operation in OPERATIONS.items():
        operation(daily)
        seen = Seen()
        instructions.clear()
        with statements(database) as done:
            operation(daily)
        seen.work = 10 * len(instructions)
        for statement, parameters in done:
            if re.match(r"\W*(SELECT|UPDATE|DELETE|WITH)", statement) and statement not in seen.plans:
                one = parameters[0] if isinstance(parameters, list) else parameters
                rows, seen.plans[statement] = _explained(database, statement, one)
                seen.work += rows
        yield name, seen


def _counted(database: Database) -> list[None]:
    """Return a list that grows with every ten instructions of SQLite."""
    instructions: list[None] = []
    if database.engine.dialect.name == "sqlite":
        event.listen(
            database.engine,
            "connect",
            lambda connection, _: connection.set_progress_handler(lambda: instructions.append(None), 10),
        )
    return instructions


def _explained(database: Database, statement: str, parameters: Any) -> tuple[int, list[str]]:
    """Return how many rows PostgreSQL reads for a statement, and the plan."""
    with database.engine.connect() as connection:
        if database.engine.dialect.name == "sqlite":
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            return 0, [row[3] for row in plan]
        # It reads a small table from end to end where that is cheaper; here what counts is whether it has to.
        connection.exec_driver_sql("SET LOCAL enable_seqscan=off")
        asked = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
        answer = connection.exec_driver_sql(asked, parameters or None).scalar_one()
        nodes = list(_nodes(answer[0]["Plan"]))
        connection.rollback()
    return sum(_read(node) for node in nodes), [_line(node) for node in nodes]


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", []):
        yield from _nodes(below)


def _read(node: dict[str, Any]) -> int:
    if not node["Node Type"].endswith("Scan"):
        return 0
    rows = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck")) + node["Actual Rows"]
    return round(rows * node["Actual Loops"])


def _line(node: dict[str, Any]) -> str:
    conditions = ("Index Cond", "Recheck Cond")
    how = "SEARCH" if any(name in node for name in conditions) else "SCAN"
    if node["Node Type"].endswith("Scan") and "Relation Name" in node:
        return f"{how} {node['Relation Name']} USING {node.get('Index Name', node['Node Type'])}"
    return str(node["Node Type"])


def _is_scan(line: str, plan: list[str], statement: str) -> bool:
    """Whether a line of a plan says that a table which grows is read as a whole."""
    found = re.match(r"SCAN (\w+?)(_\d+)?\b", line)
    if found is None or found[1] not in MANY_ROWS or OF_WHAT_IS_OPEN.search(line):
        return False
    # The first rows in the order of an index, or of the row ids, are no scan.
    limited = "LIMIT" in statement or "Limit" in plan
    in_order = limited and not any("FOR ORDER BY" in other or other == "Sort" for other in plan)
    return not in_order or "Seq Scan" in line
