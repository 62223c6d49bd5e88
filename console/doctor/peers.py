"""Every peer: whether it is reached, lets us in, answers C-ECHO, and takes what it is to be sent.

What a peer is asked depends on how it is spoken to: `WAYS` has a look for each protocol.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from console.doctor.verdict import Finding, warning, well, wrong
from dicom_node.commitment import SOP_CLASS as COMMITMENT
from dicom_node.objects import heatmap, key_objects, presentation_state
from dicom_node.objects.report import sop_class_uid
from dicom_node.outcome import NO_SECRET
from dicom_node.sender import (
    NO_ASSOCIATION,
    NOT_REACHED,
    REJECTED,
    REJECTED_FOR_NOW,
    Destination,
    Kind,
    Outcome,
    request,
    trouble,
)
from dicom_node.tls import DISTRUSTED
from dicom_node.transcode import PLAIN
from models.settings import ObjectKind, Peer, Settings
from worker.ways import way_to

KINDS: dict[ObjectKind, Kind] = {
    "comprehensive_3d": (UID(sop_class_uid("comprehensive_3d")), ExplicitVRLittleEndian),
    "comprehensive": (UID(sop_class_uid("comprehensive")), ExplicitVRLittleEndian),
    "heatmap": (UID(heatmap.SOP_CLASS_UID), JPEGBaseline8Bit),
    "presentation_state": (UID(presentation_state.SOP_CLASS_UID), ExplicitVRLittleEndian),
    "key_objects": (UID(key_objects.SOP_CLASS_UID), ExplicitVRLittleEndian),
    "rejection_note": (UID(key_objects.SOP_CLASS_UID), ExplicitVRLittleEndian),
}
"""As what each kind of object is sent."""
_VERIFICATION = "1.2.840.10008.1.1"
PROBE_SECONDS = 1.0

Look = Callable[[Settings, Peer, float], Iterator[Finding]]


def area_of(peer: Peer) -> str:
    """Return under which name a peer's findings stand."""
    return f"peer {peer.name}"


def look_at_peer(settings: Settings, peer: Peer, seconds: float) -> Iterator[Finding]:
    """Ask a peer whatever can be asked without leaving anything there; each answer may take so long."""
    yield from WAYS[peer.protocol](settings, peer, seconds)


def look_by_dimse(settings: Settings, peer: Peer, seconds: float) -> Iterator[Finding]:
    """Ask for an association with everything that the peer is to be sent, and for a C-ECHO on it."""
    area, place = area_of(peer), Destination.of(peer, settings)
    if place is None:
        yield well(area, f"sends to us as {peer.ae_title}; it has no host and port at which it could be asked")
        return
    wanted = [KINDS[kind] for kind in peer.sends] if peer.is_destination else []
    contexts = {(UID(_VERIFICATION), ImplicitVRLittleEndian), *wanted}
    contexts |= {(sop_class, syntax) for sop_class, _ in wanted for syntax in PLAIN}
    if peer.commitment:
        contexts.add((UID(COMMITMENT), ImplicitVRLittleEndian))
    association = request(place, [build_context(*kind) for kind in sorted(contexts)], settings.ae_title, seconds)
    refused = trouble(association)
    if refused is not None or isinstance(association, Outcome):
        yield _away(area, settings, peer, place, association, refused, seconds)
        return
    accepted = {(UID(str(c.abstract_syntax)), UID(str(c.transfer_syntax[0]))) for c in association.accepted_contexts}
    try:
        yield _echoed(area, association, place)
    finally:
        if association.is_established:
            association.release()
    if peer.is_destination:
        yield from _taken(area, peer, accepted)


def _echoed(area: str, association: Association, place: Destination) -> Finding:
    where = f"{place.ae_title} at {place.host}:{place.port}{', over TLS' if place.tls else ''}"
    if not association.is_established or not any(
        c.abstract_syntax == _VERIFICATION for c in association.accepted_contexts
    ):
        said = f"{where} lets us in, but does not answer C-ECHO"
        return warning(area, said, "a DICOM storage service should; is it one?")
    try:
        answer = association.send_c_echo()
    except (OSError, RuntimeError, ValueError):
        answer = None
    status = getattr(answer, "Status", None)
    if status is None:
        return wrong(area, f"{where} lets us in and then gives no answer to C-ECHO", "ask its administrator: it hangs")
    if status != 0:
        return wrong(area, f"{where} answers C-ECHO with {status:04X}", "ask its administrator what it has against us")
    return well(area, f"{where} answers C-ECHO")


def _taken(area: str, peer: Peer, accepted: set[Kind]) -> Iterator[Finding]:
    for kind in dict.fromkeys(peer.sends):
        sop_class, syntax = KINDS[kind]
        instead = [plain for plain in PLAIN if (sop_class, plain) in accepted]
        what = f"{kind} ({sop_class.name})"
        if (sop_class, syntax) in accepted:
            yield well(area, f"takes {what}")
        elif instead:
            yield well(area, f"takes {what}, written anew as {instead[0].name}")
        else:
            other = ' ("comprehensive" is taken by more)' if kind == "comprehensive_3d" else ""
            todo = f"have it accept {sop_class.name}, or send it something else{other}: `sends` of {peer.name}"
            yield wrong(area, f"does not take {what}: its deliveries will need attention", todo)
    if peer.commitment and not any(sop_class == COMMITMENT for sop_class, _ in accepted):
        said = "does not take storage commitment requests on this association, and is asked for it"
        yield wrong(
            area, said, f"have it accept Storage Commitment Push Model, or set commitment = false for {peer.name}"
        )


