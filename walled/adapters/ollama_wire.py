"""What walled asks of Ollama and what Ollama answers, as JSON values: translation only.

May live here: request bodies, the gathering of streamed records into an Answer, the meaning of error texts.
May not: the `ollama` package, sockets, tasks, hosts. The facts below were recorded from a real server;
tests/fakes/ollama_server.py replays them.

- A prompt over the context window is cut in half without a word unless the request says `truncate: false`.
- A stream can end well-formed (HTTP 200, last chunk) without a record with `done: true`: when the engine
  below fails, or repeats one token 30 times. With `stream: false` that is a 200 with `done: false`.
- `messages: []` or an empty prompt load the model and answer nothing, with done_reason "load".
- `num_predict: 0` generates without end. Options of LOAD_OPTIONS, and `shift`, reload the model when they
  differ from those it was loaded with.
- Errors are {"error": text}; the text may itself be JSON, the engine's {"error": {code, message, type}}.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from walled.adapters.backend import Timings
from walled.errors import (
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    BadRequest,
    ContentRefused,
    ContextTooLong,
    ModelNotFound,
    Truncated,
    Unsupported,
    WalledError,
)
from walled.payload import Answer, FinishReason, Message, Options, Request, Usage, canonical_json

LOAD_OPTIONS = frozenset(
    {"draft_num_predict", "main_gpu", "num_batch", "num_ctx", "num_gpu", "num_thread", "use_mmap"}
)
"""Options that are fixed when Ollama loads a model; another value in a later request loads it anew."""

PROBE = Request(
    kind="chat", messages=(Message("user", "Say ok."),), options=Options(max_tokens=1, temperature=0.0)
)
EMBED_PROBE = Request(kind="embed", input=("ok",))

OVERLOAD_RETRY_S = 1.0

_NS_PER_MS = 1_000_000.0
_PATHS = {"chat": "/api/chat", "generate": "/api/generate", "embed": "/api/embed"}
_RENAMED = {"max_tokens": "num_predict"}
_CAPABILITIES = {
    "completion": ("chat", "generate", "schema"),
    "embedding": ("embed",),
    "tools": ("tools",),
    "vision": ("images",),
}
_TOO_LONG = (
    "exceed_context_size_error", "exceeds the available context size", "exceeds the context length",
    "longer than the context length", "exceeds maximum context length",
)  # fmt: skip
_NOT_SUPPORTED = ("does not support", "is not supported by")
_LOADING = ("loading model", "model is loading", "unavailable_error")
_POLICY = (
    "content_policy_violation", "content_filter", "content policy", "content filter", "safety policy",
    "usage policy", "moderation",
)  # fmt: skip
_CATEGORIES = {
    "harassment": "harass", "hate": r"\bhate", "illicit": r"\billicit", "jailbreak": "jailbreak",
    "self-harm": r"self[-_ ]harm", "sexual": "sexual", "violence": "violen",
}  # fmt: skip
_KNOWN = (
    "requires more system memory", "llama runner process has terminated", "server busy", "loading model",
    "llama runner process no longer running", "unexpected eof", "unable to allocate", "out of memory",
    "timed out waiting for llama runner", "request canceled", "does not support chat", "cannot unmarshal",
    "does not support tools", "does not support", "is not supported by", "json schema conversion failed",
    "error parsing tool call", "file does not exist", "no space left on device", "no such host",
    "connection refused",
)  # fmt: skip
"""Phrases of Ollama and its engine that can be told."""


def full_name(name: str) -> str:
    """Ollama's own spelling: a name without a tag means the tag `latest`."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def capabilities(told: Iterable[str] | None) -> tuple[str, ...]:
    """Ours for the server's; a server too old to tell is believed to do all that needs no special model."""
    if told is None:
        return ("chat", "generate", "schema", "embed")
    return tuple(ours for capability in told for ours in _CAPABILITIES.get(capability, ()))


