"""When a queue counts as standing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from walled.core.codel import Codel, interval_s, patience_s, target_s, too_late


def test_a_burst_is_no_standing_queue() -> None:
    codel = Codel()
    for step in range(50):
        assert not codel.started(2.0 - step * 0.04, 1.0, step * 0.04)


def test_a_wait_above_the_target_for_an_interval_is() -> None:
    codel = Codel()
    assert not codel.started(0.6, 1.0, 10.0)
    assert not codel.started(0.6, 1.0, 12.9)
    assert codel.started(0.6, 1.0, 13.0)
    assert not codel.started(0.5, 1.0, 13.1), "one short wait ends it"


def test_an_emptied_queue_begins_anew() -> None:
    codel = Codel()
    codel.started(9.0, 1.0, 0.0)
    assert codel.started(9.0, 1.0, 4.0)
    codel.emptied()
    assert not codel.standing
    assert not codel.started(9.0, 1.0, 8.0)


def test_times_follow_the_service_time() -> None:
    assert target_s(10.0) == 5.0
    assert interval_s(10.0) == 30.0
    assert target_s(0.0) > 0
    assert interval_s(0.0) > 0


def test_too_late() -> None:
    assert too_late(10.0, 2.0, 8.5)
    assert not too_late(10.0, 2.0, 8.0)


@given(st.floats(0, 100), st.floats(0, 3600), st.floats(0, 100))
def test_patience_follows_the_service_time_and_ends_before_an_answer_is_too_late(
    service_s: float, left_s: float, times: float
) -> None:
    found_s = patience_s(service_s, left_s, times)
    assert 0 <= found_s <= left_s
    if service_s and times:
        assert found_s <= max(0.0, left_s - service_s)
        if found_s < left_s - service_s:
            assert found_s >= times * service_s
            assert found_s >= left_s / 2


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5)), max_size=100), st.floats(0, 20))
def test_standing_only_after_an_interval_without_a_short_wait(
    steps: list[tuple[float, float]], service_s: float
) -> None:
    codel, now, since = Codel(), 0.0, None
    for wait_s, pause_s in steps:
        now += pause_s
        if wait_s <= target_s(service_s):
            since = None
        elif since is None:
            since = now
        standing = codel.started(wait_s, service_s, now)
        assert standing == (since is not None and since != now and now - since >= interval_s(service_s))
