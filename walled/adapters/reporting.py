"""Counts on their way to the monitor: gathered here, sent once a second, never waited for.

May live here: adding up, sending. May not: what is counted, the registry (core/counters.py).
"""

from __future__ import annotations

from walled import protocol as wire
from walled.adapters.sockets import Hub

REPORT_S = 1.0


class Reporter:
    """The counters of one process. When the monitor does not listen they stay here and add up."""

    def __init__(self, hub: Hub, endpoint: str, source: str) -> None:
        self._port = hub.push(endpoint)
        self._port.connect()
        self._source = source
        self._counters: dict[str, int] = {}
        self._next_s = 0.0

    def count(self, name: str, increment: int = 1) -> None:
        self._counters[name] = self._counters.get(name, 0) + increment

    def due(self, now: float) -> bool:
        return now >= self._next_s

    def send(self, gauges: dict[str, float], now: float) -> None:
        """Tell the monitor what was counted since the last time it was told."""
        self._next_s = now + REPORT_S
        report = {"from": self._source, "counters": self._counters, "gauges": gauges}
        if self._port.send([wire.pack_map(report)]):
            self._counters = {}
        else:
            self.count("delta_drops_total")
