"""What every series was: fixed rings of 1 s x 10 min, 10 s x 6 h and 5 min x 7 d.

May live here: the rings and their packing as plain bytes. May not: clocks (a time is an argument), files.

A ring has a place for every step, found by dividing the time: appending costs the same on the first and on
the seventh day, and a step in which nothing was measured is a hole, not a zero.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

RINGS = ((1.0, 600), (10.0, 2160), (300.0, 2016))
MAX_SERIES = 512
"""Of 38 kB each."""
DEAD_S = 600.0
"""A series that was not measured for so long gives way to a new one."""
_HOLE = math.nan


class _Ring:
    """One value, the mean of what was measured, for each of the last `size` steps."""

    __slots__ = ("_count", "_last", "_size", "_step_s", "_values")

    def __init__(self, step_s: float, size: int) -> None:
        self._step_s, self._size = step_s, size
        self._values = array("d", [_HOLE]) * size
        self._last = -1
        """Number of the newest step; steps are counted from time zero."""
        self._count = 0

    def append(self, t_s: float, value: float) -> None:
        step = int(t_s // self._step_s)
        if step < self._last:
            return  # the clock went back: what is there was measured, what comes is not newer
        if step == self._last:
            place = step % self._size
            self._count += 1
            self._values[place] += (value - self._values[place]) / self._count
            return
        if self._last >= 0:
            for missed in range(max(self._last + 1, step - self._size + 1), step):
                self._values[missed % self._size] = _HOLE
        self._values[step % self._size] = value
        self._last, self._count = step, 1

    def window(self, since_s: float) -> list[tuple[float, float]]:
        if self._last < 0:
            return []
        first = max(0, self._last - self._size + 1, math.ceil(since_s / self._step_s))
        found = ((step, self._values[step % self._size]) for step in range(first, self._last + 1))
        return [(step * self._step_s, value) for step, value in found if not math.isnan(value)]

    @property
    def last_s(self) -> float:
        """When it was measured last."""
        return self._last * self._step_s

    def covers(self, since_s: float) -> bool:
        return since_s >= (self._last - self._size + 1) * self._step_s

    def plain(self) -> list[Any]:
        return [self._last, self._count, self._values.tobytes()]

    def take(self, plain: list[Any]) -> None:
        """Raises ValueError for what is not a ring of this size."""
        last, count, data = plain
        if not (isinstance(last, int) and isinstance(count, int) and isinstance(data, bytes)):
            raise ValueError("not a ring")
        if len(data) != 8 * self._size:
            raise ValueError(f"a ring of {len(data)} bytes; {8 * self._size} are wanted")
        self._values = array("d", data)
        self._last, self._count = last, max(1, count)


class History:
    """The rings of up to MAX_SERIES series; further ones are refused and counted."""

    def __init__(self) -> None:
        self._rings: dict[str, tuple[_Ring, ...]] = {}
        self.refused = 0

    def append(self, series: str, t_s: float, value: float) -> None:
        """What `series` was at `t_s` (seconds, of one clock throughout)."""
        if not math.isfinite(value):
            return
        rings = self._rings.get(series)
        if rings is None:
            if len(self._rings) >= MAX_SERIES and not self._give_way(t_s):
                self.refused += 1
                return
            rings = self._rings[series] = tuple(_Ring(*ring) for ring in RINGS)
        for ring in rings:
            ring.append(t_s, value)

    def _give_way(self, t_s: float) -> bool:
        """Forget the series that was measured longest ago, when that is long ago."""
        oldest = min(self._rings, key=lambda name: self._rings[name][0].last_s)
        if self._rings[oldest][0].last_s > t_s - DEAD_S:
            return False
        del self._rings[oldest]
        return True

    def window(self, series: str, since_s: float) -> list[tuple[float, float]]:
        """(time, value) from `since_s` on, oldest first, in the finest steps that reach back so far."""
        rings = self._rings.get(series, ())
        for ring in rings:
            if ring.covers(since_s):
                return ring.window(since_s)
        return rings[-1].window(since_s) if rings else []

    def names(self) -> list[str]:
        return sorted(self._rings)

    def forget(self, series: str) -> None:
        self._rings.pop(series, None)

    def plain(self) -> dict[str, Any]:
        """Everything, to be packed and kept."""
        return {name: [ring.plain() for ring in rings] for name, rings in self._rings.items()}

    def take(self, plain: dict[str, Any]) -> None:
        """What `plain` gave. Raises ValueError, and then nothing has changed."""
        taken: dict[str, tuple[_Ring, ...]] = {}
        try:
            for name, kept in list(plain.items())[:MAX_SERIES]:
                rings = tuple(_Ring(*ring) for ring in RINGS)
                for ring, one in zip(rings, kept, strict=True):
                    ring.take(one)
                taken[str(name)] = rings
        except (TypeError, ValueError) as exc:
            raise ValueError(f"history: {exc}") from None
        self._rings = taken
