"""Deadlines of many short-lived things, in constant time each.

May live here: the bucketed timer. A heap of single deadlines would keep every answered request until its
deadline (12,000/s with 30 s deadlines are 360,000 dead entries); buckets forget an item when it ends.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Items with a due time. An item fires within `step_s` after its due time, never before."""

    def __init__(self, step_s: float = 0.002) -> None:
        self._rate = 1.0 / step_s
        self._step_s = step_s
        self._buckets: dict[int, dict[T, None]] = {}
        self._order: list[int] = []

    def add(self, item: T, at_s: float) -> None:
        index = int(at_s * self._rate) + 1
        bucket = self._buckets.get(index)
        if bucket is None:
            # An emptied bucket stays until it is due, so that its index is in the heap exactly once.
            self._buckets[index] = {item: None}
            heapq.heappush(self._order, index)
        else:
            bucket[item] = None

    def discard(self, item: T, at_s: float) -> None:
        """Forget an item added with the same `at_s`; unknown items are ignored."""
        bucket = self._buckets.get(int(at_s * self._rate) + 1)
        if bucket is not None:
            bucket.pop(item, None)

    def next_s(self) -> float | None:
        """When `due` may next return something; None when nothing is waiting."""
        return self._order[0] * self._step_s if self._order else None

    def due(self, now_s: float) -> list[T]:
        """Remove and return what is due."""
        found: list[T] = []
        while self._order and self._order[0] * self._step_s <= now_s:
            found += self._buckets.pop(heapq.heappop(self._order))
        return found
