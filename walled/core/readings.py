"""What comes in, told to the registry: the counters broker and workers name themselves, samples of processes.

May live here: which name goes to which family, series for the history. May not: reading, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from walled.core.history import History
from walled.core.registry import Registry, series_key

MAX_EVENT_CHARS = 60
QUANTILES = (0.5, 0.95, 0.99)
QUANTILE_WINDOW_S = 60.0


def counters(registry: Registry, source: str, found: Mapping[str, Any]) -> None:
    """Counters of a delta that core/counters.py has taken."""
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            continue
        if name == "delta_drops_total":
            registry.increase("walled_delta_drops_total", value, source.partition(" ")[0][:20])
        elif isinstance(name, str) and len(name) <= MAX_EVENT_CHARS:
            registry.increase("walled_events_total", value, name)


def gauges(registry: Registry, found: Mapping[str, Any]) -> None:
    """Gauges of the broker's delta."""
    for name, value in found.items():
        if name == "queue_bytes" and isinstance(value, int | float):
            registry.set("walled_queue_bytes", float(value))
        elif name == "queue_depth" and isinstance(value, int | float):
            registry.set("walled_queue_depth", float(value), "all")


def post(name: str) -> tuple[str, str]:
    """(role, worker) of a process by its title: "worker 2" is ("worker", "2")."""
    role, _, slot = name.partition(" ")
    if role == "worker" and slot.isdigit():
        return role, slot
    return (role, "") if role in ("broker", "monitor", "supervisor") else ("other", "")


def process(
    registry: Registry, name: str, *, uss_bytes: int, rss_bytes: int, cpu_s: float, threads: int
) -> None:
    labels = post(name)
    registry.set("walled_process_uss_bytes", uss_bytes, *labels)
    registry.set("walled_process_rss_bytes", rss_bytes, *labels)
    registry.set("walled_process_threads", threads, *labels)
    registry.total("walled_process_cpu_seconds_total", cpu_s, *labels)


def remember(registry: Registry, history: History, time_s: float) -> None:
    """Every gauge and counter as it is, every histogram's quantiles of the last minute."""
    for family in registry.families():
        for row in registry.rows(family.name):
            if family.kind != "histogram":
                history.append(series_key(family.name, row.labels), time_s, row.value)
        if family.kind == "histogram":
            for q in QUANTILES:
                value = registry.quantile(family.name, q, {}, QUANTILE_WINDOW_S)
                if value is not None:
                    history.append(series_key(family.name, {"quantile": str(q)}), time_s, value)


def family(registry: Registry, name: str) -> dict[str, Any]:
    """The message of topic metric.NAME."""
    rows = [
        {"labels": row.labels, "value": row.value}
        | ({"sum": row.sum, "buckets": list(row.buckets)} if row.buckets else {})
        for row in registry.rows(name)
    ]
    return {"name": name, "series": rows}


def dashboard(registry: Registry) -> dict[str, Any]:
    """One map with what a person looks at first."""
    duration = "walled_request_duration_seconds"
    return {
        "schema": "walled.dashboard/1",
        "ok": True,
        "requests_per_s": registry.rate("walled_requests_total", {}, 60.0) or 0.0,
        "latency_s": {f"p{q * 100:g}": registry.quantile(duration, q, {}, 60.0) for q in QUANTILES},
        "tokens_per_s": registry.rate("walled_tokens_total", {"type": "output"}, 60.0) or 0.0,
        "metrics": {
            f.name: family(registry, f.name)["series"] for f in registry.families() if f.kind == "gauge"
        },
        "totals": {
            f.name: family(registry, f.name)["series"] for f in registry.families() if f.kind == "counter"
        },
    }
