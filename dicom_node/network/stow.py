"""A STOW-RS user agent (PS3.18 10.5): one instance a request, its bytes as they are stored.

dicomweb-client makes the multipart message and posts it; the method of its that takes data sets would encode them anew.
Its own retries are off, redirections are not followed, and neither proxies nor passwords are looked for in the
environment. What an answer means stands in `dicom_node.network.answers`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from dicom_node.network.answers import MOST_OF_AN_ANSWER, NOT_UNDERSTOOD, Answer, judge
from dicom_node.network.line import Cut, NoLine, connect
from dicom_node.objects.recognise import MODEL
from dicom_node.outcome import (
    CONNECTION_LOST,
    NO_ANSWER,
    NO_SECRET,
    NOT_REACHED,
    Outcome,
    Result,
)
from dicom_node.tls import Expected
from models import logs
from models.version import VERSION

MOST_OF_A_SECRET = 16_384
NOT_DICOM = "not_dicom"
_PREAMBLE, _PREFIX = 128, b"DICM"
_NO_CONTENT = 204
_TOKEN = re.compile(rb"[\x21-\x7e]+")
_ALL_IN_ONE_PIECE = 2**40
_PIECE = 65_536
Connect = Callable[[], socket.socket]
log = logs.get("stow")
# It warns of every error, although it retries none, with a traceback.
logging.getLogger("retrying").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Service:
    """A DICOMweb service, and how it knows us: by a token, by user and password, or not at all."""

    url: str
    tls: Expected | None = None
    user: str | None = None
    password_file: Path | None = None
    token_file: Path | None = None

    def __post_init__(self) -> None:
        if self.url.startswith("https:") != (self.tls is not None):
            raise ValueError("https needs to be told which certificate is expected, and http has none")


class StowLink:
    """A connection to a DICOMweb service, closed at the end of the block; made again where the service closed it.

    Connecting may take `timeout` seconds, an answer as long after the request, and request and answer together twice as
    long, however they are dealt out. Where the service is not reached, or does not let us store anything, `trouble`
    says why; that may turn out with the first answer only.
    """

    def __init__(self, service: Service, *, timeout: float) -> None:
        self._service = service
        self._timeout = timeout
        self._cut = Cut()
        self._answer: Answer | None = None
        self._client: DICOMwebClient | None = None
        self._session = _Session(self._connect)
        self._ahead: socket.socket | None = None
        self.trouble: Outcome | None = None

    def __enter__(self) -> StowLink:
        """Connect."""
        try:
            self._session.auth = _authorisation(self._service)
        except OSError as error:
            self.trouble = Outcome(Result.FAILED, NO_SECRET, detail=error.strerror or str(error))
            return self
        self._client = DICOMwebClient(
            self._service.url.rstrip("/"),
            session=self._session,
            callback=self._keep,
            chunk_size=_ALL_IN_ONE_PIECE,
            timeout=self._timeout,
        )
        self._client.set_http_retry_params(retry=False)
        with contextlib.suppress(NoLine):  # `trouble` says so
            self._ahead = self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._session.close()
        if self._ahead is not None:
            self._ahead.close()

    def store(self, content: bytes) -> Outcome:
        """Send one DICOM file (PS3.10), and wait for the answer. Without one the connection is over."""
        if content[_PREAMBLE : _PREAMBLE + len(_PREFIX)] != _PREFIX:
            return Outcome(Result.REFUSED, NOT_DICOM)
        if self._client is None or self.trouble is not None or self._cut.done:
            return self.trouble or Outcome(Result.FAILED, NOT_REACHED)
        self._answer = None
        watch = threading.Timer(2 * self._timeout, self._cut.cut)
        watch.daemon = True
        watch.start()
        try:
            failure = self._post(self._client, content)
        finally:
            watch.cancel()
        if self._answer is None:
            return failure
        outcome, of_service = judge(self._answer)
        if of_service:
            self.trouble = outcome
        return outcome

    def drop(self) -> None:
        """Cut the connection, at any time and from any thread: who waits for an answer has none."""
        self._cut.drop()

    def _post(self, client: DICOMwebClient, content: bytes) -> Outcome:
        """Post it; return what it was where no answer comes."""
        boundary = _boundary(content)
        media_type = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
        body = client._encode_multipart_message([content], media_type)
        began = time.monotonic()
        try:
            client._http_post(f"{client.base_url}/studies", body, {"Content-Type": media_type})
        except (requests.RequestException, HTTPError, OSError):
            # Also for an answer that says no, which was kept before. Their texts name addresses.
            late = time.monotonic() - began >= self._timeout
            return self.trouble or Outcome(Result.FAILED, NO_ANSWER if late else CONNECTION_LOST)
        return Outcome(Result.FAILED, NOT_UNDERSTOOD)

    def _connect(self) -> socket.socket:
        """Return the connection that was made ahead, or make one. Raises NoLine, and then `trouble` says why."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return ahead
        if self._cut.done:
            self.trouble = Outcome(Result.FAILED, NOT_REACHED)
            raise NoLine(self.trouble)
        url = urlsplit(self._service.url)
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            return connect(url.hostname or "", port, self._service.tls, timeout=self._timeout, show=self._cut.show)
        except NoLine as failed:
            self.trouble = failed.outcome
            raise

    def _keep(self, response: requests.Response, **_: object) -> None:
        headers = response.headers
        announced = response.status_code == _NO_CONTENT or "Content-Length" in headers or "Transfer-Encoding" in headers
        self._answer = Answer(response.status_code, response.content, announced)


