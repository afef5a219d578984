"""What the faulty upstream says in Ollama's and in OpenAI's dialect: tokens, endings, refusals.

May live here: JSON values and their framing. May not: sockets, when what is said (faulty_upstream.py).
"""

from __future__ import annotations

import json
from typing import Any

from tests.fakes import ollama_records as records

SECRET = "the-server-quotes-the-prompt"
"""In every error text: none of it may travel further."""


class Dialect:
    """What one generation says."""

    content_type = ""

    def framed(self, data: bytes) -> bytes:
        raise NotImplementedError

    def token(self, text: str) -> bytes:
        raise NotImplementedError

    def end(self, count: int) -> list[bytes]:
        raise NotImplementedError

    def ending(self, kind: str) -> list[bytes]:
        """How `policy_end` and `unloaded` end a stream."""
        raise NotImplementedError

    def refusal(self, kind: str) -> tuple[int, Any]:
        raise NotImplementedError

    def whole(self) -> Any:
        raise NotImplementedError


class Ollama(Dialect):
    content_type = "application/x-ndjson"

    def __init__(self, chat: bool, body: dict[str, Any]) -> None:
        self._chat, self._body = chat, body

    def framed(self, data: bytes) -> bytes:
        return data + b"\n"

    def token(self, text: str) -> bytes:
        return self.framed(json.dumps(records.record(self._chat, self._body, text)).encode())

    def end(self, count: int, reason: str = "stop") -> list[bytes]:
        record = records.done(self._chat, self._body, reason, count, 1_500_000)
        return [self.framed(json.dumps(record).encode())]

    def ending(self, kind: str) -> list[bytes]:
        if kind == "unloaded":
            return self.end(0, "unload")
        text = f"content policy violation (violence): {SECRET}"
        return [self.framed(json.dumps({"error": text}).encode())]

    def refusal(self, kind: str) -> tuple[int, Any]:
        loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
        too_long = {"code": 400, "type": "exceed_context_size_error", "message": f"{SECRET}: 9000 tokens"}
        known: dict[str, tuple[int, Any]] = {
            "404": (404, f"model '{self._body['model']}' not found"),
            "loading": (500, json.dumps(loading)),
            "context": (400, json.dumps({"error": too_long})),
            "policy": (400, f"blocked by content filter: hate, {SECRET}"),
        }
        status, text = known[kind] if kind in known else (int(kind), SECRET)
        return status, {"error": text}


class OpenAI(Dialect):
    content_type = "text/event-stream"

    def __init__(self, model: str) -> None:
        self._model = model

    def framed(self, data: bytes) -> bytes:
        return b"data: " + data + b"\n\n"

    def token(self, text: str) -> bytes:
        return self._chunk({"content": text}, None)

    def _chunk(self, delta: dict[str, Any], finish: str | None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
        return self.framed(json.dumps({"model": self._model, "choices": [choice]}).encode())

    def end(self, count: int) -> list[bytes]:
        usage = {"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": 9}}
        return [
            self._chunk({}, "stop"),
            self.framed(json.dumps(usage).encode()),
            self.framed(b"[DONE]"),
        ]

    def ending(self, kind: str) -> list[bytes]:
        if kind == "policy_end":
            found = {"violence": {"filtered": True, "severity": "high"}, "hate": {"filtered": False}}
            last = self._chunk({}, "content_filter", content_filter_results=found)
            return [last, self.framed(b"[DONE]")]
        error = {"message": f"model was unloaded, {SECRET}", "code": 500, "type": "server_error"}
        return [self.framed(json.dumps({"error": error}).encode())]

    def refusal(self, kind: str) -> tuple[int, Any]:
        too_long = "This model's maximum context length is 4096 tokens."
        inner = {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {"hate": {"filtered": True}, SECRET + "!": {"filtered": True}},
        }
        known: dict[str, tuple[int, dict[str, Any]]] = {
            "404": (
                404,
                {"message": f"The model `{self._model}` does not exist.", "code": "model_not_found"},
            ),
            "loading": (503, {"code": 503, "message": "Loading model", "type": "unavailable_error"}),
            "context": (400, {"message": f"{too_long} {SECRET}", "code": "context_length_exceeded"}),
            "policy": (400, {"message": SECRET, "code": "content_filter", "innererror": inner}),
        }
        status, error = known.get(kind) or (int(kind), {"message": SECRET, "type": "error"})
        return status, {"error": error}

    def whole(self) -> Any:
        choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "ok"}}
        return {"model": self._model, "choices": [choice]}
