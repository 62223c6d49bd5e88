"""What is wrong with the database, in a sentence that an administrator can act on, without secrets."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection

_OF_SQLITE = {
    "SQLITE_CANTOPEN": "its file cannot be opened: does it belong to another user, or is its file system not mounted?",
    "SQLITE_READONLY": "its file can only be read: does it belong to another user?",
    "SQLITE_BUSY": "another process holds it for longer than anyone should",
    "SQLITE_FULL": "its file system is full",
    "SQLITE_NOTADB": "the file is not an SQLite database, or a damaged one",
    "SQLITE_CORRUPT": "the file is damaged: restore a backup",
    "SQLITE_IOERR": "its file system reports errors",
}
# Of PostgreSQL: by SQLSTATE (its manual, appendix A); class 08 and those without a state are told by their text.
_OF_POSTGRESQL = {
    "28P01": "it does not accept the password",
    "28000": "it does not let this role in from here (pg_hba.conf)",
    "3D000": "there is no database of that name on the server",
    "53300": "it has no connection left (max_connections)",
    "57P03": "it is starting up",
    "25006": "it takes no writes: a standby, or set to read only",
    "42501": "this role may not do that: run `osteon db upgrade` as the owner of the tables",
    "42P01": "tables are missing: run `osteon db upgrade`",
}
_BY_TEXT = {
    "password authentication failed": _OF_POSTGRESQL["28P01"],
    "no password supplied": "it wants a password, and the settings hold none",
    "no pg_hba.conf entry": _OF_POSTGRESQL["28000"],
    "does not exist": "there is no database, or no role, of that name on the server",
    "too many clients": _OF_POSTGRESQL["53300"],
    "remaining connection slots": _OF_POSTGRESQL["53300"],
    "starting up": _OF_POSTGRESQL["57P03"],
    "connection refused": "nothing listens at its address",
    "failed to resolve host": "the name of its host is not known here",
    "timeout expired": "its host does not answer",
    "does not answer": "it stands still",
    "no route to host": "there is no way to its host",
    "certificate": "its certificate is not accepted",
}


def of_database(error: SQLAlchemyError) -> str:
    """Say in words what a database answered, or that it did not."""
    if isinstance(error, NoConnection):
        return "it has no connection left for us"
    origin = getattr(error, "orig", None)
    name = str(getattr(origin, "sqlite_errorname", "") or "")
    for known, words in _OF_SQLITE.items():
        if name.startswith(known):
            return words
    state = getattr(origin, "sqlstate", None)
    if state in _OF_POSTGRESQL:
        return _OF_POSTGRESQL[state]
    # The texts themselves are not passed on: they may be in the server's language, and long.
    text = str(origin).lower() if origin is not None and not name else ""
    said = next((words for part, words in _BY_TEXT.items() if part in text), None)
    return said or f"it does not answer as it should ({state or name or type(error).__name__})"
