"""Where the broker is: the one that the settings name, or the embedded Valkey on its unix socket."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import redis

from models.errors import CannotStart
from models.settings import Settings

CONNECT_SECONDS = 2
ANSWER_SECONDS = 5
# A worker waits for hints for as long as none comes; whether its broker is still there, the kernel asks.
KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 2}
# The kernel takes 107 characters (sun_path); what is longer goes into the temporary folder.
LONGEST_SOCKET_PATH = 100


class BrokerUnreachable(CannotStart):
    """Nothing answers there."""


def socket_path(data_dir: Path) -> Path:
    """Return the embedded broker's socket: in the data folder, or in a private folder where that path is too long."""
    inside = data_dir.absolute() / "run" / "valkey.sock"
    if len(str(inside)) <= LONGEST_SOCKET_PATH:
        return inside
    digest = hashlib.sha256(str(data_dir.absolute()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"osteon-{os.getuid()}-{digest}" / "valkey.sock"


def broker_url(settings: Settings) -> str:
    """Return the broker's URL for Celery."""
    if settings.broker_url is not None:
        return settings.broker_url.get_secret_value()
    return f"redis+socket://{socket_path(settings.data_dir)}"


def broker_options() -> dict[str, Any]:
    """Return kombu's transport options: every step bounded."""
    return {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "socket_keepalive": True,
        "socket_keepalive_options": KEEPALIVE,
        "health_check_interval": 10,
        "max_connections": 20,
    }


def client(settings: Settings) -> redis.Redis:
    """Return a client of the broker, to ask how it is. Every call is bounded."""
    url = broker_url(settings).replace("redis+socket://", "unix://", 1)
    return redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=ANSWER_SECONDS)


def require_broker(settings: Settings) -> None:
    """Raise BrokerUnreachable where the broker does not answer."""
    try:
        with client(settings) as connection:
            connection.ping()
    except redis.RedisError as error:
        raise BrokerUnreachable(f"the broker does not answer ({type(error).__name__})") from None


def queue_length(connection: redis.Redis, queue: str) -> int:
    """Return how many hints wait in a queue."""
    length = connection.llen(queue)
    assert isinstance(length, int)  # noqa: S101 (redis-py types sync and async answers alike)
    return length
