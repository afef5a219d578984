"""The async client's connection: one socket on an event loop, one reader callback, one timer.

May live here: sending, receiving, waking futures. May not: what a message means (exchange.py).

There is no task and no timer per call. The socket's descriptor is edge-triggered and sending may swallow
the edge, so after every use of the socket it is drained.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from walled import protocol
from walled.adapters.sockets import ConnectionEvent, Hub
from walled.errors import Cancelled
from walled.protocol import ControlRequest, RequestHeader
from walled_client.exchange import Call, Exchange
from walled_client.wire import HEARD_S

BATCH = 256
"""Messages received at a time."""
CLOSE_WAIT_S = 0.1
"""How long closing waits for the broker to confirm cancellations."""


class AsyncWire:
    """A connection and its open calls on one event loop."""

    def __init__(
        self,
        endpoint: str,
        connect_timeout_s: float,
        loop: asyncio.AbstractEventLoop,
        gone: Callable[[], bool] | None = None,
    ) -> None:
        peer = endpoint.removeprefix("ipc://")
        self.exchange = Exchange(os.urandom(8), peer, connect_timeout_s, gone)
        self.loop = loop
        self.pid = os.getpid()
        self.closed = False
        self._up = False
        """A handshake has succeeded since the last loss. Without it nothing is sent: for a moment after a
        loss the socket still takes messages, into the pipe of the dead connection."""
        self._hub = Hub()
        self._port = self._hub.dealer(endpoint)
        self._port.watch()
        self._port.connect()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._heard_s = 0.0
        """When connection events were last asked for."""
        self._looking = False
        """`drain` will run soon."""
        self._quiet: asyncio.Future[None] | None = None
        """Awaited by `close` until every cancellation has been confirmed."""
        self._fds = (self._port.fileno(), self._port.monitor_fileno())
        loop.add_reader(self._fds[0], self.drain)
        loop.add_reader(self._fds[1], self._connection_changed)

    def start(self, header: RequestHeader, payload: bytes, deadline_s: float) -> Call:
        """Open a call and send it if the broker is there. `call.waiter` is the future to await."""
        return self._begin(header, payload, deadline_s)

    async def ask(self, request: ControlRequest | dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """The map a control request is answered with. Raises the refusal, or what kept it from coming."""
        call = self._begin(request, b"", deadline_s)
        await self.wait(call)
        return call.control_reply()

    def _begin(
        self, what: RequestHeader | ControlRequest | dict[str, Any], payload: bytes, deadline_s: float
    ) -> Call:
        if self.closed:
            raise Cancelled("the client is closed")
        exchange, port = self.exchange, self._port
        now_s = time.monotonic()
        if now_s - self._heard_s > HEARD_S:
            self._connection_events()  # before sending: what was sent before a loss is sent again
        waiter = self.loop.create_future()
        if isinstance(what, RequestHeader):
            call = exchange.open(what, payload, now_s, deadline_s, waiter)
        else:
            call = exchange.open_control(what, now_s, deadline_s, waiter)
        if self._up and port.send(exchange.frames(call, now_s)):
            exchange.sent(call)
            self._look_soon()
        else:
            self.drain()
            if not call.sent:
                exchange.unsendable(now_s)
        if exchange.due_s < self._timer_s:
            self._arm()
        return call

    async def wait(self, call: Call) -> None:
        """Until the call has news; cancelling the waiting task cancels the call."""
        while not call.news:
            if call.waiter.done():
                call.waiter = self.loop.create_future()
            try:
                await call.waiter
            except asyncio.CancelledError:
                self.cancel(call)
                raise

    def cancel(self, call: Call) -> None:
        """End a call and tell the broker; nothing happens when it has ended."""
        if not self.closed and self.exchange.cancel(call):
            self._port.send(self.exchange.cancel_frames(call))
            self.drain()
        _wake(call)

    def refresh(self, header: RequestHeader, payload: bytes, deadline_s: float) -> bool:
        """Send a request nobody waits for; False when it cannot be sent at once."""
        call = self.start(header, payload, deadline_s)
        if call.sent:
            return True
        self.cancel(call)
        return False

    def drain(self) -> None:
        """Receive all there is, see to the connection, send what waits to be sent."""
        self._looking = False
        if self.closed:
            return
        exchange, port = self.exchange, self._port
        while True:
            messages = port.receive(BATCH)
            now_s = time.monotonic()
            for parts in messages:
                call = exchange.receive(parts, now_s)
                if call is not None:
                    waiter = call.waiter
                    if not waiter.done():
                        waiter.set_result(None)
            if len(messages) < BATCH:
                break  # that is: it has looked, and nothing more is there
        if exchange.unsent:
            if not self._up:
                self._connection_events()
            self._send_unsent()
        if self._quiet is not None and not exchange.cancelling and not self._quiet.done():
            self._quiet.set_result(None)

    def _connection_changed(self) -> None:
        if self.closed:
            return
        self.drain()  # what came before a loss counts
        self._connection_events()
        self._send_unsent()

    def _send_unsent(self) -> None:
        exchange, port = self.exchange, self._port
        now_s = time.monotonic()
        # A send that finds the queue full may see, too late, that there is room again, and swallow the edge.
        while exchange.unsent and self._up and port.writable():
            for call in list(exchange.unsent.values()):
                if not port.send(exchange.frames(call, now_s)):
                    break
                exchange.sent(call)
            self._look_soon()

    def _look_soon(self) -> None:
        """Look at the socket once after all that is sent in this turn of the loop."""
        if not self._looking:
            self._looking = True
            self.loop.call_soon(self.drain)

    def _connection_events(self) -> None:
        self._heard_s = time.monotonic()
        for event in self._port.connection_events():
            self._up = event is ConnectionEvent.UP
            if event is ConnectionEvent.DOWN:
                self.exchange.lost(time.monotonic())
                self._expire()

    def _arm(self) -> None:
        """One timer for all calls, set to the first thing that can expire."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_s = self.exchange.due_s
        if self._timer_s != float("inf"):
            delay_s = max(0.0, self._timer_s - time.monotonic())
            self._timer = self.loop.call_later(delay_s, self._expire)

    def _expire(self) -> None:
        if self.closed:
            return
        for call in self.exchange.expire(time.monotonic()):
            if call.sent:
                self._port.send(self.exchange.cancel_frames(call))
            _wake(call)
        self._arm()
        self._look_soon()

    async def close(self) -> None:
        """End every call with Cancelled, tell the broker, free the socket."""
        if self.closed:
            return
        exchange, port = self.exchange, self._port
        for call in list(exchange.pending.values()):
            if exchange.cancel(call, "the client was closed"):
                port.send(exchange.cancel_frames(call))
            _wake(call)
        self.drain()
        if exchange.cancelling:
            # Without the broker's word a cancellation may still be in our own queue, which closing drops.
            self._quiet = self.loop.create_future()
            await asyncio.wait([self._quiet], timeout=CLOSE_WAIT_S)
        if not self.closed:
            if exchange.asked:
                port.send(protocol.frames(protocol.DISCONNECT, b""))
            self.drop()

    def drop(self) -> None:
        """Free the socket without a word; also when the loop is gone."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if not self.loop.is_closed():
            for fd in self._fds:
                self.loop.remove_reader(fd)
        self._port.close()
        self._hub.close()


def _wake(call: Call) -> None:
    waiter = call.waiter
    if not waiter.done():
        waiter.set_result(None)
