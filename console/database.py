"""`osteon db`: the tables of the record."""

from __future__ import annotations

import typer

from console.start import saying_plainly
from models import logs
from models.settings import load_settings
from models.upgrade import upgrade as upgrade_database

app = typer.Typer(help="The database: its tables.", no_args_is_help=True, add_completion=False)


@app.command()
def upgrade() -> None:
    """Create the tables, or bring them to this version. Safe to run at any time."""
    settings = load_settings()
    logs.configure("db", level=settings.log_level)
    with saying_plainly():
        print(f"The database has revision {upgrade_database(settings)}.")


@app.callback()
def _group() -> None:
    """Keep `upgrade` a subcommand although it is the only one."""
