"""The broker's state machine: `handle(event, now) -> [effect]`. Every request ends here, exactly once.

May live here: admission, coalescing, endings. May not: sockets, clocks, the cache, randomness, frames.
Which job starts next and where is dispatch.py's; what must always hold stands in invariants.py.

The rule that carries promise 1: a request is in `clients` from its arrival until `_end` sends its one ending;
nothing else removes it (but `_on_client_gone`: nobody is left to tell), and nothing else sends FINAL, ERROR
or BUSY.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from walled import errors, protocol
from walled.config import Config
from walled.core import admission, measured
from walled.core import events as ev
from walled.core.descent import Descent
from walled.core.dispatch import Dispatcher
from walled.core.fleet import Worker
from walled.core.flights import MAX_REPLAY_BYTES, Job, Waiter
from walled.core.ladder import reserve_s
from walled.core.lanes import Lane
from walled.core.limbo import Limbo
from walled.core.policy import Plan, plan
from walled.core.record import ModelMeta
from walled.core.timers import Deadlines
from walled.payload import cache_key, scope
from walled.protocol import FinalHeader, JobHeader, Phases

RANKS = {name: rank for rank, name in enumerate(protocol.PRIORITIES)}
CLIENT_BEAT_S = 1.0
HISTORY = 256
CALLERS_PER_PLACE = 10
"""Callers who share a generation take no place in the queue; there are at most this times its places."""


class Broker:
    """All of the broker that can be decided without touching the world."""

    def __init__(self, config: Config, epoch: bytes) -> None:
        self.config = config
        self.epoch = epoch
        self.dispatcher = Dispatcher(config)
        self.clients: dict[bytes, dict[bytes, Waiter]] = {}
        self.callers = 0
        """Requests in `clients`."""
        self.flights: dict[bytes, Job] = {}
        """Shareable jobs by cache key."""
        self.limbo = Limbo(self)
        self.deadlines: Deadlines[Waiter] = Deadlines()
        self.draining = False
        self.until_s = {"shed": 0.0, "fallback": 0.0}
        """Remedies that are in force, and until when: ev.Steer."""
        self.counters: Counter[str] = Counter()
        self.history: deque[tuple[Any, ...]] = deque(maxlen=HISTORY)
        self._next_job = 0
        self.measurements: list[tuple[Any, ...]] = []
        """Endings since the shell took them last: core/measured.py."""
        self.unmeasured = 0
        self.effects: list[ev.Effect] = []
        """Of the event that is being handled."""
        self._last_tick_s: float | None = None
        self._worker_beat_s = 0.0
        self._client_beat_s = 0.0
        self.descent = Descent(self)
        self._table: dict[type, Callable[[Any, float], None]] = {
            ev.ClientRequest: self._on_request,
            ev.ClientCancel: self._on_cancel,
            ev.ClientGone: self._on_client_gone,
            ev.WorkerReady: self._on_ready,
            ev.WorkerPartial: self._on_partial,
            ev.WorkerFinal: self._on_final,
            ev.WorkerError: self._on_error,
            ev.WorkerCredit: self._on_credit,
            ev.WorkerBeat: self._on_beat,
            ev.WorkerGone: self._on_worker_gone,
            ev.DrainWorker: self._on_drain_worker,
            ev.Drain: self._on_drain,
            ev.Abort: self._on_abort,
            ev.Steer: self._on_steer,
            ev.Found: self.descent.lookups.on_found,
            ev.Tick: self._on_tick,
        }

    # --- in and out --------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """Apply one event at monotonic time `now` (seconds); returns what is to be done, in order."""
        self.history.append((now, type(event), event[0], event[1]))
        effects: list[ev.Effect] = []
        self.effects = effects
        self._table[type(event)](event, now)
        return effects

    def prepare(
        self, header: protocol.RequestHeader, payload: bytes, meta: ModelMeta | None = None
    ) -> tuple[bytes | None, Plan]:
        """(cache key, plan) of a request; the key is None when the plan needs none.

        `meta` is what the cache remembers of a model no worker serves at present.
        """
        meta = self.dispatcher.metas.get(header.model) or meta
        chosen = plan(header.cache, header.deterministic, meta)
        if meta is None or not (chosen.read or chosen.coalesce):
            return None, chosen
        return cache_key(scope(header.namespace, header.context), meta.fingerprint, payload), chosen

    def next_timer_s(self) -> float | None:
        """When a Tick is next due for a deadline or a retry; None when nothing waits."""
        first_s, other_s = self.deadlines.next_s(), self.descent.alarms.next_s()
        if first_s is None or other_s is None:
            return other_s if first_s is None else first_s
        return min(first_s, other_s)

    def reconfigure(self, config: Config) -> None:
        """Take over limits and policies; queues and running jobs stay."""
        self.config = config
        self.dispatcher.reconfigure(config)
        self.descent.reconfigure()

    # --- requests ----------------------------------------------------------------------------------

    def _on_request(self, event: ev.ClientRequest, now: float) -> None:
        header = event.header
        self.counters["requests"] += 1
        table = self.clients.get(event.client)
        if table is not None and event.request_id in table:
            self.counters["duplicates"] += 1
            return
        deadline_s = now + min(header.deadline_ms / 1000.0, self.config.broker.max_deadline_s)
        waiter = Waiter(event.client, event.request_id, header, now, deadline_s)
        if table is None:
            self.clients[event.client] = {event.request_id: waiter}
        else:
            table[event.request_id] = waiter
        self.callers += 1
        waiter.due_s = deadline_s - reserve_s(self.config.ladder, deadline_s - now)
        self.deadlines.add(waiter, waiter.due_s)
        descent = self.descent
        if (
            (header.mode or descent.templates_first)
            and not self.draining
            and descent.lookups.begins(waiter, event)
        ):
            return
        if event.cached is not None:
            total_ms = 0.0
            final = FinalHeader(source="cache", age_s=event.cached_age_s, phases=Phases(total_ms=total_ms))
            self.end(waiter, protocol.FINAL, final, event.cached.answer, "cache")
        elif self.draining:
            self.refuse(waiter, errors.Draining("the daemon is stopping", retry_after_s=2.0))
        else:
            self.admit(waiter, event, now)

    def admit(self, waiter: Waiter, event: ev.ClientRequest, now: float) -> None:
        """Let a request join a generation in flight, begin one, or wait for its turn."""
        header = waiter.header
        dispatcher = self.dispatcher
        if "\0" in header.model:  # the places of a model at one backend are not for callers
            self.limbo.take(waiter, event)
            return
        route = waiter.route = dispatcher.route(header.model)
        first = route.targets[0]
        place = first.lane if first.backend else first.model
        lane = dispatcher.lanes.get(place)
        several = len(route.targets) > 1
        if lane is None and not (several and any(t.lane in dispatcher.lanes for t in route.targets)):
            self.limbo.take(waiter, event)
            return
        key, chosen = event.key, event.plan
        if chosen is None or (key is None and chosen.coalesce):
            key, chosen = self.prepare(header, event.payload)
        if chosen.only:
            self.fail(
                waiter, errors.NotCached(f"no fresh answer of {first.model} is stored for this request")
            )
            return
        if key is not None and chosen.coalesce:
            job = self.flights.get(key)
            if job is not None:
                if self.callers <= CALLERS_PER_PLACE * self.config.broker.queue_max_requests:
                    self._join(job, waiter, now)
                else:
                    self.refuse(waiter, errors.Overloaded("too many callers wait", retry_after_s=1.0))
                return
        rank = 2 if header.background else RANKS[header.priority]
        job = self.new_job(waiter.client, place, event.payload, rank, now)
        job.waiters.append(waiter)
        waiter.job = job
        job.store = chosen.store
        if key is not None and chosen.coalesce:
            job.key = key
        if lane is None or several or dispatcher.fleet.blocked:
            self.descent.arrived(job, now)
            return
        refusal = self.refusal(lane, rank, len(event.payload), waiter, now)
        if refusal is not None:
            self.descent.refused(job, refusal, now)
            return
        if job.key is not None:
            self.flights[job.key] = job
        worker = dispatcher.at_once(lane, header.session, now)
        if worker is not None:
            self.start(job, worker, now)
            return
        dispatcher.put(job, now)
        self.descent.queued(job, lane, now)

    def new_job(self, client: bytes, place: str, payload: bytes, rank: int, now: float) -> Job:
        """A generation that is to run at a place, and is not there yet."""
        self._next_job = number = self._next_job + 1
        return Job(number.to_bytes(8, "big"), client, place, payload, rank, now)

    def refusal(
        self, lane: Lane, rank: int, size: int, waiter: Waiter, now: float, *, displace: bool = True
    ) -> errors.WalledError | None:
        """Why a request cannot be taken; None when it can. `displace`: others may make room for it."""
        limits = self.config.broker
        dispatcher = self.dispatcher
        why = ""
        if now < self.until_s["shed"] and self._sheddable(lane, rank):
            self.counters["shed"] += displace
            why = "load is shed: only urgent requests, and those that need not wait, are taken"
        elif lane.count:
            why = admission.untimely(dispatcher, lane, rank, waiter.client, waiter.deadline_s, now)
        full = (
            dispatcher.queued >= limits.queue_max_requests
            or dispatcher.queued_bytes + size > limits.queue_max_bytes
        )
        if full and not why and dispatcher.at_once(lane, "", now) is None:
            victims = admission.displaced(dispatcher, rank, waiter.client, size) if displace else None
            if victims is None:
                why = f"the queue is full ({dispatcher.queued} requests, {dispatcher.queued_bytes} bytes)"
            for victim in victims or ():
                self._shed(victim, "displaced", "the queue is full, and it made room for others", now)
        if not why:
            return None
        left_s = waiter.deadline_s - now
        return errors.Overloaded(why, retry_after_s=dispatcher.retry_after_s(lane, rank, left_s, now))

    def _shed(self, job: Job, how: str, why: str, now: float) -> None:
        """Let a waiting job, or one whose turn has come, not be run after all."""
        self.counters[f"shed.{how}"] += 1
        left_s = max(waiter.deadline_s for waiter in job.waiters) - now
        lane = self.dispatcher.lanes[job.lane]
        error = errors.Overloaded(
            why, retry_after_s=self.dispatcher.retry_after_s(lane, job.rank, left_s, now)
        )
        # Who made room must not take it again elsewhere.
        self.descent.shed(job, protocol.error_header(error), now, models_over=how == "displaced")

    def _sheddable(self, lane: Lane, rank: int) -> bool:
        """Batch and background always, normal when it would have to wait, interactive never."""
        waits = bool(lane.count) or self.dispatcher.fleet.choose(lane.model) is None
        return rank == len(RANKS) - 1 or (rank > 0 and waits)

    def _on_steer(self, event: ev.Steer, now: float) -> None:
        self.until_s[event.what] = now + event.for_s

    def accepted(self, waiter: Waiter, lane: Lane, rank: int) -> None:
        """Tell a caller that it has to wait, and how long about."""
        ahead = max(0, lane.ahead_of(rank) - 1)
        eta_s = round(self.dispatcher.eta_s(lane, ahead), 3)
        header = protocol.AcceptedHeader(position=ahead, eta_s=eta_s)
        self.effects.append(ev.ToClient(waiter.client, protocol.ACCEPTED, waiter.request_id, header))

    def _join(self, job: Job, waiter: Waiter, now: float) -> None:
        """Another caller of an identical question: share the generation, whatever its state."""
        self.counters["coalesced"] += 1
        last_s = max((other.deadline_s for other in job.waiters), default=0.0)
        job.waiters.append(waiter)
        waiter.job = job
        if job.queued:
            lane = self.dispatcher.lanes[job.lane]
            lane.promote(job, RANKS[waiter.header.priority], now)
            if waiter.header.accept:
                self.accepted(waiter, lane, job.rank)
            return
        if job.worker is None:
            return  # it rests before a retry
        if waiter.deadline_s > last_s:
            left_ms = max(1, int((waiter.deadline_s - now) * 1000))
            self._order(job, {"op": "deadline", "deadline_ms": left_ms})
        if waiter.header.stream:
            if not job.streaming:
                job.streaming = True
                self._order(job, {"op": "stream"})
            elif job.replayable:
                for header, text in job.emitted:
                    self.effects.append(
                        ev.ToClient(waiter.client, protocol.PARTIAL, waiter.request_id, header, text)
                    )
                waiter.streamed = bool(job.emitted)
            else:
                waiter.takes_text = False

    def _order(self, job: Job, order: dict[str, Any]) -> None:
        assert job.worker is not None
        self.effects.append(
            ev.ToWorker(job.worker.identity, protocol.CONTROL, job.job_id, None, protocol.pack_map(order))
        )

    def _on_cancel(self, event: ev.ClientCancel, now: float) -> None:
        waiter = self.clients.get(event.client, {}).get(event.request_id)
        if waiter is None:
            return  # it has ended: its ending is on the way
        self.leave(waiter, now)
        self.fail(waiter, errors.Cancelled("cancelled by the caller"))
        self.dispatch(now)

    def _on_client_gone(self, event: ev.ClientGone, now: float) -> None:
        """Nobody can be told any more: end its requests without a message."""
        for waiter in list(self.clients.get(event.client, {}).values()):
            self.leave(waiter, now)
            self._forget(waiter)
            self.counters[f"ended.client_{event.reason}"] += 1
        self.dispatch(now)

    def leave(self, waiter: Waiter, now: float) -> None:
        """Take a caller off its job; a job nobody waits for is dropped, or cancelled at its worker."""
        self.limbo.leave(waiter)
        self.descent.lookups.first.pop(waiter, None)
        job = waiter.job
        if job is None:
            return
        job.waiters.remove(waiter)
        waiter.job = None
        self.descent.left(job, waiter, now)
        if job.waiters:
            return
        self.unshare(job)
        if job.queued:
            self.dispatcher.drop(job)
        elif job.worker is not None:
            self.effects.append(ev.ToWorker(job.worker.identity, protocol.CANCEL, job.job_id))

    # --- endings -----------------------------------------------------------------------------------

    def end(self, waiter: Waiter, kind: bytes, header: Any, payload: bytes, outcome: str) -> None:
        """The one place where a request ends."""
        self._forget(waiter)
        if waiter.restart and kind == protocol.FINAL:
            # What was shown is of an answer that died: an empty beginning takes it back.
            anew = protocol.PartialHeader(0, True)
            self.effects.append(ev.ToClient(waiter.client, protocol.PARTIAL, waiter.request_id, anew))
        self.counters[f"ended.{outcome}"] += 1
        if len(self.measurements) < measured.MAX_KEPT:
            now = self.history[-1][0]
            asked = waiter.header.model
            self.measurements.append((asked, kind, outcome, header, waiter.arrived_s, now))
        else:
            self.unmeasured += 1
        self.effects.append(ev.ToClient(waiter.client, kind, waiter.request_id, header, payload))

    def _forget(self, waiter: Waiter) -> None:
        table = self.clients[waiter.client]
        del table[waiter.request_id]
        self.callers -= 1
        if not table:
            del self.clients[waiter.client]
        self.deadlines.discard(waiter, waiter.due_s)

    def fail(self, waiter: Waiter, error: errors.WalledError) -> None:
        self.end(waiter, protocol.ERROR, protocol.error_header(error), b"", error.code)

    def refuse(self, waiter: Waiter, error: errors.WalledError) -> None:
        self.end(waiter, protocol.BUSY, protocol.error_header(error), b"", f"refused_{error.code}")

    def unshare(self, job: Job) -> None:
        """Nobody joins this job from now on."""
        if job.key is not None and self.flights.get(job.key) is job:
            del self.flights[job.key]

    # --- dispatch ------------------------------------------------------------------------------------

    def dispatch(self, now: float) -> None:
        """Start what can be started, while workers have room."""
        dispatcher = self.dispatcher
        while dispatcher.waiting and (found := dispatcher.take(now)) is not None:
            job, worker = found
            for waiter in [waiter for waiter in job.waiters if waiter.deadline_s <= now]:
                self._expire(waiter, now)  # drops the job with its last caller
            if job.waiters and (why := admission.late(dispatcher, job, now)):
                self._shed(job, "late", why, now)
            elif job.waiters:
                self.start(job, worker, now)

    def start(self, job: Job, worker: Worker, now: float) -> None:
        """Give a job to a worker that has room for it."""
        waiters = job.waiters
        header = waiters[0].header
        deadline_s = waiters[0].deadline_s
        stream = header.stream
        if len(waiters) > 1:
            deadline_s = max(waiter.deadline_s for waiter in waiters)
            stream = any(waiter.header.stream for waiter in waiters)
        job.streaming = stream
        job.attempt += 1
        self.dispatcher.started(job, worker, now)
        descent = self.descent
        descent.circuits.sent(worker.backend, first=job.attempt == 1)
        if job.alarm_s:
            descent.no_alarm(job)
        first_token_ms = 0
        if len(waiters[0].route.targets) > 1 or self.dispatcher.fleet.several:
            first_token_ms = descent.places.first_token_ms(job, deadline_s, now)
        self.effects.append(
            ev.ToWorker(
                worker.identity,
                protocol.REQUEST,
                job.job_id,
                JobHeader(
                    model=job.model,
                    deadline_ms=max(1, int((deadline_s - now) * 1000)),
                    kind=header.kind,
                    stream=stream,
                    deterministic=header.deterministic,
                    store=job.store,
                    namespace=header.namespace,
                    session=header.session,
                    context=header.context,
                    trace=waiters[0].request_id.hex(),
                    attempt=job.attempt,
                    first_token_ms=first_token_ms,
                ),
                job.payload,
            )
        )

    # --- workers -----------------------------------------------------------------------------------

    def _on_ready(self, event: ev.WorkerReady, now: float) -> None:
        if self.dispatcher.add_worker(event.worker, event.header, now):
            self.counters["workers_ready"] += 1
            self.descent.circuits.proved(event.header.backend, now)
        self.limbo.admit_all(now)
        self.dispatch(now)

    def _on_partial(self, event: ev.WorkerPartial, now: float) -> None:
        worker, job = self._job_of(event.worker, event.request_id, now)
        if worker is None or job is None:
            return
        if not job.begun:
            self.dispatcher.first_token(job, worker, now - job.dispatched_s, now)
        if job.key is not None and job.replayable:
            job.emitted_bytes += len(event.payload) + len(event.header)
            if job.emitted_bytes > MAX_REPLAY_BYTES:
                job.replayable = False
                job.emitted.clear()
            else:
                job.emitted.append((event.header, event.payload))
        if job.restarting:
            self._begin_anew(job, event)
            return
        for waiter in job.waiters:
            if waiter.takes_text:
                waiter.streamed = True
                self.effects.append(
                    ev.ToClient(
                        waiter.client, protocol.PARTIAL, waiter.request_id, event.header, event.payload
                    )
                )

    def _begin_anew(self, job: Job, event: ev.WorkerPartial) -> None:
        """The first text of an attempt after one that died: who saw text of that is told to drop it."""
        job.restarting = False
        for waiter in job.waiters:
            if not waiter.takes_text:
                continue
            header = protocol.PartialHeader(0, True) if waiter.restart else event.header
            waiter.streamed, waiter.restart = True, False
            self.effects.append(
                ev.ToClient(waiter.client, protocol.PARTIAL, waiter.request_id, header, event.payload)
            )

    def _job_of(self, identity: bytes, job_id: bytes, now: float) -> tuple[Worker | None, Job | None]:
        worker = self.dispatcher.fleet.workers.get(identity)
        if worker is None:
            self._stranger(identity)
            return None, None
        worker.heard_s = now
        job = worker.jobs.get(job_id)
        if job is None:
            self.counters["late_results"] += 1
        return worker, job

    def _stranger(self, identity: bytes) -> None:
        """A worker that is not (any more) in the table: it must introduce itself again."""
        self.counters["stranger_messages"] += 1
        self.effects.append(ev.ToWorker(identity, protocol.DISCONNECT, b""))

    def _on_final(self, event: ev.WorkerFinal, now: float) -> None:
        worker, job = self._job_of(event.worker, event.request_id, now)
        if worker is None or job is None:
            return
        theirs, phases = event.header, event.header.phases
        if not job.begun and phases.first_token_ms > 0.0:
            took_s = max(0.0, phases.first_token_ms - phases.load_ms) / 1000
            self.dispatcher.first_token(job, worker, took_s, now)
        self._free(worker, job)
        worker.served += 1
        self.dispatcher.lanes[job.lane].observe(now - job.dispatched_s)
        if self.descent.circuits.success(worker.backend, now):
            self.counters["breaker_closed"] += 1
        source, degraded, reason = theirs.source, theirs.degraded, theirs.reason
        if job.fallback and job.fall is not None:
            source, degraded, reason = "fallback_model", True, job.fall.error.code
        for waiter in job.waiters:
            final = FinalHeader(
                source=source,
                degraded=degraded,
                reason=reason,
                backend=worker.backend,
                worker=worker.slot,
                attempts=job.attempt,
                partials=theirs.partials,
                stored=theirs.stored,
                phases=Phases(
                    queue_ms=max(0.0, (job.dispatched_s - waiter.arrived_s) * 1000.0),
                    load_ms=phases.load_ms,
                    prefill_ms=phases.prefill_ms,
                    decode_ms=phases.decode_ms,
                    first_token_ms=phases.first_token_ms,
                    store_ms=phases.store_ms,
                    total_ms=(now - waiter.arrived_s) * 1000.0,
                ),
            )
            self.end(waiter, protocol.FINAL, final, event.payload, source)
            source = source if job.fallback else "coalesced"
        self._done_with(worker, now)

    def _on_error(self, event: ev.WorkerError, now: float) -> None:
        worker, job = self._job_of(event.worker, event.request_id, now)
        if worker is None or job is None:
            return
        code = event.header.code
        if code == errors.BackendOverloaded.code or (code == errors.BackendTimeout.code and not job.begun):
            self.dispatcher.overloaded(worker, now)
        self._free(worker, job)
        if code in (errors.Cancelled.code, errors.Draining.code):
            if not job.waiters:
                self.dispatcher.lanes[job.lane].outlasted(now - job.dispatched_s)
            # Nobody waits: our own CANCEL worked. Somebody does: the worker gave the job up (it is stopping).
            self.descent.circuits.inconclusive(worker.backend, now)
            self.descent.lost(job, now)
        else:
            self.descent.failed(job, worker, event.header, now)
        self._done_with(worker, now)

    def _free(self, worker: Worker, job: Job) -> None:
        del worker.jobs[job.job_id]
        job.worker = None
        self.unshare(job)

    def _done_with(self, worker: Worker, now: float) -> None:
        if worker.draining:
            self._tell_drained(worker)
        if self.dispatcher.waiting:
            self.dispatch(now)

    def _tell_drained(self, worker: Worker) -> None:
        if not worker.jobs and not worker.drained_told:
            worker.drained_told = True
            self.effects.append(ev.WorkerDrained(worker.slot))

    def _on_credit(self, event: ev.WorkerCredit, now: float) -> None:
        worker = self.dispatcher.fleet.workers.get(event.worker)
        if worker is None:
            self._stranger(event.worker)
            return
        worker.heard_s = now
        if event.slots and not worker.slots:
            self.descent.circuits.proved(worker.backend, now)
        worker.slots = event.slots
        worker.shrunk = len(worker.jobs) > event.slots
        self.dispatcher.fleet.index()
        self.dispatch(now)

    def _on_beat(self, event: ev.WorkerBeat, now: float) -> None:
        worker = self.dispatcher.fleet.workers.get(event.worker)
        if worker is None:
            self._stranger(event.worker)
        else:
            worker.heard_s = now

    def _on_worker_gone(self, event: ev.WorkerGone, now: float) -> None:
        worker = self.dispatcher.remove_worker(event.worker, now)
        if worker is None:
            return
        self.counters[f"workers_lost.{event.reason}"] += 1
        if worker.jobs and event.reason != "left":
            self.descent.backend_failed(worker.backend, now)
        else:
            self.descent.circuits.inconclusive(worker.backend, now)
        for job in list(worker.jobs.values()):
            self._free(worker, job)
            self.descent.lost(job, now)
        self.descent.evacuate(now)
        self.dispatch(now)

    def _on_drain_worker(self, event: ev.DrainWorker, now: float) -> None:
        for worker in self.dispatcher.fleet.of_slot(event.worker):
            worker.draining = True
            self.dispatcher.fleet.index()
            self._tell_drained(worker)

    # --- the daemon's life ---------------------------------------------------------------------------

    def _on_drain(self, event: ev.Drain, now: float) -> None:
        self.draining = True
        self.limbo.refuse_all(errors.Draining("the daemon is stopping", retry_after_s=2.0))

    def _on_abort(self, event: ev.Abort, now: float) -> None:
        self.draining = True
        for table in list(self.clients.values()):
            for waiter in list(table.values()):
                self.leave(waiter, now)
                self.fail(waiter, event.error)

    @property
    def idle(self) -> bool:
        """Nobody waits for anything."""
        return not self.clients

    def _expire(self, waiter: Waiter, now: float) -> None:
        self.descent.abandoned(waiter, now)
        self.leave(waiter, now)
        self.fail(
            waiter,
            errors.DeadlineExceeded(
                f"no answer within {waiter.deadline_s - waiter.arrived_s:.3f} s", retry_after_s=1.0
            ),
        )

    def _on_tick(self, event: ev.Tick, now: float) -> None:
        for waiter in self.deadlines.due(now):
            if self.clients.get(waiter.client, {}).get(waiter.request_id) is not waiter:
                continue  # another's end has ended it: their backend was given up
            if now < waiter.deadline_s:
                waiter.due_s = self.descent.short_of_time(waiter, now)
                self.deadlines.add(waiter, waiter.due_s)
            else:
                self._expire(waiter, now)
        self.descent.due(now)
        self.descent.tick(now)
        self.dispatcher.age(now)
        for job in self.dispatcher.overdue(now):
            if job.queued and (why := admission.late(self.dispatcher, job, now)):
                self._shed(job, "late", why, now)
        self._tick_workers(now)
        self.limbo.tick(now)
        self._tick_unserved(now)
        self.dispatch(now)
        if now - self._client_beat_s >= CLIENT_BEAT_S:
            # Finds callers that have gone (the send fails) and shows the others that the broker lives.
            self._client_beat_s = now
            beat = protocol.HeartbeatHeader(epoch=self.epoch)
            self.effects += [ev.ToClient(client, protocol.HEARTBEAT, b"", beat) for client in self.clients]

    def _tick_workers(self, now: float) -> None:
        broker = self.config.broker
        last, self._last_tick_s = self._last_tick_s, now
        if last is not None and now - last > broker.worker_liveness_s / 2:
            # We were stopped ourselves: what the workers sent meanwhile is still in the sockets.
            for worker in self.dispatcher.fleet.workers.values():
                worker.heard_s = now
        if now - self._worker_beat_s < broker.heartbeat_s:
            return
        self._worker_beat_s = now
        for worker in list(self.dispatcher.fleet.workers.values()):
            if now - worker.heard_s > broker.worker_liveness_s:
                self._on_worker_gone(ev.WorkerGone(worker.identity, reason="silent"), now)
        beat = protocol.HeartbeatHeader(epoch=self.epoch)
        self.effects += [
            ev.ToWorker(identity, protocol.HEARTBEAT, b"", beat) for identity in self.dispatcher.fleet.workers
        ]

    def _tick_unserved(self, now: float) -> None:
        """Give up waiting for workers that do not come back in time."""
        limit_s = self.config.broker.start_wait_s
        waiting = self.dispatcher.waiting
        for model, since in self.dispatcher.down_since.items():
            if now - since < limit_s or model not in waiting:
                continue
            for job in list(waiting[model].waiting()):
                for waiter in [w for w in job.waiters if now - w.arrived_s >= limit_s]:
                    self.leave(waiter, now)
                    self.refuse(
                        waiter,
                        errors.Unavailable(f"no worker serves {model} at present", retry_after_s=2.0),
                    )
