"""The daemon as the stream of publications shows it: numbers now, rates, and their last two minutes.

May live here: what messages mean, arithmetic over them. May not: sockets, clocks (times are arguments),
printing.

Counters are published when they have changed; rates come from what they were at each `tick`, which belongs
to the topic `health`: it comes once a second, changed or not. After a new epoch counters begin at 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from walled.core.builtin_alerts import NOT_OURS

POINTS = 120
RATE_S = 5.0
"""Rates are over this time: publications do not come evenly."""
PHASES = {
    "request": "walled_request_duration_seconds",
    "queue": "walled_request_queue_seconds",
    "first token": "walled_request_first_token_seconds",
    "per token": "walled_request_per_output_token_seconds",
}
QUANTILES = ("0.5", "0.95", "0.99")
HISTORIES = {
    "requests": "walled_requests_total",
    "tokens": "walled_tokens_total",
    "depth": "walled_queue_depth",
    "in flight": "walled_requests_in_flight",
    **PHASES,
}
"""Lines that begin with what the monitor remembers, and the metric that is asked for."""
COUNTED = ("requests", "tokens")
_NOT_FAILED = {"ok", *NOT_OURS.split("|")}
_OURS_NOT = set(NOT_OURS.split("|"))

Row = dict[str, Any]


class Totals(NamedTuple):
    """Counters at one moment."""

    time_s: float
    requests: float
    counted: float
    """Without those that ended by their caller's doing."""
    failed: float
    answered: float
    hits: float
    """Answers that cost no generation: from the cache, or together with another caller's."""
    tokens: float


