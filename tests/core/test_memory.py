"""Remedies against too much memory: which, when, in which order; samples at chosen times, no process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core import memory
from walled.core.memory import REMEDIES, Limits, Relief, Sample

MB = 1_000_000
LIMITS = Limits(100 * MB, system_ratio=0.75, critical_ratio=0.9, psi_some_avg10=10.0, settle_s=2.0)


def relief(baseline_mb: int = 20, limits: Limits = LIMITS) -> Relief:
    found = Relief(limits)
    assert found.step(Sample(baseline_mb * MB), 0.0) is None
    return found


def taken(found: Relief, sample: Sample, start_s: float, seconds: float) -> list[str]:
    """The remedies of some time with the same sample ten times a second."""
    remedies = []
    for tick in range(int(seconds * 10)):
        step = found.step(sample, start_s + tick / 10)
        if step is not None:
            assert step.why
            remedies.append(step.remedy)
    return remedies


def test_below_its_budget_nothing_is_done() -> None:
    assert taken(relief(), Sample(69 * MB, 0.74, 9.0), 1.0, 300.0) == []


def test_remedies_come_in_order_and_the_last_is_a_new_process() -> None:
    found = relief(baseline_mb=60)
    assert taken(found, Sample(72 * MB), 100.0, 8.0) == list(REMEDIES)


def test_what_takes_from_somebody_waits_until_the_last_has_had_its_time() -> None:
    found = relief(baseline_mb=60)
    assert taken(found, Sample(72 * MB), 100.0, 0.5) == ["gc", "malloc_trim", "cache_trim", "fewer_slots"]
    assert taken(found, Sample(72 * MB), 100.5, 1.5) == []


def test_a_remedy_that_helps_ends_it_and_the_next_time_begins_with_the_first() -> None:
    found = relief()
    step = found.step(Sample(72 * MB), 100.0)
    assert step is not None
    assert step.remedy == "gc"
    assert found.relieving
    assert found.step(Sample(50 * MB), 101.0) is None
    assert not found.relieving
    again = found.step(Sample(72 * MB), 200.0)
    assert again is not None
    assert again.remedy == "gc"


def test_between_calm_and_soft_slots_stay_as_they_are() -> None:
    found = relief(baseline_mb=60)
    taken(found, Sample(72 * MB), 100.0, 1.0)
    assert found.step(Sample(65 * MB), 102.0) is None
    assert found.relieving


def test_near_the_budget_it_asks_for_a_new_process_after_what_is_free() -> None:
    found = relief()
    assert taken(found, Sample(86 * MB), 100.0, 0.4) == ["gc", "malloc_trim", "cache_trim", "recycle"]
    assert taken(found, Sample(86 * MB), 100.4, 4.8) == [], "once"
    assert taken(found, Sample(86 * MB), 106.0, 1.0) == ["recycle"], "and again when nobody came"


def test_who_waits_for_its_replacement_takes_nothing_new_at_the_brim_but_not_for_ever() -> None:
    found = relief()
    taken(found, Sample(86 * MB), 100.0, 0.4)
    assert not found.holds(100.5)
    taken(found, Sample(93 * MB), 101.0, 0.1)
    assert found.holds(101.0)
    taken(found, Sample(93 * MB), 101.2, 18.0)
    assert found.holds(119.0), "asking again does not begin a new wait"
    assert not found.holds(121.0), "nobody came: better too much memory than no answer"
    unasked = Relief(LIMITS)
    taken(unasked, Sample(95 * MB), 0.0, 30.0)
    assert not unasked.holds(31.0), "who has not asked serves"


@pytest.mark.parametrize(("mb_per_s", "lead_s"), [(1, 15.0), (5, 4.0), (10, 4.0), (20, 2.0), (40, 0.5)])
def test_a_leak_is_seen_coming_before_the_budget_is_crossed(mb_per_s: int, lead_s: float) -> None:
    """Sampled twice a second: what is left of the time until the budget is crossed, for a replacement."""
    found = relief()
    for tick in range(1, 1000):
        now_s = tick / 2
        uss = int((20 + mb_per_s * now_s) * MB)
        while (step := found.step(Sample(uss), now_s)) is not None:
            if step.remedy == "recycle":
                assert uss + mb_per_s * MB * lead_s <= LIMITS.budget_bytes
                return
    pytest.fail("never recycled")


def test_a_burst_that_ends_is_no_leak() -> None:
    found = relief()
    assert found.step(Sample(20 * MB), 1.0) is None
    assert taken(found, Sample(55 * MB), 1.5, 20.0) == []


def test_a_process_that_begins_too_large_is_not_replaced_for_ever() -> None:
    found = Relief(LIMITS)
    assert "recycle" not in taken(found, Sample(90 * MB), 0.0, 600.0)
    assert "90.0 MB at the start" in found.hopeless()
    assert relief().hopeless() == ""


@pytest.mark.parametrize(
    ("used", "psi", "remedies"),
    [
        (0.80, 0.0, ["gc", "malloc_trim", "cache_trim"]),
        (0.30, 20.0, ["gc", "malloc_trim", "cache_trim"]),
        (0.80, 20.0, ["gc", "malloc_trim", "cache_trim", "fewer_slots", "unload_idle"]),
        (0.95, 0.0, ["gc", "malloc_trim", "cache_trim", "fewer_slots", "unload_idle"]),
    ],
)
def test_a_machine_short_of_memory_gets_what_costs_little_and_never_a_second_process(
    used: float, psi: float, remedies: list[str]
) -> None:
    found = relief()
    assert taken(found, Sample(30 * MB, used, psi), 100.0, 30.0) == remedies
    assert "recycle" not in taken(found, Sample(30 * MB, used, psi), 130.0, 600.0)


def test_pressure_is_not_looked_at_when_it_is_switched_off() -> None:
    found = relief(limits=LIMITS._replace(psi_some_avg10=0.0))
    assert taken(found, Sample(30 * MB, 0.1, 100.0), 1.0, 10.0) == []


def test_without_a_budget_only_the_machine_counts() -> None:
    found = Relief(LIMITS._replace(budget_bytes=0))
    assert taken(found, Sample(10_000 * MB, 0.5), 0.0, 100.0) == []
    assert taken(found, Sample(10_000 * MB, 0.8), 100.0, 1.0) == ["gc", "malloc_trim", "cache_trim"]


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 1), st.floats(0, 100)), max_size=200))
def test_asking_again_at_once_always_ends(samples: list[tuple[int, float, float]]) -> None:
    found = Relief(LIMITS)
    for tick, (mb, used, psi) in enumerate(samples):
        turns = 0
        while found.step(Sample(mb * MB, used, psi), float(tick)) is not None:
            turns += 1
            assert turns <= len(REMEDIES)


def test_budgets_are_those_configured_or_equal_parts() -> None:
    assert memory.budget(5, 16_000, 0.75, 4) == 5
    assert memory.budget(0, 16_000, 0.75, 4) == 3000
    assert memory.budget(0, 0, 0.75, 4) == 0, "a machine that does not tell its size sets no budget"


def test_collections_wait_for_a_quiet_moment_but_not_for_ever() -> None:
    assert not memory.collection_due(99, 0, 100, idle=True)
    assert memory.collection_due(100, 0, 100, idle=True)
    assert not memory.collection_due(199, 0, 100, idle=False)
    assert memory.collection_due(200, 0, 100, idle=False)
    assert not memory.collection_due(10_000, 0, 0, idle=True), "0 switches it off"


def test_at_least_one_slot_stays() -> None:
    assert [memory.fewer(slots) for slots in (8, 3, 2, 1)] == [4, 1, 1, 1]
