"""The log says what happened and never of whom: what other libraries and exceptions say does not come out."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from models import logs

PLANTED = "PLANTED^NAME"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = ("osteon", "pynetdicom", "pydicom", "celery", "kombu", "py.warnings")
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in names}
    hooks = sys.excepthook, threading.excepthook
    yield
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = hooks
    root.handlers[:], root.level = handlers, level
    for name, (its_handlers, its_level) in before.items():
        logging.getLogger(name).handlers[:] = its_handlers
        logging.getLogger(name).setLevel(its_level)
    structlog.reset_defaults()


class Written:
    """Stands for stderr, and gives what was written to it since the last look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._stderr = io.StringIO()

    def configure(self, part: str, **options: Any) -> None:
        """Configure the log of this process to be written here."""
        with self._monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", self._stderr)
            logs.configure(part, **options)

    def text(self) -> str:
        text = self._stderr.getvalue()
        self._stderr.seek(0)
        self._stderr.truncate()
        assert PLANTED not in text
        return text

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def line(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(monkeypatch)


@pytest.fixture
def written(stderr: Written) -> Written:
    stderr.configure("listener", json_lines=True)
    return stderr


def fail() -> None:
    raise ValueError(f"cannot read {PLANTED}")


def test_our_own_events_come_out_as_json_lines_with_their_part_level_and_time(written: Written) -> None:
    logs.get("intake").info("instance stored", association=7, receipt="new")
    line = written.line()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "instance stored",
        "association": 7,
        "receipt": "new",
        "level": "info",
        "part": "listener",
    }


def test_a_line_break_in_a_value_does_not_begin_a_new_line(written: Written) -> None:
    logs.get("listener").warning("association rejected", calling='X\n{"event": "forged"}')
    assert written.line()["calling"] == 'X\n{"event": "forged"}'


@pytest.mark.parametrize("name", ["pydicom", "pynetdicom.events", "psycopg", "sqlalchemy.engine", "celery.app.trace"])
@pytest.mark.parametrize("level", [logging.WARNING, logging.CRITICAL])
def test_of_another_librarys_record_only_its_name_place_and_level_come_out(
    written: Written, name: str, level: int
) -> None:
    logging.getLogger(name).log(level, "bad value %s", PLANTED, extra={"patient": PLANTED}, stack_info=False)
    for line in written.lines():
        assert line["event"].startswith(f"{logging.getLevelName(level).lower()} of a library: {name} at test_logs.py:")
        assert set(line) == {"event", "level", "timestamp", "part"}


def test_a_critical_record_of_pynetdicom_is_not_lost(written: Written) -> None:
    logging.getLogger("pynetdicom").critical(PLANTED)
    assert len(written.lines()) == 1


def test_other_libraries_are_silent_below_a_warning(written: Written) -> None:
    for name in ("pynetdicom", "celery", "sqlalchemy.engine.Engine"):
        logging.getLogger(name).info(PLANTED)
    assert written.text() == ""


@pytest.mark.parametrize("name", ["pydicom.filereader", "celery.worker", "osteon.analyse"])
def test_of_an_exception_only_its_kind_and_place_come_out_whoever_logs_it(written: Written, name: str) -> None:
    try:
        fail()
    except ValueError:
        logging.getLogger(name).critical("it failed", exc_info=True)
    line = written.line()
    assert line["error"].startswith("ValueError at test_logs.py:")
    assert line["trace"][-1].endswith(" fail")


@pytest.mark.parametrize("how", ["error", "true", "triple", "exception"])
def test_our_own_loggers_take_an_exception_in_every_form_without_its_text(written: Written, how: str) -> None:
    log = logs.get("analyse")
    try:
        try:
            fail()
        except ValueError as first:
            raise RuntimeError(f"worse: {PLANTED}") from first
    except RuntimeError as error:
        if how == "exception":
            log.exception("analysis failed", image=3)
        else:
            forms = {"error": error, "true": True, "triple": sys.exc_info()}
            log.error("analysis failed", image=3, exc_info=forms[how])
    line = written.line()
    assert line["error"].startswith("RuntimeError at test_logs.py:")
    assert line["image"] == 3


def test_exception_texts_stay_out_of_a_terminals_log_too(stderr: Written) -> None:
    stderr.configure("worker", json_lines=False)
    try:
        fail()
    except ValueError as error:
        logs.get("analyse").error("analysis failed", image=3, exc_info=error)
        logging.getLogger("pydicom").critical("%s", PLANTED, exc_info=error)
    text = stderr.text()
    assert "analysis failed" in text
    assert "ValueError at test_logs.py" in text


def test_a_warnings_text_does_not_come_out(written: Written) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"invalid value {PLANTED}", UserWarning, stacklevel=1)
    (line,) = written.lines()
    assert "py.warnings" in line["event"]


def test_an_uncaught_exception_is_logged_without_its_text_in_threads_as_well(written: Written) -> None:
    try:
        fail()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    lines = written.lines()
    assert [line["event"] for line in lines] == ["uncaught exception"] * 2
    assert all(line["error"].startswith("ValueError at test_logs.py:") for line in lines)


def test_a_keyboard_interrupt_is_no_event(written: Written) -> None:
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert written.text() == ""


def test_the_level_is_that_of_our_own_events(stderr: Written) -> None:
    stderr.configure("worker", level="warning", json_lines=True)
    logs.get("level").info("not shown")
    logs.get("level").warning("shown")
    assert stderr.line()["event"] == "shown"


def test_describe_tells_the_kind_and_the_place_of_an_exception() -> None:
    with pytest.raises(ValueError, match="cannot read") as caught:
        fail()
    assert logs.describe(caught.value).startswith("ValueError at test_logs.py:")
    assert logs.describe(caught.value).endswith(" in fail")
    assert logs.describe(KeyError(PLANTED)) == "KeyError"
