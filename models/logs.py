"""The log: structlog, readable on a terminal and JSON lines otherwise, never with patient data.

Our own events carry row ids, association numbers, AE titles and codes. What other libraries log is a different
matter: pydicom, pynetdicom and the database drivers put attribute values into messages, warnings and exception
texts. Of their records only the logger's name, the place and the level are kept, and of every exception only its
type and where it arose.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog

# Loggers whose messages say nothing about data: ours, and the broker's and pool's life signs.
_TRUSTED = ("osteon", "celery.worker", "celery.beat", "celery.bootsteps", "kombu.connection")
_FRAMES_SHOWN = 12
# How `warnings.formatwarning` begins; its text, which follows, may hold values.
_WARNING = re.compile(r"(?P<path>[^\n]*?):(?P<line>\d+): (?P<category>\w+):")


def configure(part: str, *, level: str = "info", json_lines: bool | None = None) -> None:
    """Send the log of this process to stderr. `part` names it in every line; `json_lines` defaults to "no terminal"."""
    as_json = not sys.stderr.isatty() if json_lines is None else json_lines
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_exception_text,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_without_foreign_text)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                _add_part(part),
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("osteon").setLevel(level.upper())
    logging.captureWarnings(True)
    for name in ("pynetdicom", "pydicom", "celery", "kombu", "py.warnings"):
        foreign = logging.getLogger(name)
        foreign.handlers[:] = []
        foreign.propagate = True
        foreign.setLevel(logging.WARNING)
    # pynetdicom reports a peer's every mistake as an error of its own, and pydicom every decoder that could not; the
    # listener and the worker log what matters of them.
    for name in ("pynetdicom", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def get(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module: `log = logs.get(__name__)`."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(f"osteon.{name}")
    return logger


def describe(error: BaseException) -> str:
    """Return an exception's type and where it arose, without its text: `ValueError at pixels.py:88 in decode`."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    last = frames[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} in {last.name}"


def _without_exception_text(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["error"] = describe(error)
        event["trace"] = [
            f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-_FRAMES_SHOWN:]
        ]
    return event


def _without_foreign_text(record: logging.LogRecord) -> bool:
    """Replace the message of a logger that is not trusted; never drop the record."""
    if not record.name.startswith(_TRUSTED):
        place = f"{Path(record.pathname).name}:{record.lineno}"
        warned = _WARNING.match(record.getMessage()) if record.name == "py.warnings" else None
        if warned is not None:
            place = f"{Path(warned['path']).name}:{warned['line']} ({warned['category']})"
        record.msg, record.args = f"{record.levelname.lower()} of a library: {record.name} at {place}", ()
        record.exc_text = None
    return True


def _add_part(part: str) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["part"] = part
        return event

    return add


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    get("uncaught").critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and args.exc_type is not SystemExit:
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
