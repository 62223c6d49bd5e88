"""A certification authority for tests, by OpenSSL's command line, and DICOM in raw bytes to send past it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from ssl import PEM_cert_to_DER_cert

from tests.peers import require_peer

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path

    @property
    def sha256(self) -> str:
        """The fingerprint."""
        return sha256(PEM_cert_to_DER_cert(self.certificate.read_text())).hexdigest()


class Authority:
    """A CA of its own, whose files lie in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._own = Issued(folder / "ca.pem", folder / "ca.key")
        openssl("req", "-x509", *_EC, *_files(self._own), "-days", "30", "-subj", f"/CN={name}")

    @property
    def certificate(self) -> Path:
        """Its own certificate, as peers trust it."""
        return self._own.certificate

    def issue(self, name: str, *, alternatives: str = "", days: int = 10) -> Issued:
        """Issue a certificate for `name`; a negative number of days makes one that has expired."""
        made = Issued(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request = self._folder / f"{name}.csr"
        extension = ("-addext", f"subjectAltName={alternatives}") if alternatives else ()
        openssl("req", "-new", *_EC, "-keyout", made.key, "-out", request, "-subj", f"/CN={name}", *extension)
        signer = ("-CA", self._own.certificate, "-CAkey", self._own.key, "-copy_extensions", "copy")
        openssl("x509", "-req", "-in", request, *signer, "-days", str(days), "-out", made.certificate)
        made.key.chmod(0o600)
        return made


def openssl(*arguments: str | Path, timeout: float = 60) -> str:
    """Run `openssl ARGUMENTS` to its end and return what it printed. Fails where it fails."""
    done = subprocess.run(
        [require_peer("openssl"), *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _files(issued: Issued) -> tuple[str | Path, ...]:
    return "-keyout", issued.key, "-out", issued.certificate
