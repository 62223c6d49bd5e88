"""`osteon send`: a storage SCU for files and folders, so that anyone can try a node without a modality."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from pydicom.uid import UID, generate_uid
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from console.send_tls import PemFile, over_tls, why_over_tls
from dicom_node.objects.encode import COMPRESSED, NATIVE
from dicom_node.sender import Destination, Outcome, Result, send
from dicom_node.wrap import PictureError, WrappedAs, wrap_picture
from models import logs

PICTURES = (".png", ".jpg", ".jpeg")
# One association for so many instances: a broken one costs no more than these.
BATCH = 500

SYNTAXES = {UID(uid).keyword: UID(uid) for uid in (*NATIVE, *COMPRESSED)}


class As(StrEnum):
    """What a picture becomes."""

    DX = "dx"
    CR = "cr"
    SC = "sc"


_WRAPPED_AS: dict[As, WrappedAs] = {As.DX: "DX", As.CR: "CR", As.SC: "SC"}


def send_files(
    paths: Annotated[list[Path], typer.Argument(exists=True, help="Files and folders.", metavar="PATH")],
    to: Annotated[str, typer.Option(help="Where to: AET@HOST:PORT.", metavar="AET@HOST:PORT")],
    calling: Annotated[str, typer.Option(help="Our own AE title.", metavar="AET")] = "OSTEON-SEND",
    wrap: Annotated[bool, typer.Option("--wrap", help="Send PNG and JPEG pictures as radiographs.")] = False,
    wrapped_as: Annotated[
        As, typer.Option("--as", help="Wrap as Digital X-Ray, Computed Radiography or Secondary Capture.")
    ] = As.DX,
    transfer_syntax: Annotated[
        str, typer.Option(help="Encode wrapped pictures so, such as JPEGLosslessSV1.", metavar="NAME")
    ] = "ExplicitVRLittleEndian",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for each answer.")] = 30,
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Over TLS; the files are those of the settings' section tls unless given here."),
    ] = False,
    certificate: PemFile = None,
    private_key: PemFile = None,
    ca: PemFile = None,
    certificate_name: Annotated[
        str | None, typer.Option(help="The name in the destination's certificate, if not HOST.", metavar="NAME")
    ] = None,
    certificate_sha256: Annotated[
        list[str] | None, typer.Option(help="Its fingerprint, instead of a name.", metavar="SHA256")
    ] = None,
) -> None:
    """Send DICOM files by C-STORE and sum up the answers. Exit status 1 unless every file was stored."""
    logs.configure("send", level="error")
    destination = parse_destination(to)
    files_given = {"certificate": certificate, "private_key": private_key, "ca": ca}
    if tls:
        destination = over_tls(destination, files_given, certificate_name, certificate_sha256 or ())
    elif certificate_name or certificate_sha256 or any(files_given.values()):
        raise typer.BadParameter("certificates are shown and asked for over TLS: give --tls too", param_hint="--tls")
    wrapping = (_WRAPPED_AS[wrapped_as], parse_transfer_syntax(transfer_syntax)) if wrap else None
    console = Console()
    counts: Counter[Outcome] = Counter()
    with tempfile.TemporaryDirectory(prefix="osteon-send-") as folder:
        files = _files(paths, wrap)
        with _progress(console) as progress:
            task = progress.add_task("Sending", total=len(files))
            for start in range(0, len(files), BATCH):
                batch = [_to_send(path, Path(folder), wrapping) for path in files[start : start + BATCH]]
                for _, outcome in send(destination, batch, calling_ae_title=calling, timeout=timeout):
                    counts[outcome] += 1
                    progress.advance(task)
    _print_summary(console, counts)
    for sentence in dict.fromkeys(why_over_tls(destination, outcome) for outcome in counts if destination.tls):
        if sentence:
            typer.echo(sentence, err=True)
    if not counts or any(outcome.result is not Result.DELIVERED for outcome in counts):
        raise typer.Exit(1)


def parse_destination(text: str) -> Destination:
    """Read `AET@HOST:PORT`, with an IPv6 address in brackets."""
    # An AE title has printable ASCII characters other than the backslash (PS3.5 6.2), and not only spaces.
    title, host = r"(?! *@)[ -?A-[\]-~]{1,16}", r"\[[0-9A-Fa-f:.]+\]|[^:@\[\]\s]+"
    match = re.fullmatch(rf"(?P<aet>{title})@(?P<host>{host}):(?P<port>[0-9]{{1,5}})", text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise typer.BadParameter(f"{text!r} is not AET@HOST:PORT, as in ORTHANC@127.0.0.1:4242", param_hint="--to")
    return Destination(match["aet"], match["host"].strip("[]"), int(match["port"]))


def parse_transfer_syntax(name: str) -> UID:
    """Read a keyword of PS3.6, table A-1, in capitals or not, for which there is an encoder."""
    found = next((uid for keyword, uid in SYNTAXES.items() if keyword.lower() == name.strip().lower()), None)
    hint = "--transfer-syntax"
    if found is None:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(SYNTAXES)}", param_hint=hint)
    if found not in NATIVE and find_spec("imagecodecs") is None:
        raise typer.BadParameter("compressing needs imagecodecs: pip install 'osteon[node]'", param_hint=hint)
    return found


def _files(paths: list[Path], wrap: bool) -> list[Path]:
    """Every file named, and every file in the folders named; pictures in folders only where they are wrapped."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            found += [p for p in inside if wrap or not _is_picture(p)]
        else:
            found.append(path)
    return found


def _to_send(path: Path, folder: Path, wrapping: tuple[WrappedAs, UID] | None) -> Path:
    if wrapping is None or not _is_picture(path):
        return path
    try:
        dataset = wrap_picture(
            path,
            patient_id=f"OSTEON-{generate_uid()[-12:]}",
            patient_name="Wrapped^Picture",
            wrapped_as=wrapping[0],
            transfer_syntax=wrapping[1],
        )
    except PictureError:
        return path
    wrapped = folder / f"{len(list(folder.iterdir()))}.dcm"
    dataset.save_as(wrapped, enforce_file_format=True)
    return wrapped


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _print_summary(console: Console, counts: Counter[Outcome]) -> None:
    if not counts:
        console.print("Nothing to send.")
    for outcome, count in counts.most_common():
        status = "no status" if outcome.status is None else f"{outcome.status:04X}"
        colour = "green" if outcome.result is Result.DELIVERED else "red"
        console.print(f"[{colour}]{count:6}[/]  {outcome.result.value:9}  {status}  {outcome.reason}", highlight=False)
