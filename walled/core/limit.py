"""How many requests one backend should run at once: learned from the time to the first token.

May live here: the arithmetic of the limit. May not: who runs a job (fleet.py), whether a backend is asked at
all (breaker.py), clocks.

A backend that is asked for more than it can begin at once queues inside, where nobody can reorder or shed,
and its time to the first token grows; the time of the whole answer says nothing, it follows the length. So
the limit moves by rounds: `SHORTEST_ROUND` or more first tokens of requests that ran with the limit used up.
Up by one after a round whose typical first token came in time, down by a fifth after a round whose did not,
and down when the backend refuses for load. A round in which the limit was not used moves nothing, and neither
do failures that come fast.

In time is measured against the same backend with less to do: first tokens are kept by how many ran (1, 2-3,
4-7, ...), and the lowest such band with enough of them is the reference. A first token is slow when it takes
`TOLERANCE` times as long, and when what it lost is worth a share of a whole answer: waiting for a slot is,
sharing a batch is not. Since first tokens differ for other reasons too (long prompts, cold ones, another user
of the machine), a cut must prove itself: when half as many at once did not make them quicker, the limit goes
back to where it was and what was known is forgotten. A backend that was never seen with less to do is tried
with half, once, and again after `PROBE_S`.
"""

from __future__ import annotations

from collections import deque

TOLERANCE = 2.0
SLACK_S = 0.1
"""Less is noise of the machine, not a queue."""
SHARE = 0.25
"""Of the time of a whole answer: a first token that takes less has not waited for another's slot."""
CUT = 0.8
EFFECT = 0.25
"""Half as many at once must take at least this part of the time to the first token away."""
SHORTEST_ROUND = 8
KEPT = 32
"""First tokens kept of each band."""
ENOUGH = 4
"""First tokens that make a reference."""
REMEMBER_S = 600.0
"""A band that was not seen for longer is no reference."""
PROBE_S = 600.0
HOLD_S = 1.0
"""Refusals so soon after one are of the same moment, and say nothing new."""


class Limit:
    """The limit of one backend: between 1 and its slots. Starts at the slots."""

    __slots__ = ("_bands", "_before", "_held_s", "_probe_s", "_round", "_value", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = max(1, slots)
        self._value = float(self.slots)
        self._bands: dict[int, tuple[deque[float], list[float]]] = {}
        """By bit length of how many ran: times to the first token, and [when the last one came]."""
        self._round: list[float] = []
        self._before: tuple[float, float] | None = None
        """Limit and typical first token when the present series of cuts began."""
        self._probe_s = self._held_s = float("-inf")
        """Until when no half is tried, no refusal counted."""

    @property
    def value(self) -> int:
        return int(self._value)

    @property
    def tight(self) -> bool:
        """Whether it is below the slots, so that it has to be looked at."""
        return self._value < self.slots

    def typical_s(self, running: int) -> float:
        """The usual time to the first token when about so many run; 0 when it is not known."""
        band = self._bands.get(running.bit_length())
        return _median(band[0]) if band else 0.0

    def resize(self, slots: int) -> None:
        """The slots changed. A limit that was not below them follows; a learned one stays learned."""
        free = self._value >= self.slots
        self.slots = max(1, slots)
        self._value = float(self.slots) if free else min(self._value, float(self.slots))

    def first_token(self, took_s: float, running: int, now: float, service_s: float = 0.0) -> bool:
        """A request's first text came `took_s` after it was handed over as one of `running`. `service_s`:
        what a whole answer takes, 0 when not known. True when the limit has changed."""
        band = self._bands.get(running.bit_length())
        if band is None:
            band = self._bands[running.bit_length()] = deque(maxlen=KEPT), [now]
        band[0].append(took_s)
        band[1][0] = now
        # More than the limit: it was handed over before the last cut.
        if running != int(self._value):
            return False
        self._round.append(took_s)
        if len(self._round) < max(SHORTEST_ROUND, running):
            return False
        return self._end_round(_median(self._round), now, service_s)

    def overloaded(self, running: int, now: float) -> bool:
        """The backend refused for load, or did not begin in time, while `running` ran. True when the limit
        has changed."""
        if now < self._held_s:
            return False
        self._held_s = now + HOLD_S
        return self._set(min(self._value, float(max(1, running))) * CUT)

    def _end_round(self, typical_s: float, now: float, service_s: float) -> bool:
        if self._before is not None and self._value <= max(1.0, self._before[0] / 2):
            value, typical_before_s = self._before
            self._before = None
            if typical_s > (1 - EFFECT) * typical_before_s:
                self._bands.clear()
                self._bands[self.value.bit_length()] = deque(self._round, KEPT), [now]
                return self._set(value)
            self._probe_s = now  # it helped: half of the half may help more
        floor_s = self._reference_s(now)
        material = typical_s > max(SLACK_S, SHARE * service_s)
        if floor_s is None:
            if not material or now < self._probe_s or self._value < 2:
                return self._set(self._value + 1)
            self._probe_s = now + PROBE_S
            self._before = self._value, typical_s
            return self._set(self._value / 2)
        if not material or typical_s <= TOLERANCE * floor_s + SLACK_S:
            self._before = None
            return self._set(self._value + 1)
        self._before = self._before or (self._value, typical_s)
        return self._set(self._value * CUT)

    def _reference_s(self, now: float) -> float | None:
        """Typical first token with the least to do; None when nothing is known below the present limit."""
        for band, (times, (last_s,)) in sorted(self._bands.items()):
            if band >= self.value.bit_length():
                return None
            if len(times) >= ENOUGH and now - last_s <= REMEMBER_S:
                return _median(times)
        return None

    def _set(self, value: float) -> bool:
        before = self.value
        self._round.clear()
        self._value = min(float(self.slots), max(1.0, value))
        return self.value != before


def _median(times: list[float] | deque[float]) -> float:
    return sorted(times)[len(times) // 2]
