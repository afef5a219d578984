"""What the monitor reads from its registry for people: statistics of a window, messages with quantiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core import readings
from walled.core.catalogue import BUCKETS_S
from walled.core.registry import Registry
from walled.core.sketch import Sketch


@given(st.lists(st.floats(min_value=1e-5, max_value=1e4), max_size=200))
def test_counts_by_bound_are_right_but_for_values_within_one_percent_of_a_bound(values: list[float]) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    counts = sketch.counts(BUCKETS_S)
    assert sum(counts) == len(values)
    for place, bound in enumerate(BUCKETS_S):
        below = sum(counts[: place + 1])
        assert sum(v <= bound * 0.99 for v in values) <= below <= sum(v <= bound * 1.01 for v in values)


def fed() -> Registry:
    registry = Registry(0.0)
    for second in range(100):
        registry.advance(float(second))
        registry.increase("walled_requests_total", 1, "m", "ok", "model")
        registry.increase("walled_requests_total", 1, "other", "overloaded", "none")
        registry.observe("walled_request_duration_seconds", 0.5, "m", "model")
        registry.observe("walled_backend_phase_seconds", 0.2, "m", "decode")
        registry.observe("walled_backend_phase_seconds", 7.0, "m", "load")
    return registry


def test_statistics_are_of_the_window_and_of_the_model() -> None:
    found = readings.stats(fed(), 10.0)
    assert found["requests"] == {"total": 200.0, "per_s": 2.0}
    assert [(e["outcome"], e["per_s"]) for e in found["endings"]] == [("ok", 1.0), ("overloaded", 1.0)]
    request = found["phases"]["request"]
    assert request["p50_s"] == pytest.approx(0.5, rel=0.01)
    assert 10 <= request["count"] == sum(request["buckets"]) <= 20
    assert found["phases"]["decode"]["p99_s"] == pytest.approx(0.2, rel=0.01)
    assert found["phases"]["load"]["p99_s"] == pytest.approx(7.0, rel=0.01)
    assert found["phases"]["queue"]["p50_s"] is None
    one = readings.stats(fed(), 10.0, "other")
    assert [e["model"] for e in one["endings"]] == ["other"]
    assert one["phases"]["request"]["count"] == 0


def test_a_histogram_is_published_with_its_quantiles_and_a_gauge_without() -> None:
    registry = fed()
    message = readings.family(registry, "walled_request_duration_seconds")
    assert message["quantiles"]["0.95"] == pytest.approx(0.5, rel=0.01)
    assert "quantiles" not in readings.family(registry, "walled_requests_total")
    assert readings.dashboard(registry)["stats"]["requests"]["total"] == 200.0
