"""Datagrams on a Unix socket: how clients tell the monitor something without being connected to it.

May live here: binding, sending, receiving. May not: what is told.

A client that only reads the cache has no connection and must not need one in order to be counted. A datagram
needs none: it costs a system call, nobody waits, and a monitor that is replaced gets the next one.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from walled.errors import BootError

MAX_BYTES = 64 * 1024
"""Of one datagram; what is longer arrives cut, and is refused."""


class Letterbox:
    """The bound end. The caller holds the run directory's lock: a file that is here is a dead monitor's."""

    def __init__(self, endpoint: str, mode: int = 0o660) -> None:
        self._path = Path(endpoint.removeprefix("ipc://"))
        self._mode = mode
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._bind()

    def _bind(self) -> None:
        try:
            self._socket.bind(str(self._path))
            self._path.chmod(self._mode)
        except OSError as exc:
            self._socket.close()
            raise BootError(f"{self._path}: cannot be bound: {exc}") from None

    def bind_again(self) -> None:
        """Make the socket's file anew when somebody has deleted it. Raises BootError."""
        if not self._path.exists():
            self._socket.close()
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._bind()

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, limit: int) -> list[bytes]:
        """Up to `limit` datagrams that have come, without waiting."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(found) < limit:
                found.append(self._socket.recv(MAX_BYTES + 1))
        return found

    def close(self) -> None:
        self._socket.close()


class Pen:
    """The sending end. Safe after a fork: nothing is connected."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def send(self, endpoint: str, data: bytes) -> bool:
        """Without waiting; False when nobody takes it now."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.sendto(data, endpoint.removeprefix("ipc://"))
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
