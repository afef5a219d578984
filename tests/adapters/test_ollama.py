"""Jobs of the Ollama adapter against a fake server that is the real one on the wire."""

from __future__ import annotations

import json
import logging
import struct
import time

import pytest

from tests.adapters.ollama_rig import ALL, PNG, TOOLS, Make, chat
from tests.fakes.ollama_records import BUSY, Model
from tests.fakes.ollama_server import FakeOllama, Turn
from walled.payload import Message, Options, Request

# --- answers -----------------------------------------------------------------------------------------


def test_start_lists_proves_and_describes(fake_ollama: FakeOllama, make_rig: Make) -> None:
    info = make_rig().info
    names = [model.name for model in info.models]
    assert names == ["demo", "demo:latest", "embed", "embed:latest"]
    assert info.models[0].capabilities == ("chat", "generate", "schema", "tools", "images")
    assert info.models[2].capabilities == ("embed",)
    assert info.models[0].digest == ALL.digest
    assert info.slots == 2
    assert len(fake_ollama.probes()) == 1, "one real token before it is ready"
    assert fake_ollama.probes()[0].body["options"]["num_predict"] == 1


def test_chat_streams_and_carries_counts_and_durations(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig()
    job = rig.submit(chat(options=Options(max_tokens=4, temperature=0.0, seed=7, stop=("x",))))
    done = rig.seen.done(job)
    assert rig.deltas(job) == ["Hello", ",", " you", "."]
    assert done.answer.text == "Hello, you."
    assert (done.answer.usage.prompt_tokens, done.answer.usage.completion_tokens) == (22, 4)
    assert (done.answer.finish_reason, done.answer.model) == ("stop", "demo:latest")
    assert (done.timings.prefill_ms, done.timings.decode_ms) == (2.075, 0.942)
    body = fake_ollama.jobs()[0].body
    assert body["options"] == {"num_predict": 4, "temperature": 0.0, "seed": 7, "stop": ["x"]}
    assert body["truncate"] is False, "or a long prompt is cut in half without a word"
    assert (body["stream"], body["keep_alive"]) == (True, 1800.0)


def test_generate_and_its_system_text(fake_ollama: FakeOllama, make_rig: Make) -> None:
    done = make_rig().ask(Request(kind="generate", prompt="hello", system="be kind", format="json"))
    assert done.answer.text == "Hello, you."
    body = fake_ollama.jobs("/api/generate")[0].body
    assert (body["prompt"], body["system"], body["format"]) == ("hello", "be kind", "json")


def test_embeddings(fake_ollama: FakeOllama, make_rig: Make) -> None:
    answer = make_rig().ask(Request(kind="embed", input=("a", "b")), "embed").answer
    assert [len(vector) for vector in answer.embeddings] == [32, 32]
    assert struct.unpack("<8f", answer.embeddings[0])[0] == pytest.approx(0.7921568)
    assert answer.usage.prompt_tokens == 5
    assert fake_ollama.jobs("/api/embed")[0].body["truncate"] is False


def test_schema_tools_and_images_reach_the_server_unchanged(fake_ollama: FakeOllama, make_rig: Make) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}
    request = Request(
        kind="chat",
        messages=(
            Message("user", "look", images=(PNG,)),
            Message(
                "assistant", tool_calls='[{"id":"c1","function":{"name":"f","arguments":"{\\"x\\":1}"}}]'
            ),
            Message("tool", "3", name="f", tool_call_id="c1"),
        ),
        format=json.dumps(schema),
        tools=TOOLS,
    )
    make_rig().ask(request)
    body = fake_ollama.jobs()[0].body
    assert body["format"] == schema
    assert body["tools"] == json.loads(TOOLS), "the library's own types would drop additionalProperties"
    assert body["messages"][0]["images"] == ["iVBORw0KGgogbm90IHJlYWxseQ=="]
    assert body["messages"][1]["tool_calls"] == [
        {"id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert body["messages"][2]["tool_name"] == "f"


def test_an_image_is_never_opened_as_a_file(fake_ollama: FakeOllama, make_rig: Make) -> None:
    make_rig().ask(Request(kind="chat", messages=(Message("user", "look", images=(b"/etc/hostname",)),)))
    assert fake_ollama.jobs()[0].body["messages"][0]["images"] == ["L2V0Yy9ob3N0bmFtZQ=="]


def test_tool_calls_and_thinking_come_back(fake_ollama: FakeOllama, make_rig: Make) -> None:
    call = {"id": "call_b4dp2cm9", "function": {"index": 0, "name": "f", "arguments": {"x": 567}}}
    fake_ollama.play(Turn(tokens=(), thinking=("hm", "."), tool_calls=[call]))
    answer = make_rig().ask(chat(tools=TOOLS)).answer
    assert (answer.finish_reason, answer.text, answer.thinking) == ("tool_calls", "", "hm.")
    expected = {
        "id": "call_b4dp2cm9",
        "type": "function",
        "function": {"name": "f", "arguments": '{"x":567}'},
    }
    assert json.loads(answer.tool_calls) == [expected]


def test_a_limit_is_told(fake_ollama: FakeOllama, make_rig: Make) -> None:
    fake_ollama.play(Turn(done_reason="length"))
    assert make_rig().ask().answer.finish_reason == "length"


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "model"),
    [
        (chat(tools=TOOLS), "plain"),
        (chat(images=(PNG,)), "plain"),
        (Request(kind="embed", input=("a",)), "plain"),
        (chat(), "embed"),
    ],
    ids=["tools", "images", "embed", "chat"],
)
def test_unsupported_is_refused_without_asking(
    fake_ollama: FakeOllama, make_rig: Make, request_: Request, model: str
) -> None:
    fake_ollama.models["plain:latest"] = Model()
    assert make_rig().fail(request_, model).code == "unsupported"
    assert fake_ollama.jobs() == []


