"""How often the leak verdict is right: simulated memory of processes that leak, warm up or do neither.

May live here: simulated series, counting verdicts, printing. May not: the verdict (walled/core/leak.py).
`python -m walled_bench.leaks` prints the rates.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import NamedTuple

from walled.core import leak

SAMPLE_S = 10.0
"""As the monitor's history has them."""
MINUTES = 60
NOISE_MB = 3.0
"""Standard deviation of the noise."""
CORRELATION_S = 120.0
"""After this long the noise remembers 1/e of itself: samples of 10 s are 0.92 alike."""
WARM_UP_MB = 150.0
WARM_UP_S = 480.0


class Kind(NamedTuple):
    name: str
    mb_per_h: float
    warm_up_mb: float


KINDS = (
    Kind("flat", 0.0, 0.0),
    Kind("warm-up", 0.0, WARM_UP_MB),
    Kind("leak 60 MB/h", 60.0, 0.0),
    Kind("leak 60 MB/h after a warm-up", 60.0, WARM_UP_MB),
)


def series(kind: Kind, seed: int, minutes: int = MINUTES) -> list[tuple[float, float]]:
    """(seconds, bytes) with first-order autoregressive noise."""
    rng = random.Random(seed)
    alike = math.exp(-SAMPLE_S / CORRELATION_S)
    noise = rng.gauss(0.0, NOISE_MB)
    points = []
    for number in range(int(minutes * 60 / SAMPLE_S) + 1):
        at_s = number * SAMPLE_S
        grown = kind.mb_per_h * at_s / 3600 + kind.warm_up_mb * (1 - math.exp(-at_s / WARM_UP_S))
        points.append((at_s, (200 + grown + noise) * leak.MB))
        noise = alike * noise + math.sqrt(1 - alike * alike) * rng.gauss(0.0, NOISE_MB)
    return points


def verdicts(kind: Kind, count: int, first_seed: int = 0, minutes: int = MINUTES) -> Counter[str]:
    """How often each verdict was given."""
    return Counter(leak.judge(series(kind, first_seed + n, minutes)).verdict for n in range(count))


def table(count: int = 400) -> str:
    """The rates, a line for each kind of process."""
    lines = [f"leak verdicts on {count} simulated series of {MINUTES} minutes each"]
    for kind in KINDS:
        found = verdicts(kind, count)
        shares = ", ".join(f"{v} {found[v] / count:.1%}" for v in leak.VERDICT_NUMBERS)
        lines.append(f"  {kind.name}: {shares}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
