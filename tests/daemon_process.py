"""A real daemon for tests: started as a person starts it, watched through log, sentinels and sockets.

Nothing here sleeps: every wait is on a descriptor (log pipe, pidfd, socket) with a deadline.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from walled import protocol
from walled.adapters.sockets import Hub, Poller

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 20.0
READY_LINE = re.compile(r"^walled \S+ ready: ")

SCRIPTED = """
backend = "s"
[daemon]
run_dir = "{run_dir}"
allow_scripted = true
{daemon}
[cache]
path = "{cache_dir}"
[templates]
builtin = {templates}
[supervisor]
stop_timeout_s = 3.0
{supervisor}
[backends.s]
kind = "scripted"
{backend}
"""


def write_config(
    directory: Path,
    *,
    daemon: str = "",
    supervisor: str = "",
    backend: str = "workers = 2",
    templates: bool = False,
) -> Path:
    """A configuration with scripted workers and everything else below `directory`. Without templates an
    error stays an error."""
    path = directory / "walled.toml"
    path.write_text(
        SCRIPTED.format(
            run_dir=directory / "run",
            cache_dir=directory / "cache",
            daemon=daemon,
            supervisor=supervisor,
            backend=backend,
            templates=str(templates).lower(),
        )
    )
    return path


def ended(pid: int, timeout_s: float) -> bool:
    """Whether a process, anybody's, has ended within the time (a zombie has)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout_s)[0])
    finally:
        os.close(fd)


class Daemon:
    """A running `walled --config FILE`, or another command line that behaves so."""

    def __init__(
        self, config: Path, *, command: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> None:
        self.config = config
        self.run_dir = config.parent / "run"
        self.lines: list[str] = []
        self._rest = b""
        self.process = subprocess.Popen(
            [*(command or (sys.executable, "-m", "walled")), "--config", str(config)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stderr is not None
        self._stderr = self.process.stderr
        self._seen = 0
        self.born: dict[int, str] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    # --- the log -----------------------------------------------------------------------------------

    def until(self, pattern: str, timeout_s: float = DEADLINE_S) -> re.Match[str]:
        """The next matching line of the log after the last one found. Fails when there is none in time."""
        found = self.look_for(pattern, timeout_s)
        if found is None:
            raise AssertionError(
                f"no line like {pattern!r} within {timeout_s} s in:\n" + "\n".join(self.lines)
            )
        return found

    def look_for(self, pattern: str, timeout_s: float) -> re.Match[str] | None:
        """As `until`, but None when there is none; then nothing has been passed over."""
        until_s = time.monotonic() + timeout_s
        looked = self._seen
        while True:
            while looked < len(self.lines):
                looked += 1
                match = re.search(pattern, self.lines[looked - 1])
                if match:
                    self._seen = looked
                    return match
            if not self._read(until_s - time.monotonic()):
                return None

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._stderr], [], [], max(0.0, timeout_s))[0]:
            return False
        data = os.read(self._stderr.fileno(), 65536)
        if not data:
            return False
        *whole, self._rest = (self._rest + data).split(b"\n")
        self.lines += [line.decode() for line in whole]
        return True

    def ready(self) -> Daemon:
        if not any(READY_LINE.search(line) for line in self.lines):
            self.until(READY_LINE.pattern)
        return self

    def complete(self, processes: int) -> dict[str, int]:
        """Ready, and that many children have said so; returns them."""
        self.ready()
        while sum(" ready (pid " in line for line in self.lines) < processes:
            if not self._read(DEADLINE_S):
                raise AssertionError(f"not {processes} children ready:\n" + "\n".join(self.lines))
        return self.children()

    # --- processes ---------------------------------------------------------------------------------

    def children(self) -> dict[str, int]:
        """Title without `walled: ` -> pid, of the children that have their title."""
        found = {}
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.Error):
                title = " ".join(child.cmdline()).strip()
                if title.startswith("walled: "):
                    found[title.removeprefix("walled: ")] = child.pid
        return found

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """The exit status; reads the log to its end."""
        until_s = time.monotonic() + timeout_s
        while self._read(until_s - time.monotonic()):
            pass
        return self.process.wait(max(0.1, until_s - time.monotonic()))

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """End it whatever state it is in, and everybody it started."""
        pids = []
        with contextlib.suppress(psutil.Error):
            pids = [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        if self.process.poll() is None:
            self.process.kill()
            self.process.send_signal(signal.SIGCONT)
        self.process.wait()
        self._stderr.close()
        for pid in pids:
            if not ended(pid, 5.0):
                os.kill(pid, signal.SIGKILL)

    # --- the control socket ------------------------------------------------------------------------

    def control(self, op: str, worker: int = -1, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """One verb of walled-ctl."""
        hub = Hub()
        try:
            port = hub.dealer(f"ipc://{self.run_dir}/control.sock")
            port.connect()
            poller, until_s = Poller([port]), time.monotonic() + timeout_s
            request = protocol.pack_control(protocol.ControlRequest(op=op, worker=worker))
            sent = False
            while time.monotonic() < until_s:
                # Nothing says "connected" but that a send is taken.
                sent = sent or port.send(protocol.frames(protocol.CONTROL, b"1", None, request))
                poller.wait(0.02 if not sent else until_s - time.monotonic())
                for parts in port.receive():
                    return protocol.unpack_map(protocol.parse(parts).payload)
            raise AssertionError(f"no reply to {op} within {timeout_s} s")
        finally:
            hub.close()


@contextlib.contextmanager
def running(config: Path, **more: Any) -> Iterator[Daemon]:
    """A daemon that is gone, with all its children, when the block ends."""
    daemon = Daemon(config, **more)
    try:
        yield daemon
    finally:
        daemon.close()
