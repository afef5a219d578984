"""Arithmetic of the benches and the figures they end in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from walled_bench.figures import failing, figure, save, show
from walled_bench.statistic import Summary, median, of_blocks, quantile, ratios

finite = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=60), st.floats(min_value=0, max_value=1))
def test_a_quantile_is_a_sample_with_the_right_share_at_or_below_it(
    samples: list[float], share: float
) -> None:
    value = quantile(samples, share)
    assert value in samples
    assert sum(each <= value for each in samples) >= math.floor(share * len(samples))


@given(st.lists(finite, min_size=1, max_size=40))
def test_the_summary_of_blocks_lies_within_its_spread(values: list[float]) -> None:
    summary = of_blocks(values)
    assert summary.low <= summary.value <= summary.high
    assert summary.n == len(values)


def test_quantiles_and_medians_of_known_samples() -> None:
    samples = [float(n) for n in range(1, 101)]
    assert (quantile(samples, 0.5), quantile(samples, 0.95), quantile(samples, 1)) == (50, 95, 100)
    assert median([3.0, 1.0, 2.0]) == 2
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5


def test_nothing_measured_is_never_a_number_and_never_holds() -> None:
    assert math.isnan(quantile([], 0.5))
    found = figure("x", of_blocks([]), "us", at_most=10)
    assert (found.value, found.holds, found.spread) == (None, False, None)


def test_ratios_are_formed_block_by_block() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="argument"):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("goal", "value", "holds"),
    [({"at_most": 1.5}, 1.5, True), ({"at_most": 1.5}, 1.51, False), ({"at_least": 12}, 12.0, True),
     ({"at_least": 12}, 11.9, False), ({}, 5.0, None)],
)  # fmt: skip
def test_a_goal_is_judged_at_its_edge(goal: dict[str, Any], value: float, holds: bool | None) -> None:
    assert figure("x", value, "us", **goal).holds is holds


def test_a_goal_is_judged_before_rounding() -> None:
    assert figure("x", 1.50001, "ratio", at_most=1.5).holds is False


def test_figures_reach_machines_and_people(tmp_path: Path) -> None:
    figures = [
        figure("fast", Summary(12.3456, 11, 13, 40), "us", at_most=15),
        figure("slow", 123_456.7, "1/s", at_least=200_000, n=3),
        figure("told", 1.0, "s"),
    ]
    save(figures, tmp_path / "deep" / "core.json")
    plain = json.loads((tmp_path / "deep" / "core.json").read_text())
    assert [set(each) for each in plain] == [{"name", "value", "unit", "goal", "holds", "n", "spread"}] * 3
    assert plain[0] == {
        "name": "fast", "value": 12.35, "unit": "us", "goal": "<= 15", "holds": True, "n": 40,
        "spread": [11.0, 13.0],
    }  # fmt: skip
    assert [each.name for each in failing(figures)] == ["slow"]
    lines: list[str] = []
    show(figures, lines.append)
    assert len(lines) == 4
    assert "123,457" in lines[2]
    assert "NO" in lines[2]
    assert "11 .. 13" in lines[1]
