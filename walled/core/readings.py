"""What comes in, told to the registry: the counters broker and workers name themselves, samples of processes.

May live here: which name goes to which family, series for the history. May not: reading, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from walled.core.catalogue import BUCKETS_S
from walled.core.history import History
from walled.core.registry import Registry, series_key

MAX_EVENT_CHARS = 60
QUANTILES = (0.5, 0.95, 0.99)
QUANTILE_WINDOW_S = 60.0


_LABELLED = {
    "ladder_steps_total": "walled_ladder_steps_total",
    "retries_total": "walled_retries_total",
    "validation_verdicts_total": "walled_validation_verdicts_total",
}
"""Counters named KIND.VALUE by who counts them; VALUE becomes the last label of the family."""
_PLAIN = {
    "cache_evictions_total": ("walled_cache_evictions_total", ("room",)),
    "cache_expired_total": ("walled_cache_evictions_total", ("expired",)),
}
_GAUGES = {"breaker_state": "walled_breaker_state"}
"""Gauges of the broker named KIND.VALUE."""


def counters(registry: Registry, source: str, found: Mapping[str, Any]) -> None:
    """Counters of a delta that core/counters.py has taken."""
    role = source.partition(" ")[0][:20]
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            continue
        if not isinstance(name, str) or len(name) > MAX_EVENT_CHARS:
            continue
        kind, _, label = name.partition(".")
        if name == "delta_drops_total":
            registry.increase("walled_delta_drops_total", value, role)
        elif kind == "cache_lookups_total" and label:
            registry.increase("walled_cache_lookups_total", value, role, label)
        elif kind in _LABELLED and label:
            registry.increase(_LABELLED[kind], value, label)
        elif name in _PLAIN:
            family_name, labels = _PLAIN[name]
            registry.increase(family_name, value, *labels)
        else:
            registry.increase("walled_events_total", value, name)


def gauges(registry: Registry, found: Mapping[str, Any]) -> None:
    """Gauges of the broker's delta that stand for a labelled family."""
    for name, value in found.items():
        kind, _, label = str(name).partition(".")
        if kind in _GAUGES and 0 < len(label) <= MAX_EVENT_CHARS and isinstance(value, int | float):
            registry.set(_GAUGES[kind], float(value), label)


MAX_TOLD = 100
"""Entries taken from one message of a client."""


def told_by_client(registry: Registry, message: Mapping[str, Any], models: Mapping[str, str]) -> None:
    """Answers in a client's own process and metrics of its application. Anybody may send these: nothing but
    these families, labels that are known (`models`: asked-for name -> label), sums that are possible."""
    counts, app, dropped = message.get("counts", []), message.get("app", []), message.get("dropped", 0)
    if not isinstance(counts, list) or not isinstance(app, list) or not _countable(dropped):
        registry.increase("walled_metrics_refused_total", 1)
        return
    registry.increase("walled_metrics_refused_total", max(0, len(counts) - MAX_TOLD))
    for entry in counts[:MAX_TOLD]:
        match entry:
            case ["served", str(asked), "cache" | "stale" | "template" as source, str(lesser), count] if (
                _countable(count)
            ):
                model = models.get(asked, "unknown")
                registry.increase("walled_requests_total", count, model, "ok", source)
                if lesser:
                    registry.increase("walled_requests_degraded_total", count, model)
            case ["lookup", "hit" | "stale" | "miss" | "corrupt" | "error" as result, count] if _countable(
                count
            ):
                registry.increase("walled_cache_lookups_total", count, "client", result)
            case ["lost", count] if _countable(count):
                registry.increase("walled_pub_drops_total", count)
            case _:
                registry.increase("walled_metrics_refused_total", 1)
    if dropped:
        registry.increase("walled_measurements_dropped_total", dropped, "client")
    registry.apply({"app": app[:MAX_TOLD]})
    registry.increase("walled_metrics_refused_total", max(0, len(app) - MAX_TOLD))


