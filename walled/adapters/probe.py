"""What the operating system says of processes: the only door to psutil.

May live here: samples of memory and processor time. May not: what a sample means.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psutil

UNREADABLE = (psutil.Error, OSError)
"""A process that has ended, or a prober that has no descriptor left to look with."""


class ProcessSample(NamedTuple):
    """One process at one moment."""

    pid: int
    name: str
    """Its title without "walled: ": "broker", "worker 2"."""
    uss_bytes: int
    """Memory that is this process's alone and would be free without it; 0 when it may not be read."""
    rss_bytes: int
    cpu_s: float
    """Processor time used so far, user and system."""
    threads: int


class FamilyProbe:
    """Samples a process and its children; keeps psutil's objects, which cost more to make than to ask."""

    def __init__(self, parent_pid: int) -> None:
        self._parent_pid = parent_pid
        self._known: dict[int, psutil.Process] = {}

    def sample(self) -> list[ProcessSample]:
        """Parent and children as they are now; those that just ended are left out."""
        try:
            parent = psutil.Process(self._parent_pid)
            family = [parent, *parent.children()]
        except UNREADABLE:
            return []
        # A process that is known stays the same object; psutil compares pid and start time.
        self._known = {p.pid: self._known[p.pid] if self._known.get(p.pid) == p else p for p in family}
        found = (_sample(process) for process in self._known.values())
        return [sample for sample in found if sample is not None]


def _sample(process: psutil.Process) -> ProcessSample | None:
    try:
        with process.oneshot():
            memory = process.memory_info()
            cpu = process.cpu_times()
            title = " ".join(process.cmdline()[:1])
            return ProcessSample(
                process.pid,
                title.removeprefix("walled: ").strip() or process.name(),
                _uss_bytes(process),
                memory.rss,
                round(cpu.user + cpu.system, 3),
                process.num_threads(),
            )
    except UNREADABLE:
        return None


def _uss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.AccessDenied:
        return 0


def plain(samples: list[ProcessSample]) -> dict[str, Any]:
    """The samples as a map for the wire."""
    return {"processes": [sample._asdict() for sample in samples]}
