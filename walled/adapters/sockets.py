"""The only door to ZeroMQ: sockets with every option set as DESIGN demands, polling, connection events.

May live here: creating, binding, connecting, sending, receiving, polling. May not: any meaning of a frame
(protocol.py) and any decision.

Traps this module holds shut (each has a test in tests/adapters/test_sockets.py):
- a ROUTER drops silently at its high-water mark or to an unknown peer -> ROUTER_MANDATORY and DONTWAIT, and
  `send_to` says SENT, FULL or GONE;
- a DEALER queues to nobody -> IMMEDIATE=1, SNDTIMEO=0, LINGER=0;
- MAXMSGSIZE is unlimited by default -> capped on every socket, HANDSHAKE_IVL 2 s;
- ROUTER_HANDOVER stays 0, so that a second peer of the same identity cannot take over the first;
- CURVE without ZAP accepts any key, so TCP is refused until both are here.

Frames go through the compiled base class of pyzmq: its Python wrappers cost 8 us a message, this 1 to 4.
"""

from __future__ import annotations

import enum
import math
import os
import select
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import zmq
import zmq.backend

from walled.adapters import descriptors
from walled.errors import BootError, DaemonUnavailable
from walled.protocol import MAX_PAYLOAD_BYTES

_send = zmq.backend.Socket.send
_recv = zmq.backend.Socket.recv
_get: Callable[[Any, int], int] = zmq.backend.Socket.get  # type: ignore[assignment]
_MONITOR_EVENT = struct.Struct("=hi")
_MORE = int(zmq.SNDMORE | zmq.DONTWAIT)
_LAST = int(zmq.DONTWAIT)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)

NEEDED_DESCRIPTORS = 16
"""Of a hub with a connection; twice what was measured."""
MAX_FRAMES = 16
"""Frames of one message that are kept; the rest of a longer one is read and dropped."""


class SendResult(enum.Enum):
    """What became of a message handed to a ROUTER."""

    SENT = 1
    FULL = 2
    """The peer's queue is at its high-water mark: it does not read. Keep the message, bounded, or cancel."""
    GONE = 3
    """No such peer is connected."""


class ConnectionEvent(enum.Enum):
    """What happened to a connecting socket's connection."""

    UP = 1
    DOWN = 2


class Hub:
    """A ZeroMQ context and the sockets made from it. One per process; create it after spawn.

    `close` closes all sockets without lingering and cannot hang.
    """

    def __init__(self, io_threads: int = 1) -> None:
        if not descriptors.available(NEEDED_DESCRIPTORS):
            # libzmq would end the process, and it may be somebody else's.
            raise DaemonUnavailable(
                "this process has no file descriptors left to connect with; close some or raise `ulimit -n`"
            )
        self._context = zmq.Context(io_threads)
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self.pid = os.getpid()

    def router(self, endpoint: str, *, hwm: int, max_bytes: int, mode: int = 0o660) -> Port:
        """A bound ROUTER. `hwm`: messages kept for one peer that does not read."""
        socket = self._socket(zmq.ROUTER, hwm, max_bytes)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        return self._bound(socket, endpoint, mode)

    def dealer(
        self, endpoint: str, *, hwm: int = 1000, max_bytes: int = MAX_PAYLOAD_BYTES, identity: bytes = b""
    ) -> Port:
        """A connecting DEALER; it connects and reconnects in the background."""
        socket = self._socket(zmq.DEALER, hwm, max_bytes)
        if identity:
            socket.setsockopt(zmq.ROUTING_ID, identity)
        return self._connected(socket, endpoint)

    def push(self, endpoint: str, *, hwm: int = 1000) -> Port:
        """A connecting PUSH: messages are dropped (send returns False) when nobody takes them."""
        return self._connected(self._socket(zmq.PUSH, hwm, MAX_PAYLOAD_BYTES), endpoint)

    def pull(self, endpoint: str, *, hwm: int = 10_000, max_bytes: int = 1 << 20) -> Port:
        """A bound PULL."""
        return self._bound(self._socket(zmq.PULL, hwm, max_bytes), endpoint, 0o600)

    def publisher(self, endpoint: str, *, hwm: int = 1000, mode: int = 0o660) -> Port:
        """A bound XPUB: `receive` yields the subscriptions, so that a late one can get the last value."""
        socket = self._socket(zmq.XPUB, hwm, 4096)
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        return self._bound(socket, endpoint, mode)

    def subscriber(self, endpoint: str, topics: Iterable[bytes], *, hwm: int = 10_000) -> Port:
        """A connecting SUB; `topics` are prefixes."""
        socket = self._socket(zmq.SUB, hwm, MAX_PAYLOAD_BYTES)
        for topic in topics:
            socket.setsockopt(zmq.SUBSCRIBE, topic)
        return self._connected(socket, endpoint)

    def close(self) -> None:
        """Close everything. In a forked child this does nothing: the sockets are the parent's."""
        if os.getpid() == self.pid:
            self._context.destroy(linger=0)

    def _socket(self, kind: int, hwm: int, max_bytes: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDTIMEO, 0)
        socket.setsockopt(zmq.SNDHWM, hwm)
        socket.setsockopt(zmq.RCVHWM, hwm)
        socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
        # Dead hosts only; a stuck process is found by the application heartbeats.
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        return socket

    def _connected(self, socket: zmq.Socket[bytes], endpoint: str) -> Port:
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        # Trying is cheap on this host, and whoever waits longer than the broker needs to come back is what a
        # caller sees: with 500 ms here a broker that was up again after 0.7 s was found after 1.2 s.
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
        port = Port(socket)
        port.endpoint = endpoint
        return port

    def _bound(self, socket: zmq.Socket[bytes], endpoint: str, mode: int) -> Port:
        path = Path(endpoint.removeprefix("ipc://"))
        if not endpoint.startswith("ipc://"):
            socket.close()
            raise BootError(
                f"{endpoint}: only ipc:// is served; TCP needs CURVE keys, which are not here yet"
            )
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            socket.close()
            raise BootError(f"{path}: exists and is not a socket; remove it or choose another daemon.run_dir")
        try:
            # The caller holds the run directory's lock: a file that is here is a dead daemon's.
            socket.bind(endpoint)
            path.chmod(mode)
        except (zmq.ZMQError, OSError) as exc:
            socket.close()
            raise BootError(f"{endpoint}: cannot be bound: {exc}") from None
        port = Port(socket)
        port.endpoint, port.mode = endpoint, mode
        return port


