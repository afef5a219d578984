"""Every fault of a model server, in both dialects: the typed error, in time, the slot free, asked once.

The adapters run under a small stand-in for the worker's loop, with the worker's own book of jobs
(core/jobs.py), because silence and deadlines are judged there for all backends alike.
"""

from __future__ import annotations

import email.utils
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.contract import chat
from tests.fakes.faulty_dialects import SECRET
from tests.fakes.faulty_upstream import KINDS, Fault, FaultyUpstream, always, chances, flapping
from walled.adapters.backend import Backend, BackendInfo, Changed, Delta, Done, Event, Failed, Job
from walled.adapters.ollama import OllamaBackend
from walled.adapters.openai import OpenAIBackend
from walled.config import OllamaConfig, OpenAIConfig
from walled.core.jobs import Jobs
from walled.errors import BackendUnavailable, WalledError
from walled.protocol import JobHeader

DIALECTS = ("ollama", "openai")
FIRST_S, INTER_S = 0.3, 0.2
SLOTS = 2


class Bench:
    """An adapter and what a worker does around it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.jobs = Jobs(SLOTS, FIRST_S, INTER_S)
        self._came = threading.Condition()
        self._events: list[Event] = []
        self.served = BackendInfo((), 0)
        self.texts: dict[int, str] = {}
        self._endings: dict[int, str | WalledError] = {}

    def start(self) -> Bench:
        self.served = self.backend.start(self._emit)
        return self

    def _emit(self, event: Event) -> None:
        with self._came:
            self._events.append(event)
            self._came.notify_all()

    def submit(self, text: str = "hello", **header: Any) -> int:
        fields = {"model": "m", "deadline_ms": 20_000, "stream": True, **header}
        job = self.jobs.admit(b"%d" % self.jobs.admitted, JobHeader(**fields), time.monotonic())
        self.backend.submit(Job(job.number, chat(text), "m", job.deadline_s))
        return job.number

    def ending(self, number: int) -> str | WalledError:
        """The answer's text, or the error the caller gets, as core/jobs.py and the adapter decide it."""
        while number not in self._endings:
            self.turn()
        return self._endings.pop(number)

    def turn(self) -> None:
        """One turn of the loop: wait for events or for what is due."""
        with self._came:
            if not self._events:
                self._came.wait(max(0.0, min(self.jobs.next_due_s() - time.monotonic(), 10.0)))
            events, self._events = self._events, []
        now = time.monotonic()
        for event in events:
            if isinstance(event, Delta):
                self.jobs.delta(event.job_id, event.text, now)
                self.texts[event.job_id] = self.texts.get(event.job_id, "") + event.text
            elif isinstance(event, Changed):
                self.served = event.info
            else:
                self._end(event)
        due = self.jobs.due(now)
        assert not due.given_up, "the backend does not let go"
        for job in due.expired:
            self.backend.cancel(job.number)

    def _end(self, event: Done | Failed) -> None:
        job = self.jobs.end(event.job_id)
        assert job is not None, "one ending each"
        if job.why is not None:
            self._endings[job.number] = job.why
        elif isinstance(event, Failed):
            self._endings[job.number] = event.error
        else:
            assert event.answer.text == self.texts[job.number]
            self._endings[job.number] = event.answer.text

    def until(self, fits: Callable[[BackendInfo], bool], timeout_s: float = 10.0) -> None:
        until_s = time.monotonic() + timeout_s
        while not fits(self.served):
            assert time.monotonic() < until_s, "it was never announced"
            self.turn()

    def ask(self, text: str = "hello", **header: Any) -> str | WalledError:
        return self.ending(self.submit(text, **header))

    def error(self, text: str = "hello", **header: Any) -> WalledError:
        found = self.ask(text, **header)
        assert isinstance(found, WalledError), found
        return found


