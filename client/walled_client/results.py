"""What the caller gets back: Reply, StreamChunk, Embedding, Accepted.

May live here: plain values and their readings. May not: sockets, decoding of frames, any decision.
"""

from __future__ import annotations

import array
import json
import sys
from typing import Any

import msgspec

from walled.payload import Answer, FinishReason, Usage, Validation
from walled.protocol import Phases, Source

__all__ = [
    "Accepted",
    "Answer",
    "Embedding",
    "FinishReason",
    "Phases",
    "Reply",
    "Source",
    "StreamChunk",
    "Usage",
    "Validation",
]


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole answer, where it came from and where its time went."""

    answer: Answer
    source: Source = "model"
    """model, cache, coalesced, stale, fallback_model or template."""
    degraded: bool = False
    """True when this is less than what was asked for: stale, from another model, a template."""
    reason: str = ""
    """Why it is degraded: the code of the error it stands in for."""
    backend: str = ""
    worker: int = -1
    """Slot of the worker that generated; -1 when none did."""
    attempts: int = 1
    age_s: float = 0.0
    """Age of a cached answer."""
    stored: bool = False
    phases: Phases = Phases()
    """The daemon's view of the time, in milliseconds."""
    elapsed_ms: float = 0.0
    """From the call to its return, as the caller saw it."""
    request_id: str = ""
    """Hexadecimal; empty when no message was sent (a hit in this process)."""

    @property
    def text(self) -> str:
        return self.answer.text

    @property
    def model(self) -> str:
        """The model that really answered, as its backend names it."""
        return self.answer.model

    @property
    def usage(self) -> Usage:
        return self.answer.usage

    @property
    def finish_reason(self) -> FinishReason:
        return self.answer.finish_reason

    @property
    def thinking(self) -> str:
        return self.answer.thinking

    @property
    def tool_calls(self) -> list[Any]:
        """The calls the model wants made, as plain values; empty when none."""
        return json.loads(self.answer.tool_calls) if self.answer.tool_calls else []

    @property
    def validation(self) -> Validation | None:
        """What the daemon's rules found in the answer; None when none were applied."""
        return self.answer.validation

    def __str__(self) -> str:
        return self.answer.text

    def __repr__(self) -> str:
        # Without the text: a Reply in somebody's log must not put an answer there.
        return f"<Reply from {self.source}, model {self.model!r}, {len(self.text)} characters>"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        usage = self.usage
        return {
            "text": self.text,
            "model": self.model,
            "source": self.source,
            "degraded": self.degraded,
            "reason": self.reason,
            "finish_reason": self.finish_reason,
            "thinking": self.thinking,
            "tool_calls": self.tool_calls,
            "validation": None if self.validation is None else msgspec.structs.asdict(self.validation),
            "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
            "backend": self.backend,
            "worker": self.worker,
            "attempts": self.attempts,
            "age_s": self.age_s,
            "stored": self.stored,
            "phases": msgspec.to_builtins(self.phases),
            "elapsed_ms": self.elapsed_ms,
            "request_id": self.request_id,
        }


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One vector per text, in the order of the texts."""

    vectors: tuple[array.array[float], ...]
    reply: Reply

    @property
    def vector(self) -> array.array[float]:
        """The first vector, for a single text."""
        return self.vectors[0]

    @property
    def model(self) -> str:
        return self.reply.model

    @property
    def source(self) -> Source:
        return self.reply.source

    @property
    def usage(self) -> Usage:
        return self.reply.usage


class StreamChunk(msgspec.Struct, frozen=True, gc=False):
    """More text of a running answer.

    `restart`: the attempt that gave the text so far has died; drop that text, this chunk begins anew.
    """

    text: str
    restart: bool = False

    def __str__(self) -> str:
        return self.text


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """The request waits in the daemon's queue."""

    position: int
    """Requests expected to start earlier; 0 is next."""
    eta_s: float
    """Expected seconds until the answer starts."""


def embedding_of(reply: Reply) -> Embedding:
    """The vectors of an embedding's answer."""
    vectors = []
    for raw in reply.answer.embeddings:
        vector = array.array("f")
        vector.frombytes(raw)
        if sys.byteorder == "big":
            vector.byteswap()
        vectors.append(vector)
    return Embedding(vectors=tuple(vectors), reply=reply)
