"""The settings: what is dangerous, or most likely meant otherwise, although it is no mistake."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from ipaddress import ip_address

from console.doctor.verdict import Finding, warning, well, wrong
from models.settings import Peer, Settings, config_path

AREA = "settings"
SHORT_QUIET_SECONDS = 5.0


def look_at_settings(settings: Settings) -> Iterator[Finding]:
    """Look at the settings alone."""
    path = config_path()
    yield well(AREA, f"from {path.absolute() if path else 'no file'} and the environment, without mistakes")
    yield from (*_file(settings), *_strangers(settings), *_peers(settings), *_values(settings))


def is_loopback(host: str) -> bool:
    """Whether only this host can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _file(settings: Settings) -> Iterator[Finding]:
    path = config_path()
    secrets = (settings.database_url, settings.database_owner_url, settings.broker_url)
    held = any(url is not None and "@" in url.get_secret_value() for url in secrets)
    if held and path is not None and path.is_file() and path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        said = f"every user of this host can read {path}, and passwords are set"
        yield warning(AREA, said, f"chmod o-rwx {path}, or keep passwords in the environment")


def _strangers(settings: Settings) -> Iterator[Finding]:
    listener, tls = settings.listener, settings.tls
    by_certificate = tls.only and tls.require_certificates
    if listener.accept_unknown_callers and not is_loopback(settings.host):
        todo = "set accept_unknown_callers = false and list the senders as peers"
        if by_certificate:
            yield warning(AREA, "whoever has a certificate may store here (accept_unknown_callers)", todo)
        else:
            said = f"anyone in the network may store here (accept_unknown_callers, host = {settings.host})"
            yield wrong(AREA, said, todo)
    known_by_name = [peer.name for peer in settings.sources if not peer.tls and not peer.check_address]
    if known_by_name and not is_loopback(settings.host) and not by_certificate:
        said = f"known by their AE titles alone, which anyone can claim: {', '.join(known_by_name)}"
        yield warning(AREA, said, "give these peers check_address = true (with their IP address), or tls")


def _peers(settings: Settings) -> Iterator[Finding]:
    if not settings.sources and not settings.listener.accept_unknown_callers:
        yield warning(AREA, "no peer is a source: every C-STORE is refused", 'add one to [[peers]], role = "source"')
    if not settings.destinations:
        said = "no peer is a destination: reports are kept and go nowhere"
        yield warning(AREA, said, 'add one to [[peers]], role = "destination"')
    places: dict[tuple[object, ...], str] = {}
    for peer in settings.destinations:
        if _is_ourselves(peer, settings):
            yield wrong(AREA, f"{peer.name} is this node itself: reports would come back", "correct its host or port")
        place = (peer.protocol, peer.url, peer.host, peer.port, peer.ae_title)
        if place in places:
            said = f"{places[place]} and {peer.name} are the same place: it gets what both get"
            yield warning(AREA, said, "make one peer of them, or correct host, port or ae_title")
        places[place] = peer.name


def _is_ourselves(peer: Peer, settings: Settings) -> bool:
    here = peer.host is not None and (is_loopback(peer.host) or peer.host == settings.host)
    return here and peer.port in (settings.port, settings.tls.port) and peer.ae_title == settings.ae_title


def _values(settings: Settings) -> Iterator[Finding]:
    listener = settings.listener
    if not listener.min_free_bytes and not listener.min_free_percent:
        said = "both low-space marks are 0: the disk may fill up to the last byte"
        yield warning(AREA, said, "set listener.min_free_bytes")
    quiet = {peer.name: settings.quiet_time_of(peer.ae_title) for peer in settings.sources if peer.ae_title}
    short = [
        name for name, seconds in {"study": settings.study.quiet_time, **quiet}.items() if seconds < SHORT_QUIET_SECONDS
    ]
    if short:
        said = f"a quiet time below {SHORT_QUIET_SECONDS:g} s ({', '.join(short)}): reports may come before all images"
        yield warning(AREA, said, "set quiet_time to at least the pause between two images of a study")
    if not settings.data_dir.is_absolute() and not is_loopback(settings.host):
        said = f"data_dir is relative: it is {settings.data_dir.absolute()} only when started from this folder"
        yield warning(AREA, said, "set data_dir to an absolute path")
