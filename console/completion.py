"""What a shell completes besides commands and options: the names of peers, and of the bundles that are shipped.

A file of settings that cannot be read completes nothing, and says nothing: that is not the moment.
"""

from __future__ import annotations

from models.settings import Peer, SettingsMistakes, load_settings


def destination_names(incomplete: str) -> list[str]:
    """Names of peers that are sent something."""
    return [peer.name for peer in _peers() if peer.is_destination and peer.name.startswith(incomplete)]


def source_names(incomplete: str) -> list[str]:
    """Names of peers that send to us."""
    return [peer.name for peer in _peers() if peer.is_source and peer.name.startswith(incomplete)]


def source_titles(incomplete: str) -> list[str]:
    """AE titles of peers that send to us."""
    return [str(peer.ae_title) for peer in _peers() if peer.is_source and str(peer.ae_title).startswith(incomplete)]


def bundle_names(incomplete: str) -> list[str]:
    """Names of the bundles that are shipped."""
    from worker.bundle import default_bundle_path

    shipped = default_bundle_path().parent
    return sorted(path.name for path in shipped.iterdir() if path.is_dir() and path.name.startswith(incomplete))


def _peers() -> list[Peer]:
    try:
        return load_settings().peers
    except SettingsMistakes:
        return []
