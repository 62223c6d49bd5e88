"""`osteon work`: a Celery worker, in the foreground, until SIGTERM."""

from __future__ import annotations

from typing import Annotated

import typer

from console.start import failing_plainly, open_database
from models import logs
from models.settings import load_settings
from worker.app import serve
from worker.bundle import Bundle, default_bundle_path
from worker.claims import Work
from worker.queue import make_app

_ALSO = {Work.ANALYSE: Work.EXAMINE, Work.DELIVER: Work.COMMIT}


def work(
    only: Annotated[
        str,
        typer.Option(
            help="Kinds of work, by commas: analyse (and examine), report, deliver (and commit).", metavar="KIND,…"
        ),
    ] = "analyse,report,deliver",
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Child processes.")] = 1,
) -> None:
    """Do the work that waits: analyse images, report studies, deliver reports (a Celery worker)."""
    settings = load_settings()
    works = _works(only)
    part = "worker" if Work.ANALYSE in works else "courier"
    logs.configure(part, level=settings.log_level)
    with failing_plainly():
        open_database(settings).close()
        # Refused here, once and with the file named, rather than by every child; they share its memory.
        bundle = Bundle.load(settings.model_bundle or default_bundle_path())
    serve(make_app(settings), settings, works, bundle, part=part, concurrency=concurrency)


def _works(only: str) -> frozenset[Work]:
    try:
        works = {Work(name.strip()) for name in only.split(",")}
    except ValueError:
        raise typer.BadParameter(f"{only!r}: allowed are {', '.join(Work)}", param_hint="--only") from None
    # Neither wants a process of its own: what came again takes pixels, decoders and the spool, and is rare; storage
    # commitment goes where the reports went.
    return frozenset(works | {also for work, also in _ALSO.items() if work in works})
