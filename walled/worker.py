"""The worker: one backend adapter, its slots, its answers into the cache. A synchronous loop.

May live here: receiving jobs, handing them to the backend, sending what comes back. May not: queueing beyond
the slots, the meaning of a model's words, how jobs end (core/jobs.py), anything of one backend (adapters/).

One turn of the loop: wait for the broker's socket, the supervisor's link or the backend's events; take all
that came; send all that follows from it. Backends with threads put their events into the Mailbox, which wakes
the loop only when it sleeps; a backend that answers inside `submit` costs no system call.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from walled import config as cfg
from walled import link as lk
from walled import payload as pl
from walled import protocol as wire
from walled.adapters import logs, registry, template_files
from walled.adapters.backend import Backend, BackendInfo, Changed, Delta, Done, Failed, Job, Unloads
from walled.adapters.process import Link, LinkClosed
from walled.adapters.relief import Action, SelfRelief, worker_limits
from walled.adapters.reporting import Reporter
from walled.adapters.sockets import ConnectionEvent, Hub, Poller, Port
from walled.adapters.storing import Stored, Storer, open_storer
from walled.adapters.uplink import Mailbox, Uplink
from walled.core import served
from walled.core.jobs import Jobs, Partial, Running
from walled.core.memory import Limits, Remedy
from walled.errors import (
    BackendUnavailable,
    BadRequest,
    Blocked,
    Cancelled,
    ConfigError,
    Draining,
    InternalError,
    ModelNotFound,
    ProtocolError,
    WalledError,
)

if TYPE_CHECKING:
    from walled.core.validating import Validator

STATUS_S = 0.4
SWITCH_S = 0.0005
START_PAUSE_S = 0.2
START_PAUSE_MAX_S = 5.0
"""Pause between two tries to start a backend whose server is down; doubles up to this."""
STORE_WAIT_S = 0.050
"""Longest time a finished answer waits for its commit."""
STORE_CLOSE_S = 2.0
RETRY_SEND_S = 0.005
ON_THE_WAY_S = 0.1
"""A draining worker stays at least this long: jobs sent before the broker knew may still be arriving."""

_log = logging.getLogger("walled.worker")


class _Held(NamedTuple):
    """A finished answer that waits for its commit."""

    job: Running
    answer: bytes
    phases: wire.Phases
    since_s: float
    until_s: float


class Worker:
    """The loop and all it owns. `run` returns the exit status; `close` is always to be called after it."""

    def __init__(self, spawn: lk.Spawn, link: Link) -> None:
        self._spawn = spawn
        self._link = link
        self._config = cfg.from_plain(spawn.config, "configuration handed to the worker")
        self._place = served.place(self._config, spawn.slot, spawn.backend)
        self._defaults = served.default_options(self._place.config)
        limits = self._place.config
        self._jobs = Jobs(0, limits.first_token_timeout_s, limits.inter_token_timeout_s)
        self._models: dict[str, served.Model] = {}
        self._rules = self._validator()
        self._info: BackendInfo | None = None
        self._served_slots = 0
        self._backend: Backend = registry.create(
            spawn.backend, self._place.config, self._place.slots, cfg.run_dir(self._config)
        )
        self._storer: Storer | None = None
        self._held: dict[int, _Held] = {}
        self._epoch = os.urandom(8)
        self._broker_epoch = b""
        self._heard_s = 0.0
        self._credit_told = -1
        self._draining = False
        self._drain_until_s = self._leave_after_s = 0.0
        self._exit: int | None = None
        self._next_beat_s = self._next_status_s = 0.0
        self._hub = Hub()
        endpoints = cfg.endpoints(cfg.run_dir(self._config))
        self._reporter = Reporter(self._hub, endpoints.delta, f"worker {spawn.slot}")
        self._count = self._reporter.count
        self._relief = SelfRelief(self._config.memory, self._memory_limits(), self._count, self._remedies())
        self._mailbox = Mailbox()
        self._uplink = Uplink(self._hub, endpoints.worker, [link.fileno(), self._mailbox.fileno()])
        self._waiting_room = Poller([], [link.fileno()])
        """While there is nothing to serve yet, only the supervisor is listened to."""

    # --- life ---

    def run(self) -> int:
        self._storer = open_storer(self._config, self._mailbox.post)
        info = self._started()
        if info is None:
            return 0
        self._serve(info)
        names = ", ".join(self._models)
        _log.info("backend %s: %d slots, models: %s", self._spawn.backend, self._jobs.slots, names)
        while self._exit is None:
            now = time.monotonic()
            ready = self._mailbox.wait(self._uplink.poller, max(0.0, self._wake_at_s(now) - now))
            self._turn(ready, time.monotonic())
        return self._exit

    def _started(self) -> BackendInfo | None:
        """Start the backend, again and again while its server is down; None when told to leave meanwhile.

        A server that is down is nobody's crash: no process is spent on it and walled never gives it up. The
        phase between two tries is "starting", so supervisor.start_timeout_s bounds each try, not the wait.
        """
        pause_s, said = START_PAUSE_S, ""
        while True:
            self._link.send(lk.Status("loading", said or self._spawn.backend))
            try:
                return self._backend.start(self._emit)
            except BackendUnavailable as exc:
                if exc.message != said:
                    _log.error("backend %s: %s; trying on", self._spawn.backend, exc.message)
                said = exc.message
            self._link.send(lk.Status("starting", said))
            until_s = time.monotonic() + pause_s
            pause_s = min(2 * pause_s, START_PAUSE_MAX_S)
            while (left_s := until_s - time.monotonic()) > 0:
                if self._link.fileno() in self._waiting_room.wait(left_s):
                    self._orders(time.monotonic())
                if self._draining or self._exit is not None:
                    return None

    def close(self) -> None:
        """Stop and join everything: an interpreter that exits under a running llama.cpp stream aborts."""
        self._backend.close()
        if self._storer is not None:
            self._storer.close(STORE_CLOSE_S)
        self._uplink.close()
        self._hub.close()
        self._mailbox.close()

    def _serve(self, info: BackendInfo) -> None:
        """Take over what the backend serves, now or after a change."""
        self._info = info
        version = None if self._rules is None else self._rules.version
        self._models = served.models(self._config, self._place, self._defaults, info.models, version)
        self._served_slots = min(self._place.slots, info.slots)
        # What was on its way when slots were lost is still taken: the backend knows best what it lacks.
        self._jobs.slots = max(self._jobs.slots, self._served_slots)
        self._jobs.offer = self._relief.capped(self._served_slots)
        self._put_metas()
        self._say_ready()

    def _put_metas(self) -> None:
        if self._storer is not None:
            self._storer.put_meta(served.metas(self._config, self._place, self._models))
            try:
                self._storer.put_templates(template_files.load(self._config).pack())
            except ConfigError as exc:  # a file that was right at the start has been changed since
                _log.error("templates: %s; those published last stay", exc.message)

    def _validator(self) -> Validator | None:
        """The rules of the configuration. Raises ConfigError; the supervisor has seen that they are right."""
        if not self._config.validation.enabled:
            return None  # what they need is not even loaded
        from walled.adapters import rule_files

        return rule_files.validator(self._config)

    # --- memory ---

    def _memory_limits(self) -> Limits:
        workers = sum(backend.workers for backend in self._config.enabled_backends().values())
        return worker_limits(self._config.memory, workers)

    def _remedies(self) -> dict[Remedy, Action]:
        """What this worker can do without, beyond what any process can."""
        remedies: dict[Remedy, Action] = {
            "cache_trim": lambda: self._storer.trim() if self._storer is not None else None,
            "fewer_slots": lambda: None,  # _beat follows what the relief says
            "recycle": lambda: self._want_recycling(self._relief.why),
        }
        if isinstance(self._backend, Unloads):
            remedies["unload_idle"] = self._backend.unload_idle
        return remedies

    def _want_recycling(self, why: str) -> None:
        self._link.send(lk.Ask("worker.recycle", worker=self._spawn.slot, why=why))

    # --- one turn ---

    def _wake_at_s(self, now: float) -> float:
        at = min(self._jobs.next_due_s(), self._next_beat_s, self._next_status_s)
        if self._held:
            at = min(at, next(iter(self._held.values())).until_s)
        if self._uplink.blocked:
            at = min(at, now + RETRY_SEND_S)
        if self._draining:
            at = min([at, *(due for due in (self._drain_until_s, self._leave_after_s) if due > now)])
        return at

    def _turn(self, ready: set[Port | int], now: float) -> None:
        port = self._uplink.port
        if port in ready:
            for change in self._uplink.changes():
                self._connection(change, now)
            if port is self._uplink.port:
                for parts in port.receive():
                    self._message(parts, now)
        if self._link.fileno() in ready:
            self._orders(now)
        events = self._mailbox.events
        # What is posted while these are handled waits for the next turn: a flood must not starve the socket.
        for _ in range(len(events)):
            event = events.popleft()
            self._handlers[type(event)](self, event, now)
        jobs = self._jobs
        if now >= jobs.next_due_s():
            self._time_passed(now)
        if self._held:
            self._release(now)
        if self._draining:
            self._drained(now)
        if jobs.credit != self._credit_told:
            self._say_credit()
        if now >= self._next_beat_s:
            self._beat(now)
        if now >= self._next_status_s:
            self._status(now)
        self._uplink.flush()

    # --- from the broker ---

    def _message(self, parts: list[bytes], now: float) -> None:
        self._heard_s = now
        try:
            envelope = wire.parse(parts)
            if envelope.type == wire.REQUEST:
                self._request(envelope, now)
            elif envelope.type == wire.HEARTBEAT:
                self._broker_beat(wire.decode_header(wire.HeartbeatHeader, envelope.header))
            elif envelope.type == wire.CANCEL:
                job = self._jobs.find(envelope.request_id)
                if job is not None:
                    self._stop(job, Cancelled("cancelled by the caller"), now)
            elif envelope.type == wire.CONTROL:
                self._control(envelope, now)
            elif envelope.type == wire.DISCONNECT:
                self._broker_lost("the broker does not know this worker")
            else:
                raise ProtocolError("not a message for a worker", reason="type")
        except ProtocolError as exc:
            self._count(f"protocol_errors_total.{exc.reason}")
            _log.warning("from the broker: %s", exc.message)

    def _request(self, envelope: wire.Envelope, now: float) -> None:
        job = None
        try:
            header = wire.decode_header(wire.JobHeader, envelope.header)
            request = pl.unpack_request(envelope.payload)
            if header.kind != request.kind or header.deterministic != pl.deterministic(request):
                raise BadRequest("header and payload disagree about `kind` or `deterministic`")
            model = self._models.get(header.model)
            if model is None:
                raise ModelNotFound(f'backend {self._spawn.backend} has no model "{header.model}"')
            job = self._jobs.admit(envelope.request_id, header, now)
            if header.store and self._storer is not None:
                place = pl.scope(header.namespace, header.context)
                job.store_key = pl.cache_key(place, model.meta.fingerprint, envelope.payload)
                job.limit_asked = request.options.max_tokens is not None
            if self._defaults is not None:
                request = served.with_defaults(request, self._defaults)
            if self._rules is not None:
                job.check = self._rules.begin(request, header.model, header.context, now)
            self._backend.submit(Job(job.number, request, header.model, job.deadline_s, header.session))
        except WalledError as exc:
            if job is not None:
                self._jobs.end(job.number)
            self._fail(envelope.request_id, exc)
        except MemoryError:
            # Whoever comes next would meet the same; a new process may not.
            if job is not None:
                self._jobs.end(job.number)
            self._count("memory_errors_total")
            self._fail(envelope.request_id, BackendUnavailable("the worker ran out of memory"))
            self._want_recycling("it ran out of memory")
        except Exception:
            _log.exception("backend %s: submit failed", self._spawn.backend)
            if job is not None:
                self._jobs.end(job.number)
            self._fail(envelope.request_id, InternalError("the backend adapter failed to begin the job"))

    def _control(self, envelope: wire.Envelope, now: float) -> None:
        order = wire.unpack_map(envelope.payload)
        job = self._jobs.find(envelope.request_id)
        match order:
            case {"op": "stream"}:
                if job is not None:
                    self._partial(self._jobs.start_streaming(job, now))
                    self._watch(job, now)
            case {"op": "deadline", "deadline_ms": int(deadline_ms)}:
                if job is not None:
                    self._jobs.extend(job, deadline_ms, now)
            case _:
                raise ProtocolError("the controls of a worker are `stream` and `deadline`", reason="control")

    def _broker_beat(self, beat: wire.HeartbeatHeader) -> None:
        if not self._broker_epoch:
            self._broker_epoch = beat.epoch
        elif beat.epoch != self._broker_epoch:
            self._broker_lost("the broker was restarted")

    # --- the connection ---

    def _connection(self, change: ConnectionEvent, now: float) -> None:
        if change is ConnectionEvent.DOWN:
            self._broker_lost("the connection to the broker is gone")
        elif not self._uplink.up:
            self._uplink.up = True
            self._heard_s = now
            self._say_ready()

    def _broker_lost(self, why: str) -> None:
        """Cancel everything and begin again as a new peer; nobody waits for the old jobs any more."""
        self._broker_epoch = b""
        self._held.clear()
        for job in self._jobs.abandon_all():
            self._count("jobs_total.abandoned")
            if job.why is None:
                self._backend.cancel(job.number)
        self._uplink.redial(why)

    def _say_ready(self) -> None:
        """Before anything else on a new connection, and again when the backend serves something else."""
        assert self._info is not None
        self._credit_told = self._jobs.credit
        ready = wire.ReadyHeader(
            worker=self._spawn.slot,
            token=self._spawn.token,
            pid=os.getpid(),
            backend=self._spawn.backend,
            kind=self._place.kind,
            slots=self._credit_told,
            models=tuple(model.info for model in self._models.values()),
            max_loaded_models=self._info.max_loaded_models,
        )
        self._uplink.put(wire.READY, b"", ready)

    def _say_credit(self) -> None:
        self._credit_told = self._jobs.credit
        self._uplink.put(wire.CREDIT, b"", wire.CreditHeader(self._credit_told))

    def _beat(self, now: float) -> None:
        broker = self._config.broker
        self._next_beat_s = now + broker.heartbeat_s
        if self._uplink.up and now - self._heard_s > broker.worker_liveness_s:
            self._broker_lost("the broker is silent")
        self._uplink.put(wire.HEARTBEAT, b"", wire.HeartbeatHeader(self._epoch, len(self._jobs.running)))
        if not self._draining:
            self._relief.look(now, self._jobs.admitted, idle=self._jobs.idle)
            self._jobs.offer = self._relief.capped(self._served_slots)
        if self._reporter.due(now):
            gauges = {"in_flight": len(self._jobs.running), "slots": self._jobs.credit}
            cache = self._storer.told(self._count) if self._storer is not None else {}
            self._reporter.send({**gauges, **self._relief.gauges()}, now, cache)

    # --- from the backend ---

    def _emit(self, event: Any) -> None:
        """What the backend calls, from whatever thread. The loop is woken only for what it sends at once:
        waking it for every token gave 1,190 tokens/s with the built-in model where this gives 1,560."""
        mailbox = self._mailbox
        mailbox.events.append(event)
        if mailbox.asleep and (
            type(event) is not Delta or (event.text and self._jobs.urgent(event.job_id, time.monotonic()))
        ):
            mailbox.wake()

    def _delta(self, event: Delta, now: float) -> None:
        self._partial(self._jobs.delta(event.job_id, event.text, now))
        if self._rules is not None:
            self._watch(self._jobs.running.get(event.job_id), now)

    def _partial(self, partial: Partial | None) -> None:
        if partial is not None:
            job, seq, text = partial
            data = text.encode("utf-8", "replace")
            self._uplink.put(wire.PARTIAL, job.wire_id, wire.PartialHeader(seq), data)

    def _done(self, event: Done, now: float) -> None:
        answer = event.answer
        if self._rules is not None:
            judged = self._judged(event, now)
            if judged is None:
                return
            answer = judged
        job = self._jobs.end(event.job_id)
        if job is None:
            return
        try:
            data = served.packed(answer, job.chars if job.streaming else None)
        except WalledError as exc:
            self._fail(job.wire_id, exc)
            return
        self._measure(job.header.model, answer.usage, event.timings.decode_ms)
        # A whole answer that came too late for its caller is still worth storing for the next one.
        storing = bool(job.store_key) and self._store(job, answer, data)
        if job.why is not None:
            self._fail(job.wire_id, job.why)
            return
        self._partial(self._jobs.flush(job, now))
        load_ms, prefill_ms, decode_ms = event.timings
        phases = wire.Phases(
            load_ms=load_ms,
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
            first_token_ms=(job.first_s - job.received_s) * 1000 if job.first_s else 0.0,
        )
        held = _Held(job, data, phases, now, min(now + STORE_WAIT_S, job.deadline_s))
        if storing:
            self._held[job.number] = held
        else:
            self._final(held, False, now)

    # --- judging answers ---

    def _watch(self, job: Running | None, now: float) -> None:
        """Stop a stream as soon as what it says is forbidden."""
        if job is not None and job.check is not None and job.check.guard.blocked and job.why is None:
            self._stop(job, job.check.refusal(), now)

    def _judged(self, event: Done, now: float) -> pl.Answer | None:
        """The answer as it may be given; None when it is generated again. What is withheld has a `why`."""
        job, rules = self._jobs.running.get(event.job_id), self._rules
        if job is None or rules is None or (check := job.check) is None:
            return event.answer
        if job.streaming and job.chars != len(event.answer.text):
            return event.answer  # no answer at all: `packed` says so
        answer = rules.judge(check, event.answer)
        self._count(f"validation_verdicts_total.{check.found.verdict}")
        if check.found.verdict == "block":
            if self._again(job, now):
                return None
            job.store_key = b""
            job.why = job.why or check.refusal()
        else:
            if isinstance(job.why, Blocked):
                job.why = None  # its end has shown that it is well
            if job.streaming:
                rest = check.guard.rest() if answer.text == event.answer.text else answer.text
                job.pending += [rest] if rest else []
                job.chars = len(answer.text)
        rules.passed()
        return answer

    def _again(self, job: Running, now: float) -> bool:
        """Generate a withheld answer anew, when the request and the worker have tries and time left."""
        check, rules = job.check, self._rules
        if check is None or rules is None or not (job.why is None or isinstance(job.why, Blocked)):
            return False
        if not rules.may_regenerate(check, job.sent, job.deadline_s, now):
            return False
        self._count("regenerations_total")
        request = rules.again(check)
        self._jobs.again(job, now)
        header = job.header
        try:
            self._backend.submit(Job(job.number, request, header.model, job.deadline_s, header.session))
        except Exception as exc:
            self._jobs.end(job.number)
            own = exc if isinstance(exc, WalledError) else None
            self._fail(job.wire_id, own or InternalError("the backend adapter failed to begin the job again"))
        return True

    def _measure(self, model: str, usage: pl.Usage, decode_ms: float) -> None:
        tokens = usage.completion_tokens
        self._count("tokens_total.completion", tokens)
        self._count("tokens_total.prompt", usage.prompt_tokens)
        reporter = self._reporter
        reporter.add("walled_tokens_total", tokens, model, "output")
        reporter.add("walled_tokens_total", usage.prompt_tokens, model, "prompt")
        if decode_ms > 0.0 and tokens > 1:
            # The first token is there when decoding begins.
            each_s = decode_ms / 1000 / (tokens - 1)
            reporter.observe("walled_request_per_output_token_seconds", each_s, model)

    def _store(self, job: Running, answer: pl.Answer, data: bytes) -> bool:
        """Whether the answer is on its way into the cache."""
        model = self._models.get(job.header.model)
        if model is None or self._storer is None or not served.worth_storing(answer, job.limit_asked):
            return False
        record = served.record(job.store_key, job.header.namespace, model.meta, data, time.time())
        if not self._storer.put(job.number, record):
            self._count("stores_total.refused")
            return False
        return True

    def _stored(self, event: Stored, now: float) -> None:
        self._count("stores_total.stored" if event.done else "stores_total.failed", len(event.tickets))
        for ticket in event.tickets:
            held = self._held.pop(ticket, None)
            if held is not None:
                self._final(held, event.done, now)

    def _release(self, now: float) -> None:
        """Send the answers that have waited long enough for their commit."""
        for number in [number for number, held in self._held.items() if now >= held.until_s]:
            self._count("stores_total.late")
            self._final(self._held.pop(number), False, now)

    def _final(self, held: _Held, stored: bool, now: float) -> None:
        job, phases = held.job, held.phases
        if now > held.since_s:
            phases = msgspec.structs.replace(phases, store_ms=(now - held.since_s) * 1000)
        self._count("jobs_total.done")
        header = wire.FinalHeader(
            backend=self._spawn.backend,
            worker=self._spawn.slot,
            attempts=job.header.attempt + (job.check.regenerated if job.check is not None else 0),
            partials=job.sent,
            stored=stored,
            phases=phases,
        )
        self._uplink.put(wire.FINAL, job.wire_id, header, held.answer)

    def _failed(self, event: Failed, now: float) -> None:
        stopped = self._jobs.running.get(event.job_id)
        if stopped is not None and isinstance(stopped.why, Blocked):
            self._count("validation_verdicts_total.block")
            if self._again(stopped, now):
                return
        job = self._jobs.end(event.job_id)
        if job is not None:
            self._fail(job.wire_id, job.why or event.error)

    def _fail(self, wire_id: bytes, error: WalledError) -> None:
        self._count(f"jobs_total.{error.code}")
        self._uplink.put(wire.ERROR, wire_id, wire.error_header(error))

    def _changed(self, event: Changed, now: float) -> None:
        self._serve(event.info)

    _handlers: dict[type, Callable[[Worker, Any, float], None]] = {
        Delta: _delta,
        Done: _done,
        Failed: _failed,
        Changed: _changed,
        Stored: _stored,
    }

    # --- the passing of time ---

    def _stop(self, job: Running, why: WalledError, now: float) -> None:
        if self._jobs.stop(job, why, now):
            self._backend.cancel(job.number)

    def _time_passed(self, now: float) -> None:
        due = self._jobs.due(now)
        for partial in due.partials:
            self._partial(partial)
        for job in due.expired:
            self._backend.cancel(job.number)
        if due.given_up:
            # The credit first: the broker must not fill a slot that is not free.
            self._say_credit()
            for job in due.given_up:
                self._count("jobs_total.given_up")
                self._fail(job.wire_id, job.why or InternalError("the backend does not let go of the job"))

    # --- the supervisor ---

    def _status(self, now: float) -> None:
        self._next_status_s = now + STATUS_S
        self._link.send(lk.Status("draining" if self._draining else "ready", self._spawn.backend))

    def _orders(self, now: float) -> None:
        try:
            messages = self._link.receive()
        except LinkClosed:
            self._leave()
            return
        for message in messages:
            if not isinstance(message, lk.Order):
                continue
            if message.op == "stop":
                self._leave()
            elif message.op == "drain" and not self._draining:
                self._draining = self._jobs.closing = True
                self._drain_until_s = now + message.deadline_s
                self._leave_after_s = now + ON_THE_WAY_S
                self._next_status_s = now
            elif message.op == "reconfigure":
                self._reconfigure(message.config)
            elif message.op == "remedy":
                self._relief.order(message.remedy)

    def _reconfigure(self, plain: dict[str, Any]) -> None:
        """Cache times, policies and beats change at once; a changed backend section takes a new worker."""
        self._config = cfg.from_plain(plain, "configuration handed to the worker")
        logs.set_level(self._config.daemon.log_level)
        self._relief.reconfigure(self._config.memory, self._memory_limits())
        before = self._rules
        try:
            self._rules = self._validator()
        except ConfigError as exc:  # a file that was right at the start has been changed since
            _log.error("validation: %s; the rules stay as they are", exc.message)
        marks = [None if rules is None else rules.mark for rules in (before, self._rules)]
        if self._info is not None and marks[0] != marks[1]:
            self._serve(self._info)  # other rules are another cache key, which the broker must know
        else:
            self._models = served.renewed(self._config, self._place, self._models)
            self._put_metas()

    def _drained(self, now: float) -> None:
        jobs = self._jobs
        late = now >= self._drain_until_s
        if late:
            for job in list(jobs.running.values()):
                self._stop(job, Draining("the daemon stopped before the answer was complete"), now)
        # Past the deadline a backend that does not let go of a job is not waited for.
        if (jobs.idle or (late and not jobs.running)) and not self._held and now >= self._leave_after_s:
            self._leave()

    def _leave(self) -> None:
        """Say goodbye and end the loop after this turn."""
        self._uplink.put(wire.DISCONNECT, b"")
        self._exit = 0


def main(spawn: lk.Spawn, link: Link) -> int:
    """The role: run until told to stop; the exit status."""
    # A backend's threads and the loop share one interpreter: neither may keep the other waiting for long.
    sys.setswitchinterval(SWITCH_S)
    worker = Worker(spawn, link)
    try:
        return worker.run()
    finally:
        worker.close()
