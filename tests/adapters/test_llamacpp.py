"""The embedded backend on the real engine and the built-in model."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.contract import AdapterContract, Started, chat
from walled import payload as pl
from walled.adapters.backend import Delta, Done
from walled.adapters.llamacpp import LlamaCppBackend
from walled.config import EmbeddedConfig
from walled.errors import BadRequest, BootError, Cancelled, ContextTooLong

SLOTS = 4
SCHEMA = {
    "type": "object",
    "properties": {"price": {"type": "integer"}, "note": {"type": "string", "maxLength": 12}},
    "required": ["price", "note"],
    "additionalProperties": False,
}


def built_in() -> Path:
    return Path(str(resources.files("walled.models").joinpath("walled-demo.gguf")))


def endless(text: str = "tell me everything", **options: Any) -> pl.Request:
    """A schema that keeps the model writing until its context is full: about 0.5 s on one slot."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1900}
    return chat(text, format=schema, options={"temperature": 0, **options})


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    config = EmbeddedConfig()
    running = Started(LlamaCppBackend(config, SLOTS, run_dir=tmp_path))
    yield running
    running.backend.close()


class TestContract(AdapterContract):
    slow = endless()
    unsupported = pl.request_from({"kind": "embed", "input": ["hello"]})
    unsupported_word = "embed"


def test_ready_within_two_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    running = Started(LlamaCppBackend(EmbeddedConfig(), SLOTS, run_dir=tmp_path))
    took_s = time.monotonic() - began
    running.backend.close()
    assert took_s < 2.0
    assert running.info.models[0].name == "walled-demo"


