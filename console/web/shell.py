"""The page before its scripts have drawn it: dark from the first moment, under our name.

Streamlit answers every page with the same HTML, which shows nothing until its scripts have run: for a second or more a
white screen in a dark reading room, under Streamlit's name and picture. The scripts replace what stands in `#root`;
until they have heard of our theme, they draw in the one that the browser's setting asks for, so that it is ours, too.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.web import look

_ROOT = b'<div id="root"></div>'
_SHELL = b'<div id="root"><p id="shell" role="status">Osteon is loading.</p></div>'


class Shell:
    """Puts our page in the place of Streamlit's (ASGI middleware); passes on everything else as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun: Message | None = None

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and _is_whole_page(message):
                # What it is, its body says.
                begun = message
                return
            if begun is not None:
                start = begun
                begun = None
                headers = MutableHeaders(scope=start)
                if scope["method"] == "HEAD":
                    del headers["Content-Length"]
                elif _ROOT in message.get("body", b"") and not message.get("more_body"):
                    message = {**message, "body": shell(message["body"])}
                    headers["Content-Length"] = str(len(message["body"]))
                await send(start)
            await send(message)

        await self._app(scope, receive, sending)


@lru_cache(maxsize=1)
def shell(page: bytes) -> bytes:
    """Return Streamlit's page with what it shows until its scripts draw it."""
    text = page.replace(_ROOT, _SHELL).decode()
    themes = (
        f"<script>window.__streamlit = {json.dumps({'LIGHT_THEME': look.THEME, 'DARK_THEME': look.THEME})}</script>"
    )
    head = f"<title>Osteon</title>{look.SHELL_STYLE}{themes}"
    text = text.replace("<title>Streamlit</title>", head)
    # Until the page names its own. An empty one is not asked for.
    text = text.replace('href="./favicon.png"', 'href="data:,"')
    text = re.sub(r"<!--[^>]*agent API.*?-->\s*<link rel=\"service-desc\"[^>]*>", "", text, flags=re.DOTALL)
    before, _, rest = text.partition("<noscript>")
    _, _, after = rest.partition("</noscript>")
    return f"{before}<noscript><p>The console needs JavaScript.</p></noscript>{after}".encode()


def _is_whole_page(start: Message) -> bool:
    headers = MutableHeaders(scope=start)
    is_page = headers.get("content-type", "").startswith("text/html")
    # Streamlit compresses what routes answer, and not its own page.
    return start["status"] == 200 and is_page and "content-encoding" not in headers