# --- the connection ---------------------------------------------------------------------------------------------------


class _Session(requests.Session):
    """Connects by `connect`, does what it is told, and nothing that the environment says."""

    def __init__(self, connect: Connect) -> None:
        super().__init__()
        self.trust_env = False
        self.headers["User-Agent"] = f"{MODEL}/{VERSION}"
        self.headers["Accept"] = "application/dicom+json"
        self.headers["Accept-Encoding"] = "identity"  # what is compressed may be longer than it looks
        adapter = _Adapter(connect)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 (requests names it)
        """Follow nobody: an object goes where the settings say."""
        return None


class _Adapter(HTTPAdapter):
    """Takes its connections from `connect`, and reads little more of an answer than MOST_OF_AN_ANSWER."""

    def __init__(self, connect: Connect) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self.poolmanager.pool_classes_by_scheme = {
            scheme: type("_Pool", (pool,), {"ConnectionCls": type("_Made", (made,), {"make": staticmethod(connect)})})
            for scheme, pool, made in (("http", HTTPConnectionPool, _Plain), ("https", HTTPSConnectionPool, _Secured))
        }

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send a request and read its answer."""
        request.headers.pop("Host", None)  # dicomweb-client's lacks the port
        response = super().send(request, *args, **{**options, "stream": True})
        content = b""
        while len(content) <= MOST_OF_AN_ANSWER and (piece := response.raw.read(_PIECE, decode_content=False)):
            content += piece
        response._content = content
        return response


class _Plain(HTTPConnection):
    """Has its socket made by `make`."""

    make: Connect

    def connect(self) -> None:
        """Connect."""
        self.sock = self.make()


class _Secured(HTTPSConnection):
    """Has its socket made by `make`, its certificate verified."""

    make: Connect

    def connect(self) -> None:
        """Connect."""
        self.sock = self.make()
        self.is_verified = True


def _boundary(content: bytes) -> str:
    """Return one that is not in it."""
    while True:
        boundary = uuid.uuid4().hex
        if boundary.encode() not in content:
            return boundary


# --- who we are -------------------------------------------------------------------------------------------------------


class _Token(AuthBase):
    """A bearer token (RFC 6750 2.1)."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _authorisation(service: Service) -> AuthBase | None:
    """Read the files anew: passwords and tokens change. Raises OSError where one cannot be used."""
    if service.token_file is not None:
        token = _secret_in(service.token_file)
        if not _TOKEN.fullmatch(token):
            raise OSError("not a token")
        return _Token(token.decode("ascii"))
    if service.user is not None and service.password_file is not None:
        return HTTPBasicAuth(service.user.encode(), _secret_in(service.password_file))
    return None


def _secret_in(path: Path) -> bytes:
    """Return the file's first line."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("a secret is open to others than its owner", file=path.name)
        secret = file.read(MOST_OF_A_SECRET).split(b"\n", 1)[0].rstrip(b"\r")
    if not secret:
        raise OSError("the file is empty")
    return secret
