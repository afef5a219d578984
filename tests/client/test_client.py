"""Client against a real ROUTER: threads, deadlines, lost daemons, hostile and late replies, fork."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from walled_client import Client, Reply

from tests.client.fake_broker import FakeBroker, Peer, echo
from walled import protocol
from walled.errors import (
    BadRequest,
    Cancelled,
    DaemonUnavailable,
    DeadlineExceeded,
    Overloaded,
    StreamInterrupted,
    WalledError,
)
from walled.protocol import ControlRequest, ErrorHeader, RequestHeader


class Held:
    """A behaviour that answers nothing by itself; the test takes the requests by their text."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._peers: dict[str, Peer] = {}
        self._news = threading.Condition()
        broker.behaviour = self._hold

    def _hold(self, peer: Peer) -> None:
        if peer.message.type == protocol.REQUEST:
            with self._news:
                self._peers[peer.prompt()] = peer
                self._news.notify_all()

    def peer(self, text: str) -> Peer:
        with self._news:
            assert self._news.wait_for(lambda: text in self._peers, 5), f"{text} never came"
            return self._peers[text]

    def do(self, text: str, action: Callable[[Peer], object]) -> None:
        """Have the broker's thread act on the request with that text."""
        peer = self.peer(text)
        self._broker.do(lambda: action(peer) and None)


