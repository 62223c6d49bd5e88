"""What signing in at an OpenID provider rests on beside the provider: files, cookies, and how long anything waits."""

from __future__ import annotations

import asyncio
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from console.web import openid, serve, sign_in
from models.errors import CannotStart
from models.settings import OpenIdSettings
from tests.servers import given

HOST_KEY = "__Host-osteon_session"


def provider(**changes: Any) -> OpenIdSettings:
    settings = {
        "name": "St. Elsewhere",
        "issuer": "https://login.example.org",
        "client_id": "osteon",
        "client_secret_file": "/nowhere",
        "console_url": "https://osteon.example.org",
        "default_roles": ["viewer"],
    }
    return OpenIdSettings(**{**settings, **changes})


def connection(**headers: str) -> HTTPConnection:
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection(
        {"type": "http", "scheme": "http", "method": "GET", "path": "/", "query_string": b"", "headers": sent}
    )


def test_all_processes_of_a_node_sign_with_one_key_that_its_user_alone_can_read(tmp_path: Path) -> None:
    settings = given(tmp_path / "node")
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: openid.cookie_key(settings), range(8)))
    assert len(keys) == 1
    (path,) = (tmp_path / "node" / "web").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert openid.cookie_key(given(tmp_path / "other")) not in keys
    path.write_text("too short")
    with pytest.raises(CannotStart, match="is no key: remove it"):
        openid.cookie_key(settings)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe", b"two\nlines", b"x" * 5000])
def test_a_secret_that_cannot_be_read_is_said_before_anything_is_served(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CannotStart, match="holds no secret that can be read"):
        openid.client_secret(provider(client_secret_file=path))


def test_streamlit_is_told_where_to_ask_and_the_secret_stays_out_of_its_environment(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    settings = given(
        tmp_path / "node", web={"oidc": provider(client_secret_file=tmp_path / "secret", prompt="login").model_dump()}
    )
    assert settings.web.oidc is not None
    told = openid.secrets_of(settings, settings.web.oidc)
    # What stands at the top, Streamlit would put into the environment.
    assert told.keys() == {"auth"}
    assert told["auth"]["client_secret"] == "hush"
    assert told["auth"]["redirect_uri"] == "https://osteon.example.org/oauth2callback"
    assert told["auth"]["server_metadata_url"] == "https://login.example.org/.well-known/openid-configuration"
    assert told["auth"]["client_kwargs"]["prompt"] == "login"
    assert "expose_tokens" not in told["auth"]


def test_certificates_of_the_providers_ca_that_cannot_be_read_are_said_before_anything_is_served(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_text("hush\n")
    (tmp_path / "ca.pem").write_text("no certificate")
    for ca in ("nowhere.pem", "ca.pem"):
        one = provider(client_secret_file=tmp_path / "secret", ca=tmp_path / ca)
        with pytest.raises(CannotStart, match=f"web.oidc.ca .*{ca}"):
            serve._prepare_sign_in(given(tmp_path / "node", web={"oidc": one.model_dump()}))


def test_a_provider_that_never_answers_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.sleep(600)

    monkeypatch.setattr(openid, "STEP_SECONDS", 0.05)
    said = asyncio.run(openid._ask(never, connection().scope, never))  # type: ignore[arg-type]
    assert said.why == "away"


def test_only_so_many_sign_in_at_once_and_the_others_are_told_so() -> None:
    async def crowd() -> list[str]:
        few, release, outcomes = sign_in.Few(), asyncio.Event(), []

        async def come() -> None:
            try:
                async with few.one():
                    await release.wait()
                    outcomes.append("in")
            except sign_in.TooMany:
                outcomes.append("refused")

        coming = [asyncio.create_task(come()) for _ in range(25)]
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*coming)
        return outcomes

    outcomes = asyncio.run(crowd())
    assert (outcomes.count("in"), outcomes.count("refused")) == (20, 5)


def test_of_streamlits_cookies_that_of_the_try_alone_gets_out_and_over_tls_only_over_tls() -> None:
    said = openid._Said(
        200, [("set-cookie", f"{name}=x; path=/; httponly") for name in ("_streamlit_session", "_streamlit_user")]
    )
    said.headers.append(("set-cookie", "_streamlit_user_tokens=x"))
    for headers, expected in (({}, "httponly"), ({"x_forwarded_proto": "https"}, "httponly; secure")):
        answer = openid._with_cookies(Response(), said, connection(**headers))
        assert answer.headers.getlist("set-cookie") == [f"_streamlit_session=x; path=/; {expected}"]


def test_over_tls_a_key_counts_only_by_a_name_that_no_other_host_can_set() -> None:
    for headers, name, secure in (({}, "osteon_session", ""), ({"x_forwarded_proto": "https"}, HOST_KEY, "; Secure")):
        answer = Response()
        sign_in.set_key(answer, connection(**headers), "k")
        assert answer.headers["set-cookie"] == f"{name}=k; HttpOnly; Path=/; SameSite=strict{secure}"
    assert sign_in.shown_key({"osteon_session": "tossed"}, encrypted=True) is None
    assert sign_in.shown_key({"osteon_session": "tossed", HOST_KEY: "k"}, encrypted=True) == "k"
    assert sign_in.shown_key({"osteon_session": "tossed", HOST_KEY: "k"}, encrypted=False) == "k"
    assert sign_in.shown_key({"osteon_session": "k"}, encrypted=False) == "k"


@pytest.mark.parametrize(
    ("console_url", "host", "same"),
    [
        ("https://osteon.example.org", "osteon.example.org", True),
        ("https://osteon.example.org", "OSTEON.example.org:443", True),
        ("https://osteon.example.org", "osteon.example.org:8501", False),
        ("https://osteon.example.org", "osteon.example.org.evil.example", False),
        ("https://osteon.example.org", "", False),
        ("https://osteon.example.org", "osteon.example.org:x", False),
        ("https://osteon.example.org", "[", False),
        ("http://127.0.0.1:8501", "127.0.0.1:8501", True),
        ("http://127.0.0.1:8501", "localhost:8501", False),
    ],
)
def test_a_sign_in_begins_at_the_name_that_the_provider_knows(console_url: str, host: str, same: bool) -> None:
    assert openid._is_served_as(provider(console_url=console_url), connection(host=host)) is same