def _countable(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1e9


STATES = ("starting", "loading", "ready", "draining", "stopping", "failed", "drained", "waiting")


def tree(registry: Registry, found: Mapping[str, Any]) -> None:
    """The supervisor's view of its children: states of workers, restarts by reason. A worker that is not in
    it any more is gone, and its series with it."""
    totals: dict[tuple[str, str], int] = {}
    slots = set()
    for row in found.get("children", ()):
        role, slot = str(row["role"]), str(row["slot"])
        for reason, count in row.get("reasons", {}).items():
            totals[role, reason] = totals.get((role, reason), 0) + count
        if role == "worker":
            slots.add(slot)
            for state in STATES:
                registry.set("walled_worker_state", float(state == row["phase"]), slot, state)
    for (role, reason), count in totals.items():
        registry.total("walled_worker_restarts_total", count, role, reason)
    known = {row.labels["worker"] for row in registry.rows("walled_worker_state")}
    registry.forget("worker", known - slots)


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


NOT_KEPT = frozenset({"walled_alerts", "walled_worker_state", "walled_build_info"})
"""One of several states: their changes are events, and there are many of them."""


def remember(registry: Registry, history: History, time_s: float) -> None:
    """Every gauge and counter as it is, every histogram's quantiles of the last minute."""
    for family in registry.families():
        if family.name in NOT_KEPT:
            continue
        for row in registry.rows(family.name):
            if family.kind != "histogram":
                history.append(series_key(family.name, row.labels), time_s, row.value)
        if family.kind == "histogram":
            for q, value in quantiles(registry, family.name).items():
                history.append(series_key(family.name, {"quantile": q}), time_s, value)


def quantiles(registry: Registry, name: str) -> dict[str, float]:
    """Of the last minute, over all series; empty when nothing was observed."""
    seen = registry.distribution(name, {}, QUANTILE_WINDOW_S)
    found = ((str(q), seen.quantile(q)) for q in QUANTILES)
    return {q: value for q, value in found if value is not None}


def family(registry: Registry, name: str) -> dict[str, Any]:
    """The message of topic metric.NAME."""
    rows = [
        {"labels": row.labels, "value": row.value}
        | ({"sum": row.sum, "buckets": list(row.buckets)} if row.buckets else {})
        for row in registry.rows(name)
    ]
    message: dict[str, Any] = {"name": name, "series": rows}
    if any("buckets" in row for row in rows):
        message["quantiles"] = quantiles(registry, name)
    return message


PHASES = {
    "request": ("walled_request_duration_seconds", {}),
    "queue": ("walled_request_queue_seconds", {}),
    "first_token": ("walled_request_first_token_seconds", {}),
    "load": ("walled_backend_phase_seconds", {"phase": "load"}),
    "prefill": ("walled_backend_phase_seconds", {"phase": "prefill"}),
    "decode": ("walled_backend_phase_seconds", {"phase": "decode"}),
    "per_output_token": ("walled_request_per_output_token_seconds", {}),
}
"""Where the time of a request goes -> the metric and labels it is measured in."""


def stats(registry: Registry, window_s: float, model: str = "") -> dict[str, Any]:
    """How requests fared in the last `window_s` seconds: endings, tokens, times by phase. `model`: only of
    this one. Quantiles and buckets come from the sketches, so they may reach 10 s further back (past six
    minutes 5 minutes)."""
    of = {"model": model} if model else {}

    def grown(name: str, match: dict[str, str]) -> dict[str, float]:
        total = sum(value for _, value in registry.series(name, match))
        return {"total": total, "per_s": registry.rate(name, match, window_s) or 0.0}

    endings = [
        {**row.labels, **grown("walled_requests_total", row.labels)}
        for row in registry.rows("walled_requests_total")
        if of.items() <= row.labels.items()
    ]
    phases = {}
    for phase, (name, labels) in PHASES.items():
        seen = registry.distribution(name, {**of, **labels}, window_s)
        phases[phase] = {
            "count": seen.count,
            **{f"p{q * 100:g}_s": seen.quantile(q) for q in QUANTILES},
            "buckets": seen.counts(BUCKETS_S),
        }
    return {
        "schema": "walled.stats/1",
        "ok": True,
        "window_s": window_s,
        "requests": grown("walled_requests_total", of),
        "degraded": grown("walled_requests_degraded_total", of),
        "endings": endings,
        "tokens": {kind: grown("walled_tokens_total", {**of, "type": kind}) for kind in ("prompt", "output")},
        "phases": phases,
        "bounds_s": list(BUCKETS_S),
    }


def dashboard(registry: Registry) -> dict[str, Any]:
    """One map with what a person looks at first."""
    duration = "walled_request_duration_seconds"
    return {
        "schema": "walled.dashboard/1",
        "ok": True,
        "requests_per_s": registry.rate("walled_requests_total", {}, 60.0) or 0.0,
        "latency_s": {f"p{q * 100:g}": registry.quantile(duration, q, {}, 60.0) for q in QUANTILES},
        "tokens_per_s": registry.rate("walled_tokens_total", {"type": "output"}, 60.0) or 0.0,
        "stats": stats(registry, QUANTILE_WINDOW_S),
        "metrics": {
            f.name: family(registry, f.name)["series"] for f in registry.families() if f.kind == "gauge"
        },
        "totals": {
            f.name: family(registry, f.name)["series"] for f in registry.families() if f.kind == "counter"
        },
    }
