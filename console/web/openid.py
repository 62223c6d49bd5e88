"""Signing in at an OpenID provider, by what Streamlit's `st.login` uses, and without what it leaves behind.

Streamlit asks the provider, validates what it says, and would keep both identity and tokens in cookies of its own for a
month. Of its answer only the identity is taken, here, before it leaves this process: it becomes one of our sessions,
and no cookie of Streamlit's that says who somebody is ever reaches a browser, nor is one believed that a browser shows.

===================== ===========================================================================================
the browser asks for  what happens
===================== ===========================================================================================
`/sign-in/provider`   from our own sign-in page only: Streamlit's `/auth/login` sends it to the provider, and gives
                      it the cookies of this one try: state and nonce, signed, and what ties them to it
`/oauth2callback`     Streamlit fetches the tokens with the code, where state and cookie fit, and validates them;
                      then `console.provider` says whether this person is let in
`/auth/…`             never answered
===================== ===========================================================================================
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope

from console import provider
from console.provider import NotLetIn
from console.web import look, sign_in, state
from models import logs
from models.errors import CannotStart
from models.settings import OpenIdSettings, Settings
from models.signing import put_private

CALLBACK = "/oauth2callback"
PATHS = (sign_in.BY_PROVIDER, CALLBACK)
KEY_FILE = "cookies.key"
_LOGIN = "/auth/login"
_STREAMLITS = "default"
# What the provider has for each answer, and for all that one step of a sign-in asks of it.
ANSWER_SECONDS = 10.0
STEP_SECONDS = 20.0
# How long somebody may take at the provider.
TRY_SECONDS = 900
_TRY = "osteon_try"
_LONGEST_SECRET = 4096
# What a try ends with that did not come as far as a person, by what the audit trail calls it.
_SAID = {
    "state": "This sign-in was not begun here, or too long ago. Begin once more.",
    "refused": "{name} did not sign you in.",
    "token": "What {name} says cannot be used here: its settings and Osteon's differ, or their clocks.",
    "away": "{name} does not answer as it should. Try again shortly.",
}
log = logs.get("web")

_few = sign_in.Few()
_heard: ContextVar[list[BaseException] | None] = ContextVar("_heard", default=None)


def secrets_of(settings: Settings, one: OpenIdSettings) -> dict[str, Any]:
    """Return what Streamlit has to know. Raises CannotStart where a file cannot be read or made."""
    return {
        "auth": {
            "redirect_uri": one.console_url + CALLBACK,
            "cookie_secret": cookie_key(settings),
            "client_id": one.client_id,
            "client_secret": client_secret(one),
            "server_metadata_url": one.metadata_url,
            "client_kwargs": {
                "scope": " ".join(one.scopes),
                "prompt": one.prompt,
                # RFC 7636; a provider that does not know it takes no notice.
                "code_challenge_method": "S256",
                "timeout": ANSWER_SECONDS,
            },
        }
    }


def client_secret(one: OpenIdSettings) -> str:
    """Return the client's secret. Raises CannotStart."""
    try:
        secret = one.client_secret_file.read_text("utf-8").strip() if one.client_secret_file.is_file() else ""
    except (OSError, UnicodeDecodeError):
        secret = ""
    if not 1 <= len(secret) <= _LONGEST_SECRET or not secret.isprintable():
        raise CannotStart(f"web.oidc.client_secret_file {one.client_secret_file} holds no secret that can be read")
    return secret


def cookie_key(settings: Settings) -> str:
    """Return what signs the cookie of a sign-in that is under way, making it once for all processes of a node."""
    path = settings.data_dir.absolute() / "web" / KEY_FILE
    try:
        if not path.exists():
            put_private(path, secrets.token_hex(32).encode(), replace=False)
        key = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"{path} cannot be read or made ({type(error).__name__})") from None
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise CannotStart(f"{path} is no key: remove it, and another one is made")
    return key