def made(dialect: str, *urls: str, **more: Any) -> Bench:
    fields: dict[str, Any] = {"connect_timeout_s": 1.0, "models": {"m": "demo"}, **more}
    if dialect == "ollama":
        return Bench(OllamaBackend(OllamaConfig(hosts=urls, health_interval_s=0.05, **fields), SLOTS))
    (url,) = urls
    return Bench(OpenAIBackend(OpenAIConfig(base_url=f"{url}/v1", **fields), SLOTS))


@pytest.fixture
def cleaned() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def upstream(cleaned: ExitStack) -> FaultyUpstream:
    return cleaned.enter_context(FaultyUpstream())


@pytest.fixture(params=DIALECTS)
def bench(request: pytest.FixtureRequest, upstream: FaultyUpstream, cleaned: ExitStack) -> Bench:
    made_ = made(request.param, upstream.url)
    cleaned.callback(made_.backend.close)
    return made_.start()


AT_DATE = email.utils.formatdate(time.time() + 300, usegmt=True)
FAULTS = [
    (Fault("429", retry_after="7"), "backend_overloaded", True),
    (Fault("429", retry_after=AT_DATE), "backend_overloaded", True),
    (Fault("429"), "backend_overloaded", True),
    (Fault("503"), "backend_overloaded", True),
    (Fault("loading"), "backend_overloaded", True),
    (Fault("500"), "backend_error", True),
    (Fault("502"), "backend_unavailable", True),
    (Fault("401"), "backend_unauthorized", False),
    (Fault("404"), "model_not_found", False),
    (Fault("context"), "context_too_long", False),
    (Fault("policy"), "content_refused", False),
    (Fault("policy_end"), "content_refused", False),
    (Fault("reset_early"), "backend_unavailable", True),
    (Fault("hangup"), "backend_unavailable", True),
    (Fault("dies", seconds=0.05), "backend_unavailable", True),
    (Fault("silent"), "backend_timeout", True),
    (Fault("slow", seconds=30.0), "backend_timeout", True),
    (Fault("stall"), "backend_timeout", True),
    (Fault("cut"), "truncated", True),
    (Fault("reset"), "truncated", True),
    (Fault("bad_chunk"), "backend_error", True),
    (Fault("bad_json"), "backend_error", True),
    (Fault("bad_utf8"), "backend_error", True),
    (Fault("html"), "backend_error", True),
    (Fault("not_http"), "backend_error", True),
]
UNLOADED = {"ollama": "truncated", "openai": "backend_error"}


def test_every_kind_is_tried_here() -> None:
    tried = {fault.kind for fault, _, _ in FAULTS} | {"ok", "unloaded"}
    assert tried == set(KINDS)


