"""What comes in, told to the registry: names to families, the supervisor's tree, the broker as it stands.

May live here: core/readings.py and core/standing.py. May not: processes, sockets.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.broker_world import World
from walled.core import readings, standing
from walled.core.registry import Registry


def values(registry: Registry, name: str) -> dict[tuple[str, ...], float]:
    return {tuple(row.labels.values()): row.value for row in registry.rows(name)}


def test_counters_of_the_ladder_validation_and_cache_get_families_of_their_own() -> None:
    registry = Registry()
    found = {
        "ladder_steps_total.stale": 2,
        "retries_total.ollama": 1,
        "validation_verdicts_total.block": 3,
        "cache_lookups_total.hit": 5,
        "cache_evictions_total": 7,
        "cache_expired_total": 1,
        "delta_drops_total": 4,
        "something_new": 9,
        "refused": -1,
        "absurd": 1e300,
        "x" * 100: 1,
    }
    readings.counters(registry, "worker 3", found)
    assert values(registry, "walled_ladder_steps_total") == {("stale",): 2}
    assert values(registry, "walled_retries_total") == {("ollama",): 1}
    assert values(registry, "walled_validation_verdicts_total") == {("block",): 3}
    assert values(registry, "walled_cache_lookups_total") == {("worker", "hit"): 5}
    assert values(registry, "walled_cache_evictions_total") == {("room",): 7, ("expired",): 1}
    assert values(registry, "walled_delta_drops_total") == {("worker",): 4}
    assert values(registry, "walled_events_total") == {("something_new",): 9}


def test_breakers_are_gauges_of_the_broker() -> None:
    registry = Registry()
    readings.gauges(registry, {"breaker_state.ollama": 2, "queue_depth": 3})
    assert values(registry, "walled_breaker_state") == {("ollama",): 2}


def children(*rows: tuple[int, str, int]) -> dict[str, Any]:
    return {
        "children": [
            {"role": "worker", "slot": slot, "phase": phase, "reasons": {"died": died, "asked": 0}}
            for slot, phase, died in rows
        ]
    }


def test_the_tree_tells_states_and_restarts_and_who_is_gone() -> None:
    registry = Registry(0.0)
    readings.tree(registry, children((0, "ready", 4), (1, "loading", 0)))
    assert values(registry, "walled_worker_state")["0", "ready"] == 1
    assert values(registry, "walled_worker_state")["1", "loading"] == 1
    assert sum(values(registry, "walled_worker_state").values()) == 2
    match = {"role": "worker"}
    assert registry.rate("walled_worker_restarts_total", match, 10.0) == 0, (
        "restarts of a former monitor's time"
    )
    registry.advance(1.0)
    registry.set("walled_worker_heartbeat_age_seconds", 0.1, "1")
    readings.tree(registry, children((0, "ready", 6)))
    assert values(registry, "walled_worker_restarts_total")["worker", "died"] == 6
    assert registry.rate("walled_worker_restarts_total", match, 10.0) == 2.0
    assert {labels[0] for labels in values(registry, "walled_worker_state")} == {"0"}
    assert values(registry, "walled_worker_heartbeat_age_seconds") == {}


def test_the_broker_as_it_stands() -> None:
    world = World()
    world.ready(slots=1)
    for number, priority in enumerate(["normal", "interactive", "batch", "batch"]):
        world.ask(payload=b"%d" % number, priority=priority)
    world.now += 3.0
    registry = Registry()
    registry.apply({"series": standing.series(world.broker, ["script", "other"], world.now)})
    assert registry.value("walled_requests_in_flight", {}) == 1
    assert registry.value("walled_queue_bytes", {}) == 3
    assert values(registry, "walled_queue_depth") == {("interactive",): 1, ("normal",): 0, ("batch",): 2}
    ages = {("interactive",): 3.0, ("normal",): 0.0, ("batch",): 3.0}
    assert values(registry, "walled_queue_oldest_age_seconds") == ages
    assert values(registry, "walled_workers_live") == {("script",): 1, ("other",): 0}
    assert values(registry, "walled_worker_heartbeat_age_seconds") == {("0",): 3.0}
    assert registry.value("walled_metrics_refused_total", {}) is None


def test_what_a_client_tells_is_bounded_whatever_it_says() -> None:
    registry = Registry()
    told = {
        "counts": [
            ["served", "alias", "cache", "", 5],
            ["served", "alias", "stale", "degraded", 2],
            ["served", "made up", "cache", "", 1],
            ["lookup", "hit", 7],
            ["lost", 12],
            ["lookup", "nonsense", 1],
            ["served", "alias", "model", "", 1],
            ["served", "alias", "cache", "", -3],
            ["served", "alias", "cache", "", True],
            "junk",
            *[["lookup", "miss", 1]] * 200,
        ],
        "dropped": 4,
        "app": [["carts", {"shop": "a"}, 3, "gauge"], ["Bad", {}, 1, "gauge"]],
        "series": [["walled_queue_bytes", [], 7]],
    }
    readings.told_by_client(registry, told, {"alias": "m"})
    assert values(registry, "walled_requests_total") == {
        ("m", "ok", "cache"): 5,
        ("m", "ok", "stale"): 2,
        ("unknown", "ok", "cache"): 1,
    }
    assert values(registry, "walled_requests_degraded_total") == {("m",): 2}
    assert values(registry, "walled_cache_lookups_total") == {("client", "hit"): 7, ("client", "miss"): 90}
    assert values(registry, "walled_measurements_dropped_total") == {("client",): 4}
    assert registry.value("walled_pub_drops_total", {}) == 12
    assert values(registry, "walled_app_carts") == {("a",): 3}
    assert values(registry, "walled_queue_bytes") == {}
    assert registry.value("walled_metrics_refused_total", {}) == 5 + 110 + 1


@pytest.mark.parametrize("junk", [{"counts": 3}, {"app": {}}, {"dropped": -1}, {"dropped": "x"}])
def test_nonsense_of_a_client_is_counted(junk: dict[str, Any]) -> None:
    registry = Registry()
    readings.told_by_client(registry, junk, {})
    assert registry.value("walled_metrics_refused_total", {}) == 1
