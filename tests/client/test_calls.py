"""The short ways through calls.py give the same bytes as the long one, and refuse the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from walled_client import calls

from walled.errors import BadRequest
from walled.payload import pack_request, request_from

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
options = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.0, -0.0, 0.5, 1, None]),
        "presence_penalty": st.sampled_from([0, -0.0, -1.5, None]),
        "max_tokens": st.sampled_from([1, 7, None]),
        "seed": st.sampled_from([0, 5, None]),
        "stop": st.sampled_from(["", "x", (), [], ["x", "y"], None]),
    },
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts},
        optional={"name": texts},
    ),
    min_size=1,
    max_size=4,
)


@given(messages, options)
def test_every_way_gives_the_canonical_bytes(turns: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    stop = fields.get("stop")
    given_options = {name: value for name, value in fields.items() if value is not None and name != "stop"}
    if stop:
        given_options["stop"] = [stop] if isinstance(stop, str) else stop
    whole = request_from({"kind": "chat", "messages": turns, "options": given_options})
    for asked in (turns, tuple(turns), [dict(reversed(turn.items())) for turn in turns]):
        assert calls.chat(calls.Settings(), asked, fields).payload == pack_request(whole)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": "boss", "content": "x"},
        {"role": ["user"], "content": "x"},
        {"role": "user", "content": 5},
        {"role": "user", "text": "x"},
        {"content": "x", "name": "n"},
        ["user", "x"],
        None,
    ],
)
def test_a_message_that_is_none_is_refused(message: Any) -> None:
    with pytest.raises(BadRequest):
        calls.chat(calls.Settings(), [{"role": "user", "content": "x"}, message], {"temperature": 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "0", False, True, [], ""])
def test_an_option_that_makes_no_sense_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match="options"):
        calls.chat(calls.Settings(), "x", {"temperature": value})
