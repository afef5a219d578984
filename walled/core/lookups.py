"""Lesser answers looked up for callers: who may have which, what was asked for, what was found.

May live here: ev.LookUp out, ev.Found in, the ending of a caller for whom something was found. May not: when
one is looked up (descent.py), the lookup itself (the shell).

A *hard* lookup is a step of the ladder: the caller's job waits for it. A *soft* one only offers something
better than waiting on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from walled import errors, protocol
from walled.core import events as ev
from walled.core import ladder
from walled.core.flights import Fall, Job, Waiter
from walled.protocol import FinalHeader, Phases
from walled.sections import LadderConfig

if TYPE_CHECKING:
    from walled.core.broker import Broker


class Lookups:
    """Those of one Broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.first: dict[Waiter, ev.ClientRequest] = {}
        """Callers whose template is looked for before any model is asked."""
        self._tickets = 0

    def begins(self, waiter: Waiter, event: ev.ClientRequest) -> bool:
        """Whether the answer is first looked for among the templates."""
        wanted = ladder.first(self._mode(waiter), self._broker.config.ladder)
        if not wanted or waiter.header.background:
            return False
        if not self._broker.config.ladder.templates:
            self._broker.fail(waiter, errors.NoTemplate("templates are switched off (ladder.templates)"))
            return True
        self.first[waiter] = event
        self._look_up(waiter, event.payload, (wanted,), "", hard=False)
        return True

    def _mode(self, waiter: Waiter) -> str:
        return waiter.header.mode or self._broker.dispatcher.route(waiter.header.model).mode

    def ask(self, job: Job, fall: Fall, steps: tuple[str, ...]) -> bool:
        """Have lesser answers looked up for the callers of a job; False when none may have any."""
        asked = False
        for waiter in job.waiters:
            allowed = ladder.lesser(waiter.header, waiter.route.mode_for(waiter.header.mode), self._limits)
            wanted = tuple(step for step in steps if step in allowed)
            if wanted:
                asked = True
                self._look_up(waiter, job.payload, wanted, fall.error.code, hard=True)
        return asked

    @property
    def _limits(self) -> LadderConfig:
        return self._broker.config.ladder

    def ask_softly(self, job: Job, code: str) -> None:
        """For all callers of a job: `soften`."""
        for waiter in job.waiters:
            self.soften(waiter, job.payload, code)

    def soften(self, waiter: Waiter, payload: bytes, code: str, *, begun: bool = False) -> None:
        """A lesser answer, if there is one, instead of waiting on; who gets none does wait on. Who has seen
        text of an answer is left alone; when it has `begun` and time is up, only who cannot begin anew."""
        if waiter.hard or (waiter.streamed and not (begun and waiter.header.restarts)):
            return
        wanted = ladder.lesser(waiter.header, waiter.route.mode_for(waiter.header.mode), self._limits)
        if wanted:
            self._look_up(waiter, payload, wanted, code, hard=False)

    def _look_up(
        self, waiter: Waiter, payload: bytes, steps: tuple[str, ...], code: str, *, hard: bool
    ) -> None:
        self._tickets += 1
        waiter.ticket, waiter.hard, waiter.reason = self._tickets, hard, code
        self._broker.effects.append(
            ev.LookUp(waiter.client, waiter.request_id, self._tickets, steps, waiter.header, payload)
        )

    def on_found(self, event: ev.Found, now: float) -> None:
        """What a lookup brought."""
        broker = self._broker
        waiter = broker.clients.get(event.client, {}).get(event.request_id)
        if waiter is None or waiter.ticket != event.ticket:
            return
        if event.source:
            self._instead(waiter, event, event.source, now)
            broker.dispatch(now)
            return
        waiter.ticket = 0
        request = self.first.pop(waiter, None)
        if request is not None:
            if self._mode(waiter) == "template_only":
                broker.fail(waiter, errors.NoTemplate("no template fits this request; see docs/templates.md"))
            else:
                broker.admit(waiter, request, now)
        elif waiter.hard:
            waiter.hard = False
            if waiter.job is not None:
                self._broker.descent.all_known(waiter.job, now)

    def _instead(self, waiter: Waiter, event: ev.Found, source: protocol.Source, now: float) -> None:
        """A caller gets this answer, and leaves its generation."""
        job = waiter.job
        first = self.first.pop(waiter, None) is not None
        degraded = not first and source != "cache"
        final = FinalHeader(
            source=source,
            degraded=degraded,
            reason=waiter.reason if degraded else "",
            backend=event.backend,
            attempts=job.attempt if job is not None else 0,
            age_s=event.age_s,
            stored=source != "template",
            phases=Phases(total_ms=(now - waiter.arrived_s) * 1000.0),
        )
        if degraded:
            self._broker.descent.count(source)
            self._broker.descent.abandoned(waiter, now)
        self._broker.leave(waiter, now)
        waiter.restart = waiter.streamed
        self._broker.end(waiter, protocol.FINAL, final, event.answer, source)
