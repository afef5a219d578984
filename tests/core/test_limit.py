"""The adaptive limit, against simulated backends."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core.limit import FORGET_S, Limit


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


@pytest.mark.parametrize("knee", [2, 4, 10])
def test_a_backend_whose_first_token_explodes_past_k_is_held_near_k(knee: int) -> None:
    limit = Limit(32)
    limit.first_token(0.2, 1, 0.0)  # its first request found it idle
    settled = run(limit, knee=knee, demand=64)[2000:]
    assert 0.7 * knee <= sum(settled) / len(settled) <= knee + 1


def test_a_backend_that_keeps_its_pace_keeps_all_its_slots() -> None:
    assert set(run(Limit(32), knee=32, demand=64)) == {32}


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limit = Limit(32)
    for _ in range(20):
        limit.overloaded()
    low = limit.value
    for _ in range(200):
        limit.first_token(0.2, low - 1, 1.0)
    assert limit.value == low


def test_fast_failures_lower_the_limit_and_are_no_pace() -> None:
    limit = Limit(8)
    limit.first_token(0.2, 8, 0.0)
    for _ in range(100):
        limit.overloaded()
    assert limit.value == 1
    assert limit.floor_s == 0.2


def test_a_backend_that_became_slower_for_good_gets_its_slots_back() -> None:
    limit = Limit(8)
    limit.first_token(0.1, 1, 0.0)
    now = 0.0
    for _ in range(4000):
        now += 0.5
        limit.first_token(0.5, limit.value, now)
    assert now > FORGET_S * 10
    assert limit.value == 8


def test_slots_that_change() -> None:
    limit = Limit(4)
    limit.resize(8)
    assert limit.value == 8
    for _ in range(9):
        limit.overloaded()
    limit.resize(16)
    assert limit.value == 1


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 100), st.booleans()), max_size=300),
    st.integers(1, 64),
)
def test_always_between_one_and_the_slots(steps: list[tuple[float, int, bool]], slots: int) -> None:
    limit = Limit(slots)
    for number, (took_s, running, failed) in enumerate(steps):
        before = limit.value
        changed = limit.overloaded() if failed else limit.first_token(took_s, running, number)
        assert 1 <= limit.value <= slots
        assert changed == (limit.value != before)
