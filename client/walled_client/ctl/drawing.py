"""Numbers as text for narrow places: sparklines, bars, times, rates.

May live here: text of given numbers. May not: printing, colors, where numbers come from.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇"
"""Without the full block: lines above each other would run into one."""
ASCII_BLOCKS = "_.:-=+*"
FULL = "█"
NOTHING = "-"
"""Stands for a number that is not known."""


def blocks() -> str:
    """Steps of a sparkline, as far as the output can show them."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_BLOCKS
    return BLOCKS


def sparkline(
    values: Sequence[float | None], width: int, steps: str = BLOCKS, top: float | None = None
) -> str:
    """The last `width` values, a character each, lowest at 0 and highest at the greatest of them (at least
    `top`); a space where nothing is known."""
    shown = values[-width:] if width > 0 else []
    known = [v for v in shown if v is not None and math.isfinite(v)]
    highest = max([*known, top or 0.0], default=0.0)
    text = ""
    for value in shown:
        if value is None or not math.isfinite(value):
            text += " "
        elif highest <= 0:
            text += steps[0]
        else:
            # Anything above nothing is seen to be more than nothing.
            place = max(1 if value > 0 else 0, math.ceil(max(0.0, value) / highest * (len(steps) - 1)))
            text += steps[min(len(steps) - 1, place)]
    return text.rjust(width)


def squeezed(values: Sequence[float | None], width: int) -> list[float | None]:
    """At most `width` values: each the mean of as many neighbours."""
    if len(values) <= width or width < 1:
        return list(values)
    found: list[float | None] = []
    for place in range(width):
        part = values[place * len(values) // width : (place + 1) * len(values) // width]
        known = [v for v in part if v is not None]
        found.append(sum(known) / len(known) if known else None)
    return found


def bar(share: float, width: int, steps: str = BLOCKS) -> str:
    """A bar that is full at 1."""
    full = round(min(1.0, max(0.0, share)) * width)
    return ((FULL if steps == BLOCKS else "#") * full).ljust(width, "·" if steps == BLOCKS else " ")


def span(value_s: float | None) -> str:
    """A time for people, at most 7 characters: 250 us, 52 ms, 4.2 s, 75 s, 3 min, 5.0 h."""
    if value_s is None:
        return NOTHING
    if value_s < 2e-6:  # the least a sketch knows
        return "0 ms"
    if value_s < 0.0009995:
        return f"{value_s * 1e6:.0f} us"
    if value_s < 0.00995:
        return f"{value_s * 1e3:.1f} ms"
    if value_s < 0.9995:
        return f"{value_s * 1e3:.0f} ms"
    if value_s < 9.95:
        return f"{value_s:.1f} s"
    if value_s < 120:
        return f"{value_s:.0f} s"
    return f"{value_s / 60:.0f} min" if value_s < 7200 else f"{value_s / 3600:.1f} h"


def rate(value: float | None) -> str:
    """A number for people, at most 6 characters: 0, 3.2, 210, 14.5k."""
    if value is None:
        return NOTHING
    for limit, unit in ((1e3, ""), (1e6, "k"), (1e9, "M")):
        if abs(value) < limit * 0.9995:
            scaled = value / (limit / 1e3)
            text = f"{scaled:.1f}" if abs(scaled) < 99.95 else f"{scaled:.0f}"
            return (text.removesuffix(".0") if not unit else text) + unit
    return f"{value:.1e}"


def percent(share: float | None) -> str:
    """A share of 1: 31 %, 0.4 %."""
    if share is None:
        return NOTHING
    return f"{share * 100:.0f} %" if share in (0.0, 1.0) or share >= 0.1 else f"{share * 100:.1f} %"


def clipped(text: str, width: int) -> str:
    """At most `width` characters; what is cut off is seen to be cut off."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…" * (width > 0)
