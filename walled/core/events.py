"""What can happen to the broker, and what it can do about it: the vocabulary of core/broker.py.

May live here: events (in) and effects (out), immutable and without behaviour. Every event's first two fields
name its peer and its request, so that the history can tell a story without holding payloads.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from walled.core.policy import Plan
from walled.core.record import Record
from walled.errors import WalledError
from walled.protocol import ErrorHeader, FinalHeader, ReadyHeader, RequestHeader

# --- events ----------------------------------------------------------------------------------------


class ClientRequest(NamedTuple):
    """A client asks. `key`, `plan`, `cached`: what the shell found out before (Broker.prepare, the cache)."""

    client: bytes
    request_id: bytes
    header: RequestHeader
    payload: bytes
    key: bytes | None = None
    plan: Plan | None = None
    cached: Record | None = None
    cached_age_s: float = 0.0


class ClientCancel(NamedTuple):
    client: bytes
    request_id: bytes


class ClientGone(NamedTuple):
    """The client disconnected, or does not read what it asked for."""

    client: bytes
    request_id: bytes = b""
    reason: str = "disconnected"


class WorkerReady(NamedTuple):
    worker: bytes
    request_id: bytes
    header: ReadyHeader


class WorkerPartial(NamedTuple):
    worker: bytes
    request_id: bytes
    header: bytes
    payload: bytes


class WorkerFinal(NamedTuple):
    worker: bytes
    request_id: bytes
    header: FinalHeader
    payload: bytes


class WorkerError(NamedTuple):
    worker: bytes
    request_id: bytes
    header: ErrorHeader


class WorkerCredit(NamedTuple):
    worker: bytes
    request_id: bytes
    slots: int


class WorkerBeat(NamedTuple):
    worker: bytes
    request_id: bytes = b""


class WorkerGone(NamedTuple):
    worker: bytes
    request_id: bytes = b""
    reason: str = "disconnected"


class DrainWorker(NamedTuple):
    """An operator or the supervisor wants the worker of this slot to get no more requests."""

    worker: int
    request_id: bytes = b""


class Drain(NamedTuple):
    """Refuse new requests; let the present ones finish."""

    peer: bytes = b""
    request_id: bytes = b""


class Abort(NamedTuple):
    """End everything that is still waiting, at once, with `error`."""

    error: WalledError
    request_id: bytes = b""


class Steer(NamedTuple):
    """Shed load, or answer with what is lesser and quicker, for so many seconds from now; 0: no longer."""

    what: Literal["shed", "fallback"]
    request_id: bytes = b""
    for_s: float = 0.0


class Found(NamedTuple):
    """The answer to a LookUp; without a `source` there was nothing."""

    client: bytes
    request_id: bytes
    ticket: int
    source: Literal["", "cache", "stale", "template"] = ""
    answer: bytes = b""
    backend: str = ""
    age_s: float = 0.0


class Tick(NamedTuple):
    """Time has passed; sent a few times a second and when a timer is due."""

    peer: bytes = b""
    request_id: bytes = b""


Event = (
    ClientRequest | ClientCancel | ClientGone | WorkerReady | WorkerPartial | WorkerFinal | WorkerError
    | WorkerCredit | WorkerBeat | WorkerGone | DrainWorker | Drain | Abort | Steer | Found | Tick
)  # fmt: skip


# --- effects ---------------------------------------------------------------------------------------


class ToClient(NamedTuple):
    """Send a message to a client. A header of bytes is already packed."""

    client: bytes
    type: bytes
    request_id: bytes
    header: Any = None
    payload: bytes = b""


class ToWorker(NamedTuple):
    """Send a message to a worker."""

    worker: bytes
    type: bytes
    request_id: bytes
    header: Any = None
    payload: bytes = b""


class LookUp(NamedTuple):
    """Find the first of these lesser answers there is: `stale`, `template`, `intent` (a template of
    ladder.hybrid_intents). Answered by Found with the same ticket, at once."""

    client: bytes
    request_id: bytes
    ticket: int
    steps: tuple[str, ...]
    header: RequestHeader
    payload: bytes


class WorkerDrained(NamedTuple):
    """A worker that was asked to drain has nothing left; tell the supervisor."""

    worker: int


Effect = ToClient | ToWorker | LookUp | WorkerDrained