class Asking(threading.Thread):
    """A call in a thread of its own; `result()` returns or raises what the call did."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._outcome: object = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as exc:
            self._outcome = exc

    def result(self, timeout_s: float = 5.0) -> object:
        self.join(timeout_s)
        assert not self.is_alive(), "the call hangs"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome


def header_of(broker: FakeBroker) -> RequestHeader:
    return protocol.decode_header(RequestHeader, broker.next(protocol.REQUEST).header)


# --- plain calls -----------------------------------------------------------------------------------


def test_an_answer_comes_back_with_where_it_came_from(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint) as client:
        reply = client.chat("hello")
    assert (reply.text, str(reply), reply.source, reply.backend, reply.model) == (
        "hello", "hello", "model", "fake", "fake",
    )  # fmt: skip
    assert reply.usage.prompt_tokens == 3
    assert reply.elapsed_ms > 0
    assert "hello" not in repr(reply)


def test_the_header_carries_what_the_call_and_the_client_said(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint, namespace="shop", priority="batch", deadline_s=9) as client:
        client.chat("x", model="big", session="s1", temperature=0, cache="refresh", deadline_s=3)
        header = header_of(broker)
        assert (header.model, header.session, header.namespace) == ("big", "s1", "shop")
        assert (header.priority, header.cache, header.deterministic) == ("batch", "refresh", True)
        assert 2900 <= header.deadline_ms <= 3000
        client.with_options(priority="interactive", namespace="other").chat("x")
        header = header_of(broker)
        assert (header.priority, header.namespace, header.model) == ("interactive", "other", "default")
        assert not header.deterministic
        assert 8900 <= header.deadline_ms <= 9000


def test_generate_and_embed(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint) as client:
        assert client.generate("once", max_tokens=3, system="be brief").text == "once"
        assert header_of(broker).kind == "generate"
        client.embed(["a", "b"])
        header = header_of(broker)
        assert (header.kind, header.deterministic) == ("embed", True)


def test_embeddings_are_vectors_in_order(broker: FakeBroker) -> None:
    import struct

    from walled.payload import Answer, pack_answer
    from walled.protocol import FinalHeader

    def embed(peer: Peer) -> None:
        vectors = (struct.pack("<2f", 1.0, 0.5), struct.pack("<2f", -1.0, 0.25))
        peer.send(protocol.FINAL, FinalHeader(), pack_answer(Answer(embeddings=vectors, model="e")))

    broker.behaviour = embed
    with Client(endpoint=broker.endpoint) as client:
        found = client.embed(["a", "b"])
    assert [list(vector) for vector in found.vectors] == [[1.0, 0.5], [-1.0, 0.25]]
    assert list(found.vector) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.chat([]), "messages is empty"),
        (lambda c: c.chat("x", temprature=1), "did you mean `temperature`"),
        (lambda c: c.chat("x", temperature=-1), "temperature"),
        (lambda c: c.chat("x", temperature=float("nan")), "temperature"),
        (lambda c: c.chat("x", max_tokens=0), "max_tokens"),
        (lambda c: c.chat("x", deadline_s=0), "deadline_s"),
        (lambda c: c.chat("x", deadline_s=float("inf")), "deadline_s"),
        (lambda c: c.chat("x", priority="urgent"), "priority"),
        (lambda c: c.chat("x", cache="sometimes"), "cache"),
        (lambda c: c.chat("x", namespace="n" * 200), "namespace"),
        (lambda c: c.chat("x", model=""), "model"),
        (lambda c: c.chat([{"role": "boss", "content": "x"}]), "role"),
        (lambda c: c.chat([{"role": "user", "content": 5}]), "content"),
        (lambda c: c.chat(7), "list"),
        (lambda c: c.chat("a\ud800b"), "Unicode"),
        (lambda c: c.chat("x", format="{"), "format"),
        (lambda c: c.generate(""), "prompt"),
        (lambda c: c.generate("x", tools=[]), "tools"),
        (lambda c: c.embed([]), "input"),
        (lambda c: c.embed("x", temperature=0), "temperature"),
        (lambda c: c.batch(["x"], concurrency=0), "concurrency"),
        (lambda c: c.cancel("not hex"), "hexadecimal"),
    ],
)
def test_nonsense_is_refused_before_anything_is_sent(
    run_dir: Path, call: Callable[[Client], object], words: str
) -> None:
    with Client(run_dir) as client, pytest.raises(BadRequest, match=words):
        call(client)


def test_equal_meaning_is_equal_bytes(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint) as client:
        for call in (
            lambda: client.chat("hi", system="s", temperature=0, stop="x"),
            lambda: client.chat(
                [{"content": "s", "role": "system"}, {"role": "user", "content": "hi"}],
                stop=["x"],
                temperature=-0.0,
                max_tokens=None,
            ),
        ):
            call()
        first, second = broker.next(protocol.REQUEST), broker.next(protocol.REQUEST)
    assert first.payload == second.payload


def test_tools_schemas_and_tool_calls_are_carried(broker: FakeBroker) -> None:
    from walled.payload import unpack_request

    with Client(endpoint=broker.endpoint) as client:
        client.chat(
            [
                {"role": "user", "content": "weather?"},
                {"role": "assistant", "tool_calls": [{"name": "w", "arguments": {"b": 1, "a": 2}}]},
                {"role": "tool", "content": "sunny"},
            ],
            tools=[{"type": "function", "function": {"name": "w"}}],
            format={"type": "object", "properties": {}},
        )
    request = unpack_request(broker.next(protocol.REQUEST).payload)
    assert request.messages[1].tool_calls == '[{"arguments":{"a":2,"b":1},"name":"w"}]'
    assert request.format == '{"properties":{},"type":"object"}'
    assert request.tools == '[{"function":{"name":"w"},"type":"function"}]'


def test_typed_errors_cross_the_wire(broker: FakeBroker) -> None:
    broker.behaviour = lambda peer: peer.send(
        protocol.BUSY, ErrorHeader("overloaded", "queue full", True, 1.5)
    )
    with Client(endpoint=broker.endpoint) as client:
        with pytest.raises(Overloaded, match="queue full") as caught:
            client.chat("x")
        with pytest.raises(Overloaded):
            client.stream("x").finish()
    assert caught.value.retry_after_s == 1.5


# --- streams ---------------------------------------------------------------------------------------


def test_a_stream_arrives_in_parts(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint) as client:
        stream = client.stream("one two three")
        assert [chunk.text for chunk in stream] == ["one", " two", " three"]
        assert stream.reply.text == "one two three"
        assert stream.finished
        assert list(stream) == []


def test_the_first_part_does_not_wait_for_the_rest(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        stream = client.stream("x")
        held.do("x", lambda peer: peer.partial(0, "first"))
        assert next(stream).text == "first"
        with pytest.raises(StreamInterrupted):
            _ = stream.reply
        held.do("x", lambda peer: peer.final("first"))
        assert stream.finish().text == "first"


@pytest.mark.parametrize("leave", ["close", "with", "drop"])
def test_leaving_a_stream_early_cancels_it(broker: FakeBroker, leave: str) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        stream = client.stream("x")
        held.do("x", lambda peer: peer.partial(0, "first"))
        next(stream)
        request_id = bytes.fromhex(stream.request_id)
        if leave == "close":
            stream.close()
            stream.close()
            assert list(stream) == []
        elif leave == "with":
            with stream:
                pass
        else:
            del stream
            gc.collect()
        assert broker.next(protocol.CANCEL).request_id == request_id
        assert client.in_flight() == []


def test_a_stream_with_a_gap_fails_and_is_cancelled(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        stream = client.stream("x")
        held.do("x", lambda peer: (peer.partial(0, "a"), peer.partial(2, "c")))
        with pytest.raises(StreamInterrupted):
            stream.finish()
        assert broker.next(protocol.CANCEL)
        with pytest.raises(StreamInterrupted):
            next(stream)


def test_a_restarted_stream_says_so(broker: FakeBroker) -> None:
    def restart(peer: Peer) -> None:
        peer.partial(0, "dead")
        peer.partial(0, "alive", restart=True)
        peer.final("alive", attempts=2)

    broker.behaviour = restart
    with Client(endpoint=broker.endpoint) as client:
        chunks = list(client.stream("x"))
    assert [(chunk.text, chunk.restart) for chunk in chunks] == [("dead", False), ("alive", True)]


# --- time and lost daemons -------------------------------------------------------------------------


def test_a_frozen_broker_never_hangs_a_caller(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            client.chat("x", deadline_s=0.2)
        assert 0.2 <= time.monotonic() - started_s < 2.0
        assert caught.value.retryable
        late = held.peer("x")
        assert broker.next(protocol.CANCEL).request_id == late.request_id
        held.do("x", lambda peer: peer.final("too late"))
        broker.behaviour = echo
        assert client.chat("next").text == "next", "the late answer is given to nobody"


def test_with_no_daemon_a_call_fails_within_the_connect_timeout(run_dir: Path) -> None:
    with Client(run_dir, connect_timeout_s=0.2) as client:
        started_s = time.monotonic()
        with pytest.raises(DaemonUnavailable, match="walled"):
            client.chat("x")
        assert 0.2 <= time.monotonic() - started_s < 1.0
        with pytest.raises(DaemonUnavailable):
            client.stream("x").finish()
        with pytest.raises(DaemonUnavailable):
            client.status()


def test_the_client_recovers_by_itself_when_the_daemon_comes(run_dir: Path) -> None:
    broker = FakeBroker(run_dir)
    with Client(run_dir, connect_timeout_s=0.1) as client:
        with pytest.raises(DaemonUnavailable):
            client.chat("x")
        with broker:
            assert _reached(client)
        with pytest.raises(DaemonUnavailable):
            client.chat("x")
        with broker:
            assert _reached(client)


def _reached(client: Client) -> bool:
    """Within a few connect timeouts; ZeroMQ dials again after at most half a second."""
    for _ in range(50):
        try:
            return client.chat("are you there").text == "are you there"
        except DaemonUnavailable:
            pass
    return False


def test_what_was_in_flight_is_sent_again_to_the_next_broker(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint, connect_timeout_s=5) as client:
        asking = Asking(lambda: client.chat("x", deadline_s=20))
        first = held.peer("x").message
        broker.stop()
        broker.behaviour = echo
        broker.start()
        reply = asking.result(10)
        assert isinstance(reply, Reply)
        assert reply.text == "x"
        broker.next(protocol.REQUEST)
        again = broker.next(protocol.REQUEST)
        assert (again.request_id, again.payload) == (first.request_id, first.payload)
        left_ms = protocol.decode_header(RequestHeader, again.header).deadline_ms
        assert left_ms < protocol.decode_header(RequestHeader, first.header).deadline_ms
        assert client.counters()["resent"] == 1


def test_a_stream_that_had_begun_is_interrupted_when_the_broker_dies(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        stream = client.stream("x")
        held.do("x", lambda peer: peer.partial(0, "half"))
        assert next(stream).text == "half"
        broker.stop()
        with pytest.raises(StreamInterrupted):
            next(stream)


def test_a_call_without_a_new_broker_fails_within_the_connect_timeout(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint, connect_timeout_s=0.3) as client:
        asking = Asking(lambda: client.chat("x", deadline_s=60))
        held.peer("x")
        broker.stop()
        with pytest.raises(DaemonUnavailable):
            asking.result(5)


def test_a_broker_that_was_replaced_while_we_were_idle_gets_the_request_once(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint, connect_timeout_s=5) as client:
        client.chat("before")
        broker.stop()
        broker.start()
        assert client.chat("after").text == "after"
        broker.next(protocol.REQUEST)
        broker.next(protocol.REQUEST)
        client.chat("last")
        assert broker.next(protocol.REQUEST)
        assert broker.seen.empty()


# --- hostile replies -------------------------------------------------------------------------------


def test_hostile_frames_are_dropped_and_the_answer_still_comes(broker: FakeBroker) -> None:
    def hostile(peer: Peer) -> None:
        if peer.message.type != protocol.REQUEST:
            return
        peer.raw([b""])
        peer.raw([b"WLD\x09", protocol.FINAL, peer.request_id, b"\x80", b""])
        peer.raw([protocol.PREAMBLE, b"\xee", peer.request_id, b"\x80", b""])
        peer.raw([protocol.PREAMBLE, protocol.FINAL, b"i" * 100, b"\x80", b""])
        peer.raw([protocol.PREAMBLE, protocol.FINAL, b"unknown", b"\x80", b"\x80"])
        peer.raw([protocol.PREAMBLE, protocol.ACCEPTED, peer.request_id, b"\x80" * 50, b""])
        peer.raw([protocol.PREAMBLE, protocol.REQUEST, peer.request_id, b"\x80", b""])
        peer.raw([protocol.PREAMBLE, protocol.HEARTBEAT, b"", b"\xff", b""])
        peer.raw([b"x"] * 40)
        peer.final("still here")
        peer.final("again")

    broker.behaviour = hostile
    with Client(endpoint=broker.endpoint) as client:
        assert client.chat("x").text == "still here"
        assert client.chat("y").text == "still here"
        counters = client.counters()
    assert counters["malformed"] >= 7
    assert counters["late_replies"] >= 2


# --- threads ---------------------------------------------------------------------------------------


def test_the_leader_hands_on_when_its_own_answer_comes_first(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        asking = {}
        for name in ("a", "b", "c"):
            asking[name] = Asking(lambda name=name: client.chat(name, deadline_s=20))  # type: ignore[misc]
            held.peer(name)
        for name in ("a", "b", "c"):
            held.do(name, lambda peer, name=name: peer.final(name))  # type: ignore[misc]
            assert str(asking[name].result(5)) == name


def test_followers_are_answered_while_the_leader_waits(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        leader = Asking(lambda: client.chat("leader", deadline_s=20))
        held.peer("leader")
        for name in ("b", "c"):
            follower = Asking(lambda name=name: client.chat(name, deadline_s=20))  # type: ignore[misc]
            held.do(name, lambda peer, name=name: peer.final(name))  # type: ignore[misc]
            assert str(follower.result(5)) == name
        held.do("leader", lambda peer: peer.final("leader"))
        assert str(leader.result(5)) == "leader"


def test_a_follower_with_a_short_deadline_does_not_wait_for_the_leader(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        leader = Asking(lambda: client.chat("leader", deadline_s=20))
        held.peer("leader")
        with pytest.raises(DeadlineExceeded):
            client.chat("short", deadline_s=0.1)
        held.do("leader", lambda peer: peer.final("done"))
        assert str(leader.result(5)) == "done"


def test_many_threads_each_get_their_own_answers(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint) as client:

        def ask(name: int) -> int:
            for n in range(60):
                text = f"thread {name} question {n}"
                if n % 5 == 0:
                    assert client.stream(text).finish().text == text
                elif n % 7 == 0:
                    assert [str(r) for r in client.batch([text, "b"])] == [text, "b"]
                else:
                    assert client.chat(text).text == text
            return name

        askers = [Asking(lambda name=name: ask(name)) for name in range(16)]  # type: ignore[misc]
        assert [asker.result(60) for asker in askers] == list(range(16))
        assert client.in_flight() == []
        assert client.counters()["late_replies"] == 0


def test_cancel_from_another_thread(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        asking, other = Asking(lambda: client.chat("x")), Asking(lambda: client.chat("y"))
        request_id = held.peer("x").request_id.hex()
        held.peer("y")
        assert set(client.in_flight()) == {request_id, held.peer("y").request_id.hex()}
        assert client.cancel(request_id) == 1
        with pytest.raises(Cancelled):
            asking.result(5)
        assert broker.next(protocol.CANCEL).request_id.hex() == request_id
        assert client.cancel("00") == 0
        assert client.cancel() == 1
        with pytest.raises(Cancelled):
            other.result(5)


def test_close_ends_every_call_and_tells_the_broker(broker: FakeBroker) -> None:
    def confirm(peer: Peer) -> None:
        if peer.message.type == protocol.CANCEL:
            peer.send(protocol.ERROR, ErrorHeader("cancelled"))
        else:
            held._hold(peer)

    held = Held(broker)
    broker.behaviour = confirm
    client = Client(endpoint=broker.endpoint)
    asking = [Asking(lambda name=name: client.chat(name)) for name in ("a", "b", "c")]  # type: ignore[misc]
    for name in ("a", "b", "c"):
        held.peer(name)
    client.close()
    client.close()
    for asker in asking:
        with pytest.raises(Cancelled):
            asker.result(5)
    assert len([broker.next(protocol.CANCEL) for _ in range(3)]) == 3
    with pytest.raises(Cancelled):
        client.chat("x")


def test_a_closed_stream_is_cancelled_even_if_the_program_ends_at_once(broker: FakeBroker) -> None:
    def confirm(peer: Peer) -> None:
        if peer.message.type == protocol.CANCEL:
            peer.send(protocol.ERROR, ErrorHeader("cancelled"))

    broker.behaviour = confirm
    with Client(endpoint=broker.endpoint) as client:
        stream = client.stream("x")
        stream.close()
    assert broker.next(protocol.CANCEL).request_id.hex() == stream.request_id
    assert broker.next(protocol.DISCONNECT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_that_raise_at_any_moment_leave_a_client_that_works(broker: FakeBroker) -> None:
    class Rung(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rung

    def ring_and_echo(peer: Peer) -> None:
        if peer.message.type == protocol.REQUEST:
            os.kill(os.getpid(), signal.SIGUSR1)
        echo(peer)

    old = signal.signal(signal.SIGUSR1, ring)
    rung = 0
    try:
        with Client(endpoint=broker.endpoint) as client:
            client.chat("connect")
            follower = Asking(lambda: [client.chat(f"f{n}", deadline_s=5) for n in range(50)] and None)
            broker.behaviour = ring_and_echo
            for n in range(300):
                try:
                    assert client.chat(f"q{n}", deadline_s=5).text == f"q{n}"
                except Rung:
                    rung += 1
            broker.behaviour = echo
            try:
                follower.result(60)
            except DeadlineExceeded:
                pass  # its answer was in the hands of the thread that the signal struck
            assert client.chat("after").text == "after"
    except Rung:
        pytest.fail("the bell rang after its time")
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert rung > 0


# --- batch -----------------------------------------------------------------------------------------


def test_a_batch_answers_in_order_with_errors_in_place(broker: FakeBroker) -> None:
    def sometimes(peer: Peer) -> None:
        if peer.prompt() == "bad":
            peer.send(protocol.ERROR, ErrorHeader("backend_error", "no"))
        else:
            peer.final(peer.prompt())

    broker.behaviour = sometimes
    requests: list[object] = [f"q{n}" for n in range(50)]
    requests[7] = {"messages": "bad"}
    requests[9] = {"prompt": "", "temperature": 0}
    requests[11] = {"prompt": "p", "deadline_s": 4, "namespace": "n"}
    requests[13] = 5
    with Client(endpoint=broker.endpoint) as client:
        results = client.batch(requests, concurrency=4)  # type: ignore[arg-type]
    errors = {n: r.code for n, r in enumerate(results) if isinstance(r, WalledError)}
    assert errors == {7: "backend_error", 9: "bad_request", 13: "bad_request"}
    assert [str(results[n]) for n in (0, 11, 49)] == ["q0", "p", "q49"]


def test_a_batch_is_bounded(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        asking = Asking(lambda: client.batch([f"q{n}" for n in range(5)], concurrency=2))
        for n in range(5):
            held.peer(f"q{n}")
            assert f"q{n + 2}" not in held._peers
            if n + 1 < 5:
                held.peer(f"q{n + 1}")
            held.do(f"q{n}", lambda peer, n=n: peer.final(f"q{n}"))  # type: ignore[misc]
        assert [str(r) for r in asking.result(5)] == [f"q{n}" for n in range(5)]  # type: ignore[attr-defined]


# --- control and fork ------------------------------------------------------------------------------


def test_models_and_status_come_over_the_client_socket(broker: FakeBroker) -> None:
    def control(peer: Peer) -> None:
        op = protocol.unpack_control(peer.message.payload).op
        peer.send(protocol.CONTROL, None, protocol.pack_map({"schema": "x/1", "ok": True, "op": op}))

    broker.behaviour = control
    with Client(endpoint=broker.endpoint) as client:
        assert client.models()["op"] == "models.list"
        assert client.status() == {"schema": "x/1", "ok": True, "op": "status"}
    assert ControlRequest("status").op == "status"


def test_after_a_fork_both_sides_go_on_with_connections_of_their_own(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint) as client:
        assert client.chat("before").text == "before"
        held = Held(broker)
        stream = client.stream("s")
        held.do("s", lambda peer: peer.partial(0, "a"))
        next(stream)
        broker.behaviour = echo
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            outcome = b"no"
            try:
                text = client.chat("in the child").text
                try:
                    next(stream)
                except StreamInterrupted:
                    outcome = text.encode()
            finally:
                os.write(write, outcome)
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read() == b"in the child"
        assert os.waitpid(child, 0)[1] == 0
        held.do("s", lambda peer: peer.final("a"))
        assert stream.finish().text == "a"
        assert client.chat("after").text == "after"
