"""The Ollama adapter against a fake server that is the real one on the wire."""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.adapters.contract import Recorder
from tests.fakes.ollama_records import BUSY, Model
from tests.fakes.ollama_server import FakeOllama, Turn
from walled import errors
from walled.adapters.backend import BackendInfo, Changed, Delta, Done, Job
from walled.adapters.ollama import OllamaBackend
from walled.config import OllamaConfig
from walled.errors import BackendUnavailable, BootError, WalledError
from walled.payload import Message, Options, Request

PNG = b"\x89PNG\r\n\x1a\n not really"
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {"name": "f", "parameters": {"type": "object", "additionalProperties": False}},
        }
    ]
)
ALL = Model(("completion", "tools", "vision"), "all")


def chat(text: str = "hello", **fields: Any) -> Request:
    return Request(kind="chat", messages=(Message("user", text),), **fields)


class Rig:
    """A backend, what it emitted, and ways to run jobs on it."""

    def __init__(self, config: OllamaConfig, slots: int) -> None:
        self.seen = Recorder()
        self.backend = OllamaBackend(config, slots)
        self._last_id = 0
        self.info = BackendInfo((), 0)
        """As `start` told it."""

    def start(self) -> BackendInfo:
        self.info = self.backend.start(self.seen.emit)
        return self.info

    def submit(
        self, request: Request | None = None, model: str = "demo", deadline_s: float = 20.0, session: str = ""
    ) -> int:
        self._last_id += 1
        job = Job(self._last_id, request or chat(), model, time.monotonic() + deadline_s, session)
        self.backend.submit(job)
        return job.job_id

    def ask(self, request: Request | None = None, model: str = "demo") -> Done:
        job = self.submit(request, model)
        done = self.seen.done(job)
        assert self.seen.text(job) == done.answer.text
        return done

    def fail(
        self, request: Request | None = None, model: str = "demo", deadline_s: float = 20.0
    ) -> WalledError:
        return self.seen.error(self.submit(request, model, deadline_s))

    def deltas(self, job_id: int) -> list[str]:
        return [event.text for event in self.seen.of(job_id) if isinstance(event, Delta)]

    def served(self) -> BackendInfo:
        """As last announced."""
        changes = [event.info for event in self.seen.events if isinstance(event, Changed)]
        return changes[-1] if changes else self.info

    def until(self, fits: Callable[[BackendInfo], bool]) -> BackendInfo:
        """Wait until what is announced fits."""
        if not fits(self.served()):
            self.seen.wait(lambda _: fits(self.served()))
        return self.served()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as cleanup:
        yield cleanup


@pytest.fixture
def fake(stack: ExitStack) -> FakeOllama:
    return stack.enter_context(FakeOllama({"demo:latest": ALL, "embed:latest": Model(("embedding",), "e")}))


Make = Callable[..., Rig]


@pytest.fixture
def make(fake: FakeOllama, stack: ExitStack) -> Make:
    def build(slots: int = 2, started: bool = True, **config: Any) -> Rig:
        settings: dict[str, Any] = {"hosts": (fake.url,), "health_interval_s": 0.05, **config}
        rig = Rig(OllamaConfig(**settings), slots)
        stack.callback(rig.backend.close)
        if started:
            rig.start()
        return rig

    return build


# --- answers -----------------------------------------------------------------------------------------


def test_start_lists_proves_and_describes(fake: FakeOllama, make: Make) -> None:
    info = make().info
    names = [model.name for model in info.models]
    assert names == ["demo", "demo:latest", "embed", "embed:latest"]
    assert info.models[0].capabilities == ("chat", "generate", "schema", "tools", "images")
    assert info.models[2].capabilities == ("embed",)
    assert info.models[0].digest == ALL.digest
    assert info.slots == 2
    assert len(fake.probes()) == 1, "one real token before it is ready"
    assert fake.probes()[0].body["options"]["num_predict"] == 1


