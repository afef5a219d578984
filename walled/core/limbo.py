"""Requests for a model that a backend which has not reported yet may serve.

May live here: who waits there, for how long, what becomes of them. May not: requests whose model is known
(broker.py, lanes.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from walled import errors
from walled.core import events as ev
from walled.core.flights import Waiter

if TYPE_CHECKING:
    from walled.core.broker import Broker


class Limbo:
    """Those of one Broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: dict[Waiter, ev.ClientRequest] = {}

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._waiting

    def __iter__(self) -> Iterator[tuple[Waiter, ev.ClientRequest]]:
        return iter(self._waiting.items())

    def request(self, waiter: Waiter) -> ev.ClientRequest | None:
        return self._waiting.get(waiter)

    def leave(self, waiter: Waiter) -> None:
        self._waiting.pop(waiter, None)

    def take(self, waiter: Waiter, event: ev.ClientRequest) -> None:
        """A request for an unknown model: it waits while somebody may come who knows it."""
        broker = self._broker
        here = {worker.backend for worker in broker.dispatcher.fleet.workers.values()}
        if set(broker.config.enabled_backends()) <= here:
            names = {lane.model for lane in broker.dispatcher.lanes.values()} | set(broker.config.routes)
            known = ", ".join(sorted(names)) or "none"
            broker.fail(
                waiter, errors.ModelNotFound(f"no model is named {waiter.header.model!r}; known: {known}")
            )
            return
        limits = broker.config.broker
        waiting_bytes = sum(len(request.payload) for request in self._waiting.values())
        if (
            len(self._waiting) < limits.queue_max_requests
            and waiting_bytes + len(event.payload) <= limits.queue_max_bytes
        ):
            self._waiting[waiter] = event
        else:
            broker.refuse(waiter, errors.Unavailable("the workers are starting", retry_after_s=1.0))

    def admit_all(self, now: float) -> None:
        """A worker came: perhaps it is the one they wait for."""
        for waiter, request in list(self._waiting.items()):
            del self._waiting[waiter]
            self._broker.admit(waiter, request, now)

    def refuse_all(self, error: errors.WalledError) -> None:
        for waiter in list(self._waiting):
            del self._waiting[waiter]
            self._broker.refuse(waiter, error)

    def tick(self, now: float) -> None:
        """Nobody waits here for longer than `broker.start_wait_s`."""
        limit_s = self._broker.config.broker.start_wait_s
        for waiter in [waiter for waiter in self._waiting if now - waiter.arrived_s >= limit_s]:
            del self._waiting[waiter]
            self._broker.refuse(
                waiter,
                errors.Unavailable("no worker has started yet; see the daemon's log", retry_after_s=2.0),
            )
