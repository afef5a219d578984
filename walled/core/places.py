"""Where a job may still run: the places of its route that have not failed it, and what a further call costs.

May live here: reading lanes, fleet and breakers for one job. May not: changing any of them (but the budget a
call is paid from), the order of the steps (descent.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from walled import errors, protocol
from walled.core import ladder
from walled.core.breaker import Circuits
from walled.core.dispatch import Dispatcher
from walled.core.fleet import Worker
from walled.core.flights import Fall, Job
from walled.core.lanes import Lane, place
from walled.core.patience import first_token_ms
from walled.protocol import ErrorHeader

ARRIVAL: Final = ErrorHeader("unavailable", "no place of its route takes it", True, 1.0)
"""Of a job that has just come: nothing has gone wrong yet."""
PROBE_S: Final = 0.5
"""When to come back to a backend that is being probed."""


class Places:
    """Questions about the places of a job, over one Dispatcher."""

    def __init__(self, dispatcher: Dispatcher, circuits: Circuits) -> None:
        self._dispatcher = dispatcher
        self._circuits = circuits
        self._no_fall = Fall(ARRIVAL)

    def of(self, job: Job, fallback: bool) -> Iterator[Lane]:
        """Where a job may still be run, in the order of its route: with the model that was asked for, or with
        others."""
        lanes, fleet = self._dispatcher.lanes, self._dispatcher.fleet
        route = job.waiters[0].route
        fall = job.fall or self._no_fall
        tried = fall.tried
        for target in route.targets:
            model = target.model
            if route.fallback(target) != fallback or model in fall.barred:
                continue
            lane = lanes.get(target.lane)
            if lane is None:
                continue
            backends = fleet.backends_of(lane.name)
            if target.backend or not any((name, model) in tried for name in backends):
                found = [lane] if (target.backend, model) not in tried else []
            else:
                found = [lanes[place(model, name)] for name in backends if (name, model) not in tried]
            for lane in found:
                if not fall.window or _wider(fleet.by_place.get(lane.name, []), model, fall.window):
                    yield lane

    def open(self, job: Job, own: Lane, fallback: bool) -> Iterator[Lane]:
        """Other places that would take a job now or when they have room."""
        for lane in self.of(job, fallback):
            if lane is not own and self._dispatcher.fleet.open_to(lane.name):
                yield lane

    def further(self, job: Job) -> int:
        """Places that could take a job if its present one does not answer."""
        fleet = self._dispatcher.fleet
        own = self._dispatcher.lanes[job.lane]
        others = 0 if own.backend else len(fleet.backends_of(own.name)) - 1
        if others <= 0 and len(job.waiters[0].route.targets) == 1:
            return 0
        if job.fall is not None and job.fall.models_over:
            return 0
        if others > 0:
            # Wherever it is served: all of these but the one that will have it.
            others = max(0, sum(name not in fleet.blocked for name in fleet.backends_of(own.name)) - 1)
        return others + sum(1 for fallback in (False, True) for _ in self.open(job, own, fallback))

    def first_token_ms(self, job: Job, deadline_s: float, now: float) -> int:
        """JobHeader.first_token_ms of a job that starts now."""
        limits = self._dispatcher.config.ladder
        left_s = deadline_s - now
        return first_token_ms(left_s, ladder.reserve_s(limits, left_s), self.further(job))

    def paid(self, job: Job, lane: Lane, charged: str) -> bool:
        """Whether one more call may be made: to a backend that is well it always may, to one that fails as
        well only from the budget of the one that failed."""
        if not job.attempt or not charged:
            return True
        backends = self._dispatcher.fleet.backends_of(lane.name)
        return all(map(self._circuits.healthy, backends)) or self._circuits.spend(charged)

    def shut(self, lane: Lane, now: float) -> ErrorHeader:
        backends = self._dispatcher.fleet.backends_of(lane.name)
        wait_s = min((self._circuits.opens_in_s(name, now) for name in backends), default=0.0) or PROBE_S
        names = ", ".join(backends)
        return protocol.error_header(
            errors.Unavailable(
                f"backend {names} is left alone after failures, or at its own wish",
                retry_after_s=math.ceil(max(0.1, wait_s) * 1000) / 1000,
            )
        )


def dark(model: str) -> ErrorHeader:
    """The error of a model no worker is there for."""
    return protocol.error_header(
        errors.Unavailable(f"no worker serves {model} at present", retry_after_s=2.0)
    )


def _wider(workers: list[Worker], model: str, window: int) -> bool:
    """Whether a place may hold more than `window` tokens: 0 is not known."""
    return any(not (found := worker.models[model].context_tokens) or found > window for worker in workers)