def parameter(text: str, name: str) -> int:
    """A whole-number parameter of a model as /api/show lists them, one to a line; 0 when it has none."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return 0


# --- asking ------------------------------------------------------------------------------------------


def body(
    request: Request, model: str, load_options: Mapping[str, Any], keep_alive_s: float
) -> tuple[str, dict[str, Any]]:
    """Path and JSON body of a request. The load options are ours alone: no request can change them."""
    fields: dict[str, Any] = {
        "model": model,
        "truncate": False,
        "keep_alive": keep_alive_s if keep_alive_s >= 0 else -1,
        "options": {**_options(request.options), **load_options},
    }
    if request.kind == "embed":
        fields["input"] = list(request.input)
        return _PATHS["embed"], fields
    fields["stream"] = True
    if request.format:
        fields["format"] = "json" if request.format == "json" else json.loads(request.format)
    if request.kind == "generate":
        fields["prompt"] = request.prompt
        if request.system:
            fields["system"] = request.system
        if request.images:
            fields["images"] = _images(request.images)
    else:
        fields["messages"] = _messages(request)
        if request.tools:
            fields["tools"] = json.loads(request.tools)
    return _PATHS[request.kind], fields


def _options(options: Options) -> dict[str, Any]:
    given = {
        _RENAMED.get(name, name): getattr(options, name)
        for name in Options.__struct_fields__
        if getattr(options, name) is not None and name != "stop"
    }
    if options.stop:
        given["stop"] = list(options.stop)
    return given


def _images(images: Iterable[bytes]) -> list[str]:
    return [base64.b64encode(image).decode("ascii") for image in images]


def _messages(request: Request) -> list[dict[str, Any]]:
    messages = [_message(message) for message in request.messages]
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    if request.images:
        # A chat's images belong to what the user said last.
        asked = next((m for m in reversed(messages) if m["role"] == "user"), messages[-1])
        asked["images"] = [*asked.get("images", []), *_images(request.images)]
    return messages


def _message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        fields["images"] = _images(message.images)
    if message.role == "tool" and message.name:
        fields["tool_name"] = message.name
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        calls = json.loads(message.tool_calls)
        fields["tool_calls"] = [_asked_call(call) for call in (calls if isinstance(calls, list) else [calls])]
    return fields


def _asked_call(call: Any) -> dict[str, Any]:
    """A call an assistant made earlier: OpenAI's form has the arguments as JSON text, Ollama's as a map."""
    try:
        function = call["function"]
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        named = {"function": {"name": str(function["name"]), "arguments": dict(arguments)}}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadRequest(
            "tool_calls of a message: each call needs function.name and function.arguments "
            "(a JSON map, or its text)"
        ) from None
    return {"id": str(call["id"]), **named} if call.get("id") else named


# --- answering ---------------------------------------------------------------------------------------


class Reply:
    """Gathers the records of one stream. `done` turns true with the record that ends an answer."""

    def __init__(self) -> None:
        self.done = False
        self.begun = False
        """A record with something of the answer has come."""
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._last: Mapping[str, Any] = {}

    def add(self, record: Mapping[str, Any]) -> str:
        """Take a record; the text it adds. Raises BackendError when it is not one of Ollama's."""
        message = record.get("message")
        if message is None:
            text, thinking, calls = record.get("response"), record.get("thinking"), None
        elif isinstance(message, dict):
            text, thinking = message.get("content"), message.get("thinking")
            calls = message.get("tool_calls")
        else:
            raise BackendError("a record of the stream is not one of Ollama's: `message` is not a map")
        if not isinstance(text or "", str) or not isinstance(thinking or "", str):
            raise BackendError("a record of the stream is not one of Ollama's: its text is not a string")
        if thinking:
            self._thinking.append(thinking)
        for call in calls or ():
            self._calls.append(_made_call(call, len(self._calls)))
        self.begun = self.begun or bool(text or thinking or calls)
        if record.get("done") is True:
            self._last = record
            self.done = True
        if text:
            self._text.append(text)
        return text or ""

    def answer(self, model: str) -> Answer:
        """The whole answer. Raises Truncated when its end mark has not come."""
        last = self._last
        reason = last.get("done_reason")
        if not self.done or reason in ("load", "unload"):
            raise Truncated("Ollama ended the stream without its end mark; the answer is incomplete")
        finish: FinishReason = "length" if reason == "length" else "stop"
        if self._calls:
            finish = "tool_calls"
        return Answer(
            finish_reason=finish,
            model=str(last.get("model") or model),
            text="".join(self._text),
            thinking="".join(self._thinking),
            tool_calls=canonical_json(self._calls, "tool_calls") if self._calls else "",
            usage=Usage(_count(last, "eval_count"), _count(last, "prompt_eval_count")),
        )

    def timings(self) -> Timings:
        return timings(self._last)


