"""Hosts on one machine: network namespaces of our own (iproute2), each on a cable of its own to the first one."""

from __future__ import annotations

import os
import subprocess
import uuid
from dataclasses import dataclass

import pytest

from tests.peers import require_peer


@dataclass(frozen=True)
class Host:
    """A network namespace. `first` is the first host's address on the cable between the two."""

    name: str
    first: str = "127.0.0.1"

    @property
    def command(self) -> list[str]:
        """Run a program there: put this before it."""
        return [str(require_peer("ip")), "netns", "exec", self.name]

    def plug(self, *, inserted: bool) -> None:
        """Pull the cable to the first host, or put it back in."""
        _ip("-n", self.name, "link", "set", "cable", "up" if inserted else "down")


class Network:
    """A first host and others, each on a cable to it. `close` removes them."""

    def __init__(self, others: int) -> None:
        require_peer("ip")
        unique = uuid.uuid4().hex[:8]
        self._made: list[str] = []
        self.first = Host(self._host(f"osteon-{unique}-0"))
        self.others = [self._cabled(f"osteon-{unique}-{number}", number) for number in range(1, others + 1)]

    def close(self) -> None:
        """Remove the namespaces, and with them their cables."""
        for name in self._made:
            _ip("netns", "delete", name)

    def _host(self, name: str) -> str:
        done = subprocess.run([require_peer("ip"), "netns", "add", name], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")
        self._made.append(name)
        _ip("-n", name, "link", "set", "lo", "up")
        return name

    def _cabled(self, name: str, number: int) -> Host:
        self._host(name)
        here, there = f"10.213.{number}.1", f"10.213.{number}.2"
        _ip("-n", self.first.name, "link", "add", f"to-{number}", "type", "veth", "peer", "cable", "netns", name)
        _ip("-n", self.first.name, "address", "add", f"{here}/24", "dev", f"to-{number}")
        _ip("-n", self.first.name, "link", "set", f"to-{number}", "up")
        _ip("-n", name, "address", "add", f"{there}/24", "dev", "cable")
        _ip("-n", name, "link", "set", "cable", "up")
        return Host(name, here)


def _ip(*arguments: str) -> None:
    subprocess.run([require_peer("ip"), *arguments], check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"})
