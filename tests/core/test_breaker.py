"""Circuit breaker, retry budget, and both for all backends: arithmetic at chosen times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core.breaker import BUDGET_START, MAX_PAUSE_S, Breaker, Budget, Circuits
from walled.sections import LadderConfig

LIMITS = LadderConfig(
    breaker_failures=3, breaker_window=10, breaker_error_rate=0.5, breaker_open_s=5.0, breaker_open_max_s=15.0
)


def opened(at_s: float = 100.0) -> Breaker:
    breaker = Breaker(LIMITS)
    assert [breaker.failure(at_s) for _ in range(3)] == [False, False, True]
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = Breaker(LIMITS)
    for ok in (False, False, True, False, False):
        breaker.success() if ok else breaker.failure(100.0)
    assert breaker.state(100.0) == "closed"
    assert breaker.failure(100.0)
    assert breaker.state(100.0) == "open"
    assert not breaker.allows(104.9)
    assert breaker.opens_in_s(101.0) == 4.0


def test_a_share_of_failures_opens_it_though_they_are_never_in_a_row() -> None:
    breaker = Breaker(LIMITS)
    for _ in range(4):
        breaker.success()
        assert not breaker.failure(100.0)
    breaker.success()
    assert breaker.failure(100.0), "five of ten"


def test_half_open_lets_one_probe_through_and_its_success_closes() -> None:
    breaker = opened()
    assert breaker.state(105.0) == "half_open"
    assert breaker.allows(105.0)
    breaker.sent()
    assert not breaker.allows(105.0), "one probe at a time"
    assert breaker.success()
    assert breaker.state(105.0) == "closed"
    assert breaker.allows(105.0)
    assert not breaker.failure(105.0), "it begins anew"


def test_a_failed_probe_doubles_the_pause_up_to_its_maximum() -> None:
    breaker, now, pauses = opened(0.0), 5.0, []
    for _ in range(4):
        breaker.sent()
        assert breaker.failure(now)
        pauses.append(breaker.opens_in_s(now))
        now = breaker.open_until_s
    assert pauses == [10.0, 15.0, 15.0, 15.0]
    breaker.sent()
    breaker.success()
    assert [breaker.failure(now) for _ in range(3)] == [False, False, True]
    assert breaker.opens_in_s(now) == 5.0, "a success forgets the doubling"


def test_what_was_under_way_when_it_opened_neither_probes_nor_counts() -> None:
    breaker = opened()
    assert not breaker.failure(101.0)
    assert breaker.open_until_s == 105.0


def test_a_probe_that_ended_by_its_callers_doing_says_nothing() -> None:
    breaker = opened()
    breaker.sent()
    breaker.inconclusive()
    assert breaker.state(105.0) == "half_open"
    assert breaker.allows(105.0)


def test_a_pause_that_the_backend_asked_for_is_kept_and_opens_nothing() -> None:
    breaker = Breaker(LIMITS)
    breaker.pause(2.0, 100.0)
    assert not breaker.allows(101.9)
    assert breaker.allows(102.0)
    assert breaker.state(101.0) == "closed"


@given(st.lists(st.booleans(), max_size=2000), st.sampled_from([0.0, 0.1, 0.5]))
def test_retries_never_exceed_their_share_of_the_requests(wanted: list[bool], ratio: float) -> None:
    """`wanted`: after each request, whether a retry is wanted; taken as often as the budget has one."""
    budget, retries = Budget(ratio), 0
    for retry in wanted:
        budget.request()
        retries += retry and budget.take()
    assert retries <= ratio * len(wanted) + BUDGET_START + 1e-6
    if not ratio:
        assert not retries


def test_a_good_time_saves_up_ten_retries_and_no_more() -> None:
    budget = Budget(0.1)
    for _ in range(1000):
        budget.request()
    assert sum(budget.take() for _ in range(100)) == 10


def test_blocked_follows_the_breakers() -> None:
    blocked: set[str] = set()
    circuits = Circuits(LIMITS, blocked)
    for _ in range(3):
        circuits.failure("a", 100.0)
    circuits.success("b", 100.0)
    assert blocked == {"a"}
    assert circuits.states(100.0) == {"a": "open", "b": "closed"}
    circuits.tick(104.9)
    assert blocked == {"a"}
    circuits.tick(105.0)
    assert not blocked
    circuits.sent("a", first=True)
    assert blocked == {"a"}, "its one probe is on its way"
    circuits.tick(105.1)
    assert blocked == {"a"}
    assert circuits.success("a", 105.2)
    assert not blocked


def test_a_worker_that_saw_its_backend_answer_need_not_wait_for_the_pause() -> None:
    blocked: set[str] = set()
    circuits = Circuits(LIMITS, blocked)
    for _ in range(3):
        circuits.failure("a", 100.0)
    circuits.proved("a", 101.0)
    assert not blocked
    circuits.sent("a", first=True)
    assert blocked == {"a"}, "but it is probed like any other"


@pytest.mark.parametrize(("asked_s", "kept_s"), [(30.0, 30.0), (1e9, MAX_PAUSE_S)])
def test_a_pause_is_honoured_within_reason(asked_s: float, kept_s: float) -> None:
    blocked: set[str] = set()
    circuits = Circuits(LIMITS, blocked)
    circuits.pause("a", asked_s, 0.0)
    circuits.tick(kept_s - 0.1)
    assert blocked == {"a"}
    circuits.tick(kept_s)
    assert not blocked


def test_other_limits_hold_from_the_next_ending_on() -> None:
    blocked: set[str] = set()
    circuits = Circuits(LIMITS, blocked)
    circuits.failure("a", 100.0)
    circuits.reconfigure(LadderConfig(breaker_failures=2, retry_budget=0.0))
    assert circuits.failure("a", 100.0)
    assert blocked == {"a"}