def test_chat_streams_and_carries_counts_and_durations(fake: FakeOllama, make: Make) -> None:
    rig = make()
    job = rig.submit(chat(options=Options(max_tokens=4, temperature=0.0, seed=7, stop=("x",))))
    done = rig.seen.done(job)
    assert rig.deltas(job) == ["Hello", ",", " you", "."]
    assert done.answer.text == "Hello, you."
    assert (done.answer.usage.prompt_tokens, done.answer.usage.completion_tokens) == (22, 4)
    assert (done.answer.finish_reason, done.answer.model) == ("stop", "demo:latest")
    assert (done.timings.prefill_ms, done.timings.decode_ms) == (2.075, 0.942)
    body = fake.jobs()[0].body
    assert body["options"] == {"num_predict": 4, "temperature": 0.0, "seed": 7, "stop": ["x"]}
    assert body["truncate"] is False, "or a long prompt is cut in half without a word"
    assert (body["stream"], body["keep_alive"]) == (True, 1800.0)


def test_generate_and_its_system_text(fake: FakeOllama, make: Make) -> None:
    done = make().ask(Request(kind="generate", prompt="hello", system="be kind", format="json"))
    assert done.answer.text == "Hello, you."
    body = fake.jobs("/api/generate")[0].body
    assert (body["prompt"], body["system"], body["format"]) == ("hello", "be kind", "json")


def test_embeddings(fake: FakeOllama, make: Make) -> None:
    answer = make().ask(Request(kind="embed", input=("a", "b")), "embed").answer
    assert [len(vector) for vector in answer.embeddings] == [32, 32]
    assert struct.unpack("<8f", answer.embeddings[0])[0] == pytest.approx(0.7921568)
    assert answer.usage.prompt_tokens == 5
    assert fake.jobs("/api/embed")[0].body["truncate"] is False


def test_schema_tools_and_images_reach_the_server_unchanged(fake: FakeOllama, make: Make) -> None:
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
    make().ask(request)
    body = fake.jobs()[0].body
    assert body["format"] == schema
    assert body["tools"] == json.loads(TOOLS), "the library's own types would drop additionalProperties"
    assert body["messages"][0]["images"] == ["iVBORw0KGgogbm90IHJlYWxseQ=="]
    assert body["messages"][1]["tool_calls"] == [
        {"id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert body["messages"][2]["tool_name"] == "f"


def test_an_image_is_never_opened_as_a_file(fake: FakeOllama, make: Make) -> None:
    make().ask(Request(kind="chat", messages=(Message("user", "look", images=(b"/etc/hostname",)),)))
    assert fake.jobs()[0].body["messages"][0]["images"] == ["L2V0Yy9ob3N0bmFtZQ=="]


def test_tool_calls_and_thinking_come_back(fake: FakeOllama, make: Make) -> None:
    call = {"id": "call_b4dp2cm9", "function": {"index": 0, "name": "f", "arguments": {"x": 567}}}
    fake.play(Turn(tokens=(), thinking=("hm", "."), tool_calls=[call]))
    answer = make().ask(chat(tools=TOOLS)).answer
    assert (answer.finish_reason, answer.text, answer.thinking) == ("tool_calls", "", "hm.")
    expected = {
        "id": "call_b4dp2cm9",
        "type": "function",
        "function": {"name": "f", "arguments": '{"x":567}'},
    }
    assert json.loads(answer.tool_calls) == [expected]


def test_a_limit_is_told(fake: FakeOllama, make: Make) -> None:
    fake.play(Turn(done_reason="length"))
    assert make().ask().answer.finish_reason == "length"


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
    fake: FakeOllama, make: Make, request_: Request, model: str
) -> None:
    fake.models["plain:latest"] = Model()
    assert make().fail(request_, model).code == "unsupported"
    assert fake.jobs() == []


def test_the_servers_own_unsupported(fake: FakeOllama, make: Make) -> None:
    fake.models["old:latest"] = Model(None)
    fake.play(Turn(status=400, error='"old" does not support chat'))
    assert make().fail(model="old").code == "unsupported"


def test_a_prompt_over_the_window_is_an_error_not_half_a_prompt(fake: FakeOllama, make: Make) -> None:
    rig = make()
    error = rig.fail(chat("hello " * 5000))
    assert (error.code, error.retryable) == ("context_too_long", False)
    assert "5000 tokens" in error.message
    assert rig.fail(Request(kind="embed", input=("a " * 5000,)), "embed").code == "context_too_long"


def test_a_model_that_vanished(fake: FakeOllama, make: Make) -> None:
    fake.play(Turn(status=404, error="model 'demo' not found"))
    rig = make()
    error = rig.fail()
    assert error.code == "model_not_found"
    assert "ollama pull demo" in error.message
    assert rig.fail(model="nope").code == "model_not_found"


def test_busy_is_overloaded_and_may_be_tried_again(fake: FakeOllama, make: Make) -> None:
    fake.play(Turn(status=503, error=BUSY))
    error = make().fail()
    assert (error.code, error.retryable, error.retry_after_s) == ("overloaded", True, 1.0)


def test_a_bad_schema_is_the_callers_fault_and_is_not_quoted(fake: FakeOllama, make: Make) -> None:
    error = make().fail(chat(format='{"type":"nonsense"}'))
    assert error.code == "bad_request"
    assert "nonsense" not in error.message


def test_a_failing_engine(fake: FakeOllama, make: Make) -> None:
    rig = make()
    fake.play(Turn(status=500, error="llama runner process has terminated: exit status 2"))
    assert rig.fail().code == "backend_error"
    fake.play(Turn(error="an error was encountered while running the model: unexpected EOF"))
    job = rig.submit(chat())
    assert rig.seen.error(job).code == "backend_error"
    assert rig.deltas(job) == ["Hello", ",", " you", "."]


@pytest.mark.parametrize("end", ["silent", "cut", "cut_line", "reset"])
def test_a_stream_without_its_end_mark_is_never_a_success(fake: FakeOllama, make: Make, end: str) -> None:
    fake.play(Turn(end=end))
    rig = make()
    job = rig.submit(chat())
    assert rig.seen.error(job).code == "truncated"
    assert rig.deltas(job) in (["Hello", ",", " you", "."], [])  # a reset may swallow what was sent
    assert rig.ask().answer.text == "Hello, you.", "the next request is served"


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_loading_a_model_is_not_an_answer(fake: FakeOllama, make: Make, reason: str) -> None:
    fake.play(Turn(tokens=(), done_reason=reason))
    assert make().fail().code == "truncated"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot json\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{"message":5,"done":false}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 37\r\n\r\n{"message":{"content":5},"done":true}\n',
        b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 18\r\n\r\n404 page not found",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["text", "list", "message", "content", "redirect", "no-endpoint", "forbidden"],
)
def test_what_is_not_ollama_is_a_backend_error(fake: FakeOllama, make: Make, raw: bytes) -> None:
    fake.play(Turn(raw=raw))
    assert make().fail().code == "backend_error"