@pytest.mark.parametrize(
    ("fault", "code", "retryable"),
    FAULTS,
    ids=[f"{f.kind}-{f.retry_after[:3]}".rstrip("-") for f, _, _ in FAULTS],
)
def test_a_fault_is_a_typed_error_in_time_and_asked_once(
    upstream: FaultyUpstream,
    bench: Bench,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    code: str,
    retryable: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    assert bench.ask("first") == "Hello, you."
    upstream.play(fault)
    began = time.monotonic()
    error = bench.error("a canary prompt")
    took_s = time.monotonic() - began
    assert (error.code, error.retryable) == (code, retryable), error.message
    assert took_s < {"silent": FIRST_S, "slow": FIRST_S, "stall": INTER_S}.get(fault.kind, 0.0) + 0.5
    if code == "backend_timeout":
        assert took_s >= (INTER_S if fault.kind == "stall" else FIRST_S)
        assert (
            "inter_token_timeout_s" if fault.kind == "stall" else "first_token_timeout_s"
        ) in error.message
        upstream.wait_for(lambda: upstream.left == 1)
    assert upstream.count("a canary prompt") == 1, "whether to ask again is the broker's to decide"
    for words in (SECRET, "canary", "secret"):
        assert words not in error.message + caplog.text
    assert bench.jobs.credit == SLOTS
    assert bench.jobs.idle
    upstream.up()  # of the kinds, only `dies` takes it down
    bench.until(lambda info: info.slots == SLOTS)
    jobs = [bench.submit(f"after {index}") for index in range(SLOTS)]
    assert [bench.ending(job) for job in jobs] == ["Hello, you."] * SLOTS, "no slot is lost"


def test_a_model_unloaded_midway(upstream: FaultyUpstream, bench: Bench) -> None:
    upstream.play(Fault("unloaded"))
    error = bench.error()
    assert error.code == UNLOADED["ollama" if isinstance(bench.backend, OllamaBackend) else "openai"]
    assert error.retryable
    assert upstream.count() == 1


@pytest.mark.parametrize(("value", "least_s", "most_s"), [("7", 7, 7), (AT_DATE, 200, 300), ("soon", 0, 1)])
def test_retry_after_is_passed_on(
    upstream: FaultyUpstream, bench: Bench, value: str, least_s: float, most_s: float
) -> None:
    upstream.play(Fault("429", retry_after=value), Fault("503", retry_after=value))
    for _ in range(2):
        assert least_s <= (bench.error().retry_after_s or 0) <= most_s


def test_the_reason_of_a_refusal_is_passed_on(upstream: FaultyUpstream, bench: Bench) -> None:
    upstream.play(Fault("policy"), Fault("policy_end"))
    first, second = bench.error().message, bench.error().message
    assert "content_filter: hate)" in first
    assert "violence)" in second


def test_slow_is_not_dead(upstream: FaultyUpstream, bench: Bench) -> None:
    upstream.play(Fault("slow", seconds=FIRST_S / 3))
    assert bench.ask() == "Hello, you."


def test_the_share_of_one_target_leaves_time_for_the_next(upstream: FaultyUpstream, bench: Bench) -> None:
    upstream.play(Fault("silent"))
    began = time.monotonic()
    error = bench.error(deadline_ms=200, first_token_ms=100)
    assert error.code == "backend_timeout"
    assert 0.1 <= time.monotonic() - began < 0.2


def test_a_deadline_ends_a_silent_job(upstream: FaultyUpstream, bench: Bench) -> None:
    upstream.play(Fault("silent"))
    assert bench.error(deadline_ms=50).code == "deadline_exceeded"
    upstream.wait_for(lambda: upstream.left == 1)


def test_a_killed_server_refuses_and_comes_back(upstream: FaultyUpstream, bench: Bench) -> None:
    assert bench.ask() == "Hello, you."
    upstream.down()
    began = time.monotonic()
    error = bench.error()
    assert (error.code, error.retryable) == ("backend_unavailable", True)
    assert time.monotonic() - began < 0.5
    assert upstream.count() == 1
    upstream.up()
    bench.until(lambda info: info.slots == SLOTS)
    answers = [bench.ask()]
    if isinstance(bench.backend, OllamaBackend) and answers != ["Hello, you."]:
        bench.until(
            lambda info: info.slots == SLOTS
        )  # the news that it was down may have come after the first look
        answers = [bench.ask()]
    assert answers == ["Hello, you."]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_start_can_be_tried_again(dialect: str, upstream: FaultyUpstream, cleaned: ExitStack) -> None:
    bench = made(dialect, upstream.url)
    cleaned.callback(bench.backend.close)
    upstream.down()
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            bench.start()
    upstream.up()
    assert bench.start().ask() == "Hello, you."


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dns_and_tls_are_named(dialect: str, tmp_path: Path, cleaned: ExitStack) -> None:
    plain = cleaned.enter_context(FaultyUpstream())
    closed = cleaned.enter_context(FaultyUpstream(tls=tmp_path))
    for url, words in [
        ("http://no-such-host.invalid:11434", "DNS"),
        (f"https://{plain.host}", "TLS: the handshake failed"),
        (closed.url, "TLS: its certificate is not accepted"),
    ]:
        bench = made(dialect, url)
        with pytest.raises(BackendUnavailable, match=words):
            bench.start()
        bench.backend.close()
    assert not plain.calls
    assert not closed.calls


@pytest.mark.parametrize("dialect", DIALECTS)
def test_connecting_has_a_timeout_of_its_own(dialect: str, cleaned: ExitStack) -> None:
    """A listener whose queue is full answers no handshake, as a host behind a silent firewall."""
    listener = cleaned.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        waiting = cleaned.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    port = listener.getsockname()[1]
    bench = made(dialect, f"http://127.0.0.1:{port}", connect_timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match=r"connect_timeout_s"):
        bench.start()
    assert 0.2 <= time.monotonic() - began < 1.0
    bench.backend.close()


def test_of_two_ollama_hosts_the_failing_one_is_left_out(cleaned: ExitStack) -> None:
    hosts = [cleaned.enter_context(FaultyUpstream()) for _ in range(2)]
    bench = made("ollama", *(host.url for host in hosts))
    cleaned.callback(bench.backend.close)
    bench.start().until(lambda info: info.slots == SLOTS)
    for kind in ("500", "503", "reset_early", "cut"):
        counts = [host.count() for host in hosts]
        for host in hosts:
            host.script = always(Fault(kind))
        assert isinstance(bench.ask("fails"), WalledError)
        failed = next(index for index in range(2) if hosts[index].count() > counts[index])
        assert sum(host.count() for host in hosts) == sum(counts) + 1
        for host in hosts:
            host.script = always(Fault())
        assert bench.ask("next") == "Hello, you."
        assert hosts[1 - failed].count() == counts[1 - failed] + 1, f"after {kind} not where it just failed"
        bench.until(lambda info: info.slots == SLOTS)


def test_the_slots_of_dead_hosts_are_taken_back_and_given_again(cleaned: ExitStack) -> None:
    hosts = [cleaned.enter_context(FaultyUpstream()) for _ in range(2)]
    bench = made("ollama", *(host.url for host in hosts))
    cleaned.callback(bench.backend.close)
    bench.start().until(lambda info: info.slots == 2)
    for left, host in enumerate(reversed(hosts)):
        host.down()
        bench.until(lambda info, left=left: info.slots == 1 - left)  # type: ignore[misc]
    error = bench.error()
    assert error.code == "backend_unavailable"
    assert "down: http" in error.message
    assert [model.name for model in bench.served.models] == ["m"], "unavailable, not unknown"
    hosts[0].up()
    bench.until(lambda info: info.slots == 1)
    assert bench.ask() == "Hello, you."


def test_what_the_faults_are_drawn_from() -> None:
    script = flapping(2, 3, Fault("503"))
    assert [script(number).kind for number in range(7)] == ["ok", "ok", "503", "503", "503", "ok", "ok"]
    script = chances(7, {Fault("cut"): 0.2, Fault("500"): 0.1})
    drawn = [script(number).kind for number in range(2000)]
    assert 300 < drawn.count("cut") < 500
    assert 140 < drawn.count("500") < 260
    assert drawn == [
        chances(7, {Fault("cut"): 0.2, Fault("500"): 0.1})(number).kind for number in range(2000)
    ]
    assert drawn != [
        chances(8, {Fault("cut"): 0.2, Fault("500"): 0.1})(number).kind for number in range(2000)
    ]


def test_the_document_has_every_fault() -> None:
    text = (Path(__file__).parents[2] / "docs" / "backends.md").read_text()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    stated = {(row[0], row[2], row[3]) for row in rows if len(row) == 4 and row[3] in ("yes", "no")}
    tried = {(fault.kind, code, "yes" if retryable else "no") for fault, code, retryable in FAULTS}
    assert stated == tried | {("refused", "backend_unavailable", "yes")}
