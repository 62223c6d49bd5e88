"""The hospital's day of the benchmarks: a seed gives the same day, and the day is one."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from tests.benchmarks.day.schedule import (
    AGAIN,
    CORRECTED,
    CURVE,
    DAY,
    EMERGENCY_CURVE,
    HOUR,
    LATE,
    MODALITIES,
    OUTAGE,
    PACS_ROUNDS,
    SHARES,
    STAT,
    Day,
    Kind,
    Sending,
    What,
    plan,
)

STUDIES = 2000


@pytest.fixture(scope="module", params=[1, 2, 3])
def day(request: pytest.FixtureRequest) -> Day:
    return plan(request.param, STUDIES)


def of(day: Day, what: What) -> list[Sending]:
    return [sending for sending in day.sendings if sending.what is what]


def test_a_seed_gives_the_same_day_and_another_seed_another() -> None:
    assert plan(7, 300) == plan(7, 300)
    assert plan(7, 300).sendings != plan(8, 300).sendings


def test_the_curves_share_out_the_whole_day() -> None:
    assert len(CURVE) == len(EMERGENCY_CURVE) == 24
    assert sum(CURVE) == sum(EMERGENCY_CURVE) == sum(SHARES.values()) == 100


def test_twenty_modalities_have_a_title_of_their_own() -> None:
    assert len({modality.ae_title for modality in MODALITIES}) == len(MODALITIES) == 20


def test_the_rooms_follow_the_curve_of_the_day(day: Day) -> None:
    rooms = {study.number for study in day.studies if study.modality.kind is Kind.ROOM}
    hours = Counter(int(sending.at // HOUR) for sending in of(day, What.NEW) if sending.study in rooms)
    for hour, share in enumerate(CURVE):
        # Four standard deviations.
        expected = len(rooms) * share / 100
        assert hours[hour] == pytest.approx(expected, abs=4 * expected**0.5 + 1)


def test_every_study_is_sent_once_with_all_its_images(day: Day) -> None:
    first = [sending.study for sending in of(day, What.NEW)]
    assert sorted(first) == [study.number for study in day.studies] == list(range(1, STUDIES + 1))
    images: dict[int, list[int]] = defaultdict(list)
    for sending in [*of(day, What.NEW), *of(day, What.LATE)]:
        images[sending.study] += sending.images
    for study in day.studies:
        assert images[study.number] == list(range(1, study.images + 1))
        assert 1 <= study.images <= 4


def test_what_comes_again_or_late_comes_after_the_study_and_on_the_same_day(day: Day) -> None:
    sent = {sending.study: sending for sending in of(day, What.NEW)}
    more = [sending for sending in day.sendings if sending.what is not What.NEW]
    assert Counter(sending.what for sending in more) == {
        What.LATE: LATE * STUDIES,
        What.AGAIN: AGAIN * STUDIES,
        What.CORRECTED: CORRECTED * STUDIES,
    }
    for sending in more:
        first = sent[sending.study]
        assert first.at + 10 * 60 <= sending.at < DAY
        if sending.what is What.LATE:
            assert not set(sending.images) & set(first.images)
        else:
            assert sending.images == first.images
    assert all(sending.at <= DAY for sending in day.sendings)
    assert [sending.at for sending in day.sendings] == sorted(sending.at for sending in day.sendings)


def test_emergencies_are_urgent_and_few_others(day: Day) -> None:
    urgent = [study for study in day.studies if study.urgent]
    assert {study.number for study in day.studies if study.modality.kind is Kind.EMERGENCY} <= {
        study.number for study in urgent
    }
    expected = (SHARES[Kind.EMERGENCY] + (100 - SHARES[Kind.EMERGENCY]) * STAT) / 100
    assert len(urgent) / STUDIES == pytest.approx(expected, abs=0.035)


def test_portable_units_send_in_bunches(day: Day) -> None:
    portable = {study.number for study in day.studies if study.modality.kind is Kind.PORTABLE}
    bunches = Counter((sending.ae_title, sending.at) for sending in of(day, What.NEW) if sending.study in portable)
    assert len(bunches) < len(portable) / 3
    assert max(bunches.values()) >= 5


def test_the_pacs_sends_several_studies_at_once_and_nothing_while_it_is_away(day: Day) -> None:
    rounds = Counter(sending.at / HOUR for sending in day.sendings if sending.ae_title == "PACS")
    assert rounds.keys() <= set(PACS_ROUNDS)
    assert rounds.total() == AGAIN * STUDIES / 2
    assert not [hour for hour in rounds if OUTAGE[0] <= hour < OUTAGE[1]]


@pytest.mark.parametrize("studies", [1, 2, 10])
def test_a_very_small_day_is_a_day_too(studies: int) -> None:
    for seed in range(50):
        assert len(of(plan(seed, studies), What.NEW)) == studies
