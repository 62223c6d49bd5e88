"""The OpenID provider that people sign in at: whether it answers, as whom, and by which clock."""

from __future__ import annotations

import json
import ssl
import stat
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException

from console.doctor.verdict import Finding, warning, well, wrong
from models import clock
from models.settings import OpenIdSettings, Settings

AREA = "sign-in"
_NEEDED = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_LARGEST = 1 << 20
# By so much an ID token's times may be off (Authlib's leeway).
LEEWAY_SECONDS = 120


@dataclass(frozen=True)
class _Answer:
    said: object
    at: datetime | None


def look_at_provider(settings: Settings, seconds: float) -> Iterator[Finding]:
    """Read the client's secret, and ask the provider what it is; nothing where there is none."""
    one = settings.web.oidc
    if one is None:
        return
    yield _secret(one)
    try:
        answer = _ask(one, seconds)
    except (OSError, HTTPException, ValueError) as error:
        # What is wrong with a certificate, a name or a connection stands one deeper.
        reason = getattr(error, "reason", error)
        said = f"{one.name} does not say what it is at {one.metadata_url} ({type(reason).__name__})"
        todo = "see whether this host reaches it, and web.oidc.issuer and web.oidc.ca: nobody signs in by it"
        yield wrong(AREA, said, todo)
        return
    yield _metadata(one, answer.said)
    if answer.at is not None:
        yield _clock(one, answer.at)


def _ask(one: OpenIdSettings, seconds: float) -> _Answer:
    trusted = ssl.create_default_context(cafile=one.ca)
    # The settings let nothing but https:// through, and http:// on this machine.
    with urllib.request.urlopen(one.metadata_url, timeout=seconds, context=trusted) as answer:  # noqa: S310
        date = answer.headers.get("Date")
        said = json.loads(answer.read(_LARGEST))
    at = parsedate_to_datetime(date) if date else None
    return _Answer(said, None if at is None else at.replace(tzinfo=at.tzinfo or UTC))


def _secret(one: OpenIdSettings) -> Finding:
    path = one.client_secret_file
    try:
        held, mode = path.read_text("utf-8").strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        said = f"web.oidc.client_secret_file {path} cannot be read ({type(error).__name__})"
        return wrong(AREA, said, "put the client's secret there: the console does not start without it")
    if not held:
        return wrong(AREA, f"{path} is empty", "put the client's secret there: the console does not start without it")
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        return warning(AREA, f"every user of this host can read {path}", f"chmod o-rwx {path}")
    return well(AREA, "the client's secret is there")


def _metadata(one: OpenIdSettings, said: object) -> Finding:
    known = said if isinstance(said, dict) else {}
    issuer = known.get("issuer")
    if issuer != one.issuer:
        told = f"{one.metadata_url} calls itself {str(issuer)[:255]!r}"
        return wrong(AREA, told, "set web.oidc.issuer to exactly that, if it is the right one: nobody signs in by it")
    missing = [name for name in _NEEDED if not isinstance(known.get(name), str)]
    if missing:
        return wrong(AREA, f"{one.name} says nothing of {', '.join(missing)}", "ask its administrator")
    return well(AREA, f"{one.name} answers")


def _clock(one: OpenIdSettings, theirs: datetime) -> Finding:
    off = abs((theirs - clock.now()).total_seconds())
    if off > LEEWAY_SECONDS / 2:
        said = (
            f"the clocks of {one.name} and this host differ by {off:.0f} s; from {LEEWAY_SECONDS} s on nobody signs in"
        )
        return warning(AREA, said, "NTP on both")
    return well(AREA, f"its clock is ours to within {max(off, 1):.0f} s")
