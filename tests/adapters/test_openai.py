"""The openai adapter against a fake server on raw sockets, and against a real engine's HTTP server."""

from __future__ import annotations

import email.utils
import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.contract import AdapterContract, Started, chat
from tests.fakes.openai_server import FakeOpenAI
from walled import payload as pl
from walled.adapters import upstream
from walled.adapters.backend import Delta
from walled.adapters.openai import OpenAIBackend
from walled.adapters.openai_format import Assembly, chat_body
from walled.config import OpenAIConfig
from walled.errors import (
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    BadRequest,
    BootError,
    Cancelled,
    ContentRefused,
    ContextTooLong,
    ModelNotFound,
    Truncated,
    Unsupported,
    WalledError,
)

EVERYTHING = ("chat", "generate", "embed", "tools", "images", "schema")
TOOLS = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]


def running(server: FakeOpenAI, slots: int = 4, **fields: Any) -> Started:
    fields = {"models": {"mine": "real-name"}, "capabilities": EVERYTHING, **fields}
    return Started(OpenAIBackend(OpenAIConfig(base_url=server.url, **fields), slots))


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    made = FakeOpenAI()
    yield made
    made.close()


@pytest.fixture
def started(server: FakeOpenAI) -> Iterator[Started]:
    run = running(server)
    yield run
    run.backend.close()


class TestContract(AdapterContract):
    quick = chat("say 8", options={"temperature": 0})
    slow = chat("endless")
    unsupported = pl.request_from({"kind": "embed", "input": ["hello"]})
    unsupported_word = "embed"

    @pytest.fixture
    def started(self, server: FakeOpenAI) -> Iterator[Started]:
        run = running(server, capabilities=("chat", "generate"))
        yield run
        run.backend.close()


def test_what_is_sent(server: FakeOpenAI, started: Started) -> None:
    image = b"\x89PNG" + b"0" * 20
    calls = [{"function": {"name": "price", "arguments": {"item": "bike"}}}]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "look", "images": [image]},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "5", "tool_call_id": "call_0", "name": "price"},
        {"role": "user", "content": "say 2"},
    ]
    options = {"temperature": 0, "top_k": 3, "repeat_penalty": 1.1, "stop": ["x"], "seed": 4, "max_tokens": 9}
    schema = {"type": "object"}
    fields = {"kind": "chat", "messages": messages, "options": options, "format": schema, "tools": TOOLS}
    started.seen.done(started.submit(pl.request_from(fields)))
    path, body = server.requests[-1]
    assert path == "/v1/chat/completions"
    assert body["model"] == "real-name"
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"][1]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBORz")
    sent = body["messages"][2]["tool_calls"][0]
    assert (sent["id"], sent["type"], sent["function"]["arguments"]) == (
        "call_0",
        "function",
        '{"item":"bike"}',
    )
    assert body["messages"][3] == {"role": "tool", "content": "5", "tool_call_id": "call_0", "name": "price"}
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert body["tools"] == TOOLS
    assert {name: body[name] for name in options} == options
    assert body["repetition_penalty"] == 1.1


def test_json_without_a_schema() -> None:
    assert chat_body(chat("x", format="json"))["response_format"] == {"type": "json_object"}


def test_an_answer_with_its_counts(started: Started) -> None:
    done = started.seen.done(started.submit(chat("say 3")))
    assert done.answer.text == "wörd0 wörd1 wörd2 "
    assert done.answer.model == "mine"
    assert done.answer.usage == pl.Usage(5, 9)
    assert done.timings.prefill_ms > 0


def test_characters_cut_by_packets_arrive_whole(started: Started) -> None:
    job_id = started.submit(chat("crumbs 3"))
    assert started.seen.done(job_id).answer.text == "wörd0 wörd1 wörd2 "
    assert [e.text for e in started.seen.of(job_id) if isinstance(e, Delta)] == ["wörd0 ", "wörd1 ", "wörd2 "]


