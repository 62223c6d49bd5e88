"""A worker's child whose start failed: Celery would swallow that, so the next hint starts it again."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.servers import given
from worker.app import Worker, _add_task
from worker.claims import Work
from worker.hints import task_name
from worker.queue import make_app


class Child(Worker):
    """A child without a database that remembers what it was asked for."""

    def __init__(self, *, spent: bool = False, hanging: bool = False, outdated: bool = False) -> None:
        self.asked: list[Work] = []
        self.outdated = outdated
        self.spent = spent
        self.hanging = hanging

    @property
    def out_of_memory(self) -> bool:
        return self.spent

    @property
    def is_outdated(self) -> bool:
        return self.outdated

    @property
    def hangs(self) -> bool:
        return self.hanging

    def do(self, work: Work) -> bool:
        self.asked.append(work)
        return True


def test_a_child_whose_start_failed_is_started_by_a_later_hint_and_does_the_work(tmp_path: Path) -> None:
    app = make_app(given(tmp_path))
    children: list[Worker] = []
    child = Child()
    starts: list[Worker | Exception] = [OSError("the database is away"), child]

    def make_child() -> Worker:
        start = starts.pop(0)
        if isinstance(start, Exception):
            raise start
        return start

    _add_task(app, Work.REPORT, children, make_child, timedelta(minutes=1))
    hint = app.tasks[task_name(Work.REPORT)]
    hint()
    assert (children, child.asked) == ([], [])
    hint()
    assert (children, child.asked) == ([child], [Work.REPORT])
    hint()
    assert (starts, child.asked) == ([], [Work.REPORT] * 2)
    app.close()


@pytest.mark.parametrize(
    ("child", "work"),
    [(Child(spent=True), Work.ANALYSE), (Child(hanging=True), Work.COMMIT)],
    ids=["no memory", "commitment hangs"],
)
def test_a_child_that_is_of_no_more_use_ends_after_its_work_so_that_another_takes_its_place(
    tmp_path: Path, child: Child, work: Work
) -> None:
    app = make_app(given(tmp_path))
    _add_task(app, work, [child], lambda: child, timedelta(minutes=1))
    with pytest.raises(SystemExit):
        app.tasks[task_name(work)]()
    assert child.asked == [work]
    app.close()


def test_a_child_whose_model_is_not_the_active_one_any_more_ends_before_it_reads_another_image(tmp_path: Path) -> None:
    app = make_app(given(tmp_path))
    child = Child(outdated=True)
    _add_task(app, Work.EXAMINE, [child], lambda: child, timedelta(minutes=1))
    with pytest.raises(SystemExit):
        app.tasks[task_name(Work.EXAMINE)]()
    assert child.asked == []
    app.close()
