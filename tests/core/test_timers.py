"""Bucketed deadlines: never early, at most a step late, nothing lost, nothing twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from walled.core.timers import Deadlines

STEP_S = 0.002
times = st.floats(0, 100, allow_nan=False)


@given(st.lists(times, max_size=40), st.lists(times, max_size=40))
def test_every_item_fires_once_and_in_time(due_at: list[float], looks: list[float]) -> None:
    deadlines: Deadlines[int] = Deadlines(STEP_S)
    for item, at in enumerate(due_at):
        deadlines.add(item, at)
    fired: list[int] = []
    for now in [*sorted(looks), 200.0]:
        found = deadlines.due(now)
        assert all(due_at[item] <= now for item in found), "early"
        fired += found
        assert all(item in fired for item, at in enumerate(due_at) if at + 2 * STEP_S <= now), "late"
    assert sorted(fired) == list(range(len(due_at)))


@given(st.lists(times, min_size=1, max_size=20), st.data())
def test_a_discarded_item_never_fires(due_at: list[float], data: st.DataObject) -> None:
    deadlines: Deadlines[int] = Deadlines(STEP_S)
    for item, at in enumerate(due_at):
        deadlines.add(item, at)
    gone = data.draw(st.integers(0, len(due_at) - 1))
    deadlines.discard(gone, due_at[gone])
    assert sorted(deadlines.due(200.0)) == [item for item in range(len(due_at)) if item != gone]


def test_the_next_time_is_known_without_visiting_items() -> None:
    deadlines: Deadlines[str] = Deadlines(STEP_S)
    assert deadlines.next_s() is None
    deadlines.add("b", 5.0)
    deadlines.add("a", 3.0)
    next_s = deadlines.next_s()
    assert next_s is not None
    assert 3.0 <= next_s <= 3.0 + 2 * STEP_S
    assert deadlines.due(next_s) == ["a"]


def test_answered_requests_leave_nothing_behind() -> None:
    """12,000 requests a second with deadlines of 30 s must not be remembered for 30 s."""
    deadlines: Deadlines[int] = Deadlines(STEP_S)
    for item in range(10_000):
        deadlines.add(item, 30.0 + item * 1e-6)
        deadlines.discard(item, 30.0 + item * 1e-6)
    assert deadlines.due(1000.0) == []
    assert deadlines.next_s() is None
