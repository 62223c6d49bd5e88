"""Settings: one `osteon.toml`, overridden by `OSTEON_…` environment variables. Unknown keys are mistakes.

The file is the one named by `OSTEON_CONFIG`, else `osteon.toml` in the working folder, else `/etc/osteon/osteon.toml`.
A nested key is written with two underscores in the environment: `OSTEON_LISTENER__MAX_ASSOCIATIONS=20`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

ENV_PREFIX = "OSTEON_"
CONFIG_VARIABLE = "OSTEON_CONFIG"
# Variables with our prefix that are not settings of the node: where the file is, and what the tests read.
NOT_SETTINGS = frozenset({CONFIG_VARIABLE, "OSTEON_TEST_DATA", "OSTEON_REQUIRE_PEERS"})


def _ae_title(value: str) -> str:
    """PS3.5 6.2, VR AE: 1–16 characters of the default repertoire, no backslash, not only spaces."""
    stripped = value.strip(" ")
    if not 1 <= len(stripped) <= 16 or not stripped.isascii() or not stripped.isprintable() or "\\" in stripped:
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return stripped


def _database_url(value: SecretStr) -> SecretStr:
    try:
        driver = make_url(value.get_secret_value()).drivername
    except (ArgumentError, ValueError):
        driver = ""
    if driver not in ("sqlite", "postgresql+psycopg"):
        raise ValueError("a database is sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST:PORT/NAME")
    return value


def _broker_url(value: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(value.get_secret_value())
        known = parts.scheme == "redis+socket" or (parts.scheme in ("redis", "rediss") and parts.port != 0)
    except ValueError:  # a port that is no number: often a password with an unescaped slash
        known = False
    if not known:
        raise ValueError("a broker is redis://:PASSWORD@HOST:PORT/0, rediss://… or redis+socket:///PATH")
    return value


def _fingerprint(value: str) -> str:
    """As OpenSSL prints it, with colons and in capitals, or plain."""
    plain = value.replace(":", "").strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise ValueError("a SHA-256 fingerprint has 64 hexadecimal digits, with or without colons")
    return plain


# Defined terms of Specific Character Set (PS3.3, C.12.1.1.2): those that stand alone, and the numbers of those that may
# stand with others, which the standard writes "ISO 2022 IR …" then.
_STAND_ALONE = {"ISO_IR 192", "GB18030", "GBK"}
_ONE_BYTE = {"6", "13", "100", "101", "109", "110", "126", "127", "138", "144", "148", "166", "203"}
_WITH_OTHERS = {f"ISO 2022 IR {number}" for number in (*_ONE_BYTE, "58", "87", "149", "159")}


def _character_set(value: str) -> str:
    first, *others = (term.strip(" ") for term in value.split("\\"))
    alone = _STAND_ALONE | {f"ISO_IR {number}" for number in _ONE_BYTE}
    if (
        not set(others) <= _WITH_OTHERS
        or first not in alone | _WITH_OTHERS | ({""} if others else set())
        or (others and first in alone)
    ):
        raise ValueError(
            "a character set is written as in Specific Character Set: ISO_IR 144, GB18030, \\ISO 2022 IR 87, …"
        )
    return "\\".join((first, *others))


def _service_url(value: str) -> str:
    """A password in it would be shown wherever the settings are."""
    try:
        parts = urlsplit(value)
        fine = value.startswith(("http://", "https://")) and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine or "@" in value or "?" in value or "#" in value or not value.isascii() or not value.isprintable():
        raise ValueError("a DICOMweb service is http://HOST:PORT/PATH or https://…, without user, password and query")
    return value.rstrip("/")


_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _https_url(value: str) -> str:
    """What is sent there, and comes from there, decides who somebody is: in the clear on this machine only."""
    try:
        parts = urlsplit(value)
        there = parts.hostname if value.startswith(("http://", "https://")) and parts.port != 0 else None
        fine = there is not None and (parts.scheme == "https" or there in _LOOPBACK)
    except ValueError:
        fine = False
    if not fine or set(value) & set('@?#\\"<> ') or not value.isascii() or not value.isprintable():
        raise ValueError("https://HOST:PORT/PATH without user, password and query; http:// for this machine only")
    return value


def _console_url(value: str) -> str:
    value = _https_url(value).rstrip("/")
    if urlsplit(value).path:
        raise ValueError("the console is served at the root of its host: https://HOST:PORT without a path")
    return value


def _hl7_name(value: str) -> str:
    if not value.isprintable():
        raise ValueError("an application or facility has printable characters only")
    return value


AETitle = Annotated[str, AfterValidator(_ae_title)]
CharacterSet = Annotated[str, AfterValidator(_character_set)]
ServiceUrl = Annotated[str, Field(max_length=1024), AfterValidator(_service_url)]
HttpsUrl = Annotated[str, Field(max_length=255), AfterValidator(_https_url)]
ConsoleUrl = Annotated[str, Field(max_length=255), AfterValidator(_console_url)]
Hl7Name = Annotated[str, Field(max_length=180), AfterValidator(_hl7_name)]
Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
BrokerUrl = Annotated[SecretStr, AfterValidator(_broker_url)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400)]


ObjectKind = Literal[
    "comprehensive_3d", "comprehensive", "heatmap", "presentation_state", "key_objects", "rejection_note"
]
"""What can be sent to a destination: the report as Comprehensive 3D SR or Comprehensive SR, a picture of each image
with what the model looked at, a presentation state with the region, a key object selection of the images with a
fracture, and a rejection note for what was superseded."""
REPORTS: frozenset[ObjectKind] = frozenset({"comprehensive_3d", "comprehensive"})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Peer(_Section):
    """A DICOM application entity that Osteon knows, or another place where results go."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    """How people and records call it; the name of a destination in the `deliveries` table."""
    ae_title: AETitle | None = None
    """Needed by whatever speaks DIMSE with us: all sources, and destinations with that protocol."""
    protocol: Literal["dimse", "dicomweb", "hl7"] = "dimse"
    """How results go there: by C-STORE, by STOW-RS, or as HL7 v2 messages over MLLP."""
    host: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    port: Port | None = None
    url: ServiceUrl | None = None
    """The DICOMweb service, to which `/studies` is added."""
    user: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^:\x00-\x1f]+$")] | None = None
    password_file: Path | None = None
    """File with the password of `user` in its first line, readable by its owner only."""
    token_file: Path | None = None
    """File with a bearer token in its first line, readable by its owner only; instead of user and password."""
    ca: Path | None = None
    """PEM file: the CAs that the certificate of a DICOMweb service or HL7 listener leads to; default `tls.ca`."""
    receiving_application: Hl7Name = ""
    """MSH-5 of an HL7 message."""
    receiving_facility: Hl7Name = ""
    """MSH-6 of an HL7 message."""
    role: Literal["source", "destination", "both"] = "both"
    check_address: bool = False
    """Accept associations only from the address of `host` (as a source)."""
    priority: Literal["routine", "urgent"] = "routine"
    """How soon images from this source are analysed."""
    quiet_time: PositiveSeconds | None = None
    """Seconds without a new image after which a study from this source is complete; default `study.quiet_time`."""
    commitment: bool = False
    """After delivery, ask it to commit what it was sent (storage commitment, PS3.4 Annex J)."""
    sends: Annotated[tuple[ObjectKind, ...], Field(min_length=1)] = ("comprehensive_3d",)
    """What it gets, as a destination."""
    results: Literal["all", "own"] = "all"
    """Whether it gets the results of every study, or only of those that it sent to us."""
    default_charset: CharacterSet | None = None
    """In which character set its text is, as a source, where it declares none (PS3.3, C.12.1.1.2): "ISO_IR 144", …"""
    silent_after: Annotated[float, Field(gt=0, le=8784)] | None = None
    """Hours without anything new after which it has gone silent, as a source; by default its own last weeks say that
    (`models.silence`)."""
    provide_commitment: bool = False
    """Commit instances that it sent us when it asks (storage commitment, PS3.4 Annex J); answered at `host`, `port`."""
    tls: bool = False
    """Only over TLS: as a source it must show its certificate, as a destination it is asked for it."""
    certificate_sha256: list[Fingerprint] = []
    """The SHA-256 fingerprints of its certificates, any of which will do; more than one while it changes."""
    certificate_name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """The name (DNS, IP address, URI or common name) in its certificate; default `host`. Unused where pinned."""

    @property
    def is_source(self) -> bool:
        """Whether it may send instances to us."""
        return self.role in ("source", "both")

    @property
    def is_destination(self) -> bool:
        """Whether reports are sent to it."""
        return self.role in ("destination", "both")

    @property
    def is_secured(self) -> bool:
        """Whether results go there over TLS."""
        return self.url.startswith("https:") if self.protocol == "dicomweb" and self.url else self.tls

    @model_validator(mode="after")
    def _fits_its_protocol(self) -> Peer:
        if self.ae_title is None and self.protocol == "dimse":
            raise ValueError("ae_title is needed where the protocol is dimse")
        if self.ae_title is None and self.is_source:
            raise ValueError("ae_title is needed of a source; where it only gets results, the role is destination")
        if self.silent_after is not None and not self.is_source:
            raise ValueError("silent_after is of a source: the role has to be source or both")
        if self.protocol != "dimse" and not self.is_destination:
            raise ValueError("protocol says how results go there: the role has to be destination or both")
        if self.protocol != "dimse" and (self.commitment or self.provide_commitment):
            raise ValueError("commitment and provide_commitment are services of DIMSE: the protocol has to be dimse")
        if self.protocol == "dimse" and self.ca is not None:
            raise ValueError("ca is for dicomweb and hl7; with dimse the CAs are those of tls.ca")
        if self.protocol != "hl7" and (self.receiving_application or self.receiving_facility):
            raise ValueError("receiving_application and receiving_facility need protocol = hl7")
        return self

    @model_validator(mode="after")
    def _service_is_complete(self) -> Peer:
        if self.protocol != "dicomweb":
            if self.url or self.user or self.password_file or self.token_file:
                raise ValueError("url, user, password_file and token_file need protocol = dicomweb")
            return self
        if self.url is None:
            raise ValueError("protocol = dicomweb needs url")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file belong together")
        if self.user is not None and self.token_file is not None:
            raise ValueError("a service knows us by user and password_file or by token_file, not by both")
        if (self.user or self.token_file) and not self.is_secured and not _is_this_host(self.url):
            raise ValueError("a password or token goes over https only, but for a service on this host")
        return self

    @model_validator(mode="after")
    def _recognisable(self) -> Peer:
        if (self.certificate_sha256 or self.certificate_name) and not (self.tls or self.is_secured):
            raise ValueError("certificate_sha256 and certificate_name need tls = true, or a url with https")
        if self.tls and self.protocol == "dicomweb" and not self.is_source:
            raise ValueError("tls is for dimse and hl7: a DICOMweb service has TLS where its url begins with https")
        if self.tls and not (self.certificate_sha256 or self.certificate_name or self.host):
            raise ValueError("tls needs certificate_sha256, certificate_name or host, to tell its certificate by")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Peer:
        if self.is_destination and self.protocol != "dicomweb" and (self.host is None or self.port is None):
            raise ValueError("a peer with the role destination or both needs host and port")
        if self.results == "own" and not (self.is_source and self.is_destination):
            raise ValueError("results = own is for a peer that sends to us and gets results: the role has to be both")
        if not {*REPORTS, "heatmap"}.intersection(self.sends):
            raise ValueError(
                "sends needs comprehensive_3d, comprehensive or heatmap: the rest does not say what was found"
            )
        if self.commitment and not self.is_destination:
            raise ValueError("commitment is asked of destinations: the role has to be destination or both")
        if self.provide_commitment and (not self.is_source or self.host is None or self.port is None):
            raise ValueError("provide_commitment needs the role source or both, host and port")
        if self.check_address:
            if self.host is None:
                raise ValueError("check_address needs host")
            try:
                ip_address(self.host)
            except ValueError:
                raise ValueError("check_address needs host to be an IP address, not a name") from None
        return self


def _is_this_host(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ListenerSettings(_Section):
    """How the C-STORE listener behaves."""

    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that share the port, on PostgreSQL; more than one helps where one keeps a processor busy."""
    max_associations: Annotated[int, Field(ge=1, le=1000)] = 50
    """Of all listeners that share the database; those of the others count once they have brought an instance."""
    max_connections: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Connections, associations included; never taken as fewer than `max_associations`."""
    max_connections_per_address: Annotated[int, Field(ge=1, le=10_000)] = 40
    """Connections, associations included, from one address."""
    max_pdu: Annotated[int, Field(ge=4096, le=1_048_576)] = 1_048_576
    """Largest PDU offered to senders, in bytes."""
    association_timeout: PositiveSeconds = 15
    """Seconds a connection may take to ask for an association, its TLS handshake included."""
    idle_timeout: PositiveSeconds = 60
    """Seconds an association may stay silent, also in the middle of a PDU."""
    accept_unknown_callers: bool = False
    accept_secondary_capture: bool = False
    """Store and analyse Secondary Capture images too."""
    also_accept: list[Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")]] = []
    """SOP Class UIDs that are stored and never analysed."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 512 * 1024 * 1024
    """Below this much free space in the data folder, C-STORE is answered with A700."""
    min_free_percent: Annotated[float, Field(ge=0, le=100)] = 1
    """The same, in percent of the size of its file system."""
    other_pixels_status: Literal["0000", "0111", "A900", "C000"] = "0000"
    """The answer to an instance whose UID is that of another: success, so that the sender's queue does not jam, or a
    permanent refusal, where it shows without decoding. It is quarantined in any case."""


