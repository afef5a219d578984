"""Client against a real ROUTER: threads, deadlines, lost daemons, hostile and late replies, fork."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from walled_client import Client, Reply

from tests.client.fake_broker import Asking, FakeBroker, Held, Peer, echo
from walled import protocol
from walled.errors import (
    BadRequest,
    DaemonUnavailable,
    DeadlineExceeded,
    Overloaded,
    StreamInterrupted,
)
from walled.protocol import ErrorHeader, RequestHeader


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
