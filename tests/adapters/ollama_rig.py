"""A started Ollama adapter for its tests: a way to run jobs and to wait for what is announced.

May live here: what several test modules of the adapter share. May not: tests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from tests.adapters.contract import Recorder
from tests.fakes.ollama_records import Model
from walled.adapters.backend import BackendInfo, Changed, Delta, Done, Job
from walled.adapters.ollama import OllamaBackend
from walled.config import OllamaConfig
from walled.errors import WalledError
from walled.payload import Message, Request

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


Make = Callable[..., Rig]
