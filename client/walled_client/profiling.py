"""py-spy on one process of the daemon: where its time goes, without stopping or changing it.

May live here: finding py-spy, running it, adding up what it saw. May not: choosing the process, printing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

from walled.errors import Unavailable, Unsupported

Format = Literal["flamegraph", "speedscope", "raw"]
SLACK_S = 30.0
"""py-spy reads the symbols of the process before it begins, and writes after it has ended."""


WAITS = (
    "Condition.wait (",
    "Event.wait (",
    "Poller.wait (",
    "EpollSelector.select (",
    "PollSelector.select (",
)
"""Functions that wait. py-spy leaves out threads that the kernel calls asleep at the moment of a sample, and
takes one that is just being put to sleep for a busy one."""


class Hot(NamedTuple):
    """A function, and its share of the samples."""

    function: str
    own: float
    """While it ran itself."""
    total: float
    """While it was on the stack."""


def program() -> str:
    """Path of py-spy: beside this Python, or on PATH. Raises Unsupported with what to install."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise Unsupported("profile needs py-spy, which is not installed: pip install 'walled[profile]'")
    return found


def record(
    pid: int, duration_s: float, rate_hz: int, output: Path, form: Format, native: bool = False
) -> None:
    """Sample for so long and write the file; `native`: functions of C and C++ too. Raises Unavailable with
    py-spy's own words."""
    _run(
        ["record", "--pid", str(pid), "--duration", f"{max(1, round(duration_s))}", "--rate", str(rate_hz),
         "--format", form, "--output", str(output), *(["--native"] if native else [])],
        duration_s + SLACK_S,
    )  # fmt: skip


def hottest(pid: int, duration_s: float, rate_hz: int, native: bool = False) -> tuple[list[Hot], int]:
    """The functions that took the time, and how many samples there were; an idle process gives none."""
    with tempfile.TemporaryDirectory(prefix="walled-profile-") as directory:
        output = Path(directory) / "raw"
        record(pid, duration_s, rate_hz, output, "raw", native)
        return added_up(output.read_text(encoding="utf-8", errors="replace"))


def added_up(raw: str) -> tuple[list[Hot], int]:
    """Of collapsed stacks: a line is `outermost;...;innermost COUNT`. The one with most time of its own
    comes first."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    samples = 0
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if not count.isdigit() or not stack:
            continue
        frames = [frame.rpartition(":")[0] + ")" if ":" in frame else frame for frame in stack.split(";")]
        frames = [frame for frame in frames if not frame.startswith(("process ", "thread "))]
        if not frames or any(frame.startswith(WAITS) for frame in frames):
            continue
        samples += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            total[frame] += int(count)
    rows = [Hot(name, own[name] / samples, count / samples) for name, count in total.items()]
    return sorted(rows, key=lambda row: (-row.own, -row.total, row.function)), samples


def stacks(pid: int) -> str:
    """What every thread is doing at this moment."""
    return _run(["dump", "--pid", str(pid)], SLACK_S)


def _run(arguments: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            [program(), *arguments], capture_output=True, text=True, timeout=timeout_s, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unavailable(f"py-spy did not end within {timeout_s:g} s") from None
    except OSError as exc:
        raise Unavailable(f"py-spy cannot be run: {exc.strerror}") from None
    if done.returncode == 0:
        return done.stdout
    words = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
    if "ermission" in words or "not permitted" in words:
        raise Unavailable(
            "py-spy may not look into that process: run walled-ctl as the daemon's user with "
            "kernel.yama.ptrace_scope=0, or as root (in a container with CAP_SYS_PTRACE)"
        )
    raise Unavailable(f"py-spy: {words[:400]}")
