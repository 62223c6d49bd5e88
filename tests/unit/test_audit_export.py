"""A signed export says of every byte that was changed, and of every line that was moved, where that was."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import audit, clock
from models.audit_check import MOST_NAMED
from models.audit_export import ExportVerdict, NotAnExport, check_export, export
from models.audit_search import Search
from models.database import Database
from models.signing import PublicKey, SigningKey, canonical, read_public_key, rotate, signing_key
from models.upgrade import upgrade
from tests.servers import given as given_settings

EVENTS = 12


class Exported:
    """An export, its key, and what is made of it."""

    def __init__(self, folder: Path) -> None:
        made = given_settings(folder / "node")
        upgrade(made)
        database = Database.of(made)
        with clock.frozen(datetime(2026, 1, 1, tzinfo=UTC)):
            with database.write() as session:
                for number in range(EVENTS):
                    audit.record(session, actor="Zoë", action="tested", subject="image", subject_id=number, sha256="5a")
            with database.write() as session:
                audit.chain(session)
            self.key: SigningKey = signing_key(made)
            self.path = folder / "export.jsonl"
            export(database, self.path, Search(), by="auditor", key=self.key, head=None, record=lambda _: None)
        database.close()
        self.content = self.path.read_bytes()
        self.lines = self.content.splitlines(keepends=True)
        self.other = rotate(made)[1]

    def check(self, content: bytes, key: PublicKey | None = None) -> ExportVerdict:
        path = self.path.with_name("changed.jsonl")
        path.write_bytes(content)
        return check_export(path, key)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"))


def test_an_export_as_it_was_made_is_well(exported: Exported) -> None:
    for key in (None, exported.key.public):
        verdict = exported.check(exported.content, key)
        assert (verdict.well, verdict.events, verdict.key) == (True, EVENTS, exported.key.public.id)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bit_that_was_flipped_is_found_and_its_line_named(exported: Exported, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(exported.content) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(exported.content)
    changed[position] ^= 1 << bit
    line = exported.content.count(b"\n", 0, position) + 1
    verdict = exported.check(bytes(changed))
    assert not verdict.well
    named = verdict.faults[0]
    last = line == len(exported.lines)
    assert (
        f"line {line}" in named
        or f"line {line + 1}" in named
        or (last and "last line" in named)
        or (last and "signature" in named)
    ), (line, verdict.faults)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_lines_that_were_removed_added_or_moved_are_found(exported: Exported, data: st.DataObject) -> None:
    lines = list(exported.lines)
    one = data.draw(st.integers(0, len(lines) - 1))
    other = data.draw(st.integers(0, len(lines) - 1).filter(lambda number: number != one))
    change = data.draw(st.sampled_from(["removed", "added", "moved", "cut"]))
    if change == "removed":
        del lines[one]
    elif change == "added":
        lines.insert(other, lines[one])
    elif change == "moved":
        lines.insert(other, lines.pop(one))
    else:
        del lines[max(1, one) :]
    assert not exported.check(b"".join(lines)).well


def in_capitals(line: bytes) -> bytes:
    """The same signature, with other bytes in the file."""
    content = json.loads(line)
    return canonical(content | {"signature": content["signature"].upper()}) + b"\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:3] + lines[4:], "line 4 is missing"),
        (lambda lines: lines[:3] + lines[5:], "lines 4 to 5 are missing"),
        (lambda lines: lines[:4] + lines[3:], "line 5 was added or moved: it has the number 4"),
        (lambda lines: lines[:-1], "the last line is missing: there is no signature"),
        (lambda lines: [*lines, lines[3]], f"line {EVENTS + 3} stands behind the last line"),
        (lambda lines: [*lines[:3], lines[3].replace(b'"tested"', b'"taster"'), *lines[4:]], "line 4 was changed"),
        (lambda lines: [*lines[:3], lines[3].replace(b'":', b'": ', 1), *lines[4:]], "line 4 is not as it was written"),
        (lambda lines: lines[1:], "line 1 is missing"),
        (lambda lines: [*lines[:-1], in_capitals(lines[-1])], "the signature does not match"),
    ],
)
def test_what_was_done_is_named(exported: Exported, change: Callable[[list[bytes]], list[bytes]], said: str) -> None:
    assert exported.check(b"".join(change(exported.lines))).faults[0].startswith(said)


def test_a_file_that_was_written_anew_by_somebody_else_has_another_key(exported: Exported) -> None:
    """Whoever has the program and a key can make a file; only the key that is known from elsewhere tells."""
    forged = _signed_anew(exported, exported.other)
    assert exported.check(forged).well
    verdict = exported.check(forged, exported.key.public)
    assert verdict.faults[0] == "line 1: it was signed with another key than the one given"
    assert verdict.faults[-1] == "the signature does not match"


def test_digests_that_were_made_anew_do_not_have_the_signature_of_the_key(exported: Exported) -> None:
    forged = _signed_anew(exported, exported.other, header_of=exported.key)
    assert exported.check(forged).faults == ["the signature does not match"]


def _signed_anew(exported: Exported, key: SigningKey, *, header_of: SigningKey | None = None) -> bytes:
    from models.audit_export import _digest, _signed

    named = (header_of or key).public
    digest, made = "", b""
    for line in exported.lines:
        content: dict[str, Any] = json.loads(line)
        signed = content.pop("signature", None) is not None
        content.pop("digest")
        if "public_key" in content:
            content |= {"key": named.id, "public_key": named.pem}
        digest = _digest(digest, content)
        content["digest"] = digest
        if signed:
            content["signature"] = key.sign(_signed(digest))
        made += canonical(content) + b"\n"
    return made


def test_an_event_that_does_not_fit_its_place_in_the_chain_is_named_whoever_signed(exported: Exported) -> None:
    changed = b"".join(exported.lines).replace(b'"subject_id":3', b'"subject_id":4', 1)
    forged = _signed_anew(_with(exported, changed), exported.other)
    assert exported.check(forged).faults == ["line 5: its event is not what was chained at place 4"]


def _with(exported: Exported, content: bytes) -> Exported:
    other = object.__new__(Exported)
    other.__dict__ |= exported.__dict__ | {"content": content, "lines": content.splitlines(keepends=True)}
    return other


def test_of_very_many_faults_the_first_are_named_and_the_others_counted(exported: Exported) -> None:
    verdict = exported.check(exported.lines[0] + exported.lines[1] * 100)
    assert len(verdict.faults) == MOST_NAMED
    assert verdict.more_faults > 50


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"[]\n", b"no json\n", b"\xff" * 100, b'{"format":1}\n', b"[" * 100_000]
)
def test_what_is_no_export_is_none(exported: Exported, content: bytes) -> None:
    with pytest.raises(NotAnExport):
        exported.check(content)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300))
def test_no_file_whatever_takes_the_check_down(exported: Exported, content: bytes) -> None:
    for some in (content, exported.lines[0] + content, exported.content[:-20] + content):
        try:
            verdict = exported.check(some)
        except NotAnExport:
            continue
        assert verdict.well == (some == exported.content)


def test_a_public_key_is_read_as_it_is_printed(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text(exported.key.public.pem)
    found = read_public_key(path)
    assert (found.id, found.pem) == (exported.key.public.id, exported.key.public.pem)
