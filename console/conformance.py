"""`osteon conformance`: the DICOM conformance statement of this node, as its settings are."""

from __future__ import annotations

from dicom_node.conformance import conformance_statement
from models.settings import load_settings


def conformance() -> None:
    """Print the DICOM conformance statement (PS3.2) of the settings in force, as Markdown."""
    print(conformance_statement(load_settings()), end="")
