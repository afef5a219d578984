"""The restart policy: arithmetic only, no process, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core.restart import Death, GiveUp, History, Limits, Restart, decide

LIMITS = Limits(intensity=5, period_s=60.0, backoff_initial_s=0.2, backoff_max_s=2.0)


def crash(
    history: History, now_s: float, *, ready_for_s: float = 0.0, jitter: float = 0.0
) -> Restart | GiveUp:
    return decide(history, Death(-9, ready_for_s, jitter), now_s, LIMITS)


def granted(decision: Restart | GiveUp) -> Restart:
    assert isinstance(decision, Restart)
    return decision


def test_first_restart_is_immediate() -> None:
    assert granted(crash(History(), 100.0)).at_s == 100.0


def test_a_row_of_deaths_backs_off_doubling_up_to_the_maximum() -> None:
    limits = LIMITS._replace(intensity=100)
    history, now_s, pauses = History(), 0.0, []
    for _ in range(7):
        decision = granted(decide(history, Death(1, 0.0, 0.0), now_s, limits))
        pauses.append(round(decision.at_s - now_s, 6))
        history, now_s = decision.history, decision.at_s
    assert pauses == [0.0, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_jitter_only_shortens_and_by_at_most_half() -> None:
    history = granted(crash(History(), 0.0)).history
    assert granted(crash(history, 1.0, jitter=0.0)).at_s == pytest.approx(1.2)
    assert granted(crash(history, 1.0, jitter=0.999999)).at_s == pytest.approx(1.1, abs=1e-3)


def test_a_sound_life_clears_the_streak() -> None:
    history = granted(crash(granted(crash(History(), 0.0)).history, 1.0)).history
    assert history.streak == 2
    again = granted(crash(history, 3.0, ready_for_s=1.0))
    assert again.at_s == 3.0
    assert again.history.streak == 1


def test_a_life_shorter_than_its_pause_does_not_clear_the_streak() -> None:
    history = History((0.0, 0.5, 1.0), streak=4, pause_s=1.6)
    assert granted(crash(history, 3.0, ready_for_s=1.5)).history.streak == 5


def test_short_lives_that_served_pause_only_shortly_while_half_the_intensity_is_left() -> None:
    limits = LIMITS._replace(intensity=100)
    history, now_s = History(), 0.0
    for _ in range(50):
        decision = granted(decide(history, Death(-9, 0.05, 0.0), now_s, limits))
        assert decision.at_s - now_s <= limits.backoff_initial_s + 1e-9
        history, now_s = decision.history, decision.at_s
    later = granted(decide(history, Death(-9, 0.05, 0.0), now_s, limits))
    assert later.at_s - now_s > 1.9 * limits.backoff_initial_s


def test_more_restarts_than_the_intensity_give_up() -> None:
    history = History()
    for second in range(LIMITS.intensity):
        history = granted(crash(history, float(second), ready_for_s=10.0)).history
    verdict = crash(history, 6.0, ready_for_s=10.0)
    assert isinstance(verdict, GiveUp)
    assert "5 times within 60 s" in verdict.reason


def test_restarts_before_the_period_are_forgotten() -> None:
    history = History(tuple(float(n) for n in range(5)), streak=1)
    assert isinstance(crash(history, 30.0, ready_for_s=9.0), GiveUp)
    assert granted(crash(history, 61.5, ready_for_s=9.0)).history.restarts_s == (2.0, 3.0, 4.0, 61.5)


def test_a_boot_error_is_never_tried_again() -> None:
    assert isinstance(decide(History(), Death(78, 0.0, 0.5), 0.0, LIMITS), GiveUp)


def test_intensity_zero_means_never() -> None:
    assert isinstance(decide(History(), Death(1, 9.0, 0.5), 0.0, LIMITS._replace(intensity=0)), GiveUp)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 30),
            st.floats(0, 30),
            st.floats(0, 1, exclude_max=True),
            st.sampled_from([1, -9, -11, 0]),
        ),
        max_size=60,
    )
)
def test_never_more_than_the_intensity_within_any_period(
    deaths: list[tuple[float, float, float, int]],
) -> None:
    history, now_s, restarts = History(), 0.0, []
    for gap_s, ready_s, jitter, code in deaths:
        now_s += gap_s
        decision = decide(history, Death(code, ready_s, jitter), now_s, LIMITS)
        if isinstance(decision, GiveUp):
            break
        assert now_s <= decision.at_s <= now_s + LIMITS.backoff_max_s
        assert len(decision.history.restarts_s) <= LIMITS.intensity
        history, now_s = decision.history, decision.at_s
        restarts.append(now_s)
    for start in restarts:
        assert sum(start <= at_s < start + LIMITS.period_s for at_s in restarts) <= LIMITS.intensity