class Picture:
    """Feed it `seed`, `take` and `tick`; read the rest."""

    def __init__(self) -> None:
        self.families: dict[str, list[Row]] = {}
        self.quantiles: dict[str, dict[str, float]] = {}
        """By phase, of the last minute."""
        self.health: dict[str, Any] = {}
        self.alerts: list[Row] = []
        self.daemon: dict[str, Any] | None = None
        """What `status` gave; None: no broker answers."""
        self.processes: list[Row] = []
        self.gauges: dict[str, dict[str, float]] = {}
        """By sender: `worker 0` -> in_flight, slots."""
        self.time_s = 0.0
        """When the last tick was, by the monitor's clock."""
        self._ticks: deque[Totals] = deque(maxlen=int(RATE_S) + 1)
        self.series: dict[str, deque[float | None]] = {}

    # --- feeding -----------------------------------------------------------------------------------

    def seed(self, dashboard: Mapping[str, Any], time_s: float) -> None:
        """Begin with the reply of `dashboard`, with or without the client's `daemon`."""
        for part in ("metrics", "totals"):
            self.families.update(dashboard.get(part) or {})
        for phase, found in (dashboard.get("stats") or {}).get("phases", {}).items():
            name = {"first_token": "first token", "per_output_token": "per token"}.get(phase, phase)
            if name in PHASES and found.get("count"):
                self.quantiles[name] = {q: found[f"p{float(q) * 100:g}_s"] for q in QUANTILES}
        self.health = dict(dashboard.get("health") or {})
        self.alerts = list(dashboard.get("alerts") or ())
        if "daemon" in dashboard:
            self.daemon = dashboard["daemon"]
        self.time_s = time_s

    def seed_history(self, name: str, values: Iterable[float | None]) -> None:
        """What a series of `series` was before."""
        self._line(name).extendleft(reversed(list(values)))

    def remember(self, histories: Mapping[str, Mapping[str, list[list[float]]]], now_s: float) -> None:
        """What the monitor's memory says of the time before: for each name of HISTORIES the `series` of its
        reply, in steps of a second."""
        for name, series in histories.items():
            steps: dict[int, float] = {}
            growing = name in COUNTED
            for key, points in series.items():
                if not _wanted(name, key):
                    continue
                shown = [
                    (at_s, max(0.0, value - before) / (at_s - before_s))
                    for (before_s, before), (at_s, value) in pairwise(points)
                ]
                for at_s, value in shown if growing else points:
                    steps[int(at_s)] = steps.get(int(at_s), 0.0) + value
            last = max(steps, default=0)
            if steps and last > now_s - POINTS:
                # A look that comes late leaves a second out: what was before it still is.
                seconds = range(last - POINTS + 1, last + 1)
                self.seed_history(name, (steps.get(s, steps.get(s - 1, steps.get(s - 2))) for s in seconds))

    def take(self, topic: str, body: Mapping[str, Any]) -> bool:
        """Take a message; True when it is time for a `tick` with its time_s."""
        if topic == "health":
            self.health = dict(body)
            return True
        if topic == "metric.processes":
            self.processes = list(body.get("processes") or ())
        elif topic == "metric.counters":
            self.gauges = dict(body.get("gauges") or {})
        elif topic.startswith("metric."):
            name = topic[7:]
            self.families[name] = list(body.get("series") or ())
            for phase, family in PHASES.items():
                if family == name:
                    self.quantiles[phase] = dict(body.get("quantiles") or {})
        return False

    def tick(self, time_s: float) -> None:
        """A second has passed, by the monitor's clock."""
        now = self._totals(time_s)
        last = self._ticks[-1] if self._ticks else None
        if last is not None and any(new < old for new, old in zip(now, last, strict=True)):
            self._ticks.clear()  # another life of the monitor, or its clock was set
        self._ticks.append(now)
        self.time_s = time_s
        for name, value in (
            ("requests", self.requests_per_s),
            ("tokens", self.tokens_per_s),
            ("errors", self.error_ratio),
            ("hits", self.hit_ratio),
            ("depth", self.depth),
            ("in flight", self.value("walled_requests_in_flight")),
            *((phase, (self.quantiles.get(phase) or {}).get("0.95")) for phase in PHASES),
        ):
            self._line(name).append(value)

    def _line(self, name: str) -> deque[float | None]:
        return self.series.setdefault(name, deque(maxlen=POINTS))

    def _totals(self, time_s: float) -> Totals:
        requests = counted = failed = answered = hits = 0.0
        for row in self.families.get("walled_requests_total", ()):
            labels, value = row["labels"], row["value"]
            outcome, source = labels.get("outcome", ""), labels.get("source", "")
            requests += value
            counted += value * (outcome not in _OURS_NOT)
            failed += value * (outcome not in _NOT_FAILED)
            answered += value * (outcome == "ok")
            hits += value * (source in ("cache", "coalesced", "stale"))
        tokens = self.value("walled_tokens_total", type="output") or 0.0
        return Totals(time_s, requests, counted, failed, answered, hits, tokens)

    # --- reading -----------------------------------------------------------------------------------

    def value(self, family: str, **match: str) -> float | None:
        """The sum of the series with these labels; None without any."""
        found = [
            row["value"]
            for row in self.families.get(family, ())
            if match.items() <= row.get("labels", {}).items()
        ]
        return sum(found) if found else None

    def by(self, family: str, label: str) -> dict[str, float]:
        """Values by one label, added up over the others."""
        found: dict[str, float] = {}
        for row in self.families.get(family, ()):
            name = row.get("labels", {}).get(label, "")
            found[name] = found.get(name, 0.0) + row["value"]
        return found

    def _grown(self, of: str) -> float | None:
        """By how much since the oldest tick; None before the second one."""
        if len(self._ticks) < 2:
            return None
        grown: float = getattr(self._ticks[-1], of) - getattr(self._ticks[0], of)
        return max(0.0, grown)

    def _per_s(self, of: str) -> float | None:
        grown = self._grown(of)
        return None if grown is None else grown / (self._ticks[-1].time_s - self._ticks[0].time_s)

    @property
    def requests_per_s(self) -> float | None:
        return self._per_s("requests")

    @property
    def tokens_per_s(self) -> float | None:
        return self._per_s("tokens")

    @property
    def error_ratio(self) -> float | None:
        """Failed of all that ended in the last seconds, without what was the caller's doing."""
        counted, failed = self._grown("counted"), self._grown("failed")
        return failed / counted if counted and failed is not None else None

    @property
    def hit_ratio(self) -> float | None:
        """Answers without a generation of all answers of the last seconds."""
        answered, hits = self._grown("answered"), self._grown("hits")
        return hits / answered if answered and hits is not None else None

    @property
    def depth(self) -> float | None:
        return self.value("walled_queue_depth")

    @property
    def oldest_s(self) -> float | None:
        return max(self.by("walled_queue_oldest_age_seconds", "class").values(), default=None)

    @property
    def slots(self) -> int:
        """Of all workers, as they told."""
        return int(sum(g.get("slots", 0) for name, g in self.gauges.items() if name.startswith("worker ")))

    def firing(self) -> list[Row]:
        """Alerts that are not well, worst first."""
        order = ("firing", "clearing", "pending")
        found = [row for row in self.alerts if row.get("state") in order]
        severe = ("critical", "warning", "info")
        return sorted(
            found,
            key=lambda row: (order.index(row["state"]), _place(severe, row.get("severity")), row["rule"]),
        )


def _wanted(name: str, series: str) -> bool:
    """Whether a series of the history is part of a line."""
    if name in PHASES:
        return 'quantile="0.95"' in series
    if name == "tokens":
        return 'type="output"' in series
    return True


def _place(order: tuple[str, ...], value: Any) -> int:
    return order.index(value) if value in order else len(order)
