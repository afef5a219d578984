"""Requests on their way down the ladder: what failed, what is tried next, what is waited for meanwhile.

May live here: taking the steps that ladder.py allows, in order; the state between two of them. May not:
admission and endings (broker.py), where a model is and how full (dispatch.py), lookups (the shell answers
ev.LookUp with ev.Found).

A job is always in one of these: queued in a lane, running at a worker, `resting` before a retry, or `between`
two steps while lookups for its callers are under way. Callers who share a job go down together for as long as
their routes agree; a lesser answer is looked up, and may be refused, for each alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING

from walled import errors, protocol
from walled.core import events as ev
from walled.core import ladder
from walled.core.breaker import Circuits
from walled.core.fleet import Worker
from walled.core.flights import Fall, Job, Waiter
from walled.core.ladder import Stage
from walled.core.lanes import Lane, place
from walled.core.patience import first_token_ms
from walled.core.timers import Deadlines
from walled.protocol import ErrorHeader, FinalHeader, Phases
from walled.sections import LadderConfig

if TYPE_CHECKING:
    from walled.core.broker import Broker

ARRIVAL = ErrorHeader("unavailable", "no place of its route takes it", True, 1.0)
"""Of a job that has just come: nothing has gone wrong yet."""
MAX_DEATHS = 2
"""A request whose worker died is run again once."""
PROBE_S = 0.5
"""When to come back to a backend that is being probed."""


class Descent:
    """The part of one Broker that begins where an answer does not come."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._dispatcher = broker.dispatcher
        self.circuits = Circuits(broker.config.ladder, broker.dispatcher.fleet.blocked)
        self.between: dict[Job, None] = {}
        self.resting: dict[Job, None] = {}
        self.first: dict[Waiter, ev.ClientRequest] = {}
        """Callers whose template is looked for before any model is asked."""
        self.alarms: Deadlines[Job] = Deadlines()
        """Of queued jobs: the end of patience with their place; of resting ones: the retry."""
        self.dark_since: dict[str, float] = {}
        """Lanes with waiting jobs that no worker could take, and since when."""
        self._no_fall = Fall(ARRIVAL)
        self._tickets = 0
        self._many_hosts: set[str] = set()
        self.templates_first = False
        self.reconfigure()

    def reconfigure(self) -> None:
        """The broker's configuration is another one."""
        config = self._broker.config
        self.circuits.reconfigure(config.ladder)
        modes = {config.ladder.mode} | {route.mode for route in config.routes.values()}
        self.templates_first = bool(modes & {"template_only", "hybrid"})
        backends = config.enabled_backends()
        self._many_hosts = {name for name, it in backends.items() if len(getattr(it, "hosts", ())) > 1}

    # --- before any model ----------------------------------------------------------------------------

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
        return waiter.header.mode or self._dispatcher.route(waiter.header.model).mode

    # --- after a failure -----------------------------------------------------------------------------

    def arrived(self, job: Job, now: float) -> None:
        """A new job finds its place: the first of its route that takes it."""
        job.fall = Fall(ARRIVAL)
        self._go_on(job, now)

    def refused(self, job: Job, error: errors.WalledError, now: float) -> None:
        """A new job cannot be taken where it would belong."""
        target = job.waiters[0].route.targets[0]
        _note(job, protocol.error_header(error)).tried |= {(target.backend, target.model)}
        self._go_on(job, now)

    def shed(self, job: Job, error: ErrorHeader, now: float, *, models_over: bool = False) -> None:
        """A job is not to wait any longer, or not to be run, where it is; `models_over`: nor anywhere."""
        lane = self._dispatcher.lanes[job.lane]
        if job.queued:
            self._dispatcher.withdraw(job)
        self._no_alarm(job)
        fall = _note(job, error)
        fall.tried |= {(lane.backend, lane.model)}
        fall.models_over = fall.models_over or models_over
        self._go_on(job, now)

    def failed(self, job: Job, worker: Worker, error: ErrorHeader, now: float) -> None:
        """A worker ended a job badly."""
        backend, model = worker.backend, job.model
        verdict = ladder.verdict(error.code)
        self._judge(backend, verdict, error, now)
        if error.code == errors.DeadlineExceeded.code:
            self._given_up(job, worker, now)
        self._without_restart(job, error)
        if not verdict.lesser:
            for waiter in list(job.waiters):
                self._broker.end(waiter, protocol.ERROR, error, b"", error.code)
            return
        if not job.waiters:
            return
        fall = _note(job, error)
        self._anew(job)
        if verdict.retry and self._retry(job, fall, backend, now):
            return
        fall.tried |= {(backend, model)}
        if verdict.bars:
            fall.barred |= {model}
        if error.code == errors.ContextTooLong.code and model in worker.models:
            fall.window = max(fall.window, worker.models[model].context_tokens)
        _pass_over(fall, verdict)
        self._go_on(job, now, charged=backend)

    def lost(self, job: Job, now: float) -> None:
        """Its worker is gone, or gave it up. Who saw text of it gets the rest only if it can begin anew; the
        others get a second run, once."""
        error = protocol.error_header(
            errors.WorkerLost("the worker died while it answered", retry_after_s=0.5)
        )
        self._without_restart(job, error)
        if not job.waiters:
            return
        self._anew(job)
        fall = _note(job, error)
        fall.deaths += 1
        if fall.deaths < MAX_DEATHS:
            self._broker.counters["requeued"] += 1
            self._share(job)
            self._dispatcher.put(job, now, front=True)
        else:
            _pass_over(fall, ladder.verdict(error.code))
            self._go_on(job, now)

    def _judge(self, backend: str, verdict: ladder.Verdict, error: ErrorHeader, now: float) -> None:
        """What an error says about its backend."""
        wait_s = error.retry_after_s
        if (
            error.code == errors.BackendOverloaded.code
            and wait_s is not None
            and backend not in self._many_hosts  # those are chosen among by their worker
        ):
            self.circuits.pause(backend, wait_s, now)
            self._broker.counters["backend_pauses"] += 1
            self.evacuate(now)
        elif verdict.health == "bad":
            self.backend_failed(backend, now)
        elif verdict.health == "good":
            self.finished(backend, now)
        else:
            self.circuits.inconclusive(backend, now)

    def backend_failed(self, backend: str, now: float) -> None:
        """A call, or a whole worker, failed by its backend's fault."""
        if self.circuits.failure(backend, now):
            self._broker.counters["breaker_opened"] += 1
        if backend in self.circuits.blocked:
            self.evacuate(now)

    def abandoned(self, waiter: Waiter, now: float) -> None:
        """A caller's time is up, or a lesser answer was taken for it, while its job may still run."""
        job = waiter.job
        if job is not None and job.worker is not None and len(job.waiters) == 1 and not waiter.streamed:
            self._given_up(job, job.worker, now)

    def _given_up(self, job: Job, worker: Worker, now: float) -> None:
        if ladder.hung(now - job.dispatched_s, self._dispatcher.lanes[job.lane].service_s):
            self.backend_failed(worker.backend, now)

    def _without_restart(self, job: Job, error: ErrorHeader) -> None:
        """Callers who saw text and cannot be told to drop it: nothing else may follow it."""
        for waiter in [w for w in job.waiters if w.streamed and not w.header.restarts]:
            job.waiters.remove(waiter)
            waiter.job = None
            self._broker.end(waiter, protocol.ERROR, error, b"", error.code)

    def _anew(self, job: Job) -> None:
        """Nothing of an attempt that died is shown as a part of the next."""
        job.worker = None
        job.streaming = False
        job.emitted.clear()
        job.emitted_bytes = 0
        job.replayable = True
        for waiter in job.waiters:
            waiter.takes_text = waiter.header.stream
            waiter.restart = waiter.streamed
        job.restarting = any(waiter.restart for waiter in job.waiters)

    # --- the steps -----------------------------------------------------------------------------------

    def _retry(self, job: Job, fall: Fall, backend: str, now: float) -> bool:
        """The same place once more, after a pause."""
        limits = self._broker.config.ladder
        if (
            fall.retries >= ladder.MAX_RETRIES
            or backend in self.circuits.blocked
            or any(waiter.streamed for waiter in job.waiters)
        ):
            return False
        at_s = now + ladder.pause_s(limits, fall.retries, job.job_id)
        until_s = self._until_s(job)
        ready_s = at_s + self._dispatcher.lanes[job.lane].service_s
        if ready_s > until_s - ladder.reserve_s(limits, until_s - now) or not self.circuits.spend(backend):
            return False
        fall.retries += 1
        self._count("retry")
        self._broker.counters[f"retries_total.{backend}"] += 1
        self._share(job)
        self.resting[job] = None
        self._alarm(job, at_s)
        return True

    def _go_on(self, job: Job, now: float, charged: str = "") -> None:
        """Take the next step that is open. `charged`: whose budget pays for one more call."""
        self._broker.unshare(job)
        self._split(job, now, charged)
        fall = job.fall
        assert fall is not None, "a job goes down for a reason"
        while job.waiters:
            if fall.stage == Stage.SAME and self._move(job, fall, False, now, charged):
                return
            if fall.stage == Stage.STALE and self._ask(job, fall, self._wanted(job, fall)):
                return
            if fall.stage == Stage.OTHER and self._move(job, fall, True, now, charged):
                return
            if fall.stage == Stage.TEMPLATE and self._ask(job, fall, ("template",)):
                return
            if fall.stage == Stage.END:
                self._give_up(job, fall, now)
                return
            fall.stage = Stage(fall.stage + 1)

    def _split(self, job: Job, now: float, charged: str) -> None:
        """Callers who came by other routes go on by their own."""
        route = job.waiters[0].route
        others = [waiter for waiter in job.waiters if waiter.route != route]
        if not others:
            return
        job.waiters = [waiter for waiter in job.waiters if waiter.route == route]
        twin = self._broker.new_job(others[0], job.payload, job.rank, now)
        twin.waiters = others
        for waiter in others:
            waiter.job = twin
        twin.attempt, twin.restarting, twin.fall = job.attempt, job.restarting, copy(job.fall)
        self._go_on(twin, now, charged)

    def _wanted(self, job: Job, fall: Fall) -> tuple[str, ...]:
        """A stale answer; with no fallback model to come between them a template in the same lookup."""
        if not fall.models_over and next(self._places(job, True), None) is not None:
            return ("stale",)
        fall.stage = Stage.TEMPLATE
        return ("stale", "template")

    def _move(self, job: Job, fall: Fall, fallback: bool, now: float, charged: str) -> bool:
        """Whether a place with the same model, or with another one, takes the job."""
        if fall.models_over:
            return False
        dark = None
        for lane in self._places(job, fallback):
            if not self._dispatcher.fleet.open_to(lane.name):
                if self._dispatcher.fleet.slots_for(lane.name):
                    _note(job, self._circuit_open(lane, now))
                elif dark is None:
                    dark = lane
                continue
            refusal = self._refusal(job, lane, now, displace=fall.error is ARRIVAL)
            if refusal is not None:
                _note(job, protocol.error_header(refusal))
            elif self._paid(job, lane, charged):
                self._settle(job, lane, fallback, now)
                return True
        # Nobody is there: who is being restarted is worth waiting for, unless others were tried in vain.
        if dark is None:
            return False
        if fallback or fall.error is not ARRIVAL:
            _note(job, _nobody(dark))
            return False
        refusal = self._refusal(job, dark, now, displace=True)
        if refusal is not None:
            _note(job, protocol.error_header(refusal))
            return False
        self._settle(job, dark, fallback, now)
        return True

    def _places(self, job: Job, fallback: bool) -> Iterator[Lane]:
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

    def _paid(self, job: Job, lane: Lane, charged: str) -> bool:
        """Whether one more call may be made: to a backend that is well it always may, to one that fails as
        well only from the budget of the one that failed."""
        if not job.attempt or not charged:
            return True
        backends = self._dispatcher.fleet.backends_of(lane.name)
        return all(map(self.circuits.healthy, backends)) or self.circuits.spend(charged)

    def _settle(self, job: Job, lane: Lane, fallback: bool, now: float) -> None:
        """The job's place is this one from now on."""
        again = job.attempt > 0
        if job.fall is not None and job.fall.error is ARRIVAL:
            job.fall = None
        elif job.fall is not None:
            self._count("fallback_model" if fallback else "other_backend")
        job.lane = lane.name
        job.fallback = fallback
        if fallback:
            job.store = False
            job.key = None
        self._share(job)
        session = job.waiters[0].header.session
        worker = self._dispatcher.at_once(lane, session, now)
        if worker is not None:
            self._broker.start(job, worker, now)
            return
        self._dispatcher.put(job, now, front=again)
        self.queued(job, lane, now)

    def queued(self, job: Job, lane: Lane, now: float) -> None:
        """A job has to wait in a lane: tell who wants to know; patience with this place begins."""
        for waiter in job.waiters:
            if waiter.header.accept and not job.attempt:
                self._broker.accepted(waiter, lane, job.rank)
        further = self.further(job)
        if further:
            until_s = self._until_s(job)
            left_s = until_s - now
            reserve_s = ladder.reserve_s(self._broker.config.ladder, left_s)
            self._alarm(job, now + first_token_ms(left_s, reserve_s, further) / 1000.0)
        if now < self._broker.until_s["fallback"]:
            self._ask_softly(job, errors.Overloaded.code)
        since_s = self.dark_since.get(lane.name)
        if since_s is not None and now - since_s >= ladder.NO_WORKER_GRACE_S:
            self._ask_softly(job, errors.Unavailable.code)

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
        return others + sum(1 for fallback in (False, True) for _ in self._open(job, own, fallback))

    def _open(self, job: Job, own: Lane, fallback: bool) -> Iterator[Lane]:
        """Other places that would take a job now or when they have room."""
        for lane in self._places(job, fallback):
            if lane is not own and self._dispatcher.fleet.open_to(lane.name):
                yield lane

    def first_token_ms(self, job: Job, deadline_s: float, now: float) -> int:
        """JobHeader.first_token_ms of a job that starts now."""
        limits = self._broker.config.ladder
        left_s = deadline_s - now
        return first_token_ms(left_s, ladder.reserve_s(limits, left_s), self.further(job))

    def _give_up(self, job: Job, fall: Fall, now: float) -> None:
        error = fall.error
        busy = not job.attempt and error.code in ladder.NOT_BEGUN
        self.between.pop(job, None)
        for waiter in list(job.waiters):
            self._count("refusal")
            self._broker.leave(waiter, now)
            kind, outcome = (protocol.BUSY, f"refused_{error.code}") if busy else (protocol.ERROR, error.code)
            self._broker.end(waiter, kind, error, b"", outcome)

    # --- lookups -------------------------------------------------------------------------------------

    def _ask(self, job: Job, fall: Fall, steps: tuple[str, ...]) -> bool:
        """Have lesser answers looked up for the callers of a job; False when none may have any."""
        asked = False
        for waiter in job.waiters:
            allowed = ladder.lesser(waiter.header, waiter.route.mode_for(waiter.header.mode), self._limits)
            wanted = tuple(step for step in steps if step in allowed)
            if wanted:
                asked = True
                self._look_up(waiter, job.payload, wanted, fall.error.code, hard=True)
        if asked:
            self.between[job] = None
        return asked

    @property
    def _limits(self) -> LadderConfig:
        return self._broker.config.ladder

    def _ask_softly(self, job: Job, code: str) -> None:
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
                self._all_known(waiter.job, now)

    def _all_known(self, job: Job, now: float) -> None:
        """Take the next step as soon as the last lookup of a job has brought nothing."""
        if job in self.between and job.waiters and not any(waiter.hard for waiter in job.waiters):
            del self.between[job]
            assert job.fall is not None
            job.fall.stage = Stage(job.fall.stage + 1)
            self._go_on(job, now)

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
            self._count(source)
            self.abandoned(waiter, now)
        self._broker.leave(waiter, now)
        waiter.restart = waiter.streamed
        self._broker.end(waiter, protocol.FINAL, final, event.answer, source)

    # --- the passing of time, and who comes and goes -------------------------------------------------

    def left(self, job: Job, waiter: Waiter, now: float) -> None:
        """A caller has left a job."""
        if not job.waiters:
            self.between.pop(job, None)
            self.resting.pop(job, None)
            self._no_alarm(job)
        elif waiter.hard:
            self._all_known(job, now)

    def short_of_time(self, waiter: Waiter, now: float) -> float:
        """The reserve of a request begins; returns when it is to be looked at again."""
        if waiter in self.first:
            return waiter.deadline_s
        last_s = waiter.deadline_s - ladder.LAST_MOMENT_S
        if waiter.streamed and waiter.header.restarts and now < last_s:
            return last_s
        job, request = waiter.job, self._broker.limbo.get(waiter)
        code = errors.DeadlineExceeded.code
        if job is not None:
            code = job.fall.error.code if job.fall is not None else code
            self.soften(waiter, job.payload, code, begun=True)
        elif request is not None:
            self.soften(waiter, request.payload, code)
        return waiter.deadline_s

    def due(self, now: float) -> None:
        """Retries whose pause is over, and jobs that have waited in one place for as long as they may."""
        for job in self.alarms.due(now):
            job.alarm_s = 0.0
            if job in self.resting:
                del self.resting[job]
                lane = self._dispatcher.lanes[job.lane]
                if self._dispatcher.fleet.open_to(lane.name):
                    self._dispatcher.put(job, now, front=True)
                    self.queued(job, lane, now)
                else:
                    backends = self._dispatcher.fleet.backends_of(lane.name)
                    self._go_on(job, now, charged=backends[0] if backends else "")
            elif job.queued and self._better(job, now):
                late = errors.Overloaded(f"{job.model} did not start in its share of the time")
                self.shed(job, protocol.error_header(late), now)

    def _better(self, job: Job, now: float) -> bool:
        """Whether another place takes a job that waits. Without one it goes on waiting where it is."""
        own = self._dispatcher.lanes[job.lane]
        return any(
            self._refusal(job, lane, now, displace=False) is None
            for fallback in (False, True)
            for lane in self._open(job, own, fallback)
        )

    def evacuate(self, now: float) -> None:
        """Jobs that wait where nobody may start them now: on to where they can be."""
        dispatcher = self._dispatcher
        for lane in list(dispatcher.waiting.values()):
            if dispatcher.fleet.open_to(lane.name):
                continue
            shut = bool(dispatcher.fleet.slots_for(lane.name))
            for job in list(lane.waiting()):
                if shut:
                    self.shed(job, self._circuit_open(lane, now), now)
                elif any(True for _ in self._open(job, lane, False)):
                    self.shed(job, _nobody(lane), now)

    def tick(self, now: float) -> None:
        """Probes whose time has come; lanes nobody works on."""
        self.circuits.tick(now)
        dispatcher = self._dispatcher
        for name in [name for name in self.dark_since if dispatcher.fleet.open_to(name)]:
            del self.dark_since[name]
        for lane in list(dispatcher.waiting.values()):
            if dispatcher.fleet.open_to(lane.name):
                continue
            since_s = self.dark_since.setdefault(lane.name, now)
            if now - since_s < ladder.NO_WORKER_GRACE_S:
                continue
            for job in list(lane.waiting()):
                for waiter in job.waiters:
                    if not waiter.reason:
                        self.soften(waiter, job.payload, errors.Unavailable.code)
        for waiter, request in self._broker.limbo.items():
            if not waiter.reason and now - waiter.arrived_s >= ladder.NO_WORKER_GRACE_S:
                self.soften(waiter, request.payload, errors.Unavailable.code)

    def started(self, job: Job, worker: Worker) -> None:
        """A call goes out."""
        self.circuits.sent(worker.backend, first=job.attempt == 1)
        self._no_alarm(job)

    def finished(self, backend: str, now: float) -> None:
        """A call ended as it should, or in a way that shows that its backend is well."""
        if self.circuits.success(backend, now):
            self._broker.counters["breaker_closed"] += 1

    # --- small things --------------------------------------------------------------------------------

    def _alarm(self, job: Job, at_s: float) -> None:
        self._no_alarm(job)
        job.alarm_s = at_s
        self.alarms.add(job, at_s)

    def _no_alarm(self, job: Job) -> None:
        if job.alarm_s:
            self.alarms.discard(job, job.alarm_s)
            job.alarm_s = 0.0

    def _share(self, job: Job) -> None:
        """Whoever asks the same meanwhile joins this run, unless another identical one took the place."""
        if job.key is not None:
            self._broker.flights.setdefault(job.key, job)

    def _count(self, step: str) -> None:
        self._broker.counters[f"ladder_steps_total.{step}"] += 1

    def _refusal(self, job: Job, lane: Lane, now: float, *, displace: bool) -> errors.WalledError | None:
        latest = max(job.waiters, key=lambda waiter: waiter.deadline_s)
        return self._broker.refusal(lane, job.rank, job.payload_bytes, latest, now, displace=displace)

    def _until_s(self, job: Job) -> float:
        return max(waiter.deadline_s for waiter in job.waiters)

    def _circuit_open(self, lane: Lane, now: float) -> ErrorHeader:
        backends = self._dispatcher.fleet.backends_of(lane.name)
        wait_s = min((self.circuits.opens_in_s(name, now) for name in backends), default=0.0) or PROBE_S
        names = ", ".join(backends)
        return protocol.error_header(
            errors.Unavailable(
                f"backend {names} is left alone after failures, or at its own wish",
                retry_after_s=round(max(0.1, wait_s), 3),
            )
        )


def _note(job: Job, error: ErrorHeader) -> Fall:
    fall = job.fall
    if fall is None:
        fall = job.fall = Fall(error)
    else:
        fall.error = error if fall.error is ARRIVAL else ladder.cause(fall.error, error)
    return fall


def _pass_over(fall: Fall, verdict: ladder.Verdict) -> None:
    """The steps that an error rules out."""
    if not verdict.other:
        fall.models_over = True
    elif not verdict.elsewhere and fall.stage == Stage.SAME:
        fall.stage = Stage.STALE


def _nobody(lane: Lane) -> ErrorHeader:
    return protocol.error_header(
        errors.Unavailable(f"no worker serves {lane.model} at present", retry_after_s=2.0)
    )


def _wider(workers: list[Worker], model: str, window: int) -> bool:
    """Whether a place may hold more than `window` tokens: 0 is not known."""
    return any(not (found := worker.models[model].context_tokens) or found > window for worker in workers)