class TlsSettings(_Section):
    """Certificates, and the port on which the listener speaks TLS."""

    port: Port | None = None
    """Port of the TLS listener, beside the plain one; 2762 is the registered one."""
    only: bool = False
    """Listen with TLS only."""
    certificate: Path | None = None
    """PEM file: our certificate, then the intermediate CAs above it."""
    private_key: Path | None = None
    """PEM file, not encrypted, readable by its owner only."""
    ca: Path | None = None
    """PEM file: the CAs, or single certificates, that the peers' certificates are verified against."""
    require_certificates: bool = True
    """Whether every caller must show a certificate, or only peers with `tls`."""
    warn_days: Annotated[int, Field(ge=0, le=3650)] = 30
    """Days before the end of a certificate from which on the log warns of it."""

    @model_validator(mode="after")
    def _complete(self) -> TlsSettings:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together")
        if self.port is not None and (self.certificate is None or self.ca is None):
            raise ValueError("port needs certificate, private_key and ca")
        if self.only and self.port is None:
            raise ValueError("only needs port")
        return self


class StudySettings(_Section):
    """When a study counts as complete."""

    quiet_time: PositiveSeconds = 60
    max_wait: PositiveSeconds = 900
    """Seconds after its last new image at which a study is complete even if its sender keeps the association open."""
    urgent_head_start: Seconds = 600
    """Seconds by which an urgent image overtakes: a routine one that waits longer than this goes first all the same."""
    trust_header_priority: bool = True
    """Whether what the header says (Requested Procedure Priority, Study Priority ID) makes a study urgent too."""
    warn_after: PositiveSeconds = 1800
    """Seconds that work may wait before the sweeper warns that nobody does it."""


