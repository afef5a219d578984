"""When a process has too much memory, what to do about it, in which order: arithmetic over samples.

May live here: (samples, limits, now) -> remedy. May not: measuring, applying (adapters/relief.py), clocks.

Two kinds of want:
- *own*: the process nears its own budget. Remedies go up from the cheap to the dear; the last is to be
  replaced by a fresh process. That one comes right after those that cost nothing once the budget is nearly
  used up, or will be, at the speed of the last samples, before a replacement can be ready;
- *system*: the machine is short of memory. Everybody gives back what costs nobody an answer; only when memory
  is very scarce are slots given up and idle models unloaded. Nobody is replaced for it: a replacement needs
  memory first.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Literal, NamedTuple

Remedy = Literal["gc", "malloc_trim", "cache_trim", "fewer_slots", "unload_idle", "recycle"]

REMEDIES: tuple[Remedy, ...] = (
    "gc",
    "malloc_trim",
    "cache_trim",
    "fewer_slots",
    "unload_idle",
    "recycle",
)
"""In the order they are tried."""
FREE = 3
"""So many of them take nothing from anybody."""

SOFT_RATIO = 0.7
"""Of the budget: remedies begin."""
HARD_RATIO = 0.85
"""Of the budget: only a new process is quick enough."""
CALM_RATIO = 0.6
"""Of the budget: all is well again, slots come back."""
WORTH_RATIO = 0.05
"""Of the budget: a new process must be able to save at least this much, or it would be replaced for ever."""
LEAD_S = 5.0
"""A replacement gets this long to take over before the budget is crossed."""
TREND_SAMPLES = 4
"""So many, each larger than the one before, are growth; fewer may be a burst."""
ASK_AGAIN_S = 5.0
"""A process that asked to be replaced and still lives asks again: it is not heard while the one before it is
still on its way out."""
FULL_RATIO = 0.92
"""Of the budget: who has asked to be replaced takes nothing new, so that the budget holds..."""
HOLD_S = 20.0
"""...for at most this long: a replacement that does not come is no reason not to answer."""
AGAIN_S = 60.0
"""Remedies that did not help are begun again from the first."""


class Limits(NamedTuple):
    """The part of the configuration this policy obeys (config.MemoryConfig)."""

    budget_bytes: int
    """0: none."""
    system_ratio: float
    critical_ratio: float
    psi_some_avg10: float
    """Percent of the last 10 s in which somebody waited for memory; 0: not looked at."""
    settle_s: float


class Sample(NamedTuple):
    """The process and the machine at one moment."""

    uss_bytes: int
    system_used_ratio: float = 0.0
    psi_some_avg10: float = 0.0


class Step(NamedTuple):
    """A remedy to apply now, and why, for people."""

    remedy: Remedy
    why: str


class Relief:
    """What has been tried, and what comes next. One per process."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.baseline_bytes = 0
        """At the first sample, which is to be taken once the process serves: a new one needs as much."""
        self.uss_bytes = 0
        self.peak_bytes = 0
        self.relieving = False
        """Remedies are under way; fewer slots stay fewer."""
        self._trend: deque[tuple[float, int]] = deque(maxlen=TREND_SAMPLES)
        self._next = 0
        self._next_s = 0.0
        self._asked_s: float | None = None
        self._first_asked_s = 0.0

    def holds(self, now_s: float) -> bool:
        """Whether to take nothing new until the replacement is there."""
        full = self.uss_bytes >= FULL_RATIO * self.limits.budget_bytes
        return self._asked_s is not None and full and now_s - self._first_asked_s < HOLD_S

    def step(self, sample: Sample, now_s: float) -> Step | None:
        """What to do now. A caller that did it may sample and ask again at once; that ends by itself."""
        self.uss_bytes = sample.uss_bytes
        self.peak_bytes = max(self.peak_bytes, sample.uss_bytes)
        self.baseline_bytes = self.baseline_bytes or sample.uss_bytes
        if not self._trend or now_s > self._trend[-1][0]:
            self._trend.append((now_s, sample.uss_bytes))
        why = self._urgent(sample, now_s)
        if why and self._next >= FREE and self._replaceable(sample):
            return self._ask(why, now_s)
        own = why or self._own(sample)
        system = "" if own else self._system(sample)
        if not (own or system):
            if self._calm(sample):
                self.relieving, self._next, self._next_s, self._asked_s = False, 0, 0.0, None
            return None
        self.relieving = True
        if now_s < self._next_s:
            return None
        end = len(REMEDIES) - 1 if own or self._critical(sample) else FREE
        if self._next < end:
            remedy = REMEDIES[self._next]
            self._next += 1
            self._next_s = now_s + (self.limits.settle_s if self._next > FREE else 0.0)
            return Step(remedy, own or system)
        if own and self._replaceable(sample):
            return self._ask(own, now_s)
        self._next, self._next_s = 0, now_s + AGAIN_S
        return None

    def hopeless(self) -> str:
        """Why this budget cannot be kept, for people; empty when it can."""
        budget = self.limits.budget_bytes
        if not budget or self.baseline_bytes < SOFT_RATIO * budget:
            return ""
        return (
            f"{megabytes(self.baseline_bytes)} at the start, and the budget is {megabytes(budget)}: "
            "give it more (memory.worker_budget_bytes), fewer slots or a smaller model"
        )

    # --- readings ----------------------------------------------------------------------------------

    def _own(self, sample: Sample) -> str:
        budget = self.limits.budget_bytes
        if not budget or sample.uss_bytes < SOFT_RATIO * budget:
            return ""
        return f"{megabytes(sample.uss_bytes)} of a budget of {megabytes(budget)}"

    def _urgent(self, sample: Sample, now_s: float) -> str:
        budget = self.limits.budget_bytes
        if not budget:
            return ""
        if sample.uss_bytes >= HARD_RATIO * budget:
            return f"{megabytes(sample.uss_bytes)} of a budget of {megabytes(budget)}"
        sizes = [size for _, size in self._trend]
        grows = all(before < after for before, after in itertools.pairwise(sizes))
        if len(sizes) < TREND_SAMPLES or not grows or sample.uss_bytes < budget / 2:
            return ""
        (first_s, first_bytes), (last_s, last_bytes) = self._trend[0], self._trend[-1]
        speed = (last_bytes - first_bytes) / (last_s - first_s)
        if sample.uss_bytes + speed * LEAD_S < budget:
            return ""
        return f"{megabytes(sample.uss_bytes)}, {megabytes(speed)} more a second, budget {megabytes(budget)}"

    def _replaceable(self, sample: Sample) -> bool:
        """Whether a new process would have notably less."""
        return sample.uss_bytes - self.baseline_bytes >= WORTH_RATIO * self.limits.budget_bytes

    def _system(self, sample: Sample) -> str:
        limits = self.limits
        if sample.system_used_ratio >= limits.system_ratio:
            return f"{sample.system_used_ratio:.0%} of the machine's memory are in use"
        if limits.psi_some_avg10 and sample.psi_some_avg10 >= limits.psi_some_avg10:
            return f"somebody waits for memory {sample.psi_some_avg10:.0f} % of the time"
        return ""

    def _critical(self, sample: Sample) -> bool:
        limits = self.limits
        waiting = bool(limits.psi_some_avg10) and sample.psi_some_avg10 >= limits.psi_some_avg10
        full = sample.system_used_ratio >= limits.system_ratio
        return sample.system_used_ratio >= limits.critical_ratio or (waiting and full)

    def _calm(self, sample: Sample) -> bool:
        budget = self.limits.budget_bytes
        return not budget or sample.uss_bytes < CALM_RATIO * budget

    def _ask(self, why: str, now_s: float) -> Step | None:
        if self._asked_s is not None and now_s - self._asked_s < ASK_AGAIN_S:
            return None
        if self._asked_s is None:
            self._first_asked_s = now_s
        self._asked_s = now_s
        return Step("recycle", why)


def budget(wanted_bytes: int, system_bytes: int, system_ratio: float, processes: int) -> int:
    """The budget of each of `processes` alike: as configured, else an equal part of the usable memory."""
    if wanted_bytes:
        return wanted_bytes
    return int(system_bytes * system_ratio / max(1, processes))


def collection_due(ended: int, collected_at: int, every: int, *, idle: bool) -> bool:
    """Whether to look for cycles: after `every` requests when idle, after twice that anyhow."""
    since = ended - collected_at
    return bool(every) and (since >= 2 * every or (idle and since >= every))


def fewer(slots: int) -> int:
    """The slots that remain of so many."""
    return max(1, slots // 2)


def megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
