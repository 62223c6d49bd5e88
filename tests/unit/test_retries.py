"""The one retry policy: waits that double up to a limit, a little spread out, and an end; and what follows a try."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.outcome import (
    CONNECTION_LOST,
    NO_ANSWER,
    NO_ASSOCIATION,
    NO_SECRET,
    NO_SUCH_SERVICE,
    NO_TLS,
    NOT_ACCEPTED,
    NOT_AUTHORISED,
    NOT_REACHED,
    REJECTED,
    REJECTED_FOR_NOW,
    UNAVAILABLE,
    Outcome,
    Result,
    judged,
)
from dicom_node.tls import DISTRUSTED, TLS_FAILED
from worker.retries import AWAY, Next, RestPolicy, RetryPolicy

seconds = st.floats(min_value=0.001, max_value=86_400)


def waits(policy: RetryPolicy) -> list[float]:
    found = []
    for tries in range(1, policy.most):
        wait = policy.next_wait(tries)
        assert wait is not None
        found.append(wait.total_seconds())
    return found


def test_each_wait_is_twice_the_one_before_up_to_the_longest() -> None:
    policy = RetryPolicy(first=5, longest=60, most=9)
    for wait, least in zip(waits(policy), (5, 10, 20, 40, 60, 60, 60, 60), strict=True):
        assert least <= wait <= least * 1.25


def test_after_the_last_try_it_is_given_up() -> None:
    policy = RetryPolicy(first=5, longest=60, most=3)
    assert policy.next_wait(2) is not None
    assert policy.next_wait(3) is None
    assert policy.next_wait(4) is None


def test_where_only_one_try_is_allowed_nothing_is_tried_again() -> None:
    assert RetryPolicy(first=5, longest=60, most=1).next_wait(1) is None


def test_failures_of_the_same_moment_do_not_come_back_at_the_same_moment() -> None:
    policy = RetryPolicy(first=100, longest=100, most=2)
    assert len({policy.next_wait(1) for _ in range(50)}) > 40


@given(first=seconds, longest=seconds, most=st.integers(1, 1000), tries=st.integers(1, 2000))
def test_whatever_is_set_a_wait_is_bounded_and_the_tries_come_to_an_end(
    first: float, longest: float, most: int, tries: int
) -> None:
    wait = RetryPolicy(first=first, longest=longest, most=most).next_wait(tries)
    if tries >= most:
        assert wait is None
    else:
        assert wait is not None
        assert 0 <= wait.total_seconds() <= longest * 1.25 + 1e-6


# --- the decision tree --------------------------------------------------------------------------------------------

POLICY = RetryPolicy(first=5, longest=60, most=5)


@pytest.mark.parametrize("status", [0x0000, 0x0111, 0xB000, 0xB006, 0xB007])
def test_what_is_stored_or_there_already_is_delivered(status: int) -> None:
    assert POLICY.after_try(judged(status), 5)[0] is Next.DELIVERED


@pytest.mark.parametrize("status", [0x0117, 0x0118, 0x0119, 0x0122, 0x0124, 0x0211, 0x0212, 0xA900, 0xA9FF, 0xC000])
def test_a_refusal_that_will_not_change_is_not_tried_again(status: int) -> None:
    assert POLICY.after_try(judged(status), 1)[0] is Next.NEVER


@pytest.mark.parametrize("reason", [NOT_ACCEPTED, "not_dicom", "destination_not_in_settings", "no_try_came_to_an_end"])
def test_what_cannot_be_sent_there_is_not_tried_again(reason: str) -> None:
    assert POLICY.after_try(Outcome(Result.REFUSED, reason), 1)[0] is Next.NEVER


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0x0110, 0x0213, 0xFE00])
def test_any_other_answer_is_tried_again_later(status: int) -> None:
    follows, wait = POLICY.after_try(judged(status), 1)
    assert follows is Next.LATER
    assert 5 <= wait.total_seconds() <= 6.25


def test_a_connection_that_breaks_is_tried_again_at_once_the_first_time_and_later_after_that() -> None:
    lost = Outcome(Result.FAILED, CONNECTION_LOST)
    assert POLICY.after_try(lost, 1)[0] is Next.AT_ONCE
    assert [POLICY.after_try(lost, tries)[0] for tries in (2, 3, 4, 5)] == [Next.LATER] * 3 + [Next.NEVER]


def test_an_answer_that_does_not_come_is_not_waited_for_again_at_once() -> None:
    assert POLICY.after_try(Outcome(Result.FAILED, NO_ANSWER), 1)[0] is Next.LATER


def test_where_one_try_is_allowed_even_a_broken_connection_is_the_end() -> None:
    once = RetryPolicy(first=5, longest=60, most=1)
    assert once.after_try(Outcome(Result.FAILED, CONNECTION_LOST), 1)[0] is Next.NEVER


def test_a_destination_rests_longer_with_each_association_that_comes_to_nothing_however_many() -> None:
    away = Outcome(Result.FAILED, NOT_REACHED)
    for longest, longest_rest in ((60, 300), (3600, 60)):
        rests = RestPolicy(first=5, longest=longest, longest_rest=longest_rest)
        for failures, least in ((1, 5), (2, 10), (3, 20), (5, 60), (1000, 60)):
            assert least <= rests.after_association(away, failures).total_seconds() <= least * 1.25


def test_a_destination_that_rejects_for_good_rests_for_the_longest_wait_at_once() -> None:
    rests = RestPolicy(first=5, longest=3600, longest_rest=60)
    assert rests.after_association(Outcome(Result.REFUSED, REJECTED), 1).total_seconds() >= 3600
    assert rests.after_association(Outcome(Result.FAILED, REJECTED_FOR_NOW), 1).total_seconds() < 60


def test_that_a_destination_is_asked_more_often_uses_up_no_more_tries() -> None:
    rests = RestPolicy(first=5, longest=3600, longest_rest=300)
    counted = [failures for failures in range(1, 60) if rests.counts(failures)]
    assert counted == [1, 2, 3, 4, 5, 6, 7, 19, 31, 43, 55]
    every = RestPolicy(first=5, longest=60, longest_rest=300)
    assert all(every.counts(failures) for failures in range(1, 60))


def test_only_what_happens_before_an_instance_is_sent_speaks_of_the_destination_alone() -> None:
    unconnected = {NOT_REACHED, NO_ASSOCIATION, NO_TLS, DISTRUSTED, TLS_FAILED, REJECTED, REJECTED_FOR_NOW}
    unserved = {NO_SECRET, NOT_AUTHORISED, NO_SUCH_SERVICE, UNAVAILABLE}
    assert set(AWAY) == unconnected | unserved


@given(
    status=st.one_of(st.none(), st.integers(0, 0xFFFF)),
    result=st.sampled_from(Result),
    reason=st.sampled_from([CONNECTION_LOST, NO_ANSWER, NOT_ACCEPTED, *AWAY]),
    tries=st.integers(1, 2000),
)
def test_whatever_happens_it_ends_and_waits_within_bounds(
    status: int | None, result: Result, reason: str, tries: int
) -> None:
    outcome = Outcome(result, reason) if status is None else judged(status)
    follows, wait = POLICY.after_try(outcome, tries)
    assert 0 <= wait.total_seconds() <= 60 * 1.25 + 1e-6
    assert (follows is Next.LATER) == (wait.total_seconds() > 0)
    if tries >= POLICY.most:
        assert follows in (Next.DELIVERED, Next.NEVER)
