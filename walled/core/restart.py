"""When a dead child is started again, and when never: restart policy as arithmetic.

May live here: (history, death, now, limits) -> decision. May not: processes, clocks, random numbers.

Two measures, after Erlang's supervisors:
- the *streak*: deaths in a row without a sound life between them. It sets the pause: none after the first,
  then doubling with jitter. A child that stayed ready for longer than its last pause has a clean sheet, so
  that a healthy child killed from outside is back at once, each time. While less than half of the intensity
  is used up, a child that was ready, however shortly, pauses no longer than the initial pause: it did serve,
  and the long pauses are for what cannot;
- the *intensity*: restarts within a period, sound or not. Past it the child is given up.
"""

from __future__ import annotations

from typing import NamedTuple

from walled.errors import BOOT_ERROR_EXIT


class Limits(NamedTuple):
    """The part of the configuration this policy obeys (config.SupervisorConfig)."""

    intensity: int
    period_s: float
    backoff_initial_s: float
    backoff_max_s: float


class History(NamedTuple):
    """What is remembered of one child; starts empty."""

    restarts_s: tuple[float, ...] = ()
    """Times of the restarts granted within the last period."""
    streak: int = 0
    """Deaths in a row."""
    pause_s: float = 0.0
    """The pause before the last restart."""


class Death(NamedTuple):
    """How a child ended."""

    exit_code: int
    """As subprocess gives it: negative for a signal."""
    ready_for_s: float
    """How long it had been ready; 0 when it never was."""
    jitter: float
    """A random number in [0, 1), drawn by the caller."""


class Restart(NamedTuple):
    """Start it again at `at_s`, and remember `history`."""

    at_s: float
    history: History


class GiveUp(NamedTuple):
    """Never start it again by itself; `reason` is for people."""

    reason: str


def decide(history: History, death: Death, now_s: float, limits: Limits) -> Restart | GiveUp:
    """What follows from a death at `now_s`."""
    if death.exit_code == BOOT_ERROR_EXIT:
        return GiveUp("it cannot start, and a second try would end the same")
    recent = tuple(at_s for at_s in history.restarts_s if now_s - at_s < limits.period_s)
    if len(recent) >= limits.intensity:
        return GiveUp(f"restarted {len(recent)} times within {limits.period_s:g} s")
    if death.ready_for_s > max(history.pause_s, limits.backoff_initial_s):
        streak = 1
    elif death.ready_for_s > 0 and len(recent) < limits.intensity // 2:
        streak = min(history.streak + 1, 2)
    else:
        streak = history.streak + 1
    pause_s = _pause_s(streak, death.jitter, limits)
    at_s = now_s + pause_s
    return Restart(at_s, History((*recent, at_s), streak, pause_s))


def _pause_s(streak: int, jitter: float, limits: Limits) -> float:
    """None for the first death of a streak; then initial, twice that, ..., each cut by up to a half."""
    if streak <= 1:
        return 0.0
    exponent = min(streak - 2, 30)  # enough for any sane pair of limits, and no overflow
    full_s: float = min(limits.backoff_initial_s * 2**exponent, limits.backoff_max_s)
    return full_s * (1.0 - 0.5 * jitter)
