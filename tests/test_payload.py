"""walled/payload.py: what a request may be, said in errors that name the place. Keys: test_payload_keys.py.

May live here: validation of requests, canonical JSON, the foreign payload. May not: keys and round trips.
"""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled import payload as pl
from walled.errors import BadRequest, TooLarge

CHAT: dict[str, Any] = {"kind": "chat", "messages": [{"role": "user", "content": "a secret question"}]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "kind"),
        ({"kind": "poem"}, "$.kind"),
        ({"kind": "chat"}, "at least one message"),
        ({"kind": "chat", "messages": []}, "at least one message"),
        ({**CHAT, "prompt": "x"}, "prompt and input belong to generate and embed"),
        ({**CHAT, "input": ["x"]}, "prompt and input belong to generate and embed"),
        ({"kind": "generate"}, "generate needs a prompt"),
        ({"kind": "generate", "prompt": ""}, "generate needs a prompt"),
        ({"kind": "generate", "prompt": "x", "messages": CHAT["messages"]}, "generate takes a prompt"),
        ({"kind": "embed"}, "at least one text"),
        ({"kind": "embed", "input": []}, "at least one text"),
        ({"kind": "embed", "input": ["x"], "prompt": "x"}, "embed takes input"),
        ({"kind": "embed", "input": "x"}, "$.input"),
        ({**CHAT, "temprature": 0}, "temprature"),
        ({**CHAT, "options": {"temprature": 0}}, "temprature"),
        ({**CHAT, "messages": [{"role": "user", "txt": "x"}]}, "txt"),
        ({**CHAT, "messages": [{"role": "robot", "content": "x"}]}, "$.messages[0].role"),
        ({**CHAT, "messages": [{"content": "x"}]}, "role"),
        ({**CHAT, "messages": ["x"]}, "$.messages[0]"),
        ({**CHAT, "messages": "x"}, "$.messages"),
        ({**CHAT, "messages": [{"role": "user", "content": 7}]}, "content"),
        ({**CHAT, "messages": CHAT["messages"] * 4097}, "4096"),
        ({**CHAT, "options": {"temperature": -0.1}}, "$.options.temperature"),
        ({**CHAT, "options": {"temperature": "hot"}}, "$.options.temperature"),
        ({**CHAT, "options": {"temperature": float("nan")}}, "options.temperature"),
        ({**CHAT, "options": {"top_p": float("inf")}}, "top_p"),
        ({**CHAT, "options": {"presence_penalty": float("-inf")}}, "presence_penalty"),
        ({**CHAT, "options": {"max_tokens": 0}}, "$.options.max_tokens"),
        ({**CHAT, "options": {"max_tokens": -5}}, "$.options.max_tokens"),
        ({**CHAT, "options": {"max_tokens": 10**30}}, "max_tokens"),
        ({**CHAT, "options": {"max_tokens": 1.5}}, "$.options.max_tokens"),
        ({**CHAT, "options": {"max_tokens": True}}, "$.options.max_tokens"),
        ({**CHAT, "options": {"seed": 2**32}}, "$.options.seed"),
        ({**CHAT, "options": {"stop": "END"}}, "$.options.stop"),
        ({**CHAT, "options": {"stop": ["x"] * 17}}, "16"),
        ({**CHAT, "format": "yaml"}, "format is not valid JSON"),
        ({**CHAT, "format": {"type": {1, 2}}}, "format is not a JSON value"),
        ({**CHAT, "tools": [float("nan")]}, "tools is not a JSON value"),
        ({**CHAT, "tools": "[" * 100_000}, "tools"),
        ({**CHAT, "messages": [{"role": "assistant", "tool_calls": "{"}]}, "tool_calls is not valid JSON"),
    ],
)
def test_bad_requests_name_the_place(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        pl.request_from(fields)
    assert said in caught.value.message
    assert "secret" not in caught.value.message


def test_none_means_absent() -> None:
    assert pl.request_from({**CHAT, "options": None, "tools": None, "format": None}) == pl.request_from(CHAT)


def test_a_lone_surrogate_is_refused_when_packed() -> None:
    with pytest.raises(BadRequest, match="surrogate"):
        pl.pack_request(pl.request_from({"kind": "generate", "prompt": "\ud800"}))


@pytest.mark.parametrize("field", ["format", "tools"])
def test_a_lone_surrogate_in_json_is_refused(field: str) -> None:
    with pytest.raises(BadRequest, match="surrogate"):
        pl.request_from({**CHAT, field: [{"description": "\ud800"}]})


# --- what a foreign client packed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": "{"}, "format is not valid JSON"),
        ({"format": "yaml"}, "format is not valid JSON"),
        ({"format": "[" * 65 + "]" * 65}, "format nests deeper than 64"),
        ({"tools": '{"a":' * 70 + "1" + "}" * 70}, "tools nests deeper than 64"),
        ({"tools": "[" * 100_000}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": "nonsense"}]}, "tool_calls is not valid JSON"),
    ],
)
def test_json_fields_of_foreign_payloads_are_checked(fields: dict[str, Any], said: str) -> None:
    """An adapter parses them: it must never be the first to find out."""
    with pytest.raises(BadRequest) as caught:
        pl.unpack_request(msgpack.packb({**CHAT, **fields}))
    assert said in caught.value.message


