"""The worker against a broker's end of its socket: jobs, streams, deadlines, cache, loss, drain."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker_bench import TOKEN, BrokerEnd, RunningWorker, scripted_config
from walled import config as cfg
from walled import link as lk
from walled import payload as pl
from walled import protocol as wire
from walled import worker as worker_module
from walled.adapters import registry
from walled.adapters.backend import BackendInfo, Changed, Delta, Done, Emit, Job
from walled.adapters.cache import CacheReader
from walled.adapters.scripted import ScriptedBackend
from walled.adapters.sockets import Hub, Poller
from walled.core.served import default_options, packed, place, with_defaults, worth_storing
from walled.errors import BackendError, BackendUnavailable, BootError, InternalError

A, B, C = b"job----A", b"job----B", b"job----C"


class Pair:
    """A broker's end and a worker that is READY."""

    def __init__(self, directory: Path, slot: int = 0, **options: Any) -> None:
        self.config = scripted_config(directory, **options)
        self.broker = BrokerEnd(self.config)
        self.worker = RunningWorker(self.config, slot)
        self.ready = self.broker.ready()
        self.broker.beat()

    def close(self) -> None:
        if self.broker.closed:
            return
        if self.worker.thread.is_alive():
            self.worker.order("stop")
            self.worker.join()
        self.broker.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    """Makes pairs in the test's directory and closes them, however the test ends."""
    made: list[Pair] = []

    def one(**options: Any) -> Pair:
        made.append(Pair(tmp_path, **options))
        return made[-1]

    yield one
    for pair in made:
        pair.close()


@pytest.fixture
def pair(make: Callable[..., Pair]) -> Pair:
    return make()


def test_ready_says_who_it_is_and_what_it_serves(pair: Pair) -> None:
    ready = pair.ready
    assert (ready.worker, ready.token, ready.pid) == (0, TOKEN, os.getpid())
    assert (ready.backend, ready.kind, ready.slots) == ("s", "scripted", 4)
    assert [model.name for model in ready.models] == ["scripted"]


def test_an_answer(pair: Pair) -> None:
    pair.broker.ask(A, "one two", attempt=2)
    header, answer = pair.broker.answer(A)
    assert answer.text == "one two one two one two one two"
    assert (header.source, header.backend, header.worker, header.attempts) == ("model", "s", 0, 2)
    assert (header.partials, header.stored) == (0, False)
    assert pair.broker.partials(A) == []


def test_a_stream_arrives_in_sequence_and_joins_to_the_answer(make: Callable[..., Pair]) -> None:
    pair = make(first_token_s=0.02, token_s=0.004, tokens=40)
    pair.broker.ask(A, "the quick ñandú", stream=True)
    header, answer = pair.broker.answer(A)
    partials = pair.broker.partials(A)
    assert [seq for seq, _ in partials] == list(range(header.partials))
    assert "".join(text for _, text in partials) == answer.text
    assert partials[0][1] == "the", "the first word does not wait for others"
    assert len(partials) <= 30, "the later ones travel together"
    assert header.phases.first_token_ms >= 20
    assert header.phases.prefill_ms == pytest.approx(20, abs=1)


def test_a_job_can_be_made_a_stream_while_it_runs(make: Callable[..., Pair]) -> None:
    pair = make()
    pair.broker.ask(A, "a b c d\n!tokens 6 !stall_after 3")
    pair.broker.ask(B, "x")
    pair.broker.answer(B)
    assert pair.broker.partials(A) == []
    pair.broker.send(wire.CONTROL, A, None, wire.pack_map({"op": "stream"}))
    text, seq = "", 0
    while text != "a b c":
        partial = pair.broker.expect(wire.PARTIAL)
        assert partial.request_id == A
        assert wire.decode_header(wire.PartialHeader, partial.header).seq == seq
        text, seq = text + partial.payload.decode(), seq + 1
        assert "a b c".startswith(text)


