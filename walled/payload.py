"""The semantic request and the whole answer: what is asked and what was said, packed canonically.

May live here: the typed request and answer, their one canonical byte form, the cache key over it.
May not: anything about delivery (deadline, priority, stream flag, model name): that is the header's
(protocol.py), because two deliveries of one question must have one key.

Canonical form (docs/protocol.md, "Payload"): a MessagePack map with keys in alphabetical order, every
field that equals its default left out, floats as float64, no negative zero, no NaN. JSON-valued fields
(`format`, `tools`, `tool_calls`) are carried as canonical JSON text, so nothing on the wire nests deeper
than the types below: a megabyte of empty maps is refused at its first element instead of costing 77 MB.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from walled.errors import BadRequest, TooLarge

KEY_VERSION = 1
MAX_MESSAGES = 4096
MAX_IMAGES = 16
MAX_INPUTS = 2048
MAX_STOPS = 16
MAX_JSON_BYTES = 256 * 1024
"""Cap on one JSON-valued field; parsed JSON costs up to about 20 times its text in memory."""
MAX_JSON_DEPTH = 64
"""Levels of lists and objects in one JSON-valued field."""

Kind = Literal["chat", "generate", "embed"]


class Options(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, frozen=True):
    """Sampling options. Absent means the model's own default, which is part of the model's digest."""

    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """Upper bound on generated tokens."""
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(ge=0, le=10)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    stop: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_STOPS)] = ()
    temperature: Annotated[float, msgspec.Meta(ge=0, le=5)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Message(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_IMAGES)] = ()
    """Encoded images (PNG, JPEG, WebP) as the backend takes them."""
    name: str = ""
    tool_call_id: str = ""
    tool_calls: str = ""
    """Canonical JSON text of the calls an assistant turn made; empty when none."""


NO_OPTIONS = Options()
_FLOAT_OPTIONS = ("frequency_penalty", "min_p", "presence_penalty", "repeat_penalty", "temperature", "top_p")


class Request(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, frozen=True):
    """What is asked of a model, and nothing about how the answer travels."""

    kind: Kind
    format: str = ""
    """"json", or the canonical JSON text of a JSON schema the answer must satisfy."""
    images: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_IMAGES)] = ()
    input: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_INPUTS)] = ()
    """Texts to embed (kind `embed`)."""
    messages: Annotated[tuple[Message, ...], msgspec.Meta(max_length=MAX_MESSAGES)] = ()
    options: Options = NO_OPTIONS
    prompt: str = ""
    system: str = ""
    tools: str = ""
    """Canonical JSON text of the list of tool definitions (OpenAI function schema)."""


class Usage(msgspec.Struct, omit_defaults=True, frozen=True):
    """Token counts as the backend reported them."""

    completion_tokens: int = 0
    prompt_tokens: int = 0


FinishReason = Literal["stop", "length", "tool_calls"]


class Validation(msgspec.Struct, omit_defaults=True, frozen=True):
    """What the validation rules found in an answer."""

    level: Literal["safe", "low", "medium", "high", "critical"] = "safe"
    reasons: tuple[str, ...] = ()
    """Names of the rules that matched, worst first."""
    score: int = 0
    """Risk, 0 to 100."""
    verdict: Literal["pass", "repair", "block"] = "pass"


class Answer(msgspec.Struct, omit_defaults=True, frozen=True):
    """A whole answer. The payload of every FINAL and of every cache record."""

    embeddings: tuple[bytes, ...] = ()
    """One little-endian float32 vector per input."""
    finish_reason: FinishReason = "stop"
    model: str = ""
    """The model that really answered, as its backend names it."""
    text: str = ""
    thinking: str = ""
    tool_calls: str = ""
    """Canonical JSON text of the calls; empty when none."""
    usage: Usage = Usage()
    validation: Validation | None = None
    """None when no rules were applied."""


# Sorted, because the classes declare required fields first and the wire's key order is the alphabet's.
_encoder = msgspec.msgpack.Encoder(order="sorted")
_request_decoder = msgspec.msgpack.Decoder(Request)
_answer_decoder = msgspec.msgpack.Decoder(Answer)


def canonical_json(value: Any, what: str) -> str:
    """The one JSON text for a value: sorted keys, no white space, UTF-8 kept. `what` names it in errors.

    Raises BadRequest when the value is not JSON or nests past MAX_JSON_DEPTH, TooLarge past MAX_JSON_BYTES.
    """
    _check_json_depth(value, what)
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BadRequest(f"{what} is not a JSON value: {exc}") from None
    _check_json_size(text, what)
    return text


def _check_json_size(text: str, what: str) -> None:
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise BadRequest(f"{what} is not valid Unicode (a lone surrogate)") from None
    if size > MAX_JSON_BYTES:
        raise TooLarge(f"{what} is {size} bytes of JSON; at most {MAX_JSON_BYTES} are taken")


def _check_json_depth(value: Any, what: str) -> None:
    """Level by level, without recursion: no depth can hurt us. A level holds each container once."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        inner: dict[int, Any] = {}
        for outer in level:
            if isinstance(outer, dict):
                items: Any = outer.values()
            elif isinstance(outer, list | tuple):
                items = outer
            else:
                continue
            inner.update((id(item), item) for item in items if isinstance(item, dict | list | tuple))
        if not inner:
            return
        level = list(inner.values())
    raise BadRequest(f"{what} nests deeper than {MAX_JSON_DEPTH} levels")