def test_a_tool_call_in_pieces(started: Started) -> None:
    answer = started.seen.done(started.submit(chat("tools", tools=TOOLS))).answer
    assert answer.finish_reason == "tool_calls"
    [call] = json.loads(answer.tool_calls)
    assert call["function"] == {"name": "price", "arguments": '{"item":"bike"}'}
    assert call["id"] == "call_1"


def test_thinking_is_kept_apart(started: Started) -> None:
    answer = started.seen.done(started.submit(chat("think"))).answer
    assert answer.thinking == "let me see"
    assert "let me see" not in answer.text


def test_generate_is_one_turn_through_the_chat_template(server: FakeOpenAI, started: Started) -> None:
    request = pl.request_from({"kind": "generate", "prompt": "say 2", "system": "be brief"})
    assert started.seen.done(started.submit(request)).answer.text == "wörd0 wörd1 "
    path, body = server.requests[-1]
    assert path == "/v1/chat/completions"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


@pytest.mark.parametrize("how", ["no endpoint", "no template"])
def test_a_model_without_a_chat_template_completes(how: str) -> None:
    server = FakeOpenAI(chat=how != "no endpoint")
    run = running(server)
    prompt = "template please" if how == "no template" else "say 4"
    request = pl.request_from({"kind": "generate", "prompt": prompt, "system": ""})
    for _ in range(2):
        assert run.seen.done(run.submit(request)).answer.text.startswith("wörd0")
    paths = [path for path, body in server.requests if body.get("stream")]
    assert paths == ["/v1/chat/completions", "/v1/completions", "/v1/completions"], "it is tried once"
    assert isinstance(run.seen.error(run.submit(chat("hello"))), Unsupported)
    with_schema = pl.request_from({"kind": "generate", "prompt": "x", "format": "json"})
    assert isinstance(run.seen.error(run.submit(with_schema)), Unsupported)
    run.backend.close()
    server.close()


def test_embeddings(started: Started) -> None:
    request = pl.request_from({"kind": "embed", "input": ["a", "four"]})
    answer = started.seen.done(started.submit(request)).answer
    assert [struct.unpack("<2f", vector) for vector in answer.embeddings] == [(1.0, 1.0), (4.0, 1.0)]
    assert answer.usage.prompt_tokens == 7


@pytest.mark.parametrize("word", ["cut", "cutquiet"])
def test_a_stream_that_breaks_off_is_never_an_answer(started: Started, word: str) -> None:
    job_id = started.submit(chat(word))
    assert isinstance(started.seen.error(job_id), Truncated)
    assert started.seen.text(job_id).startswith("wörd0 wörd1 ")


@pytest.mark.parametrize("word", ["nodone", "donely", "nousage"])
def test_one_end_mark_is_enough(started: Started, word: str) -> None:
    assert started.seen.done(started.submit(chat(word))).answer.text == "wörd0 wörd1 wörd2 wörd3 "


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("status 401", BackendError, "api_key_env"),
        ("status 403", BackendError, "api_key_env"),
        ("status 404", ModelNotFound, ""),
        ("status 400", BadRequest, "400"),
        ("status 422", BadRequest, "422"),
        ("status 413", WalledError, "413"),
        ("status 500", BackendError, "500"),
        ("status 302", BackendError, "302"),
        ("status 501", Unsupported, ""),
        ("context secretword", ContextTooLong, "context window"),
        ("error secretword", BackendError, "500"),
        ("garbage", BackendError, "not JSON"),
        ("filter", ContentRefused, "content_filter"),
        ("hangup", BackendUnavailable, "closed the connection"),
        ("once upon", BackendUnavailable, "closed the connection"),
        ("status 502", BackendUnavailable, "proxy"),
        ("status 504", BackendTimeout, "proxy"),
        ("status 503 1 Loading model", BackendOverloaded, "loading"),
    ],
)
def test_refusals_are_typed(started: Started, text: str, error: type[WalledError], words: str) -> None:
    if text == "status 404":
        text = "status 404 model"
    found = started.seen.error(started.submit(chat(text)))
    assert isinstance(found, error), found
    assert words in found.message
    assert "secretword" not in found.message


