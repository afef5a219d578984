"""Model grouping: when a backend that holds few models may load another one."""

from __future__ import annotations

from walled.core.residence import Residence


def nothing_runs(model: str) -> int:
    return 0


def may(residence: Residence, model: str, now: float, running: dict[str, int] | None = None) -> bool:
    counts = running or {}
    return residence.may_start(model, now, running=lambda name: counts.get(name, 0), min_residence_s=2.0)


def test_no_limit_means_no_waiting() -> None:
    residence = Residence(0)
    assert all(may(residence, model, 0.0) for model in "abc")


def test_a_model_stays_for_its_minimum_residence_even_when_idle() -> None:
    residence = Residence(1)
    residence.started("a", 10.0, nothing_runs, 2.0)
    assert may(residence, "a", 10.1)
    assert not may(residence, "b", 11.9)
    assert may(residence, "b", 12.0)


def test_a_busy_model_is_never_evicted() -> None:
    residence = Residence(1)
    residence.started("a", 10.0, nothing_runs, 2.0)
    assert not may(residence, "b", 100.0, {"a": 1})


def test_two_places_hold_two_models_and_the_least_recently_used_goes() -> None:
    residence = Residence(2)
    for now, model in ((0.0, "a"), (1.0, "b"), (2.0, "a")):
        residence.started(model, now, nothing_runs, 2.0)
    assert may(residence, "c", 10.0)
    residence.started("c", 10.0, nothing_runs, 2.0)
    assert list(residence.loaded) == ["a", "c"]
    assert residence.swaps == 3


def test_a_queue_that_waited_too_long_drains_the_loaded_model() -> None:
    residence = Residence(1)
    residence.started("a", 0.0, nothing_runs, 2.0)
    waiting = [("b", 1.0), ("a", 0.5)]
    residence.consider_switch(waiting, 10.9, max_wait_s=10.0, min_residence_s=2.0)
    assert may(residence, "a", 10.9)
    residence.consider_switch(waiting, 11.0, max_wait_s=10.0, min_residence_s=2.0)
    assert not may(residence, "a", 11.0), "the loaded model gets no new work"
    assert not may(residence, "b", 11.0, {"a": 1}), "nor the other one before the old work is done"
    assert may(residence, "b", 11.5)
    residence.started("b", 11.5, nothing_runs, 2.0)
    assert residence.switching_to is None


def test_a_switch_for_requests_that_ended_is_given_up() -> None:
    residence = Residence(1)
    residence.started("a", 0.0, nothing_runs, 2.0)
    residence.consider_switch([("b", 1.0)], 20.0, max_wait_s=10.0, min_residence_s=2.0)
    residence.forget_switch("b")
    assert may(residence, "a", 20.0)
