"""Names in every character set: written by others, received by C-STORE, read back from the report by others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select

from dicom_node.headers import SourceHeader, read_header_file
from dicom_node.objects.content import ImageOutcome
from dicom_node.objects.report import build_report
from models.settings import Peer
from models.tables import Image
from models.upgrade import upgrade
from tests.peers import require_peer
from tests.radiographs import radiograph
from tests.reports import content, reading
from tests.servers import Node, dcmtk, given

JIS, KS = r"\ISO 2022 IR 87", r"\ISO 2022 IR 149"
NAMES: dict[str, tuple[str, str, bytes]] = {
    # PS3.5, H.3.1, H.3.2 and I.2.
    "kanji": (
        JIS,
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "half-width katakana and kanji": (
        r"ISO 2022 IR 13\ISO 2022 IR 87",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
    ),
    "half-width katakana": ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3"),
    "hangul": (
        KS,
        "Hong^Gildong=洪^吉洞=홍^길동",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
    ),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东", b"Wang^XiaoDong=" + "王^小东".encode("gb18030")),
    "GBK": ("GBK", "Wang^XiaoDong=王^小东", b"Wang^XiaoDong=" + "王^小东".encode("gbk")),
    "GB2312": (
        r"\ISO 2022 IR 58",
        "Zhang^XiaoDong=张^小东",
        b"Zhang^XiaoDong=\x1b$)A" + "张".encode("gb2312") + b"^\x1b$)A" + "小东".encode("gb2312"),
    ),
    "UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小東=", "Wang^XiaoDong=王^小東=".encode()),
    "Latin-1": ("ISO_IR 100", "Buc^Jérôme", "Buc^Jérôme".encode("latin-1")),
    "Latin-2": ("ISO_IR 101", "Wałęsa^Łukasz", "Wałęsa^Łukasz".encode("iso8859_2")),
    "Latin-3": ("ISO_IR 109", "Ġorġ^Ħal", "Ġorġ^Ħal".encode("iso8859_3")),
    "Latin-4": ("ISO_IR 110", "Ķēniņš^Ģirts", "Ķēniņš^Ģirts".encode("iso8859_4")),
    "Latin-5": ("ISO_IR 148", "Çavuşoğlu^İpek", "Çavuşoğlu^İpek".encode("iso8859_9")),
    "Latin-9": ("ISO_IR 203", "Šœur^Ÿves", "Šœur^Ÿves".encode("iso8859_15")),
    "Cyrillic": ("ISO_IR 144", "Люкceмбypг", "Люкceмбypг".encode("iso8859_5")),
    "Greek": ("ISO_IR 126", "Διονυσιος", "Διονυσιος".encode("iso8859_7")),
    "Arabic": ("ISO_IR 127", "قباني^لنزار", "قباني^لنزار".encode("iso8859_6")),
    "Hebrew": ("ISO_IR 138", "שרון^דבורה", "שרון^דבורה".encode("iso8859_8")),
    "Thai": ("ISO_IR 166", "นามสกุล^ชื่อ", "นามสกุล^ชื่อ".encode("iso8859_11")),
    "Greek beside Latin": (
        r"ISO 2022 IR 100\ISO 2022 IR 126",
        "Buc^Jérôme=Διονυσιος",
        "Buc^Jérôme".encode("latin-1") + b"=\x1b-F" + "Διονυσιος".encode("iso8859_7"),
    ),
}
# pydicom 3.0.2 does not know the one, and writes the other without its escape sequences.
BY_PYDICOM = [name for name in NAMES if name not in ("Latin-9", "GB2312")]


def plain(folder: Path) -> Path:
    """An image whose text is ASCII, without a character set."""
    dataset = radiograph(np.zeros((8, 8), np.uint16), transfer_syntax=ExplicitVRLittleEndian)
    for keyword in ("SpecificCharacterSet", "PatientName", "StudyDescription"):
        dataset.pop(keyword, None)
    dataset.save_as(folder / "image.dcm", enforce_file_format=True)
    return folder / "image.dcm"


def written_by_dcmtk(folder: Path, declared: str | None, raw: bytes) -> Path:
    path = plain(folder)
    values = [b"(0010,0010)=" + raw]
    if declared is not None:
        values.append(b"(0008,0005)=" + declared.encode())
    options = [part for value in values for part in (b"-i", value)]
    command = [os.fsencode(require_peer("dcmodify")), b"-nb", b"-q", *options, os.fsencode(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return path


def name_in_the_report(header: SourceHeader, folder: Path) -> tuple[str, str]:
    """The patient's name as pydicom and as DCMTK read it."""
    path = folder / "report.dcm"
    path.write_bytes(build_report(content(ImageOutcome(header, readings=(reading(),)))))
    done = subprocess.run(
        [require_peer("dcmdump"), "+P", "PatientName", path], check=True, capture_output=True, timeout=30
    )
    line = done.stdout.decode("utf-8")
    return str(pydicom.dcmread(path).PatientName), line[line.index("[") + 1 : line.rindex("]")]


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_dcmtk_wrote_stands_in_the_report_as_it_was_meant(case: str, tmp_path: Path) -> None:
    declared, name, raw = NAMES[case]
    header = read_header_file(written_by_dcmtk(tmp_path, declared, raw))
    assert header.patient.name == name.rstrip("=")
    assert name_in_the_report(header, tmp_path) == (name.rstrip("="),) * 2


