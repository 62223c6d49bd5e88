"""Alembic migrations of the record. Revisions are frozen: once released, one is never edited."""
