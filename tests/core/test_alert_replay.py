"""Rules on the past: the history is written as a monitor writes it, then every aggregate is replayed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.test_alerts import rule
from walled.core import alert_replay, builtin_alerts, readings
from walled.core.alert_replay import labels_of
from walled.core.history import History
from walled.core.registry import Registry, series_key
from walled.errors import BadRequest

BORN_S = 1_000_000.0


def past(seconds: int, happen: Any) -> History:
    """What a monitor remembers of a registry to which `happen(registry, second)` was done every second."""
    registry, history = Registry(0.0), History()
    for second in range(seconds):
        registry.advance(float(second))
        happen(registry, second)
        readings.remember(registry, history, BORN_S + second)
    return history


def states(history: History, one: Any, since_s: float = 0.0, series: str = "") -> list[tuple[str, float]]:
    changes = alert_replay.replay(one, history, BORN_S + since_s, series)
    return [(c.after, c.at_s - BORN_S) for c in changes]


def test_a_gauge() -> None:
    def cpu(registry: Registry, second: int) -> None:
        registry.set("walled_system_cpu_ratio", 0.95 if 10 <= second < 20 else 0.1)

    found = states(past(60, cpu), rule())
    assert found == [("ok", 0), ("pending", 10), ("firing", 13), ("clearing", 20), ("ok", 23)]
    assert states(past(60, cpu), rule(), since_s=30.0) == [("ok", 30)]


def test_a_share_and_a_burn_rate_of_counters_of_several_series() -> None:
    def requests(registry: Registry, second: int) -> None:
        ill = 200 <= second < 260
        registry.increase("walled_requests_total", 5 if ill else 10, "m", "ok", "model")
        registry.increase("walled_requests_total", 5 if ill else 0, "m", "backend_error", "none")

    history = past(400, requests)
    share = rule(
        metric="walled_requests_total", aggregate="ratio", match=builtin_alerts.FAILED,
        of=builtin_alerts.COUNTED, fire=0.1, clear=0.05, window_s=20.0, for_s=5.0,
    )  # fmt: skip
    found = dict(states(history, share))
    assert 202 <= found["pending"] <= 206
    assert 207 <= found["firing"] <= 212
    assert 277 <= found["clearing"] <= 282, "a window after the illness"
    burn = rule(
        metric="walled_requests_total", aggregate="burn_rate", match=builtin_alerts.FAILED,
        of=builtin_alerts.COUNTED, fire=14.4, clear=None, window_s=120.0, short_window_s=10.0, for_s=0.0,
    )  # fmt: skip
    found = dict(states(history, burn))
    assert 200 <= found["firing"] <= 206
    assert 268 <= found["clearing"] <= 273, "the short window says that it is over"


def test_a_rate_and_a_quantile() -> None:
    def both(registry: Registry, second: int) -> None:
        registry.increase("walled_retries_total", 9 if second >= 100 else 1, "b")
        registry.observe("walled_request_duration_seconds", 8 if second >= 100 else 1, "m", "model")

    history = past(300, both)
    retries = rule(metric="walled_retries_total", aggregate="rate", fire=5, clear=None, window_s=10, for_s=0)
    assert 105 <= dict(states(history, retries))["firing"] <= 108
    slow = rule(metric="walled_request_duration_seconds", aggregate="p95", fire=5, clear=4, for_s=0)
    assert 101 <= dict(states(history, slow))["firing"] <= 110


def test_one_series_alone_and_the_worst_of_all() -> None:
    def two(registry: Registry, second: int) -> None:
        registry.set("walled_process_threads", 5, "broker", "")
        registry.set("walled_process_threads", 50 if second > 5 else 5, "worker", "1")

    history = past(20, two)
    many = rule(metric="walled_process_threads", fire=20, clear=None, for_s=0)
    assert dict(states(history, many))["firing"] == 6
    broker = 'walled_process_threads{role="broker",worker=""}'
    assert states(history, many, series=broker) == [("ok", 0)]


def test_what_was_not_kept_is_refused() -> None:
    with pytest.raises(BadRequest, match="no history of walled_system_cpu_ratio"):
        alert_replay.replay(rule(), History(), 0.0)


@pytest.mark.parametrize("value", ["", "a", 'quo"te', "back\\slash", "a,b={c}"])
def test_labels_are_read_back_as_they_were(value: str) -> None:
    assert labels_of(series_key("n", {"a": value, "b": "x"})) == {"a": value, "b": "x"}
