"""The one retry policy: waits that double up to a limit, a little spread out, and an end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.retries import RetryPolicy

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
