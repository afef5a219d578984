"""The health score: linear deductions, the caps, and the words for each."""

from __future__ import annotations

import pytest

from walled.core import health
from walled.sections import HealthConfig

CONFIG = HealthConfig()
WELL: dict[str, float | None] = dict.fromkeys(health.INDICATORS, 0.0)


def test_the_indicators_are_those_of_the_configuration() -> None:
    assert set(health.INDICATORS) == set(HealthConfig.__struct_fields__)


def test_all_is_well() -> None:
    found = health.judge(CONFIG, WELL)
    assert (found.score, found.grade, found.deductions) == (100, "healthy", ())


@pytest.mark.parametrize("name", list(health.INDICATORS))
def test_each_indicator_takes_its_share_and_says_why(name: str) -> None:
    weight, good, bad = getattr(CONFIG, name)
    if name in ("workers", "queue"):
        bad -= 1e-9
    half = health.judge(CONFIG, {**WELL, name: (good + bad) / 2})
    assert half.deductions[0].points == pytest.approx(weight / 2, abs=0.01)
    worst = health.judge(CONFIG, {**WELL, name: bad})
    only = worst.deductions[0]
    assert only.points == pytest.approx(weight, abs=0.01)
    assert all((only.symptom, only.impact, only.cause, only.action))
    if name not in ("workers", "queue"):
        assert worst.score == min(79, round(100 - weight))
    assert health.judge(CONFIG, {**WELL, name: good}).score == 100


def test_what_must_be_known_and_is_not_caps() -> None:
    found = health.judge(CONFIG, {**WELL, "memory": None})
    assert (found.score, found.grade) == (79, "degraded")
    assert "memory" in found.cap_reason
    assert health.judge(CONFIG, {**WELL, "latency": None}).score == 100


@pytest.mark.parametrize(
    ("found", "down"),
    [({"workers": 1.0}, ()), ({"queue": 30.0}, ()), ({}, ("gpu",))],
)
def test_nobody_serves_means_unhealthy(found: dict[str, float | None], down: tuple[str, ...]) -> None:
    judged = health.judge(CONFIG, {**WELL, **found}, down)
    assert judged.score <= 49
    assert judged.grade == "unhealthy"
    assert judged.cap == 49
    assert judged.cap_reason


def test_the_score_never_leaves_its_range() -> None:
    assert health.judge(CONFIG, dict.fromkeys(health.INDICATORS, 1e9)).score == 0


@pytest.mark.parametrize(("score", "grade"), [(100, "healthy"), (80, "healthy"), (79, "degraded"),
                                              (50, "degraded"), (49, "unhealthy"), (0, "unhealthy")])  # fmt: skip  # noqa: E501
def test_grades(score: int, grade: str) -> None:
    assert health.grade(score) == grade
