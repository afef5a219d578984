"""Which job starts next and where: the lanes of all models, the fleet, and whose model may be loaded.

May live here: queueing, the choice of the next (job, worker), waiting estimates, what models there are.
May not: callers, deadlines, endings (broker.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from walled.config import Config
from walled.core import codel
from walled.core.fleet import Fleet, Worker
from walled.core.flights import Job
from walled.core.lanes import CLASSES, Lane
from walled.core.policy import aliases, meta_of
from walled.core.record import ModelMeta
from walled.core.residence import Residence
from walled.core.routes import Route, resolve, routes
from walled.protocol import ReadyHeader

AGED_EVERY = 5
"""Of so many starts one goes to a class that has waited long."""


class Dispatcher:
    """Everything between "a job exists" and "a worker has it"."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fleet = Fleet()
        self.lanes: dict[str, Lane] = {}
        self.waiting: dict[str, Lane] = {}
        """The lanes that are not empty."""
        self.residences: dict[str, Residence] = {}
        self.metas: dict[str, ModelMeta] = {}
        """By model name and by alias."""
        self.aliases: dict[str, str] = {}
        self._routes = routes(config)
        self._resolved: dict[str, Route] = {}
        self._passed = 0
        """Starts since one went to who waited long."""
        self.queued = 0
        self.queued_bytes = 0
        self.down_since: dict[str, float] = {}
        """Models no connected worker serves any more, and since when."""

    # --- workers and their models --------------------------------------------------------------------

    def add_worker(self, identity: bytes, header: ReadyHeader, now: float) -> bool:
        """A worker introduced itself, or tells of changed models or slots; True when it is new."""
        worker = self.fleet.workers.get(identity)
        new = worker is None
        if worker is None:
            worker = Worker(identity, header, now)
        else:
            worker.slots = header.slots
            worker.models = {model.name: model for model in header.models}
            worker.heard_s = now
        self._learn_limit(worker.backend)
        self.fleet.add(worker)
        residence = self.residences.setdefault(worker.backend, Residence(header.max_loaded_models))
        residence.limit = header.max_loaded_models
        self.learn_models(worker)
        for name in worker.models:
            self.down_since.pop(name, None)
        return new

    def learn_models(self, worker: Worker) -> None:
        """Names, aliases and cache rules of what a worker serves."""
        self._resolved.clear()
        for name, info in worker.models.items():
            self.metas[name] = meta_of(self.config, worker.backend, worker.kind, info)
            for lane in (Lane(name), Lane(name, worker.backend)):
                self.lanes.setdefault(lane.name, lane)
        for alias, name in aliases(self.config, worker.backend, list(worker.models)).items():
            self.aliases[alias] = name
            self.metas[alias] = self.metas[name]

    def _learn_limit(self, backend: str) -> None:
        configured = self.config.enabled_backends().get(backend)
        self.fleet.limit(backend, configured is not None and configured.adaptive_limit)

    def remove_worker(self, identity: bytes, now: float) -> Worker | None:
        worker = self.fleet.remove(identity)
        if worker is not None:
            for name in worker.models:
                if not self.fleet.by_place.get(name):
                    self.down_since.setdefault(name, now)
        return worker

    # --- the queue -------------------------------------------------------------------------------------

    def put(self, job: Job, now: float, *, front: bool = False) -> None:
        """Let a job wait; `front` for one whose worker died."""
        lane = self.lanes[job.lane]
        left_s = max(waiter.deadline_s for waiter in job.waiters) - now
        patience_s = codel.patience_s(lane.service_s, left_s, self.config.broker.queue_patience)
        job.call_s = now + codel.CALL * patience_s
        # Who came before the queue stood was taken for as long as an answer is possible at all.
        patient = front or not lane.stands(job.rank)
        job.waits_until_s = now + (left_s - lane.service_s if patient else patience_s)
        if front:
            lane.push_front(job, now)
        else:
            lane.push(job, now)
        self.waiting[lane.name] = lane
        self.queued += 1
        self.queued_bytes += job.payload_bytes

    def drop(self, job: Job) -> None:
        """A waiting job has no caller left."""
        self.withdraw(job)
        job.payload = b""

    def withdraw(self, job: Job) -> None:
        """Take a waiting job out of its lane, to be run elsewhere or later."""
        lane = self.lanes[job.lane]
        lane.drop(job)
        self._taken(job, lane)

    def route(self, name: str) -> Route:
        """What the name of a request stands for."""
        route = self._resolved.get(name)
        if route is None:
            route = resolve(name, self._routes, self.aliases, self.config)
            if name in self._routes or name in self.aliases or name in self.lanes:
                self._resolved[name] = route  # only names that exist: a caller can invent many
        return route

    def reconfigure(self, config: Config) -> None:
        """Take over limits, routes and policies."""
        self.config = config
        self._routes = routes(config)
        for worker in self.fleet.workers.values():
            self.learn_models(worker)
            self._learn_limit(worker.backend)

    def _taken(self, job: Job, lane: Lane) -> None:
        self.queued -= 1
        self.queued_bytes -= job.payload_bytes
        if not lane.count:
            self.waiting.pop(lane.name, None)
            for residence in self.residences.values():
                residence.forget_switch(lane.model)

    def age(self, now: float) -> None:
        """Let time pass: a change of model where one is due."""
        limits = self.config.broker
        for backend, residence in self.residences.items():
            if not residence.limit:
                continue
            oldest = [
                (lane.model, since)
                for lane in self.waiting.values()
                if backend in self.fleet.backends_of(lane.name) and (since := lane.oldest_s()) is not None
            ]
            residence.consider_switch(
                oldest, now, max_wait_s=limits.max_wait_s, min_residence_s=limits.min_residence_s
            )

    # --- what starts -----------------------------------------------------------------------------------

    def at_once(self, lane: Lane, session: str, now: float) -> Worker | None:
        """A worker for a new job when none of its lane waits and one has room: the common case.

        It jumps no line: whatever waits in another lane could not start either, or it would have.
        """
        if lane.count:
            return None
        return self.fleet.choose(lane.name, session, self._shut(lane, now))

    def take(self, now: float) -> tuple[Job, Worker] | None:
        """Take the next job that can start now out of its lane, and the worker that shall run it.

        Most urgent class first, then longest wait; but every AGED_EVERY-th start goes to a class that was
        passed over for age_step_s for each class between. So a flood of urgent requests delays a batch
        request and cannot starve it, and a flood of batch requests takes a small share of what is urgent,
        however long it has waited.
        """
        lane = self._next_lane(now)
        head = lane.head() if lane is not None else None
        if lane is None or head is None:
            return None
        aged = self._aged(head[0], now)
        self._passed += aged is not None
        if aged is not None and self._passed >= AGED_EVERY:
            self._passed = 0
            lane, rank = aged
            job: Job | None = lane.pop_aged(rank)
        else:
            job = lane.pop(now)
        assert job is not None
        self._taken(job, lane)
        session = job.waiters[0].header.session
        worker = self.fleet.choose(lane.name, session, self._shut(lane, now))
        assert worker is not None
        return job, worker

    def _next_lane(self, now: float) -> Lane | None:
        if len(self.waiting) == 1:
            (lane,) = self.waiting.values()
            return lane if self._can_start(lane, now) else None
        heads = [(lane.head() or (99, 0.0), lane.name) for lane in self.waiting.values()]
        lanes = (self.lanes[name] for _, name in sorted(heads))
        return next((lane for lane in lanes if self._can_start(lane, now)), None)

    def _aged(self, rank: int, now: float) -> tuple[Lane, int] | None:
        """The (lane, class) worse than `rank` that has waited longest of those that have waited long enough
        to be passed over no more; None when none has, or it cannot start."""
        step_s = self.config.broker.age_step_s
        found = [
            (since_s, lane.name, worse)
            for lane in self.waiting.values()
            for worse in range(rank + 1, CLASSES)
            if lane.by_class[worse] and now - (since_s := lane.since_s(worse)) >= (worse - rank) * step_s
        ]
        for _, name, worse in sorted(found):
            if self._can_start(self.lanes[name], now):
                return self.lanes[name], worse
        return None

    def _can_start(self, lane: Lane, now: float) -> bool:
        return self.fleet.choose(lane.name, "", self._shut(lane, now)) is not None

    def started(self, job: Job, worker: Worker, now: float) -> None:
        """The job was given to the worker."""
        job.worker = worker
        job.dispatched_s = now
        job.begun = False
        residence = self.residences[worker.backend]
        if residence.limit:
            running = self._running(worker.backend)
            residence.started(job.model, now, running, self.config.broker.min_residence_s)
        worker.jobs[job.job_id] = job
        job.among = self.fleet.running(worker.backend)

    def _shut(self, lane: Lane, now: float) -> Collection[str]:
        """Backends that serve a lane, but have other models loaded at present."""
        shut: Collection[str] = ()
        for backend in self.fleet.backends_of(lane.name):
            residence = self.residences[backend]
            if residence.limit and not residence.may_start(
                lane.model,
                now,
                running=self._running(backend),
                min_residence_s=self.config.broker.min_residence_s,
            ):
                shut = (*shut, backend)
        return shut

    def _running(self, backend: str) -> Callable[[str], int]:
        def running(model: str) -> int:
            return sum(
                job.model == model
                for worker in self.fleet.workers.values()
                if worker.backend == backend
                for job in worker.jobs.values()
            )

        return running

    def overdue(self, now: float) -> list[Job]:
        """Waiting jobs whose patience is over, lowest class first."""
        late = [job for lane in self.waiting.values() for job in lane.overdue(now)]
        late.sort(key=lambda job: -job.rank)
        return late

    # --- what is learned -------------------------------------------------------------------------------

    def first_token(self, job: Job, worker: Worker, took_s: float, now: float) -> None:
        """The answer of a running job has begun, `took_s` after it was handed over."""
        job.begun = True
        limit = self.fleet.limits.get(worker.backend)
        if limit is not None and limit.first_token(took_s, job.among, now, self.lanes[job.lane].service_s):
            self.fleet.tighten()

    def overloaded(self, worker: Worker, now: float) -> None:
        """The backend of a worker refused a running job for load, or did not begin it in time."""
        limit = self.fleet.limits.get(worker.backend)
        if limit is not None and limit.overloaded(self.fleet.running(worker.backend), now):
            self.fleet.tighten()

    # --- estimates -------------------------------------------------------------------------------------

    def eta_s(self, lane: Lane, ahead: int) -> float:
        """Expected seconds until a request with `ahead` others before it starts (0: not known)."""
        slots = self.fleet.slots_for(lane.name)
        return (ahead + 1) * lane.service_s / slots if slots else 0.0

    def retry_after_s(self, lane: Lane, rank: int, left_s: float, now: float) -> float:
        """When a refused request of a class, with `left_s` until its deadline, should come again, between 0.1
        and 30 s: when half of those who go first have started. Those who come back get their times one after
        the other, as far apart as answers are: all at once, most of them would be refused again. Who will not
        come back, for it would be more than half of its time, takes nobody's."""
        slots = self.fleet.slots_for(lane.name) or 1
        each_s = (lane.service_s or 0.1) / slots
        at_s = max(now + lane.ahead_of(rank) * each_s / 2, lane.booked_s) + each_s
        if at_s - now <= left_s / 2:
            lane.booked_s = at_s
        return min(30.0, max(0.1, at_s - now))