def test_overload_says_when_to_come_back(started: Started) -> None:
    error = started.seen.error(started.submit(chat("status 429 2.5")))
    assert isinstance(error, BackendOverloaded)
    assert error.retry_after_s == 2.5
    at = email.utils.formatdate(time.time() + 100, usegmt=True)
    error = started.seen.error(started.submit(chat(f"status 503 {at}")))
    assert isinstance(error, BackendOverloaded)
    assert error.retry_after_s == pytest.approx(99, abs=3)
    for value in ("", "soon", "nan"):
        assert not upstream.retry_after_s(value)


def test_time_is_kept_by_the_worker_alone(server: FakeOpenAI) -> None:
    run = running(server, first_token_timeout_s=0.05, inter_token_timeout_s=0.05)
    silent, stalled = run.submit(chat("silent")), run.submit(chat("stall"))
    run.seen.wait(lambda e: isinstance(e, Delta) and e.job_id == stalled)
    assert run.seen.done(run.submit(chat("say 2"))).answer.text
    for job_id in (silent, stalled):
        run.backend.cancel(job_id)
        assert isinstance(run.seen.error(job_id), Cancelled)
        assert server.dropped.acquire(timeout=5)
    run.backend.close()


def test_a_thought_is_a_sign_of_life(started: Started) -> None:
    job_id = started.submit(chat("think"))
    started.seen.done(job_id)
    assert next(e.text for e in started.seen.of(job_id) if isinstance(e, Delta)) == ""


def test_cancel_closes_the_connection(server: FakeOpenAI, started: Started) -> None:
    for text in ("endless", "silent"):
        job_id = started.submit(chat(text))
        if text == "endless":
            started.seen.wait(lambda e, job_id=job_id: isinstance(e, Delta) and e.job_id == job_id)
        started.backend.cancel(job_id)
        assert isinstance(started.seen.error(job_id), Cancelled)
        assert text == "silent" or server.dropped.acquire(timeout=1.0)


def test_connections_are_kept_and_bounded(server: FakeOpenAI) -> None:
    run = running(server, slots=8, connections=3)
    assert run.info.slots == 3, "a job that waits for a connection would be queued"
    for _ in range(5):
        jobs = [run.submit(chat("say 5")) for _ in range(3)]
        for job_id in jobs:
            run.seen.done(job_id)
    assert server.most_open <= 3
    assert server.connections <= 4, "of sixteen calls"
    run.backend.close()


def test_a_kept_connection_the_server_closed_is_replaced(server: FakeOpenAI, started: Started) -> None:
    started.seen.done(started.submit(chat("say 1")))
    server.drop_idle()
    assert started.seen.done(started.submit(chat("say 1"))).answer.text


def test_every_model_it_lists(server: FakeOpenAI) -> None:
    server.models = ("one", "two")
    run = running(server, models={})
    assert [model.name for model in run.info.models] == ["one", "two"]
    assert run.info.models[0].context_tokens == 4096
    assert run.info.models[0].digest != run.info.models[1].digest
    assert run.seen.done(run.submit(chat("say 1"), "two")).answer.model == "two"
    server.models = ("one",)
    assert isinstance(run.seen.error(run.submit(chat("say 1"), "two")), ModelNotFound)
    run.backend.close()


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeOpenAI(key="sesame")
    with pytest.raises(BootError, match="api_key_env"):
        running(server)
    with pytest.raises(BootError, match="MY_KEY"):
        running(server, api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "wrong")
    with pytest.raises(BootError, match="MY_KEY"):
        running(server, api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "sesame")
    run = running(server, api_key_env="MY_KEY")
    assert run.seen.done(run.submit(chat("say 1"))).answer.text
    run.backend.close()
    server.close()


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://user:hush@127.0.0.1:{port}/v1"
    backend = OpenAIBackend(OpenAIConfig(base_url=url), 1)
    with pytest.raises(BackendUnavailable, match="cannot be reached") as caught:
        backend.start(lambda event: None)
    assert "hush" not in caught.value.message