def listen_to_streamlit() -> None:
    """Hear why a sign-in failed, which Streamlit only logs, and with what the provider said."""
    from authlib.deprecate import AuthlibDeprecationWarning
    from streamlit.web.server.starlette import starlette_auth_routes  # makes the logger

    # Authlib means to go from httpx to another package. It says so with each start, and nobody here can do anything.
    warnings.filterwarnings("ignore", category=AuthlibDeprecationWarning)
    logger = logging.getLogger(starlette_auth_routes.__name__)
    logger.setLevel(logging.WARNING)
    logger.addFilter(_hear)


def _hear(record: logging.LogRecord) -> bool:
    heard = _heard.get()
    if heard is not None and record.exc_info and record.exc_info[1] is not None:
        heard.append(record.exc_info[1])
    return False


async def answer(app: ASGIApp, scope: Scope, receive: Receive) -> Response:
    """Answer one of `PATHS`; `app` is Streamlit."""
    one = state.settings().web.oidc
    if one is None:
        return PlainTextResponse("Not served.", 404)
    if scope["method"] != "GET":
        return PlainTextResponse("Not served.", 405)
    try:
        async with _few.one():
            if scope["path"] == CALLBACK:
                return await _finish(app, scope, receive, one)
            return await _begin(app, scope, receive, one)
    except sign_in.TooMany:
        return await run_in_threadpool(sign_in.page, sign_in.TOO_MANY, 503)


async def _begin(app: ASGIApp, scope: Scope, receive: Receive, one: OpenIdSettings) -> Response:
    """Send the browser to the provider."""
    connection = HTTPConnection(scope)
    if not _is_served_as(one, connection):
        # The cookie of this try would be another host's when the browser comes back.
        return RedirectResponse(one.console_url + sign_in.SIGN_IN, 303)
    if connection.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        # Another site's page does not sign anybody in, not even as who they are.
        return RedirectResponse(sign_in.SIGN_IN, 303)
    from streamlit.auth_util import encode_provider_token

    query = urlencode({"provider": encode_provider_token(_STREAMLITS)}).encode()
    asked = {**scope, "path": _LOGIN, "raw_path": _LOGIN.encode(), "query_string": query}
    said = await _ask(app, asked, receive)
    if said.status != 302 or not said.location.startswith(("https://", "http://")):
        return await _not_signed_in(said.why or "away", one, said, connection)
    begun = RedirectResponse(said.location, 302)
    encrypted = sign_in.is_encrypted(connection)
    begun.set_cookie(
        _try_name(connection),
        _digest(parse_qs(urlsplit(said.location).query).get("state", [""])[0]),
        max_age=TRY_SECONDS,
        path="/",
        httponly=True,
        samesite="lax",
        secure=encrypted,
    )
    return _with_cookies(begun, said, connection)


async def _finish(app: ASGIApp, scope: Scope, receive: Receive, one: OpenIdSettings) -> Response:
    """Take what the provider sent the browser back with."""
    connection = HTTPConnection(scope)
    if "error" in connection.query_params:
        # Its words are for nobody here: whoever makes up such an address would write them.
        return await _not_signed_in("refused", one, _Said(), connection)
    begun = connection.cookies.get(_try_name(connection), "")
    if not secrets.compare_digest(begun.encode(), _digest(connection.query_params.get("state", "")).encode()):
        return await _not_signed_in("state", one, _Said(), connection)
    said = await _ask(app, scope, receive)
    claims = _claims(said)
    if claims is None:
        return await _not_signed_in(said.why or "state", one, said, connection)
    try:
        key = await run_in_threadpool(provider.sign_in, state.database(), one, claims)
    except NotLetIn as refused:
        log.info("not let in", why=refused.why)
        return _with_cookies(await run_in_threadpool(sign_in.page, str(refused), 403), said, connection)
    # The code stands in this page's address.
    alone = {"Referrer-Policy": "no-referrer"}
    done = HTMLResponse(look.SIGNED_IN_PAGE, headers=alone, background=BackgroundTask(sign_in.prune))
    sign_in.set_key(done, connection, key)
    done.delete_cookie(_try_name(connection), path="/", secure=sign_in.is_encrypted(connection), httponly=True)
    return _with_cookies(done, said, connection)


