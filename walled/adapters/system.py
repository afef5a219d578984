"""The machine and a process's descriptors, read from /proc. (psutil, for the rest, is behind probe.py.)

May live here: reading and parsing those files. May not: what a number means. What cannot be read is left out.
"""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
RESOURCES = ("cpu", "io", "memory")


class SystemProbe:
    """Keeps the processor times of the last look, for the share in between."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._before: tuple[int, int] | None = None

    def cpu_ratio(self) -> float | None:
        """Share of all processors that was not idle since the last call."""
        try:
            fields = [int(word) for word in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        now = (sum(fields), fields[3] + fields[4])
        before, self._before = self._before, now
        if before is None or now[0] <= before[0]:
            return None
        return 1.0 - (now[1] - before[1]) / (now[0] - before[0])

    def memory(self) -> tuple[float, float] | None:
        """(total bytes, share in use)."""
        found: dict[str, int] = {}
        try:
            for line in (self._proc / "meminfo").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    found[name] = int(rest.split()[0]) * 1024
            total = found["MemTotal"]
            return float(total), 1.0 - found["MemAvailable"] / total
        except (OSError, ValueError, KeyError, ZeroDivisionError):
            return None

    def pressure(self) -> dict[str, float]:
        """Share of the last 10 s in which somebody waited for a resource; empty without PSI."""
        found = {}
        for resource in RESOURCES:
            try:
                words = (self._proc / "pressure" / resource).read_text().split()
                found[resource] = float(words[1].removeprefix("avg10=")) / 100
            except (OSError, ValueError, IndexError):
                continue
        return found

    def descriptors(self, pid: int) -> tuple[int, int] | None:
        """(open, limit) of a process."""
        try:
            count = len(os.listdir(self._proc / str(pid) / "fd"))
            for line in (self._proc / str(pid) / "limits").read_text().splitlines():
                if line.startswith("Max open files"):
                    return count, int(line.split()[3])
        except (OSError, ValueError, IndexError):
            pass
        return None