def request_from(fields: dict[str, Any]) -> Request:
    """A checked Request from plain Python values (lists, dicts, numbers).

    `format` and `tools` may be given as Python values; they become canonical JSON. Raises BadRequest with
    the path of the offending field, TooLarge past a cap.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    fmt = fields.get("format")
    if fmt is not None and fmt not in ("json", ""):
        fields["format"] = canonical_json(_parsed(fmt, "format"), "format")
    for name in ("tools",):
        if name in fields:
            value = _parsed(fields[name], name)
            fields[name] = canonical_json(value, name) if value else ""
    messages = fields.get("messages")
    if messages and isinstance(messages, (list, tuple)):
        fields["messages"] = [_message_fields(m) for m in messages]
    try:
        request = msgspec.convert(fields, Request)
    except (msgspec.ValidationError, OverflowError) as exc:
        raise BadRequest(f"request: {exc}") from None
    return checked(request)


def _message_fields(message: Any) -> Any:
    if isinstance(message, dict) and message.get("tool_calls"):
        calls = _parsed(message["tool_calls"], "tool_calls")
        return {**message, "tool_calls": canonical_json(calls, "tool_calls")}
    return message


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    if not value:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as exc:
        raise BadRequest(f"{what} is not valid JSON: {exc}") from None


def checked(request: Request) -> Request:
    """The request itself, when it makes sense; else BadRequest saying what is wrong and what to do."""
    if request.kind == "chat":
        if not request.messages:
            raise BadRequest("messages is empty; a chat needs at least one message")
        if request.prompt or request.input:
            raise BadRequest("a chat takes messages; prompt and input belong to generate and embed")
    elif request.kind == "generate":
        if not request.prompt:
            raise BadRequest("prompt is empty; generate needs a prompt")
        if request.messages or request.input:
            raise BadRequest("generate takes a prompt; messages and input belong to chat and embed")
    else:
        if not request.input:
            raise BadRequest("input is empty; embed needs at least one text")
        if request.messages or request.prompt:
            raise BadRequest("embed takes input; messages and prompt belong to chat and generate")
    options = request.options
    if options is not NO_OPTIONS:
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repeat_penalty",
            "presence_penalty",
            "frequency_penalty",
        ):
            value = getattr(options, name)
            if value is not None and not math.isfinite(value):
                raise BadRequest(f"options.{name} is {value}; a finite number is needed")
    return request


def pack_request(request: Request) -> bytes:
    """The canonical bytes of a request: equal meaning, equal bytes. Raises BadRequest on unencodable text."""
    options = canonical_options(request.options)
    if options is not request.options:
        request = msgspec.structs.replace(request, options=options)
    return pack_canonical(request)


def canonical_options(options: Options) -> Options:
    """The options as they are packed; the very same object when they are so already."""
    if options is NO_OPTIONS:
        return options
    # msgspec leaves a default out by identity: options in which nothing is set must be that very object
    return NO_OPTIONS if options == NO_OPTIONS else _positive_zeros(options)


def pack_canonical(request: Request) -> bytes:
    """`pack_request` of a request whose options went through `canonical_options`; every hit asks this."""
    try:
        return _encoder.encode(request)
    except UnicodeEncodeError:
        raise BadRequest("a text of the request is not valid Unicode (a lone surrogate)") from None


def _positive_zeros(options: Options) -> Options:
    """The options with every -0.0 made 0.0; the very same object when there is none."""
    for value in (
        options.temperature,
        options.top_p,
        options.min_p,
        options.repeat_penalty,
        options.presence_penalty,
        options.frequency_penalty,
    ):
        if value == 0 and str(value) != "0.0":  # -0.0, or an int where msgspec has not been
            break
    else:
        return options
    changes = {name: 0.0 for name in _FLOAT_OPTIONS if getattr(options, name) == 0}
    return msgspec.structs.replace(options, **changes)


def unpack_request(data: bytes | memoryview) -> Request:
    """Decode and check a payload. Raises BadRequest naming the offending field.

    Does not insist on canonical bytes: the key is over the bytes themselves, so a client that packs
    otherwise only loses hits.
    """
    try:
        request = checked(_request_decoder.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest(f"payload: {exc}") from None
    _check_json_texts(request)
    return request


def _check_json_texts(request: Request) -> None:
    """What a foreign client put into the JSON-valued fields, before an adapter parses it."""
    if request.format and request.format != "json":
        _check_json_text(request.format, "format")
    if request.tools:
        _check_json_text(request.tools, "tools")
    for message in request.messages:
        if message.tool_calls:
            _check_json_text(message.tool_calls, "tool_calls")


def _check_json_text(text: str, what: str) -> None:
    _check_json_size(text, what)
    _check_json_depth(_parsed(text, what), what)


def pack_answer(answer: Answer) -> bytes:
    """The canonical bytes of an answer."""
    return _encoder.encode(answer)


def unpack_answer(data: bytes | memoryview) -> Answer:
    """Decode an answer. Raises msgspec.DecodeError when the bytes are not one."""
    try:
        return _answer_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as exc:
        raise msgspec.DecodeError(str(exc)) from None


def deterministic(request: Request) -> bool:
    """Whether repeating the request must give the same answer: greedy, seeded, or an embedding."""
    options = request.options
    return request.kind == "embed" or options.temperature == 0 or options.seed is not None


def model_fingerprint(backend_kind: str, digest: str) -> bytes:
    """32 bytes that stand for "this model under these server-side settings" in every key.

    `digest` is the adapter's: weights plus every server-side setting that can change an answer.
    """
    return hashlib.sha256(f"walled-model\0{backend_kind}\0{digest}".encode()).digest()


def cache_key(namespace: str, fingerprint: bytes, payload: bytes) -> bytes:
    """SHA-256 over (key version, namespace, model fingerprint, canonical payload bytes); 32 bytes.

    The namespace is length-prefixed so that no two triples share a byte string.
    """
    hasher = key_hasher(namespace, fingerprint)
    hasher.update(payload)
    return hasher.digest()


def scope(namespace: str, context: Mapping[str, str]) -> str:
    """What stands for the namespace in a key: a context, which rules look at, makes it another one."""
    if not context:
        return namespace
    packed = _encoder.encode(dict(context))
    return f"{namespace}\0{hashlib.sha256(packed).hexdigest()[:32]}"


def key_hasher(namespace: str, fingerprint: bytes) -> hashlib._Hash:
    """`cache_key` up to the payload; copy it, update the copy with the payload, and its digest is the key."""
    name = namespace.encode()
    hasher = hashlib.sha256(b"walled-key\0%d\0%d\0" % (KEY_VERSION, len(name)))
    hasher.update(name)
    hasher.update(fingerprint)
    return hasher
