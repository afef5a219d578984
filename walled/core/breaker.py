"""When a backend is left alone, and when it is tried again: circuit breaker and retry budget as arithmetic.

May live here: (what happened, now) -> may it be used. May not: requests, workers, clocks.

Breaker (M. Nygard, "Release It!"): closed -> open after failures in a row or too large a share of failures
among the last endings; open -> half-open when its pause is over; half-open lets one probe through, whose
ending closes it or opens it for twice as long. Failing fast makes a backend look idle, which would draw
still more requests to it: that is why failures count and load does not.

Budget (as in Finagle and gRPC): every request puts `ratio` of a token into the bucket, every retry takes a
whole one, so that retries are at most that share of the requests over time, whatever fails.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from walled.sections import LadderConfig

BUDGET_MAX: Final = 10.0
"""Retries that may follow each other at once after a good time."""
BUDGET_START: Final = 2.0
MAX_PAUSE_S: Final = 3600.0
"""A backend that asks for more (a date far off, by mistake) is asked again after this."""


class Breaker:
    """The health of one backend as its endings show it."""

    __slots__ = (
        "failures",
        "limits",
        "open_until_s",
        "opened",
        "outcomes",
        "pause_s",
        "paused_until_s",
        "probing",
    )

    def __init__(self, limits: LadderConfig) -> None:
        self.limits = limits
        self.failures = 0
        """In a row."""
        self.outcomes: deque[bool] = deque(maxlen=limits.breaker_window)
        self.open_until_s = 0.0
        """Half-open from then on; 0 when closed."""
        self.paused_until_s = 0.0
        """The backend itself asked to be left alone until then."""
        self.pause_s = 0.0
        self.probing = False
        """One request is on its way through the half-open breaker."""
        self.opened = 0
        """How often it has opened."""

    def state(self, now: float) -> str:
        """closed, open or half_open."""
        if not self.open_until_s:
            return "closed"
        return "open" if now < self.open_until_s else "half_open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        if now < self.paused_until_s:
            return False
        return not self.open_until_s or (now >= self.open_until_s and not self.probing)

    def opens_in_s(self, now: float) -> float:
        """Seconds until a request may be sent; 0 when one may be now."""
        return max(0.0, self.open_until_s - now, self.paused_until_s - now)

    def sent(self) -> None:
        """A request goes to the backend."""
        if self.open_until_s:
            self.probing = True

    def success(self) -> bool:
        """A request ended as it should; True when that closed the breaker."""
        self.failures = 0
        self.outcomes.append(True)
        if not self.open_until_s:
            return False
        self.open_until_s = self.pause_s = 0.0
        self.probing = False
        self.outcomes.clear()
        return True

    def failure(self, now: float) -> bool:
        """A request failed by the backend's fault; True when that opened the breaker (again)."""
        self.failures += 1
        self.outcomes.append(False)
        if self.open_until_s:
            if not self.probing:
                return False  # of a request that was under way when it opened
            return self._open(now)
        window = len(self.outcomes)
        bad = window - sum(self.outcomes)
        if self.failures >= self.limits.breaker_failures or (
            window >= self.limits.breaker_window and bad >= self.limits.breaker_error_rate * window
        ):
            return self._open(now)
        return False

    def inconclusive(self) -> None:
        """A probe ended by its caller's doing: the next request is the probe."""
        self.probing = False

    def pause(self, seconds: float, now: float) -> None:
        """The backend said when to come back (Retry-After)."""
        self.paused_until_s = max(self.paused_until_s, now + seconds)
        self.probing = False

    def _open(self, now: float) -> bool:
        limits = self.limits
        self.pause_s = min(self.pause_s * 2 or limits.breaker_open_s, limits.breaker_open_max_s)
        self.open_until_s = now + self.pause_s
        self.probing = False
        self.opened += 1
        return True


