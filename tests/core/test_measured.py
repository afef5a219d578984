"""Endings become series and observations that the registry takes, whoever asked for whatever."""

from __future__ import annotations

from typing import Any

import pytest

from walled import protocol
from walled.core.measured import MAX_OBSERVATIONS, summed
from walled.core.registry import Registry
from walled.protocol import FinalHeader, Phases


def final(source: str = "backend", **phases: float) -> FinalHeader:
    return FinalHeader(source=source, phases=Phases(**phases))


def told(*endings: tuple[Any, ...], lost: int = 0) -> Registry:
    registry = Registry()
    registry.apply(summed(endings, {"m": "m"}, lost))
    assert registry.value("walled_metrics_refused_total", {}) is None
    return registry


def test_an_answer_and_an_error() -> None:
    registry = told(
        (
            "m",
            protocol.FINAL,
            "backend",
            final(queue_ms=500.0, first_token_ms=100.0, decode_ms=400.0),
            1.0,
            3.0,
        ),
        ("m", protocol.FINAL, "cache", final("cache"), 1.0, 1.001),
        ("strange", protocol.ERROR, "no_such_model", None, 1.0, 1.0),
        lost=3,
    )
    wanted = {"model": "m", "outcome": "ok", "source": "backend"}
    assert registry.value("walled_requests_total", wanted) == 1
    wanted = {"model": "unknown", "outcome": "no_such_model", "source": "none"}
    assert registry.value("walled_requests_total", wanted) == 1
    near = {"walled_request_queue_seconds": 0.5, "walled_request_first_token_seconds": 0.6}
    near |= {"walled_backend_phase_seconds": 0.4}
    for name, value in near.items():
        assert registry.quantile(name, 0.5, {"model": "m"}, 60) == pytest.approx(value, rel=0.011)
    match = {"source": "backend"}
    assert registry.quantile("walled_request_duration_seconds", 1, match, 60) == pytest.approx(2, rel=0.011)
    assert registry.value("walled_measurements_dropped_total", {"source": "broker"}) == 3


def test_a_flood_is_bounded_and_still_counted() -> None:
    many = [("m", protocol.FINAL, "cache", final("cache"), 0.0, 0.001)] * (MAX_OBSERVATIONS + 5)
    registry = told(*many)
    wanted = {"model": "m", "outcome": "ok", "source": "cache"}
    assert registry.value("walled_requests_total", wanted) == MAX_OBSERVATIONS + 5
    assert registry.value("walled_measurements_dropped_total", {"source": "broker"}) == 5
