"""Messages between the supervisor and a child, over the socket pipe the child is born with.

May live here: the typed messages and their bytes. May not: processes, sockets (adapters/process.py).

The pipe is an AF_UNIX SOCK_SEQPACKET pair: one message per packet, at most MAX_LINK_BYTES. The end of the
pipe means the other side is dead: a child whose supervisor is gone exits at once. The first packet a child
receives is a Spawn; then Orders. A child sends Status from its working loop (never from a thread), which is
what tells a working child from a hung one.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from walled.errors import ProtocolError

MAX_LINK_BYTES = 192 * 1024

Remedy = Literal["gc", "trim", "unload", "shed", "fallback"]
"""What an alert may have done about itself, besides a new worker. gc, trim: by every process; unload: by
workers, of models nobody uses; shed, fallback: by the broker, for as long as it is said again."""
Role = Literal["broker", "worker", "monitor"]
Phase = Literal["starting", "loading", "ready", "draining", "stopping"]


class Spawn(msgspec.Struct, tag="spawn", omit_defaults=True, frozen=True):
    """All a child is told at birth."""

    role: Role
    slot: int
    """Number of the worker; 0 for the others."""
    backend: str
    """Name of the backend a worker runs; empty for the others."""
    token: bytes
    """The run's secret; a worker shows it in READY."""
    config: dict[str, Any]
    """The checked configuration as plain values; `config.from_plain` makes it a Config again."""
    supervisor_pid: int
    incarnation: int
    """How often this slot has been started in this run, from 1."""


class Order(msgspec.Struct, tag="order", omit_defaults=True, frozen=True):
    """Supervisor -> child."""

    op: Literal["drain", "stop", "reconfigure", "rebind", "tree", "remedy"]
    deadline_s: float = 0.0
    """drain: seconds the running requests have left. (rebind: the files of the sockets were deleted.)"""
    config: dict[str, Any] = {}
    tree: dict[str, Any] = {}
    """tree (broker and monitor): what the supervisor knows of its children."""
    remedy: Remedy = "gc"
    for_s: float = 0.0
    """remedy: shed and fallback end by themselves after so many seconds; 0 ends them now."""


class Status(msgspec.Struct, tag="status", omit_defaults=True, frozen=True):
    """Child -> supervisor, at every change of phase and at least every `beat_s`."""

    phase: Phase
    detail: str = ""
    answered: bool = False
    """broker: some worker has really answered its probe; the daemon is READY."""


class Ask(msgspec.Struct, tag="ask", omit_defaults=True, frozen=True):
    """Child -> supervisor: a wish that only the supervisor can fulfil.

    From the broker, an operator's; `worker.drained` tells that a worker it was to drain has no job left.
    From a worker only `worker.recycle`: to be replaced by a new process, because of its memory. From the
    monitor `worker.restart` and `remedy`: what an alert wants done.
    """

    op: Literal["worker.restart", "worker.drained", "worker.recycle", "reload", "stop", "remedy"]
    worker: int = -1
    why: str = ""
    """worker.recycle: for people."""
    remedy: Remedy = "gc"
    for_s: float = 0.0


Message = Spawn | Order | Status | Ask

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def pack(message: Message) -> bytes:
    """The packet of a message. Raises ProtocolError when it is over MAX_LINK_BYTES."""
    data = _encoder.encode(message)
    if len(data) > MAX_LINK_BYTES:
        raise ProtocolError(f"link message of {len(data)} bytes; at most {MAX_LINK_BYTES}", reason="link")
    return data


def unpack(data: bytes) -> Message:
    """Raises ProtocolError (reason `link`)."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ProtocolError(f"link message: {exc}", reason="link") from None
