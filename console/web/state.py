"""What all pages of one process share: the settings in force and the record."""

from __future__ import annotations

from functools import cache

from models.database import Database
from models.settings import Settings, load_settings


@cache
def settings() -> Settings:
    """Return the settings in force when this process began."""
    return load_settings()


@cache
def database() -> Database:
    """Return the record; threads share it."""
    return Database.of(settings())
