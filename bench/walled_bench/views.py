"""What `walled-ctl top` and `stat` cost: processor time on a terminal, beside a daemon under load.

May live here: this measurement. May not: starting the daemon (daemon.py), printing.

The verb runs on a pseudo-terminal of the size, in a process of its own; its processor time is the kernel's,
counted from the moment its numbers are there, so that starting Python is not in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator

import psutil
from walled_client import Client, WalledError

from walled_bench.daemon import Daemon, scripted
from walled_bench.figures import Figure, figure

GOAL_PERCENT = 2.0
WATCH_S = 30.0
CALLERS = 4
PAUSE_S = 0.05
BEGIN_LIMIT_S = 30.0
SIZES = ((80, 24), (200, 50))
_PROGRAM = "import os; os.login_tty(0); from walled_client.ctl import main; main()"


def measure(quick: bool = False) -> list[Figure]:
    """`top` at both sizes, then `stat`, one after the other in the same daemon."""
    watch_s = 1.0 if quick else WATCH_S
    figures = []
    with Daemon(scripted(workers=2, slots=4, first_token_s=0.05)) as daemon, _load(daemon):
        for columns, rows in SIZES:
            share, kib_per_s = _watched(daemon, ("top",), "processes", columns, rows, watch_s)
            name = f"top at {columns} x {rows}"
            figures.append(
                figure(f"{name}: share of a core", share, "%", at_most=GOAL_PERCENT, n=round(watch_s))
            )
            figures.append(figure(f"{name}: written to the terminal", kib_per_s, "KiB/s", n=round(watch_s)))
        share, _ = _watched(daemon, ("stat", "--count", "100000"), "/4", 100, 24, watch_s)
        figures.append(figure("stat: share of a core", share, "%", at_most=GOAL_PERCENT, n=round(watch_s)))
    return figures


@contextlib.contextmanager
def _load(daemon: Daemon) -> Iterator[None]:
    """Some forty requests a second, a few of which fail, so that there is something to be seen."""
    over = threading.Event()

    def ask(caller: int) -> None:
        with Client(run_dir=daemon.run_dir, cache=False, retries=0) as client:
            number = 0
            while not over.wait(PAUSE_S):
                number += 1
                fault = "\n!fail backend_error" if number % 20 == 0 else ""
                with contextlib.suppress(WalledError):
                    client.chat(f"caller {caller} question {number % 50}{fault}", temperature=0)

    callers = [threading.Thread(target=ask, args=(caller,)) for caller in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        over.set()
        for caller in callers:
            caller.join()


def _watched(
    daemon: Daemon, verb: tuple[str, ...], words: str, columns: int, rows: int, watch_s: float
) -> tuple[float, float]:
    """Percent of a core, and KiB a second, from the moment `words` are on the terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "--run-dir", str(daemon.run_dir), *verb],
        stdin=slave, stdout=slave, stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows)},
    )  # fmt: skip
    os.close(slave)
    reader = _Reader(master, words.encode())
    try:
        if not reader.begun.wait(BEGIN_LIMIT_S):
            raise RuntimeError(f"walled-ctl {verb[0]} showed nothing within {BEGIN_LIMIT_S:g} s")
        probe = psutil.Process(process.pid)
        before, began_s, read = probe.cpu_times(), time.monotonic(), reader.bytes
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(watch_s)
            raise RuntimeError(f"walled-ctl {verb[0]} ended by itself")
        after, took_s = probe.cpu_times(), time.monotonic() - began_s
        used_s = after.user + after.system - before.user - before.system
        return 100 * used_s / took_s, (reader.bytes - read) / 1024 / took_s
    finally:
        process.kill()
        process.wait()
        reader.thread.join()
        os.close(master)


class _Reader:
    """Reads what is drawn, as a terminal would."""

    def __init__(self, master: int, words: bytes) -> None:
        self._master, self._words = master, words
        self.begun = threading.Event()
        self.bytes = 0
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        seen = b""
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return  # the other side is closed
            if not data:
                return
            self.bytes += len(data)
            if not self.begun.is_set():
                seen = (seen + data)[-65536:]
                if self._words in seen:
                    self.begun.set()