class AnalysisSettings(_Section):
    """How images are read."""

    analyse_for_processing: bool = False
    max_tries: Annotated[int, Field(ge=1, le=20)] = 3
    first_wait: PositiveSeconds = 10
    """Seconds after a failed try before the next; they double up to `longest_wait`."""
    longest_wait: PositiveSeconds = 300
    time_limit: PositiveSeconds = 120
    """Seconds after which the analysis of one image is killed."""
    memory_limit: Annotated[int, Field(ge=1024**3)] = 3 * 1024**3
    """Bytes of data (RLIMIT_DATA) that a process which reads images may have; the largest image takes 1.9 GB."""


class DeliverySettings(_Section):
    """How reports are sent and sent again."""

    timeout: PositiveSeconds = 30
    """Seconds to wait for each answer of a destination."""
    first_wait: PositiveSeconds = 5
    longest_wait: PositiveSeconds = 3600
    longest_rest: PositiveSeconds = 300
    """Seconds after which a destination that was not reached is asked again, at most: it may be back well before
    `longest_wait` is over. What is asked in between counts as no try."""
    max_tries: Annotated[int, Field(ge=1, le=1000)] = 20
    batch: Annotated[int, Field(ge=1, le=128)] = 50
    """Reports that go over one association, at most."""
    commitment_wait: PositiveSeconds = 3600
    """Seconds after which a destination that did not answer a storage commitment request is asked again."""
    max_commitment_tries: Annotated[int, Field(ge=1, le=1000)] = 20
    """How often a destination is asked to commit one report before the delivery needs attention."""


