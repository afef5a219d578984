"""Medians, quantiles and blocks: how many numbers become one without lying.

May live here: arithmetic on samples. May not: clocks, sockets, processes.

Rules all benches follow: a failed request never enters a latency; the value of a figure is the median of its
blocks and its spread their lowest and highest; a ratio is formed within each block, whose two sides ran next
to each other, and then the median of the ratios is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """The median of blocks, and their range."""

    value: float
    low: float
    high: float
    n: int
    """Samples in all blocks together."""


def quantile(samples: Sequence[float], share: float) -> float:
    """The nearest-rank quantile; NaN of nothing."""
    if not samples:
        return math.nan
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def median(samples: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones; NaN of nothing."""
    if not samples:
        return math.nan
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def of_blocks(values: Sequence[float], n: int = 0) -> Summary:
    """One value from those of several blocks. `n`: samples in them, when more than one each."""
    if not values:
        return Summary(math.nan, math.nan, math.nan, 0)
    return Summary(median(values), min(values), max(values), n or len(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Block by block; a block whose lower side is not positive is left out."""
    return [a / b for a, b in zip(above, below, strict=True) if b > 0]