@pytest.mark.parametrize("case", BY_PYDICOM)
def test_a_name_that_pydicom_wrote_stands_in_the_report_as_it_was_meant(case: str, tmp_path: Path) -> None:
    declared, name, _ = NAMES[case]
    dataset = pydicom.dcmread(plain(tmp_path))
    dataset.SpecificCharacterSet = declared.split("\\")
    dataset.PatientName = name
    dataset.save_as(tmp_path / "image.dcm")
    header = read_header_file(tmp_path / "image.dcm")
    assert name_in_the_report(header, tmp_path) == (name.rstrip("="),) * 2


@pytest.mark.parametrize("case", NAMES)
def test_undeclared_text_is_read_by_the_setting_of_its_source(case: str, tmp_path: Path) -> None:
    declared, name, raw = NAMES[case]
    header = read_header_file(written_by_dcmtk(tmp_path, None, raw), default_charset=declared)
    assert header.patient.name == name.rstrip("=")


# Over the network.

UNDECLARED = {
    "CYRILLIC": ("ISO_IR 144", "Иванов^Пётр", "iso8859_5"),
    "LATIN": ("ISO_IR 100", "Müller^Zoë", "latin-1"),
    "KATAKANA": ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ", "shift_jis"),
    "KANJI": (JIS, "Yamada^Tarou=山田^太郎", "iso2022_jp"),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One `osteon listen` with a source of each kind, and one with the wrong setting."""
    folder = tmp_path_factory.mktemp("charsets")
    peers = [
        Peer(name=title.lower(), ae_title=title, role="source", default_charset=declared)
        for title, (declared, _, _) in UNDECLARED.items()
    ]
    made = given(
        folder / "node",
        broker_url="redis+socket:///nonexistent/valkey.sock",
        peers=[*peers, Peer(name="wrong", ae_title="WRONG", role="source", default_charset="ISO_IR 192")],
    )
    upgrade(made)
    listener = Node(made, folder / "node.log")
    listener.start("listen")
    listener.wait_until_listening()
    yield listener
    listener.stop()


def received(node: Node, path: Path, calling: str) -> str:
    uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
    sent = dcmtk("storescu", node.address, path, calling=calling)
    assert sent.statuses == [0], sent.output
    with node.database.read() as session:
        header = session.scalars(select(Image.header).where(Image.sop_instance_uid == str(uid))).one()
    return SourceHeader.from_json(header).patient.name


@pytest.mark.parametrize("source", UNDECLARED)
def test_an_undeclared_name_that_is_received_is_that_of_its_source_s_setting(
    node: Node, source: str, tmp_path: Path
) -> None:
    _, name, codec = UNDECLARED[source]
    assert received(node, written_by_dcmtk(tmp_path, None, name.encode(codec)), source) == name


@pytest.mark.parametrize("source", UNDECLARED)
def test_a_declared_name_that_is_received_is_not_touched_by_the_setting(
    node: Node, source: str, tmp_path: Path
) -> None:
    declared, name, raw = NAMES["Greek"]
    assert received(node, written_by_dcmtk(tmp_path, declared, raw), source) == name


def test_a_wrong_setting_leaves_no_replacement_character_in_what_is_received(node: Node, tmp_path: Path) -> None:
    name = received(node, written_by_dcmtk(tmp_path, None, b"Zo\xeb^M\xfcller"), "WRONG")
    assert name == "Zoë^Müller"


def test_the_log_names_what_cannot_be_used_and_says_nothing_of_the_patient(node: Node, tmp_path: Path) -> None:
    received(node, written_by_dcmtk(tmp_path, "ISO_IR 192", b"Planted^M\xfcller"), "LATIN")
    (line,) = [line for line in node.log_lines() if line.get("unusable") and line["event"] == "instance stored"][-1:]
    assert line["unusable"] == "SpecificCharacterSet"
    assert "Planted" not in node.log.read_text()
