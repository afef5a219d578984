"""Open-loop load on a broker core in hand-set time: scheduled arrivals, a backend of so many slots, a ledger.

May live here: the simulation and what it notes. May not: expectations. Nothing sleeps: seconds are events.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from broker_world import config_of

from walled import protocol
from walled.core import events as ev
from walled.core.broker import Broker
from walled.errors import Cancelled
from walled.protocol import ErrorHeader, FinalHeader, ModelInfo, Phases, ReadyHeader, RequestHeader

ENDINGS = (protocol.FINAL, protocol.ERROR, protocol.BUSY)
TICK_S = 0.25


class Asked(NamedTuple):
    """One arrival."""

    at_s: float
    client: bytes = b"c1"
    priority: protocol.Priority = "normal"
    deadline_s: float = 1.5
    retries: int = 0
    """A refusal is followed by another try after its retry_after_s, as the client library does."""


class Ended(NamedTuple):
    """What became of it."""

    asked: Asked
    after_s: float
    kind: bytes
    code: str
    """Of the error; "" for an answer."""
    retry_after_s: float | None

    @property
    def answered(self) -> bool:
        return self.kind == protocol.FINAL


def arrivals(rate: float, seconds: float, seed: int, **asked: object) -> list[Asked]:
    """Exponentially apart."""
    dice, now_s, found = random.Random(seed), 0.0, []
    while (now_s := now_s + dice.expovariate(rate)) < seconds:
        found.append(Asked(now_s, **asked))  # type: ignore[arg-type]
    return found


class Load:
    """Runs a schedule to its end; `ended` has one entry for each request, or more if the broker is wrong."""

    def __init__(
        self, slots: int, service_s: Callable[[float, int], float], first_s: float = 0.5, **sections: object
    ) -> None:
        """`service_s(now, running)`: how long an answer takes that begins then; `first_s`: the share of it
        that passes before its first token."""
        ladder = {"stale": False, "templates": False}  # nobody here knows of any
        self.broker = Broker(config_of(ladder=ladder, **sections), b"epoch")
        self.slots, self.service_s, self.first_s = slots, service_s, first_s
        self.ended: list[Ended] = []
        self.running: dict[bytes, tuple[float, float]] = {}
        """By job: when it began, and how long it takes."""
        self.most_queued = 0
        self.started: list[Asked] = []
        self.started_s: list[float] = []
        self._asked: dict[bytes, Asked] = {}
        self._order = itertools.count()
        self._due: list[tuple[float, int, object]] = []

    def run(self, schedule: Iterable[Asked]) -> list[Ended]:
        ready = ReadyHeader(
            worker=0, token=b"t", pid=1, backend="script", kind="scripted", slots=self.slots,
            models=(ModelInfo(name="m", digest="d"),),
        )  # fmt: skip
        self._handle(ev.WorkerReady(b"w0", b"", ready), 0.0)
        last_s = 0.0
        for asked in schedule:
            self._later(asked.at_s, asked)
            last_s = max(last_s, asked.at_s + asked.deadline_s)
        for step in range(int((last_s + 1) / TICK_S)):
            self._later((step + 1) * TICK_S, ev.Tick())
        numbers = itertools.count(1)
        while self._due:
            now, _, what = heapq.heappop(self._due)
            timer_s = self.broker.next_timer_s()
            if timer_s is not None and timer_s < now:
                self._later(now, what)
                now, what = timer_s, ev.Tick()
            if isinstance(what, Asked):
                request_id = next(numbers).to_bytes(8, "big")
                self._asked[request_id] = what
                header = RequestHeader(
                    model="m", deadline_ms=int(what.deadline_s * 1000), priority=what.priority
                )
                self._handle(ev.ClientRequest(what.client, request_id, header, request_id), now)
            elif isinstance(what, bytes):
                if (job := self.running.pop(what, None)) is not None:
                    first_ms = job[1] * self.first_s * 1000
                    final = FinalHeader(phases=Phases(first_token_ms=first_ms))
                    self._handle(ev.WorkerFinal(b"w0", what, final, b"answer"), now)
            else:
                if isinstance(what, ev.Tick):
                    self._handle(ev.WorkerBeat(b"w0"), now)
                self._handle(what, now)  # type: ignore[arg-type]
            self.most_queued = max(self.most_queued, self.broker.dispatcher.queued)
        return self.ended

    def _later(self, at_s: float, what: object) -> None:
        heapq.heappush(self._due, (at_s, next(self._order), what))

    def _handle(self, event: ev.Event, now: float) -> None:
        for effect in self.broker.handle(event, now):
            if isinstance(effect, ev.ToClient) and effect.type in ENDINGS:
                asked = self._asked[effect.request_id]
                error = effect.header if isinstance(effect.header, ErrorHeader) else None
                if asked.retries and effect.type == protocol.BUSY and error and error.retry_after_s:
                    left_s = asked.deadline_s - (now - asked.at_s) - error.retry_after_s
                    if left_s > error.retry_after_s:
                        at_s = now + error.retry_after_s
                        again = asked._replace(at_s=at_s, deadline_s=left_s, retries=asked.retries - 1)
                        self._later(at_s, again)
                        continue
                self.ended.append(
                    Ended(
                        asked, now - asked.at_s, effect.type, error.code if error else "",
                        error.retry_after_s if error else None,
                    )
                )  # fmt: skip
            elif isinstance(effect, ev.ToWorker) and effect.type == protocol.HEARTBEAT:
                pass
            elif isinstance(effect, ev.ToWorker) and effect.type == protocol.REQUEST:
                self.started.append(self._asked[effect.payload])
                self.started_s.append(now)
                took_s = self.service_s(now, len(self.running) + 1)
                self.running[effect.request_id] = now, took_s
                self._later(now + took_s, effect.request_id)
            elif isinstance(effect, ev.ToWorker) and self.running.pop(effect.request_id, None) is not None:
                error = protocol.error_header(Cancelled())
                self._later(now, ev.WorkerError(b"w0", effect.request_id, error))
