"""The one small interface every model backend is behind, and the events it reports with.

May live here: the interface, its events, the capability check. May not: any library of any backend.

The contract (tests/adapters/contract.py holds every adapter to it):
- `start` blocks until the backend can answer, reports what it serves, or raises.
- `submit` never blocks. Every submitted job ends with exactly one Done or Failed, whatever happens,
  `cancel` and `close` included; when that event is emitted the job's slot in the backend is free.
- Events of one job are emitted in order: Delta*, then the ending. `emit` is thread-safe and never blocks.
- No job is ever queued inside a backend: the worker submits at most `slots` jobs at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from walled.errors import Unsupported, WalledError
from walled.payload import Answer, Request
from walled.protocol import ModelInfo


class Job(NamedTuple):
    """One generation to run."""

    job_id: int
    request: Request
    model: str
    """The name of the model as in ModelInfo.name."""
    deadline_s: float
    """time.monotonic() at which the answer is of no more use, as known at submission. The worker keeps it (it
    may grow when another caller joins) and cancels; an adapter bounds by it only what it cannot interrupt."""
    session: str = ""


class Delta(NamedTuple):
    """More text of a running job; also emitted when nobody streams (it is proof of life)."""

    job_id: int
    text: str


class Timings(NamedTuple):
    """What the backend says of its own phases, in milliseconds; 0 when unknown."""

    load_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class Done(NamedTuple):
    """The whole answer; `answer.text` equals the joined deltas."""

    job_id: int
    answer: Answer
    timings: Timings = Timings()


class Failed(NamedTuple):
    """The job ended without a whole answer. A cancelled job ends with errors.Cancelled."""

    job_id: int
    error: WalledError


class Changed(NamedTuple):
    """What the backend serves has changed (a model pulled, a host gone, slots up or down)."""

    info: BackendInfo


class BackendInfo(NamedTuple):
    """What a started backend serves."""

    models: tuple[ModelInfo, ...]
    slots: int
    max_loaded_models: int = 0


Event = Delta | Done | Failed | Changed
Emit = Callable[[Event], None]


class Backend(Protocol):
    """A model server or engine, constructed with its own section of the configuration."""

    def start(self, emit: Emit) -> BackendInfo:
        """Load or connect, and prove it by a real one-token generation.

        Raises BootError when no second try can succeed (a GGUF that is not one), BackendUnavailable when
        one might (connection refused).
        """

    def submit(self, job: Job) -> None:
        """Begin a job; returns at once."""

    def cancel(self, job_id: int) -> None:
        """Stop a job as soon as the backend can; unknown or ended ids are ignored."""

    def close(self) -> None:
        """End every job with Failed(Cancelled), free the backend's resources, join its threads."""


@runtime_checkable
class Unloads(Protocol):
    """A backend that can free the memory of models nobody uses just now."""

    def unload_idle(self) -> int:
        """Unload them, or have it done; how many. Returns at once."""


def require(request: Request, info: ModelInfo) -> None:
    """Raise Unsupported when the request needs what the model has not."""
    have = info.capabilities
    needs = {
        request.kind: True,
        "tools": bool(request.tools),
        "images": bool(request.images) or any(message.images for message in request.messages),
        "schema": bool(request.format),
    }
    for capability, needed in needs.items():
        if needed and capability not in have:
            raise Unsupported(
                f"model {info.name} does not support {capability}; it has: {', '.join(sorted(have))}"
            )
