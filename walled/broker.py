"""The broker process: sockets -> core/broker.py -> sockets.

May live here: the loop, turning frames into events and effects into frames, outboxes of slow readers, control
verbs. May not: a decision about a request (core/broker.py), blocking calls, cache writes, unpacking payloads.

The loop is synchronous on purpose: a plain zmq_poll over prebuilt items has half the latency and a fifth of
the CPU of the asyncio one.
"""

from __future__ import annotations

import gc
import hmac
import logging
import math
import os
import secrets
import time
from collections import Counter, deque
from typing import Any

from walled import config as cfg
from walled import errors, link, protocol
from walled.adapters import logs
from walled.adapters.cache import CacheReader
from walled.adapters.descriptors import Door
from walled.adapters.lesser import Lesser
from walled.adapters.process import Link
from walled.adapters.relief import SelfRelief, limits_of
from walled.adapters.sockets import Hub, Poller, SendResult
from walled.core import events as ev
from walled.core import measured, standing, view
from walled.core.broker import Broker
from walled.core.policy import freshness
from walled.protocol import FinalHeader

log = logging.getLogger(__name__)

BEAT_S = 0.5
LONGEST_WAIT_S = 0.25
BATCH = 256
"""Messages taken from one socket before the others get a look."""
BURST = 32
"""Messages that wait at most for others to be sent with them: a millisecond of decisions."""
CLIENT_HWM = 1000
LAST_WORDS_S = 0.2

_PREAMBLE = protocol.PREAMBLE
_encode = protocol.encode_header
_EMPTY_MAP = b"\x80"
_ENDINGS = (protocol.FINAL, protocol.ERROR, protocol.BUSY)


def _unread(request_id: bytes) -> list[bytes]:
    """The ending of a request whose answer was dropped because its caller did not read."""
    error = errors.Overloaded(
        "answers waited unread, more than broker.client_backlog_bytes; read faster or ask less at once"
    )
    return protocol.frames(protocol.ERROR, request_id, protocol.error_header(error))


def main(spawn: link.Spawn, supervisor: Link) -> int:
    """Run until the supervisor says stop. Returns the exit status."""
    process = BrokerProcess(spawn, supervisor)
    try:
        return process.run()
    finally:
        process.close()


