"""Health: 0 to 100, with every point taken off explained.

May live here: the indicators, the arithmetic, the words. May not: clocks, states of alerts.

100 minus linear deductions: nothing up to an indicator's good knee, its whole weight from the bad one on. The
worst indicator caps the sum, because a mean hides what hurts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from walled.core import alert_rules
from walled.core.alert_rules import Reader
from walled.core.builtin_alerts import COUNTED, FAILED
from walled.sections import HealthConfig

Grade = Literal["healthy", "degraded", "unhealthy"]
HEALTHY, DEGRADED = 80, 50
CAP_WORST, CAP_DOWN = 79, 49
WINDOW_S = 300.0


class Indicator(NamedTuple):
    symptom: str
    impact: str
    cause: str
    action: str
    must_be_known: bool


INDICATORS: dict[str, Indicator] = {
    "workers": Indicator(
        "workers are missing: a share of {value}",
        "fewer requests run at once",
        "a process died, is being started, or its backend does not answer",
        "walled-ctl workers; the log says why a worker was given up",
        True,
    ),
    "queue": Indicator(
        "the oldest request waits for {value} s",
        "replies come late, deadlines pass",
        "more is asked than the workers can do, or a worker hangs",
        "walled-ctl queue; more slots, more workers or fewer callers",
        True,
    ),
    "errors": Indicator(
        "a share of {value} of the requests failed in the last 5 minutes",
        "callers get errors or lesser answers",
        "a backend fails or is overloaded",
        "walled-ctl metrics walled_requests_total shows which outcome; then the log",
        False,
    ),
    "latency": Indicator(
        "one reply in twenty took {value} s and more",
        "people wait",
        "a slow or swapping model, long prompts, a waiting queue",
        "walled-ctl latency: is it the queue, the first token or the decoding?",
        False,
    ),
    "memory": Indicator(
        "memory of the machine is in use to {value} of 1",
        "the kernel may kill a process",
        "models too large for the machine, or a process that grows",
        "walled-ctl check memory; a smaller model, fewer slots",
        True,
    ),
    "cpu": Indicator(
        "the processors are busy to {value} of 1",
        "everything slows down",
        "inference on the processor, or other programs",
        "fewer threads or slots; look for other programs with top",
        True,
    ),
    "descriptors": Indicator(
        "a process used {value} of its file descriptors",
        "new clients are kept out",
        "very many clients, or clients that do not close",
        "raise LimitNOFILE; close connections",
        True,
    ),
    "breaker": Indicator(
        "a circuit breaker is open",
        "requests go to another backend or get lesser answers",
        "the backend failed several times in a row",
        "look at the model server; the breaker closes by itself",
        False,
    ),
    "leak": Indicator(
        "a process leaks memory",
        "it will be replaced before its budget is used up",
        "a defect in a library or in walled",
        "walled-ctl workers restart N gives the memory back; report it",
        False,
    ),
}


class Deduction(NamedTuple):
    indicator: str
    points: float
    value: float | None
    """None: not known."""
    symptom: str
    impact: str
    cause: str
    action: str


class Health(NamedTuple):
    score: int
    grade: Grade
    cap: int
    cap_reason: str
    deductions: tuple[Deduction, ...]

    def plain(self) -> dict[str, Any]:
        return {**self._asdict(), "deductions": [one._asdict() for one in self.deductions]}


def values(reader: Reader, expected_workers: int) -> dict[str, float | None]:
    """What every indicator is now; None where it is not known."""

    def last(name: str) -> list[float]:
        return [value for _, value in reader.series(name)]

    def worst(name: str) -> float | None:
        return max(last(name), default=None)

    live = last("walled_workers_live")
    errors = alert_rules.read(_ERRORS, reader)
    fds = alert_rules.read(_DESCRIPTORS, reader)
    return {
        "workers": max(0.0, 1.0 - sum(live) / max(1, expected_workers)) if live else None,
        "queue": worst("walled_queue_oldest_age_seconds"),
        "errors": errors.value if errors is not None else 0.0,
        "latency": reader.quantile("walled_request_duration_seconds", 0.95, {}, WINDOW_S) or 0.0,
        "memory": worst("walled_system_memory_used_ratio"),
        "cpu": worst("walled_system_cpu_ratio"),
        "descriptors": fds.value if fds is not None else None,
        "breaker": (worst("walled_breaker_state") or 0.0) / 2,
        "leak": worst("walled_leak_verdict") or 0.0,
    }


_ERRORS = alert_rules.Rule(
    name="health_errors",
    metric="walled_requests_total",
    aggregate="ratio",
    match=FAILED,
    of=COUNTED,
    fire=1.0,
    window_s=WINDOW_S,
)
_DESCRIPTORS = msgspec.structs.replace(
    _ERRORS,
    name="health_fds",
    metric="walled_process_open_fds",
    over="walled_process_max_fds",
    match={},
    of={},
)


def judge(
    config: HealthConfig, found: Mapping[str, float | None], down_backends: tuple[str, ...] = ()
) -> Health:
    """The score of these values. `down_backends`: those without a live worker."""
    deductions, caps = [], [(100, "")]
    for name, words in INDICATORS.items():
        weight, good, bad = getattr(config, name)
        value = found.get(name)
        if value is None:
            if not words.must_be_known or not weight:
                continue
            share = 0.0
            symptom = f"{name} is not known"
            caps.append((CAP_WORST, symptom))
        else:
            share = min(1.0, max(0.0, (value - good) / (bad - good)))
            symptom = words.symptom.replace("{value}", f"{value:.3g}")
            if share >= 1.0 and weight:
                caps.append((CAP_WORST, symptom))
        if value is None or share > 0:
            deductions.append(
                Deduction(
                    name, round(weight * share, 2), value, symptom, words.impact, words.cause, words.action
                )
            )
    if (found.get("workers") or 0.0) >= 1.0:
        caps.append((CAP_DOWN, "no worker is live"))
    elif down_backends:
        caps.append((CAP_DOWN, f"no worker is live for {', '.join(down_backends)}"))
    if (found.get("queue") or 0.0) >= config.queue[2]:
        caps.append((CAP_DOWN, "the queue stands still"))
    cap, reason = min(caps, key=lambda one: one[0])
    score = max(0, min(cap, round(100 - sum(one.points for one in deductions))))
    ordered = tuple(sorted(deductions, key=lambda one: -one.points))
    return Health(score, grade(score), cap, reason, ordered)


def grade(score: float) -> Grade:
    return "healthy" if score >= HEALTHY else "degraded" if score >= DEGRADED else "unhealthy"
