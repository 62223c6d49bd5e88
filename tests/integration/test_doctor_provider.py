"""What `osteon doctor` sees of an OpenID provider: one that is well, and what keeps people from signing in."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from console.doctor.provider import look_at_provider
from console.doctor.verdict import Standing
from console.ports import free_port
from models import clock
from models.settings import Settings
from tests.integration.test_doctor import bad, only
from tests.servers import given

WRONG, WARNING = Standing.WRONG, Standing.WARNING


class Provider(HTTPServer):
    """Says of itself what a test wants."""

    said: object = {}


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        found = self.path == "/.well-known/openid-configuration"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.said).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(("127.0.0.1", 0), _Handler) as server:
        issuer = f"http://127.0.0.1:{server.server_port}"
        ends = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        server.said = {"issuer": issuer, **{name: f"{issuer}/{name}" for name in ends}}
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asking(tmp_path: Path, port: int, **changes: Any) -> Settings:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    secret.chmod(0o600)
    oidc = {
        "name": "St. Elsewhere",
        "issuer": f"http://127.0.0.1:{port}",
        "client_id": "osteon",
        "client_secret_file": secret,
        "console_url": "https://osteon.example.org",
        "default_roles": ["viewer"],
        **changes,
    }
    return given(tmp_path / "node", web={"oidc": oidc})


def test_a_provider_that_answers_as_itself_is_well(tmp_path: Path, provider: Provider) -> None:
    assert not list(look_at_provider(given(tmp_path / "node"), 10))
    found = list(look_at_provider(asking(tmp_path, provider.server_port), 10))
    assert not bad(found)
    assert "hush" not in str(found)


def test_one_that_is_not_there_or_is_another_one_is_wrong(tmp_path: Path, provider: Provider) -> None:
    standing, said = only(look_at_provider(asking(tmp_path, free_port()), 10))
    assert (standing, said.rpartition(" ")[2]) == (WRONG, "(ConnectionRefusedError)")
    provider.said = {"issuer": "https://login.example.org"}
    standing, said = only(look_at_provider(asking(tmp_path, provider.server_port), 10))
    assert (standing, "calls itself 'https://login.example.org'" in said) == (WRONG, True)
    provider.said = {"issuer": f"http://127.0.0.1:{provider.server_port}", "jwks_uri": 7}
    standing, said = only(look_at_provider(asking(tmp_path, provider.server_port), 10))
    assert (standing, said.partition("of ")[2]) == (WRONG, "authorization_endpoint, token_endpoint, jwks_uri")


def test_a_secret_that_is_missing_or_open_to_all_is_told(tmp_path: Path, provider: Provider) -> None:
    settings = asking(tmp_path, provider.server_port)
    (tmp_path / "secret").chmod(0o644)
    assert only(look_at_provider(settings, 10))[0] is WARNING
    (tmp_path / "secret").unlink()
    standing, said = only(look_at_provider(settings, 10))
    assert (standing, "cannot be read (FileNotFoundError)" in said) == (WRONG, True)


def test_a_clock_that_would_make_every_token_expire_is_told(tmp_path: Path, provider: Provider) -> None:
    settings = asking(tmp_path, provider.server_port)
    with clock.frozen(clock.now() + timedelta(minutes=5)):
        standing, said = only(look_at_provider(settings, 10))
    assert (standing, "differ by" in said) == (WARNING, True)