def _made_call(call: Any, index: int) -> dict[str, Any]:
    """OpenAI's form of a call the model made."""
    try:
        function = call["function"]
        name = str(function["name"])
        arguments = canonical_json(function.get("arguments") or {}, "tool call arguments")
    except (AttributeError, KeyError, TypeError, BadRequest):
        raise BackendError("a record of the stream is not one of Ollama's: a tool call has no name") from None
    return {
        "id": str(call.get("id") or f"call_{index}"),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def embed_answer(record: Mapping[str, Any], model: str, inputs: int) -> Answer:
    """The answer of /api/embed. Raises BackendError when a vector is missing."""
    vectors = record.get("embeddings")
    try:
        packed = tuple(struct.pack(f"<{len(vector)}f", *vector) for vector in vectors or ())
    except (TypeError, struct.error):
        raise BackendError("the embeddings of the answer are not lists of numbers") from None
    if len(packed) != inputs or not all(packed):
        raise BackendError(f"Ollama answered {len(packed)} embeddings for {inputs} inputs")
    return Answer(
        embeddings=packed,
        model=str(record.get("model") or model),
        usage=Usage(0, _count(record, "prompt_eval_count")),
    )


def timings(record: Mapping[str, Any]) -> Timings:
    """Ollama's nanoseconds as milliseconds."""
    return Timings(
        load_ms=_count(record, "load_duration") / _NS_PER_MS,
        prefill_ms=_count(record, "prompt_eval_duration") / _NS_PER_MS,
        decode_ms=_count(record, "eval_duration") / _NS_PER_MS,
    )


def _count(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    return value if isinstance(value, int) and value > 0 else 0


# --- failing -----------------------------------------------------------------------------------------


def said(data: bytes) -> str:
    """The error text of a body or record: what stands below "error", itself JSON when it is no text."""
    try:
        error = json.loads(data)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return error if isinstance(error, str) else json.dumps({"error": error})


def error_of(
    status: int, text: str, model: str, host: str, retry_after_s: float | None = None
) -> WalledError:
    """The typed error for an HTTP status and error text; status below 100 means inside a stream.

    The server's words may quote the prompt or the answer (a tool call it could not read, say), so of them
    only known phrases and figures are passed on.
    """
    inner, kind, code = _innermost(text)
    if status < 100 and code >= 400:
        status = code
    low = f"{kind} {inner}".lower()
    short = _known(inner)
    if any(mark in low for mark in _TOO_LONG):
        return ContextTooLong(f"{model}: the prompt does not fit the context window{_figures(inner)}")
    if status != 404 and not _phrase(low) and (reason := policy_reason(low)):
        return ContentRefused(f"{model} on {host}: refused by content policy ({reason})")
    if status in (429, 503) or any(mark in low for mark in _LOADING):
        wait_s = OVERLOAD_RETRY_S if retry_after_s is None else retry_after_s
        return BackendOverloaded(f"{host} takes no more at present: {short}", retry_after_s=wait_s)
    if status == 501 or any(mark in low for mark in _NOT_SUPPORTED):
        return Unsupported(f"{model} on {host}: {short}")
    if status == 404:
        if "not found" in low and "page not found" not in low:
            return ModelNotFound(
                f"{host} has no model {model}; run `ollama pull {model}` there, or set pull = true"
            )
        return BackendError(f"{host} has no such endpoint; is it an Ollama server, and a recent one?")
    if status == 400:
        return BadRequest(f"{host} refused the request: {short}")
    if status in (401, 403):
        return BackendUnauthorized(
            f"{host} refused access (HTTP {status}); see its OLLAMA_ORIGINS, proxies and OLLAMA_API_KEY"
        )
    where = f"HTTP {status}" if status >= 100 else "inside the stream"
    if status == 502:
        return BackendUnavailable(f"{host} is not behind its proxy ({where})", retry_after_s=OVERLOAD_RETRY_S)
    if status in (408, 504):
        return BackendTimeout(f"{host} was too slow for its proxy ({where})")
    return BackendError(f"{host} failed ({where}): {short}")


def policy_reason(words: str) -> str:
    """The code or category of a refusal by content policy in lower-case words; "" when they tell of none."""
    code = next((mark for mark in _POLICY if mark in words), "")
    if not code:
        return ""
    found = [name for name, pattern in _CATEGORIES.items() if re.search(pattern, words)]
    return ": ".join(filter(None, (code.replace(" ", "_"), ", ".join(found))))


def _phrase(low: str) -> str:
    return next((phrase for phrase in _KNOWN if phrase in low), "")


def _known(text: str) -> str:
    phrase = _phrase(text.lower())
    return phrase + _figures(text) if phrase else "its reason is not passed on, it may quote the request"


def _figures(text: str) -> str:
    found = re.findall(r"\b\d[\d.]{0,9} (?:[KMGT]i?B|tokens)\b", text)[:3]
    return f" ({', '.join(found)})" if found else ""


def _innermost(text: str) -> tuple[str, str, int]:
    """Message, type and code inside the engine's nested JSON, or the text itself."""
    try:
        inner = json.loads(text)["error"]
        if not isinstance(inner, dict):
            return str(inner), "", 0
        code = inner.get("code")
        kinds = f"{inner.get('type', '')} {'' if isinstance(code, int) else code or ''}"
        return str(inner.get("message", "")), kinds, code if isinstance(code, int) else 0
    except (ValueError, KeyError, TypeError, RecursionError):
        return text.strip(), "", 0
