"""The page before its scripts have drawn it: ours in the place of Streamlit's, and nothing else is touched."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

import httpx
import streamlit
from starlette.applications import Starlette
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from console.web import look
from console.web.shell import Shell, shell

STREAMLITS = Path(streamlit.__file__).parent / "static" / "index.html"


def asked(answer: Callable[[], Response], method: str = "GET", *, plain: bool = False) -> tuple[str, str | None]:
    """The body and the length that is told of it."""
    app: ASGIApp = Starlette(routes=[Route("/", lambda _: answer(), methods=[method])])

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app if plain else Shell(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://osteon") as client:
            return await client.request(method, "/")

    said = asyncio.run(ask())
    return said.text, said.headers.get("content-length")


def test_streamlits_page_is_ours_from_the_first_moment() -> None:
    body, length = asked(lambda: FileResponse(STREAMLITS))
    assert length == str(len(body.encode()))
    assert "<title>Osteon</title>" in body
    assert '<p id="shell" role="status">Osteon is loading.</p>' in body
    assert f"html {{ background: {look.THEME['backgroundColor']} }}" in body
    (themes,) = re.findall(r"<script>window\.__streamlit = (.*?)</script>", body)
    assert json.loads(themes) == {"LIGHT_THEME": look.THEME, "DARK_THEME": look.THEME}
    # It stands in addresses and in the licence, which stays.
    assert not re.search(r"(?i)streamlit app|>streamlit<|agent", body)
    assert "favicon" not in body
    assert body.startswith("<!--\n Copyright (c) Streamlit Inc.")


def test_its_scripts_and_styles_stay_as_they_are() -> None:
    def drawn_by(page: str) -> list[str]:
        return re.findall(r"(?:src|href)=\"(\./static/[^\"]+)\"", page)

    assert drawn_by(shell(STREAMLITS.read_bytes()).decode()) == drawn_by(STREAMLITS.read_text()) != []


@pytest.mark.parametrize(
    "answer",
    [
        lambda: HTMLResponse("<p>The sign-in page</p>"),
        lambda: HTMLResponse("<p>No</p>", 403),
        lambda: PlainTextResponse('<div id="root"></div>'),
        lambda: StreamingResponse(iter([b"<p>One", b" and two</p>"]), media_type="text/html"),
        lambda: Response(
            gzip.compress(b"<p>The sign-in page</p>"), headers={"content-encoding": "gzip"}, media_type="text/html"
        ),
        lambda: Response(status_code=304),
    ],
    ids=["another page", "a refusal", "a text", "in pieces", "compressed", "nothing"],
)
def test_any_other_answer_is_passed_on_as_it_is(answer: Callable[[], Response]) -> None:
    assert asked(answer) == asked(answer, plain=True)


def test_who_asks_only_for_the_head_is_told_no_other_length() -> None:
    body, length = asked(lambda: FileResponse(STREAMLITS), "HEAD")
    assert (body, length) == ("", None)
