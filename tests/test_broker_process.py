"""The real broker process, spoken to over its real sockets by hand-written clients and workers.

May live here: what only the process can show (sockets, refusals, slow and lost peers, orders of the
supervisor). May not: decisions of the state machine, which tests/core has without any process.
Nothing sleeps: every wait is for a message, with a deadline.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from walled import config, link, protocol
from walled.adapters import process
from walled.adapters.sockets import ConnectionEvent, Hub, Poller, Port
from walled.payload import Answer, pack_answer, pack_request, request_from

pytestmark = pytest.mark.process

PATIENCE_S = 10.0
TOKEN = b"t" * 32
QUESTION = pack_request(request_from({"kind": "chat", "messages": [{"role": "user", "content": "Hi"}]}))
ANSWER = pack_answer(Answer(model="m", text="Hello"))
ENDINGS = (protocol.FINAL, protocol.ERROR, protocol.BUSY)


class Peer:
    """A DEALER with a memory of what it received."""

    def __init__(self, hub: Hub, endpoint: str, hwm: int = 1000) -> None:
        self.port: Port = hub.dealer(endpoint, hwm=hwm)
        self.port.watch()
        self.port.connect()
        self._poller = Poller([self.port])
        self.seen: list[protocol.Envelope] = []
        self.events: list[ConnectionEvent] = []
        self.until(lambda: ConnectionEvent.UP in self.events, "no connection")

    def until(self, done: Callable[[], Any], why: str) -> Any:
        """Wait, taking what comes, until `done` says something true."""
        end_s = time.monotonic() + PATIENCE_S
        while not (found := done()):
            left_s = end_s - time.monotonic()
            assert left_s > 0, why
            self._poller.wait(min(left_s, 0.5))
            self.take()
        return found

    def take(self) -> None:
        self.events += self.port.connection_events()
        self.seen += [protocol.parse(parts) for parts in self.port.receive()]

    def send(self, kind: bytes, request_id: bytes = b"", header: Any = None, payload: bytes = b"") -> None:
        self.send_raw(protocol.frames(kind, request_id, header, payload))

    def send_raw(self, parts: list[bytes]) -> None:
        self.until(lambda: self.port.send(parts), "the broker does not take the message")

    def next(self, *kinds: bytes) -> protocol.Envelope:
        """The oldest message of these types, taken out."""

        def found() -> protocol.Envelope | None:
            return next((message for message in self.seen if message.type in kinds), None)

        message: protocol.Envelope = self.until(found, f"no message of type {kinds} came")
        self.seen.remove(message)
        return message


class Client(Peer):
    def __init__(self, hub: Hub, endpoint: str, hwm: int = 1000) -> None:
        super().__init__(hub, endpoint, hwm)
        self._prefix, self._number = os.urandom(8), 0

    def ask(self, payload: bytes = QUESTION, **header: Any) -> bytes:
        self._number += 1
        request_id = self._prefix + self._number.to_bytes(8, "big")
        fields = {"model": "m", "deadline_ms": 20_000, **header}
        self.send(protocol.REQUEST, request_id, protocol.RequestHeader(**fields), payload)
        return request_id

    def ending(self, request_id: bytes) -> protocol.Envelope:
        message = self.next(*ENDINGS)
        assert message.request_id == request_id
        return message

    def error(self, kind: bytes = protocol.ERROR) -> protocol.ErrorHeader:
        return protocol.decode_header(protocol.ErrorHeader, self.next(kind).header)


class Worker(Peer):
    def ready(self, *, slots: int = 2, token: bytes = TOKEN, slot: int = 1) -> Worker:
        models = (protocol.ModelInfo("m", "digest"),)
        header = protocol.ReadyHeader(slot, token, 4711, "s", "scripted", slots, models)
        self.send(protocol.READY, b"", header)
        return self

    def job(self) -> protocol.Envelope:
        return self.next(protocol.REQUEST)

    def answer(self, job: protocol.Envelope, payload: bytes = ANSWER) -> None:
        self.send(protocol.FINAL, job.request_id, protocol.FinalHeader(backend="s", worker=1), payload)


class RunningBroker:
    """A broker process, and this test as its supervisor, its operators, its clients and its workers."""

    def __init__(self, directory: Path, **broker: Any) -> None:
        self.config = config.from_plain(
            {
                "backend": "s",
                "daemon": {"run_dir": str(directory), "allow_scripted": True},
                # The fake workers do not beat.
                "broker": {"worker_liveness_s": 60.0, "max_payload_bytes": 64 * 1024, **broker},
                "cache": {"enabled": False},
                "templates": {"builtin": False},
                "backends": {"s": {"kind": "scripted"}},
            }
        )
        self.endpoints = config.endpoints(directory)
        self.hub = Hub()
        self._peers: list[Peer] = []  # a socket nobody holds is closed
        self.asked: list[link.Ask] = []
        self.status: link.Status | None = None
        self.child = process.spawn("broker")
        plain = config.to_plain(self.config)
        spawn = link.Spawn("broker", 0, "", TOKEN, plain, os.getpid(), 1)
        assert self.child.link.send(spawn)
        self.until(
            lambda: self.status is not None and self.status.phase == "ready", "the broker does not start"
        )
        self.operator = Peer(self.hub, self.endpoints.control)

    def until(self, done: Callable[[], Any], why: str) -> None:
        """Wait for something the broker tells its supervisor."""
        end_s = time.monotonic() + PATIENCE_S
        while not done():
            left_s = end_s - time.monotonic()
            assert left_s > 0, why
            assert self.child.exit_code() is None, "the broker died"
            if self.child.link.wait(min(left_s, 0.5)):
                for message in self.child.link.receive():
                    if isinstance(message, link.Ask):
                        self.asked.append(message)
                    elif isinstance(message, link.Status):
                        self.status = message

    def ended(self) -> int:
        """The exit status, once it is there."""
        poller = Poller((), [self.child.sentinel])
        assert poller.wait(PATIENCE_S), "the broker does not end"
        status = self.child.exit_code()
        assert status is not None
        return status

    def client(self, hwm: int = 1000) -> Client:
        client = Client(self.hub, self.endpoints.client, hwm)
        self._peers.append(client)
        return client

    def worker(self) -> Worker:
        worker = Worker(self.hub, self.endpoints.worker)
        self._peers.append(worker)
        return worker

    def verb(self, op: str, **fields: Any) -> dict[str, Any]:
        request_id = os.urandom(16)
        payload = protocol.pack_control(protocol.ControlRequest(op, **fields))
        self.operator.send(protocol.CONTROL, request_id, None, payload)
        message = self.operator.next(protocol.CONTROL)
        assert message.request_id == request_id
        reply: dict[str, Any] = msgpack.unpackb(message.payload)
        return reply

    def counter(self, name: str) -> int:
        value: int = self.verb("status")["counters"].get(name, 0)
        return value

    def counted(self, name: str, value: int) -> None:
        """Wait until a counter has this value."""
        end_s = time.monotonic() + PATIENCE_S
        while (found := self.counter(name)) != value:
            assert time.monotonic() < end_s, f"{name} is {found}, not {value}"

    def rss_bytes(self) -> int:
        pages = Path(f"/proc/{self.child.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self.hub.close()
        self.child.kill()
        self.child.wait()
        self.child.close()


@pytest.fixture
def start() -> Iterator[Callable[..., RunningBroker]]:
    """Starts brokers, each in its own run directory, and ends them all."""
    directory = Path(tempfile.mkdtemp(prefix="walled-"))  # pytest's own paths are too long for sockets
    running: list[RunningBroker] = []

    def starter(**broker: Any) -> RunningBroker:
        place = directory / str(len(running))
        place.mkdir()
        running.append(RunningBroker(place, **broker))
        return running[-1]

    yield starter
    for broker in running:
        broker.close()
    shutil.rmtree(directory)


@pytest.fixture
def broker(start: Callable[..., RunningBroker]) -> RunningBroker:
    return start()


# --- hostile peers --------------------------------------------------------------------------------------

GOOD = protocol.frames(protocol.REQUEST, b"id", protocol.RequestHeader("m", 1000), QUESTION)


def changed(index: int, frame: bytes) -> list[bytes]:
    return [*GOOD[:index], frame, *GOOD[index + 1 :]]


HOSTILE = [
    ("frames", "protocol_error", [b"x"]),
    ("frames", "protocol_error", [b"x"] * 40),
    ("magic", "protocol_error", changed(0, b"GET ")),
    ("version", "version_mismatch", changed(0, b"WLD\x02")),
    ("type", "protocol_error", changed(1, b"\x63")),
    ("type", "protocol_error", changed(1, protocol.READY)),
    ("type", "protocol_error", changed(1, protocol.FINAL)),
    ("request_id", "protocol_error", changed(2, b"")),
    ("request_id", "protocol_error", changed(2, b"x" * 33)),
    ("header_size", "protocol_error", changed(3, b"\x80" * 5000)),
    ("header", "protocol_error", changed(3, b"")),
    ("header", "protocol_error", changed(3, b"\x82\xa5model\xa2\xff\xfe\xabdeadline_ms\x01")),
    ("header", "protocol_error", changed(3, b"\x83\xa2zz" + b"\x91" * 4000)),
    ("header", "protocol_error", changed(3, msgpack.packb({"model": "m", "deadline_ms": 0}))),
    ("payload_size", "too_large", changed(4, b"x" * (64 * 1024 + 1))),
    ("control", "protocol_error", protocol.frames(protocol.CONTROL, b"id", None, b"\x81\xa2op\xa2\xff\xfe")),
    ("control", "protocol_error",
     protocol.frames(protocol.CONTROL, b"id", None, protocol.pack_control(protocol.ControlRequest("stop")))),
]  # fmt: skip


def test_hostile_frames_are_counted_and_answered_and_the_broker_stays_up(broker: RunningBroker) -> None:
    client = broker.client()
    expected: dict[str, int] = {}
    for reason, code, parts in HOSTILE:
        client.send_raw(parts)
        assert client.error().code == code, (reason, parts[:2])
        expected[f"refused_frames.{reason}"] = expected.get(f"refused_frames.{reason}", 0) + 1
    counters = broker.verb("status")["counters"]
    assert {name: counters.get(name) for name in expected} == expected
    assert broker.asked == []
    # And the very same connection is served when it behaves.
    worker = broker.worker().ready()
    request_id = client.ask()
    worker.answer(worker.job())
    assert client.ending(request_id).type == protocol.FINAL


def test_a_refusal_names_the_request_it_refuses(broker: RunningBroker) -> None:
    client = broker.client()
    client.send_raw(changed(3, b"\xc1"))
    assert client.next(protocol.ERROR).request_id == b"id"
    client.send_raw(changed(2, b"x" * 33))
    assert client.next(protocol.ERROR).request_id == b""


def test_a_frame_over_the_sockets_cap_costs_its_sender_the_connection(broker: RunningBroker) -> None:
    client, other = broker.client(), broker.client()
    client.send_raw(changed(4, b"x" * (protocol.MAX_PAYLOAD_BYTES + 1)))
    client.until(lambda: ConnectionEvent.DOWN in client.events, "the connection was not closed")
    broker.worker().ready()
    request_id = other.ask(model="unknown")
    assert other.ending(request_id).type == protocol.ERROR


def test_hostile_control_requests_are_answered_as_errors(broker: RunningBroker) -> None:
    operator = broker.operator
    for number, parts in enumerate(
        [
            [b"x"],
            protocol.frames(protocol.REQUEST, b"id", None, b""),
            protocol.frames(protocol.CONTROL, b"id", None, b"\xc1"),
            protocol.frames(protocol.CONTROL, b"id", None, b"\x81\xa2op\xa2\xff\xfe"),
            protocol.frames(protocol.CONTROL, b"id", None, msgpack.packb({"op": "format.disk"})),
            protocol.frames(protocol.CONTROL, b"x" * 33, None, msgpack.packb({"op": "status"})),
        ]
    ):
        operator.send_raw(parts)
        reply = msgpack.unpackb(operator.next(protocol.CONTROL).payload)
        assert (reply["schema"], reply["ok"]) == ("walled.error/1", False), number
        assert reply["error"]["code"] in ("protocol_error", "bad_request")
    assert broker.verb("status")["ok"] is True


def test_a_wrong_token_makes_no_worker(broker: RunningBroker) -> None:
    broker.worker().ready(token=b"guessed")
    broker.counted("refused_worker_frames.token", 1)
    assert broker.verb("workers.list")["workers"] == []


def test_hostile_frames_of_workers_are_counted(broker: RunningBroker) -> None:
    worker = broker.worker()
    worker.send_raw([b"x"])
    worker.send_raw(changed(3, b""))  # a REQUEST is nothing a worker sends
    worker.send(protocol.FINAL, b"job", None, b"")
    worker.send_raw([protocol.PREAMBLE, protocol.READY, b"", b"\x81\xa5token\xa2\xff\xfe", b""])
    for reason, count in {"frames": 1, "type": 1, "header": 1}.items():
        broker.counted(f"refused_worker_frames.{reason}", count)
    assert worker.ready().next(protocol.HEARTBEAT)


def test_a_worker_the_broker_does_not_know_is_told_to_introduce_itself(broker: RunningBroker) -> None:
    worker = broker.worker()
    worker.send(protocol.HEARTBEAT, b"", protocol.HeartbeatHeader(b"e"))
    assert worker.next(protocol.DISCONNECT).request_id == b""
    broker.counted("stranger_messages", 1)


# --- slow and lost peers ----------------------------------------------------------------------------------


def test_a_client_that_never_reads_is_dropped_and_costs_bounded_memory(broker: RunningBroker) -> None:
    worker = broker.worker().ready()
    slow, other = broker.client(hwm=1), broker.client()
    before_bytes = broker.rss_bytes()
    unread = slow.ask(stream=True)
    job = worker.job()
    part_bytes, seq = 16 * 1024, 0
    # What one such client can cost: ZeroMQ's queue of 1000 messages, the outbox, both ends' socket buffers.
    most_bytes = 1000 * part_bytes + broker.config.broker.client_backlog_bytes + 4 * 1024 * 1024
    while not any(message.type == protocol.CANCEL for message in worker.seen):
        assert seq * part_bytes < most_bytes, "the broker keeps more than it says"
        worker.send(protocol.PARTIAL, job.request_id, protocol.PartialHeader(seq), b"x" * part_bytes)
        seq += 1
        if seq % 16 == 0:
            # No faster than the broker takes them: what waits to be taken in would be measured as well.
            broker.verb("status")
        worker.take()
    assert worker.next(protocol.CANCEL).request_id == job.request_id
    assert broker.counter("slow_clients") == 1
    assert broker.verb("status")["in_flight"] == 1  # the slot is free only when the worker says so
    worker.send(protocol.ERROR, job.request_id, protocol.ErrorHeader("cancelled"))
    assert broker.rss_bytes() - before_bytes < most_bytes
    request_id = other.ask()
    worker.answer(worker.job())
    assert other.ending(request_id).type == protocol.FINAL
    # It was stopped, not lost: when it reads again, it learns what became of its request.
    told = slow.ending(unread)
    assert told.type == protocol.ERROR
    assert protocol.decode_header(protocol.ErrorHeader, told.header).code == "overloaded"


def test_a_client_that_says_goodbye_has_its_jobs_cancelled(broker: RunningBroker) -> None:
    worker = broker.worker().ready(slots=1)
    client = broker.client()
    client.ask()
    client.ask()  # waits in the queue
    job = worker.job()
    client.send(protocol.DISCONNECT)
    assert worker.next(protocol.CANCEL).request_id == job.request_id
    status = broker.verb("status")
    assert (status["queue"]["depth"], status["in_flight"]) == (0, 1)
    assert status["counters"]["ended.client_left"] == 2


def test_a_client_that_vanishes_has_its_jobs_cancelled(broker: RunningBroker) -> None:
    worker = broker.worker().ready()
    client = broker.client()
    client.ask()
    job = worker.job()
    client.port.close()
    assert worker.next(protocol.CANCEL).request_id == job.request_id
    broker.counted("ended.client_disconnected", 1)


def test_a_waiting_client_sees_that_the_broker_lives(broker: RunningBroker) -> None:
    broker.worker().ready()
    client = broker.client()
    client.ask()
    beat = protocol.decode_header(protocol.HeartbeatHeader, client.next(protocol.HEARTBEAT).header)
    assert beat.epoch.hex() == broker.verb("status")["epoch"]


def test_a_worker_that_vanishes_loses_its_job_to_another(start: Callable[..., RunningBroker]) -> None:
    broker = start(worker_liveness_s=60.0, heartbeat_s=0.1)
    first = broker.worker().ready(slot=1)
    client = broker.client()
    request_id = client.ask()
    job = first.job()
    second = broker.worker().ready(slot=2)
    first.port.close()  # the next heartbeat to it fails
    again = second.job()
    assert again.payload == job.payload == QUESTION
    assert protocol.decode_header(protocol.JobHeader, again.header).attempt == 2
    second.answer(again)
    final = protocol.decode_header(protocol.FinalHeader, client.ending(request_id).header)
    assert final.attempts == 2


# --- requests -----------------------------------------------------------------------------------------------


def test_a_request_that_came_before_any_worker_is_answered_when_one_comes(broker: RunningBroker) -> None:
    client = broker.client()
    request_id = client.ask(model="default")
    assert broker.verb("status")["state"] == "starting"
    worker = broker.worker().ready()
    job = worker.job()
    assert protocol.decode_header(protocol.JobHeader, job.header).model == "m"
    worker.answer(job)
    ending = client.ending(request_id)
    assert (ending.type, ending.payload) == (protocol.FINAL, ANSWER)
    broker.until(lambda: broker.status is not None and broker.status.answered, "never reported as answering")


def test_a_request_no_worker_comes_for_is_refused_as_unavailable(start: Callable[..., RunningBroker]) -> None:
    broker = start(start_wait_s=0.3)
    client = broker.client()
    request_id = client.ask()
    ending = client.ending(request_id)
    error = protocol.decode_header(protocol.ErrorHeader, ending.header)
    assert (ending.type, error.code, error.retryable) == (protocol.BUSY, "unavailable", True)
    assert error.retry_after_s


def test_what_waits_for_the_first_worker_is_bounded_in_bytes(start: Callable[..., RunningBroker]) -> None:
    broker = start(queue_max_bytes=10_000)
    client = broker.client()
    first, second = client.ask(b"x" * 9_000), client.ask(b"x" * 9_000)
    ending = client.ending(second)
    assert ending.type == protocol.BUSY
    assert protocol.decode_header(protocol.ErrorHeader, ending.header).code == "unavailable"
    worker = broker.worker().ready()
    worker.answer(worker.job())
    assert client.ending(first).type == protocol.FINAL


def test_callers_who_share_a_generation_are_bounded_too(start: Callable[..., RunningBroker]) -> None:
    broker = start(queue_max_requests=1)
    worker, client = broker.worker().ready(), broker.client()
    client.ask(cache="always")
    job = worker.job()
    asked = [client.ask(cache="always") for _ in range(12)]
    refused = {client.next(protocol.BUSY).request_id for _ in range(3)}
    assert refused == set(asked[-3:])
    worker.answer(job)
    assert {client.next(protocol.FINAL).request_id for _ in range(10)} >= set(asked[:9])


def test_payloads_and_text_pass_untouched(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(), broker.client()
    odd = bytes(range(256)) * 4
    request_id = client.ask(odd, stream=True)
    job = worker.job()
    assert job.payload == odd
    worker.send(protocol.PARTIAL, job.request_id, protocol.PartialHeader(0), odd)
    part = client.next(protocol.PARTIAL)
    assert (part.request_id, part.payload) == (request_id, odd)
    worker.answer(job, odd)
    assert client.ending(request_id).payload == odd


def test_two_who_ask_the_same_share_one_generation(broker: RunningBroker) -> None:
    worker = broker.worker().ready()
    one, two = broker.client(), broker.client()
    first = one.ask(cache="always")  # the cache itself is off
    job = worker.job()
    second = two.ask(cache="always", stream=True, deadline_ms=30_000)
    orders = [msgpack.unpackb(worker.next(protocol.CONTROL).payload) for _ in range(2)]
    assert [order["op"] for order in orders] == ["deadline", "stream"]
    assert 20_000 < orders[0]["deadline_ms"] <= 30_000
    worker.send(protocol.PARTIAL, job.request_id, protocol.PartialHeader(0), b"Hello")
    assert two.next(protocol.PARTIAL).payload == b"Hello"
    worker.answer(job)
    sources = []
    for client, request_id in ((one, first), (two, second)):
        ending = client.ending(request_id)
        sources.append(protocol.decode_header(protocol.FinalHeader, ending.header).source)
    assert sources == ["model", "coalesced"]
    assert broker.verb("workers.list")["workers"][0]["served"] == 1


def test_a_cancelled_request_ends_at_once_and_at_the_worker(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(), broker.client()
    request_id = client.ask()
    job = worker.job()
    client.send(protocol.CANCEL, request_id)
    assert client.error().code == "cancelled"
    assert worker.next(protocol.CANCEL).request_id == job.request_id
    client.send(protocol.CANCEL, request_id)  # too late: ignored
    client.send(protocol.CANCEL, b"never heard of")
    worker.answer(job)
    broker.counted("late_results", 0)
    assert broker.verb("status")["in_flight"] == 0
    assert client.seen == []


def test_the_deadline_ends_a_request_and_its_job(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(), broker.client()
    asked_s = time.monotonic()
    client.ask(deadline_ms=300)
    job = worker.job()
    error = client.error()
    assert error.code == "deadline_exceeded"
    assert 0.3 <= time.monotonic() - asked_s < 2.0
    assert worker.next(protocol.CANCEL).request_id == job.request_id


def test_a_request_that_has_to_wait_is_told_its_place(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(slots=1), broker.client()
    client.ask()
    client.ask(accept=True)
    accepted = protocol.decode_header(protocol.AcceptedHeader, client.next(protocol.ACCEPTED).header)
    assert accepted.position == 0
    worker.answer(worker.job())
    worker.answer(worker.job())


def test_a_full_queue_is_busy(start: Callable[..., RunningBroker]) -> None:
    broker = start(queue_max_requests=2)
    broker.worker().ready(slots=1).until(lambda: broker.verb("workers.list")["workers"], "no worker")
    client = broker.client()
    for _ in range(3):
        client.ask()
    refused = client.ask()
    ending = client.next(protocol.BUSY)
    error = protocol.decode_header(protocol.ErrorHeader, ending.header)
    assert (ending.request_id, error.code) == (refused, "overloaded"), error.message
    assert error.retryable
    assert error.retry_after_s


def test_a_repeated_request_id_is_not_begun_twice(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(), broker.client()
    header = protocol.RequestHeader("m", 20_000)
    client.send(protocol.REQUEST, b"same", header, QUESTION)
    client.send(protocol.REQUEST, b"same", header, QUESTION)
    job = worker.job()
    broker.counted("duplicates", 1)
    worker.answer(job)
    client.ending(b"same")
    assert broker.verb("workers.list")["workers"][0]["served"] == 1
    assert client.seen == []


# --- operators ----------------------------------------------------------------------------------------------


def test_the_verbs_that_show(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(slots=1), broker.client()
    running, waiting = client.ask(), client.ask(priority="batch")
    worker.job()
    status = broker.verb("status")
    assert (status["schema"], status["state"], status["pid"]) == (
        "walled.status/1",
        "ready",
        broker.child.pid,
    )
    assert (status["in_flight"], status["queue"]["depth"]) == (1, 1)
    assert status["queue"]["by_class"] == {"interactive": 0, "normal": 0, "batch": 1}
    assert status["queue"]["bytes"] == len(QUESTION)
    (row,) = broker.verb("workers.list")["workers"]
    assert (row["worker"], row["pid"], row["slots"], row["in_flight"]) == (1, 4711, 1, 1)
    queue = broker.verb("queue.list")
    assert [entry["request"] for entry in queue["queued"]] == [waiting.hex()]
    assert [entry["request"] for entry in queue["running"]] == [running.hex()]
    models = broker.verb("models.list")
    assert models["default"] == "m"
    assert models["models"][0]["aliases"] == ["default"]
    assert "Hi" not in repr([status, queue, models])


def test_status_and_models_are_answered_on_the_client_socket_too(broker: RunningBroker) -> None:
    client = broker.client()
    for op, schema in (("status", "walled.status/1"), ("models.list", "walled.models/1")):
        client.send(protocol.CONTROL, b"x", None, protocol.pack_control(protocol.ControlRequest(op)))
        reply = client.next(protocol.CONTROL)
        assert reply.request_id == b"x"
        assert msgpack.unpackb(reply.payload)["schema"] == schema


def test_the_verbs_only_the_supervisor_can_fulfil_are_passed_on(broker: RunningBroker) -> None:
    broker.worker().ready(slot=3).until(lambda: broker.verb("workers.list")["workers"], "no worker")
    for op, ask in {
        "reload": link.Ask("reload"),
        "stop": link.Ask("stop"),
        "workers.restart": link.Ask("worker.restart", 3),
    }.items():
        worker = {"worker": 3} if op == "workers.restart" else {}
        assert broker.verb(op, **worker) == {"schema": "walled.done/1", "ok": True, "op": op}
        broker.until(lambda ask=ask: ask in broker.asked, f"{ask} was not passed on")  # type: ignore[misc]


def test_a_drained_worker_gets_nothing_more_and_the_supervisor_is_told(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(slot=2), broker.client()
    request_id = client.ask()
    job = worker.job()
    assert broker.verb("workers.drain", worker=2)["ok"] is True
    assert broker.verb("workers.list")["workers"][0]["state"] == "draining"
    client.ask()
    worker.answer(job)
    client.ending(request_id)
    broker.until(lambda: link.Ask("worker.drained", 2) in broker.asked, "the supervisor was not told")
    assert broker.verb("status")["queue"]["depth"] == 1
    assert [message for message in worker.seen if message.type == protocol.REQUEST] == []


@pytest.mark.parametrize("op", ["workers.restart", "workers.drain"])
def test_a_worker_that_does_not_exist_is_an_error_that_names_those_that_do(
    broker: RunningBroker, op: str
) -> None:
    broker.worker().ready(slot=3).until(lambda: broker.verb("workers.list")["workers"], "no worker")
    reply = broker.verb(op, worker=9)
    assert (reply["ok"], reply["error"]["code"]) == (False, "bad_request")
    assert "there are: 3" in reply["error"]["message"]


def test_an_operator_cancels_a_request(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(), broker.client()
    request_id = client.ask()
    worker.job()
    assert broker.verb("queue.cancel", request=request_id.hex())["ok"] is True
    assert client.error().code == "cancelled"
    for wrong in ("zz", request_id.hex(), ""):
        assert broker.verb("queue.cancel", request=wrong)["error"]["code"] == "bad_request"


def test_the_supervisors_tree_is_shown(broker: RunningBroker) -> None:
    tree = {"supervisor": {"pid": 1, "uptime_s": 2.0}, "children": []}
    broker.child.link.send(link.Order("tree", tree=tree))
    broker.operator.until(lambda: broker.verb("status")["tree"] == tree, "the tree is not shown")


# --- orders of the supervisor ---------------------------------------------------------------------------


def test_drain_refuses_new_requests_and_lets_the_running_finish(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(), broker.client()
    running = client.ask()
    job = worker.job()
    broker.child.link.send(link.Order("drain", deadline_s=30.0))
    broker.until(lambda: broker.status is not None and broker.status.phase == "draining", "does not drain")
    refused = client.ask()
    ending = client.ending(refused)
    error = protocol.decode_header(protocol.ErrorHeader, ending.header)
    assert (ending.type, error.code, error.retryable) == (protocol.BUSY, "draining", True)
    assert error.retry_after_s == 2.0
    worker.answer(job)
    assert client.ending(running).type == protocol.FINAL
    broker.until(
        lambda: broker.status is not None and broker.status.phase == "stopping", "does not get ready"
    )


def test_stop_ends_every_request_before_the_process(broker: RunningBroker) -> None:
    worker, client = broker.worker().ready(slots=1), broker.client()
    asked = {client.ask(), client.ask()}
    worker.job()
    broker.child.link.send(link.Order("stop"))
    ended = {client.next(protocol.ERROR).request_id for _ in range(2)}
    assert ended == asked
    assert broker.ended() == 0


def test_an_orphan_ends(broker: RunningBroker) -> None:
    broker.child.link.close()
    assert broker.ended() == 1


def test_new_limits_hold_after_reconfigure(broker: RunningBroker) -> None:
    broker.worker().ready()
    client = broker.client()
    plain = config.to_plain(broker.config)
    plain["broker"]["max_payload_bytes"] = 1024
    broker.child.link.send(link.Order("reconfigure", config=plain))
    broker.operator.until(lambda: _is_too_large(client), "the new limit does not hold")


def test_a_request_far_too_large_is_told_so_and_not_cut_off(broker: RunningBroker) -> None:
    client = broker.client()
    request_id = client.ask(b"x" * protocol.MAX_PAYLOAD_BYTES)
    error = protocol.decode_header(protocol.ErrorHeader, client.ending(request_id).header)
    assert error.code == "too_large"
    assert client.events == [ConnectionEvent.UP]


def _is_too_large(client: Client) -> bool:
    request_id = client.ask(b"x" * 2048, deadline_ms=50)
    error = protocol.decode_header(protocol.ErrorHeader, client.ending(request_id).header)
    return error.code == "too_large"
