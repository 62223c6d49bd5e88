"""`osteon send --tls`: the files and the name that a handshake needs, and in plain words why there was none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from dicom_node.sender import NO_ASSOCIATION, Destination, Outcome
from dicom_node.tls import DISTRUSTED, TLS_FAILED, Expected, TlsError, credentials_of
from models.settings import Fingerprint, TlsSettings, load_settings

PemFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, metavar="FILE", help="PEM, as in the settings' section tls.")
]


def over_tls(
    destination: Destination, files: Mapping[str, Path | None], name: str | None, fingerprints: Sequence[str]
) -> Destination:
    """Return the destination as one that must show its certificate: by a fingerprint or, without any, by its name.

    `files` are `certificate`, `private_key` and `ca`, in the place of those of the settings.
    """
    if (files["certificate"] is None) != (files["private_key"] is None):
        raise typer.BadParameter("a certificate and its private key belong together", param_hint="--private-key")
    given = {key: path for key, path in files.items() if path is not None}
    settings = TlsSettings()
    if len(given) < len(files):
        settings = load_settings().tls
    settings = settings.model_copy(update=given)
    if settings.ca is None:
        raise typer.BadParameter(
            "who vouches for the destination? Give --ca, or tls.ca in the settings", param_hint="--ca"
        )
    try:
        pins = tuple(TypeAdapter(Fingerprint).validate_python(fingerprint) for fingerprint in fingerprints)
    except ValidationError:
        hint = "--certificate-sha256"
        raise typer.BadParameter("64 hexadecimal digits, with or without colons", param_hint=hint) from None
    expected = Expected(settings, name or destination.host, pins)
    try:
        credentials_of(settings).client(expected)
    except TlsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    return replace(destination, tls=expected)


def why_over_tls(destination: Destination, outcome: Outcome) -> str | None:
    """Return a sentence about an outcome that comes of TLS."""
    place = f"{destination.host}:{destination.port}"
    if outcome.reason == DISTRUSTED:
        return f"The certificate of {place} is not trusted, nothing was sent: {outcome.detail.rstrip('.')}."
    if outcome.reason == TLS_FAILED:
        return f"There was no TLS handshake with {place}, nothing was sent: {outcome.detail.rstrip('.')}."
    if outcome.reason == NO_ASSOCIATION:
        # In TLS 1.3 a server looks at our certificate when the handshake is over on our side.
        return f"{place} closed the connection. It may want a certificate, or another one (--certificate)."
    return None
