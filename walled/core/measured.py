"""What the broker notes of each ending, added up once a beat into the parts of a delta.

May live here: the note, its bound, the adding up. May not: sending, clocks. No prompt and no answer is noted.

An ending costs one tuple; everything else is done here, once for many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from walled import protocol

MAX_KEPT = 20_000
"""Endings kept between two beats; what comes past it is counted and not measured."""
MAX_OBSERVATIONS = 2000
"""Of one series in one delta, which is as many as the registry takes."""
UNKNOWN = "unknown"


class Ending(NamedTuple):
    model: str
    kind: bytes
    outcome: str
    """The source of an answer, the code of an error."""
    header: Any
    arrived_s: float
    ended_s: float


def summed(endings: Iterable[tuple[Any, ...]], models: Mapping[str, str], lost: int) -> dict[str, Any]:
    """{"series", "observations"}. `models`: asked-for name -> label, one of few whatever was asked for."""
    totals: Counter[tuple[str, tuple[str, ...]]] = Counter()
    observed: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def observe(name: str, value: float, *labels: str) -> None:
        nonlocal lost
        values = observed.setdefault((name, labels), [])
        if len(values) < MAX_OBSERVATIONS:
            values.append(max(0.0, value))
        else:
            lost += 1

    for asked, kind, outcome, header, arrived_s, ended_s in endings:
        model = models.get(asked, UNKNOWN)
        answered = kind == protocol.FINAL
        source = outcome if answered else "none"
        totals["walled_requests_total", (model, "ok" if answered else outcome, source)] += 1
        observe("walled_request_duration_seconds", ended_s - arrived_s, model, source)
        if not answered or not isinstance(header, protocol.FinalHeader):
            continue
        if header.degraded:
            totals["walled_requests_degraded_total", (model,)] += 1
        if outcome == "cache":
            continue
        phases = header.phases
        observe("walled_request_queue_seconds", phases.queue_ms / 1000, model)
        if phases.first_token_ms > 0.0:
            first_ms = phases.queue_ms + phases.first_token_ms
            observe("walled_request_first_token_seconds", first_ms / 1000, model)
        if outcome == "coalesced":
            continue  # one generation is measured once
        for phase in ("load", "prefill", "decode"):
            took_ms = getattr(phases, f"{phase}_ms")
            if took_ms > 0.0:
                observe("walled_backend_phase_seconds", took_ms / 1000, model, phase)
    if lost:
        totals["walled_measurements_dropped_total", ("broker",)] += lost
    return {
        "series": [[name, list(labels), value] for (name, labels), value in totals.items()],
        "observations": [[name, list(labels), values] for (name, labels), values in observed.items()],
    }


class Lookups(Protocol):
    """What a reader of the cache has counted."""

    hits: int
    stale_hits: int
    misses: int
    corrupt: int
    errors: int


def lookups(reader: Lookups) -> dict[str, int]:
    """As counters; a corrupt record and a failed read are misses too."""
    return {
        "cache_lookups_total.hit": reader.hits,
        "cache_lookups_total.stale": reader.stale_hits,
        "cache_lookups_total.miss": reader.misses,
        "cache_lookups_total.corrupt": reader.corrupt,
        "cache_lookups_total.error": reader.errors,
    }
