"""A process looks at its own memory and applies the remedies core/memory.py chooses.

May live here: reading /proc of this process, gc, the order of doing, counting, announcing. May not: which
remedy when (core/memory.py), how one process does without something (the callables it hands over).

Looking is cheap by itself: /proc/self/statm takes microseconds. What is this process's alone (USS) takes the
kernel 15 ms per GB, so it is only asked where the quick figure could matter, and never more than 2 % of the
time.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from walled.adapters import process
from walled.adapters.system import SystemProbe
from walled.config import MemoryConfig
from walled.core import memory
from walled.core.memory import Relief, Remedy, Sample

CLOSE_RATIO = 0.5
"""Of the budget: below this the quick figure is enough."""
SHARE = 0.02
"""Most of the time that looking may take."""
PAGE_BYTES = resource.getpagesize()

Action = Callable[[], object]
ORDERED: Mapping[str, tuple[Remedy, ...]] = {
    "gc": ("gc",),
    "trim": ("malloc_trim", "cache_trim"),
    "unload": ("unload_idle",),
}
"""Remedies of the link -> those of core/memory.py."""

_log = logging.getLogger("walled.memory")


class SelfProbe:
    """This process's memory."""

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._statm = proc / "statm"
        self._rollup = proc / "smaps_rollup"

    def rss_bytes(self) -> int:
        """What is resident, shared pages included: never less than the USS. 0 when it cannot be read."""
        try:
            return int(self._statm.read_bytes().split()[1]) * PAGE_BYTES
        except (OSError, ValueError, IndexError):
            return 0

    def uss_bytes(self) -> int:
        """What would be free without this process; where the kernel does not tell, what is resident."""
        total = 0
        try:
            for line in self._rollup.read_bytes().splitlines():
                if line.startswith((b"Private_Clean:", b"Private_Dirty:", b"Private_Hugetlb:")):
                    total += int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            return self.rss_bytes()
        return total or self.rss_bytes()


class SelfRelief:
    """The memory watch of one process; `look` belongs into its working loop."""

    def __init__(
        self,
        config: MemoryConfig,
        limits: memory.Limits,
        count: Callable[[str, int], None],
        actions: Mapping[Remedy, Action],
        *,
        probe: SelfProbe | None = None,
        system: SystemProbe | None = None,
    ) -> None:
        self._config = config
        self._count = count
        self._actions: dict[Remedy, Action] = {
            "gc": gc.collect,
            "malloc_trim": process.give_freed_memory_back,
            **actions,
        }
        self._probe = probe or SelfProbe()
        self._system = system or SystemProbe()
        self._relief = Relief(limits)
        self._due_s = 0.0
        self._collected_at = 0
        self._hopeless_told = False
        self._holding = False
        self.slots_halved = 0
        """How often the slots were given up by half and not given back yet."""
        self.why = ""
        """Of the last remedy, for people."""

    def reconfigure(self, config: MemoryConfig, limits: memory.Limits) -> None:
        self._config, self._relief.limits = config, limits

    def gauges(self) -> dict[str, float]:
        """For the monitor."""
        return {
            "memory_uss_bytes": self._relief.uss_bytes,
            "memory_peak_bytes": self._relief.peak_bytes,
            "memory_budget_bytes": self._relief.limits.budget_bytes,
            "memory_slots_halved": self.slots_halved,
        }

    def capped(self, slots: int) -> int:
        """The slots that may be offered of so many."""
        if self._holding:
            return 0
        for _ in range(self.slots_halved):
            slots = memory.fewer(slots)
        return slots

    def look(self, now_s: float, ended: int = 0, *, idle: bool = True) -> None:
        """Measure and act, when it is time. `ended`: requests so far; `idle`: nobody waits for us."""
        if not self._config.enabled or now_s < self._due_s:
            return
        began_s = time.perf_counter()
        if memory.collection_due(ended, self._collected_at, self._config.gc_every_requests, idle=idle):
            self._collected_at = ended
            gc.collect()
            self._count("memory_collections_total", 1)
        sample = self._sample(exact=not self._relief.baseline_bytes)
        while (step := self._relief.step(sample, now_s)) is not None:
            sample = self._apply(step, sample)
        self._holding = self._relief.holds(now_s)
        if not self._relief.relieving:
            self.slots_halved = 0
        if not self._hopeless_told and self._relief.hopeless():
            self._hopeless_told = True
            self._count("memory_hopeless_total", 1)
            _log.error("memory: this process cannot keep its budget: %s", self._relief.hopeless())
        took_s = time.perf_counter() - began_s
        self._due_s = now_s + max(self._config.check_interval_s, took_s / SHARE)

    def order(self, remedy: str) -> None:
        """What an alert wants done, now. Remedies this process does not have are no business of its."""
        for name in ORDERED.get(remedy, ()):
            if name in self._actions:
                self._apply(memory.Step(name, "an alert wants it"), self._sample(exact=True))

    def _apply(self, step: memory.Step, before: Sample) -> Sample:
        action = self._actions.get(step.remedy)
        if action is None:
            return before
        if step.remedy == "fewer_slots":
            self.slots_halved += 1
        self.why = step.why
        try:
            action()
        except Exception as exc:
            # A remedy that fails is no reason to stop serving; the next one has its turn.
            self._count(f"memory_remedy_failures_total.{step.remedy}", 1)
            _log.warning("memory: %s failed: %s", step.remedy, type(exc).__name__)
            return before
        after = self._sample(exact=True)
        self._count(f"memory_remedies_total.{step.remedy}", 1)
        _log.warning(
            "memory: %s because %s; now %s", step.remedy, step.why, memory.megabytes(after.uss_bytes)
        )
        return after

    def _sample(self, *, exact: bool = False) -> Sample:
        budget = self._relief.limits.budget_bytes
        size_bytes = self._probe.rss_bytes()
        if exact or (budget and size_bytes >= CLOSE_RATIO * budget):
            size_bytes = self._probe.uss_bytes()
        found = self._system.memory()
        pressure = self._system.pressure().get("memory", 0.0) if self._config.psi_some_avg10 else 0.0
        return Sample(size_bytes, found[1] if found else 0.0, pressure * 100)


def limits_of(config: MemoryConfig, budget_bytes: int) -> memory.Limits:
    """The numbers of the policy for a process with that budget."""
    return memory.Limits(
        budget_bytes,
        config.system_percent / 100,
        config.system_critical_percent / 100,
        config.psi_some_avg10,
        config.settle_s,
    )


def worker_limits(config: MemoryConfig, workers: int) -> memory.Limits:
    """Those of one of so many workers."""
    try:
        system_bytes = os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES
    except (OSError, ValueError):
        system_bytes = 0
    ratio = config.system_percent / 100
    return limits_of(config, memory.budget(config.worker_budget_bytes, system_bytes, ratio, workers))
