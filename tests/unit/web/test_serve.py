"""How the console is started: with what Streamlit knows, at a port that is free, or not at all where it is missing."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

from streamlit import config

from console.health import web_trouble
from console.ports import free_port
from console.web import serve
from models.errors import CannotStart
from models.settings import WebSettings
from tests.servers import given


def test_streamlit_knows_every_option_that_is_set() -> None:
    known = config.get_config_options()
    assert set(serve.streamlit_options(WebSettings())) <= set(known)


def test_what_streamlit_could_tell_or_fetch_elsewhere_is_off() -> None:
    options = serve.streamlit_options(WebSettings(max_upload_mb=7))
    assert options["browser.gatherUsageStats"] is False
    assert options["server.enableAgentApi"] is False
    assert options["client.showErrorDetails"] == "none"
    assert options["server.maxUploadSize"] == 7


def test_a_port_that_is_taken_is_said_plainly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"web.port {port}: Address already in use"):
            serve._bind(WebSettings(port=port))


def test_no_answer_waits_for_an_acknowledgement_of_its_first_piece() -> None:
    """Nagle's algorithm is off (TCP_NODELAY) on what asyncio, and so the web server, accepts there."""
    options: list[int] = []

    async def serve_one(listening: socket.socket) -> None:
        def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            options.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(accepted, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            await reader.read()
            writer.close()

    asyncio.run(serve_one(serve._bind(WebSettings(port=free_port()))))
    assert options == [1]


def test_a_console_that_does_not_run_is_unhealthy(tmp_path: Path) -> None:
    settings = given(tmp_path / "node", web={"port": free_port(), "host": "0.0.0.0"})
    assert web_trouble(settings) == "no answer (ConnectionRefusedError)"


def test_a_node_neither_loads_streamlit_nor_needs_it() -> None:
    # What a name maps to None for cannot be imported, and is not found.
    program = (
        "import sys; sys.modules['streamlit'] = None; sys.modules['starlette'] = None\n"
        "import console.up, console.users, console.access\n"
        "from console.web.serve import is_installed\n"
        "print(is_installed())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
