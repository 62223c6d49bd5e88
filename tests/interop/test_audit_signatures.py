"""OpenSSL, which knows nothing of Osteon, checks the signatures of exports and heads from what the docs say of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from models import audit
from models.audit_export import export
from models.audit_heads import head_files, heads_folder
from models.audit_search import Search
from models.database import Database
from models.signing import signing_key
from models.upgrade import upgrade
from tests.peers import require_peer
from tests.servers import given
from worker.heads import Signer


def signed(folder: Path, public_key: str, signature: str, content: bytes) -> bool:
    """Whether OpenSSL finds it so."""
    for name, written in (
        ("key.pem", public_key.encode()),
        ("signature", bytes.fromhex(signature)),
        ("content", content),
    ):
        (folder / name).write_bytes(written)
    line = ["pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "content", "-sigfile", "signature"]
    return (
        subprocess.run([require_peer("openssl"), *line], cwd=folder, capture_output=True, check=False).returncode == 0
    )


def canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A file of two events, one of them with a place in the chain, and a head beside it."""
    settings = given(tmp_path / "node")
    upgrade(settings)
    database = Database.of(settings)
    for _ in range(2):
        with database.write() as session:
            audit.record(session, actor="Zoë", action="tested", subject="study", subject_id=None)
            audit.chain(session)
    Signer(settings, database).step()
    path = tmp_path / "export.jsonl"
    key = signing_key(settings)
    export(database, path, Search(), by="auditor", key=key, head=None, record=lambda _: None)
    database.close()
    (file,) = head_files(heads_folder(settings))
    (tmp_path / "heads.jsonl").write_bytes(file.read_bytes())
    return path


def test_openssl_finds_an_export_signed_as_it_is_described(exported: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in exported.read_bytes().splitlines()]
    digest = ""
    for line in lines:
        bare = {name: value for name, value in line.items() if name not in ("digest", "signature")}
        digest = hashlib.sha256(digest.encode() + canonical(bare)).hexdigest()
        assert digest == line["digest"]
    key, signature = lines[0]["public_key"], lines[-1]["signature"]
    assert signed(tmp_path, key, signature, f"osteon audit export 1\n{digest}".encode())
    assert not signed(tmp_path, key, signature, f"osteon audit export 1\n{'0' * 64}".encode())


def test_openssl_finds_a_head_signed_as_it_is_described(exported: Path, tmp_path: Path) -> None:
    key = json.loads(exported.read_bytes().splitlines()[0])["public_key"]
    (line,) = (tmp_path / "heads.jsonl").read_bytes().splitlines()
    head = json.loads(line)
    signature = head.pop("signature")
    assert signed(tmp_path, key, signature, canonical(head))
    assert not signed(tmp_path, key, signature, canonical(head | {"place": 7}))