def test_cancel_ends_the_job_and_frees_the_slot(pair: Pair) -> None:
    jobs = [b"job-%04d" % number for number in range(4)]
    for job in jobs:
        pair.broker.ask(job, "x\n!stall")
    pair.broker.ask(A, "no slot is left")
    error = pair.broker.error(A)
    assert (error.code, error.retryable) == ("overloaded", True)
    pair.broker.send(wire.CANCEL, jobs[0])
    assert pair.broker.error(jobs[0]).code == "cancelled"
    pair.broker.ask(B)
    pair.broker.answer(B)
    pair.broker.send(wire.CANCEL, b"unknown")
    pair.broker.send(wire.CANCEL, B)
    pair.broker.ask(C)
    pair.broker.answer(C)


def test_a_deadline_ends_the_job(pair: Pair) -> None:
    began = time.monotonic()
    pair.broker.ask(A, "x\n!stall", deadline_ms=150)
    assert pair.broker.error(A).code == "deadline_exceeded"
    assert 0.15 <= time.monotonic() - began < 1.0


def test_a_deadline_can_be_extended(pair: Pair) -> None:
    began = time.monotonic()
    pair.broker.ask(A, "x\n!stall", deadline_ms=100)
    pair.broker.send(wire.CONTROL, A, None, wire.pack_map({"op": "deadline", "deadline_ms": 400}))
    assert pair.broker.error(A).code == "deadline_exceeded"
    assert time.monotonic() - began >= 0.4


class Stubborn(ScriptedBackend):
    """Does not let go of a cancelled job before it is told to."""

    def __init__(self) -> None:
        super().__init__(cfg.ScriptedConfig(), 4)
        self.cancelled: list[int] = []

    def cancel(self, job_id: int) -> None:
        self.cancelled.append(job_id)

    def let_go(self) -> None:
        for job_id in self.cancelled:
            super().cancel(job_id)


