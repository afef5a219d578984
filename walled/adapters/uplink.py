"""A worker's way to the broker: the mailbox that wakes its loop, the connection that is renewed when lost.

May live here: waiting, dialling, keeping what could not be sent yet. May not: what the messages mean.

A lost broker is never spoken to again over the old socket: a new socket with a new identity is a new peer,
and no message of the old life can reach the new one.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import Any

from walled import protocol as wire
from walled.adapters.sockets import ConnectionEvent, Hub, Poller, Port

LINGER_S = 0.2
"""Longest time the last messages may take to the broker."""

_log = logging.getLogger("walled.worker")


class Mailbox:
    """Events from any thread to the loop; wakes it only when it sleeps."""

    def __init__(self) -> None:
        self.events: deque[Any] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.asleep = False
        """The loop waits; awake, it looks at `events` before it waits again."""

    def fileno(self) -> int:
        return self._fd

    def post(self, event: Any) -> None:
        """Thread-safe; costs a system call only when the loop sleeps."""
        self.events.append(event)
        self.wake()

    def wake(self) -> None:
        """Have the loop look at `events`, if it sleeps."""
        if self.asleep:
            self.asleep = False
            os.eventfd_write(self._fd, 1)

    def wait(self, poller: Poller, timeout_s: float) -> set[Port | int]:
        """Wait on `poller`, which has our descriptor; not at all while there are events."""
        self.asleep = True
        # An event posted before the flag was up is seen here; one posted after it wakes the poll.
        ready = poller.wait(0.0 if self.events else timeout_s)
        self.asleep = False
        if self._fd in ready:
            os.eventfd_read(self._fd)
        return ready

    def close(self) -> None:
        os.close(self._fd)


class Uplink:
    """The DEALER to the broker and what waits to be sent on it."""

    def __init__(self, hub: Hub, endpoint: str, fds: list[int]) -> None:
        self._hub = hub
        self._endpoint = endpoint
        self._fds = fds
        self._outbox: deque[list[bytes]] = deque()
        self.up = False
        """The broker is connected; nothing is kept for it before."""
        self._dial()

    def _dial(self) -> None:
        port = self._hub.dealer(self._endpoint, identity=os.urandom(16))
        port.watch()
        port.connect()
        self.port = port
        self.poller = Poller([port], self._fds)

    def redial(self, why: str) -> None:
        """Give the connection up and begin a new one."""
        if self.up:
            _log.warning("%s; connecting again", why)
        self.up = False
        self._outbox.clear()
        self.port.close()
        self._dial()

    def changes(self) -> list[ConnectionEvent]:
        """What happened to the connection."""
        return self.port.connection_events()

    def put(self, kind: bytes, request_id: bytes, header: Any = None, payload: bytes = b"") -> None:
        """Have a message sent at the end of this turn; dropped when nobody is connected."""
        if self.up:
            self._outbox.append(wire.frames(kind, request_id, header, payload))

    @property
    def blocked(self) -> bool:
        """The broker does not take what there is to send."""
        return bool(self._outbox)

    def flush(self) -> None:
        """Send all that can be sent now."""
        outbox, send = self._outbox, self.port.send
        while outbox and send(outbox[0]):
            outbox.popleft()

    def close(self) -> None:
        """What has been sent may still be on its way through the I/O thread: give it LINGER_S."""
        self.port.close(linger_s=LINGER_S)
