"""The version of this software, as it stands in predictions, reports and logs, and of the tables it needs."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("osteon")
except PackageNotFoundError:  # running from a checkout that was never installed
    VERSION = "0+unknown"

REVISION = "0008"
"""The newest revision in `migrations/versions` (a test compares them): known without loading Alembic."""
