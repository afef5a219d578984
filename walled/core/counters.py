"""The registry of counters and gauges: deltas in, one picture out.

May live here: adding up, bounds, the numbering of publications. May not: sockets, clocks, packing.

Deltas come from the daemon's own processes, yet nothing they say may make the monitor grow without bound:
names and sources are capped, and what is refused is counted.
"""

from __future__ import annotations

import math
from typing import Any

MAX_SERIES = 4096
MAX_SOURCES = 256
MAX_NAME_CHARS = 200

Picture = dict[str, Any]


class Registry:
    """Sums of counters over all sources since the monitor began, and each source's last gauges."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._gauges: dict[str, dict[str, float]] = {}
        self.deltas = 0
        self.refused = 0
        """Deltas, or entries of deltas, that were malformed or over a cap."""

    def apply(self, delta: dict[str, Any]) -> None:
        """Take one delta: {"from": source, "counters": {name: increment}, "gauges": {name: value}}."""
        source, counters, gauges = delta.get("from"), delta.get("counters", {}), delta.get("gauges", {})
        if not (isinstance(source, str) and isinstance(counters, dict) and isinstance(gauges, dict)):
            self.refused += 1
            return
        self.deltas += 1
        for name, value in counters.items():
            # A counter only grows: an increment below zero would make every rate computed from it wrong.
            if self._sound(name, value) and value >= 0 and self._has_room(self._counters, name, MAX_SERIES):
                self._counters[name] = self._counters.get(name, 0) + value
            else:
                self.refused += 1
        if not gauges:
            return
        if len(source) > MAX_NAME_CHARS or not self._has_room(self._gauges, source, MAX_SOURCES):
            self.refused += 1
            return
        mine = self._gauges.setdefault(source, {})
        for name, value in gauges.items():
            if self._sound(name, value) and self._has_room(mine, name, MAX_SERIES):
                mine[name] = value
            else:
                self.refused += 1

    def forget(self, source: str) -> None:
        """Drop the gauges of a source that is gone; what it counted stays counted."""
        self._gauges.pop(source, None)

    def picture(self) -> Picture:
        """All values now."""
        return {
            "counters": dict(self._counters),
            "gauges": {source: dict(values) for source, values in self._gauges.items()},
            "deltas": self.deltas,
            "refused": self.refused,
        }

    @staticmethod
    def _sound(name: Any, value: Any) -> bool:
        return (
            isinstance(name, str)
            and 0 < len(name) <= MAX_NAME_CHARS
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        )

    @staticmethod
    def _has_room(table: dict[str, Any], name: str, limit: int) -> bool:
        return name in table or len(table) < limit


class Publications:
    """Numbers what is published, topic by topic, and keeps the last of each for late subscribers."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._last: dict[bytes, dict[str, Any]] = {}

    def next(self, topic: bytes, body: dict[str, Any], time_s: float) -> dict[str, Any]:
        """The message to publish: body with epoch, seq (from 1, without gaps) and wall-clock time."""
        seq = self._last[topic]["seq"] + 1 if topic in self._last else 1
        message = {**body, "epoch": self._epoch, "seq": seq, "time_s": time_s}
        self._last[topic] = message
        return message

    def last_for(self, *subscriptions: bytes) -> list[tuple[bytes, dict[str, Any]]]:
        """The last message of every topic that new subscriptions (prefixes) cover.

        A subscriber that was there before gets them twice, with the same seq, and ignores the second.
        """
        found = sorted(self._last.items())
        return [(topic, last) for topic, last in found if topic.startswith(subscriptions)]
