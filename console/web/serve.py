"""`osteon web`: the console in the browser, in the foreground, until SIGTERM."""

from __future__ import annotations

import os
import socket
import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from console.start import failing_plainly, open_database
from console.web import look
from models import logs
from models.errors import CannotStart
from models.settings import Settings, WebSettings, load_settings

SCRIPT = Path(__file__).with_name("script.py")
STOP_SECONDS = 3
log = logs.get("web")


def web() -> None:
    """Serve the console in the browser."""
    settings = load_settings()
    logs.configure("web", level=settings.log_level)
    with failing_plainly():
        if not is_installed():
            raise CannotStart("the console in the browser needs more packages: pip install 'osteon[web]'")
        from console.access import cannot_serve

        database = open_database(settings)
        trouble = cannot_serve(database, settings)
        database.close()
        if trouble is not None:
            raise CannotStart(trouble)
        secrets = _prepare_sign_in(settings)
        listening = _bind(settings.web)
    _serve(settings, listening, secrets)


def is_installed() -> bool:
    """Whether the packages of the `web` extra are there; without loading them."""
    return find_spec("streamlit") is not None


def streamlit_options(web: WebSettings) -> dict[str, Any]:
    """Return Streamlit's options, whatever it would find in files of its own."""
    return {
        "global.developmentMode": False,
        "browser.gatherUsageStats": False,
        "browser.serverAddress": web.host,
        "server.address": web.host,
        "server.port": web.port,
        "server.headless": True,
        "server.maxUploadSize": web.max_upload_mb,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.enableStaticServing": False,
        "server.enableAgentApi": False,
        "server.enableXsrfProtection": True,
        "server.disconnectedSessionTTL": 30,
        # What it would find there could open its own sign-in.
        "secrets.files": [],
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.toolbarMode": "minimal",
        "client.disableDataExport": True,
        "runner.magicEnabled": False,
        # A look through all of memory after each run took five times what an open worklist takes without.
        "runner.postScriptGC": False,
        "logger.level": "error",
        "theme.base": "dark",
        **{f"theme.{name}": colour for name, colour in look.THEME.items()},
        "theme.baseRadius": "small",
        "theme.baseFontSize": 16,
        "theme.showWidgetBorder": True,
        "theme.headingFontSizes": ["1.5rem", "1.25rem", "1.1rem", "1rem", "1rem", "1rem"],
        "theme.headingFontWeights": [600, 600, 600, 600, 600, 600],
        "theme.paddingTop": "0.8rem",
        "theme.paddingBottom": "2rem",
    }


def _bind(web: WebSettings) -> socket.socket:
    """Take the port now, so that what is wrong with it is said plainly."""
    family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
    # Named, or asyncio does not take it for TCP and leaves Nagle's algorithm on: 40 ms for each answer of two pieces.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((web.host, web.port))
        # Whoever asks before the pages are ready waits a moment, and is not refused.
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise CannotStart(f"web.host {web.host}, web.port {web.port}: {error.strerror}") from None
    return listening


def _prepare_sign_in(settings: Settings) -> dict[str, Any]:
    """Return what Streamlit has to know of an OpenID provider, if there is one. Raises CannotStart."""
    if settings.web.oidc is None:
        return {}
    from console.web import openid

    secrets = openid.secrets_of(settings, settings.web.oidc)
    if settings.web.oidc.ca is not None:
        try:
            ssl.create_default_context(cafile=settings.web.oidc.ca)
        except OSError as error:
            raise CannotStart(f"web.oidc.ca {settings.web.oidc.ca}: {error.strerror or 'no certificates'}") from None
        # The one way to tell it to the HTTP client below Streamlit's sign-in; nothing else in this process reads it.
        os.environ["SSL_CERT_FILE"] = str(settings.web.oidc.ca)
    openid.listen_to_streamlit()
    return secrets


def _serve(settings: Settings, listening: socket.socket, secrets: dict[str, Any]) -> None:
    # Not before: the command line shall not wait for it.
    import streamlit
    import uvicorn
    from starlette.middleware import Middleware
    from streamlit import config

    from console.web import state
    from console.web.door import Door
    from console.web.shell import Shell
    from console.web.sign_in import routes

    for name, value in streamlit_options(settings.web).items():
        config.set_option(name, value, where_defined="osteon")
    if secrets:
        # Asked for before the secrets are: a sign-in that one process began another one can finish.
        config.set_option("server.cookieSecret", secrets["auth"]["cookie_secret"], where_defined="osteon")
    app = streamlit.App(
        SCRIPT,
        routes=routes(),
        middleware=[Middleware(Door), Middleware(Shell)],
        on_script_error=_say_that_it_failed,
        secrets=secrets or None,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )
    log.info("serving", host=settings.web.host, port=settings.web.port)
    server.run(sockets=[listening])
    state.database().close()
    log.info("stopped")


def _say_that_it_failed(error: Exception) -> bool:
    """Say it in the log, as everywhere without the error's text; and to the person, in a sentence."""
    import streamlit as st

    log.error("a page failed", exc_info=error)
    st.error("This page failed. The node's log says where.")
    return True