def test_a_connection_closed_without_an_answer(fake: FakeOllama, make: Make) -> None:
    rig = make()
    fake.play(Turn(raw=b""))
    error = rig.fail()
    assert (error.code, error.retryable) == ("backend_unavailable", True)
    rig.until(lambda info: info.slots == 2)
    assert rig.ask().answer.text == "Hello, you."


def test_no_error_or_log_line_quotes_the_prompt(
    fake: FakeOllama, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rig = make()
    canary = "canary-7f3a"
    turns = (
        Turn(end="cut"),
        Turn(status=500, error="x"),
        Turn(raw=b"HTTP/1.1 200 OK\r\n\r\n{"),
        Turn(end="silent"),
    )
    fake.play(*turns)
    for _ in turns:
        assert canary not in rig.fail(chat(canary)).message
        rig.until(lambda info: info.slots == 2)
    assert canary not in caplog.text


# --- time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold_at", [0, 2], ids=["before-first-token", "in-the-middle"])
def test_cancel_closes_the_upstream_connection_at_once(fake: FakeOllama, make: Make, hold_at: int) -> None:
    turn = Turn(hold_at=hold_at)
    fake.play(turn)
    rig = make()
    job = rig.submit(chat())
    assert turn.started.wait(10)
    if hold_at:
        rig.seen.wait(lambda event: isinstance(event, Delta) and event.job_id == job)
    asked_s = time.monotonic()
    rig.backend.cancel(job)
    assert rig.seen.error(job).code == "cancelled"
    assert turn.gone.wait(10)
    assert turn.gone_s - asked_s < 1.0
    rig.backend.cancel(job)
    rig.backend.cancel(99)
    assert rig.ask().answer.text == "Hello, you."
    assert len(rig.seen.of(job)) == (3 if hold_at else 1), "one ending, and no delta after it"


def test_cancel_before_it_began(make: Make) -> None:
    rig = make()
    for _ in range(20):
        job = rig.submit(chat())
        rig.backend.cancel(job)
        assert rig.seen.error(job).code == "cancelled"


def test_first_token_inter_token_and_total_deadlines_are_separate(fake: FakeOllama, make: Make) -> None:
    rig = make(first_token_timeout_s=0.2, inter_token_timeout_s=0.1)
    turns = [Turn(hold_at=0), Turn(hold_at=2)]
    fake.play(*turns)
    assert rig.fail().code == "backend_unavailable"
    assert rig.fail().code == "truncated"
    rig = make(first_token_timeout_s=20.0)
    turns += [Turn(hold_at=0), Turn(hold_at=2)]
    fake.play(*turns[2:])
    assert rig.fail(deadline_s=0.1).code == "deadline_exceeded"
    assert rig.fail(deadline_s=0.1).code == "deadline_exceeded"
    assert rig.fail(deadline_s=-1.0).code == "deadline_exceeded"
    assert all(turn.gone.wait(10) for turn in turns), "every deadline closes the connection"


def test_a_body_without_end_does_not_hold_the_answer_back(fake: FakeOllama, make: Make) -> None:
    turn = Turn(end="open")
    fake.play(turn)
    assert make().ask().answer.text == "Hello, you."
    assert turn.ended.wait(10), "the connection was given up"


def test_close_ends_every_job_once(fake: FakeOllama, make: Make) -> None:
    rig = make()
    turns = [Turn(hold_at=1), Turn(hold_at=0)]
    fake.play(*turns)
    jobs = [rig.submit(chat()), rig.submit(chat())]
    assert all(turn.started.wait(10) for turn in turns)
    rig.backend.close()
    assert [rig.seen.error(job).code for job in jobs] == ["cancelled", "cancelled"]
    assert all(turn.gone.wait(10) for turn in turns)
    rig.backend.close()
    assert rig.fail().code == "cancelled"


# --- the pool and the model's one option set ---------------------------------------------------------


def test_connections_are_reused_and_bounded(fake: FakeOllama, make: Make) -> None:
    rig = make(slots=2)
    for _ in range(10):
        rig.ask()
    assert len({asked.connection for asked in fake.jobs()}) <= 2


def test_never_more_in_flight_than_slots(fake: FakeOllama, make: Make) -> None:
    rig = make(slots=2)
    turns = [Turn(hold_at=0) for _ in range(5)]
    fake.play(*turns)
    jobs = [rig.submit(chat()) for _ in range(5)]
    assert turns[0].started.wait(10)
    assert turns[1].started.wait(10)
    for turn in turns:
        turn.release()
    for job in jobs:
        rig.seen.done(job)
    assert fake.peak == 2


def test_requests_never_change_what_reloads_a_model(fake: FakeOllama, make: Make) -> None:
    rig = make(context_tokens=2048, load_options={"num_thread": 2}, models={"ours": "demo", "vec": "embed"})
    assert [model.name for model in rig.info.models] == ["ours", "vec"]
    rig.ask(chat(), "ours")
    rig.ask(chat(options=Options(temperature=1.0, top_k=3, max_tokens=9, seed=1)), "ours")
    rig.ask(Request(kind="generate", prompt="hello"), "ours")
    rig.ask(Request(kind="embed", input=("a",)), "vec")
    assert fake.reloads == 0
    for asked in fake.jobs() + fake.probes():
        assert asked.body["options"]["num_ctx"] == 2048
        assert asked.body["options"]["num_thread"] == 2


def test_settings_are_part_of_the_digest(make: Make) -> None:
    infos = [make(), make(context_tokens=512), make(context_tokens=1024), make(context_tokens=9999)]
    digests = {rig.info.models[0].digest for rig in infos}
    assert len(digests) == 4
    windows = [rig.info.models[0].context_tokens for rig in infos]
    assert windows == [0, 512, 1024, 4096]


def test_a_reload_that_somebody_else_caused_is_told(
    fake: FakeOllama, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make()
    rig.ask()
    fake.play(Turn(load_ns=260_000_000))
    assert rig.ask().timings.load_ms == 260.0
    assert "loaded demo:latest again" in caplog.text


def test_keep_alive_for_ever(fake: FakeOllama, make: Make) -> None:
    make(keep_alive_s=-5.0).ask()
    assert fake.jobs()[0].body["keep_alive"] == -1


# --- health, models, several hosts -------------------------------------------------------------------


def test_an_idle_host_is_proved_again_with_what_is_left_of_keep_alive(fake: FakeOllama, make: Make) -> None:
    rig = make(probe_interval_s=0.1, keep_alive_s=100.0)
    rig.ask()
    fake.wait_for(lambda: len(fake.probes()) >= 3)
    later = fake.probes()[1:]
    assert all(98.0 < asked.body["keep_alive"] < 100.0 for asked in later)


def test_an_unloaded_model_is_not_loaded_by_a_proof(fake: FakeOllama, make: Make) -> None:
    make(probe_interval_s=0.05)
    fake.loaded.clear()
    before = len(fake.probes())
    fake.wait_for(lambda: len([asked for asked in fake.asked if asked.path == "/api/ps"]) >= 5)
    assert len(fake.probes()) <= before + 1  # one may have been under way


def test_a_request_takes_the_slot_of_a_proof(fake: FakeOllama, make: Make) -> None:
    rig = make(slots=1, probe_interval_s=0.1)
    rig.ask()
    proof = Turn(hold_at=0)
    fake.probe_turns.append(proof)
    assert proof.started.wait(10)
    assert rig.ask().answer.text == "Hello, you."
    assert proof.gone.wait(10)
    assert rig.served() is rig.info, "nothing to announce"


def test_a_dead_server_and_its_return(fake: FakeOllama, make: Make) -> None:
    rig = make()
    fake.stop()
    error = rig.fail()
    assert (error.code, error.retryable) == ("backend_unavailable", True)
    down = rig.until(lambda info: info.slots == 0)
    assert [model.name for model in down.models][:1] == ["demo"], "unavailable, not unknown"
    proofs = len(fake.probes())
    fake.start()
    rig.until(lambda info: info.slots == 2)
    assert len(fake.probes()) > proofs, "proved before it gets requests"
    assert rig.ask().answer.text == "Hello, you."


def test_a_host_that_lists_but_does_not_generate_is_down(fake: FakeOllama, make: Make) -> None:
    rig = make()
    fake.probe_turns.extend(Turn(status=500, error="no memory") for _ in range(2))
    fake.play(Turn(raw=b""))
    rig.fail()
    rig.until(lambda info: info.slots == 0)
    rig.until(lambda info: info.slots == 2)
    assert not fake.probe_turns


def test_models_that_come_and_go_are_announced(fake: FakeOllama, make: Make) -> None:
    rig = make()
    fake.models["new:latest"] = Model(weights="new")
    rig.until(lambda info: "new" in [model.name for model in info.models])
    fake.models["demo:latest"] = Model(weights="better")
    changed = Model(weights="better").digest
    rig.until(lambda info: info.models[0].digest == changed)
    del fake.models["new:latest"]
    rig.until(lambda info: "new" not in [model.name for model in info.models])


def test_remote_models_are_served_only_when_named(fake: FakeOllama, make: Make) -> None:
    fake.models["far:latest"] = Model(weights="far", remote_host="https://ollama.com:443")
    info = make().info
    assert "far" not in [model.name for model in info.models]
    info = make(models={"far": "far"}).info
    assert [model.name for model in info.models] == ["far"]


def test_two_hosts_share_the_load(fake: FakeOllama, make: Make, stack: ExitStack) -> None:
    second = stack.enter_context(FakeOllama({"demo:latest": ALL}))
    rig = make(slots=4, hosts=(fake.url, second.url))
    fake.wait_for(lambda: bool(fake.probes()))
    rig.until(lambda info: info.slots == 4)
    turns = [Turn(hold_at=0) for _ in range(4)]
    fake.play(*turns[:2])
    second.play(*turns[2:])
    jobs = [rig.submit(chat()) for _ in range(4)]
    assert all(turn.started.wait(10) for turn in turns)
    for turn in turns:
        turn.release()
    for job in jobs:
        rig.seen.done(job)
    assert (len(fake.jobs()), len(second.jobs())) == (2, 2)


def both_up(make: Make, fake: FakeOllama, second: FakeOllama, **config: Any) -> Rig:
    rig = make(slots=2, hosts=(fake.url, second.url), **config)
    rig.until(lambda info: info.slots == 2)
    return rig


def test_a_session_stays_on_its_host(fake: FakeOllama, make: Make, stack: ExitStack) -> None:
    second = stack.enter_context(FakeOllama({"demo:latest": ALL}))
    rig = both_up(make, fake, second)
    for _ in range(6):
        rig.seen.done(rig.submit(chat(), session="s1"))
    assert sorted((len(fake.jobs()), len(second.jobs()))) == [0, 6]


def test_before_the_first_token_another_host_takes_over(
    fake: FakeOllama, make: Make, stack: ExitStack
) -> None:
    second = stack.enter_context(FakeOllama({"demo:latest": ALL}))
    rig = both_up(make, fake, second)
    fake.play(Turn(status=500, error="llama runner process has terminated"))
    assert rig.ask().answer.text == "Hello, you."
    fake.play(Turn(end="cut"))
    second.play(Turn(end="cut"))
    job = rig.submit(chat())
    assert rig.seen.error(job).code == "truncated"
    assert len(fake.jobs()) + len(second.jobs()) == 3, "not after it"
    fake.turns.clear()
    second.turns.clear()
    fake.stop()
    for _ in range(3):
        assert rig.ask().answer.text == "Hello, you."
    assert rig.until(lambda info: info.slots == 1).slots == 1


def test_other_weights_under_the_same_name_are_not_mixed(
    fake: FakeOllama, make: Make, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    second = stack.enter_context(FakeOllama({"demo:latest": Model(weights="other")}))
    rig = both_up(make, fake, second)
    for _ in range(4):
        rig.ask()
    assert second.jobs() == [] or fake.jobs() == []
    assert "another demo:latest" in caplog.text


def test_pull_when_the_configuration_allows(
    fake: FakeOllama, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fake.pullable = True
    rig = make(models={"small": "tiny:1b"}, pull=True)
    assert rig.ask(model="small").answer.model == "tiny:1b"
    assert [asked.body["model"] for asked in fake.asked if asked.path == "/api/pull"] == ["tiny:1b"]
    assert "pulling tiny:1b" in caplog.text


def test_a_pull_runs_beside_the_models_that_are_there(fake: FakeOllama, make: Make) -> None:
    fake.pullable = True
    rig = make(models={"ours": "demo", "small": "tiny:1b"}, pull=True)
    assert rig.ask(model="ours").answer.text == "Hello, you."
    rig.until(lambda info: "small" in [model.name for model in info.models])
    assert rig.ask(model="small").answer.text == "Hello, you."


# --- starts that fail --------------------------------------------------------------------------------


def test_a_missing_model_halts_the_start_and_says_what_to_do(make: Make) -> None:
    with pytest.raises(BootError, match=r"none of the configured models \(nope\).*ollama pull"):
        make(started=False, models={"x": "nope"}).start()


def test_a_failed_pull_may_succeed_later(make: Make) -> None:
    with pytest.raises(BackendUnavailable, match="file does not exist"):
        make(started=False, models={"x": "nope"}, pull=True).start()


def test_a_server_without_models(fake: FakeOllama, make: Make) -> None:
    fake.models.clear()
    with pytest.raises(BootError, match="has no models"):
        make(started=False).start()


def test_nobody_there(make: Make) -> None:
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        make(started=False, hosts=("http://127.0.0.1:9",)).start()


def test_one_host_of_two_is_enough(make: Make, fake: FakeOllama) -> None:
    info = make(hosts=("http://127.0.0.1:9", fake.url)).info
    assert info.slots == 1


@pytest.mark.parametrize("host", ["http://[bad", "http://127.0.0.1:99999999"])
def test_an_address_that_is_none(make: Make, host: str) -> None:
    with pytest.raises(BootError, match="not the address of a server"):
        make(started=False, hosts=(host,)).start()


def test_sampling_among_load_options(make: Make) -> None:
    with pytest.raises(BootError, match=r"temperature cannot be set there.*default_options"):
        make(started=False, load_options={"temperature": 1.0}).start()


def test_every_typed_error_is_one_of_the_tables() -> None:
    """The adapter's own subclass travels under its parent's code."""
    from walled.adapters.ollama import _Silent

    assert errors.BY_CODE[_Silent.code] is BackendUnavailable
