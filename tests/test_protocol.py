"""walled/protocol.py: what is packed is understood again, and whatever else arrives is refused in bounds.

May live here: properties of frames and headers, a corpus of hostile messages. The bytes themselves are
tests/golden's.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled import protocol as p
from walled.errors import BY_CODE, BadRequest, ProtocolError, VersionMismatch

GOOD = p.frames(p.REQUEST, b"id", p.RequestHeader("m", 1000), b"payload")
BASE = {"model": "m", "deadline_ms": 1000}
MEBIBYTE = 1024 * 1024
PARSE_REASONS = {"frames", "magic", "version", "type", "request_id", "header_size", "payload_size"}

text = st.text(st.characters(exclude_categories=["Cs"]))
label = st.text(st.characters(exclude_categories=["Cs"]), max_size=128)
message = st.text(st.characters(exclude_categories=["Cs"]), max_size=1024)
name = st.text(st.characters(exclude_categories=["Cs"]), max_size=256)
labels = st.lists(label, max_size=6).map(tuple)
ms = st.floats(0, 1e9)

headers = st.one_of(
    st.builds(
        p.RequestHeader,
        model=name,
        deadline_ms=st.integers(1, p.MAX_DEADLINE_MS),
        kind=st.sampled_from(["chat", "generate", "embed"]),
        priority=st.sampled_from(p.PRIORITIES),
        cache=st.sampled_from(["default", "always", "bypass", "refresh", "only"]),
        deterministic=st.booleans(),
        stream=st.booleans(),
        accept=st.booleans(),
        background=st.booleans(),
        namespace=label,
        session=label,
    ),
    st.builds(p.JobHeader, model=name, deadline_ms=st.integers(1, 2**40), trace=text),
    st.builds(p.AcceptedHeader, position=st.integers(0, 10**6), eta_s=ms),
    st.builds(p.PartialHeader, seq=st.integers(0, 2**32), restart=st.booleans()),
    st.builds(
        p.FinalHeader,
        source=st.sampled_from(["model", "cache", "coalesced", "stale", "fallback_model", "template"]),
        backend=label,
        worker=st.integers(-1, 64),
        age_s=ms,
        phases=st.builds(p.Phases, queue_ms=ms, decode_ms=ms, total_ms=ms),
    ),
    st.builds(p.ErrorHeader, code=label, message=message,
              retryable=st.booleans(), retry_after_s=st.none() | ms),
    st.builds(
        p.ReadyHeader,
        worker=st.integers(0, 64),
        token=st.binary(max_size=64),
        pid=st.integers(1, 2**22),
        backend=label,
        kind=label,
        slots=st.integers(0, 65536),
        models=st.lists(
            st.builds(p.ModelInfo, name=name, digest=name, capabilities=labels),
            max_size=5,
        ).map(tuple),
    ),
    st.builds(p.CreditHeader, slots=st.integers(0, 65536)),
    st.builds(p.HeartbeatHeader, epoch=st.binary(max_size=16), in_flight=st.integers(0, 65536)),
)  # fmt: skip


# --- round trips ------------------------------------------------------------------------------------


@given(headers)
def test_headers_come_back(header: Any) -> None:
    packed = p.encode_header(header)
    assert p.decode_header(type(header), packed) == header
    # The codec of record reads the same and writes the same bytes.
    assert msgpack.packb(msgpack.unpackb(packed, strict_map_key=True)) == packed


@given(st.sampled_from(sorted(p.TYPES)), st.binary(max_size=32), headers, st.binary(max_size=2000))
def test_messages_come_back(kind: bytes, request_id: bytes, header: Any, payload: bytes) -> None:
    parts = p.frames(kind, request_id, header, payload)
    if len(parts[3]) > (p.MAX_READY_HEADER_BYTES if kind == p.READY else p.MAX_HEADER_BYTES):
        assert reason_of(parts) == "header_size"
        return
    assert p.parse(parts) == (kind, request_id, p.encode_header(header), payload)


def test_a_header_says_nothing_that_is_default() -> None:
    assert p.encode_header(p.RequestHeader("m", 1)) == msgpack.packb({"model": "m", "deadline_ms": 1})
    assert p.encode_header(p.HeartbeatHeader()) == b"\x80"
    assert p.frames(p.CANCEL, b"x")[3] == b"\x80"


def test_unknown_header_fields_are_ignored() -> None:
    newer = msgpack.packb({**BASE, "from_the_future": [1, {"a": None}], "stream": True})
    assert p.decode_header(p.RequestHeader, newer) == p.RequestHeader("m", 1000, stream=True)


@given(st.builds(p.ControlRequest, op=label, worker=st.integers(-1, 100), request=label))
def test_control_requests_come_back(request: p.ControlRequest) -> None:
    assert p.unpack_control(p.pack_control(request)) == request


maps = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(text, maps, max_size=5))
def test_maps_come_back(value: dict[str, Any]) -> None:
    packed = p.pack_map(value)
    assert p.unpack_map(packed) == value
    assert msgpack.unpackb(packed, strict_map_key=True) == value


# --- refusals of parse ------------------------------------------------------------------------------


def reason_of(parts: list[bytes], max_payload_bytes: int = p.MAX_PAYLOAD_BYTES) -> str:
    with pytest.raises(ProtocolError) as caught:
        p.parse(parts, max_payload_bytes)
    return caught.value.reason


def changed(index: int, frame: bytes) -> list[bytes]:
    return [*GOOD[:index], frame, *GOOD[index + 1 :]]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "frames"),
        ([b""], "frames"),
        (GOOD[:4], "frames"),
        ([*GOOD, b""], "frames"),
        ([b"x"] * 16, "frames"),
        (changed(0, b""), "magic"),
        (changed(0, b"WLD"), "magic"),
        (changed(0, b"WLD\x01\x00"), "magic"),
        (changed(0, b"GET "), "magic"),
        (changed(0, b"wld\x01"), "magic"),
        (changed(0, b"WLD\x02"), "version"),
        (changed(0, b"WLD\x00"), "version"),
        (changed(1, b""), "type"),
        (changed(1, b"\x00"), "type"),
        (changed(1, b"\x0d"), "type"),
        (changed(1, b"\xff"), "type"),
        (changed(1, b"\x01\x01"), "type"),
        (changed(2, b"x" * 33), "request_id"),
        (changed(3, b"\x80" * 4097), "header_size"),
        (changed(4, b"x" * 1001), "payload_size"),
    ],
)
def test_refused_with_the_documented_reason(parts: list[bytes], reason: str) -> None:
    assert reason_of(parts, max_payload_bytes=1000) == reason


def test_exactly_at_the_limits_is_taken() -> None:
    parts = [p.PREAMBLE, p.REQUEST, b"x" * 32, b"\x80" * 4096, b"x" * 1000]
    assert p.parse(parts, max_payload_bytes=1000) == tuple(parts[1:])


def test_only_ready_may_have_a_large_header() -> None:
    large = b"\x80" * p.MAX_READY_HEADER_BYTES
    assert p.parse([p.PREAMBLE, p.READY, b"", large, b""]).header == large
    assert reason_of([p.PREAMBLE, p.READY, b"", large + b"\x80", b""]) == "header_size"
    assert reason_of([p.PREAMBLE, p.CREDIT, b"", large, b""]) == "header_size"


def test_another_version_names_both() -> None:
    with pytest.raises(VersionMismatch, match="protocol 7, this side 1"):
        p.parse(changed(0, b"WLD\x07"))


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_no_frames_at_all_hurt_parse(parts: list[bytes]) -> None:
    reason = refusal(lambda: p.parse(parts))
    if reason is None:
        assert parts[0] == p.PREAMBLE
    else:
        assert reason in PARSE_REASONS


# --- hostile headers --------------------------------------------------------------------------------


def raw(value: bytes, field: bytes = b"model") -> bytes:
    """RequestHeader bytes with one field's value written by hand."""
    rest = {key: item for key, item in BASE.items() if key.encode() != field}
    packed = b"".join(msgpack.packb(key) + msgpack.packb(item) for key, item in rest.items())
    return bytes([0x81 + len(rest)]) + msgpack.packb(field.decode()) + value + packed


