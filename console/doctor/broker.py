"""The broker: whether it answers, whether it asks for a password, and who can reach it."""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import redis

from console.doctor.disk import up_runs
from console.doctor.verdict import Finding, warning, well, wrong
from models.settings import Settings, hide_password
from worker.broker import broker_url, client, socket_path

AREA = "broker"
PROBE_SECONDS = 1.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LOOPBACK = ("127.", "::1", "localhost")


def look_at_broker(settings: Settings) -> Iterator[Finding]:
    """Ping the broker, and try it without a password and from the network."""
    url = broker_url(settings)
    embedded = settings.broker_url is None
    if embedded and not socket_path(settings.data_dir).exists():
        said = "the embedded broker does not run"
        if up_runs(settings):
            yield wrong(
                AREA, f"{said}, although `osteon up` does", "look into its log: the broker is started again and again"
            )
        else:
            yield warning(AREA, said, "`osteon up` starts it; where parts run by themselves, set broker_url")
        return
    began = time.monotonic()
    try:
        with client(settings) as connection:
            connection.ping()
    except redis.RedisError as error:
        yield wrong(AREA, f"{hide_password(url)}: {_why(error)}", f"{_todo(error)}; receiving goes on, but work waits")
        return
    milliseconds = (time.monotonic() - began) * 1000
    yield well(AREA, f"{hide_password(url)} answers in {milliseconds:.0f} ms")
    yield from (_of_a_socket(settings) if embedded else _of_a_port(url))


def _why(error: redis.RedisError) -> str:
    text = str(error).lower()
    if isinstance(error, redis.AuthenticationError) or "noauth" in text or "wrongpass" in text:
        return "it does not accept the password, or there is none in broker_url"
    if isinstance(error, redis.TimeoutError):
        return "no answer in time"
    if "denied" in text:
        return "it lets only its own host in (protected mode)"
    return "nothing answers there"


def _todo(error: redis.RedisError) -> str:
    if isinstance(error, redis.AuthenticationError) or "auth" in str(error).lower():
        return "put the password into broker_url (redis://:PASSWORD@HOST:PORT/0)"
    return "start it, or correct broker_url"


def _of_a_socket(settings: Settings) -> Iterator[Finding]:
    path = socket_path(settings.data_dir)
    if path.parent.stat().st_mode & _OTHERS and path.stat().st_mode & _OTHERS:
        yield warning(AREA, "its socket is open to other users of this host", f"chmod 700 {path.parent}")
    else:
        yield well(AREA, "on a socket that only the node's user can open, on no TCP port")


def _of_a_port(url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    if parts.scheme == "redis+socket" or parts.hostname is None:
        return
    port = parts.port or 6379
    asks = not _lets_in(parts.hostname, port, tls=parts.scheme == "rediss")
    at_home = parts.hostname.startswith(_LOOPBACK)
    outside = not at_home or any(_connects(address, port) for address in outward_addresses())
    if asks:
        yield well(AREA, "asks for a password" + ("" if outside else ", and is reached from this host only"))
    elif outside:
        said = "asks for no password, and can be reached from the network: anyone there can put work into its queues"
        yield wrong(
            AREA, said, "set requirepass (or an ACL) and put it into broker_url; bind it to the hosts that need it"
        )
    else:
        said = "asks for no password; it is reached from this host only, by every user of it"
        yield warning(AREA, said, "set requirepass and put it into broker_url, or use a socket (redis+socket://)")


def _lets_in(host: str, port: int, *, tls: bool) -> bool:
    """Whether it answers somebody who shows no password."""
    stranger = redis.Redis(
        host=host,
        port=port,
        ssl=tls,
        ssl_cert_reqs="none",
        socket_connect_timeout=PROBE_SECONDS,
        socket_timeout=PROBE_SECONDS,
    )
    try:
        return bool(stranger.ping())
    except redis.RedisError:
        return False
    finally:
        stranger.close()


def outward_addresses() -> list[str]:
    """Return the addresses of this host that others may reach, those that are easily known."""
    found = set()
    for family, somewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((somewhere, 9))  # of UDP: nothing is sent
                found.add(str(probe.getsockname()[0]))
        except OSError:
            continue  # no network of this kind
    return sorted(address for address in found if not address.startswith(_LOOPBACK))


def _connects(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
