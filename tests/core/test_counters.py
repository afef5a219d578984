"""The monitor's registry: sums, bounds, numbering."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core import counters
from walled.core.counters import Publications, Registry


def test_counters_add_up_over_sources_and_gauges_stay_apart() -> None:
    registry = Registry()
    registry.apply({"from": "worker 0", "counters": {"tokens": 3}, "gauges": {"busy": 1}})
    registry.apply({"from": "worker 1", "counters": {"tokens": 4}, "gauges": {"busy": 2}})
    registry.apply({"from": "worker 1", "counters": {"tokens": 1}, "gauges": {"busy": 0}})
    picture = registry.picture()
    assert picture["counters"] == {"tokens": 8}
    assert picture["gauges"] == {"worker 0": {"busy": 1}, "worker 1": {"busy": 0}}
    assert picture["deltas"] == 3
    assert picture["refused"] == 0


@pytest.mark.parametrize(
    "delta",
    [
        {},
        {"from": 1, "counters": {"a": 1}},
        {"from": "x", "counters": [1]},
        {"from": "x", "gauges": "no"},
        {"from": "x", "counters": {"a": -1}},
        {"from": "x", "counters": {"a": True}},
        {"from": "x", "counters": {"a": "1"}},
        {"from": "x", "counters": {"": 1}},
        {"from": "x", "counters": {"n" * 201: 1}},
        {"from": "x", "gauges": {"a": float("nan")}},
        {"from": "s" * 201, "gauges": {"a": 1}},
    ],
)
def test_what_makes_no_sense_is_refused_and_counted(delta: dict[str, Any]) -> None:
    registry = Registry()
    registry.apply(delta)
    picture = registry.picture()
    assert picture["refused"] == 1
    assert picture["counters"] == {}
    assert not any(picture["gauges"].values())


def test_names_and_sources_are_bounded() -> None:
    registry = Registry()
    for n in range(counters.MAX_SERIES + 10):
        registry.apply({"from": "x", "counters": {f"n{n}": 1}})
    for n in range(counters.MAX_SOURCES + 5):
        registry.apply({"from": f"s{n}", "gauges": {"a": 1}})
    registry.apply({"from": "x", "counters": {"n0": 1}})
    picture = registry.picture()
    assert len(picture["counters"]) == counters.MAX_SERIES
    assert len(picture["gauges"]) == counters.MAX_SOURCES
    assert picture["refused"] == 15
    assert picture["counters"]["n0"] == 2, "a known name is still counted when the table is full"


def test_the_picture_is_a_copy() -> None:
    registry = Registry()
    registry.apply({"from": "x", "counters": {"a": 1}, "gauges": {"g": 1}})
    picture = registry.picture()
    picture["counters"]["a"] = picture["gauges"]["x"]["g"] = 99
    assert registry.picture()["counters"] == {"a": 1}
    assert registry.picture()["gauges"] == {"x": {"g": 1}}


def test_a_source_that_is_gone_loses_its_gauges_only() -> None:
    registry = Registry()
    registry.apply({"from": "x", "counters": {"a": 1}, "gauges": {"g": 1}})
    registry.forget("x")
    assert registry.picture()["gauges"] == {}
    assert registry.picture()["counters"] == {"a": 1}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=10,
    ).flatmap(
        lambda junk: st.fixed_dictionaries({"from": st.just(junk) | st.text(), "counters": st.just(junk)})
    )
)
def test_no_map_breaks_the_registry(delta: dict[str, Any]) -> None:
    registry = Registry()
    registry.apply(delta)
    assert all(value >= 0 for value in registry.picture()["counters"].values())


def test_sequence_numbers_count_each_topic_from_one() -> None:
    publications = Publications("e1")
    assert [publications.next(b"a", {}, 0.0)["seq"] for _ in range(3)] == [1, 2, 3]
    assert publications.next(b"b", {"x": 1}, 5.0) == {"x": 1, "epoch": "e1", "seq": 1, "time_s": 5.0}


def test_a_late_subscriber_gets_the_last_of_each_topic_it_covers() -> None:
    publications = Publications("e1")
    for n in range(2):
        publications.next(b"metric.counters", {"n": n}, float(n))
    publications.next(b"metric.processes", {}, 2.0)
    publications.next(b"other", {}, 2.0)
    found = publications.last_for(b"metric.")
    assert [(topic, message["seq"]) for topic, message in found] == [
        (b"metric.counters", 2),
        (b"metric.processes", 1),
    ]
    assert len(publications.last_for(b"")) == 3
    assert publications.last_for(b"nothing") == []
