"""docs/alerts.md shows rules, built-in rules and health deductions as the code has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from walled.core import alert_rules, builtin_alerts, health
from walled.sections import HealthConfig

TEXT = (Path(__file__).parents[2] / "docs/alerts.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    part = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in part.splitlines()
        if line.startswith("| `")
    ]


def test_the_schema() -> None:
    wanted = []
    for field in msgspec.structs.fields(alert_rules.Rule):
        default: Any = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        wanted.append([f"`{field.name}`", "required" if field.required else repr(default)])
    assert [row[:2] for row in rows("Rules")] == wanted


def test_the_built_in_rules() -> None:
    wanted = []
    for rule in builtin_alerts.RULES:
        fires = f"{rule.aggregate} {rule.operator} {rule.fire:g}"
        times = [f"{rule.window_s:g}", f"{rule.for_s:g}"]
        wanted.append(
            [f"`{rule.name}`", rule.severity, f"`{rule.metric}`", fires, *times, ", ".join(rule.actions)]
        )
    assert rows("Built-in rules") == wanted


def test_the_deductions() -> None:
    wanted = []
    for name, words in health.INDICATORS.items():
        knees = [f"{number:g}" for number in getattr(HealthConfig(), name)]
        wanted.append([f"`{name}`", *knees, words.impact, words.cause, words.action])
    assert rows("Health") == wanted
