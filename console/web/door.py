"""The door in front of the pages: nothing of them is served to anybody who has not signed in.

It stands before Streamlit: pages, the connection on which they live, uploads and pictures are refused alike. Only what
the browser needs to draw any page at all (scripts, fonts) is given to everybody. Where nobody has to sign in, only this
machine is served, asked for by a name that only this machine goes by: a page of another site that a browser here has
open, and a proxy that forwards from elsewhere, are refused. Streamlit's own sign-in is reached by `console.web.openid`
alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console import access
from console.access import Person
from console.web import openid, sign_in, state

_OPEN_PATHS = ("/static/", "/_stcore/health", "/favicon", sign_in.SIGN_IN)
_CLOSED_PATHS = ("/_stcore/agent", "/auth/")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    # Nothing is fetched from anywhere else; Streamlit's own pages need styles and scripts that stand in the page.
    "Content-Security-Policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'; object-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Door:
    """Lets in whoever signed in (ASGI middleware)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        path = scope["path"]
        if path.startswith(_CLOSED_PATHS):
            await _answer(scope, receive, send, PlainTextResponse("Not served.", 404))
        elif not _is_same_site(connection):
            await _answer(scope, receive, send, PlainTextResponse("Asked for by a page of another site.", 403))
        elif path in openid.PATHS and scope["type"] == "http":
            await _answer(scope, receive, send, await openid.answer(self._app, scope, receive))
        elif path.startswith(_OPEN_PATHS) or await run_in_threadpool(person_at, connection) is not None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "http" and "text/html" in connection.headers.get("accept", ""):
            await _answer(scope, receive, send, await run_in_threadpool(_way_in))
        else:
            await _answer(scope, receive, send, PlainTextResponse("Sign in first.", 401))


def person_at(connection: HTTPConnection) -> Person | None:
    """Return who is at the other end, or None where they have to sign in, or cannot."""
    if access.may_open_without_sign_in(state.database(), state.settings().web):
        return access.AT_THIS_MACHINE if _is_this_machine(connection) else None
    key = sign_in.shown_key(connection.cookies, encrypted=sign_in.is_encrypted(connection))
    return None if key is None else access.person_of(state.database(), key, state.settings().web, touch=False)


def person_by_cookies(cookies: Mapping[str, str], *, touch: bool) -> Person | None:
    """Return whose page this is: asked on every run of a page, whose connection the door let in."""
    if access.may_open_without_sign_in(state.database(), state.settings().web):
        return access.AT_THIS_MACHINE
    key = sign_in.shown_key(cookies, encrypted=False)
    return None if key is None else access.person_of(state.database(), key, state.settings().web, touch=touch)


def _way_in() -> Response:
    """Where a person is sent who has not signed in."""
    if access.may_open_without_sign_in(state.database(), state.settings().web):
        return PlainTextResponse("Nobody can sign in here yet, so only this machine is served, by its own name.", 403)
    return RedirectResponse(sign_in.SIGN_IN, 303)


def _is_same_site(connection: HTTPConnection) -> bool:
    """Whether it is a page of ours that asks: a browser says which page does, on connections and forms always.

    Streamlit would let in the pages of every server on this machine.
    """
    origin = connection.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == connection.headers.get("host")


def _is_this_machine(connection: HTTPConnection) -> bool:
    named = urlsplit(f"//{connection.headers.get('host', '')}").hostname
    forwarded = any(name in connection.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip"))
    return named in access.LOOPBACK and not forwarded


async def _answer(scope: Scope, receive: Receive, send: Send, answer: Response) -> None:
    if scope["type"] == "websocket":
        await receive()
        # Policy violation (RFC 6455, 7.4.1).
        await send({"type": "websocket.close", "code": 1008})
        return
    await answer(scope, receive, _with_headers(send))


def _with_headers(send: Send) -> Callable[[Message], Awaitable[Any]]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if "text/html" in headers.get("content-type", ""):
                headers["Cache-Control"] = "no-store"
        await send(message)

    return sending