class RetentionSettings(_Section):
    """How long files are kept. Records, reports and model inputs are kept whatever stands here."""

    days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    """Days after the delivery (and commitment) of a study's newest report at which its received files are removed;
    by default they never are."""
    orphan_days: Annotated[float, Field(gt=0, le=36_500)] = 7
    """Days for which files that no row names are kept aside."""


class AuditSettings(_Section):
    """How the audit trail is signed."""

    key: Path | None = None
    """PEM file of the private key (PKCS #8, Ed25519, not encrypted), made where it is not there; default: in the data
    folder."""
    head_every: PositiveSeconds = 600
    """Seconds after which the end of the audit chain is signed again, if something was chained meanwhile …"""
    head_events: Annotated[int, Field(ge=1)] = 10_000
    """… or events, whichever comes first."""


class ReportSettings(_Section):
    """What stands in the report besides the findings."""

    series_number: Annotated[int, Field(ge=1, le=2**31 - 1)] = 9900
    series_description: Annotated[str, Field(min_length=1, max_length=64)] = "Osteon fracture report"


RoleName = Literal["viewer", "reviewer", "administrator", "auditor"]


class OpenIdSettings(_Section):
    """An OpenID provider that people sign in at. Its claims are those of the ID token."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    """How the sign-in page calls it."""
    issuer: HttpsUrl
    """As it names itself; what it is and can do stands below it (OpenID Connect Discovery 1.0, section 4)."""
    client_id: Annotated[str, Field(min_length=1, max_length=255)]
    client_secret_file: Path
    """File that holds the client's secret alone."""
    console_url: ConsoleUrl
    """Where browsers reach the console. The provider has to know its `/oauth2callback` as where people come back."""
    ca: Path | None = None
    """PEM file: the CAs that its certificate is verified against; default: the public ones."""
    name_claim: Annotated[str, Field(min_length=1, max_length=128)] = "preferred_username"
    """What a person is called here, from their first sign-in on."""
    roles_claim: Annotated[str, Field(min_length=1, max_length=128)] = "roles"
    """Where their roles or groups stand; a dot leads into an object: `realm_access.roles`."""
    roles: dict[str, list[RoleName]] = {}
    """Which roles each value of that claim gives."""
    default_roles: list[RoleName] = []
    """Roles of whoever gets none by the claim; without any they are not let in."""
    scopes: list[Annotated[str, Field(pattern=r"^[!#-\[\]-~]+$")]] = ["openid", "profile", "email"]
    prompt: Literal["select_account", "login"] = "select_account"
    """`login`: the provider asks for the password each time, also somebody who is signed in there."""

    @property
    def metadata_url(self) -> str:
        """Where the provider says what it is and can do."""
        return f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"

    @model_validator(mode="after")
    def _somebody_gets_in(self) -> OpenIdSettings:
        if not any(self.roles.values()) and not self.default_roles:
            raise ValueError("roles gives nobody a role: list which value of roles_claim gives which roles")
        if "openid" not in self.scopes:
            raise ValueError("scopes has to hold openid")
        return self


