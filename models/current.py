"""Whether the record is ready for this version, asked without what upgrades it: mostly it is, when a node starts."""

from __future__ import annotations

from models.append_only import is_protected
from models.database import Database, DatabaseNotUpgraded
from models.settings import Settings
from models.version import REVISION


def upgrade_where_needed(settings: Settings) -> str:
    """Have the record upgraded, its guards put in place and its roles granted their rights; return its revision.

    On SQLite, which knows no roles, nothing is done where the revision is that of this version and the guards stand.
    """
    if _is_current(settings):
        return REVISION
    # Alembic takes longer to import than everything here does.
    from models.upgrade import upgrade

    return upgrade(settings)


def _is_current(settings: Settings) -> bool:
    database = Database.of(settings)
    try:
        if database.engine.dialect.name != "sqlite":
            return False
        database.require_upgraded()
        with database.engine.connect() as connection:
            return is_protected(connection)
    except DatabaseNotUpgraded:
        return False
    finally:
        database.close()