# --- why there is no association --------------------------------------------------------------------------------------


def _away(
    area: str,
    settings: Settings,
    peer: Peer,
    place: Destination,
    association: Association | Outcome,
    outcome: Outcome | None,
    seconds: float,
) -> Finding:
    where = f"{place.host}:{place.port}"
    reason = "" if outcome is None else outcome.reason
    if reason == NOT_REACHED:
        return _not_reached(area, place, seconds)
    if reason in (REJECTED, REJECTED_FOR_NOW):
        return _rejected(area, settings, place, association)
    if reason == NO_ASSOCIATION:
        said = f"{where} took the connection, and gave no answer to the request for an association"
        todo = "is it a DICOM port, and with TLS or without? It may also be overloaded, or want another certificate"
        return wrong(area, said, todo)
    return _no_tls(area, peer, where, outcome)


def _no_tls(area: str, peer: Peer, where: str, outcome: Outcome | None) -> Finding:
    reason, detail = ("", "") if outcome is None else (outcome.reason, outcome.detail.rstrip("."))
    if reason == DISTRUSTED:
        ca = "tls.ca" if peer.protocol == "dimse" else "its `ca`"
        todo = f"correct certificate_name or certificate_sha256 of {peer.name}, or put its CA into {ca}"
        return wrong(area, f"the certificate of {where} is not trusted: {detail}", todo)
    said = f"there is no TLS with {where}: {detail or reason}"
    return wrong(area, said, "does it speak TLS 1.2 or 1.3 on this port, and trust our certificate?")


def _not_reached(area: str, place: Destination, seconds: float) -> Finding:
    where = f"{place.host}:{place.port}"
    try:
        with socket.create_connection((place.host, place.port), timeout=min(seconds, PROBE_SECONDS)):
            return wrong(area, f"{where} was not reached, and is reached now", "ask once more: does it come and go?")
    except socket.gaierror:
        return wrong(area, f"the name {place.host} is not known here", "correct its host, or the name server")
    except ConnectionRefusedError:
        said = f"nothing listens at {where} (connection refused)"
        return wrong(area, said, "start it, or correct its port")
    except TimeoutError:
        said = f"{where} does not answer, not even with a refusal"
        return wrong(area, said, "is it switched on, and does every firewall between let us through?")
    except OSError as error:
        return wrong(area, f"{where} is not reached: {error.strerror}", "look at the network between")


_BY_SOURCE: dict[tuple[int, int], tuple[str, str]] = {
    (1, 3): ("it does not know our AE title {ours}", "have {ours} registered there, with the address of this host"),
    (1, 7): ("it is not called {theirs}", "correct ae_title: its administrator knows how it is called"),
    (1, 2): ("it does not know DICOM's application context", "is it a DICOM node?"),
    (2, 2): ("it does not speak this version of the protocol", "is it a DICOM node?"),
    (3, 1): ("it is overloaded", "ask once more; else its administrator"),
    (3, 2): ("it has as many associations as it takes", "ask once more; else let it take more"),
}


def _rejected(area: str, settings: Settings, place: Destination, association: Association | Outcome) -> Finding:
    primitive: Any = None if isinstance(association, Outcome) else association.acceptor.primitive
    source, diagnostic = getattr(primitive, "result_source", 0), getattr(primitive, "diagnostic", 0)
    unknown = (
        "it gives no reason",
        "most know neither our AE title {ours} nor this host then: have both registered there; is it called {theirs}?",
    )
    why, todo = _BY_SOURCE.get((source, diagnostic), unknown)
    names = {"ours": settings.ae_title, "theirs": place.ae_title}
    said = f"{place.host}:{place.port} rejects the association: {why.format(**names)}"
    return wrong(area, said, todo.format(**names))


# --- by other protocols -----------------------------------------------------------------------------------------------


def look_by_line(settings: Settings, peer: Peer, seconds: float) -> Iterator[Finding]:
    """Make the connection over which results would go, with TLS where there is any, and send nothing over it."""
    area = area_of(peer)
    url = urlsplit(peer.url or "")
    host = url.hostname or peer.host or ""
    port = (url.port or (443 if url.scheme == "https" else 80)) if peer.url else peer.port or 0
    where = peer.url or f"{host}:{port}"
    patience = settings.delivery.model_copy(update={"timeout": seconds})
    way = way_to(peer, settings.model_copy(update={"delivery": patience}), (), Path())
    if way is None:
        yield wrong(area, "has no address", "give it url, or host and port")
        return
    with way:
        refused = way.trouble
    if refused is None:
        secured = ", over TLS" if peer.is_secured else ""
        yield well(area, f"{_SPOKEN[peer.protocol]} at {where} takes connections{secured}; nothing was sent to it")
    elif refused.reason == NOT_REACHED:
        yield _not_reached(area, Destination("", host, port), seconds)
    elif refused.reason == NO_SECRET:
        said = f"its password or token file cannot be used: {refused.detail}"
        yield wrong(area, said, "correct password_file or token_file, readable by the node's user")
    else:
        yield _no_tls(area, peer, where, refused)


_SPOKEN = {"dicomweb": "the DICOMweb service", "hl7": "the HL7 listener"}
WAYS: dict[str, Look] = {"dimse": look_by_dimse, "dicomweb": look_by_line, "hl7": look_by_line}
"""How a peer of each protocol is looked at."""
