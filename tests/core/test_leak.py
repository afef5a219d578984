"""Leak verdicts: the rates on simulated series, the interval, and when nothing is said."""

from __future__ import annotations

import pytest
from walled_bench import leaks

from walled.core import leak

COUNT = 150
SEED = 20_000
"""Not those the bounds were chosen with."""


@pytest.mark.parametrize("kind", [k for k in leaks.KINDS if k.mb_per_h == 0], ids=lambda k: k.name)
def test_false_leaks_are_at_most_five_percent(kind: leaks.Kind) -> None:
    assert leaks.verdicts(kind, COUNT, SEED)["LEAK"] <= 0.05 * COUNT


@pytest.mark.parametrize("kind", [k for k in leaks.KINDS if k.mb_per_h == 60], ids=lambda k: k.name)
def test_sixty_mb_an_hour_is_found_at_sixty_minutes(kind: leaks.Kind) -> None:
    found = leaks.verdicts(kind, COUNT, SEED)
    assert found["LEAK"] >= 0.95 * COUNT
    assert found["CLEAN"] == 0


def test_below_sixty_minutes_nothing_is_said() -> None:
    steep = [(n * 10.0, n * 1e9) for n in range(360)]
    assert steep[-1][0] < leak.MIN_SPAN_S
    assert leak.judge(steep).verdict == "INCONCLUSIVE"
    assert leak.judge([*steep, (3600.0, 360e9)]).verdict == "LEAK"


def test_a_long_flat_series_is_clean() -> None:
    assert leaks.verdicts(leaks.KINDS[0], 40, SEED, minutes=360)["CLEAN"] >= 38


def test_figures_by_the_hour_and_by_requests() -> None:
    report = leak.judge([(n * 10.0, 5e6 + n * 10 / 3600 * 60e6) for n in range(361)], requests=2000)
    assert report.mb_per_h == pytest.approx(60)
    assert report.mb_per_1000_requests == pytest.approx(30)


def test_growth_that_stops_is_no_leak() -> None:
    stops = [(n * 10.0, min(n, 240) * 1e6) for n in range(361)]
    assert leak.judge(stops).verdict == "INCONCLUSIVE"


def test_few_points_and_none_say_nothing() -> None:
    assert leak.judge([]).verdict == "INCONCLUSIVE"
    assert leak.judge([(0.0, 1.0), (7200.0, 9e9)]).verdict == "INCONCLUSIVE"


def test_one_outlier_does_not_move_the_slope() -> None:
    points = [(float(n), float(n)) for n in range(40)]
    points[7] = (7.0, 1e12)
    assert leak.theil_sen(points).value == pytest.approx(1.0)


def test_dependent_noise_widens_the_interval() -> None:
    alternating = [float(n % 2) for n in range(40)]
    slow = [float(n // 10 % 2) for n in range(40)]
    assert leak.inflation(alternating) == 1.0
    assert leak.inflation(slow) > 5.0