class Budget:
    """Retries a backend may still be given."""

    __slots__ = ("ratio", "tokens")

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.tokens = BUDGET_START if ratio else 0.0

    def request(self) -> None:
        """A first attempt goes out."""
        if self.tokens < BUDGET_MAX:
            self.tokens += self.ratio

    def take(self) -> bool:
        """Whether one more retry is in the budget; it is spent then."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class _Circuit:
    __slots__ = ("breaker", "budget")

    def __init__(self, limits: LadderConfig) -> None:
        self.breaker = Breaker(limits)
        self.budget = Budget(limits.retry_budget)


class Circuits:
    """Breakers and budgets of all backends; `blocked` is theirs to fill and dispatch's to read."""

    def __init__(self, limits: LadderConfig, blocked: set[str]) -> None:
        self._limits = limits
        self._circuits: dict[str, _Circuit] = {}
        self.blocked = blocked

    def reconfigure(self, limits: LadderConfig) -> None:
        """Other limits from now on; what is open stays open."""
        self._limits = limits
        for circuit in self._circuits.values():
            breaker = circuit.breaker
            breaker.limits = limits
            breaker.outcomes = deque(breaker.outcomes, maxlen=limits.breaker_window)
            circuit.budget.ratio = limits.retry_budget

    def _of(self, backend: str) -> _Circuit:
        circuit = self._circuits.get(backend)
        if circuit is None:
            circuit = self._circuits[backend] = _Circuit(self._limits)
        return circuit

    def sent(self, backend: str, *, first: bool) -> None:
        """A request goes to a backend; `first`: it is that request's first call."""
        circuit = self._circuits.get(backend) or self._of(backend)
        budget = circuit.budget
        if first and budget.tokens < BUDGET_MAX:
            budget.tokens += budget.ratio
        if circuit.breaker.open_until_s:
            circuit.breaker.sent()
            self.blocked.add(backend)

    def success(self, backend: str, now: float) -> bool:
        """True when that closed the breaker."""
        breaker = (self._circuits.get(backend) or self._of(backend)).breaker
        if breaker.success():
            self._look(backend, breaker, now)
            return True
        return False

    def failure(self, backend: str, now: float) -> bool:
        """True when that opened the breaker, again or for the first time."""
        breaker = self._of(backend).breaker
        opened = breaker.failure(now)
        self._look(backend, breaker, now)
        return opened

    def inconclusive(self, backend: str, now: float) -> None:
        """A call ended by somebody else's doing."""
        breaker = self._of(backend).breaker
        if breaker.probing:
            breaker.inconclusive()
            self._look(backend, breaker, now)

    def pause(self, backend: str, seconds: float, now: float) -> None:
        """The backend said when to come back."""
        breaker = self._of(backend).breaker
        breaker.pause(min(seconds, MAX_PAUSE_S), now)
        self._look(backend, breaker, now)

    def proved(self, backend: str, now: float) -> None:
        """A worker has seen the backend answer: an open breaker need not wait before it sends a probe."""
        breaker = self._of(backend).breaker
        if breaker.open_until_s > now:
            breaker.open_until_s = now
            self._look(backend, breaker, now)

    def healthy(self, backend: str) -> bool:
        """Its last ending was no failure."""
        breaker = self._of(backend).breaker
        return not breaker.open_until_s and not breaker.failures

    def spend(self, backend: str) -> bool:
        """One more call than requests because of this backend's failure: whether its budget has it."""
        return self._of(backend).budget.take()

    def opens_in_s(self, backend: str, now: float) -> float:
        return self._of(backend).breaker.opens_in_s(now)

    def tick(self, now: float) -> None:
        """Let the probes through whose time has come."""
        for backend in list(self.blocked):
            self._look(backend, self._of(backend).breaker, now)

    def states(self, now: float) -> dict[str, str]:
        """closed, half_open or open, by backend; one that asked for a pause is as it was before."""
        return {name: circuit.breaker.state(now) for name, circuit in self._circuits.items()}

    def _look(self, backend: str, breaker: Breaker, now: float) -> None:
        if breaker.allows(now):
            self.blocked.discard(backend)
        else:
            self.blocked.add(backend)
