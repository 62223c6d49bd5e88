"""A source that has gone silent, on both databases: by its own weeks or by a setting; told once, and by the doctor."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from console.doctor.verdict import Standing
from console.doctor.work import look_at_work
from models import clock
from models.database import Database
from models.settings import Peer, Settings
from models.silence import Source, ae_titles, in_words, is_missed, sources
from models.tables import Association, AuditEvent, Study
from models.upgrade import upgrade
from worker import silence as silence_watch
from worker.silence import HEARD, SILENT, Watch

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
HOUR, WEEK = timedelta(hours=1), timedelta(days=7)
PEERS = [Peer(name="room", ae_title="ROOM", role="source")]
_numbers = itertools.count(1)


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    made = make_settings(peers=PEERS)
    upgrade(made)
    return made


@pytest.fixture
def after_four_weeks(database: Database) -> Iterator[datetime]:
    """Monday morning; in the four weeks before, the room worked as it always does."""
    send(database, *(at for hours in range(4 * 168) for at in habit(MONDAY - 4 * WEEK + hours * HOUR)))
    with clock.frozen(MONDAY):
        yield MONDAY


def habit(hour: datetime) -> list[datetime]:
    """When the room sends in an hour: all ten minutes of a working day from eight to six, twice a day at weekends."""
    if hour.weekday() < 5:
        return [hour + minutes * timedelta(minutes=10) for minutes in range(6)] if 8 <= hour.hour < 18 else []
    return [hour] if hour.hour in (10, 15) else []


def send(database: Database, *at: datetime, ae_title: str = "ROOM") -> None:
    words = ("patient_name", "patient_id", "issuer_of_patient_id", "patient_birth_date", "accession_number")
    words += ("patient_sex", "study_date", "study_description")
    moments = ("first_image_at", "last_image_at", "quiet_until", "complete_by", "rank_at", "due_at")
    rows = [
        {**dict.fromkeys(words, ""), **dict.fromkeys(moments, moment), "calling_ae_title": ae_title}
        | {"study_instance_uid": f"1.2.{next(_numbers)}"}
        for moment in at
    ]
    with database.write() as session:
        session.execute(insert(Study), rows)


def look(database: Database, settings: Settings) -> Source:
    with database.read() as session:
        (found,) = sources(session, settings)
    return found


def go_to(at: datetime) -> None:
    clock.advance(at - clock.now())


def told(database: Database) -> list[tuple[str, str]]:
    with database.read() as session:
        events = session.scalars(select(AuditEvent).where(AuditEvent.subject == "source").order_by(AuditEvent.id))
        return [(event.action, event.details["heard_at"]) for event in events]


def test_days_nights_and_weekends_of_a_room_that_works_alarm_nobody(
    database: Database, settings: Settings, after_four_weeks: datetime
) -> None:
    for hours in range(168 + 24):
        now = after_four_weeks + hours * HOUR
        if came := habit(now - HOUR):
            send(database, *came)
        go_to(now)
        found = look(database, settings)
        assert not found.is_silent, (now, found)
    assert found.is_known
    assert found.why == "by its own last weeks"


@pytest.mark.parametrize(
    ("last", "missed_from"),
    [
        # Fifteen of the ten-minute studies of a working day later.
        (MONDAY + timedelta(days=1, hours=11), MONDAY + timedelta(days=1, hours=13, minutes=30)),
        # Two on the same day, four at the weekend, and nine on Monday morning.
        (MONDAY + timedelta(days=4, hours=17, minutes=30), MONDAY + timedelta(days=7, hours=9, minutes=20)),
    ],
    ids=["on a working day", "before a weekend"],
)
@pytest.mark.usefixtures("after_four_weeks")
def test_a_room_that_stops_is_missed_when_fifteen_studies_should_have_come(
    database: Database, settings: Settings, last: datetime, missed_from: datetime
) -> None:
    hours = int((last - MONDAY) / HOUR)
    came = [at for hour in range(hours + 1) for at in habit(MONDAY + hour * HOUR) if at <= last]
    send(database, *came)
    go_to(missed_from - timedelta(minutes=1))
    assert not look(database, settings).is_silent
    go_to(missed_from)
    found = look(database, settings)
    assert found.is_silent
    assert found.heard_at == last
    assert found.weeks == (15, 15, 15, 15)
    assert f"nothing since {last:%a %d %b %H:%M}" in found.why
    assert "came 15, 15, 15 and 15 studies" in found.why
    # It stays so, also when the pause is longer than a week.
    for later in (timedelta(days=2), timedelta(days=9), timedelta(days=40)):
        go_to(missed_from + later)
        assert look(database, settings).is_silent


@pytest.mark.usefixtures("after_four_weeks")
def test_a_late_image_to_an_old_study_is_a_sign_of_life(database: Database, settings: Settings) -> None:
    at = MONDAY + 14 * HOUR
    with database.write() as session:
        session.add(
            Association(
                uid="a", calling_ae_title="ROOM", called_ae_title="OSTEON", address="::1", opened_at=at, seen_at=at
            )
        )
    go_to(at + 2 * HOUR)
    found = look(database, settings)
    assert (found.is_silent, found.heard_at) == (False, at)


def test_a_pause_of_less_than_an_hour_is_none_however_busy_the_source_is(
    database: Database, settings: Settings
) -> None:
    send(
        database,
        *(MONDAY - back * WEEK + minute * timedelta(minutes=1) for back in range(1, 5) for minute in range(90)),
    )
    send(database, MONDAY)
    with clock.frozen(MONDAY + timedelta(minutes=59)):
        assert not look(database, settings).is_silent
        clock.advance(timedelta(minutes=1))
        assert look(database, settings).is_silent


def test_one_week_out_of_the_ordinary_hides_nothing_and_two_weeks_of_history_say_nothing() -> None:
    assert is_missed([15, 0, 15, 15])
    assert not is_missed([15, 0, 0, 15])
    assert not is_missed([100, 100, 14, 14])
    assert not is_missed([])


def test_with_little_history_nothing_is_known_and_without_any_nothing_is_said(
    database: Database, settings: Settings
) -> None:
    with clock.frozen(MONDAY):
        assert look(database, settings).why == "nothing ever came from it"
        send(database, *(MONDAY - timedelta(days=20) + number * timedelta(minutes=5) for number in range(4000)))
        go_to(MONDAY + timedelta(hours=12))
        found = look(database, settings)
    assert (found.is_known, found.is_silent) == (False, False)
    assert "less than 3 weeks" in found.why


def test_what_the_settings_say_goes_before_habit(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(peers=[Peer(name="room", ae_title="ROOM", role="source", silent_after=1.5)])
    upgrade(settings)
    database = Database.of(settings)
    with clock.frozen(MONDAY):
        send(database, MONDAY - 1.5 * HOUR)
        assert not look(database, settings).is_silent
        go_to(MONDAY + timedelta(seconds=1))
        found = look(database, settings)
    database.close()
    assert found.is_silent
    assert found.why == "nothing since Sun 01 Mar 22:30; silent_after is 1 h 30 min"


def test_strangers_that_are_let_in_are_watched_as_long_as_they_came_lately(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings(peers=PEERS, listener={"accept_unknown_callers": True})
    upgrade(settings)
    database = Database.of(settings)
    with clock.frozen(MONDAY):
        for title, days in (("ALPHA", 1), ("OLD", 40), ("ROOM", 2), ("ZETA", 3)):
            send(database, *[MONDAY - timedelta(days=days)] * 3, ae_title=title)
        with database.read() as session:
            found = sources(session, settings)
            assert ae_titles(session) == ["ALPHA", "OLD", "ROOM", "ZETA"]
    database.close()
    assert [(source.ae_title, source.peer) for source in found] == [("ROOM", "room"), ("ALPHA", None), ("ZETA", None)]


# --- telling ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("after_four_weeks")
def test_it_is_told_once_when_it_begins_and_once_when_it_is_over_whoever_looks(
    database: Database, settings: Settings
) -> None:
    watch = Watch(settings, database)
    go_to(MONDAY + 12 * HOUR)
    with structlog.testing.capture_logs() as logged:
        assert watch.step() == 600
        assert told(database) == [], "after a start, senders have time to send what they kept"
        assert watch.step() == 60
        again = Watch(settings, database)
        for _ in range(3):
            again.step()
            watch.step()
    heard = (MONDAY - 9 * HOUR).isoformat(timespec="seconds")
    assert told(database) == [(SILENT, heard)]
    (line,) = logged
    assert (line["log_level"], line["event"], line["calling_ae_title"]) == (
        "warning",
        "a source has gone silent",
        "ROOM",
    )
    assert line["seconds"] == 21 * 3600
    back = MONDAY + 12 * HOUR
    send(database, back)
    go_to(back + timedelta(minutes=5))
    watch.step()
    again.step()
    assert told(database) == [(SILENT, heard), (HEARD, back.isoformat(timespec="seconds"))]
    go_to(back + 4 * HOUR)
    again.step()
    assert [action for action, _ in told(database)] == [SILENT, HEARD, SILENT]


@pytest.mark.usefixtures("after_four_weeks")
def test_of_several_sweepers_that_look_at_once_one_tells_it(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_to(MONDAY + 12 * HOUR)
    watches = [Watch(settings, database) for _ in range(4)]
    start = threading.Barrier(4)
    say = silence_watch._say

    def slowly(session: Session, source: Source) -> None:
        say(session, source)
        time.sleep(0.3)

    monkeypatch.setattr(silence_watch, "_say", slowly)

    def step(watch: Watch) -> None:
        watch.step()
        start.wait(30)
        watch.step()

    threads = [threading.Thread(target=step, args=(watch,)) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(told(database)) == 1


@pytest.mark.usefixtures("after_four_weeks")
def test_the_doctor_names_a_silent_source_and_what_to_look_at(database: Database, settings: Settings) -> None:
    assert not [finding for finding in look_at_work(settings) if "silent" in finding.said]
    go_to(MONDAY + 12 * HOUR)
    (finding,) = [finding for finding in look_at_work(settings) if "silent" in finding.said]
    assert finding.standing is Standing.WARNING
    assert "room has gone silent: nothing since Sun 01 Mar 15:00" in finding.said
    assert "silent_after" in finding.todo
    with database.read() as session:
        assert session.scalars(select(AuditEvent)).all() == []


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(seconds=40), "40 s"),
        (timedelta(minutes=5), "5 min"),
        (timedelta(hours=3, minutes=8), "3 h 8 min"),
        (timedelta(hours=2), "2 h"),
        (timedelta(days=2, hours=5, minutes=3), "2 d 5 h"),
        (timedelta(days=2), "2 d"),
        (timedelta(seconds=-3), "0 s"),
    ],
)
def test_a_time_is_said_in_words(span: timedelta, words: str) -> None:
    assert in_words(span) == words