def test_the_servers_own_unsupported(fake_ollama: FakeOllama, make_rig: Make) -> None:
    fake_ollama.models["old:latest"] = Model(None)
    fake_ollama.play(Turn(status=400, error='"old" does not support chat'))
    assert make_rig().fail(model="old").code == "unsupported"


def test_a_prompt_over_the_window_is_an_error_not_half_a_prompt(
    fake_ollama: FakeOllama, make_rig: Make
) -> None:
    rig = make_rig()
    error = rig.fail(chat("hello " * 5000))
    assert (error.code, error.retryable) == ("context_too_long", False)
    assert "5000 tokens" in error.message
    assert rig.fail(Request(kind="embed", input=("a " * 5000,)), "embed").code == "context_too_long"


def test_a_model_that_vanished(fake_ollama: FakeOllama, make_rig: Make) -> None:
    fake_ollama.play(Turn(status=404, error="model 'demo' not found"))
    rig = make_rig()
    error = rig.fail()
    assert error.code == "model_not_found"
    assert "ollama pull demo" in error.message
    assert rig.fail(model="nope").code == "model_not_found"


def test_busy_is_overloaded_and_may_be_tried_again(fake_ollama: FakeOllama, make_rig: Make) -> None:
    fake_ollama.play(Turn(status=503, error=BUSY))
    error = make_rig().fail()
    assert (error.code, error.retryable, error.retry_after_s) == ("backend_overloaded", True, 1.0)


def test_a_bad_schema_is_the_callers_fault_and_is_not_quoted(fake_ollama: FakeOllama, make_rig: Make) -> None:
    error = make_rig().fail(chat(format='{"type":"nonsense"}'))
    assert error.code == "bad_request"
    assert "nonsense" not in error.message


def test_a_failing_engine(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig()
    fake_ollama.play(Turn(status=500, error="llama runner process has terminated: exit status 2"))
    assert rig.fail().code == "backend_error"
    fake_ollama.play(Turn(error="an error was encountered while running the model: unexpected EOF"))
    job = rig.submit(chat())
    assert rig.seen.error(job).code == "backend_error"
    assert rig.deltas(job) == ["Hello", ",", " you", "."]


@pytest.mark.parametrize("end", ["silent", "cut", "cut_line", "reset"])
def test_a_stream_without_its_end_mark_is_never_a_success(
    fake_ollama: FakeOllama, make_rig: Make, end: str
) -> None:
    fake_ollama.play(Turn(end=end))
    rig = make_rig()
    job = rig.submit(chat())
    assert rig.seen.error(job).code == "truncated"
    assert rig.deltas(job) in (["Hello", ",", " you", "."], [])  # a reset may swallow what was sent
    assert rig.ask().answer.text == "Hello, you.", "the next request is served"


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_loading_a_model_is_not_an_answer(fake_ollama: FakeOllama, make_rig: Make, reason: str) -> None:
    fake_ollama.play(Turn(tokens=(), done_reason=reason))
    assert make_rig().fail().code == "truncated"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot json\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{"message":5,"done":false}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 37\r\n\r\n{"message":{"content":5},"done":true}\n',
        b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 18\r\n\r\n404 page not found",
        b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"response": "\xff\xfe"}',
    ],
    ids=["text", "list", "message", "content", "redirect", "no-endpoint", "not-utf-8"],
)
def test_what_is_not_ollama_is_a_backend_error(fake_ollama: FakeOllama, make_rig: Make, raw: bytes) -> None:
    fake_ollama.play(Turn(raw=raw))
    assert make_rig().fail().code == "backend_error"


