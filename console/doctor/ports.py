"""Our ports: whether it is our listener that answers there, or nobody, so that it can be started."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from pynetdicom.presentation import build_context

from console.doctor.verdict import Finding, warning, well, wrong
from dicom_node.network.connections import require_free
from dicom_node.objects.recognise import IMPLEMENTATION_CLASS_UID
from dicom_node.sender import Destination, request
from dicom_node.tls import Expected, TlsError, own_pin
from models.settings import Settings

AREA = "port"
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (to compare with)
_ECHO = "1.2.840.10008.1.1"


def look_at_ports(settings: Settings, seconds: float) -> Iterator[Finding]:
    """Ask each of our ports for an association with ourselves."""
    host = _EVERYWHERE.get(settings.host, settings.host)
    if not settings.tls.only:
        yield _look(settings, Destination(settings.ae_title, host, settings.port), seconds)
    if settings.tls.port is not None:
        try:
            ourselves = Expected(settings.tls, settings.ae_title, (own_pin(settings.tls),))
        except TlsError:
            return  # the check of the certificates says so
        yield _look(settings, Destination(settings.ae_title, host, settings.tls.port, ourselves), seconds)


def _look(settings: Settings, own: Destination, seconds: float) -> Finding:
    area = f"{AREA} {own.port}"
    try:
        with socket.create_connection((own.host, own.port), timeout=seconds):
            pass
    except ConnectionRefusedError:
        return _free(settings, area, own.port)
    except OSError as error:
        said = f"cannot be asked at {own.host}: {error.strerror or 'no answer'}"
        return wrong(area, said, "host has to be an address of this machine, or 0.0.0.0 for all of them")
    try:
        association = request(own, [build_context(_ECHO)], settings.ae_title, seconds)
    except TlsError as error:
        return wrong(area, str(error), "see the check of the certificates")
    acceptor = getattr(association, "acceptor", None)
    if acceptor is not None and acceptor.implementation_class_uid == IMPLEMENTATION_CLASS_UID:
        established = getattr(association, "is_established", False)
        if established:
            association.release()  # type: ignore[union-attr]  # it is one: an outcome has no acceptor
            return well(area, f"our listener answers as {own.ae_title}")
    if acceptor is not None and getattr(association, "is_rejected", False):
        said = f"a DICOM node answers, but does not let {own.ae_title} in: the listener of other settings?"
        return wrong(area, said, "restart the listener after a change of the settings, or free the port")
    if acceptor is not None and getattr(association, "is_established", False):
        association.release()  # type: ignore[union-attr]
        return wrong(area, "another DICOM node listens there", "stop it, or take another port")
    said = "something listens there that is not our listener, or it hangs"
    return wrong(area, said, f"find it with `ss -ltnp 'sport = :{own.port}'`; stop it, or take another port")


def _free(settings: Settings, area: str, port: int) -> Finding:
    try:
        require_free(settings.host, port)
    except OSError as error:
        if error.errno == errno.EACCES:
            said = "this user may not open it: ports below 1024 are the system's"
            return wrong(area, said, "take one from 1024 on, such as 11112, or give the node CAP_NET_BIND_SERVICE")
        said = f"cannot be opened at {settings.host}: {error.strerror}"
        return wrong(area, said, "host has to be an address of this machine, or 0.0.0.0 for all of them")
    return warning(area, "free: the listener does not run on this host", "`osteon up` or `osteon listen` starts it")