def test_nobody_can_connect_to_its_listener(started: Started, tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []
    opened = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    inodes = {link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    listening = {f"socket:[{line.split()[9]}]" for line in opened if line.split()[3] == "0A"}
    assert not listening & inodes


def test_generate_is_one_turn_through_the_template(started: Started) -> None:
    options = {"temperature": 0, "max_tokens": 24}
    system, text = "You sell a lamp for 30 euros.", "What does it cost?"
    generate = pl.request_from({"kind": "generate", "prompt": text, "system": system, "options": options})
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    spoken = pl.request_from({"kind": "chat", "messages": messages, "options": options})
    answers = [started.seen.done(started.submit(request)).answer.text for request in (generate, spoken)]
    assert answers[0] == answers[1] != ""


def test_tokens_and_times_come_from_the_engine(started: Started) -> None:
    done = started.seen.done(started.submit(chat("hello", options={"max_tokens": 5, "temperature": 0})))
    assert done.answer.usage.completion_tokens == 5
    assert done.answer.usage.prompt_tokens > 5
    assert done.answer.finish_reason == "length"
    assert done.timings.prefill_ms > 0
    assert done.timings.decode_ms > 0


def test_a_json_schema_is_obeyed(started: Started) -> None:
    request = chat("What is the price?", format=SCHEMA, options={"temperature": 0, "max_tokens": 60})
    answer = started.seen.done(started.submit(request)).answer
    value = json.loads(answer.text)
    assert isinstance(value["price"], int)
    assert set(value) == {"price", "note"}


def test_an_impossible_schema_is_the_callers_fault(started: Started) -> None:
    error = started.seen.error(started.submit(chat("x", format={"type": "bogus"})))
    assert type(error) is BadRequest
    assert "schema" in error.message


def test_a_prompt_over_the_window(started: Started) -> None:
    error = started.seen.error(started.submit(chat("secretword " * 9000)))
    assert isinstance(error, ContextTooLong)
    assert "1024" in error.message
    assert "secretword" not in error.message


def test_a_text_that_can_never_fit_costs_no_time(started: Started) -> None:
    """Megabytes took the engine a second each, in a slot, and no cancel reached it."""
    text = "secretword " * 700_000
    prompts = [chat(text), pl.request_from({"kind": "generate", "prompt": text})]
    began_s = time.monotonic()
    for request in prompts:
        error = started.seen.error(started.submit(request))
        assert isinstance(error, ContextTooLong)
        assert "1024" in error.message
        assert "secretword" not in error.message
    assert time.monotonic() - began_s < 0.5


def test_what_templates_may_leave_out_is_not_held_against_a_caller(started: Started) -> None:
    earlier = [{"role": "assistant", "content": "x " * 9000}, {"role": "user", "content": "x"}]
    error = started.seen.error(started.submit(pl.request_from({"kind": "chat", "messages": earlier})))
    assert "the prompt has" in error.message, "the engine itself counted"


def test_cancel_during_prefill(started: Started) -> None:
    """Four long prompts keep the engine reading for a while; a cancel does not wait for that."""
    jobs = [started.submit(chat(f"{n} more and more words " * 110)) for n in range(SLOTS)]
    began = time.monotonic()
    timer = threading.Timer(0.03, lambda: [started.backend.cancel(job_id) for job_id in jobs])
    timer.start()
    for job_id in jobs:
        assert isinstance(started.seen.error(job_id), Cancelled)
        assert not started.seen.text(job_id)
    assert time.monotonic() - began < 1.0
    timer.join()


def test_greedy_and_seeded_answers_do_not_depend_on_slot_or_neighbours(started: Started) -> None:
    system = {"role": "system", "content": "You sell a red bike for 120 euros, size M, in Madrid."}

    def request(text: str, **options: Any) -> pl.Request:
        messages = [system, {"role": "user", "content": text}]
        fields = {"kind": "chat", "messages": messages, "options": {"max_tokens": 40, **options}}
        return pl.request_from(fields)

    wanted = [request("How much is it?", temperature=0), request("Is it new?", temperature=1.0, seed=7)]
    alone = [started.seen.done(started.submit(r)).answer.text for r in wanted]
    for turn in range(6):
        noise = [started.submit(request(f"Where? {'very ' * (turn * 7 + n)}")) for n in range(2)]
        jobs = [started.submit(r) for r in wanted]
        assert [started.seen.done(job_id).answer.text for job_id in jobs] == alone
        for job_id in noise:
            started.seen.done(job_id)


def test_the_prefix_of_a_conversation_is_not_read_again(started: Started) -> None:
    history = [{"role": "user", "content": "a long story about a bike " * 80}]
    options = {"max_tokens": 4, "temperature": 0}

    def ask() -> Done:
        request = pl.request_from({"kind": "chat", "messages": history, "options": options})
        return started.seen.done(started.submit(request))

    first = ask()
    history += [{"role": "assistant", "content": first.answer.text}, {"role": "user", "content": "and then?"}]
    second = ask()
    assert second.answer.usage.prompt_tokens > first.answer.usage.prompt_tokens
    assert second.timings.prefill_ms < first.timings.prefill_ms / 2


def test_embeddings(tmp_path: Path) -> None:
    running = Started(LlamaCppBackend(EmbeddedConfig(embeddings=True), 2, run_dir=tmp_path))
    try:
        assert running.info.models[0].capabilities == ("embed",)
        texts = ["a red bike", "a blue lamp", "a red bike"]
        job_id = running.submit(pl.request_from({"kind": "embed", "input": texts}))
        answer = running.seen.done(job_id).answer
        assert len(answer.embeddings) == 3
        assert answer.embeddings[0] == answer.embeddings[2] != answer.embeddings[1]
        vector = struct.unpack(f"<{len(answer.embeddings[0]) // 4}f", answer.embeddings[0])
        assert abs(sum(x * x for x in vector) - 1) < 1e-3
        assert answer.usage.prompt_tokens > 3
    finally:
        running.backend.close()


def test_every_setting_that_changes_answers_changes_the_digest(tmp_path: Path) -> None:
    def digest(config: EmbeddedConfig) -> str:
        running = Started(LlamaCppBackend(config, 1, run_dir=tmp_path))
        running.backend.close()
        return running.info.models[0].digest

    built, small = digest(EmbeddedConfig()), digest(EmbeddedConfig(context_tokens=512))
    own = digest(EmbeddedConfig(model_path=str(built_in())))
    assert len({built, small, own}) == 3, "context and built-in default options are part of it"
    assert digest(EmbeddedConfig(threads=2)) == built
    assert digest(EmbeddedConfig(context_tokens=4096)) == built, "no more than the model was trained for"


def test_exit_with_streams_in_flight(tmp_path: Path) -> None:
    """An interpreter that exits under a running stream aborts; close() makes it safe."""
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.adapters.contract import Started
from tests.adapters.test_llamacpp import endless
from walled.adapters.backend import Delta
from walled.adapters.llamacpp import LlamaCppBackend
from walled.config import EmbeddedConfig
running = Started(LlamaCppBackend(EmbeddedConfig(), 2, run_dir=Path({str(tmp_path)!r})))
jobs = [running.submit(endless()) for _ in range(2)]
running.seen.wait(lambda e: isinstance(e, Delta))
running.backend.close()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing", None, "No such file"),
        ("empty", b"", "is empty"),
        ("short", b"GGUF\x03\x00", "cut off after 6 bytes"),
        ("magic", b"PK\x03\x04" + b"\0" * 100, "not a GGUF file"),
        ("version", b"GGUF\x63\x00\x00\x00" + b"\0" * 100, "GGUF version 99"),
        ("nothing", b"GGUF\x03\x00\x00\x00" + b"\0" * 100, "holds no weights"),
        ("absurd", b"GGUF\x03\x00\x00\x00" + b"\xff" * 100, "cut off inside its header"),
    ],
)
def test_a_bad_file_is_refused_before_the_engine_sees_it(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / f"{name}.gguf"
    if content is not None:
        path.write_bytes(content)
    backend = LlamaCppBackend(EmbeddedConfig(model_path=str(path)), 1, run_dir=tmp_path)
    with pytest.raises(BootError, match=words) as caught:
        backend.start(lambda event: None)
    assert str(path) in caught.value.message


def test_a_directory(tmp_path: Path) -> None:
    backend = LlamaCppBackend(EmbeddedConfig(model_path=str(tmp_path)), 1, run_dir=tmp_path)
    with pytest.raises(BootError, match="is a directory"):
        backend.start(lambda event: None)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    whole = built_in().read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    backend = LlamaCppBackend(EmbeddedConfig(model_path=str(path)), 1, run_dir=tmp_path)
    with pytest.raises(BootError, match="cut off"):
        backend.start(lambda event: None)


def test_a_file_the_engine_does_not_know(tmp_path: Path) -> None:
    whole = built_in().read_bytes()
    path = tmp_path / "alien.gguf"
    path.write_bytes(whole.replace(b"llama", b"alien"))
    backend = LlamaCppBackend(EmbeddedConfig(model_path=str(path)), 1, run_dir=tmp_path)
    with pytest.raises(BootError, match=r"llama\.cpp cannot load it"):
        backend.start(lambda event: None)


def test_deltas_come_while_the_model_speaks(started: Started) -> None:
    job_id = started.submit(endless())
    started.seen.wait(lambda e: isinstance(e, Delta) and e.job_id == job_id)
    assert not [event for event in started.seen.of(job_id) if isinstance(event, Done)]
    started.backend.cancel(job_id)
    started.seen.ending(job_id)
