"""Sketch, history and registry: errors within what is stated, bounds that hold, time an argument."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walled.core import history as history_module
from walled.core.catalogue import BUCKETS_S, FAMILIES
from walled.core.history import MAX_SERIES, RINGS, History
from walled.core.registry import GAUGE_LIFE_S, MAX_APP_FAMILIES, Registry, series_key
from walled.core.sketch import Sketch

VALUES = st.lists(st.floats(min_value=1e-5, max_value=1e6), min_size=1, max_size=300)


def exact(values: list[float], q: float) -> float:
    return sorted(values)[max(1, math.ceil(q * len(values))) - 1]


@given(VALUES, st.floats(min_value=0.0, max_value=1.0))
def test_any_quantile_is_within_one_percent(values: list[float], q: float) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    assert sketch.quantile(q) == pytest.approx(exact(values, q), rel=0.0101)


@given(VALUES, VALUES)
def test_merged_sketches_are_the_sketch_of_all(left: list[float], right: list[float]) -> None:
    one, two, both = Sketch(), Sketch(), Sketch()
    for sketch, values in ((one, left), (two, right), (both, left + right)):
        for value in values:
            sketch.add(value)
    one.merge(two)
    assert (one.bins, one.count) == (both.bins, both.count)


def test_an_absurd_value_does_not_make_it_large() -> None:
    sketch = Sketch()
    for exponent in range(-300, 300):
        sketch.add(10.0**exponent)
    assert len(sketch.bins) < 1500
    assert Sketch().quantile(0.5) is None


@settings(max_examples=30)
@given(st.integers(min_value=0, max_value=2**32), st.sampled_from([0.2, 1.0, 2.0]))
def test_p95_of_the_registry_is_that_of_the_requests(seed: int, spread: float) -> None:
    dice, registry = random.Random(seed), Registry()
    values = [dice.lognormvariate(-1.0, spread) for _ in range(800)]
    for place, value in enumerate(values):
        registry.advance(place / 10)
        model = ("a", "b")[place % 2]
        registry.observe("walled_request_duration_seconds", value, model, "backend")
    found = registry.quantile("walled_request_duration_seconds", 0.95, {"source": "backend"}, 300)
    assert found == pytest.approx(exact(values, 0.95), rel=0.02)


def test_quantiles_forget_what_is_older_than_their_window() -> None:
    registry = Registry()
    registry.observe("walled_request_queue_seconds", 9.0, "m")
    registry.advance(200)
    registry.observe("walled_request_queue_seconds", 0.1, "m")
    assert registry.quantile("walled_request_queue_seconds", 1, {}, 60) == pytest.approx(0.1, rel=0.01)
    assert registry.quantile("walled_request_queue_seconds", 1, {}, 300) == pytest.approx(9, rel=0.01)
    registry.advance(4000)
    assert registry.quantile("walled_request_queue_seconds", 1, {}, 60) is None
    assert registry.quantile("walled_request_queue_seconds", 1, {}, 7200) == pytest.approx(9, rel=0.01)


@pytest.mark.parametrize("window_s", [10, 60, 300, 3600])
def test_rates(window_s: float) -> None:
    registry = Registry()
    for second in range(7200):
        registry.advance(float(second))
        registry.increase("walled_cache_evictions_total", 2, "room")
    assert registry.rate("walled_cache_evictions_total", {}, window_s) == pytest.approx(2, rel=0.2)
    assert registry.rate("walled_retries_total", {}, window_s) is None


def test_gauges_of_those_who_are_gone_go_and_so_do_workers() -> None:
    registry = Registry()
    registry.set("walled_worker_heartbeat_age_seconds", 1.0, "0")
    registry.set("walled_worker_heartbeat_age_seconds", 1.0, "1")
    registry.forget("worker", ["1"])
    assert registry.value("walled_worker_heartbeat_age_seconds", {"worker": "1"}) is None
    assert registry.value("walled_worker_heartbeat_age_seconds", {"worker": "0"}) == 1.0
    registry.advance(GAUGE_LIFE_S + 1)
    assert not registry.series("walled_worker_heartbeat_age_seconds", {})


def test_series_past_the_cap_are_dropped_and_counted() -> None:
    registry = Registry()
    for number in range(80):
        registry.apply({"series": [["walled_requests_degraded_total", [f"m{number}"], 1]]})
    assert len(registry.rows("walled_requests_degraded_total")) == 64
    labels = {"family": "walled_requests_degraded_total"}
    assert registry.value("walled_metrics_overflow_total", labels) == 16


JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(JUNK, JUNK, JUNK)
def test_no_delta_can_harm(series: object, observations: object, app: object) -> None:
    registry = Registry()
    registry.apply({"series": series, "observations": observations, "app": app})
    registry.apply({"series": [["walled_queue_bytes", [], series], ["walled_queue_bytes", observations, 1]]})
    registry.apply({"observations": [["walled_request_queue_seconds", ["m"], app]]})
    registry.apply({"app": [["n", app, 1, "gauge"]]})
    for family in registry.families():
        assert all(math.isfinite(row.value) for row in registry.rows(family.name))


@pytest.mark.parametrize(
    "entry",
    [
        ["Bad-Name", {}, 1, "gauge"], ["n", {}, math.nan, "gauge"], ["n", {}, -1, "counter"],
        ["n", {}, 1, "histogram"], ["n", {"a": "x" * 81}, 1, "gauge"], ["n", {"A": "x"}, 1, "gauge"],
        ["n", dict.fromkeys("abcde", "x"), 1, "gauge"], ["n", {"a": 1}, 1, "gauge"], ["n\n", {}, 1, "gauge"],
    ],
)  # fmt: skip
def test_application_metrics_out_of_bounds_are_refused(entry: list[object]) -> None:
    registry = Registry()
    registry.apply({"app": [entry]})
    assert registry.value("walled_metrics_refused_total", {}) == 1
    assert len(list(registry.families())) == len(FAMILIES)


def test_application_metrics_are_taken_up_to_a_cap() -> None:
    registry = Registry()
    for number in range(MAX_APP_FAMILIES + 5):
        registry.apply({"app": [[f"n{number}", {"shop": "a"}, 2.5, "gauge"]]})
    assert registry.value("walled_app_n0", {"shop": "a"}) == 2.5
    assert registry.value("walled_metrics_refused_total", {}) == 5
    registry.apply({"app": [["n0", {"other": "a"}, 1, "gauge"], ["n0", {"shop": "a"}, 1, "counter"]]})
    assert registry.value("walled_metrics_refused_total", {}) == 7


def test_the_catalogue_is_sound() -> None:
    units = ("_seconds", "_bytes", "_ratio", "_total", "_info")
    plain = {"walled_requests_in_flight", "walled_queue_depth", "walled_worker_state", "walled_cache_readers"}
    plain |= {"walled_breaker_state", "walled_alerts", "walled_health_score", "walled_health_deduction"}
    plain |= {"walled_process_threads", "walled_process_open_fds", "walled_process_max_fds"}
    plain |= {"walled_workers_live", "walled_leak_verdict", "walled_cache_entries"}
    plain |= {"walled_backend_limit", "walled_queue_standing"}
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.name.startswith("walled_")
        assert family.name.endswith(units) or family.name in plain, family.name
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        assert "pid" not in family.labels
    assert {3, 5} < set(BUCKETS_S)
    assert BUCKETS_S[-1] == 640


def test_a_total_kept_elsewhere_may_begin_again() -> None:
    registry = Registry()
    for value in (10.0, 15.0, 3.0, 4.0):
        registry.total("walled_process_cpu_seconds_total", value, "broker", "")
    assert registry.value("walled_process_cpu_seconds_total", {"role": "broker", "worker": ""}) == 19.0
    rate = registry.rate("walled_process_cpu_seconds_total", {}, 10.0)
    assert rate == 9.0, "the first sight of it is no growth"


# --- history ----------------------------------------------------------------------------------------


def test_the_finest_ring_that_reaches_back_is_read() -> None:
    history = History()
    for second in range(30_000):
        history.append("s", float(second), float(second))
    assert history.window("s", 29_990.0) == [(float(s), float(s)) for s in range(29_990, 30_000)]
    tens = history.window("s", 29_000.0)
    assert tens[0] == (29_000.0, 29_004.5)
    assert [t for t, _ in tens] == [float(t) for t in range(29_000, 30_000, 10)]
    assert history.window("s", 0.0)[0] == (0.0, 149.5)
    assert history.window("unknown", 0.0) == []


def test_a_hole_stays_a_hole_and_a_clock_that_goes_back_changes_nothing() -> None:
    history = History()
    for t_s in (100.0, 101.0, 105.0, 50.0):
        history.append("s", t_s, t_s)
    history.append("s", 106.0, math.nan)
    assert history.window("s", 0.0 if RINGS[0][1] > 106 else 100.0) == [(t, t) for t in (100.0, 101.0, 105.0)]
    history.append("s", 10_000.0, 1.0)
    assert history.window("s", 9_900.0) == [(10_000.0, 1.0)]


def test_it_stays_as_large_as_it_was_and_survives_packing() -> None:
    history = History()
    history.append("s", 1e9, 1.0)
    size = sum(len(ring[2]) for ring in history.plain()["s"])
    for step in range(10_000):
        history.append("s", 1e9 + step * 60, float(step))
    assert sum(len(ring[2]) for ring in history.plain()["s"]) == size
    again = History()
    again.take(history.plain())
    assert again.window("s", 1e9) == history.window("s", 1e9)
    for number in range(MAX_SERIES + 3):
        history.append(f"n{number}", 1e9 + 600_000, 1.0)
    assert (len(history.names()), history.refused) == (MAX_SERIES, 4)
    history.append("late", 1e9 + 601_000, 1.0)
    assert len(history.names()) == MAX_SERIES, "the one that was measured longest ago gave way"
    assert "late" in history.names()


@pytest.mark.parametrize("bad", [{"s": 3}, {"s": [[1, 1, b""]] * 3}, {"s": []}, {"s": [["a", 1, b""]] * 3}])
def test_a_broken_state_is_refused_whole(bad: dict[str, object]) -> None:
    history = History()
    history.append("kept", 1.0, 1.0)
    with pytest.raises(ValueError, match="history"):
        history.take(bad)
    assert history.names() == ["kept"]


def test_series_key() -> None:
    assert series_key("walled_x", {}) == "walled_x"
    assert series_key("walled_x", {"b": "2", "a": "1"}) == 'walled_x{a="1",b="2"}'
    assert history_module.MAX_SERIES >= 256
