"""The client's state machine: correlation, time, lost connections, streams. No sockets, no clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from walled_client.exchange import GRACE_S, Call, Exchange
from walled_client.results import Reply, StreamChunk

from walled import protocol
from walled.errors import (
    Cancelled,
    DaemonUnavailable,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    ProtocolError,
    StreamInterrupted,
    WalledError,
)
from walled.payload import Answer, pack_answer
from walled.protocol import (
    AcceptedHeader,
    ControlRequest,
    ErrorHeader,
    FinalHeader,
    HeartbeatHeader,
    PartialHeader,
    RequestHeader,
)

PREFIX = b"prefix-8"


def exchange(connect_timeout_s: float = 1.0) -> Exchange:
    return Exchange(PREFIX, "/run/x/client.sock", connect_timeout_s)


def opened(
    ex: Exchange, now_s: float = 0.0, deadline_s: float = 10.0, *, stream: bool = False, sent: bool = True
) -> Call:
    header = RequestHeader(model="m", deadline_ms=int(deadline_s * 1000), stream=stream)
    call = ex.open(header, b"payload", now_s, deadline_s, None)
    if sent:
        ex.sent(call)
    return call


def final(call: Call, text: str = "yes", **header: object) -> list[bytes]:
    return protocol.frames(
        protocol.FINAL,
        call.request_id,
        FinalHeader(**header),
        pack_answer(Answer(text=text)),  # type: ignore[arg-type]
    )


def partial(call: Call, seq: int, text: str, *, restart: bool = False) -> list[bytes]:
    return protocol.frames(protocol.PARTIAL, call.request_id, PartialHeader(seq, restart), text.encode())


def error(call: Call, code: str, kind: bytes = protocol.ERROR, **header: object) -> list[bytes]:
    return protocol.frames(kind, call.request_id, ErrorHeader(code=code, message="why", **header))  # type: ignore[arg-type]


def sent_header(frames: list[bytes]) -> RequestHeader:
    return protocol.decode_header(RequestHeader, frames[3])


# --- correlation -----------------------------------------------------------------------------------


def test_an_answer_ends_its_call_and_says_where_it_came_from() -> None:
    ex = exchange()
    call = opened(ex, now_s=5.0)
    assert ex.receive(final(call, "hi", source="coalesced", worker=3, backend="b", attempts=2), 5.5) is call
    reply = call.reply(5.5)
    assert (reply.text, reply.source, reply.worker, reply.backend, reply.attempts) == (
        "hi",
        "coalesced",
        3,
        "b",
        2,
    )
    assert reply.elapsed_ms == pytest.approx(500)
    assert reply.request_id == call.request_id.hex()
    assert not ex.pending


def test_request_ids_are_the_prefix_and_a_counter() -> None:
    ex = exchange()
    first, second = opened(ex), opened(ex)
    assert first.request_id == PREFIX + (1).to_bytes(8, "big")
    assert second.request_id == PREFIX + (2).to_bytes(8, "big")


def test_a_second_answer_is_dropped_and_counted() -> None:
    ex = exchange()
    call, other = opened(ex), opened(ex)
    ex.receive(final(call, "first"), 1.0)
    assert ex.receive(final(call, "second"), 1.1) is None
    assert call.reply(1.1).text == "first"
    assert not other.ended
    assert ex.counters["late_replies"] == 1


def test_an_answer_of_a_past_client_is_dropped() -> None:
    ex = exchange()
    opened(ex)
    stranger = opened(Exchange(b"others-8", "", 1.0))
    assert ex.receive(final(stranger), 1.0) is None
    assert ex.counters["late_replies"] == 1


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_frames_whatsoever_raise_or_end_a_call(parts: list[bytes]) -> None:
    ex = exchange()
    call = opened(ex)
    ex.receive(parts, 1.0)
    ex.receive([protocol.PREAMBLE, *parts], 1.0)
    assert not call.ended


@given(st.sampled_from(sorted(protocol.TYPES)), st.binary(max_size=30), st.binary(max_size=30))
def test_hostile_headers_and_payloads_end_the_call_with_a_typed_error_at_worst(
    kind: bytes, header: bytes, payload: bytes
) -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive([protocol.PREAMBLE, kind, call.request_id, header, payload], 1.0)
    try:
        while (taken := call.take(1.0)) is not None:
            if isinstance(taken, Reply):
                break
    except WalledError:
        pass  # typed, whatever it is; anything else fails this test


@given(st.data())
def test_every_call_gets_its_own_answer_whatever_the_order_and_the_duplicates(data: st.DataObject) -> None:
    ex = exchange()
    calls = [opened(ex) for _ in range(data.draw(st.integers(1, 8)))]
    texts = {id(call): f"answer {n}" for n, call in enumerate(calls)}
    replies = [call for call in calls for _ in range(data.draw(st.integers(1, 3)))]
    for call in data.draw(st.permutations(replies)):
        got = ex.receive(final(call, texts[id(call)]), 1.0)
        assert got is None or got is call
    assert [call.reply(1.0).text for call in calls] == [texts[id(call)] for call in calls]
    assert ex.counters["late_replies"] == len(replies) - len(calls)
    assert not ex.pending


def test_malformed_messages_are_counted_by_reason() -> None:
    ex = exchange()
    ex.receive([b"x"], 0.0)
    ex.receive([b"WLD\x02", protocol.FINAL, b"", b"\x80", b""], 0.0)
    assert (ex.counters["malformed"], ex.counters["malformed_frames"], ex.counters["malformed_version"]) == (
        2,
        1,
        1,
    )


def test_refusals_carry_code_and_retry_after() -> None:
    ex = exchange()
    call = opened(ex)
    ex.receive(error(call, "overloaded", protocol.BUSY, retry_after_s=2.5, retryable=True), 0.1)
    with pytest.raises(Overloaded) as caught:
        call.reply(0.1)
    assert caught.value.retry_after_s == 2.5
    assert caught.value.retryable


def test_a_code_of_a_newer_daemon_is_an_internal_error_that_names_it() -> None:
    ex = exchange()
    call = opened(ex)
    ex.receive(error(call, "moon_phase"), 0.1)
    with pytest.raises(InternalError, match="moon_phase"):
        call.reply(0.1)


def test_an_undecodable_answer_is_a_protocol_error_of_that_call_only() -> None:
    ex = exchange()
    call, other = opened(ex), opened(ex)
    ex.receive(protocol.frames(protocol.FINAL, call.request_id, FinalHeader(), b"\xc1"), 0.1)
    with pytest.raises(ProtocolError):
        call.reply(0.1)
    assert not other.ended


def test_a_control_reply_cannot_end_a_request() -> None:
    ex = exchange()
    call = opened(ex)
    ex.receive(protocol.frames(protocol.CONTROL, call.request_id, None, protocol.pack_map({"ok": True})), 0.1)
    with pytest.raises(ProtocolError):
        call.reply(0.1)


# --- time ------------------------------------------------------------------------------------------


def test_a_silent_broker_costs_the_deadline_and_a_little_grace() -> None:
    ex = exchange()
    call = opened(ex, now_s=100.0, deadline_s=2.0)
    assert ex.expire(102.0) == []
    assert ex.expire(102.0 + GRACE_S) == [call]
    with pytest.raises(DeadlineExceeded):
        call.reply(102.0)
    assert ex.receive(final(call), 103.0) is None, "an answer after the end is nobody's"


def test_no_connection_costs_the_connect_timeout() -> None:
    ex = exchange(connect_timeout_s=0.5)
    call = opened(ex, now_s=10.0, deadline_s=30.0, sent=False)
    assert ex.due_s == 10.5
    assert ex.expire(10.49) == []
    assert ex.expire(10.5) == [call]
    with pytest.raises(DaemonUnavailable, match=r"/run/x/client\.sock"):
        call.reply(10.5)
    assert not ex.unsent


def test_nothing_expires_before_due_and_due_moves_on() -> None:
    ex = exchange()
    early, late = opened(ex, 0.0, 2.0), opened(ex, 0.0, 8.0)
    assert ex.expire(2.5) == [early]
    assert ex.due_s == pytest.approx(8.0 + GRACE_S)
    ex.receive(final(late), 3.0)
    assert ex.expire(9.0) == []
    assert ex.due_s == float("inf")


def test_what_is_sent_carries_the_time_that_is_left() -> None:
    ex = exchange()
    call = opened(ex, now_s=0.0, deadline_s=10.0, sent=False)
    assert sent_header(ex.frames(call, 0.0)).deadline_ms == 10_000
    assert sent_header(ex.frames(call, 4.0)).deadline_ms == 6_000
    assert sent_header(ex.frames(call, 11.0)).deadline_ms == 1


# --- cancelling ------------------------------------------------------------------------------------


def test_a_cancelled_call_ends_at_once_and_its_ending_is_not_called_late() -> None:
    ex = exchange()
    call = opened(ex)
    assert ex.cancel(call)
    with pytest.raises(Cancelled):
        call.reply(0.0)
    assert ex.cancelling == 1
    assert ex.receive(partial(call, 0, "x"), 0.1) is None
    assert ex.receive(error(call, "cancelled"), 0.1) is None
    assert ex.cancelling == 0
    assert ex.counters["late_replies"] == 0
    ex.receive(error(call, "cancelled"), 0.2)
    assert ex.counters["late_replies"] == 1


def test_cancelling_what_was_never_sent_needs_no_message() -> None:
    ex = exchange()
    call = opened(ex, sent=False)
    assert not ex.cancel(call)
    assert ex.cancelling == 0
    assert not ex.unsent


def test_cancelling_an_ended_call_changes_nothing() -> None:
    ex = exchange()
    call = opened(ex)
    ex.receive(final(call), 0.1)
    assert not ex.cancel(call)
    assert call.reply(0.1).text == "yes"


# --- lost connections ------------------------------------------------------------------------------


def test_what_has_given_no_text_is_sent_again_with_the_same_id_and_less_time() -> None:
    ex = exchange()
    plain, stream = opened(ex), opened(ex, stream=True)
    ex.lost(4.0)
    assert ex.expire(4.0) == []
    assert list(ex.unsent.values()) == [plain, stream]
    frames = ex.frames(plain, 4.0)
    assert frames[2] == plain.request_id
    assert sent_header(frames).deadline_ms == 6_000
    assert ex.counters["resent"] == 2


def test_no_new_connection_within_the_timeout_ends_what_waits() -> None:
    ex = exchange(connect_timeout_s=1.0)
    call = opened(ex, deadline_s=30.0)
    ex.lost(4.0)
    assert ex.expire(4.9) == []
    assert ex.expire(5.0) == [call]
    with pytest.raises(DaemonUnavailable):
        call.reply(5.0)


def test_a_stream_that_gave_text_is_interrupted_after_its_text() -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive(partial(call, 0, "half an"), 1.0)
    ex.lost(2.0)
    assert ex.expire(2.0) == [call]
    assert call.take(2.0) == StreamChunk("half an")
    with pytest.raises(StreamInterrupted):
        call.take(2.0)
    assert not ex.unsent


def test_an_operators_order_is_not_given_twice() -> None:
    ex = exchange()
    order = ex.open_control(ControlRequest("workers.restart", worker=1), 0.0, 5.0, None)
    ex.sent(order)
    ex.lost(1.0)
    assert ex.expire(1.0) == [order]
    with pytest.raises(DaemonUnavailable, match="not known"):
        order.control_reply()


def test_what_waited_unsent_keeps_its_own_time_limit_when_the_connection_drops() -> None:
    ex = exchange(connect_timeout_s=1.0)
    waiting = opened(ex, now_s=0.0, sent=False)
    ex.lost(0.9)
    assert ex.expire(1.0) == [waiting]


def test_another_epoch_on_the_same_connection_is_a_lost_connection() -> None:
    ex = exchange()
    call = opened(ex)

    def beat(epoch: bytes) -> list[bytes]:
        return protocol.frames(protocol.HEARTBEAT, b"", HeartbeatHeader(epoch))

    ex.receive(beat(b"one"), 0.5)
    ex.receive(beat(b"one"), 1.0)
    assert call.sent
    ex.receive(beat(b"two"), 1.5)
    assert not call.sent
    ex.sent(call)
    ex.receive(beat(b"two"), 2.0)
    assert call.sent


# --- streams ---------------------------------------------------------------------------------------


def taken(call: Call) -> list[StreamChunk | Reply]:
    found: list[StreamChunk | Reply] = []
    while (item := call.take(1.0)) is not None:
        found.append(item)
        if isinstance(item, Reply):
            break
    return found


def test_a_stream_is_its_parts_and_then_the_whole() -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    for seq, text in enumerate(["Hel", "lo ", "wörld"]):
        assert ex.receive(partial(call, seq, text), 0.1) is call
    ex.receive(final(call, "Hello wörld", partials=3), 0.2)
    *chunks, reply = taken(call)
    assert chunks == [StreamChunk("Hel"), StreamChunk("lo "), StreamChunk("wörld")]
    assert isinstance(reply, Reply)
    assert reply.text == "Hello wörld"


def test_a_missing_part_is_an_error_never_a_shorter_text() -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive(partial(call, 0, "a"), 0.1)
    ex.receive(partial(call, 2, "c"), 0.1)
    assert call.take(0.1) == StreamChunk("a")
    with pytest.raises(StreamInterrupted, match="part 1"):
        call.take(0.1)


def test_a_repeated_part_is_an_error() -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive(partial(call, 0, "a"), 0.1)
    ex.receive(partial(call, 0, "a"), 0.1)
    call.take(0.1)
    with pytest.raises(StreamInterrupted):
        call.take(0.1)


@pytest.mark.parametrize("whole", ["ab", "abcd", "xyz", ""])
def test_a_whole_answer_that_differs_from_its_parts_is_an_error(whole: str) -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive(partial(call, 0, "abc"), 0.1)
    ex.receive(final(call, whole), 0.1)
    assert call.take(0.1) == StreamChunk("abc")
    with pytest.raises(StreamInterrupted):
        call.take(0.1)


def test_a_cached_answer_streams_as_one_chunk() -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive(final(call, "whole", source="cache"), 0.1)
    assert taken(call)[0] == StreamChunk("whole")
    assert call.take(0.1) == call.reply(0.1)


def test_an_empty_answer_streams_as_nothing() -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive(final(call, ""), 0.1)
    assert isinstance(call.take(0.1), Reply)


def test_a_restart_is_announced_and_drops_the_text_before_it() -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive(partial(call, 0, "dead "), 0.1)
    ex.receive(partial(call, 0, "new", restart=True), 0.2)
    ex.receive(partial(call, 1, " text"), 0.3)
    ex.receive(final(call, "new text", attempts=2), 0.4)
    *chunks, reply = taken(call)
    assert chunks == [StreamChunk("dead "), StreamChunk("new", True), StreamChunk(" text")]
    assert isinstance(reply, Reply)
    assert reply.attempts == 2


def test_a_part_that_is_not_utf8_is_a_protocol_error() -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive(protocol.frames(protocol.PARTIAL, call.request_id, PartialHeader(0), b"\xff"), 0.1)
    with pytest.raises(ProtocolError):
        call.take(0.1)


def test_parts_nobody_asked_for_are_ignored() -> None:
    ex = exchange()
    call = opened(ex)
    assert ex.receive(partial(call, 0, "x"), 0.1) is None
    ex.lost(0.2)
    assert not call.ended, "it has delivered no text, so it may run again"


def test_the_queue_position_is_kept() -> None:
    ex = exchange()
    call = opened(ex, stream=True)
    ex.receive(protocol.frames(protocol.ACCEPTED, call.request_id, AcceptedHeader(4, 1.5)), 0.1)
    assert call.accepted is not None
    assert (call.accepted.position, call.accepted.eta_s) == (4, 1.5)


@given(st.text(max_size=60), st.data())
def test_any_cut_of_a_text_streams_to_the_same_text(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ex = exchange()
    call = opened(ex, stream=True)
    for seq, piece in enumerate(pieces):
        ex.receive(partial(call, seq, piece), 0.1)
    ex.receive(final(call, text), 0.1)
    *chunks, reply = taken(call)
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, StreamChunk)) == text
    assert isinstance(reply, Reply)
