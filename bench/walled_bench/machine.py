"""What a figure was measured on: cores, processor, load, versions.

May live here: reading facts about this machine. May not: judging them.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("pyzmq", "lmdb", "msgspec", "xllamacpp")


def load() -> str:
    """The load averages of 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def facts() -> list[tuple[str, str]]:
    """Name and value, for the head of a report."""
    return [
        ("cores", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}"),
        ("processor", _processor()),
        ("kernel", platform.release()),
        ("python", sys.version.split()[0]),
        ("packages", ", ".join(f"{name} {_version(name)}" for name in ("walled", *PACKAGES))),
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
