"""The version of this software, as it stands in predictions, reports and logs."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("osteon")
except PackageNotFoundError:  # running from a checkout that was never installed
    VERSION = "0+unknown"
