"""Drift: whether a scanner's images are read otherwise than those that the release was measured on."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.exc import SQLAlchemyError

from console.doctor.verdict import Finding, warning, well
from console.drift import standing_out
from models.database import Database, DatabaseNotUpgraded, database_url
from models.settings import Settings
from worker.activation import active_version
from worker.drift import drift

AREA = "drift"
WEEKS = 4


def look_at_drift(settings: Settings) -> Iterator[Finding]:
    """Compare each scanner's last weeks with the release, as the console's page does."""
    url = database_url(settings)
    if url.get_backend_name() == "sqlite" and not (settings.data_dir / "osteon.db").is_file():
        return
    database = Database.of(settings)
    try:
        database.require_upgraded()
        with database.read() as session:
            version = active_version(session)
            findings = [] if version is None else drift(session, version, weeks=WEEKS)
    except (DatabaseNotUpgraded, SQLAlchemyError):
        return  # the check of the database says so
    finally:
        database.close()
    for found in findings:
        judged = {name: found.judged(found.of(name)) for name in found.by_scanner}
        for name, one in judged.items():
            if one.flagged:
                said = f"{name or 'images without a scanner'}, last {WEEKS} weeks: {standing_out(one)}"
                yield warning(
                    AREA, said, "look at the console's page Drift: other patients, another protocol or detector?"
                )
        if found.by_scanner and found.baseline is not None and not any(one.flagged for one in judged.values()):
            yield well(AREA, f"nothing stands out in what {found.model} read in the last {WEEKS} weeks")
