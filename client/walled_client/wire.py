"""The sync client's connection: one socket shared by all threads, whoever waits reads for everybody.

May live here: locking, waiting, waking, sending, receiving. May not: what a message means (exchange.py).

There is no background thread. One waiting thread is the leader: it sleeps on the socket, the others sleep
on their own lock. Who receives messages hands them out and wakes their owners; a leader that leaves wakes
another to lead. The lock is never held while sleeping, so a new call is sent at once by its own thread.

The socket's file descriptor is edge-triggered and any use of the socket may swallow the edge. Hence the
rule: whoever lets go of the lock has drained the socket, and if that brought news for the sleeping leader,
has woken it.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from walled import protocol
from walled.adapters.sockets import ConnectionEvent, Hub, Port
from walled.errors import Cancelled, DaemonUnavailable, StreamInterrupted
from walled.protocol import ControlRequest, RequestHeader
from walled_client.exchange import Call, Exchange

MAX_SLEEP_S = 3600.0
BATCH = 256
"""Messages received at a time."""
HEARD_S = 0.01
"""A loss and the new connection cannot both happen within this (ZeroMQ dials again after 20 ms): a call so
soon after the last look at the connection is sent without another look, which is a system call."""
LEADER_LEAVES_S = 5.0
"""How long closing waits for a leader, who has been woken, to let go of the socket."""
CLOSE_WAIT_S = 0.1
"""How long closing waits for the broker to confirm cancellations."""


class Waiter:
    """A thread that waits for one or several calls."""

    __slots__ = ("finished", "semaphore", "signalled")

    def __init__(self) -> None:
        self.semaphore = threading.Lock()
        self.semaphore.acquire()
        self.signalled = False
        self.finished: deque[Call] = deque()
        """Calls that have ended, in that order."""

    def signal(self) -> None:
        if not self.signalled:
            self.signalled = True
            self.semaphore.release()


class Wire:
    """A connection and its open calls. Made at the first call that needs it; belongs to one process."""

    def __init__(
        self, endpoint: str, connect_timeout_s: float, gone: Callable[[], bool] | None = None
    ) -> None:
        peer = endpoint.removeprefix("ipc://")
        self.exchange = Exchange(os.urandom(8), peer, connect_timeout_s, gone)
        self._lock = threading.Lock()
        self._leader: Waiter | None = None
        self._followers: dict[Waiter, None] = {}
        self._idle = threading.Event()
        self._abandoned: deque[Call] = deque()
        self._up = False
        """A handshake has succeeded since the last loss. Without it nothing is sent: for a moment after a
        loss the socket still takes messages, into the pipe of the dead connection."""
        self._heard_s = 0.0
        """When connection events were last asked for."""
        self._closed = False
        self._pid = os.getpid()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._hub = Hub()
        self._port: Port = self._hub.dealer(endpoint)
        self._port.watch()
        self._port.connect()
        self._poll = select.poll()
        self._monitor_fd = self._port.monitor_fileno()
        for fd in (self._port.fileno(), self._monitor_fd, self._wake_read):
            self._poll.register(fd, select.POLLIN)

    # --- what the client calls -------------------------------------------------------------------

    def start(self, header: RequestHeader, payload: bytes, deadline_s: float, waiter: Waiter | None) -> Call:
        """Open a call and send it if the broker is there; never waits."""
        return self._begin(lambda now_s: self.exchange.open(header, payload, now_s, deadline_s, waiter))

    def start_control(
        self, request: ControlRequest | dict[str, Any], deadline_s: float, waiter: Waiter
    ) -> Call:
        return self._begin(lambda now_s: self.exchange.open_control(request, now_s, deadline_s, waiter))

    def ask(self, request: ControlRequest | dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """The map a control request is answered with. Raises the refusal, or what kept it from coming."""
        waiter = Waiter()
        call = self.start_control(request, deadline_s, waiter)
        try:
            self.wait(call, waiter)
        except BaseException:
            self.cancel(call)
            raise
        return call.control_reply()

    def wait(self, call: Call, waiter: Waiter) -> None:
        """Sleep until the call has news; it always gets some, because every call has a deadline."""
        self._wait(lambda: call.news, waiter)

    def wait_sent(self, call: Call, waiter: Waiter) -> None:
        """Sleep until the call is on its way (or has ended): at most the connect timeout."""
        if not call.sent:
            self._wait(lambda: call.sent or call.news, waiter)

    def wait_any(self, waiter: Waiter) -> None:
        """Sleep until one of the waiter's calls has finished."""
        self._wait(lambda: bool(waiter.finished), waiter)

    def abandon(self, call: Call) -> None:
        """Cancel from a finalizer, which may run in a thread that holds the lock: never waits for it."""
        self._abandoned.append(call)
        if os.getpid() == self._pid and self._lock.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lock.release()

    def cancel(self, call: Call) -> None:
        """End a call and tell the broker; nothing happens when it has ended."""
        if os.getpid() != self._pid:
            return  # a copy made by fork: the call is the parent's
        with self._lock:
            if not self._closed and self.exchange.cancel(call):
                self._port.send(self.exchange.cancel_frames(call))
            self._notify(call)
            self._drain()

    def cancel_ids(self, request_ids: set[bytes] | None) -> int:
        """Cancel open calls by id, all for None. How many there were."""
        with self._lock:
            pending = self.exchange.pending
            calls = [
                call
                for request_id, call in pending.items()
                if request_ids is None or request_id in request_ids
            ]
            for call in calls:
                if self.exchange.cancel(call):
                    self._port.send(self.exchange.cancel_frames(call))
                self._notify(call)
            return len(calls)

    def refresh(self, header: RequestHeader, payload: bytes, deadline_s: float) -> bool:
        """Send a request nobody waits for; False when it cannot be sent at once."""
        call = self.start(header, payload, deadline_s, None)
        if call.sent:
            return True
        self.cancel(call)
        return False

    def in_flight(self) -> list[str]:
        with self._lock:
            return [request_id.hex() for request_id in self.exchange.pending]

    def close(self) -> None:
        """End every call with Cancelled, tell the broker, free the socket."""
        with self._lock:
            if self._closed:
                return
            exchange, port = self.exchange, self._port
            for call in list(exchange.pending.values()):
                if exchange.cancel(call, "the client was closed"):
                    port.send(exchange.cancel_frames(call))
                self._notify(call)
            until_s = time.monotonic() + CLOSE_WAIT_S
            # Without the broker's word a cancellation may still be in our own queue, which closing drops.
            while exchange.cancelling and (left_s := until_s - time.monotonic()) > 0 and self._leader is None:
                self._poll.poll(left_s * 1000)
                self._drain()
            if exchange.asked:
                port.send(protocol.frames(protocol.DISCONNECT, b""))
            self._closed = True
            self._wake()
            leaderless = self._leader is None
        if not leaderless:
            self._idle.wait(LEADER_LEAVES_S)
        with self._lock:
            self._port.close()
            self._hub.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    # --- inside ----------------------------------------------------------------------------------

    def _begin(self, opening: Callable[[float], Call]) -> Call:
        with self._lock:
            if self._closed:
                raise Cancelled("the client is closed")
            now_s = time.monotonic()
            if now_s - self._heard_s > HEARD_S:
                self._connection_events()  # before sending: what was sent before a loss is sent again
            call = opening(now_s)
            try:
                if self._up and self._port.send(self.exchange.frames(call, now_s)):
                    self.exchange.sent(call)
                self._drain()
                if not call.sent:
                    self.exchange.unsendable(now_s)
            except BaseException:  # Ctrl-C: the caller will never know of this call, but the broker may
                call.sent = self._up
                if self.exchange.cancel(call):
                    self._port.send(self.exchange.cancel_frames(call))
                raise
            return call

    def _wait(self, done: Callable[[], bool], waiter: Waiter) -> None:
        if os.getpid() != self._pid:
            raise StreamInterrupted("this stream was begun before the process was forked; begin it anew")
        try:
            while True:
                with self._lock:
                    self._expire()
                    if done():
                        self._hand_on()
                        return
                    if self._closed:
                        raise DaemonUnavailable("the client was closed")
                    timeout_s = min(MAX_SLEEP_S, max(0.0, self.exchange.due_s - time.monotonic()))
                    leads = self._leader is None
                    if leads:
                        self._leader = waiter
                    else:
                        self._followers[waiter] = None
                if leads:
                    self._lead(timeout_s)
                else:
                    self._follow(waiter, timeout_s)
        except BaseException:
            # Ctrl-C can strike anywhere; nobody may be left waiting for a leader that has gone.
            self._leave(waiter)
            raise

    def _lead(self, timeout_s: float) -> None:
        """Sleep on the socket, then hand out what has come."""
        ready = self._poll.poll(timeout_s * 1000 + 0.999)
        with self._lock:
            self._leader = None
            if len(ready) > 1 or (ready and ready[0][0] == self._wake_read):
                try:
                    os.read(self._wake_read, 4096)
                except BlockingIOError:
                    pass
            self._drain()
            if any(fd == self._monitor_fd for fd, _ in ready):
                self._connection_events()
                self._send_unsent()

    def _follow(self, waiter: Waiter, timeout_s: float) -> None:
        """Sleep until a leader has news for this thread, or makes it the leader."""
        waiter.semaphore.acquire(timeout=timeout_s)
        with self._lock:
            self._followers.pop(waiter, None)
            if waiter.signalled:
                waiter.signalled = False
                waiter.semaphore.acquire(blocking=False)

    def _hand_on(self) -> None:
        """Called by a thread that stops waiting, with the lock: somebody must lead, if anybody waits."""
        if self._leader is None:
            if self._closed:
                self._idle.set()
            for follower in self._followers:
                follower.signal()
                break

    def _leave(self, waiter: Waiter) -> None:
        """Undo what a wait that was broken off may have left; another Ctrl-C here changes nothing."""
        for _ in range(3):
            try:
                with self._lock:
                    if self._leader is waiter:
                        self._leader = None
                    self._followers.pop(waiter, None)
                    self._hand_on()
                return
            except BaseException:
                continue

    def _drain(self) -> None:
        """Receive all there is, see to the connection, send what waits to be sent."""
        if self._closed:
            return
        exchange, port = self.exchange, self._port
        while self._abandoned:
            left = self._abandoned.popleft()
            if exchange.cancel(left):
                port.send(exchange.cancel_frames(left))
        while True:
            messages = port.receive(BATCH)
            now_s = time.monotonic()
            for parts in messages:
                call = exchange.receive(parts, now_s)
                if call is not None:
                    self._notify(call)
            if len(messages) < BATCH:
                break  # that is: it has looked, and nothing more is there
        if exchange.unsent:
            if not self._up:
                self._connection_events()
            self._send_unsent()

    def _send_unsent(self) -> None:
        exchange, port = self.exchange, self._port
        now_s = time.monotonic()
        sent = False
        # A send that finds the queue full may see, too late, that there is room again, and swallow the edge.
        while exchange.unsent and self._up and port.writable():
            for call in list(exchange.unsent.values()):
                if not port.send(exchange.frames(call, now_s)):
                    break
                exchange.sent(call)
                sent = True
        if sent:
            self._drain()

    def _connection_events(self) -> None:
        self._heard_s = time.monotonic()
        for event in self._port.connection_events():
            self._up = event is ConnectionEvent.UP
            if event is ConnectionEvent.DOWN:
                self.exchange.lost(time.monotonic())
                self._expire()
                self._wake()

    def _expire(self) -> None:
        for call in self.exchange.expire(time.monotonic()):
            if call.sent and not self._closed:
                self._port.send(self.exchange.cancel_frames(call))
            self._notify(call)

    def _notify(self, call: Call) -> None:
        waiter: Any = call.waiter
        if waiter is None:
            return
        if call.ended:
            waiter.finished.append(call)
        if waiter is self._leader:
            self._wake()
        elif waiter in self._followers:
            waiter.signal()

    def _wake(self) -> None:
        """Get the leader out of its sleep."""
        if self._leader is not None:
            try:
                os.write(self._wake_write, b"w")
            except BlockingIOError:
                pass  # it has been woken many times already
