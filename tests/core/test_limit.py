"""The adaptive limit, against simulated backends."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core.limit import HOLD_S, PROBE_S, SHORTEST_ROUND, Limit


def idle(limit: Limit, first_s: float = 0.2) -> None:
    """Its first requests found it with nothing else to do."""
    for _ in range(5):
        limit.first_token(first_s, 1, 0.0)


def run(limit: Limit, *, knee: int, demand: int, rounds: int = 4000, seed: int = 1) -> list[int]:
    """Requests arrive as fast as the limit lets them in; past `knee` at once the first token explodes."""
    dice = random.Random(seed)
    now, seen = 0.0, []
    for _ in range(rounds):
        running = min(demand, limit.value)
        base_s = 0.2 * dice.uniform(0.9, 1.3)
        took_s = base_s if running <= knee else base_s * (1 + 2 * (running - knee))
        now += took_s / running
        limit.first_token(took_s, running, now)
        seen.append(limit.value)
    return seen


def served(limit: Limit, *, places: int, service_s: float, seconds: float, spread: float = 0.0) -> float:
    """Answers a second of a server that is never idle: `places` at once, first come first served behind them.

    A first token comes `service_s` / 10 after a place is free, both varied by `spread`.
    """
    dice = random.Random(3)
    ends: list[tuple[float, float, int]] = []
    free = [0.0] * places
    now, done = 0.0, 0
    while now < seconds:
        while len(ends) < limit.value:
            began_s = max(now, heapq.heappop(free))
            takes_s = service_s * dice.uniform(1 - spread, 1 + spread)
            heapq.heappush(free, began_s + takes_s)
            heapq.heappush(ends, (began_s + takes_s, began_s + takes_s / 10 - now, len(ends) + 1))
        now, first_s, among = heapq.heappop(ends)
        done += 1
        limit.first_token(first_s, among, now, service_s)
    return done / now


@pytest.mark.parametrize("knee", [2, 4, 10])
def test_a_backend_whose_first_token_explodes_past_k_is_held_near_k(knee: int) -> None:
    limit = Limit(32)
    idle(limit)
    settled = run(limit, knee=knee, demand=64)[2000:]
    assert 0.7 * knee <= sum(settled) / len(settled) <= knee + 1


@pytest.mark.parametrize("knee", [2, 4, 10])
def test_one_that_was_never_seen_idle_is_tried_with_half_and_half_of_that(knee: int) -> None:
    settled = run(Limit(32), knee=knee, demand=64)[2000:]
    assert 0.7 * knee <= sum(settled) / len(settled) <= 2 * knee


@pytest.mark.parametrize("places", [1, 2, 4])
def test_a_server_that_queues_inside_is_handed_about_what_it_can_run(places: int) -> None:
    limit = Limit(16)
    idle(limit)
    rate = served(limit, places=places, service_s=2.0, seconds=600, spread=0.5)
    assert places <= limit.value <= 2 * places
    assert rate >= 0.9 * places / 2.0, "and it is never left without work"


def test_a_backend_that_keeps_its_pace_keeps_all_its_slots() -> None:
    limit = Limit(32)
    idle(limit)
    assert set(run(limit, knee=32, demand=64)) == {32}


def test_first_tokens_that_vary_for_other_reasons_cost_little() -> None:
    """Long prompts, cold ones: slow, but not for the number that runs."""
    dice = random.Random(2)
    limit, now, lost = Limit(8), 0.0, 0.0
    for _ in range(2000):
        took_s = dice.expovariate(1.0)
        now += 4.0 / limit.value
        limit.first_token(took_s, limit.value, now, 4.0)
        lost += 1 - limit.value / 8
    assert lost / 2000 < 0.1


def test_a_cut_that_does_not_help_is_taken_back_and_not_tried_again_soon() -> None:
    limit = Limit(8)
    now, seen = 0.0, []
    while now < PROBE_S:
        now += 0.5
        limit.first_token(2.0, limit.value, now, 4.0)
        seen.append(limit.value)
    assert min(seen) == 4
    assert seen.count(4) == SHORTEST_ROUND
    assert seen[-1] == 8


def test_a_first_token_that_is_a_small_part_of_an_answer_is_nothing_to_cut_for() -> None:
    limit = Limit(8)
    idle(limit)
    for step in range(200):
        limit.first_token(0.9, 8, step * 0.5, 4.0)
    assert limit.value == 8


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limit = Limit(32)
    for step in range(20):
        limit.overloaded(32, step * HOLD_S)
    low = limit.value
    for _ in range(200):
        limit.first_token(0.2, low - 1, 100.0)
    assert limit.value == low


def test_refusals_of_one_moment_are_one_refusal() -> None:
    limit = Limit(10)
    assert limit.overloaded(10, 0.0)
    assert not any(limit.overloaded(10, HOLD_S * 0.9) for _ in range(50))
    assert limit.value == 8
    assert limit.overloaded(8, HOLD_S)


def test_a_refusal_while_few_run_says_more_than_one_while_many_do() -> None:
    limit = Limit(32)
    limit.overloaded(5, 0.0)
    assert limit.value == 4


def test_fast_failures_lower_the_limit_and_are_no_pace() -> None:
    limit = Limit(8)
    for step in range(100):
        limit.overloaded(8, step * HOLD_S)
    assert limit.value == 1
    for step in range(SHORTEST_ROUND):
        limit.first_token(0.2, 1, 100.0 + step)
    assert limit.value == 2, "an answer is"


def test_slots_that_change() -> None:
    limit = Limit(4)
    limit.resize(8)
    assert limit.value == 8
    assert not limit.tight
    for step in range(12):
        limit.overloaded(8, step * HOLD_S)
    limit.resize(16)
    assert limit.value == 1
    assert limit.tight


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 100), st.booleans()), max_size=300),
    st.integers(1, 64),
)
def test_always_between_one_and_the_slots(steps: list[tuple[float, int, bool]], slots: int) -> None:
    limit = Limit(slots)
    for number, (took_s, running, failed) in enumerate(steps):
        before = limit.value
        if failed:
            changed = limit.overloaded(running, number)
        else:
            changed = limit.first_token(took_s, running if running % 2 else limit.value, number, took_s)
        assert 1 <= limit.value <= slots
        assert changed == (limit.value != before)
        assert limit.tight == (limit.value < slots)
