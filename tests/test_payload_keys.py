"""Equal meaning, equal key; what can change the answer, another key; hostile payloads cost little."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walled import payload
from walled.errors import BadRequest, TooLarge
from walled.payload import (
    Answer,
    Options,
    Request,
    cache_key,
    model_fingerprint,
    pack_answer,
    pack_request,
    request_from,
    unpack_answer,
    unpack_request,
)

PRINT = model_fingerprint("embedded", "digest")


def key_of(fields: dict[str, Any]) -> bytes:
    return cache_key("default", PRINT, pack_request(request_from(fields)))


# --- strategies: requests as plain values, the way a caller writes them ------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
schemas = st.dictionaries(texts, json_values, min_size=1, max_size=3)
options = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.0, -0.0, 0.5, 1]),
        "top_p": st.floats(0, 1),
        "seed": st.integers(0, 2**32 - 1),
        "max_tokens": st.integers(1, 1000),
        "stop": st.lists(texts, max_size=3),
        "presence_penalty": st.floats(-2, 2),
    },
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": texts},
        optional={"images": st.lists(st.binary(min_size=1, max_size=4), max_size=2), "name": texts},
    ),
    min_size=1,
    max_size=3,
)
common = {"options": options, "format": schemas, "tools": st.lists(schemas, min_size=1, max_size=2)}
chats = st.fixed_dictionaries({"kind": st.just("chat"), "messages": messages}, optional=common)
generates = st.fixed_dictionaries(
    {"kind": st.just("generate"), "prompt": texts}, optional={**common, "system": texts}
)
embeds = st.fixed_dictionaries({"kind": st.just("embed"), "input": st.lists(texts, min_size=1, max_size=3)})
requests = chats | generates | embeds


def reordered(value: Any) -> Any:
    """The same value with the keys of every map in reverse order."""
    if isinstance(value, dict):
        return {name: reordered(inner) for name, inner in reversed(value.items())}
    if isinstance(value, list):
        return [reordered(inner) for inner in value]
    return value


# --- equal meaning ----------------------------------------------------------------------------------


@given(requests)
def test_unpacking_gives_back_what_was_packed(fields: dict[str, Any]) -> None:
    packed = pack_request(request_from(fields))
    assert pack_request(unpack_request(packed)) == packed
    assert unpack_request(packed) == unpack_request(memoryview(packed))


@given(requests)
def test_the_packed_form_is_plain_messagepack_with_sorted_keys(fields: dict[str, Any]) -> None:
    """Held against the codec of record, not against the library that wrote it."""
    packed = pack_request(request_from(fields))
    plain = msgpack.unpackb(packed)

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert list(value) == sorted(value)
            assert all(inner is not None for inner in value.values())
            for inner in value.values():
                check(inner)
        elif isinstance(value, list):
            for inner in value:
                check(inner)

    check(plain)
    assert msgpack.packb(plain) == packed


@given(requests)
def test_key_order_never_matters(fields: dict[str, Any]) -> None:
    assert key_of(fields) == key_of(reordered(fields))


@given(requests)
def test_json_fields_may_be_given_as_text_or_as_value(fields: dict[str, Any]) -> None:
    as_text = {
        name: json.dumps(reordered(value), indent=1) if name in ("format", "tools") else value
        for name, value in fields.items()
    }
    assert key_of(fields) == key_of(as_text)


@given(requests)
def test_absent_default_and_none_are_one(fields: dict[str, Any]) -> None:
    kind = fields["kind"]
    spelled = {
        "format": "",
        "images": (),
        "input": (),
        "messages": (),
        "options": {},
        "prompt": "",
        "system": "",
        "tools": "",
    }
    given_options = fields.get("options", {})
    full_options = {field: None for field in Options.__struct_fields__ if field != "stop"}
    variants = [
        {**spelled, **fields},
        {**dict.fromkeys(spelled), **fields},
        {**fields, "options": {**full_options, "stop": [], **given_options}},
    ]
    if kind == "chat":
        variants.append(
            {
                **fields,
                "messages": [
                    {"images": [], "name": "", "tool_call_id": "", "tool_calls": "", **message}
                    for message in fields["messages"]
                ],
            }
        )
    for variant in variants:
        assert key_of(variant) == key_of(fields)


@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"]
)
def test_all_zeros_are_one_and_zero_is_not_absent(name: str) -> None:
    def key(value: float | None) -> bytes:
        return key_of({"kind": "generate", "prompt": "p", "options": {name: value}})

    assert key(0) == key(0.0) == key(-0.0)
    assert key(1) == key(1.0)
    assert key(0) != key(None)


def test_typed_requests_and_plain_values_are_one() -> None:
    typed = Request(kind="generate", prompt="p", options=Options(temperature=-0.0))
    plain = request_from({"kind": "generate", "prompt": "p", "options": {"temperature": 0}})
    assert pack_request(typed) == pack_request(plain)


# --- another meaning --------------------------------------------------------------------------------


@given(requests, requests)
def test_different_requests_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = request_from(one) == request_from(other)
    assert (key_of(one) == key_of(other)) == same


@given(requests, st.data())
def test_every_change_of_an_option_is_another_key(fields: dict[str, Any], data: st.DataObject) -> None:
    if fields["kind"] == "embed":
        return
    change = data.draw(
        st.sampled_from(
            [
                ("temperature", 1.75), ("top_k", 7), ("min_p", 0.031), ("seed", 2**32 - 7), ("top_p", 0.123),
                ("max_tokens", 999_999), ("repeat_penalty", 1.17), ("frequency_penalty", 0.37),
                ("presence_penalty", 1.93), ("stop", ["a stop no strategy draws"]),
            ]
        )
    )  # fmt: skip
    name, value = change
    before = fields.get("options", {})
    if before.get(name) == value:
        return
    assert key_of({**fields, "options": {**before, name: value}}) != key_of(fields)


CHAT: dict[str, Any] = {
    "kind": "chat",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u", "images": [b"i"], "name": "n"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
    ],
    "format": {"type": "object"},
    "tools": [{"type": "function"}],
    "options": {"temperature": 0},
}


def _changed(index: int, **fields: Any) -> dict[str, Any]:
    turns = [dict(message) for message in CHAT["messages"]]
    turns[index].update(fields)
    return {**CHAT, "messages": turns}


@pytest.mark.parametrize(
    "other",
    [
        _changed(0, content="S"),
        _changed(0, role="user"),
        _changed(1, images=[b"j"]),
        _changed(1, images=[b"i", b"i"]),
        _changed(1, images=[]),
        _changed(1, name="other"),
        _changed(2, tool_calls=[{"id": "2"}]),
        _changed(3, tool_call_id="2"),
        {**CHAT, "messages": CHAT["messages"][::-1]},
        {**CHAT, "messages": CHAT["messages"][:-1]},
        {**CHAT, "format": "json"},
        {**CHAT, "format": {"type": "array"}},
        {**CHAT, "tools": []},
        {**CHAT, "tools": [{"type": "function"}, {"type": "function"}]},
        {**CHAT, "system": "s"},
        {**CHAT, "images": [b"i"]},
        {"kind": "generate", "prompt": "u"},
        {"kind": "embed", "input": ["u"]},
    ],
)
def test_every_field_enters_the_key(other: dict[str, Any]) -> None:
    assert key_of(other) != key_of(CHAT)


def test_every_field_of_the_payload_is_in_the_tests_above() -> None:
    """A new field must be thought about here: is it part of the key, and is its default left out?"""
    assert set(Request.__struct_fields__) == {
        "kind", "format", "images", "input", "messages", "options", "prompt", "system", "tools"
    }  # fmt: skip
    assert set(payload.Message.__struct_fields__) == {
        "role", "content", "images", "name", "tool_call_id", "tool_calls"
    }  # fmt: skip
    assert set(Options.__struct_fields__) == {
        "frequency_penalty", "max_tokens", "min_p", "presence_penalty", "repeat_penalty", "seed", "stop",
        "temperature", "top_k", "top_p",
    }  # fmt: skip


@given(texts, texts, st.binary(max_size=40), st.binary(max_size=40))
def test_namespace_model_and_payload_cannot_be_shifted_into_each_other(
    one: str, other: str, print_one: bytes, print_other: bytes
) -> None:
    first = cache_key(one, model_fingerprint("k", one), print_one)
    second = cache_key(other, model_fingerprint("k", other), print_other)
    assert (first == second) == ((one, print_one) == (other, print_other))
    assert cache_key(one + other, PRINT, b"") != cache_key(one, PRINT, other.encode())
    assert len(first) == 32


def test_backend_kind_and_digest_enter_the_fingerprint() -> None:
    found = {
        model_fingerprint(*pair) for pair in [("a", "b"), ("a", "c"), ("b", "b"), ("ab", ""), ("", "ab")]
    }
    assert len(found) == 5


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "generate", "prompt": "p", "options": {"temperature": float("nan")}},
        {"kind": "generate", "prompt": "p", "options": {"temperature": float("inf")}},
        {"kind": "generate", "prompt": "p", "format": {"x": float("nan")}},
        {"kind": "generate", "prompt": "\ud800"},
        {"kind": "generate", "prompt": "p", "unknown": 1},
        {"kind": "generate", "prompt": "p", "format": "{"},
    ],
)
def test_what_has_no_canonical_form_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        pack_request(request_from(fields))


def test_json_past_its_cap_is_too_large() -> None:
    with pytest.raises(TooLarge):
        request_from({"kind": "generate", "prompt": "p", "format": {"x": "y" * payload.MAX_JSON_BYTES}})


@given(st.binary(max_size=200))
def test_unpacking_any_bytes_gives_a_request_or_a_typed_refusal(data: bytes) -> None:
    try:
        unpack_request(data)
    except BadRequest:
        pass


@settings(max_examples=30)
@given(requests, st.data())
def test_a_cut_payload_is_refused(fields: dict[str, Any], data: st.DataObject) -> None:
    packed = pack_request(request_from(fields))
    with pytest.raises(BadRequest):
        unpack_request(packed[: data.draw(st.integers(0, len(packed) - 1))])


MEGABYTE = 1024 * 1024
EMPTY_MAPS = {
    "a megabyte of empty maps": b"\xdd" + MEGABYTE.to_bytes(4, "big") + b"\x80" * MEGABYTE,
    "as messages": b"\x82\xa4kind\xa4chat\xa8messages\xdd" + MEGABYTE.to_bytes(4, "big") + b"\x80" * MEGABYTE,
    "as an unknown field": b"\x81\xa1x\xdd" + MEGABYTE.to_bytes(4, "big") + b"\x80" * MEGABYTE,
    "as stops": b"\x83\xa4kind\xa8generate\xa6prompt\xa1p\xa7options\x81\xa4stop\xdd"
    + MEGABYTE.to_bytes(4, "big") + b"\x80" * MEGABYTE,
    "nested": b"\x91" * MEGABYTE,
    "nested maps": b"\x81\xa4kind" * (MEGABYTE // 6),
    "a length without its bytes": b"\x82\xa4kind\xa4chat\xa8messages\xdd\xff\xff\xff\xff",
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY_MAPS)
def test_a_megabyte_of_empty_maps_costs_almost_nothing(name: str) -> None:
    """Decoded into Python objects it costs 77 MB [ran]; here it is refused at the first element."""
    data = EMPTY_MAPS[name]
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest):
            unpack_request(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 1024


def test_resident_memory_stays_bounded_too() -> None:
    """tracemalloc sees only Python's allocator; the decoder could use malloc. So: a real process's peak."""
    script = (
        "import resource, sys\n"
        "from walled.errors import BadRequest\n"
        "from walled.payload import unpack_request\n"
        "data = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for _ in range(20):\n"
        "    try:\n"
        "        unpack_request(data)\n"
        "    except BadRequest:\n"
        "        continue\n"
        "    raise SystemExit('accepted')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=EMPTY_MAPS["as messages"],
        capture_output=True,
        check=True,
        timeout=30,
    )
    grown_kib = int(done.stdout)
    assert grown_kib < 1024, f"{grown_kib} KiB for a megabyte of empty maps"


# --- answers ----------------------------------------------------------------------------------------

answers = st.builds(
    Answer,
    embeddings=st.lists(st.binary(max_size=16), max_size=3).map(tuple),
    finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
    model=texts,
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    thinking=texts,
    tool_calls=st.sampled_from(["", '[{"id":"1"}]']),
    usage=st.builds(payload.Usage, st.integers(0, 2**31), st.integers(0, 2**31)),
)


@given(answers)
def test_an_answer_comes_back_as_it_was_packed(answer: Answer) -> None:
    packed = pack_answer(answer)
    assert unpack_answer(packed) == answer
    assert unpack_answer(memoryview(packed)) == answer
    assert msgpack.packb(msgpack.unpackb(packed)) == packed


@given(st.binary(max_size=100))
def test_foreign_bytes_are_no_answer(data: bytes) -> None:
    try:
        unpack_answer(data)
    except msgspec.DecodeError:
        pass
