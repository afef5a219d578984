"""How many requests one backend should run at once: learned from the time to the first token.

May live here: the arithmetic of the limit. May not: who runs a job (fleet.py), whether a backend is asked at
all (breaker.py), clocks.

A backend that is asked for more than it can prefill at once queues inside, where nobody can reorder or shed,
and its time to the first token grows; the time of the whole answer says nothing, it follows the length. So
the limit moves by rounds of endings: up by one after a round whose typical first token came within
`TOLERANCE` times the floor, down by a fifth after a round whose did not. Only a round in which the limit was
used moves it up, and failures never do: a backend that fails at once is not a fast one.
"""

from __future__ import annotations

TOLERANCE = 2.0
SLACK_S = 0.05
"""Differences below this are noise of the machine, not a queue."""
CUT = 0.8
SHORTEST_ROUND = 5
FORGET_S = 30.0
"""The floor moves up this often, an eighth of the way to the least seen meanwhile; down at once."""


class Limit:
    """The limit of one backend: between 1 and its slots. Starts at the slots."""

    __slots__ = ("_floor_at_s", "_least_s", "_round", "_used", "_value", "floor_s", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = max(1, slots)
        self.floor_s = 0.0
        """Time to the first token of an unloaded backend; 0 until one was seen."""
        self._value = float(self.slots)
        self._round: list[float] = []
        self._used = False
        self._least_s = float("inf")
        self._floor_at_s = 0.0

    @property
    def value(self) -> int:
        return int(self._value)

    def resize(self, slots: int) -> None:
        """The slots changed. A limit that was not below them follows; a learned one stays learned."""
        free = self._value >= self.slots
        self.slots = max(1, slots)
        self._value = float(self.slots) if free else min(self._value, float(self.slots))

    def first_token(self, took_s: float, running: int, now: float) -> bool:
        """A request's first text came `took_s` after it was handed over, while `running` ran, itself
        included. True when the limit has changed."""
        if not self.floor_s or took_s < self.floor_s:
            self.floor_s = max(took_s, 1e-6)
            self._least_s, self._floor_at_s = took_s, now
        elif took_s < self._least_s:
            self._least_s = took_s
        if now - self._floor_at_s >= FORGET_S:
            self.floor_s += (self._least_s - self.floor_s) / 8
            self._least_s, self._floor_at_s = float("inf"), now
        self._round.append(took_s)
        if running >= self.value:
            self._used = True
        if len(self._round) < max(SHORTEST_ROUND, self.value):
            return False
        return self._end_round()

    def overloaded(self) -> bool:
        """The backend refused for load, or did not begin in time. True when the limit has changed."""
        return self._set(self._value * CUT)

    def _end_round(self) -> bool:
        typical_s = sorted(self._round)[len(self._round) // 2]
        used = self._used
        if typical_s > TOLERANCE * self.floor_s + SLACK_S:
            return self._set(self._value * CUT)
        return self._set(self._value + 1 if used else self._value)

    def _set(self, value: float) -> bool:
        before = self.value
        self._round.clear()
        self._used = False
        self._value = min(float(self.slots), max(1.0, value))
        return self.value != before
