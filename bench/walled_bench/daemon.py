"""A daemon of our own for one bench: temporary directories, a configuration, readiness, stopping, accounting.

May live here: starting and stopping the daemon from outside, as a service manager would, and reading its
processes. May not: load.

Readiness is learned as systemd learns it, by a datagram to NOTIFY_SOCKET. The daemon gets a session of its
own: whatever of it is left after the end is found by that session, seen before or not.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from walled.adapters.probe import FamilyProbe, ProcessSample

START_LIMIT_S = 60.0
STOP_LIMIT_S = 15.0
ORPHAN_LIMIT_S = 2.0
LOG_TAIL_BYTES = 2000
_OUR_VARIABLES = ("WALLED_RUN_DIR", "WALLED_CACHE_DIR", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class DaemonFailed(Exception):
    """The daemon under test did not start, or did not stop; the message ends with the tail of its log."""


def scripted(**backend: Any) -> dict[str, Any]:
    """A configuration with the scripted backend; `backend`: its keys. No template takes an error's place."""
    return {
        "backend": "script",
        "daemon": {"allow_scripted": True, "log_level": "warning"},
        "backends": {"script": {"kind": "scripted", **backend}},
        "templates": {"builtin": False},
    }


class Daemon:
    """One run of the daemon, from spawn to the proof that nothing of it is left. A context manager."""

    def __init__(
        self, config: Mapping[str, Any], *, directory: Path | None = None, disk: Path | None = None
    ) -> None:
        """`directory`: keep run directory and cache there (it is not removed); default: a temporary one.

        `disk`: run directory and cache are there instead; configuration and log stay in `directory`.
        """
        self._config = config
        self._scratch = tempfile.TemporaryDirectory(prefix="wb-") if directory is None else None
        self.directory = directory if self._scratch is None else Path(self._scratch.name)
        assert self.directory is not None
        self.run_dir = (disk or self.directory) / "run"
        self.cache_dir = (disk or self.directory) / "cache"
        self._log_path = self.directory / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._probe: FamilyProbe | None = None
        self.ready_s = 0.0
        """From spawn to READY=1."""

    # --- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process is not None:
                left = self.stop()
                if left and error is None:
                    raise DaemonFailed(f"processes {left} outlived the daemon")
        finally:
            self._remove()

    def start(self) -> None:
        """Spawn and wait for READY=1. Raises DaemonFailed."""
        assert self.directory is not None
        path = self.configure(self._config)
        environment = {name: value for name, value in os.environ.items() if name not in _OUR_VARIABLES}
        notify = self.directory / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear, self._log_path.open("ab") as log:
            ear.bind(str(notify))
            started_s = time.monotonic()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "walled", "--config", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "NOTIFY_SOCKET": str(notify)},
                start_new_session=True,
            )
            try:
                self._await_ready(ear)
                self.ready_s = time.monotonic() - started_s
            except BaseException:
                self.stop()
                raise
            finally:
                notify.unlink()
        self._probe = FamilyProbe(self.pid)

    def configure(self, config: Mapping[str, Any]) -> Path:
        """Write the configuration, for the next start or for SIGHUP; where it is."""
        assert self.directory is not None
        self._config = config
        path = self.directory / "walled.toml"
        plain = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
        tables = {name: dict(value) for name, value in config.items() if isinstance(value, Mapping)}
        tables.setdefault("daemon", {})["run_dir"] = str(self.run_dir)
        tables.setdefault("cache", {})["path"] = str(self.cache_dir)
        path.write_text(toml({**plain, **tables}))
        return path

    def _await_ready(self, ear: socket.socket) -> None:
        assert self._process is not None
        end_s = time.monotonic() + START_LIMIT_S
        sentinel = os.pidfd_open(self._process.pid)
        try:
            poll = select.poll()
            poll.register(ear, select.POLLIN)
            poll.register(sentinel, select.POLLIN)
            while (left_s := end_s - time.monotonic()) > 0:
                ready = {fd for fd, _ in poll.poll(left_s * 1000)}
                if ear.fileno() in ready:
                    if b"READY=1" in ear.recv(4096).split(b"\n"):
                        return
                elif sentinel in ready:
                    raise DaemonFailed(f"it ended while starting\n{self.log_tail()}")
        finally:
            os.close(sentinel)
        raise DaemonFailed(f"not ready within {START_LIMIT_S:g} s\n{self.log_tail()}")

    def stop(self) -> list[int]:
        """SIGTERM, wait, and what is left of its session (killed then); normally nothing."""
        process, self._process = self._process, None
        if process is None:
            return []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return self._left(process)

    def kill(self) -> list[int]:
        """SIGKILL to the supervisor; what is left of its session after the time it has to vanish."""
        process, self._process = self._process, None
        if process is None:
            return []
        process.kill()
        return self._left(process)

    def _left(self, process: subprocess.Popen[bytes]) -> list[int]:
        self.exit_status = process.wait()
        end_s = time.monotonic() + ORPHAN_LIMIT_S
        left = members(process.pid)
        for pid in left:
            # A child that was told to die may still be on its way; wait for that and not for the clock.
            _await_end(pid, end_s - time.monotonic())
        left = members(process.pid)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    exit_status: int | None = None

    @property
    def running(self) -> bool:
        """Started, and neither stopped nor killed by us."""
        return self._process is not None

    def ended(self) -> int | None:
        """The exit status of a daemon that ended by itself; None while it runs."""
        return None if self._process is None else self._process.poll()

    def _remove(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()

    # --- looking ---------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def sample(self) -> dict[str, ProcessSample]:
        """Memory and processor time of every process, by title (supervisor, broker, monitor, worker N)."""
        assert self._probe is not None
        return {sample.name: sample for sample in self._probe.sample()}

    def pids(self) -> dict[str, int]:
        """Its processes by title, those that have one yet."""
        found = {}
        for pid in members(self.pid) if self._process is not None else ():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode(errors="replace")
                if words.startswith("walled: "):
                    found[words.removeprefix("walled: ")] = pid
        return found

    def log_tail(self) -> str:
        """The end of what it logged."""
        with contextlib.suppress(OSError):
            return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        return ""


def cpu_s(before: Mapping[str, ProcessSample], after: Mapping[str, ProcessSample], role: str) -> float:
    """Processor time between two samples of the processes whose title begins with `role`."""
    return sum(
        sample.cpu_s - before[name].cpu_s
        for name, sample in after.items()
        if name.startswith(role) and name in before and before[name].pid == sample.pid
    )


def members(session: int) -> list[int]:
    """Living processes of a session (zombies are not living)."""
    found = []
    for pid, fields in _processes():
        if int(fields[3]) == session and fields[0] not in ("Z", "X"):
            found.append(pid)
    return found


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Every process and the fields of its stat file after the name: state, parent, group, session, ..."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = Path(entry.path, "stat").read_text(errors="replace")
                yield int(entry.name), text.rpartition(")")[2].split()


def _await_end(pid: int, timeout_s: float) -> None:
    try:
        sentinel = os.pidfd_open(pid)
    except OSError:
        return
    try:
        select.select([sentinel], [], [], max(0.0, timeout_s))
    finally:
        os.close(sentinel)


def toml(values: Mapping[str, Any], path: str = "") -> str:
    """Plain values as TOML: text, numbers, truth values, lists of these, nested tables."""
    lines = [
        f"{_key(name)} = {_value(value)}" for name, value in values.items() if not isinstance(value, Mapping)
    ]
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = f"{path}{_key(name)}"
            lines += [f"[{inner}]", toml(value, f"{inner}.")]
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else msgspec.json.encode(name).decode()


def _value(value: Any) -> str:
    # JSON's text, numbers, truth values and lists of them are TOML's too.
    return msgspec.json.encode(value).decode()