def test_a_server_that_goes_away(server: FakeOpenAI, started: Started) -> None:
    server.close()
    assert isinstance(started.seen.error(started.submit(chat("say 1"))), BackendUnavailable)


def test_a_model_it_does_not_have(server: FakeOpenAI) -> None:
    with pytest.raises(BackendUnavailable, match=r"nothing.*real-name"):
        running(server, models={"mine": "nothing"})


@pytest.mark.parametrize("url", ["not a url", "http://", "ftp://x/v1"])
def test_a_url_that_is_none(url: str) -> None:
    backend = OpenAIBackend(OpenAIConfig(base_url=url), 1)
    with pytest.raises((BootError, BackendUnavailable)):
        backend.start(lambda event: None)


def test_an_answer_without_an_end_mark_is_no_answer() -> None:
    assembly = Assembly()
    assembly.take({"choices": [{"delta": {"content": "so far"}}]})
    with pytest.raises(Truncated):
        assembly.answer("m")


# --- a real engine ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """llama.cpp's own OpenAI-compatible server on a loopback port, with the built-in model."""
    xllamacpp = pytest.importorskip("xllamacpp")
    from tests.adapters.test_llamacpp import built_in

    params = xllamacpp.CommonParams()
    params.model.path = str(built_in())
    params.n_ctx, params.n_parallel = 4096, 4
    params.cpuparams.n_threads = 1
    params.cache_ram_mib, params.fit_params, params.ui, params.verbosity = 0, False, False, -1
    params.port = 0
    params.api_keys = ["sesame"]
    server = xllamacpp.Server(params)
    yield server.listening_address.rstrip("/") + "/v1"
    del server


@pytest.fixture
def real(engine: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.setenv("ENGINE_KEY", "sesame")
    config = OpenAIConfig(
        base_url=engine, api_key_env="ENGINE_KEY", capabilities=("chat", "generate", "schema")
    )
    run = Started(OpenAIBackend(config, 4))
    yield run
    run.backend.close()


class TestContractOnARealEngine(AdapterContract):
    slow = chat(
        "tell me everything",
        format={"type": "array", "items": {"type": "integer"}, "minItems": 1900},
        options={"temperature": 0},
    )
    unsupported = pl.request_from({"kind": "embed", "input": ["hello"]})
    unsupported_word = "embed"

    @pytest.fixture
    def started(self, real: Started) -> Started:
        return real


def test_real_engine_and_embedded_engine_agree(real: Started, tmp_path: Path) -> None:
    from walled.adapters.llamacpp import LlamaCppBackend
    from walled.config import EmbeddedConfig

    request = chat("Is it still available?", options={"temperature": 0, "max_tokens": 30})
    embedded = Started(LlamaCppBackend(EmbeddedConfig(), 2, run_dir=tmp_path))
    here = embedded.seen.done(embedded.submit(request)).answer
    embedded.backend.close()
    there = real.seen.done(real.submit(request)).answer
    assert there.text == here.text != ""
    assert there.usage == here.usage
    assert there.finish_reason == here.finish_reason


def test_real_engine_schema_and_context(real: Started) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    request = chat("how many?", format=schema, options={"temperature": 0, "max_tokens": 40})
    assert isinstance(json.loads(real.seen.done(real.submit(request)).answer.text)["n"], int)
    error = real.seen.error(real.submit(chat("secretword " * 3000)))
    assert isinstance(error, ContextTooLong)
    assert "secretword" not in error.message


def test_real_engine_with_a_wrong_key(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "wrong")
    config = OpenAIConfig(base_url=engine, api_key_env="ENGINE_KEY", models={"m": "x"})
    with pytest.raises(BootError, match="ENGINE_KEY"):
        OpenAIBackend(config, 1).start(lambda event: None)