class BrokerProcess:
    """Sockets, outboxes and the supervisor's link around one core.Broker."""

    def __init__(self, spawn: link.Spawn, supervisor: Link) -> None:
        self._config = cfg.from_plain(spawn.config)
        self._token = spawn.token
        self._link = supervisor
        self._core = Broker(self._config, secrets.token_bytes(8))
        self._counters: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._todo: list[ev.Effect] = []
        self._outboxes: dict[bytes, deque[list[bytes]]] = {}
        self._outbox_bytes: Counter[bytes] = Counter()
        self._cut: set[bytes] = set()
        """Clients whose backlog was cut while the present effects are sent."""
        self._tree: dict[str, Any] = {}
        self._started_s = time.monotonic()
        self._leave_at_s = math.inf
        self._answered = False
        self._phase: link.Phase = "starting"
        ends = cfg.endpoints(cfg.run_dir(self._config))
        self._max_payload = self._config.broker.max_payload_bytes
        self._hub = Hub()
        # The protocol's cap, not the configured one, which a reload may raise: ZeroMQ cuts the connection of
        # whoever sends more and says nothing, and a caller would wait for its deadline instead of being told.
        self._front = self._hub.router(ends.client, hwm=CLIENT_HWM, max_bytes=protocol.MAX_PAYLOAD_BYTES)
        self._back = self._hub.router(
            ends.worker, hwm=10_000, max_bytes=protocol.MAX_PAYLOAD_BYTES, mode=0o600
        )
        self._door = Door(ends.client)
        # Nothing dearer: a broker has no slots, and its end would cost every connection.
        memory = self._config.memory
        self._relief = SelfRelief(memory, limits_of(memory, memory.broker_budget_bytes), self._count, {})
        self._control = self._hub.router(ends.control, hwm=100, max_bytes=64 * 1024)
        self._deltas = self._hub.push(ends.delta)
        self._deltas.connect()
        self._cache = CacheReader(cfg.cache_dir(self._config)) if self._config.cache.enabled else None
        self._lesser = Lesser(self._config, self._cache, self._core.prepare)

    def close(self) -> None:
        # Callers whose requests were just ended are still to be told.
        self._front.close(LAST_WORDS_S)
        self._back.close(LAST_WORDS_S)
        if self._cache is not None:
            self._cache.close()
        self._hub.close()

    def run(self) -> int:
        poller = Poller([self._front, self._back, self._control], [self._link.fileno()])
        next_tick_s = next_beat_s = 0.0
        # What exists now lives for ever; collections need not look at it again. What comes is freed by
        # counting references; the few cycles may wait: looking every 700 objects cost 3 % of the loop.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        while (now := time.monotonic()) < self._leave_at_s:
            timer_s = self._core.next_timer_s()
            until_s = next_tick_s if timer_s is None else min(next_tick_s, timer_s)
            ready = poller.wait(max(0.0, until_s - now))
            now = time.monotonic()
            # Workers first: what they finish frees the slots that the clients' requests want.
            if self._back in ready:
                self._take_workers(now)
            if self._front in ready:
                self._take_clients(now)
            if self._control in ready:
                self._take_control(now)
            if self._link.fileno() in ready:
                self._take_orders(now)
            if now >= until_s:
                self._happens(ev.Tick(), now)
                if self._outboxes:
                    self._flush_outboxes(now)
                next_tick_s = now + LONGEST_WAIT_S
            self._carry_out(now)
            if now >= next_beat_s or (self._core.dispatcher.fleet.workers and not self._answered):
                next_beat_s = now + BEAT_S
                self._beat()
        return 0

    # --- from workers --------------------------------------------------------------------------------

    def _take_workers(self, now: float) -> None:
        for parts in self._back.receive(BATCH):
            identity = parts[0]
            try:
                message = protocol.parse(parts[1:])
                event = self._worker_event(identity, message)
            except errors.ProtocolError as exc:
                self._counters[f"refused_worker_frames.{exc.reason}"] += 1
                continue
            if event is not None:
                self._happens(event, now)

    def _worker_event(self, identity: bytes, message: protocol.Envelope) -> ev.Event | None:
        kind, request_id, header, payload = message
        if kind == protocol.FINAL:
            return ev.WorkerFinal(identity, request_id, protocol.decode_header(FinalHeader, header), payload)
        if kind == protocol.PARTIAL:
            return ev.WorkerPartial(identity, request_id, header, payload)
        if kind == protocol.HEARTBEAT:
            return ev.WorkerBeat(identity)
        if kind == protocol.ERROR:
            return ev.WorkerError(identity, request_id, protocol.decode_header(protocol.ErrorHeader, header))
        if kind == protocol.READY:
            ready = protocol.decode_header(protocol.ReadyHeader, header)
            if not hmac.compare_digest(ready.token, self._token):
                self._counters["refused_worker_frames.token"] += 1
                log.warning("a peer on the worker socket showed a wrong token and was refused")
                return None
            log.info("worker %d is ready: %s, %d slots", ready.worker, ready.backend, ready.slots)
            return ev.WorkerReady(identity, b"", ready)
        if kind == protocol.CREDIT:
            return ev.WorkerCredit(identity, b"", protocol.decode_header(protocol.CreditHeader, header).slots)
        if kind == protocol.DISCONNECT:
            return ev.WorkerGone(identity, reason="left")
        raise errors.ProtocolError("not a message a worker may send", reason="type")

    # --- from clients --------------------------------------------------------------------------------

    def _take_clients(self, now: float) -> None:
        for parts in self._front.receive(BATCH):
            identity = parts[0]
            try:
                message = protocol.parse(parts[1:], self._max_payload)
                self._client_message(identity, message, now)
            except errors.ProtocolError as exc:
                self._counters[f"refused_frames.{exc.reason}"] += 1
                self._refuse_frames(identity, parts, exc)

    def _client_message(self, identity: bytes, message: protocol.Envelope, now: float) -> None:
        kind, request_id, header, payload = message
        if kind == protocol.REQUEST:
            if not request_id:
                raise errors.ProtocolError("a request needs a request id", reason="request_id")
            request = protocol.decode_header(protocol.RequestHeader, header)
            event: ev.Event = self._looked_up(identity, request_id, request, payload)
        elif kind == protocol.CANCEL:
            event = ev.ClientCancel(identity, request_id)
        elif kind == protocol.DISCONNECT:
            event = ev.ClientGone(identity, reason="left")
        elif kind == protocol.HEARTBEAT:
            return
        elif kind == protocol.CONTROL:
            control = protocol.unpack_control(payload)
            if control.op not in ("models.list", "status"):
                raise errors.ProtocolError("this verb needs the control socket", reason="control")
            reply = protocol.pack_map(self._verb(control, now))
            self._send_client(identity, protocol.frames(protocol.CONTROL, request_id, None, reply), now)
            return
        else:
            raise errors.ProtocolError("not a message a client may send", reason="type")
        self._happens(event, now)

    def _looked_up(
        self, identity: bytes, request_id: bytes, header: protocol.RequestHeader, payload: bytes
    ) -> ev.ClientRequest:
        """The event of a request, with what the cache says; a warm read takes microseconds."""
        cache = self._cache
        meta = None
        if cache is not None and header.model not in self._core.dispatcher.metas:
            meta = cache.meta(header.model)
        key, plan = self._core.prepare(header, payload, meta)
        if cache is not None and key is not None and plan.read:
            now_s = time.time()
            record = cache.get(key, now_s)
            if record is not None and freshness(record, now_s) == "fresh":
                age_s = max(0.0, now_s - record.created_s)
                return ev.ClientRequest(identity, request_id, header, payload, key, plan, record, age_s)
        if meta is not None:
            key = None  # from memory of the cache only; the core asks again once a worker serves the model
        return ev.ClientRequest(identity, request_id, header, payload, key, plan if key else None)

    def _refuse_frames(self, identity: bytes, parts: list[bytes], error: errors.ProtocolError) -> None:
        """Tell the peer, as far as its message shows which request it meant."""
        request_id = parts[3] if len(parts) > 3 and len(parts[3]) <= protocol.MAX_REQUEST_ID_BYTES else b""
        told: errors.WalledError = error
        if error.reason == "payload_size":
            told = errors.TooLarge(error.message)
        frames = protocol.frames(protocol.ERROR, request_id, protocol.error_header(told))
        self._front.send_to(identity, frames)

    # --- effects -------------------------------------------------------------------------------------

    def _happens(self, event: ev.Event, now: float) -> None:
        """Let the core decide; what follows is carried out soon, together with what else follows meanwhile.

        Sends in a row wake ZeroMQ's I/O thread once; sends between decisions wake it for each.
        """
        self._todo += self._core.handle(event, now)
        if len(self._todo) >= BURST:
            self._carry_out(now)

    def _carry_out(self, now: float) -> None:
        while self._todo:
            todo, self._todo = self._todo, []
            for event in self._done(todo, now):
                self._todo += self._core.handle(event, now)

    def _done(self, effects: list[ev.Effect], now: float) -> list[ev.Event]:
        """Send and look up; returns what was found, and who turned out to be gone."""
        came: list[ev.Event] = []
        for effect in effects:
            if type(effect) is ev.WorkerDrained:
                self._link.send(link.Ask(op="worker.drained", worker=effect.worker))
                continue
            if type(effect) is ev.LookUp:
                came.append(self._lesser.find(effect))
                continue
            peer, kind, request_id, header, payload = effect  # type: ignore[misc]
            if type(header) is not bytes:
                header = _EMPTY_MAP if header is None else _encode(header)
            frames = [_PREAMBLE, kind, request_id, header, payload]
            if type(effect) is ev.ToClient:
                if not self._send_client(peer, frames, now):
                    came.append(ev.ClientGone(peer, reason="slow" if peer in self._cut else "disconnected"))
            elif self._back.send_to(peer, frames) is not SendResult.SENT:
                # A worker holds at most its slots, so a full queue means that it does not read at all.
                came.append(ev.WorkerGone(peer, reason="unreachable"))
        self._cut.clear()
        return came

    def _send_client(self, client: bytes, frames: list[bytes], now: float) -> bool:
        """Send, or keep for later; False when the client is gone or was just cut for keeping us waiting."""
        if client not in self._outboxes:
            result = self._front.send_to(client, frames)
            if result is not SendResult.FULL:
                return result is SendResult.SENT
            self._outboxes[client] = deque()
        elif client in self._cut:
            # Decided before the core learned of the cut: without its beginning an answer is none.
            if frames[1] in _ENDINGS:
                self._keep(client, _unread(frames[2]))
            return True
        self._keep(client, frames)
        limits = self._config.broker
        if self._outbox_bytes[client] > limits.client_backlog_bytes:
            self._cut_backlog(client)
            return False
        if self._outbox_bytes.total() > limits.backlog_bytes:
            worst = max(self._outbox_bytes, key=self._outbox_bytes.__getitem__)
            self._cut_backlog(worst)
            if worst == client:
                return False
            self._todo += self._core.handle(ev.ClientGone(worst, reason="slow"), now)
        return True

    def _keep(self, client: bytes, frames: list[bytes]) -> None:
        self._outboxes[client].append(frames)
        self._outbox_bytes[client] += sum(map(len, frames))

    def _cut_backlog(self, client: bytes) -> None:
        """Replace what a client has not read by one short error for each of its requests.

        Its generations are cancelled by the ClientGone that follows. When it reads again, it learns what
        became of each; when even these errors are too many, it is told nothing more.
        """
        self._counters["slow_clients"] += 1
        ended = [frames[2] for frames in self._outboxes[client] if frames[1] in _ENDINGS]
        open_ones = self._core.clients.get(client, ())
        self._drop_outbox(client)
        self._cut.add(client)
        self._outboxes[client] = deque()
        for request_id in dict.fromkeys((*ended, *open_ones)):
            self._keep(client, _unread(request_id))
        if self._outbox_bytes[client] > self._config.broker.client_backlog_bytes // 2:
            self._counters["slow_clients_forgotten"] += 1
            self._outboxes[client].clear()
            self._outbox_bytes.pop(client)

    def _flush_outboxes(self, now: float) -> None:
        for client, outbox in list(self._outboxes.items()):
            while outbox:
                result = self._front.send_to(client, outbox[0])
                if result is SendResult.FULL:
                    break
                if result is SendResult.GONE:
                    outbox.clear()
                    self._happens(ev.ClientGone(client), now)
                    break
                self._outbox_bytes[client] -= sum(map(len, outbox.popleft()))
            if not outbox:
                self._drop_outbox(client)

    def _drop_outbox(self, client: bytes) -> None:
        self._outboxes.pop(client, None)
        self._outbox_bytes.pop(client, None)

    # --- operators -----------------------------------------------------------------------------------

    def _take_control(self, now: float) -> None:
        for parts in self._control.receive(BATCH):
            identity = parts[0]
            try:
                message = protocol.parse(parts[1:])
                if message.type != protocol.CONTROL:
                    raise errors.ProtocolError("the control socket takes CONTROL only", reason="type")
                reply = self._verb(protocol.unpack_control(message.payload), now)
                request_id = message.request_id
            except errors.WalledError as exc:
                reason = exc.reason if isinstance(exc, errors.ProtocolError) else exc.code
                self._counters[f"refused_control.{reason}"] += 1
                reply, request_id = view.failure(exc), parts[3] if len(parts) > 3 else b""
            frames = protocol.frames(
                protocol.CONTROL, request_id[: protocol.MAX_REQUEST_ID_BYTES], None, protocol.pack_map(reply)
            )
            self._control.send_to(identity, frames)

    def _verb(self, request: protocol.ControlRequest, now: float) -> dict[str, Any]:
        core = self._core
        match request.op:
            case "status":
                return view.status(
                    core,
                    now,
                    pid=os.getpid(),
                    started_s=self._started_s,
                    tree=self._tree,
                    extra=self._counters,
                )
            case "workers.list":
                return view.workers(core, now)
            case "models.list":
                return view.models(core)
            case "queue.list":
                return view.queue(core, now)
            case "queue.cancel":
                return self._cancel(request.request, now)
            case "workers.restart" | "workers.drain":
                known = {worker.slot for worker in core.dispatcher.fleet.workers.values()}
                if request.op == "workers.restart":
                    # One that is down (drained, given up) is what a restart is wanted for.
                    known |= {
                        row["slot"] for row in self._tree.get("children", ()) if row["role"] == "worker"
                    }
                if request.worker not in known:
                    there = ", ".join(map(str, sorted(known))) or "none"
                    raise errors.BadRequest(
                        f"there is no worker {request.worker} to do that to; there are: {there}"
                    )
                if request.op == "workers.drain":
                    self._happens(ev.DrainWorker(request.worker), now)
                else:
                    self._link.send(link.Ask(op="worker.restart", worker=request.worker))
            case "reload":
                self._link.send(link.Ask(op="reload"))
            case "stop":
                self._link.send(link.Ask(op="stop"))
            case _:
                raise errors.BadRequest(f"unknown verb {request.op}; see docs/protocol.md, section Control")
        return {"schema": "walled.done/1", "ok": True, "op": request.op}

    def _cancel(self, request_hex: str, now: float) -> dict[str, Any]:
        try:
            wanted = bytes.fromhex(request_hex)
        except ValueError:
            raise errors.BadRequest(f"{request_hex!r} is not a request id (hexadecimal)") from None
        for client, table in self._core.clients.items():
            if wanted in table:
                self._happens(ev.ClientCancel(client, wanted), now)
                return {"schema": "walled.done/1", "ok": True, "op": "queue.cancel"}
        raise errors.BadRequest(f"no request {request_hex} is queued or running")

    # --- supervisor and monitor ------------------------------------------------------------------------

    def _take_orders(self, now: float) -> None:
        for message in self._link.receive():
            if not isinstance(message, link.Order):
                continue
            if message.op == "tree":
                self._tree = message.tree
            elif message.op == "drain":
                self._happens(ev.Drain(), now)
                self._beat()
            elif message.op == "remedy":
                if message.remedy in ("shed", "fallback"):
                    self._happens(ev.Steer(message.remedy, for_s=message.for_s), now)
                else:
                    self._relief.order(message.remedy)
            elif message.op == "rebind":
                for port in (self._front, self._back, self._control):
                    port.bind_again()
            elif message.op == "reconfigure":
                self._config = cfg.from_plain(message.config)
                self._max_payload = self._config.broker.max_payload_bytes
                self._core.reconfigure(self._config)
                self._lesser.reconfigure(self._config)
                memory = self._config.memory
                self._relief.reconfigure(memory, limits_of(memory, memory.broker_budget_bytes))
                logs.set_level(self._config.daemon.log_level)
            elif message.op == "stop":
                # A client that has not read when the connection goes loses what was sent to it, whatever the
                # linger: so callers whose requests end here get a moment to read.
                self._leave_at_s = now if self._core.idle else now + LAST_WORDS_S
                error = errors.Draining("the daemon has stopped", retry_after_s=2.0)
                self._happens(ev.Abort(error), now)
                self._carry_out(now)
                self._flush_outboxes(now)
                for worker in list(self._core.dispatcher.fleet.workers):
                    self._back.send_to(worker, protocol.frames(protocol.DISCONNECT, b""))

    def _count(self, name: str, increment: int) -> None:
        self._counters[name] += increment

    def _watch_the_door(self) -> None:
        if not self._door.look():
            return
        self._counters["doors_total.shut" if self._door.shut else "doors_total.opened"] += 1
        log.warning(
            "file descriptors are %s; new clients are %s",
            "short" if self._door.shut else "no longer short",
            "kept out" if self._door.shut else "let in again",
        )

    def _beat(self) -> None:
        self._watch_the_door()
        self._relief.look(time.monotonic())
        core = self._core
        self._answered = bool(core.dispatcher.fleet.workers)
        if core.draining:
            self._phase = "stopping" if core.idle and not self._outboxes else "draining"
        else:
            self._phase = "ready"
        self._link.send(link.Status(phase=self._phase, answered=self._answered))
        total = core.counters + self._counters
        if self._cache is not None:
            total.update(measured.lookups(self._cache))
        changes = {
            name: value - self._told[name] for name, value in total.items() if value != self._told[name]
        }
        gauges = {
            "queue_depth": core.dispatcher.queued,
            "queue_bytes": core.dispatcher.queued_bytes,
            **self._relief.gauges(),
        }
        models = standing.names(core)
        parts = measured.summed(core.measurements, models, core.unmeasured)
        parts["series"] += standing.series(core, self._config.enabled_backends(), time.monotonic())
        parts |= {"counters": changes, "gauges": gauges, "models": models}
        delta = protocol.pack_map({"from": "broker", **parts})
        if self._deltas.send([delta]):
            self._told = total
            core.measurements, core.unmeasured = [], 0
