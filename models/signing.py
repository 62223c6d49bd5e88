"""Ed25519 signatures of what leaves the database: heads of the audit chain, and exports.

The private key is made when it is first needed. It lies in the data folder, or where `audit.key` says; the public keys
of all keys that there ever were stay beside it in the data folder, so that what an old key signed can still be checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import logs
from models.errors import CannotStart
from models.settings import Settings

if TYPE_CHECKING:
    # Loaded when something is signed or checked: it takes long, and most parts never do.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FOLDER = "audit-keys"
PRIVATE = "signing.pem"
PUBLIC_SUFFIX = ".pub.pem"
log = logs.get("signing")


class KeyUnusable(CannotStart):
    """A key cannot be read or made; the text says which and why, and nothing of the key."""


def canonical(content: Any) -> bytes:
    """Return the one way in which this content is written as JSON: what is signed, hashed and compared."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class PublicKey:
    """Checks what the private key that belongs to it has signed. `id` is the sha256 of its DER form."""

    id: str
    pem: str
    _key: Ed25519PublicKey = field(repr=False)

    def signed(self, signature: str, content: bytes) -> bool:
        """Whether this is the key's signature, in lower case hex, of `content`."""
        from cryptography.exceptions import InvalidSignature

        try:
            made = bytes.fromhex(signature)
            self._key.verify(made, content)
        except (ValueError, InvalidSignature):
            return False
        return made.hex() == signature


@dataclass(frozen=True)
class SigningKey:
    """Signs. `created` says whether it was made just now, which belongs on record."""

    public: PublicKey
    _key: Ed25519PrivateKey = field(repr=False)
    created: bool = False

    def sign(self, content: bytes) -> str:
        """Return the signature of `content` in hex."""
        return self._key.sign(content).hex()


def private_path(settings: Settings) -> Path:
    """Return where the private key lies."""
    return settings.audit.key or keys_folder(settings) / PRIVATE


def keys_folder(settings: Settings) -> Path:
    """Return the folder of the public keys."""
    return settings.data_dir.absolute() / FOLDER


def signing_key(settings: Settings) -> SigningKey:
    """Return the key in force, making it where there is none. Raises KeyUnusable.

    Of several processes that make it at once one is the first, and the others take its key.
    """
    path = private_path(settings)
    try:
        made = not path.exists() and put_private(path, _new_pem(), replace=False)
        key = _private(path, created=made)
        _keep_public(settings, key.public)
    except OSError as error:
        raise KeyUnusable(f"the key {path.name} cannot be read or made ({error.strerror})") from None
    return key


def rotate(settings: Settings) -> tuple[str, SigningKey]:
    """Put a new key in the place of the one in force; return the old one's id and the new one. Raises KeyUnusable."""
    old = signing_key(settings)
    path = private_path(settings)
    try:
        put_private(path, _new_pem(), replace=True)
        new = _private(path, created=True)
        _keep_public(settings, new.public)
    except OSError as error:
        raise KeyUnusable(f"the key {path.name} cannot be made ({error.strerror})") from None
    return old.public.id, new


def known_keys(settings: Settings) -> dict[str, PublicKey]:
    """Return every public key that this installation has used, by id. Raises KeyUnusable where a file is none."""
    folder = keys_folder(settings)
    if not folder.is_dir():
        return {}
    keys = [read_public_key(path) for path in sorted(folder.glob(f"*{PUBLIC_SUFFIX}"))]
    return {key.id: key for key in keys}


def read_public_key(path: Path) -> PublicKey:
    """Return the public key in a PEM file. Raises KeyUnusable."""
    try:
        return public_key(path.read_bytes())
    except OSError as error:
        raise KeyUnusable(f"{path.name}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise KeyUnusable(f"{path.name}: no public key (PEM, Ed25519)") from None


def public_key(pem: bytes) -> PublicKey:
    """Return the public key that is written in PEM. Raises ValueError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except UnsupportedAlgorithm:
        raise ValueError("not an Ed25519 key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 key")
    return _public(key)


def _public(key: Ed25519PublicKey) -> PublicKey:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(hashlib.sha256(der).hexdigest(), pem.decode(), key)


def _private(path: Path, *, created: bool) -> SigningKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("the private key is open to others than its owner", file=path.name)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"{path.name}: no private key (PEM, PKCS #8, Ed25519, not encrypted)")
    return SigningKey(_public(key.public_key()), key, created=created)


def _new_pem() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _keep_public(settings: Settings, key: PublicKey) -> None:
    path = keys_folder(settings) / f"{key.id}{PUBLIC_SUFFIX}"
    if not path.exists():
        put_private(path, key.pem.encode(), replace=False)


def put_private(path: Path, content: bytes, *, replace: bool) -> bool:
    """Write a file that is there as a whole or not at all, for its owner only; return whether it was put there.

    Without `replace`, one that is there already stays, also where another process puts it there meanwhile.
    """
    make_private_folder(path.parent)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            new.rename(path)
        else:
            try:
                path.hardlink_to(new)
            except FileExistsError:
                return False
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
    return True


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, durably, unless it is there."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
