"""Requests on their way down the ladder: what failed, what is tried next, what is waited for meanwhile.

May live here: taking the steps that ladder.py allows, in order; the state between two of them. May not:
admission and endings (broker.py), where a job may run (places.py), lesser answers (lookups.py).

A job is always in one of these: queued in a lane, running at a worker, `resting` before a retry, or `between`
two steps while lookups for its callers are under way. Callers who share a job go down together for as long as
their routes agree; a lesser answer is looked up, and may be refused, for each alone.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from walled import errors, protocol
from walled.core import ladder
from walled.core.breaker import Circuits
from walled.core.fleet import Worker
from walled.core.flights import Fall, Job, Waiter
from walled.core.ladder import Stage
from walled.core.lanes import Lane
from walled.core.lookups import Lookups
from walled.core.patience import first_token_ms
from walled.core.places import ARRIVAL, Places, dark
from walled.core.timers import Deadlines
from walled.protocol import ErrorHeader

if TYPE_CHECKING:
    from walled.core.broker import Broker

MAX_DEATHS = 2
"""A request whose worker died is run again once."""


class Descent:
    """The part of one Broker that begins where an answer does not come."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._dispatcher = broker.dispatcher
        self.circuits = Circuits(broker.config.ladder, broker.dispatcher.fleet.blocked)
        self.between: dict[Job, None] = {}
        self.resting: dict[Job, None] = {}
        self.places = Places(broker.dispatcher, self.circuits)
        self.lookups = Lookups(broker)
        self.alarms: Deadlines[Job] = Deadlines()
        """Of queued jobs: the end of patience with their place; of resting ones: the retry."""
        self.dark_since: dict[str, float] = {}
        """Lanes with waiting jobs that no worker could take, and since when."""
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

    # --- after a failure -----------------------------------------------------------------------------

    def arrived(self, job: Job, now: float) -> None:
        """A new job finds its place: the first of its route that takes it."""
        self.circuits.tick(now)
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
        self.no_alarm(job)
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
        self.count("retry")
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
        twin = self._broker.new_job(
            others[0].client, others[0].route.targets[0].lane, job.payload, job.rank, now
        )
        twin.waiters = others
        for waiter in others:
            waiter.job = twin
        twin.attempt, twin.restarting, twin.fall = job.attempt, job.restarting, copy(job.fall)
        self._go_on(twin, now, charged)

    def _ask(self, job: Job, fall: Fall, steps: tuple[str, ...]) -> bool:
        """Whether lesser answers are looked up for callers of a job: then it waits for what is found."""
        if self.lookups.ask(job, fall, steps):
            self.between[job] = None
            return True
        return False

    def _wanted(self, job: Job, fall: Fall) -> tuple[str, ...]:
        """A stale answer; with no fallback model to come between them a template in the same lookup."""
        if not fall.models_over and next(self.places.of(job, True), None) is not None:
            return ("stale",)
        fall.stage = Stage.TEMPLATE
        return ("stale", "template")

    def _move(self, job: Job, fall: Fall, fallback: bool, now: float, charged: str) -> bool:
        """Whether a place with the same model, or with another one, takes the job."""
        if fall.models_over:
            return False
        absent = None
        for lane in self.places.of(job, fallback):
            if not self._dispatcher.fleet.open_to(lane.name):
                if self._dispatcher.fleet.slots_for(lane.name):
                    _note(job, self.places.shut(lane, now))
                elif absent is None:
                    absent = lane
                continue
            refusal = self._refusal(job, lane, now, displace=fall.error is ARRIVAL)
            if refusal is not None:
                _note(job, protocol.error_header(refusal))
            elif self.places.paid(job, lane, charged):
                self._settle(job, lane, fallback, now)
                return True
        if absent is None or fallback or fall.error is not ARRIVAL:
            _note(job, dark(job.waiters[0].route.targets[0].model))
            return False
        # Nobody is there: who is being restarted is worth waiting for.
        refusal = self._refusal(job, absent, now, displace=True)
        if refusal is not None:
            _note(job, protocol.error_header(refusal))
            return False
        self._settle(job, absent, fallback, now)
        return True

    def _settle(self, job: Job, lane: Lane, fallback: bool, now: float) -> None:
        """The job's place is this one from now on."""
        again = job.attempt > 0
        if job.fall is not None and job.fall.error is ARRIVAL:
            job.fall = None
        elif job.fall is not None:
            self.count("fallback_model" if fallback else "other_backend")
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
        further = self.places.further(job)
        if further:
            until_s = self._until_s(job)
            left_s = until_s - now
            reserve_s = ladder.reserve_s(self._broker.config.ladder, left_s)
            self._alarm(job, now + first_token_ms(left_s, reserve_s, further) / 1000.0)
        if now < self._broker.until_s["fallback"]:
            self.lookups.ask_softly(job, errors.Overloaded.code)
        since_s = self.dark_since.get(lane.name)
        if since_s is not None and now - since_s >= ladder.NO_WORKER_GRACE_S:
            self.lookups.ask_softly(job, errors.Unavailable.code)

    def _give_up(self, job: Job, fall: Fall, now: float) -> None:
        error = fall.error
        busy = not job.attempt and error.code in ladder.NOT_BEGUN
        self.between.pop(job, None)
        for waiter in list(job.waiters):
            self.count("refusal")
            self._broker.leave(waiter, now)
            kind, outcome = (protocol.BUSY, f"refused_{error.code}") if busy else (protocol.ERROR, error.code)
            self._broker.end(waiter, kind, error, b"", outcome)

    def all_known(self, job: Job, now: float) -> None:
        """Take the next step as soon as the last lookup of a job has brought nothing."""
        if job in self.between and job.waiters and not any(waiter.hard for waiter in job.waiters):
            del self.between[job]
            assert job.fall is not None
            job.fall.stage = Stage(job.fall.stage + 1)
            self._go_on(job, now)

    # --- the passing of time, and who comes and goes -------------------------------------------------

    def left(self, job: Job, waiter: Waiter, now: float) -> None:
        """A caller has left a job."""
        if not job.waiters:
            self.between.pop(job, None)
            self.resting.pop(job, None)
            self.no_alarm(job)
        elif waiter.hard:
            self.all_known(job, now)

    def short_of_time(self, waiter: Waiter, now: float) -> float:
        """The reserve of a request begins; returns when it is to be looked at again."""
        if waiter in self.lookups.first:
            return waiter.deadline_s
        last_s = waiter.deadline_s - ladder.LAST_MOMENT_S
        if waiter.streamed and waiter.header.restarts and now < last_s:
            return last_s
        job, request = waiter.job, self._broker.limbo.request(waiter)
        code = errors.DeadlineExceeded.code
        if job is not None:
            code = job.fall.error.code if job.fall is not None else code
            self.lookups.soften(waiter, job.payload, code, begun=True)
        elif request is not None:
            self.lookups.soften(waiter, request.payload, code)
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
            for lane in self.places.open(job, own, fallback)
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
                    self.shed(job, self.places.shut(lane, now), now)
                elif any(True for _ in self.places.open(job, lane, False)):
                    self.shed(job, dark(lane.model), now)

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
                        self.lookups.soften(waiter, job.payload, errors.Unavailable.code)
        for waiter, request in self._broker.limbo:
            if not waiter.reason and now - waiter.arrived_s >= ladder.NO_WORKER_GRACE_S:
                self.lookups.soften(waiter, request.payload, errors.Unavailable.code)

    def finished(self, backend: str, now: float) -> None:
        """A call ended as it should, or in a way that shows that its backend is well."""
        if self.circuits.success(backend, now):
            self._broker.counters["breaker_closed"] += 1

    # --- small things --------------------------------------------------------------------------------

    def _alarm(self, job: Job, at_s: float) -> None:
        self.no_alarm(job)
        job.alarm_s = at_s
        self.alarms.add(job, at_s)

    def no_alarm(self, job: Job) -> None:
        """It is not looked at again but for other reasons."""
        if job.alarm_s:
            self.alarms.discard(job, job.alarm_s)
            job.alarm_s = 0.0

    def _share(self, job: Job) -> None:
        """Whoever asks the same meanwhile joins this run, unless another identical one took the place."""
        if job.key is not None:
            self._broker.flights.setdefault(job.key, job)

    def count(self, step: str) -> None:
        self._broker.counters[f"ladder_steps_total.{step}"] += 1

    def _refusal(self, job: Job, lane: Lane, now: float, *, displace: bool) -> errors.WalledError | None:
        latest = max(job.waiters, key=lambda waiter: waiter.deadline_s)
        return self._broker.refusal(lane, job.rank, job.payload_bytes, latest, now, displace=displace)

    def _until_s(self, job: Job) -> float:
        return max(waiter.deadline_s for waiter in job.waiters)


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
