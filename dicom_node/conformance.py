"""The conformance statement (PS3.2), made from the code and the settings in force, so that it cannot say another thing.

Its parts are those of the template of PS3.2 Annex N that concern a node without a screen, media or print: overview,
implementation model, the application entity with what it accepts and proposes, network, content of what it makes,
character sets, security. What is fixed in the code is taken from there, the rest from `Settings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pydicom import charset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_node import commitment, sender, tls
from dicom_node.group_commit import PATIENCE_SECONDS
from dicom_node.listener import supported_contexts
from dicom_node.network.answers import (
    MOST_OF_AN_ANSWER,
    NO_SUCH_SERVICE_STATUSES,
    NOT_AUTHORISED_STATUSES,
    UNAVAILABLE_STATUSES,
)
from dicom_node.network.requests import APPLICATION_CONTEXT, LARGEST_REQUEST, MOST_CONTEXTS
from dicom_node.objects import heatmap, key_objects, presentation_state, report
from dicom_node.objects.recognise import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, MANUFACTURER, MODEL
from dicom_node.policy import Rejection
from dicom_node.services import (
    ANALYSED_SOP_CLASSES,
    FOR_PROCESSING_SOP_CLASS,
    SECONDARY_CAPTURE_SOP_CLASS,
    TRANSFER_SYNTAXES,
    Status,
    accepted_sop_classes,
)
from dicom_node.transcode import PLAIN
from models.settings import ObjectKind, Settings
from models.version import VERSION

# What each answer to a C-STORE means, and what the sender should do.
STORE_ANSWERS: dict[Status, tuple[str, str]] = {
    Status.SUCCESS: ("Success", "File, folder and record are on disk; or the same bytes were received before"),
    Status.DUPLICATE_INSTANCE: (
        "Failure: duplicate SOP instance",
        "The UID is that of another instance, where `listener.other_pixels_status` says so",
    ),
    Status.SOP_CLASS_NOT_SUPPORTED: (
        "Failure: SOP class not supported",
        "The SOP class of the command is not that of its presentation context",
    ),
    Status.NOT_AUTHORISED: ("Failure: not authorised", "The caller may verify, but not store"),
    Status.UNRECOGNISED_OPERATION: ("Failure: unrecognised operation", "Another service than those named here"),
    Status.OUT_OF_RESOURCES: (
        "Failure: out of resources",
        "Disk or database is full or out of reach; nothing was kept. Send it again later",
    ),
    Status.DATA_SET_MISMATCH: (
        "Failure: data set does not match SOP class",
        "UIDs of data set and command differ, or are none; or the UID is that of another instance",
    ),
    Status.CANNOT_UNDERSTAND: ("Failure: cannot understand", "No data set, or none with its UIDs"),
}
_REJECTIONS = {
    Rejection.CALLED_AE_TITLE: "the called AE title is not ours",
    Rejection.CALLING_AE_TITLE: "the calling AE title or its address is not known",
    Rejection.CERTIFICATE: "not over TLS, or not with the certificate of that AE title",
    Rejection.TOO_MANY: "as many associations are open as may be",
    Rejection.PROTOCOL_VERSION: "another protocol version",
    Rejection.APPLICATION_CONTEXT: "another application context",
}
_COMMITMENT_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def conformance_statement(settings: Settings) -> str:
    """Return the statement as Markdown. It names AE titles and limits, but no host, no path and no secret."""
    sections = (
        _overview(settings),
        _model(settings),
        _accepted(settings),
        _store_answers(settings),
        _commitment_as_scp(settings),
        _initiated(settings),
        _web_services(settings),
        _hl7(settings),
        _network(settings),
        _content(settings),
        _character_sets(),
        _security(settings),
    )
    return "\n\n".join("\n\n".join(section) for section in sections) + "\n"


def _overview(settings: Settings) -> Iterable[str]:
    yield f"# DICOM conformance statement: {MODEL} {VERSION}"
    yield (
        f"{MODEL} receives radiographs of bones, analyses them with a model, and sends the result as a Structured "
        "Report. Its reports are those of an algorithm, not for primary diagnosis. This statement follows PS3.2 and "
        "was made by `osteon conformance` from the code and the settings in force."
    )
    asks, answers = _commitment_roles(settings)
    yield "## Network services"
    yield _table(
        ("SOP class", "UID", "User of service (SCU)", "Provider of service (SCP)"),
        [
            ("Verification", UID(Verification), "yes", "yes"),
            *((name, uid, "no", "yes") for name, uid in _images(settings) if uid not in _sent_classes()),
            *_sent(settings),
            ("Storage Commitment Push Model", commitment.SOP_CLASS, asks, answers),
        ],
    )
    yield _table(
        ("DICOM web service", "User agent", "Origin server"),
        [("Studies Service, Store Transaction (STOW-RS)", _spoken(settings, "dicomweb"), "no")],
    )
    yield "Media storage, query and retrieval, worklist, print: none."


_SENT: dict[ObjectKind, tuple[str, UID]] = {
    "comprehensive_3d": (report.sop_class_uid("comprehensive_3d"), ExplicitVRLittleEndian),
    "comprehensive": (report.sop_class_uid("comprehensive"), ExplicitVRLittleEndian),
    "heatmap": (heatmap.SOP_CLASS_UID, JPEGBaseline8Bit),
    "presentation_state": (presentation_state.SOP_CLASS_UID, ExplicitVRLittleEndian),
    "key_objects": (key_objects.SOP_CLASS_UID, ExplicitVRLittleEndian),
    "rejection_note": (key_objects.SOP_CLASS_UID, ExplicitVRLittleEndian),
}
"""SOP class of what can be sent, and the transfer syntax that it is stored in."""


def _sent_classes() -> set[str]:
    return {uid for uid, _ in _SENT.values()}


def _sent(settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    """The SOP classes that are sent, and whether any destination gets them; those of several kinds once."""
    asked = {kind for peer in settings.destinations if peer.protocol != "hl7" for kind in peer.sends}
    for uid in dict.fromkeys(uid for uid, _ in _SENT.values()):
        kinds = [kind for kind, (sop_class, _) in _SENT.items() if sop_class == uid]
        # With no destination named, what one would get that names nothing else.
        sent = not asked.isdisjoint(kinds) or (not settings.destinations and "comprehensive_3d" in kinds)
        how = "yes" if sent else "no: " + " or ".join(f"`{kind}`" for kind in kinds) + " in `sends` of a peer"
        yield UID(uid).name, uid, how, _received(settings, uid)


def _received(settings: Settings, uid: str) -> str:
    return "yes" if uid in accepted_sop_classes(settings) else "no"


def _spoken(settings: Settings, protocol: str) -> str:
    """Whether a destination speaks it."""
    spoken = any(peer.protocol == protocol for peer in settings.destinations)
    return "yes" if spoken else f'no: `protocol = "{protocol}"` of a peer'


def _images(settings: Settings) -> list[tuple[str, str]]:
    return [(UID(uid).name, str(uid)) for uid in accepted_sop_classes(settings)]


def _commitment_roles(settings: Settings) -> tuple[str, str]:
    asks = any(peer.commitment for peer in settings.peers)
    answers = any(peer.provide_commitment for peer in settings.peers)
    return ("yes" if asks else "no: `commitment` of a peer"), (
        "yes" if answers else "no: `provide_commitment` of a peer"
    )


def _model(settings: Settings) -> Iterable[str]:
    yield "## Implementation model"
    yield (
        f"There is one application entity, `{settings.ae_title}`. It accepts associations from modalities and "
        "archives, keeps each instance durably before it answers, and analyses it later. When a study has been quiet "
        f"for {settings.study.quiet_time:g} s (at the latest {settings.study.max_wait:g} s after its last new image) a "
        "report is made and sent to each destination. An image that comes later brings a report that names its "
        "predecessor. A C-STORE never fails because an analysis failed."
    )
    yield _table(
        ("Identification", "Value"),
        [
            ("Application context name", APPLICATION_CONTEXT),
            ("Implementation class UID", IMPLEMENTATION_CLASS_UID),
            ("Implementation version name", IMPLEMENTATION_VERSION_NAME),
        ],
    )


def _accepted(settings: Settings) -> Iterable[str]:
    listener = settings.listener
    yield "## Associations that are accepted"
    callers = "anyone" if listener.accept_unknown_callers else "the peers of the settings"
    yield _table(
        ("Policy", "Value"),
        [
            ("Called AE title", f"`{settings.ae_title}`, nothing else"),
            ("Calling AE titles", f"{callers}; of a destination, for verification and storage commitment only"),
            ("Associations at once", listener.max_associations),
            (
                "Connections at once",
                f"{listener.max_connections}; {listener.max_connections_per_address} from one address",
            ),
            ("Presentation contexts of a request", MOST_CONTEXTS),
            ("Length of a request", f"{LARGEST_REQUEST} bytes"),
            ("Asynchronous operations", "none: one operation at a time"),
            ("SOP class extended negotiation, user identity", "not supported; ignored"),
        ],
    )
    yield _table(
        ("A-ASSOCIATE-RJ (result, source, reason)", "Why"),
        [("/".join(map(str, rejection.answer)), why) for rejection, why in _REJECTIONS.items()],
    )
    yield "### Presentation contexts"
    yield _table(
        ("Abstract syntax", "UID", "Transfer syntaxes", "Role", "What becomes of it"),
        [_context(context, settings) for context in supported_contexts(settings)],
    )
    yield "Of the transfer syntaxes that are proposed for a context, the first of this list is accepted:"
    yield _table(("Transfer syntax", "UID"), [(syntax.name, str(syntax)) for syntax in TRANSFER_SYNTAXES])


def _context(context: PresentationContext, settings: Settings) -> tuple[str, ...]:
    abstract_syntax = UID(context.abstract_syntax or "")
    every = context.transfer_syntax == list(TRANSFER_SYNTAXES)
    syntaxes = "all below" if every else "; ".join(syntax.name for syntax in context.transfer_syntax)
    role = "SCP, SCU" if context.scu_role and context.scp_role else "SCP"
    return abstract_syntax.name, abstract_syntax, syntaxes, role, _fate(abstract_syntax, settings)


def _fate(uid: UID, settings: Settings) -> str:
    if uid in (Verification, commitment.SOP_CLASS):
        return "answered"
    if uid in ANALYSED_SOP_CLASSES or uid == SECONDARY_CAPTURE_SOP_CLASS:
        return "stored, analysed"
    if uid == FOR_PROCESSING_SOP_CLASS and settings.analysis.analyse_for_processing:
        return "stored, analysed"
    return "stored, not analysed"


def _store_answers(settings: Settings) -> Iterable[str]:
    yield "### Answers to C-STORE"
    yield "Storage is of level 2 (full): the bytes of the data set are kept as they were sent."
    yield _table(
        ("Status", "Meaning", "When"),
        [(f"{status:04X}", meaning, when) for status, (meaning, when) in sorted(STORE_ANSWERS.items())],
    )
    yield (
        "The same UID with the same pixels and another header is answered with 0000 and kept as a revision; with other "
        f"pixels it is quarantined and answered with {settings.listener.other_pixels_status}. An answer may take "
        f"{PATIENCE_SECONDS:g} s where the database stands still."
    )


def _commitment_as_scp(settings: Settings) -> Iterable[str]:
    yield "### Storage commitment"
    asks, answers = _commitment_roles(settings)
    yield (
        f"As SCP towards senders: {answers}; as SCU towards destinations: {asks}. Requests name at most "
        f"{commitment.MOST_INSTANCES} instances in {commitment.MOST_BYTES} bytes. Answers of an archive are taken on "
        "the association of the request or on a new one, with role selection."
    )
    yield _table(("Transfer syntax", "UID"), [(syntax.name, str(syntax)) for syntax in _COMMITMENT_SYNTAXES])
    yield _table(
        ("Answer to N-ACTION and N-EVENT-REPORT", "Meaning"),
        [(f"{status:04X}", _words(status.name)) for status in commitment.Status],
    )
    yield _table(
        ("Failure reason", "Meaning"), [(f"{reason:04X}", _words(reason.name)) for reason in commitment.FailureReason]
    )


def _initiated(settings: Settings) -> Iterable[str]:
    yield "## Associations that are initiated"
    delivery = settings.delivery
    count = sum(peer.protocol == "dimse" for peer in settings.destinations)
    yield (
        f"To each destination ({count} in force), each on its own: one association for up to "
        f"{delivery.batch} reports that are due, at most {sender.MOST_CONTEXTS} contexts, one transfer syntax each. "
        "For each SOP class there is a context for the transfer syntax of what is stored and one each for "
        f"{' and '.join(syntax.name for syntax in PLAIN)}. Where the stored one is accepted the stored bytes are sent; "
        "else the same instance in the first of these that is, decompressed where it has to be. "
        f"Each answer is waited for {delivery.timeout:g} s; without one the association is aborted."
    )
    yield _table(
        ("Abstract syntax", "UID", "Transfer syntax", "Role"),
        [
            *(
                (UID(uid).name, uid, "; ".join(syntax.name for syntax in dict.fromkeys((stored, *PLAIN))), "SCU")
                for uid, stored in dict.fromkeys(_SENT.values())
            ),
            ("Verification", UID(Verification), ImplicitVRLittleEndian.name, "SCU"),
            (
                "Storage Commitment Push Model",
                commitment.SOP_CLASS,
                "explicit and implicit VR little endian",
                "SCU, SCP",
            ),
        ],
    )
    yield _table(
        ("Answer to our C-STORE", "What follows"),
        [
            ("0000, 0111", "delivered"),
            (", ".join(f"{status:04X}" for status in sender.STORED_WITH_REMARK), "delivered, with a remark on record"),
            (
                ", ".join(f"{status:04X}" for status in sender.REFUSED_FOR_GOOD) + ", A9xx, Cxxx",
                "refused for good: a person is asked; the rest of the association goes on",
            ),
            (
                "anything else, no answer, no association",
                f"tried again after {delivery.first_wait:g} s and growing waits up to {delivery.longest_wait:g} s, "
                f"{delivery.max_tries} times",
            ),
        ],
    )


def _web_services(settings: Settings) -> Iterable[str]:
    yield "## DICOM web services"
    timeout = settings.delivery.timeout
    yield (
        f"Studies Service, Store Transaction (PS3.18 10.5), as user agent: {_spoken(settings, 'dicomweb')}. "
        "Each instance is a request of its own, with the bytes that are stored."
    )
    yield _table(
        ("Parameter", "Value"),
        [
            ("Resource", "`POST {url}/studies`"),
            ("Request", '`multipart/related; type="application/dicom"`, one part, with Content-Length'),
            ("Transfer syntaxes", f"as stored: {ExplicitVRLittleEndian.name} for reports; none is negotiated"),
            ("Answer", "`application/dicom+json` is asked for; `application/dicom+xml` is read as well"),
            ("Longest answer that is read", f"{MOST_OF_AN_ANSWER} bytes"),
            ("Authentication", "Basic (RFC 7617) or Bearer (RFC 6750), or TLS client certificate, as the peer has it"),
            ("Redirections, proxies, cookies of another association", "not followed, not used, none"),
            ("Time for an answer", f"{timeout:g} s; {2 * timeout:g} s with the request"),
        ],
    )
    yield _table(
        ("HTTP status, or Failure Reason (0008,1197)", "What follows"),
        [
            ("2xx, instance in Referenced SOP Sequence, or no payload", "delivered; with a Warning Reason on record"),
            (", ".join(map(str, NOT_AUTHORISED_STATUSES)), _REST.format("not authorised")),
            ("3xx, " + ", ".join(map(str, NO_SUCH_SERVICE_STATUSES)), _REST.format("no such service")),
            (
                ", ".join(map(str, UNAVAILABLE_STATUSES)) + ", no connection",
                f"nothing is sent for up to {settings.delivery.longest_rest:g} s, then again",
            ),
            ("Failure Reason of the instance, with any other status", "as the same status of a C-STORE, above"),
            ("any other 4xx but 408", "refused for good: a person is asked; the next instance goes on"),
            ("anything else, no answer", "tried again, as above"),
        ],
    )


_REST = "{}: nothing is sent for the longest wait; it is shown to a person"


def _hl7(settings: Settings) -> Iterable[str]:
    yield "## HL7"
    yield (
        f"Results as HL7 v2.5.1 messages: {_spoken(settings, 'hl7')}. ORU^R01^ORU_R01 over MLLP (release 1), with TLS "
        "where the peer has it, in UNICODE UTF-8, original acknowledgement mode. Segments: MSH, PID, OBR, OBX. Every "
        "result is preliminary: OBR-25 and each OBX-11 are P. OBR-3 and OBR-18 have the Accession Number, OBX the "
        "Study Instance UID (113014 DCM), the SOP Instance UID of the Structured Report, the impression (19005-8 LN), "
        "the decision on each finding for the study and for each image with its certainty (111012 DCM), why an image "
        "was not analysed, the algorithm and its version (111001, 111003, 111002 DCM). AA and CA are delivered; AE and "
        "CE refused for good; AR and CR, and what is no acknowledgement of that message, are tried again."
    )


def _network(settings: Settings) -> Iterable[str]:
    listener, port = settings.listener, settings.tls.port
    ports = [] if settings.tls.only else [f"{settings.port} (plain)"]
    ports += [] if port is None else [f"{port} (TLS)"]
    yield "## Network"
    yield _table(
        ("Parameter", "Value"),
        [
            ("TCP/IP", "IPv4 and IPv6, as the address that is bound"),
            ("Ports", ", ".join(ports)),
            ("Largest PDU received", f"{listener.max_pdu} bytes"),
            ("Largest PDU sent", "what the other side takes, at most 16384 bytes where it takes any length"),
            ("Time to ask for an association", f"{listener.association_timeout:g} s, TLS handshake included"),
            ("Silence of an association", f"{listener.idle_timeout:g} s, then it is aborted"),
            ("Answer of a destination", f"{settings.delivery.timeout:g} s"),
            ("Time to connect", f"{min(settings.delivery.timeout, 10):g} s"),
        ],
    )


def _content(settings: Settings) -> Iterable[str]:
    yield "## Objects that are made"
    yield (
        "The report: Comprehensive 3D SR or, the same, Comprehensive SR, after TID 1500 (Measurement Report) and the "
        "IHE profile AI Results: templates 1204, 1001, 1004, 1600, 1410, 1501 and 4019 of PS3.16. Complete, "
        "unverified, preliminary. "
        "Where a destination asks for them (`sends`): a Secondary Capture in colour of each image, with the region; a "
        "Grayscale Softcopy Presentation State of each image with a region; a Key Object Selection (TID 2010) of the "
        "images with a fracture, 113000 DCM Of Interest; another, 113037 DCM Rejected for Patient Safety Reasons (IHE "
        "IOCM), of what was superseded. The SOP Instance UID of each is `2.25.` and a digest of what is rendered: the "
        "same content goes out under the same UID, other content never."
    )
    yield _table(
        ("Attribute", "Value"),
        [
            ("Manufacturer, Manufacturer's Model Name", f"{MANUFACTURER}, {MODEL}"),
            ("Series Number", settings.report.series_number),
            ("Series Description", settings.report.series_description),
            ("Patient and study", "as the source wrote them; empty where it did not"),
            ("Contributing Equipment", f"{MANUFACTURER} {MODEL}, 109102 DCM Processing Equipment"),
            ("Predecessor Documents", "the report of the same study that it replaces"),
        ],
    )
    yield (
        "Coding schemes: DCM, SCT, UCUM, RFC5646, UMLS, and the source's own for its procedure. Private attributes, "
        "private or specialised SOP classes, private transfer syntaxes: none."
    )


def _character_sets() -> Iterable[str]:
    yield "## Character sets"
    yield (
        "Written: ISO_IR 192 (UTF-8). Read: the defined terms below, alone or with code extensions; text without a "
        "declared character set as `default_charset` of its source says, else as UTF-8 where it is valid, else as "
        "ISO_IR 100."
    )
    # pydicom's table has wrong spellings of terms too, which it reads.
    terms = sorted(term for term in charset.python_encoding if re.fullmatch(r"ISO(_| 2022 )IR \d+|GB18030|GBK", term))
    yield ", ".join(f"`{term}`" for term in terms) + "."


def _security(settings: Settings) -> Iterable[str]:
    yield "## Security"
    tls_settings = settings.tls
    in_force = "in force" if tls_settings.port is not None else "not in force (`tls.port`)"
    certificates = "every caller has" if tls_settings.require_certificates else "peers with `tls` have"
    yield (
        f"Non-Downgrading BCP 195 TLS Profile (PS3.15 B.12), {in_force}: TLS 1.2 and 1.3, in 1.2 only `{tls.SUITES}`; "
        f"{certificates} to show a certificate, which has to belong to the AE title that is claimed. Audit trail "
        "messages (PS3.15 A.5): none; the record has an audit trail of its own, chained by hashes. De-identification, "
        "digital signatures: none."
    )


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