def _try_name(connection: HTTPConnection) -> str:
    """The cookie that ties a try to its browser: Streamlit's own could be set by another host of the same domain."""
    return sign_in.OVER_TLS + _TRY if sign_in.is_encrypted(connection) else _TRY


def _digest(state_of_try: str) -> str:
    return hashlib.sha256(state_of_try.encode()).hexdigest()


@dataclass
class _Said:
    """What Streamlit answered."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    why: str | None = None
    """What went wrong, where it said so."""

    @property
    def location(self) -> str:
        return next((value for name, value in self.headers if name == "location"), "")

    def cookies(self) -> Iterator[str]:
        """The cookies that it would set, as they stand in its headers."""
        return (value for name, value in self.headers if name == "set-cookie")


async def _ask(app: ASGIApp, scope: Scope, receive: Receive) -> _Said:
    """Ask Streamlit, which asks the provider; of its answer only the head is taken."""
    said = _Said()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            said.status = message["status"]
            said.headers = [
                (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in message["headers"]
            ]

    heard: list[BaseException] = []
    before = _heard.set(heard)
    try:
        async with asyncio.timeout(STEP_SECONDS):
            await app(scope, receive, send)
    except TimeoutError as error:
        heard.append(error)
    finally:
        _heard.reset(before)
    if heard:
        said.why = _why(heard[-1])
        log.warning("sign-in failed", why=said.why, error=logs.describe(heard[-1]), code=_code(heard[-1]))
    return said


def _why(error: BaseException) -> str:
    from authlib.integrations.base_client import MismatchingStateError, OAuthError
    from joserfc.errors import JoseError

    if isinstance(error, MismatchingStateError):
        return "state"
    if isinstance(error, OAuthError):
        return "refused"
    return "token" if isinstance(error, JoseError) else "away"


def _code(error: BaseException) -> str | None:
    """What the provider's token endpoint calls it (RFC 6749, section 5.2), such as `invalid_client`."""
    code = getattr(error, "error", None)
    return code if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code) else None


def _claims(said: _Said) -> Mapping[str, object] | None:
    """Whom Streamlit found it to be: the claims in the cookie that it would set, after it validated the ID token."""
    from streamlit.auth_util import get_cookie_with_chunks
    from streamlit.web.server.server_util import get_cookie_secret
    from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
    from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

    held = {name: morsel.value for cookie in said.cookies() for name, morsel in SimpleCookie(cookie).items()}
    written = get_cookie_with_chunks(
        lambda name: decode_signed_value(get_cookie_secret(), name, held.get(name, "")), USER_COOKIE_NAME
    )
    claims = json.loads(written) if written else None
    return claims if isinstance(claims, dict) else None


async def _not_signed_in(why: str, one: OpenIdSettings, said: _Said, connection: HTTPConnection) -> Response:
    await run_in_threadpool(provider.failed, state.database(), why)
    await asyncio.sleep(sign_in.SLOW_SECONDS)
    sentence = _SAID[why].format(name=one.name)
    page = await run_in_threadpool(sign_in.page, sentence, 503 if why == "away" else 403)
    return _with_cookies(page, said, connection)


def _with_cookies(answer: Response, said: _Said, connection: HTTPConnection) -> Response:
    """Let the cookie of this one try through, and none that says who somebody is."""
    from streamlit.web.server.starlette.starlette_server_config import SESSION_COOKIE_NAME

    for cookie in said.cookies():
        if cookie.startswith(f"{SESSION_COOKIE_NAME}="):
            over_tls = "; secure" if sign_in.is_encrypted(connection) and "; secure" not in cookie else ""
            answer.headers.append("set-cookie", cookie + over_tls)
    return answer


def _is_served_as(one: OpenIdSettings, connection: HTTPConnection) -> bool:
    """Whether the browser asks for the console by the name that the provider knows."""
    wanted = urlsplit(one.console_url)
    usual = 443 if wanted.scheme == "https" else 80
    try:
        asked = urlsplit(f"//{connection.headers.get('host', '')}")
        return (asked.hostname, asked.port or usual) == (wanted.hostname, wanted.port or usual)
    except ValueError:  # no name at all, or a port that is no number
        return False
