"""OwnDaemon: a daemon started for one program's use, in a directory of its own, gone with it.

May live here: starting `python -m walled` as a subprocess, waiting until it is ready, stopping it. May not:
asking it anything.

Readiness is the daemon's own word: it gets a NOTIFY_SOCKET, as from systemd, and says READY=1 after a
worker has really answered. It runs in a session of its own, so that Ctrl-C in the terminal does not reach
it, and the kernel kills it if this process dies without stopping it.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from walled.errors import InternalError, Unavailable
from walled_client.discovery import find

_START = """\
import runpy, sys
from walled.adapters.process import die_with_parent
die_with_parent()
sys.argv[0] = "walled"
runpy.run_module("walled", run_name="__main__", alter_sys=True)
"""
STOP_GRACE_S = 40.0
"""Longest time a stop may take: draining (30 s by default) and some."""
LOG_TAIL_BYTES = 4000


class OwnDaemon:
    """Use as a context manager; `status` is the daemon's exit status after it."""

    def __init__(self, config: Path | None = None, *, timeout_s: float = 120.0) -> None:
        self._config = config
        self._timeout_s = timeout_s
        self._directory = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.run_dir = Path()
        self.status: int | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when the daemon is ready; else raises Unavailable with the end of its log."""
        self._directory = Path(tempfile.mkdtemp(prefix="walled-"))
        self.run_dir = self._directory / "run"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notices:
                address = self._directory / "notify"
                notices.bind(os.fspath(address))
                self._spawn(address)
                self._await_ready(notices)
        except BaseException:
            self.stop()
            raise

    def _spawn(self, notify: Path) -> None:
        environment = {
            **os.environ,
            "WALLED_RUN_DIR": os.fspath(self.run_dir),
            "WALLED_CACHE_DIR": os.fspath(self._directory / "cache"),
            "NOTIFY_SOCKET": os.fspath(notify),
        }
        arguments = ["--config", os.fspath(self._config)] if self._config else []
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _await_ready(self, notices: socket.socket) -> None:
        process = self._process
        assert process is not None
        until_s = time.monotonic() + self._timeout_s
        sentinel = os.pidfd_open(process.pid)
        try:
            while True:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise Unavailable(
                        f"the daemon was not ready within {self._timeout_s:g} s\n{self._log_tail()}"
                    )
                ready, _, _ = select.select([notices.fileno(), sentinel], [], [], left_s)
                if notices.fileno() in ready and b"READY=1" in notices.recv(65536).splitlines():
                    return
                if sentinel in ready:
                    code = process.wait()
                    raise Unavailable(
                        f"the daemon ended with status {code} before it was ready\n{self._log_tail()}"
                    )
        finally:
            os.close(sentinel)

    def stop(self) -> int | None:
        """Let it drain and end, remove its directory; its exit status."""
        process, self._process = self._process, None
        try:
            if process is not None:
                process.terminate()
                try:
                    self.status = process.wait(STOP_GRACE_S)
                except subprocess.TimeoutExpired:
                    process.kill()  # its children see their pipe end and leave
                    process.wait()
                    raise InternalError(
                        f"the daemon did not stop within {STOP_GRACE_S:g} s and was killed"
                    ) from None
                except BaseException:
                    process.kill()
                    process.wait()
                    raise
        finally:
            if self._directory != Path():
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = Path()
        return self.status

    @property
    def endpoint(self) -> str:
        """The client socket."""
        return find(self.run_dir).client

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    def _log_tail(self) -> str:
        try:
            return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()
        except OSError:
            return ""