class WebSettings(_Section):
    """The console in the browser."""

    enabled: bool = True
    """Whether `osteon up` starts it, where its packages are installed."""
    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    """Address it binds. Another one than loopback needs accounts, or it does not start."""
    port: Port = 8501
    session_timeout: Annotated[float, Field(ge=1, le=1440)] = 30
    """Minutes without anything done after which a person has to sign in again."""
    longest_session: Annotated[float, Field(ge=1, le=10_080)] = 720
    """Minutes after which a person has to sign in again, whatever was done."""
    max_upload_mb: Annotated[int, Field(ge=1, le=512)] = 64
    """The largest file that may be tried, in megabytes of 1024 × 1024 bytes."""
    oidc: OpenIdSettings | None = None
    """Where people sign in, beside local accounts."""


class Settings(BaseSettings):
    """Everything a part of the node needs to know. Immutable."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
    )

    ae_title: AETitle = "OSTEON"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address the listener binds; `0.0.0.0` for every interface."""
    port: Port = 11112
    data_dir: Path = Path("osteon-data")
    database_url: DatabaseUrl | None = None
    """Default: SQLite in the data folder."""
    database_owner_url: DatabaseUrl | None = None
    """Used by `osteon db upgrade` alone, on PostgreSQL: the role that owns the tables."""
    broker_url: BrokerUrl | None = None
    """Default: the embedded Valkey that `osteon up` starts."""
    model_bundle: Path | None = None
    """Default: the bundle released with Osteon."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    listener: ListenerSettings = ListenerSettings()
    tls: TlsSettings = TlsSettings()
    study: StudySettings = StudySettings()
    analysis: AnalysisSettings = AnalysisSettings()
    delivery: DeliverySettings = DeliverySettings()
    report: ReportSettings = ReportSettings()
    retention: RetentionSettings = RetentionSettings()
    audit: AuditSettings = AuditSettings()
    web: WebSettings = WebSettings()
    peers: list[Peer] = []

    @property
    def sources(self) -> list[Peer]:
        """Peers that may send to us."""
        return [peer for peer in self.peers if peer.is_source]

    @property
    def destinations(self) -> list[Peer]:
        """Peers that get the reports."""
        return [peer for peer in self.peers if peer.is_destination]

    def peer(self, name: str) -> Peer | None:
        """Return the peer called `name`, or None."""
        return next((peer for peer in self.peers if peer.name == name), None)

    def quiet_time_of(self, calling_ae_title: str) -> float:
        """Seconds of quiet after which a study fed by `calling_ae_title` is complete."""
        peer = next((peer for peer in self.sources if peer.ae_title == calling_ae_title), None)
        return self.study.quiet_time if peer is None or peer.quiet_time is None else peer.quiet_time

    def is_urgent(self, calling_ae_title: str) -> bool:
        """Whether images of `calling_ae_title` go first."""
        return any(peer.ae_title == calling_ae_title and peer.priority == "urgent" for peer in self.sources)

    @model_validator(mode="after")
    def _peers_are_distinct(self) -> Settings:
        names = [peer.name for peer in self.peers]
        titles = [peer.ae_title for peer in self.sources]
        if len(set(names)) < len(names):
            raise ValueError("peers: every peer needs a name of its own")
        if len(set(titles)) < len(titles):
            raise ValueError("peers: every source needs an AE title of its own")
        return self

    @model_validator(mode="after")
    def _listeners_share_a_database(self) -> Settings:
        url = "" if self.database_url is None else self.database_url.get_secret_value()
        if self.listener.processes > 1 and not url.startswith("postgresql"):
            raise ValueError("listener.processes: SQLite lets one process write at a time; more need PostgreSQL")
        return self

    @model_validator(mode="after")
    def _commitment_needs_files_that_stay(self) -> Settings:
        if self.retention.days is not None and any(peer.provide_commitment for peer in self.peers):
            raise ValueError("peers: provide_commitment promises to keep what retention.days removes; use one of them")
        return self

    @model_validator(mode="after")
    def _tls_is_possible(self) -> Settings:
        for peer in self.peers:
            if peer.tls and peer.is_source and self.tls.port is None:
                raise ValueError(f"peers: {peer.name} is a source with tls, which needs tls.port")
            as_source, as_destination = peer.tls and peer.is_source, peer.is_secured and peer.ca is None
            if (as_source or as_destination) and self.tls.ca is None:
                own = "" if peer.protocol == "dimse" else ", or ca of its own"
                raise ValueError(f"peers: {peer.name} has tls, which needs tls.ca{own}")
        if self.tls.port == self.port and not self.tls.only:
            raise ValueError("tls.port must be another one than port, unless tls.only is true")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (pydantic-settings names it)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_path())


class GivenSettings(Settings):
    """Settings that are given whole: neither the file nor the environment has a say (the demo, tests)."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what the caller gives."""
        return (init_settings,)


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with the settings."""

    key: str
    found: str
    allowed: str


class SettingsMistakes(Exception):
    """The settings cannot be used; `mistakes` says why, without secrets."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(f"{m.key}: found {m.found}: {m.allowed}" for m in mistakes))
        self.mistakes = mistakes