def test_a_connection_closed_without_an_answer(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig()
    fake_ollama.play(Turn(raw=b""))
    error = rig.fail()
    assert (error.code, error.retryable) == ("backend_unavailable", True)
    rig.until(lambda info: info.slots == 2)
    assert rig.ask().answer.text == "Hello, you."


def test_no_error_or_log_line_quotes_the_prompt(
    fake_ollama: FakeOllama, make_rig: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rig = make_rig()
    canary = "canary-7f3a"
    turns = (
        Turn(end="cut"),
        Turn(status=500, error="x"),
        Turn(raw=b"HTTP/1.1 200 OK\r\n\r\n{"),
        Turn(end="silent"),
    )
    fake_ollama.play(*turns)
    for _ in turns:
        assert canary not in rig.fail(chat(canary)).message
        rig.until(lambda info: info.slots == 2)
    assert canary not in caplog.text


# --- time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold_at", [0, 2], ids=["before-first-token", "in-the-middle"])
def test_cancel_closes_the_upstream_connection_at_once(
    fake_ollama: FakeOllama, make_rig: Make, hold_at: int
) -> None:
    turn = Turn(hold_at=hold_at)
    fake_ollama.play(turn)
    rig = make_rig()
    job = rig.submit(chat())
    assert turn.started.wait(10)
    if hold_at:
        rig.seen.wait(lambda _: len(rig.deltas(job)) == hold_at)
    asked_s = time.monotonic()
    rig.backend.cancel(job)
    assert rig.seen.error(job).code == "cancelled"
    assert turn.gone.wait(10)
    assert turn.gone_s - asked_s < 1.0
    rig.backend.cancel(job)
    rig.backend.cancel(99)
    assert rig.ask().answer.text == "Hello, you."
    assert len(rig.seen.of(job)) == (3 if hold_at else 1), "one ending, and no delta after it"


def test_cancel_before_it_began(make_rig: Make) -> None:
    rig = make_rig()
    for _ in range(20):
        job = rig.submit(chat())
        rig.backend.cancel(job)
        assert rig.seen.error(job).code == "cancelled"


def test_time_is_kept_by_the_worker_alone(fake_ollama: FakeOllama, make_rig: Make) -> None:
    """A deadline may grow while the job runs (core/jobs.py), so the adapter goes on until told to stop."""
    rig = make_rig(first_token_timeout_s=0.05, inter_token_timeout_s=0.05)
    turns = [Turn(hold_at=0), Turn(hold_at=2)]
    fake_ollama.play(*turns)
    jobs = [rig.submit(chat(), deadline_s=0.01), rig.submit(chat(), deadline_s=-1.0)]
    assert all(turn.started.wait(10) for turn in turns)
    later = rig.submit(chat())
    rig.backend.cancel(later)
    assert rig.seen.error(later).code == "cancelled"
    for turn in turns:
        turn.release()
    assert [rig.seen.done(job).answer.text for job in jobs] == ["Hello, you."] * 2


def test_a_thought_is_a_sign_of_life(fake_ollama: FakeOllama, make_rig: Make) -> None:
    fake_ollama.play(Turn(tokens=("a", "b"), thinking=("hm", ".")))
    rig = make_rig()
    job = rig.submit(chat())
    assert rig.seen.done(job).answer.thinking == "hm."
    assert rig.deltas(job) == ["", "", "a", "b"]


def test_a_body_without_end_does_not_hold_the_answer_back(fake_ollama: FakeOllama, make_rig: Make) -> None:
    turn = Turn(end="open")
    fake_ollama.play(turn)
    assert make_rig().ask().answer.text == "Hello, you."
    assert turn.ended.wait(10), "the connection was given up"


def test_close_ends_every_job_once(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig()
    turns = [Turn(hold_at=1), Turn(hold_at=0)]
    fake_ollama.play(*turns)
    jobs = [rig.submit(chat()), rig.submit(chat())]
    assert all(turn.started.wait(10) for turn in turns)
    rig.backend.close()
    assert [rig.seen.error(job).code for job in jobs] == ["cancelled", "cancelled"]
    assert all(turn.gone.wait(10) for turn in turns)
    rig.backend.close()
    assert rig.fail().code == "cancelled"
