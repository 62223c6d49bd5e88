"""Which procedures a study was asked for and made as, and under which accession numbers: of all its images together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, replace

from dicom_node.headers import Code, Request, SourceHeader


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders that a study answers.

    Parameters
    ----------
    accession_number
        The one of the whole study; "" where its images have several, which then stand in the requests alone (so IHE has
        it of what answers several orders: RAD TF-2x, appendix A, the group case).
    requests
        Each once, with its accession number and Study Instance UID, in the order of the images.
    procedures
        The codes of what was made, or where an image does not say that, of what was asked for. Each once.
    """

    accession_number: str
    requests: tuple[Request, ...]
    procedures: tuple[Code, ...]


def orders(headers: Iterable[SourceHeader]) -> Orders:
    """Put together what the images' headers say; their order is that of the result."""
    images = list(headers)
    asked = [(header, request) for header in images for request in header.requests]
    numbers = [header.study.accession_number for header in images]
    numbers += [request.accession_number for _, request in asked]
    known = list(dict.fromkeys(number for number in numbers if number))
    only = known[0] if len(known) == 1 else ""
    requests = _merged(
        replace(
            request,
            accession_number=request.accession_number or header.study.accession_number or only,
            study_instance_uid=request.study_instance_uid or header.study_instance_uid,
        )
        for header, request in asked
    )
    if len(known) > 1:
        named = {request.accession_number for request in requests}
        # No number gets lost: what no request names stands in one of its own.
        requests += [
            Request(accession_number=number, study_instance_uid=images[0].study_instance_uid)
            for number in known
            if number not in named
        ]
    return Orders(only, tuple(requests), tuple(_procedures(images)))


def under(header: SourceHeader, accession_number: str) -> SourceHeader:
    """Return the header under another accession number, with those of its requests that had the same one."""
    old = header.study.accession_number
    requests = tuple(
        replace(request, accession_number=accession_number) if old and request.accession_number == old else request
        for request in header.requests
    )
    return replace(header, study=replace(header.study, accession_number=accession_number), requests=requests)


def _merged(requests: Iterable[Request]) -> list[Request]:
    """One for each procedure of an order, whatever one image says more of it than another."""
    found: dict[object, Request] = {}
    for request in requests:
        identity = (request.accession_number, request.study_instance_uid, request.procedure_id)
        key = identity if request.procedure_id else request
        found[key] = _filled(found[key], request) if key in found else request
    return list(found.values())


def _filled(request: Request, other: Request) -> Request:
    names = (field.name for field in dataclasses.fields(Request))
    return Request(**{name: getattr(request, name) or getattr(other, name) for name in names})


def _procedures(images: Iterable[SourceHeader]) -> list[Code]:
    found: dict[tuple[str, str], Code] = {}
    for header in images:
        asked = tuple(request.procedure_code for request in header.requests if request.procedure_code is not None)
        for code in header.study.procedure_codes or asked:
            found.setdefault((code.scheme, code.value), code)
    return list(found.values())
