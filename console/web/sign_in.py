"""The sign-in page: what is offered there, and what becomes of a name and a password.

It is plain HTML and not Streamlit's, which can set no cookie that scripts cannot read.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from console import access
from console.web import look, state
from models.version import VERSION

COOKIE = "osteon_session"
# Over TLS a name that no other host of the same domain can set a cookie by, nor any page that came in the clear.
OVER_TLS = "__Host-"
SIGN_IN = "/sign-in"
BY_PROVIDER = "/sign-in/provider"
_LARGEST_FORM = 4096
# What is wrong is answered slowly, and few at once: what it costs the record and the processor stays small.
SLOW_SECONDS = 1.0
_AT_ONCE = 4
_MOST_WAITING = 20
TOO_MANY = "Too many people sign in at this moment. Try again shortly."


class TooMany(Exception):
    """More people sign in at this moment than are looked at."""


class Few:
    """Lets few through at a time, and refuses whoever would wait behind many."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a place. Raises TooMany."""
        if self._waiting >= _MOST_WAITING:
            raise TooMany
        self._waiting += 1
        try:
            async with self._slots:
                yield
        finally:
            self._waiting -= 1


_forms = Few()


def routes() -> list[Route]:
    """Return the pages that are not Streamlit's."""
    return [
        Route(SIGN_IN, _show, methods=["GET"]),
        Route(SIGN_IN, _take, methods=["POST"]),
    ]


def page(trouble: str = "", status: int = 200) -> HTMLResponse:
    """Return the sign-in page, with a sentence about what went wrong. Looks at the record."""
    provider = state.settings().web.oidc
    local = provider is None or access.has_local_accounts(state.database())
    ways = []
    if provider is not None:
        ways.append(look.SIGN_IN_LINK.format(address=BY_PROVIDER, name=html.escape(provider.name)))
    if provider is not None and local:
        ways.append(look.SIGN_IN_OR)
    if local:
        ways.append(look.SIGN_IN_FORM.format(focus="autofocus " if provider is None else ""))
    said = f'<p class="trouble" role="alert">{html.escape(trouble)}</p>' if trouble else ""
    return HTMLResponse(
        look.SIGN_IN_PAGE.format(trouble=said, ways="\n".join(ways), version=html.escape(VERSION)), status
    )


def set_key(answer: Response, connection: HTTPConnection, key: str) -> None:
    """Give the browser a session's key: scripts cannot read it, and no other site can have it sent."""
    encrypted = is_encrypted(connection)
    name = OVER_TLS + COOKIE if encrypted else COOKIE
    answer.set_cookie(name, key, path="/", httponly=True, samesite="strict", secure=encrypted)


def shown_key(cookies: Mapping[str, str], *, encrypted: bool) -> str | None:
    """Return the key that a browser shows, which over TLS is the one that it was given over TLS."""
    return cookies.get(OVER_TLS + COOKIE, None if encrypted else cookies.get(COOKIE))


def is_encrypted(connection: HTTPConnection) -> bool:
    """Whether the browser came over TLS, here or as far as the proxy."""
    return "https" in (connection.url.scheme, connection.headers.get("x-forwarded-proto"))


def prune() -> None:
    """Remove sessions that are over; somebody who signed in does not wait for it."""
    access.prune_sessions(state.database(), state.settings().web)


async def _show(_request: Request) -> Response:
    return await run_in_threadpool(page)


async def _take(request: Request) -> Response:
    fields = await _fields(request)
    if fields is None:
        return await run_in_threadpool(page, "Name and password are needed.", 400)
    try:
        async with _forms.one():
            key = await run_in_threadpool(access.sign_in, state.database(), *fields)
            if key is None:
                await asyncio.sleep(SLOW_SECONDS)
    except TooMany:
        return await run_in_threadpool(page, TOO_MANY, 503)
    if key is None:
        said = "Name and password do not fit, or the account is locked for some minutes."
        return await run_in_threadpool(page, said, 403)
    answer = RedirectResponse("/", 303, background=BackgroundTask(prune))
    set_key(answer, request, key)
    return answer


async def _fields(request: Request) -> tuple[str, str] | None:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_FORM:
            return None
    try:
        given = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=8)
    except ValueError:  # more fields than that
        return None
    name, password = given.get("name", [""])[0], given.get("password", [""])[0]
    return (name, password) if name and password else None