def test_a_backend_that_does_not_let_go_costs_a_slot_not_the_caller(
    make: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Stubborn()
    monkeypatch.setattr(registry, "create", lambda *args: backend)
    pair = make()
    began = time.monotonic()
    pair.broker.ask(A, "x\n!stall", deadline_ms=100)
    credit = pair.broker.expect(lambda envelope: envelope.type in {wire.CREDIT, wire.ERROR})
    assert credit.type == wire.CREDIT, "the credit comes before the ending"
    assert wire.decode_header(wire.CreditHeader, credit.header).slots == 3
    assert pair.broker.error(A).code == "deadline_exceeded"
    assert 1.0 < time.monotonic() - began < 5.0
    backend.let_go()
    credit = pair.broker.expect(wire.CREDIT)
    assert wire.decode_header(wire.CreditHeader, credit.header).slots == 4


def test_deltas_that_do_not_join_to_the_answer_are_no_answer(
    make: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Liar(ScriptedBackend):
        def submit(self, job: Job) -> None:
            self._emit(Delta(job.job_id, "half"))
            self._emit(Done(job.job_id, pl.Answer(text="half of it")))

    monkeypatch.setattr(registry, "create", lambda *args: Liar(cfg.ScriptedConfig(), 4))
    pair = make()
    pair.broker.ask(A, stream=True)
    assert pair.broker.error(A).code == "internal"


def test_a_backend_that_changes_is_announced_again(
    make: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ScriptedBackend(cfg.ScriptedConfig(), 4)
    monkeypatch.setattr(registry, "create", lambda *args: backend)
    pair = make()
    more = (*pair.ready.models, wire.ModelInfo(name="pulled", digest="d"))
    backend._emit(Changed(BackendInfo(more, 2)))
    ready = pair.broker.ready()
    assert [model.name for model in ready.models] == ["scripted", "pulled"]
    assert ready.slots == 2
    backend._emit(Changed(BackendInfo(more, 0)))
    assert pair.broker.ready().slots == 0
    pair.broker.ask(A, "one")
    assert pair.broker.answer(A)[1].text, "sent before the broker knew: the backend decides, not the count"


def test_a_backend_that_never_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(ScriptedBackend):
        def start(self, emit: Emit) -> BackendInfo:
            raise BootError("never")

    monkeypatch.setattr(registry, "create", lambda *args: Dead(cfg.ScriptedConfig(), 4))
    with pytest.raises(BootError):
        RunningWorker(scripted_config(tmp_path)).join()


class Late(ScriptedBackend):
    """Its server is down until it is let up."""

    def __init__(self) -> None:
        super().__init__(cfg.ScriptedConfig(), 4)
        self.tries = 0
        self.tried_twice, self.up = threading.Event(), threading.Event()

    def start(self, emit: Emit) -> BackendInfo:
        self.tries += 1
        if self.tries >= 2:
            self.tried_twice.set()
        if not self.up.is_set():
            raise BackendUnavailable("not there")
        return super().start(emit)


def test_a_server_that_is_down_is_tried_until_it_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "START_PAUSE_S", 0.01)
    backend = Late()
    monkeypatch.setattr(registry, "create", lambda *args: backend)
    config = scripted_config(tmp_path)
    broker, worker = BrokerEnd(config), RunningWorker(config)
    assert backend.tried_twice.wait(10)
    told = [m for m in worker.link.receive() if isinstance(m, lk.Status)]
    assert lk.Status("starting", "not there") in told, (
        "waiting counts as no try: start_timeout_s is each try's"
    )
    assert lk.Status("loading", "not there") in told
    backend.up.set()
    assert broker.ready().slots == 4
    worker.order("stop")
    assert worker.join() == 0
    broker.close()


@pytest.mark.parametrize("op", ["stop", "drain"])
def test_a_worker_whose_server_is_down_leaves_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    monkeypatch.setattr(worker_module, "START_PAUSE_S", 60.0)
    backend = Late()
    monkeypatch.setattr(registry, "create", lambda *args: backend)
    worker = RunningWorker(scripted_config(tmp_path))
    worker.order(op)
    assert worker.join() == 0
    assert backend.tries == 1


def test_silence_ends_a_job_of_whatever_backend(make: Callable[..., Pair]) -> None:
    pair = make(first_token_timeout_s=0.2, inter_token_timeout_s=0.1)
    began = time.monotonic()
    pair.broker.ask(A, "x\n!stall")
    error = pair.broker.error(A)
    assert (error.code, error.retryable) == ("backend_timeout", True)
    assert "first_token_timeout_s" in error.message
    assert 0.2 <= time.monotonic() - began < 1.0
    pair.broker.ask(B, "a b c d\n!stall_after 2", stream=True)
    error = pair.broker.error(B)
    assert error.code == "backend_timeout"
    assert "inter_token_timeout_s" in error.message
    pair.broker.ask(C, "x\n!stall", first_token_ms=50)
    assert "other backends" in pair.broker.error(C).message


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"kind": "generate"}, "bad_request"),
        ({"deterministic": True}, "bad_request"),
        ({"model": "nobody"}, "model_not_found"),
    ],
)
def test_a_header_that_lies_is_refused(pair: Pair, header: dict[str, Any], code: str) -> None:
    pair.broker.ask(A, **header)
    assert pair.broker.error(A).code == code


def test_bytes_that_are_no_request(pair: Pair) -> None:
    header = wire.JobHeader(model="scripted", deadline_ms=1000)
    pair.broker.send(wire.REQUEST, A, header, b"\xc1 nonsense")
    assert pair.broker.error(A).code == "bad_request"
    pair.broker.send(wire.REQUEST, B, wire.CreditHeader(3), b"")
    assert pair.broker.error(B).code == "protocol_error"
    pair.broker.send(wire.FINAL, C)
    pair.broker.send(wire.CONTROL, C, None, b"\xc1")
    pair.broker.ask(C)
    pair.broker.answer(C)


