"""The scripted backend: its script, its delays, its faults."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.contract import AdapterContract, Started, chat
from walled import payload as pl
from walled.adapters.backend import Delta, Done
from walled.adapters.scripted import ScriptedBackend
from walled.config import ScriptedConfig
from walled.errors import BackendError, ContextTooLong, Overloaded, Truncated

ROOT = Path(__file__).parents[2]


def running(slots: int = 4, **config: Any) -> Started:
    return Started(ScriptedBackend(ScriptedConfig(**config), slots))


@pytest.fixture
def started() -> Iterator[Started]:
    run = running()
    yield run
    run.backend.close()


class TestContract(AdapterContract):
    slow = chat("and so on\n!slow 0.01 !tokens 5 !stall_after 3")
    unsupported = chat("hello", tools=[{"type": "function", "function": {"name": "f"}}])
    unsupported_word = "tools"


class TestContractWithDelays(TestContract):
    @pytest.fixture
    def started(self) -> Iterator[Started]:
        run = running(first_token_s=0.01, token_s=0.002, jitter=0.5)
        yield run
        run.backend.close()


def test_without_delays_the_answer_is_there_when_submit_returns(started: Started) -> None:
    job_id = started.submit(chat("one two three"))
    assert [type(event) for event in started.seen.of(job_id)] == [Delta, Done]
    assert started.seen.threads == {threading.get_ident()}


def test_the_answer_repeats_the_question_to_the_scripted_length(started: Started) -> None:
    answer = started.seen.done(started.submit(chat("one two three"))).answer
    assert answer.text == "one two three one two three one two"
    assert answer.usage == pl.Usage(8, 3)
    assert answer.finish_reason == "stop"
    short = chat("one two", options={"max_tokens": 3})
    answer = started.seen.done(started.submit(short)).answer
    assert (answer.text, answer.finish_reason) == ("one two one", "length")


def test_a_fixed_text() -> None:
    run = running(text="It costs  3 euros.")
    assert run.seen.done(run.submit(chat("what?"))).answer.text == "It costs  3 euros."
    run.backend.close()


def test_generate_and_embed(started: Started) -> None:
    request = pl.request_from({"kind": "generate", "prompt": "a b"})
    assert started.seen.done(started.submit(request)).answer.text.startswith("a b a")
    request = pl.request_from({"kind": "embed", "input": ["x", "y", "x"]})
    vectors = started.seen.done(started.submit(request)).answer.embeddings
    assert vectors[0] == vectors[2] != vectors[1]
    assert len(vectors[0]) == 32 * 4


def test_tokens_come_one_by_one_in_time() -> None:
    run = running(first_token_s=0.05, token_s=0.02, tokens=6)
    began = time.monotonic()
    done = run.seen.done(run.submit(chat("a b c d e f")))
    took_s = time.monotonic() - began
    assert len([event for event in run.seen.events if isinstance(event, Delta)]) == 6
    assert 0.05 + 5 * 0.02 <= took_s < 2.0
    assert done.timings.prefill_ms == pytest.approx(50, abs=1)
    assert done.timings.decode_ms >= 99
    run.backend.close()


def test_fast_tokens_keep_their_rate() -> None:
    """Ten streams of 5,000 tokens a second each: the timer hands out all that is due at each tick."""
    run = running(slots=10, token_s=0.0002, tokens=500)
    began = time.monotonic()
    jobs = [run.submit(chat("a b c")) for _ in range(10)]
    for job_id in jobs:
        assert len(run.seen.done(job_id).answer.text.split()) == 500
    assert 0.0998 <= time.monotonic() - began < 2.0
    run.backend.close()


def test_jitter_is_seeded() -> None:
    def times(seed: int) -> list[float]:
        run = running(first_token_s=0.01, jitter=1.0, seed=seed)
        prefills = [run.seen.done(run.submit(chat("x"))).timings.prefill_ms for _ in range(4)]
        run.backend.close()
        return [round(value, 3) for value in prefills]

    assert times(1) == times(1) != times(2)
    assert len(set(times(1))) > 1


def test_one_model_at_a_time() -> None:
    run = running(models=("other",), max_loaded_models=1, swap_s=0.03)
    assert {model.name for model in run.info.models} == {"scripted", "other"}
    assert run.info.max_loaded_models == 1
    loads = []
    for name in ("scripted", "scripted", "other", "other", "scripted"):
        loads.append(run.seen.done(run.submit(chat("x"), name)).timings.load_ms)
    assert [round(load) for load in loads] == [30, 0, 30, 0, 30]
    assert isinstance(run.backend, ScriptedBackend)
    assert run.backend.swaps == 2, "the first load is not a swap"
    run.backend.close()


def test_fail(started: Started) -> None:
    error = started.seen.error(started.submit(chat("x\n!fail context_too_long")))
    assert isinstance(error, ContextTooLong)
    error = started.seen.error(started.submit(chat("x\n!fail overloaded")))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 0.05


def test_fail_after(started: Started) -> None:
    job_id = started.submit(chat("a b c d\n!fail_after 2 truncated"))
    assert isinstance(started.seen.error(job_id), Truncated)
    assert len([event for event in started.seen.of(job_id) if isinstance(event, Delta)]) == 2


def test_stall(started: Started) -> None:
    silent, talking = started.submit(chat("a b\n!stall")), started.submit(chat("a b\n!stall_after 2"))
    started.seen.wait(lambda e: isinstance(e, Delta) and e.job_id == talking)
    started.seen.done(started.submit(chat("goes on")))
    for job_id in (silent, talking):
        assert not any(isinstance(event, Done) for event in started.seen.of(job_id))
        started.backend.cancel(job_id)
        started.seen.error(job_id)
    assert started.seen.of(silent)[:-1] == []


def test_slow_tokens_text(started: Started) -> None:
    began = time.monotonic()
    answer = started.seen.done(started.submit(chat("a b\n!slow 0.05 !tokens 3"))).answer
    assert time.monotonic() - began >= 0.05
    assert len(answer.text.split()) == 3
    answer = started.seen.done(started.submit(chat("a\n!text exactly this, ñandú"))).answer
    assert answer.text == "exactly this, ñandú"


@pytest.mark.parametrize("words", ["!nonsense", "!fail", "!fail nothing", "!tokens many", "!slow"])
def test_a_wrong_directive_is_an_error(started: Started, words: str) -> None:
    error = started.seen.error(started.submit(chat(f"x\n{words}")))
    assert type(error) is BackendError
    assert "docs/testing.md" in error.message


def test_only_the_last_line_and_only_when_faults_are_on(started: Started) -> None:
    assert started.seen.done(started.submit(chat("!fail internal\nhello"))).answer.text
    run = running(faults=False)
    assert run.seen.done(run.submit(chat("x\n!fail internal"))).answer.text
    run.backend.close()


def in_a_process(prompt: str) -> subprocess.Popen[bytes]:
    script = (
        "from tests.adapters.test_scripted import running, chat\n"
        f"run = running()\nprint('up', flush=True)\nrun.submit(chat({prompt!r}))\nprint('on', flush=True)"
    )
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)


def test_crash() -> None:
    process = in_a_process("x\n!crash")
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (-signal.SIGKILL, b"up\n")


def test_hang() -> None:
    process = in_a_process("x\n!hang")
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    finally:
        process.kill()
        output, _ = process.communicate(timeout=20)
    assert output == b"", "submit did not return"


def test_every_directive_is_documented() -> None:
    source = (ROOT / "walled/adapters/scripted.py").read_text()
    documented = (ROOT / "docs/testing.md").read_text()
    directives = {part.split('"')[0] for part in source.split('word == "')[1:]}
    assert len(directives) == 11
    for directive in directives:
        assert f"`{directive}" in documented
