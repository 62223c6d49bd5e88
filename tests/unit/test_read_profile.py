"""The benchmark that looks at a worker: which step a stack belongs to, and that the steps are those of the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.benchmarks.profile_read import MAIN, STEPS, by_step

ROOT = Path(__file__).parents[2]
STACK = "<module> (tests/benchmarks/reading.py);_work (tests/benchmarks/reading.py)"
ANALYSE = f"{STACK};Analyst.analyse_next (worker/analyse.py);Analyst._analyse (worker/analyse.py)"
HEART = (
    "Thread._bootstrap (threading.py);_beat (worker/leases.py);Event.wait (threading.py);Condition.wait (threading.py)"
)


def test_the_innermost_frame_that_is_a_step_decides() -> None:
    stacks = [
        f"{ANALYSE};model_input (dicom_node/pixels.py);decode (dicom_node/image/decode.py) 3",
        f"{ANALYSE};Analyst._record (worker/analyse.py);Session.flush (sqlalchemy/orm/session.py) 2",
        f"{ANALYSE};Session.get (sqlalchemy/orm/session.py) 1",
        f"{STACK} 4",
    ]
    expected = {"decode": 3, "record": 2, "look it up": 1, "the rest": 4}
    assert by_step("\n".join(stacks), main_only=False) == expected


def test_a_thread_that_only_waits_takes_no_processor_time_and_another_thread_is_not_the_main_one() -> None:
    digest = "Thread.run (threading.py);_digest (dicom_node/pixels.py)"
    stacks = f"{HEART} 50\n 20\n{digest} 2\n{STACK};Condition.wait (threading.py) 5\n"
    assert by_step(stacks, main_only=False) == {"digest of the pixels": 2}
    assert by_step(stacks, main_only=True) == {"the rest": 5}


@pytest.mark.parametrize(("step", "file", "functions"), STEPS)
def test_every_step_is_there(step: str, file: str, functions: str) -> None:
    path = next(iter(ROOT.glob(f"*/{file}")), ROOT / file)
    assert path.is_file(), step
    defined = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    assert set(functions.split()) <= defined


def test_the_main_thread_is_known_by_its_function() -> None:
    function, _, file = MAIN.partition(" (")
    assert f"def {function}(" in (ROOT / file).read_text()