def test_a_backend_that_fails(pair: Pair) -> None:
    pair.broker.ask(A, "secret\n!fail_after 1 backend_error", stream=True)
    error = pair.broker.error(A)
    assert (error.code, error.retryable) == ("backend_error", True)
    assert "secret" not in error.message


def test_a_deterministic_answer_is_in_the_cache_before_it_is_sent(pair: Pair) -> None:
    options = {"temperature": 0}
    pair.broker.ask(A, "keep this", options=options, store=True, namespace="shop")
    header, answer = pair.broker.answer(A)
    assert header.stored
    assert header.phases.store_ms > 0
    reader = CacheReader(cfg.cache_dir(pair.config))
    for name in ("scripted", "default"):
        meta = reader.meta(name)
        assert meta is not None
        message = {"role": "user", "content": "keep this"}
        fields = {"kind": "chat", "messages": [message], "options": options}
        payload = pl.pack_request(pl.request_from(fields))
        key = pl.cache_key("shop", meta.fingerprint, payload)
        found = reader.get(key, time.time())
        assert found is not None
        assert pl.unpack_answer(found.answer) == answer
        assert reader.get(pl.cache_key("other", meta.fingerprint, payload), time.time()) is None
    reader.close()


@pytest.mark.parametrize(
    ("text", "options", "stored"),
    [
        ("a b c", {"temperature": 0, "max_tokens": 2}, True),
        ("a b c\n!fail_after 2 truncated", {"temperature": 0}, False),
        ("a\n!tokens 0", {"temperature": 0}, False),
    ],
)
def test_only_whole_answers_are_stored(pair: Pair, text: str, options: Any, stored: bool) -> None:
    pair.broker.ask(A, text, options=options, store=True)
    ending = pair.broker.ending(A)
    assert (b"stored" in ending.header) is stored


def test_what_is_worth_storing() -> None:
    whole = pl.Answer(text="x")
    assert worth_storing(whole, False)
    assert worth_storing(pl.Answer(tool_calls="[]", finish_reason="tool_calls"), False)
    assert worth_storing(pl.Answer(embeddings=(b"1234",)), False)
    assert not worth_storing(pl.Answer(), True)
    cut = pl.Answer(text="x", finish_reason="length")
    assert worth_storing(cut, True)
    assert not worth_storing(cut, False), "cut by a limit the caller did not set"


def test_an_answer_that_cannot_travel_is_an_error() -> None:
    assert pl.unpack_answer(packed(pl.Answer(text="ñ"), 1)).text == "ñ"
    with pytest.raises(BackendError, match="Unicode"):
        packed(pl.Answer(text="\ud800"), None)
    with pytest.raises(BackendError, match="at most"):
        packed(pl.Answer(text="x" * wire.MAX_PAYLOAD_BYTES), None)
    with pytest.raises(InternalError):
        packed(pl.Answer(text="two"), 2)


def test_a_cache_that_cannot_be_opened_fails_no_request(tmp_path: Path, make: Callable[..., Pair]) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the directory should be")
    pair = make()
    pair.broker.ask(A, options={"temperature": 0}, store=True)
    header, _ = pair.broker.answer(A)
    assert not header.stored


def test_default_options_fill_gaps_and_are_part_of_the_digest(make: Callable[..., Pair]) -> None:
    plain = make()
    plain.close()
    pair = make(default_options={"max_tokens": 3, "temperature": 0.5})
    pair.broker.ask(A, "a b c d e")
    assert pair.broker.answer(A)[1].text == "a b c"
    pair.broker.ask(B, "a b c d e", options={"max_tokens": 2})
    assert pair.broker.answer(B)[1].text == "a b"
    assert pair.ready.models[0].digest != plain.ready.models[0].digest
    assert len(pair.ready.models[0].digest) <= 256


