"""sd_notify: telling systemd what state the daemon is in.

May live here: the datagrams of sd_notify(3). May not: when they are due (supervisor.py). Without
NOTIFY_SOCKET every call does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """The way to the service manager, if there is one. Never blocks, never fails."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] in ("/", "@"):
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self.watchdog_s = self._watchdog_s(environment)
        """Seconds between the signs of life systemd wants (half its limit); 0 when it wants none."""

    def _watchdog_s(self, environment: Mapping[str, str]) -> float:
        limit_us, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        if self._socket is None or not limit_us.isdigit() or pid not in ("", str(os.getpid())):
            return 0.0
        return int(limit_us) / 1e6 / 2

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        # Type=notify-reload wants to know that READY=1 comes after this instant.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        data = "\n".join(line.replace("\n", " ") for line in lines).encode()
        with contextlib.suppress(OSError):  # a deaf service manager must not stop the daemon
            self._socket.sendto(data, self._address)