HOSTILE_HEADERS = {
    "nothing": b"",
    "a reserved byte": b"\xc1",
    "a list": msgpack.packb([1, 2]),
    "nil": b"\xc0",
    "text": msgpack.packb("model"),
    "an integer": b"\x01",
    "a second object behind it": msgpack.packb(BASE) + b"\x00",
    "a field missing": msgpack.packb({"model": "m"}),
    "no field": b"\x80",
    "truncated": msgpack.packb(BASE)[:-1],
    "truncated in a key": msgpack.packb(BASE)[:4],
    "a map that announces 4 billion pairs": b"\xdf\xff\xff\xff\xff",
    "a text that announces 4 GB": raw(b"\xdb\xff\xff\xff\xff"),
    "a list that announces 4 billion items": raw(b"\xdd\xff\xff\xff\xff", b"zz"),
    "an integer key": msgpack.packb({1: 2, **BASE}),
    "a map as key": b"\x83\x80\x01" + msgpack.packb(BASE)[1:],
    "a number for a text": raw(b"\x01"),
    "bytes for a text": raw(msgpack.packb(b"m")),
    "nil for a text": raw(b"\xc0"),
    "a list for a text": raw(b"\x91\xa1m"),
    "text that is not UTF-8": raw(b"\xa2\xff\xfe"),
    "a lone surrogate": raw(b"\xa3\xed\xa0\x80"),
    "a text too long": msgpack.packb({**BASE, "model": "m" * 257}),
    "a float for an int": msgpack.packb({**BASE, "deadline_ms": 1000.0}),
    "a bool for an int": msgpack.packb({**BASE, "deadline_ms": True}),
    "an int below its range": msgpack.packb({**BASE, "deadline_ms": 0}),
    "a negative int": msgpack.packb({**BASE, "deadline_ms": -1}),
    "an int above its range": msgpack.packb({**BASE, "deadline_ms": p.MAX_DEADLINE_MS + 1}),
    "the largest int there is": msgpack.packb({**BASE, "deadline_ms": 2**64 - 1}),
    "an int for a bool": msgpack.packb({**BASE, "stream": 1}),
    "an unknown choice": msgpack.packb({**BASE, "priority": "urgent"}),
    "an extension for a text": raw(msgpack.packb(msgpack.ExtType(5, b"m"))),
    "a timestamp for a text": raw(msgpack.packb(msgpack.Timestamp(2**40, 1))),
    "a timestamp for an int": raw(msgpack.packb(msgpack.Timestamp(1, 0)), b"deadline_ms"),
    "lists nested as deep as a header allows": raw(b"\x91" * 4000 + b"\xc0", b"zz"),
    "a million nested lists": raw(b"\x91" * 1_000_000 + b"\xc0", b"zz"),
    "a million nested maps": raw(b"\x81\xa1a" * 1_000_000 + b"\xc0", b"zz"),
    "a megabyte of empty maps": raw(b"\xdd\x00\x10\x00\x00" + b"\x80" * MEBIBYTE),
    "a megabyte of empty maps, as the header": b"\x80" * MEBIBYTE,
}