def test_with_defaults_never_changes_what_was_asked() -> None:
    config = scripted_config(Path("/tmp"), default_options={"temperature": 0.7, "stop": ["x"]})
    defaults = default_options(config.enabled_backends()["s"])
    assert defaults is not None
    request = pl.request_from({"kind": "generate", "prompt": "p", "options": {"temperature": 0, "seed": 1}})
    merged = with_defaults(request, defaults)
    assert (merged.options.temperature, merged.options.seed, merged.options.stop) == (0, 1, ("x",))
    assert request.options.stop == ()


def test_slots_are_shared_by_the_workers_of_a_backend() -> None:
    config = cfg.from_plain(
        {
            "backend": ["a", "b"],
            "daemon": {"allow_scripted": True},
            "backends": {
                "a": {"kind": "scripted", "workers": 2, "slots": 2},
                "b": {"kind": "scripted", "workers": 3, "slots": 8},
            },
        }
    )
    places = [place(config, slot, "a" if slot < 2 else "b") for slot in range(5)]
    assert [where.slots for where in places] == [1, 1, 3, 3, 2]
    assert [where.number for where in places] == [0, 1, 0, 1, 2]
    with pytest.raises(BootError):
        place(config, 5, "b")
    with pytest.raises(BootError):
        place(config, 1, "b")


def test_a_silent_broker_is_left(make: Callable[..., Pair]) -> None:
    pair = make(broker={"heartbeat_s": 0.05, "worker_liveness_s": 1.0})
    old = pair.broker.identity
    pair.broker.ask(A, "x\n!stall")
    pair.broker.ready()
    assert pair.broker.identity != old, "a new peer"
    pair.broker.beat()
    pair.broker.ask(B)
    pair.broker.answer(B)


def test_a_new_epoch_means_a_new_broker(pair: Pair) -> None:
    old = pair.broker.identity
    pair.broker.epoch = b"epoch--2"
    pair.broker.beat()
    pair.broker.ready()
    assert pair.broker.identity != old


def test_a_worker_that_is_not_known_introduces_itself_again(pair: Pair) -> None:
    pair.broker.ask(A, "x\n!stall")
    old = pair.broker.identity
    pair.broker.send(wire.DISCONNECT)
    assert pair.broker.ready().slots in {3, 4}, "the stalled job may still hold its slot for a moment"
    assert pair.broker.identity != old
    for number in range(4):
        pair.broker.ask(b"job-%04d" % number, "x\n!stall")
    pair.broker.ask(A)  # the same wire id again is another job
    assert pair.broker.error(A).code == "overloaded"


def test_a_broker_that_comes_back_is_found(pair: Pair) -> None:
    pair.broker.ask(A, "x\n!stall")
    pair.broker.port.close()
    pair.broker.open()
    assert pair.broker.ready().worker == 0
    pair.broker.beat()
    pair.broker.ask(A)
    assert pair.broker.answer(A)[1].text


def test_the_worker_beats(make: Callable[..., Pair]) -> None:
    pair = make(broker={"heartbeat_s": 0.05, "worker_liveness_s": 1.0})
    pair.broker.ask(A, "x\n!stall")

    def busy(envelope: wire.Envelope) -> bool:
        if envelope.type != wire.HEARTBEAT:
            return False
        return wire.decode_header(wire.HeartbeatHeader, envelope.header).in_flight == 1

    pair.broker.expect(busy)


def test_drain_finishes_what_runs_and_what_was_on_its_way(make: Callable[..., Pair]) -> None:
    pair = make(token_s=0.05)
    pair.broker.ask(A, "finish me", stream=True)
    pair.broker.expect(wire.PARTIAL)
    pair.worker.order("drain", deadline_s=10.0)
    credit = pair.broker.expect(wire.CREDIT)
    assert wire.decode_header(wire.CreditHeader, credit.header).slots == 0
    pair.broker.ask(B, "sent before the credit came")
    assert pair.broker.answer(A)[1].text
    assert pair.broker.answer(B)[1].text
    pair.broker.expect(wire.DISCONNECT)
    assert pair.worker.join() == 0


