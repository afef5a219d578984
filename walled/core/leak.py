"""Does a process leak? A verdict on its settled memory over time, with an honest interval.

May live here: the statistics. May not: sampling, clocks, randomness (simulations are in the bench).

Medians of equal pieces of time tame outliers; the first third is warm-up and is dropped; Theil-Sen gives the
slope and Sen's method its 95 % interval, widened by the autocorrelation of what the line leaves over, because
memory a minute ago says much about memory now. The second half of what is left must show the growth by
itself: a process that is still filling its pools slows down, one that leaks does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Literal, NamedTuple

Verdict = Literal["LEAK", "CLEAN", "INCONCLUSIVE"]

MIN_SPAN_S = 3600.0
"""Below this nothing is said, whatever the numbers."""
MAX_POINTS = 120
PIECE_S = 60.0
MIN_POINTS = 20
CLEAN_MB_PER_H = 10.0
"""Growth below this is what features.md grades best."""
Z_95 = 1.959964
MAX_CORRELATION = 0.85
"""Of neighbouring minutes: past this a short series cannot tell noise from drift, the estimate runs off."""
MB = 1e6
VERDICT_NUMBERS: dict[Verdict, float] = {"CLEAN": 0.0, "INCONCLUSIVE": 1.0, "LEAK": 2.0}
"""Of the gauge walled_leak_verdict."""

Points = Sequence[tuple[float, float]]
"""(time in seconds, value), oldest first."""


class Slope(NamedTuple):
    """Per second of whatever the values are."""

    value: float
    low: float
    high: float


class Report(NamedTuple):
    verdict: Verdict
    why: str
    mb_per_h: float | None = None
    low_mb_per_h: float | None = None
    high_mb_per_h: float | None = None
    mb_per_1000_requests: float | None = None
    span_s: float = 0.0


def judge(samples: Points, requests: float | None = None) -> Report:
    """Of USS samples in bytes of one process; `requests`: how many it served in the time they span."""
    if len(samples) < 2:
        return Report("INCONCLUSIVE", "no samples")
    span_s = samples[-1][0] - samples[0][0]
    if span_s < MIN_SPAN_S:
        return Report("INCONCLUSIVE", f"{span_s / 60:.0f} of 60 minutes", span_s=span_s)
    points = medians(samples, max(PIECE_S, span_s / MAX_POINTS))
    begin_s = samples[0][0] + span_s / 3
    settled = [point for point in points if point[0] >= begin_s]
    if len(settled) < MIN_POINTS:
        return Report("INCONCLUSIVE", f"{len(settled)} of {MIN_POINTS} settled points", span_s=span_s)
    slope = theil_sen(settled)
    later = theil_sen(settled[len(settled) // 2 :])
    per_h = [value * 3600 / MB for value in slope]
    verdict, why = _verdict(per_h[0], per_h[1], per_h[2], later.value * 3600 / MB)
    per_request = None
    if requests is not None and requests > 0:
        per_request = slope.value * span_s / MB / requests * 1000
    return Report(verdict, why, per_h[0], per_h[1], per_h[2], per_request, span_s)


def _verdict(mb_per_h: float, low: float, high: float, later: float) -> tuple[Verdict, str]:
    figures = f"{mb_per_h:+.1f} MB/h (95 %: {low:+.1f} to {high:+.1f})"
    if low > CLEAN_MB_PER_H:
        if later >= max(CLEAN_MB_PER_H, mb_per_h / 2):
            return "LEAK", f"{figures}, second half {later:+.1f}"
        return "INCONCLUSIVE", f"{figures}, but {later:+.1f} in the second half: it slows down"
    if high < CLEAN_MB_PER_H:
        return "CLEAN", figures
    return "INCONCLUSIVE", f"{figures}: neither growth nor its absence is certain"


def medians(samples: Points, piece_s: float) -> list[tuple[float, float]]:
    """One point, in the middle, for each piece of time that has samples."""
    pieces: dict[int, list[float]] = {}
    start_s = samples[0][0]
    for time_s, value in samples:
        pieces.setdefault(int((time_s - start_s) // piece_s), []).append(value)
    return [(start_s + (number + 0.5) * piece_s, median(values)) for number, values in pieces.items()]


def theil_sen(points: Points) -> Slope:
    """The median of the slopes between all pairs, and Sen's 95 % interval for dependent noise."""
    slopes = sorted(
        (v2 - v1) / (t2 - t1)
        for place, (t1, v1) in enumerate(points)
        for t2, v2 in points[place + 1 :]
        if t2 > t1
    )
    if not slopes:
        return Slope(0.0, -math.inf, math.inf)
    value, n = median(slopes), len(points)
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18 * inflation([v - value * t for t, v in points]))
    reach = Z_95 * spread
    low, high = math.floor((len(slopes) - reach) / 2), math.ceil((len(slopes) + reach) / 2)
    # The interval of few, dependent points reaches past every slope that was seen.
    return Slope(
        value,
        slopes[low] if low >= 0 else -math.inf,
        slopes[high] if high < len(slopes) else math.inf,
    )


def inflation(residuals: Sequence[float]) -> float:
    """How much wider the variance is than that of independent points: (1 + r) / (1 - r) for the lag-one
    autocorrelation r, corrected for its bias in short series with a fitted line. Never below 1."""
    n = len(residuals)
    mean = sum(residuals) / n
    centred = [value - mean for value in residuals]
    total = sum(value * value for value in centred)
    if n <= 5 or total == 0:
        return 1.0
    seen = sum(a * b for a, b in pairwise(centred)) / total
    r = min(MAX_CORRELATION, max(0.0, (n * seen + 2) / (n - 4)))
    return (1 + r) / (1 - r)