@pytest.mark.parametrize("header", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS.keys())
def test_hostile_headers_are_refused_in_bounds(header: bytes) -> None:
    with bounds(), pytest.raises(ProtocolError) as caught:
        p.decode_header(p.RequestHeader, header)
    assert caught.value.reason == "header"
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("cls", sorted(p._decoders, key=lambda cls: cls.__name__))
@given(data=st.binary(max_size=80) | st.sampled_from(list(HOSTILE_HEADERS.values())).map(lambda b: b[:4096]))
def test_no_bytes_at_all_hurt_a_header(cls: Any, data: bytes) -> None:
    assert refusal(lambda: p.decode_header(cls, data)) in (None, "header")


@given(headers, st.data())
def test_damaged_headers_hurt_nobody(header: Any, data: st.DataObject) -> None:
    packed = bytearray(p.encode_header(header))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    assert refusal(lambda: p.decode_header(type(header), bytes(packed))) in (None, "header")


# --- hostile control requests and maps --------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\x80",
        msgpack.packb(["status"]),
        msgpack.packb({"op": 1}),
        msgpack.packb({"op": "x" * 129}),
        msgpack.packb({"op": "status", "unknown": 1}),
        msgpack.packb({"op": "status", "worker": 2.5}),
        msgpack.packb({"op": "status", "request": b"\x00"}),
        b"\x81\xa2op\xa2\xff\xfe",
        b"\x81\xa2\xff\xfe\x01",
        b"\x81\xa2op" + b"\x91" * 1_000_000,
    ],
)
def test_hostile_control_requests_are_refused(data: bytes) -> None:
    with bounds(), pytest.raises(ProtocolError) as caught:
        p.unpack_control(data)
    assert caught.value.reason == "control"


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: b"\x81\xa2op" + tail))
def test_no_bytes_at_all_hurt_a_control_request(data: bytes) -> None:
    assert refusal(lambda: p.unpack_control(data)) in (None, "control")


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: b"\x81\xa1a" + tail))
def test_no_bytes_at_all_hurt_a_map(data: bytes) -> None:
    assert refusal(lambda: p.unpack_map(data)) in (None, "map")