def config_path(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the settings file in force, or None where there is none."""
    named = environment.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    return next((path for path in (Path("osteon.toml"), Path("/etc/osteon/osteon.toml")) if path.is_file()), None)


def load_settings() -> Settings:
    """Read file and environment.

    Raises
    ------
    SettingsMistakes
        Naming every mistake with its key, the value found and what is allowed.
    """
    mistakes = _mistakes_of_the_file() + _unknown_variables()
    if mistakes:
        raise SettingsMistakes(mistakes)
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsMistakes(_mistakes_of(error)) from None
    except SettingsError as error:
        raise SettingsMistakes([_unreadable_variable(error)]) from None


def environment_of(settings: Settings) -> dict[str, str]:
    """Return `OSTEON_…` variables that give another process exactly these settings, whatever file it finds.

    Contains secrets: for a child's environment only.
    """
    variables = {CONFIG_VARIABLE: os.devnull}
    plain = settings.model_dump(mode="json")
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, SecretStr):
            variables[ENV_PREFIX + key.upper()] = value.get_secret_value()
        elif value is not None:
            text = plain[key] if isinstance(plain[key], str) else json.dumps(plain[key])
            variables[ENV_PREFIX + key.upper()] = text
    return variables


def hide_password(url: str) -> str:
    """Return `url` with its passwords, before the host or in the query, as `***`. Rather hides too much."""
    url = re.sub(r"(//[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&][^=&]*password)=[^&]*", r"\1=***", url)


def _mistakes_of_the_file() -> list[Mistake]:
    path = config_path()
    if path is None or str(path) == os.devnull:
        return []
    try:
        tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return [Mistake(CONFIG_VARIABLE, str(path), "the path of a settings file that exists")]
    except (OSError, UnicodeDecodeError) as error:
        return [Mistake(str(path), type(error).__name__, "a readable TOML file in UTF-8")]
    except tomllib.TOMLDecodeError as error:
        return [Mistake(str(path), str(error), "a valid TOML file")]
    return []


def _unknown_variables() -> list[Mistake]:
    mistakes = []
    for name in sorted(os.environ):
        if not name.startswith(ENV_PREFIX) or name in NOT_SETTINGS:
            continue
        key = name.removeprefix(ENV_PREFIX).lower().split("__")[0]
        if key not in Settings.model_fields:
            allowed = ", ".join(ENV_PREFIX + field.upper() for field in Settings.model_fields)
            mistakes.append(Mistake(name, "an unknown variable", f"one of {allowed}"))
    return mistakes


def _unreadable_variable(error: SettingsError) -> Mistake:
    for key in Settings.model_fields:
        if f'"{key}"' in str(error):
            return Mistake(ENV_PREFIX + key.upper(), "a value that is not JSON", "a JSON list or object")
    return Mistake("environment", "a value that cannot be parsed", "JSON for lists and tables")


# The last is that of a peer: a wrong one may hold a password or a token.
_SECRET_KEYS = frozenset({"database_url", "database_owner_url", "broker_url", "url"})


def _mistakes_of(error: ValidationError) -> list[Mistake]:
    mistakes = []
    for detail in error.errors(include_url=False, include_input=True):
        location = [str(part) for part in detail["loc"]]
        key = ".".join(location) or "settings"
        if detail["type"] == "extra_forbidden":
            mistakes.append(Mistake(key, "an unknown key", f"one of {', '.join(_known_keys(location))}"))
            continue
        secret = bool(_SECRET_KEYS.intersection(location))
        found = "(hidden)" if secret else _shortened(detail["input"])
        if detail["type"] == "missing":
            found = "nothing"
        mistakes.append(Mistake(key, found, detail["msg"].removeprefix("Value error, ")))
    return mistakes


def _shortened(value: object) -> str:
    """A wrong table is not printed whole: it may hold what belongs to other keys, secrets included."""
    if isinstance(value, BaseModel | dict):
        return "this table"
    text = repr(hide_password(value) if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(location: list[str]) -> list[str]:
    model: Any = Settings
    for part in location[:-1]:
        if part.isdigit():
            continue
        model = Peer if part == "peers" else _section(model.model_fields[part].annotation)
    return list(model.model_fields)


def _section(annotation: Any) -> Any:
    """The section itself, of one that may be missing."""
    return next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)