def test_json_of_foreign_payloads_has_a_size_limit() -> None:
    text = json.dumps(["x" * pl.MAX_JSON_BYTES])
    with pytest.raises(TooLarge, match="tools"):
        pl.unpack_request(msgpack.packb({**CHAT, "tools": text}))


def test_foreign_payloads_need_not_be_canonical() -> None:
    data = msgpack.packb(
        {**CHAT, "prompt": "", "options": {"top_k": 3, "temperature": 1}, "format": '{ "a":1 }'}
    )
    request = pl.unpack_request(data)
    assert (request.options.top_k, request.options.temperature, request.format) == (3, 1.0, '{ "a":1 }')


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_foreign_floats_are_finite(value: float) -> None:
    with pytest.raises(BadRequest):
        pl.unpack_request(msgpack.packb({**CHAT, "options": {"temperature": value}}))


# --- canonical JSON -----------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@given(json_values)
def test_canonical_json_means_the_same_and_is_its_own_form(value: Any) -> None:
    canonical = pl.canonical_json(value, "x")
    assert json.loads(canonical) == value
    assert pl.canonical_json(json.loads(canonical), "x") == canonical


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=5))
def test_canonical_json_knows_no_order_of_keys(value: dict[str, Any]) -> None:
    assert pl.canonical_json(dict(reversed(value.items())), "x") == pl.canonical_json(value, "x")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [1, 2.5, None, True]}, '{"a":[1,2.5,null,true],"b":1}'),
        ({"ñ": "日本 🚲"}, '{"ñ":"日本 🚲"}'),
        ("a\n\"\\", '"a\\n\\"\\\\"'),
        ((1, 2), "[1,2]"),
        ({}, "{}"),
    ],
)  # fmt: skip
def test_canonical_json_byte_for_byte(value: Any, text: str) -> None:
    assert pl.canonical_json(value, "x") == text


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", float("nan"), float("inf"), {"a": [object()]}])
def test_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match="tools is not a JSON value"):
        pl.canonical_json(value, "tools")


def test_json_depth_is_limited_exactly() -> None:
    deep: Any = 1
    for _ in range(pl.MAX_JSON_DEPTH):
        deep = [deep]
    assert pl.canonical_json(deep, "x")
    with pytest.raises(BadRequest, match="deeper than 64"):
        pl.canonical_json([deep], "x")


def test_a_value_that_contains_itself_is_refused_at_once() -> None:
    loop: list[Any] = []
    loop += [loop, loop, {"again": loop}]
    with pytest.raises(BadRequest, match="deeper"):
        pl.canonical_json(loop, "x")


def test_json_size_counts_bytes() -> None:
    fits = "ñ" * (pl.MAX_JSON_BYTES // 2 - 1)
    assert len(pl.canonical_json(fits, "x").encode()) == pl.MAX_JSON_BYTES
    with pytest.raises(TooLarge, match="x is 262145 bytes"):
        pl.canonical_json(fits + "x", "x")


# --- deterministic ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (CHAT, False),
        ({**CHAT, "options": {"temperature": 0}}, True),
        ({**CHAT, "options": {"temperature": 0.01}}, False),
        ({**CHAT, "options": {"seed": 0}}, True),
        ({**CHAT, "options": {"seed": 7, "temperature": 1}}, True),
        ({"kind": "embed", "input": ["x"]}, True),
    ],
)
def test_deterministic(fields: dict[str, Any], expected: bool) -> None:
    assert pl.deterministic(pl.request_from(fields)) is expected
