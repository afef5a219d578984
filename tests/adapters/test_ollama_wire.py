"""The translation to and from Ollama's JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from walled.adapters import ollama_wire as wire
from walled.errors import BackendError, BadRequest, Truncated
from walled.payload import Message, Options, Request


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("demo", "demo:latest"),
        ("demo:7b", "demo:7b"),
        ("someone/demo", "someone/demo:latest"),
        ("127.0.0.1:5000/library/demo", "127.0.0.1:5000/library/demo:latest"),
        ("127.0.0.1:5000/library/demo:7b", "127.0.0.1:5000/library/demo:7b"),
    ],
)
def test_a_name_without_a_tag_means_latest(name: str, full: str) -> None:
    assert wire.full_name(name) == full


def test_capabilities() -> None:
    assert wire.capabilities(["completion", "vision", "insert"]) == ("chat", "generate", "schema", "images")
    assert wire.capabilities([]) == ()
    assert wire.capabilities(None) == ("chat", "generate", "schema", "embed")


def test_every_sampling_option_is_passed_on_and_none_is_invented() -> None:
    options = Options(
        frequency_penalty=0.1, max_tokens=3, min_p=0.2, presence_penalty=0.3, repeat_penalty=1.1, seed=0,
        stop=("a", "b"), temperature=0.0, top_k=0, top_p=1.0,
    )  # fmt: skip
    _, body = wire.body(Request(kind="generate", prompt="x", options=options), "m", {}, 60)
    assert body["options"] == {
        "frequency_penalty": 0.1, "num_predict": 3, "min_p": 0.2, "presence_penalty": 0.3,
        "repeat_penalty": 1.1, "seed": 0, "stop": ["a", "b"], "temperature": 0.0, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    _, body = wire.body(Request(kind="generate", prompt="x"), "m", {"num_ctx": 512}, -1)
    assert body["options"] == {"num_ctx": 512}
    assert body["keep_alive"] == -1


def test_the_system_text_and_images_of_a_chat() -> None:
    request = Request(
        kind="chat", messages=(Message("user", "a"), Message("assistant", "b")), system="s", images=(b"i",)
    )
    _, body = wire.body(request, "m", {}, 60)
    assert body["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a", "images": ["aQ=="]},
        {"role": "assistant", "content": "b"},
    ]


@pytest.mark.parametrize(
    "calls", ['[{"function":{}}]', '["f"]', "5", '[{"function":{"name":"f","arguments":"["}}]']
)
def test_earlier_tool_calls_that_are_none(calls: str) -> None:
    request = Request(kind="chat", messages=(Message("assistant", tool_calls=calls),))
    with pytest.raises(BadRequest, match=r"function\.name"):
        wire.body(request, "m", {}, 60)


def reply(*records: dict[str, Any]) -> wire.Reply:
    gathered = wire.Reply()
    for record in records:
        gathered.add(record)
    return gathered


def test_an_answer_needs_its_end_mark() -> None:
    part = {"model": "m", "message": {"role": "assistant", "content": "x"}, "done": False}
    with pytest.raises(Truncated):
        reply(part).answer("m")
    with pytest.raises(Truncated):
        reply().answer("m")
    with pytest.raises(Truncated):
        reply(part, {**part, "done": "yes"}).answer("m")
    whole = reply(
        part, {**part, "done": True, "done_reason": "stop", "eval_count": 2, "load_duration": 10**6}
    )
    assert (whole.answer("m").text, whole.timings().load_ms) == ("xx", 1.0)


@pytest.mark.parametrize("call", [5, {}, {"function": 5}, {"function": {"arguments": {}}}])
def test_a_tool_call_without_a_name(call: Any) -> None:
    with pytest.raises(BackendError, match="tool call"):
        reply({"message": {"content": "", "tool_calls": [call]}})


@pytest.mark.parametrize("vectors", [None, [], [[1.0]], [[1.0], []], [[1.0], ["x"]], 5, [5, 6]])
def test_embeddings_that_are_none(vectors: Any) -> None:
    with pytest.raises(BackendError):
        wire.embed_answer({"embeddings": vectors}, "m", 2)


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        (404, "model 'x' not found", "model_not_found"),
        (404, 'model "x" not found, try pulling it first', "model_not_found"),
        (404, "404 page not found", "backend_error"),
        (503, "server busy, please try again.  maximum pending requests exceeded", "backend_overloaded"),
        (429, "slow down", "backend_overloaded"),
        (
            -1,
            '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
            "backend_overloaded",
        ),
        (500, "content policy violation: violence", "content_refused"),
        (500, "error parsing tool call: raw='my content filter'", "backend_error"),
        (502, "", "backend_unavailable"),
        (504, "", "backend_timeout"),
        (401, "", "backend_unauthorized"),
        (400, '"x" does not support chat', "unsupported"),
        (501, "This server does not support embeddings. Start it with `--embeddings`", "unsupported"),
        (400, "the input length exceeds the context length", "context_too_long"),
        (400, '{"error":{"code":400,"message":"m","type":"exceed_context_size_error"}}', "context_too_long"),
        (400, "the prompt is longer than the context length currently available", "context_too_long"),
        (400, "json: cannot unmarshal", "bad_request"),
        (403, "", "backend_unauthorized"),
        (499, "request canceled", "backend_error"),
        (500, "model requires more system memory (5 GiB) than is available (2 GiB)", "backend_error"),
        (-1, "an error was encountered while running the model: unexpected EOF", "backend_error"),
    ],
)
def test_error_texts(status: int, text: str, code: str) -> None:
    error = wire.error_of(status, wire.said(json.dumps({"error": text}).encode()), "x", "http://h")
    assert error.code == code
    assert len(error.message) < 500


def test_an_error_passes_on_known_words_and_figures_only() -> None:
    nested = json.dumps({"error": {"code": 400, "message": "JSON schema conversion failed:\nsecret"}})
    message = wire.error_of(400, nested, "x", "h").message
    assert "json schema conversion failed" in message
    assert "secret" not in message
    for status in (-1, 400, 401, 403, 404, 429, 500, 501, 502, 503, 504):
        for text in ("secret", "error parsing tool call: raw='secret'", "content policy: secret"):
            assert "secret" not in wire.error_of(status, text, "x", "h").message
    memory = "model requires more system memory (5.5 GiB) than is available (2 GiB) secret"
    assert "requires more system memory (5.5 GiB, 2 GiB)" in wire.error_of(500, memory, "x", "h").message


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"error":"x"}', "x"),
        (b'{"error":{"message":"y"}}', '{"error": {"message": "y"}}'),
        (b'"error"', ""),
        (b"<html>", ""),
        (b"\xff", ""),
        (b"", ""),
    ],
)
def test_what_is_said_below_error(data: bytes, text: str) -> None:
    assert wire.said(data) == text
