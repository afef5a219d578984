"""The contract every backend adapter is held to, as a class of tests to inherit.

May live here: what adapters/backend.py promises. May not: anything of one backend, except through the
attributes a subclass sets. A subclass provides the fixture `backend` (started, with a `Recorder`) and says
which requests it can use to reach each situation.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from walled import payload as pl
from walled.adapters.backend import Backend, BackendInfo, Changed, Delta, Done, Event, Failed, Job
from walled.errors import Cancelled, Unsupported, WalledError

DEADLINE_S = 20.0


class Recorder:
    """Keeps every event in order; waits for what a test needs."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: set[int] = set()
        self._came = threading.Condition()

    def emit(self, event: Event) -> None:
        with self._came:
            self.events.append(event)
            self.threads.add(threading.get_ident())
            self._came.notify_all()

    def wait(self, fits: Callable[[Event], bool], deadline_s: float = DEADLINE_S) -> Event:
        until = time.monotonic() + deadline_s
        with self._came:
            while True:
                for event in self.events:
                    if fits(event):
                        return event
                left = until - time.monotonic()
                assert left > 0, f"did not come; there is {[type(event).__name__ for event in self.events]}"
                self._came.wait(left)

    def ending(self, job_id: int, deadline_s: float = DEADLINE_S) -> Done | Failed:
        event = self.wait(lambda e: isinstance(e, Done | Failed) and e.job_id == job_id, deadline_s)
        assert isinstance(event, Done | Failed)
        return event

    def done(self, job_id: int) -> Done:
        event = self.ending(job_id)
        assert isinstance(event, Done), event
        return event

    def error(self, job_id: int, deadline_s: float = DEADLINE_S) -> WalledError:
        event = self.ending(job_id, deadline_s)
        assert isinstance(event, Failed), event
        return event.error

    def of(self, job_id: int) -> list[Event]:
        return [event for event in self.events if not isinstance(event, Changed) and event.job_id == job_id]

    def text(self, job_id: int) -> str:
        return "".join(event.text for event in self.of(job_id) if isinstance(event, Delta))


class Started:
    """A started backend and its recorder."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seen = Recorder()
        self.info: BackendInfo = backend.start(self.seen.emit)
        self._ids = itertools.count(1)

    def submit(self, request: pl.Request, model: str = "", session: str = "") -> int:
        job_id = next(self._ids)
        name = model or self.info.models[0].name
        self.backend.submit(Job(job_id, request, name, time.monotonic() + 60, session))
        return job_id


def chat(text: str, **fields: Any) -> pl.Request:
    return pl.request_from({"kind": "chat", "messages": [{"role": "user", "content": text}], **fields})


class AdapterContract:
    """Inherit, set the attributes, provide the fixture `started`."""

    quick: ClassVar[pl.Request] = chat("hello there", options={"max_tokens": 8, "temperature": 0})
    """Is answered with text soon."""
    slow: ClassVar[pl.Request]
    """Goes on for longer than any test, and emits text at once."""
    unsupported: ClassVar[pl.Request]
    """Asks for what the backend's model cannot do."""
    unsupported_word: ClassVar[str] = ""

    def test_it_says_what_it_serves(self, started: Started) -> None:
        assert started.info.slots >= 1
        for model in started.info.models:
            assert model.name
            assert model.digest
            assert set(model.capabilities) <= {"chat", "generate", "embed", "tools", "images", "schema"}

    def test_deltas_join_to_the_text_and_one_ending_follows_them(self, started: Started) -> None:
        job_id = started.submit(self.quick)
        done = started.seen.done(job_id)
        assert done.answer.text
        assert started.seen.text(job_id) == done.answer.text
        assert done.answer.usage.completion_tokens > 0
        kinds = [type(event) for event in started.seen.of(job_id)]
        assert kinds == [Delta] * (len(kinds) - 1) + [Done]

    def test_all_slots_at_once_end_once_each(self, started: Started) -> None:
        jobs = [started.submit(self.quick) for _ in range(started.info.slots)]
        texts = {started.seen.done(job_id).answer.text for job_id in jobs}
        assert len(texts) == 1, "a deterministic request has one answer, in whatever slot"
        for job_id in jobs:
            endings = [e for e in started.seen.of(job_id) if not isinstance(e, Delta)]
            assert len(endings) == 1

    def test_submit_does_not_block(self, started: Started) -> None:
        began = time.monotonic()
        job_id = started.submit(self.slow)
        assert time.monotonic() - began < 0.5
        started.backend.cancel(job_id)
        started.seen.ending(job_id)

    def test_cancel_ends_the_job_within_a_second_and_frees_the_slot(self, started: Started) -> None:
        jobs = [started.submit(self.slow) for _ in range(started.info.slots)]
        started.seen.wait(lambda e: isinstance(e, Delta) and e.job_id == jobs[0])
        began = time.monotonic()
        for job_id in jobs:
            started.backend.cancel(job_id)
        for job_id in jobs:
            assert isinstance(started.seen.error(job_id), Cancelled)
        assert time.monotonic() - began < 1.0
        again = [started.submit(self.quick) for _ in range(started.info.slots)]
        for job_id in again:
            started.seen.done(job_id)

    def test_cancel_right_after_submit(self, started: Started) -> None:
        job_id = started.submit(self.slow)
        started.backend.cancel(job_id)
        assert isinstance(started.seen.error(job_id, 5.0), Cancelled)

    def test_cancelling_what_is_unknown_or_over_does_nothing(self, started: Started) -> None:
        job_id = started.submit(self.quick)
        started.seen.done(job_id)
        before = len(started.seen.events)
        started.backend.cancel(job_id)
        started.backend.cancel(987_654)
        job_id = started.submit(self.quick)
        started.seen.done(job_id)
        new = [e for e in started.seen.events[before:] if not isinstance(e, Changed)]
        assert {event.job_id for event in new} == {job_id}

    def test_what_it_cannot_do_is_a_typed_error(self, started: Started) -> None:
        job_id = started.submit(self.unsupported)
        error = started.seen.error(job_id)
        assert isinstance(error, Unsupported)
        assert self.unsupported_word in error.message
        assert not started.seen.text(job_id)

    def test_close_ends_every_job_and_joins(self, started: Started) -> None:
        jobs = [started.submit(self.slow) for _ in range(started.info.slots)]
        threads = set(threading.enumerate())
        began = time.monotonic()
        started.backend.close()
        assert time.monotonic() - began < 3.0
        for job_id in jobs:
            assert isinstance(started.seen.error(job_id, 0.5), Cancelled)
        alive = [t for t in threads if t.ident in started.seen.threads and t is not threading.main_thread()]
        assert not any(thread.is_alive() for thread in alive)

    def test_close_twice(self, started: Started) -> None:
        started.backend.close()
        started.backend.close()