def test_a_map_over_its_limit_is_not_unpacked() -> None:
    data = b"\x81\xa1a\xdd\x00\x20\x00\x00" + b"\x80" * 2 * MEBIBYTE
    with bounds(), pytest.raises(ProtocolError) as caught:
        p.unpack_map(data)
    assert caught.value.reason == "map_size"


# --- errors on the wire -----------------------------------------------------------------------------


@given(st.sampled_from(sorted(BY_CODE)), st.text(), st.none() | ms)
def test_an_error_header_always_packs_and_fits(code: str, message: str, retry_after_s: float | None) -> None:
    error = BY_CODE[code](message, retry_after_s=retry_after_s)
    header = p.error_header(error)
    packed = p.encode_header(header)
    assert len(packed) <= p.MAX_HEADER_BYTES
    assert p.decode_header(p.ErrorHeader, packed) == header
    assert (header.code, header.retryable, header.retry_after_s) == (code, error.retryable, retry_after_s)


@pytest.mark.parametrize("letter", ["x", "ñ", "日", "🚲", "\ud800"])
def test_a_long_error_message_is_cut_to_fit_in_any_script(letter: str) -> None:
    header = p.error_header(BadRequest(letter * 100_000))
    packed = p.encode_header(header)
    assert len(packed) <= p.MAX_HEADER_BYTES
    assert p.decode_header(p.ErrorHeader, packed) == header
    assert len(header.message) > 500


# --- tools ------------------------------------------------------------------------------------------


def refusal(call: Callable[[], Any]) -> str | None:
    """The reason a call gave; None when it took the bytes. Any other exception is a failure of the test."""
    try:
        call()
    except ProtocolError as exc:
        return exc.reason
    return None


class bounds:
    """Whatever happens inside costs at most 2 MB beside the input, and a second."""

    def __enter__(self) -> None:
        tracemalloc.start()
        self.started_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 2 * MEBIBYTE
        assert time.perf_counter() - self.started_s < 1.0