def test_drain_ends_what_does_not_finish(make: Callable[..., Pair]) -> None:
    pair = make()
    pair.broker.ask(A, "x\n!stall_after 1", stream=True)
    pair.broker.expect(wire.PARTIAL)
    pair.worker.order("drain", deadline_s=0.2)
    assert pair.broker.error(A).code == "draining"
    pair.broker.expect(wire.DISCONNECT)
    assert pair.worker.join() == 0


def test_stop_and_the_end_of_the_link_end_it_at_once(make: Callable[..., Pair]) -> None:
    for way in ("stop", "link"):
        pair = make()
        pair.broker.ask(A, "x\n!stall")
        if way == "stop":
            pair.worker.order("stop")
        else:
            pair.worker.link.close()
        pair.broker.expect(wire.DISCONNECT)
        assert pair.worker.join() == 0
        pair.broker.close()


def test_it_tells_the_supervisor_how_it_is(make: Callable[..., Pair]) -> None:
    pair = make()
    phases: list[str] = []
    while "ready" not in phases:
        assert pair.worker.link.wait(10.0)
        for message in pair.worker.link.receive():
            assert isinstance(message, lk.Status)
            phases.append(message.phase)
    assert phases[0] == "loading"


def test_cache_times_can_be_changed_while_it_runs(pair: Pair) -> None:
    plain = cfg.to_plain(pair.config)
    plain["cache"]["ttl_s"] = 7.0
    pair.worker.order("reconfigure", config=plain)
    reader = CacheReader(cfg.cache_dir(pair.config))
    until = time.monotonic() + 10
    number = 0
    while True:
        number += 1
        pair.broker.ask(b"ask-%04d" % number, f"n {number}", options={"seed": 1}, store=True)
        pair.broker.answer(b"ask-%04d" % number)
        fresh = CacheReader(cfg.cache_dir(pair.config))
        meta = fresh.meta("scripted")
        fresh.close()
        assert meta is not None
        if meta.ttl_s == 7.0:
            break
        assert time.monotonic() < until
    reader.close()


def test_the_monitor_is_told(tmp_path: Path, make: Callable[..., Pair]) -> None:
    config = scripted_config(tmp_path, broker={"heartbeat_s": 0.05, "worker_liveness_s": 5.0})
    hub = Hub()
    deltas = hub.pull(cfg.endpoints(cfg.run_dir(config)).delta)
    poller = Poller([deltas])
    pair = make(broker={"heartbeat_s": 0.05, "worker_liveness_s": 5.0})
    pair.broker.ask(A, "a b")
    pair.broker.answer(A)
    pair.broker.ask(B, "x\n!fail backend_error")
    pair.broker.error(B)
    sums: dict[str, int] = {}
    until = time.monotonic() + 10
    while sums.get("jobs_total.backend_error") != 1:
        left = until - time.monotonic()
        assert left > 0, sums
        poller.wait(left)
        for [frame] in deltas.receive():
            report = wire.unpack_map(frame)
            assert report["from"] == "worker 0"
            for name, value in report["counters"].items():
                sums[name] = sums.get(name, 0) + value
    assert sums["jobs_total.done"] == 1
    assert sums["tokens_total.completion"] == 8
    hub.close()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    for kind, package in (("embedded", "xllamacpp"), ("openai", "httpx")):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, registry.ADAPTERS[kind].module, raising=False)
            patch.setitem(sys.modules, package, None)
            section = cfg.EmbeddedConfig() if kind == "embedded" else cfg.OpenAIConfig(base_url="http://x/v1")
            with pytest.raises(BootError, match=package) as caught:
                registry.create("mine", section, 1, tmp_path)
            assert f"walled[{kind}]" in caught.value.message
