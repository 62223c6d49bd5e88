"""The worklist on both databases: newest first, what is searched for, and page by page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models.database import Database
from models.tables import ImageState, StudyState
from models.worklist import MOST_A_PAGE, Position, Search, worklist
from tests.integration.test_claims import image, study

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def add(database: Database, *changes: dict[str, Any]) -> list[int]:
    """Add studies that came a minute after each other, and return their ids."""
    with database.write() as session:
        return [
            study(session, f"1.2.{number}", **({"first_image_at": NOON + timedelta(minutes=number)} | change)).id
            for number, change in enumerate(changes)
        ]


def found(database: Database, search: Search | None = None, **how: Any) -> list[int]:
    with database.read() as session:
        return [entry.study.id for entry in worklist(session, search, **how).entries]


def test_the_newest_study_comes_first_by_when_its_first_image_came(database: Database) -> None:
    first, second, third = add(database, {}, {"first_image_at": NOON - timedelta(days=1)}, {})
    assert found(database) == [third, first, second]


def test_pages_follow_each_other_without_gap_or_repetition_whatever_arrives_meanwhile(database: Database) -> None:
    # Three came at the same moment, across the end of a page.
    same = {"first_image_at": NOON + timedelta(minutes=3)}
    ids = add(database, {}, {}, same, same, same, {}, {})
    pages: list[list[int]] = []
    after: Position | None = None
    while True:
        with database.read() as session:
            page = worklist(session, after=after, size=3)
        pages.append([entry.study.id for entry in page.entries])
        after = page.following
        if after is None:
            break
        with database.write() as session:
            study(session, f"2.{len(pages)}", first_image_at=NOON + timedelta(days=1))
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [study_id for page in pages for study_id in page] == ids[::-1]


def test_a_page_that_is_just_full_is_known_to_be_the_last(database: Database) -> None:
    add(database, {}, {})
    with database.read() as session:
        assert worklist(session, size=2).following is None
        assert worklist(session, size=1).following is not None


def test_an_empty_record_is_one_empty_page(database: Database) -> None:
    with database.read() as session:
        page = worklist(session)
    assert (page.entries, page.following) == ([], None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patient_id", "P1"),
        ("accession_number", "A-1"),
        ("study_date", "20260101"),
        ("calling_ae_title", "CT1"),
        ("decision", "fracture"),
        ("state", StudyState.NEEDS_ATTENTION),
        ("state", StudyState.REPORTED),
    ],
)
def test_a_search_finds_what_has_that_value_and_nothing_else(database: Database, field: str, value: str) -> None:
    _, wanted, _, also = add(database, {}, {field: value}, {}, {field: value})
    assert found(database, Search(**{field: value})) == [also, wanted]
    assert found(database, Search(**{field: value}), size=1) == [also]


def test_all_that_is_asked_for_must_hold(database: Database) -> None:
    everything = {
        "patient_id": "P1",
        "accession_number": "A-1",
        "study_date": "20260101",
        "calling_ae_title": "CT1",
        "decision": "undetermined",
        "state": StudyState.REPORTED,
    }
    others = [{**everything, field: "other"} for field in list(everything)[:-1]]
    wanted, *_ = add(database, everything, {**everything, "state": StudyState.RECEIVING}, *others)
    assert found(database, Search(**everything)) == [wanted]  # type: ignore[arg-type]


def test_a_time_of_receipt_includes_its_beginning_and_not_its_end(database: Database) -> None:
    _, second, third, _ = add(database, {}, {}, {}, {})
    search = Search(received_from=NOON + timedelta(minutes=1), received_before=NOON + timedelta(minutes=3))
    assert found(database, search) == [third, second]


def test_a_quotation_mark_or_a_wildcard_is_searched_for_as_it_is(database: Database) -> None:
    _, wanted = add(database, {"patient_id": "P1"}, {"patient_id": "P'%"})
    assert found(database, Search(patient_id="P'%")) == [wanted]
    assert found(database, Search(patient_id="P%")) == []


def test_an_entry_counts_its_images_and_those_that_wait(database: Database) -> None:
    with database.write() as session:
        counted, empty = study(session, "1"), study(session, "2", first_image_at=NOON - timedelta(days=1))
        image(session, counted, "1.1")
        image(session, counted, "1.2", state=ImageState.ANALYSED)
        image(session, counted, "1.3", state=ImageState.FAILED)
        image(session, counted, "1.4", state=ImageState.NOT_ANALYSED, replaced_at=NOON)
        assert [counted.id, empty.id]
    with database.read() as session:
        assert [(entry.images, entry.waiting) for entry in worklist(session).entries] == [(3, 1), (0, 0)]


@pytest.mark.parametrize("size", [0, -1, 10**9])
def test_a_page_has_at_least_one_study_and_a_most(database: Database, size: int) -> None:
    ids = add(database, {}, {})
    assert found(database, size=size) == (ids[::-1] if size > MOST_A_PAGE else ids[1:])
