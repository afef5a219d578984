"""A mergeable sketch of a distribution (DDSketch): any quantile within 1 % of its true value.

May live here: the sketch and its window made of slots. May not: clocks (a time is an argument), names.

A value falls into the bin ceil(log(value) / log(gamma)); with gamma = 1.01 / 0.99 a bin's middle is within
1 % of all that is in it. Values outside SMALLEST..LARGEST count as those, so a sketch has at most 1,500 bins.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

ERROR = 0.01
GAMMA = (1 + ERROR) / (1 - ERROR)
_INVERSE_LOG = 1 / math.log(GAMMA)
SMALLEST, LARGEST = 1e-6, 1e7

TIERS = ((1.0, 21), (10.0, 37), (300.0, 73))
"""(seconds, slots) of a window: twenty seconds in steps of one, six minutes in steps of ten, six hours in
steps of five minutes. Were the fine steps to reach further, merging them would cost more."""


class Sketch:
    """Counts by bin."""

    __slots__ = ("bins", "count")

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}
        self.count = 0

    def add(self, value: float) -> None:
        index = bin_of(value)
        self.bins[index] = self.bins.get(index, 0) + 1
        self.count += 1

    def merge(self, other: Sketch) -> None:
        self.count += other.count
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count

    def counts(self, bounds: Sequence[float]) -> list[int]:
        """How many values lie between each bound and the one before it, then how many above the last."""
        found = [0] * (len(bounds) + 1)
        for index, count in self.bins.items():
            found[bisect_left(bounds, middle(index))] += count
        return found

    def quantile(self, q: float) -> float | None:
        """The value below which the share `q` lies; None of an empty sketch."""
        if not self.count:
            return None
        rank = min(self.count, max(1, math.ceil(q * self.count)))
        seen = 0
        for index in sorted(self.bins):
            seen += self.bins[index]
            if seen >= rank:
                return middle(index)
        raise AssertionError("count is the sum of the bins")


def middle(index: int) -> float:
    """The value a bin stands for."""
    return 2 * GAMMA**index / (GAMMA + 1)


def bin_of(value: float) -> int:
    return math.ceil(math.log(min(max(value, SMALLEST), LARGEST)) * _INVERSE_LOG)


class SketchWindow:
    """The sketches of the recent past, slot by slot; what is older is dropped as the slots come round."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots: list[dict[int, Sketch]] = [{} for _ in TIERS]

    def add(self, value: float, now_s: float) -> None:
        for slots, (step_s, size) in zip(self._slots, TIERS, strict=True):
            number = int(now_s // step_s)
            if number not in slots:
                for old in [n for n in slots if n <= number - size]:
                    del slots[old]
                slots[number] = Sketch()
            slots[number].add(value)

    def since(self, window_s: float, now_s: float) -> Iterable[Sketch]:
        """The sketches that cover the last `window_s` seconds; one slot more than that at most."""
        for slots, (step_s, size) in zip(self._slots, TIERS, strict=True):
            if window_s <= step_s * (size - 1) or size == TIERS[-1][1]:
                oldest = int((now_s - window_s) // step_s)
                return [sketch for number, sketch in slots.items() if number >= oldest]
        return []
