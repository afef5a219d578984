"""OpenAI's dialect, as llama.cpp and every OpenAI-compatible server speak it: bodies out, chunks in.

May live here: turning a Request into the body of a call, putting an Answer together from streamed chunks. May
not: how bytes travel (HTTP, callbacks), anything only one server does.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

from walled.adapters.openai_errors import filtered, refused
from walled.errors import BackendError, Truncated, Unsupported
from walled.payload import Answer, FinishReason, Message, Request, Usage, canonical_json

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


def chat_body(request: Request) -> dict[str, Any]:
    """The body of a streaming chat completion. A `generate` becomes what Ollama makes of it: one user turn,
    after the system text if there is one, through the model's chat template."""
    turns = [Message(role="system", content=request.system)] if request.system else []
    if request.kind == "generate":
        turns.append(Message(role="user", content=request.prompt, images=request.images))
    else:
        turns.extend(request.messages)
    body: dict[str, Any] = {
        "messages": [_message(turn) for turn in turns],
        "stream": True,
        "stream_options": {"include_usage": True},
        **options(request),
    }
    if request.tools:
        body["tools"] = json.loads(request.tools)
    if request.format == "json":
        body["response_format"] = {"type": "json_object"}
    elif request.format:
        schema = {"name": "answer", "schema": json.loads(request.format), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def completion_body(request: Request) -> dict[str, Any]:
    """The body of a streaming plain completion, for models without a chat template. Raises Unsupported for
    what only a template could carry."""
    if request.format or request.tools or request.images:
        raise Unsupported("a model without a chat template takes no format, tools or images")
    prompt = f"{request.system}\n\n{request.prompt}" if request.system else request.prompt
    return {
        "prompt": prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options(request),
    }


def options(request: Request) -> dict[str, Any]:
    """The options that are given, under their names in OpenAI's dialect and its common extensions."""
    given = request.options
    found: dict[str, Any] = {
        name: value for name in given.__struct_fields__ if (value := getattr(given, name)) not in (None, ())
    }
    if "repeat_penalty" in found:
        found["repetition_penalty"] = found["repeat_penalty"]  # vLLM's name; llama.cpp reads the other
    if "stop" in found:
        found["stop"] = list(found["stop"])
    return found


def _message(turn: Message) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.images:
        message["content"] = [
            {"type": "text", "text": turn.content},
            *({"type": "image_url", "image_url": {"url": _data_url(image)}} for image in turn.images),
        ]
    if turn.name:
        message["name"] = turn.name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    if turn.tool_calls:
        message["tool_calls"] = [
            _call_out(call, index) for index, call in enumerate(json.loads(turn.tool_calls))
        ]
    return message


def _call_out(call: Any, index: int) -> Any:
    """Arguments are JSON text in this dialect; Ollama's has them as an object."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = dict(call["function"])
    if not isinstance(function.get("arguments", ""), str):
        function["arguments"] = json.dumps(function["arguments"], sort_keys=True, separators=(",", ":"))
    return {"type": "function", "id": f"call_{index}", **call, "function": function}


def _data_url(image: bytes) -> str:
    if image.startswith(b"\x89PNG"):
        kind = "png"
    elif image[8:12] == b"WEBP":
        kind = "webp"
    else:
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


class Assembly:
    """A whole answer put together from streamed chunks, of chat and of plain completions."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thinking: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish = ""
        self._filtered: list[str] = []
        self.pieces = 0
        """Texts, thoughts and parts of tool calls so far; no other chunk tells that the model is alive."""
        self._declined = False
        self.usage = Usage()

    def take(self, chunk: dict[str, Any]) -> str:
        """Add a chunk; the text it brought, "" when none."""
        usage = chunk.get("usage")
        if usage:
            self.usage = Usage(_count(usage.get("completion_tokens")), _count(usage.get("prompt_tokens")))
        choices = chunk.get("choices")
        if not choices:
            return ""
        choice = choices[0]
        if choice.get("finish_reason"):
            self._finish = choice["finish_reason"]
            self._filtered = filtered(choice.get("content_filter_results"))
        delta = choice.get("delta")
        if delta is None:
            text: str = choice.get("text") or ""
        else:
            text = delta.get("content") or ""
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought:
                self._thinking.append(str(thought))
                self.pieces += 1
            self._declined = self._declined or bool(delta.get("refusal"))
            for call in delta.get("tool_calls") or ():
                self._take_call(call)
                self.pieces += 1
        if not isinstance(text, str):
            raise TypeError("content is not text")
        if text:
            self._texts.append(text)
            self.pieces += 1
        return text

    def _take_call(self, call: dict[str, Any]) -> None:
        index = call.get("index", len(self._calls))
        kept = self._calls.setdefault(
            index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        kept["id"] = call.get("id") or kept["id"]
        function = call.get("function") or {}
        kept["function"]["name"] += function.get("name") or ""
        arguments = function.get("arguments") or ""
        kept["function"]["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments)

    def end(self) -> None:
        """The server marked the end of the stream itself."""
        self._finish = self._finish or "stop"

    @property
    def finished(self) -> bool:
        """The server said why the answer ends."""
        return bool(self._finish)

    def answer(self, model: str) -> Answer:
        """The whole answer. Raises Truncated when its end mark has not come, ContentRefused when the server
        refused to go on."""
        if not self._finish:
            raise Truncated("the answer broke off before its end mark")
        if self._finish == "content_filter":
            raise refused("", self._finish, self._filtered)
        if self._declined and not self._texts:
            raise refused("", "refusal", [])
        finish = _FINISH.get(self._finish)
        if finish is None:
            raise BackendError(f"the server ended the answer with finish_reason {self._finish[:40]!r}")
        calls = [self._calls[index] for index in sorted(self._calls)]
        return Answer(
            model=model,
            text="".join(self._texts),
            thinking="".join(self._thinking),
            tool_calls=canonical_json(calls, "tool_calls") if calls else "",
            finish_reason="tool_calls" if calls and finish == "stop" else finish,
            usage=self.usage,
        )


def embedding_answer(reply: dict[str, Any], expected: int, model: str) -> Answer:
    """The answer of an embeddings call. Raises BackendError when vectors are missing or are not numbers."""
    try:
        rows = sorted(reply["data"], key=lambda row: row["index"])
        vectors = tuple(_vector(row["embedding"]) for row in rows)
    except (KeyError, TypeError, ValueError, struct.error):
        raise BackendError("the server's embeddings are not lists of numbers") from None
    if len(vectors) != expected or len({len(vector) for vector in vectors}) != 1:
        raise BackendError(f"the server sent {len(vectors)} embeddings for {expected} texts")
    usage = reply.get("usage")
    used = _count(usage.get("prompt_tokens")) if isinstance(usage, dict) else 0
    return Answer(model=model, embeddings=vectors, usage=Usage(0, used))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _vector(value: Any) -> bytes:
    if isinstance(value, str):
        return base64.b64decode(value, validate=True)  # encoding_format "base64": little-endian float32
    if len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # llama.cpp's own form: one row per pooled sequence
    return struct.pack(f"<{len(value)}f", *value)