class Port:
    """One socket. Not thread-safe; a caller that shares it holds a lock around every call."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor: zmq.Socket[bytes] | None = None
        self.endpoint = ""
        self.mode = 0
        """Of the socket's file, where this one is bound."""
        self.touched = True
        """Used since it was last seen empty: its descriptor may stay silent about what has come."""
        self._unheard = True
        """The monitor was not looked at yet: ZeroMQ signals only what comes after a first look."""

    def subscribe(self, topic: bytes) -> None:
        """One more prefix, of a SUB."""
        self._socket.setsockopt(zmq.SUBSCRIBE, topic)

    def connect(self) -> None:
        """Begin to connect; separate from creation so that `watch` sees the first event too."""
        self._socket.connect(self.endpoint)

    def bind_again(self) -> None:
        """Make the socket's file anew when somebody has deleted it; who is connected notices nothing.

        Unbinding first would cut every connection. Raises BootError when it cannot be made.
        """
        path = Path(self.endpoint.removeprefix("ipc://"))
        if path.exists():
            return
        try:
            self._socket.bind(self.endpoint)
            path.chmod(self.mode)
        except (zmq.ZMQError, OSError) as exc:
            raise BootError(f"{self.endpoint}: cannot be bound again: {exc}") from None

    def fileno(self) -> int:
        """For an event loop. It is edge-triggered: after every call drain `receive` until it is empty."""
        return int(self._socket.getsockopt(zmq.FD))

    def readable(self) -> bool:
        return bool(_get(self._socket, _EVENTS) & _POLLIN)

    def writable(self) -> bool:
        """Whether a `send` would be taken: for a DEALER, whether a peer is connected and reads."""
        return bool(_get(self._socket, _EVENTS) & _POLLOUT)

    def receive(self, limit: int = 256) -> list[list[bytes]]:
        """Up to `limit` whole messages that have arrived, without waiting; fewer mean that there are no more.

        Asking for ZMQ_EVENTS first would cost a system call for each message; trying costs one for all.
        """
        socket = self._socket
        messages: list[list[bytes]] = []
        self.touched = True
        try:
            while limit:
                frame = _recv(socket, _LAST, False)
                limit -= 1
                parts = [frame.bytes]
                while frame.more:
                    frame = _recv(socket, _LAST, False)
                    if len(parts) < MAX_FRAMES:
                        parts.append(frame.bytes)
                messages.append(parts)
        except zmq.Again:
            self.touched = False
        return messages

    def send(self, parts: Sequence[bytes]) -> bool:
        """Send whole or not at all; False when nobody takes it now.

        A signal handler that raises (Ctrl-C) gets through, but not in the middle of the message: the next one
        would be taken for the rest of it. Whether this one arrives whole is then not known.
        """
        socket = self._socket
        self.touched = True
        last = len(parts) - 1
        rest = iter(parts[:last])
        ending = False
        try:
            for part in rest:
                _send(socket, part, _MORE)
            ending = True
            _send(socket, parts[last], _LAST)
        except zmq.Again:
            return False
        except BaseException:
            # pyzmq lets handlers run after a frame was taken, so what is left in `rest` is what is missing.
            if not ending:
                for part in rest:
                    _send(socket, part, _MORE)
                _send(socket, parts[last], _LAST)
            raise
        return True

    def send_to(self, identity: bytes, parts: Sequence[bytes]) -> SendResult:
        """Send to one peer of a ROUTER, whole or not at all."""
        socket = self._socket
        self.touched = True
        last = len(parts) - 1
        try:
            # Only the identity frame can be refused; the rest of the message follows it into the same pipe.
            _send(socket, identity, _MORE)
        except zmq.Again:
            return SendResult.FULL
        except zmq.ZMQError as exc:
            if exc.errno == zmq.EHOSTUNREACH:
                return SendResult.GONE
            raise
        for part in parts[:last]:
            _send(socket, part, _MORE)
        _send(socket, parts[last], _LAST)
        return SendResult.SENT

    def watch(self) -> None:
        """Record connection events of a connecting socket from now on; call before `connect`."""
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self._monitor = self._socket.get_monitor_socket(events)

    def monitor_fileno(self) -> int:
        """File descriptor that becomes readable (edge-triggered) when `connection_events` has news."""
        assert self._monitor is not None, "watch() first"
        return int(self._monitor.getsockopt(zmq.FD))

    def connection_events(self) -> list[ConnectionEvent]:
        """What happened to the connection since the last call, in order."""
        if self._monitor is None:
            return []
        found = []
        while _get(self._monitor, _EVENTS) & _POLLIN:
            # By hand: pyzmq's parser imports all of asyncio, a seventh of the time a broker needs to start.
            event, _ = _MONITOR_EVENT.unpack(self._monitor.recv_multipart(zmq.DONTWAIT)[0])
            found.append(ConnectionEvent.DOWN if event == zmq.EVENT_DISCONNECTED else ConnectionEvent.UP)
        self._unheard = False
        return found

    def stirred(self) -> bool:
        """Whether something is here that the descriptors need not tell: see `Poller`."""
        if self._unheard and self._monitor is not None:
            if _get(self._monitor, _EVENTS) & _POLLIN:
                return True
            self._unheard = False
        if self.touched:
            if self.readable():
                return True
            self.touched = False
        return False

    def close(self, linger_s: float = 0.0) -> None:
        """Close; what has been sent but is not on the wire yet has `linger_s` left (Hub.close waits)."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor = None
        self._socket.close(linger=int(linger_s * 1000))


class Poller:
    """Waits on a fixed set of ports and file descriptors.

    A port with `watch` on is also reported (through its own entry) when it has connection events. A port
    may be reported without having anything to receive.

    zmq_poll makes about eight system calls a wait for three sockets. This makes one, and one more for each
    port that was used since it was last found empty: only then may its edge have been consumed. (A descriptor
    tells of what comes after its socket was found empty once, never of what was there before.)
    """

    def __init__(self, ports: Iterable[Port] = (), fds: Iterable[int] = ()) -> None:
        self._ports = list(ports)
        self._owners: dict[int, Port | int] = {fd: fd for fd in fds}
        for port in self._ports:
            self._owners[port.fileno()] = port
            if port._monitor is not None:
                self._owners[port.monitor_fileno()] = port
        self._poll = select.poll()
        for fd in self._owners:
            self._poll.register(fd, select.POLLIN)

    def wait(self, timeout_s: float | None) -> set[Port | int]:
        """The ports and descriptors that are ready; empty after `timeout_s` seconds. None waits for ever."""
        ready: set[Port | int] = set()
        for port in self._ports:
            if port.stirred():
                ready.add(port)
        timeout_ms = 0 if ready else -1 if timeout_s is None else max(0, math.ceil(timeout_s * 1000))
        owners = self._owners
        for fd, _ in self._poll.poll(timeout_ms):
            ready.add(owners[fd])
        return ready
