"""A measured figure, its goal, the table for people and the JSON for machines.

May live here: the shape of a figure, printing and writing figures. May not: measuring, statistics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from walled_bench.statistic import Summary


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a report. The fields are the contract of build/figures/NAME.json."""

    name: str
    value: float | None
    """None when it could not be measured; then it does not hold either."""
    unit: str
    goal: str = ""
    """"<= 300" or ">= 12000"; "" for a figure that only informs."""
    holds: bool | None = None
    """None without a goal."""
    n: int = 0
    """Samples the value stands on: requests, blocks or starts, as the name says."""
    spread: tuple[float, float] | None = None
    """Lowest and highest of the blocks (or of the goes) the value is the median of."""


def figure(
    name: str,
    measured: Summary | float | None,
    unit: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    n: int = 0,
) -> Figure:
    """A figure judged against its goal. NaN counts as not measured."""
    summary = measured if isinstance(measured, Summary) else None
    value = summary.value if summary is not None else measured
    if isinstance(value, Summary) or value is None or math.isnan(value):
        value = None
    goal, holds = "", None
    if at_most is not None:
        goal, holds = f"<= {at_most:g}", value is not None and value <= at_most
    elif at_least is not None:
        goal, holds = f">= {at_least:g}", value is not None and value >= at_least
    return Figure(
        name=name,
        value=None if value is None else _rounded(value),
        unit=unit,
        goal=goal,
        holds=holds,
        n=n or (summary.n if summary is not None else 0),
        spread=(_rounded(summary.low), _rounded(summary.high)) if summary is not None and summary.n else None,
    )


def failing(figures: Iterable[Figure]) -> list[Figure]:
    """Those whose goal does not hold."""
    return [each for each in figures if each.holds is False]


def show(figures: Iterable[Figure], write: Callable[[str], None], *, head: bool = True) -> None:
    """The table for people, line by line."""
    layout = "{:<58} {:>11} {:<10} {:>10} {:>5} {:>8}  {}"
    if head:
        write(layout.format("figure", "value", "unit", "goal", "holds", "n", "spread"))
    for each in figures:
        value = "-" if each.value is None else _text(each.value)
        holds = {True: "yes", False: "NO", None: ""}[each.holds]
        spread = "" if each.spread is None else f"{_text(each.spread[0])} .. {_text(each.spread[1])}"
        write(layout.format(each.name, value, each.unit, each.goal, holds, each.n or "", spread).rstrip())


def save(figures: Iterable[Figure], path: Path) -> None:
    """Write the list the figures of other benches are collected with; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(msgspec.to_builtins(list(figures)), indent=1) + "\n")
    scratch.replace(path)


def _rounded(value: float) -> float:
    """Four significant digits below 10,000, whole numbers above: the rest is noise."""
    return float(round(value)) if abs(value) >= 10_000 else float(f"{value:.4g}")


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
