"""Counts and measurements on their way to the monitor: gathered here, sent once a second, never waited for.

May live here: adding up, bounds, sending. May not: what is counted, the registry (core/registry.py).
"""

from __future__ import annotations

from walled import protocol as wire
from walled.adapters.sockets import Hub

REPORT_S = 1.0
MAX_OBSERVATIONS = 2000
"""Kept of one series while the monitor does not listen; what comes past it is counted and not measured."""

Key = tuple[str, tuple[str, ...]]
"""(family of core/catalogue.py, values of its labels)."""


class Reporter:
    """What one process counts. When the monitor does not listen it stays here and adds up."""

    def __init__(self, hub: Hub, endpoint: str, source: str) -> None:
        self._port = hub.push(endpoint)
        self._port.connect()
        self._source = source
        self._counters: dict[str, int] = {}
        self._sums: dict[Key, float] = {}
        self._observed: dict[Key, list[float]] = {}
        self._lost = 0
        self._next_s = 0.0

    def count(self, name: str, increment: int = 1) -> None:
        """Under a name of the sender's own."""
        self._counters[name] = self._counters.get(name, 0) + increment

    def add(self, name: str, value: float, *labels: str) -> None:
        """To a counter of the catalogue."""
        key = (name, labels)
        self._sums[key] = self._sums.get(key, 0) + value

    def observe(self, name: str, value: float, *labels: str) -> None:
        """For a histogram of the catalogue."""
        values = self._observed.setdefault((name, labels), [])
        if len(values) < MAX_OBSERVATIONS:
            values.append(value)
        else:
            self._lost += 1

    def due(self, now: float) -> bool:
        return now >= self._next_s

    def send(self, gauges: dict[str, float], now: float, series: dict[str, float] | None = None) -> None:
        """Tell the monitor what was counted since the last time it was told. `series`: gauges of the
        catalogue that have no labels."""
        self._next_s = now + REPORT_S
        if self._lost:
            key = ("walled_measurements_dropped_total", ("worker",))
            self._sums[key] = self._sums.get(key, 0) + self._lost
            self._lost = 0
        report = {
            "from": self._source,
            "counters": self._counters,
            "gauges": gauges,
            "series": [
                *([name, list(labels), value] for (name, labels), value in self._sums.items()),
                *([name, [], value] for name, value in (series or {}).items()),
            ],
            "observations": [
                [name, list(labels), values] for (name, labels), values in self._observed.items()
            ],
        }
        if self._port.send([wire.pack_map(report)]):
            self._counters, self._sums, self._observed = {}, {}, {}
        else:
            self.count("delta_drops_total")
