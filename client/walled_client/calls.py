"""From the arguments of a call to payload bytes and a header; the same for both clients.

May live here: settings of a client, the fields a call takes, checking them, building payload and header.
May not: sockets, clocks, the cache.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, get_args

import msgspec

from walled.errors import BadRequest, TooLarge
from walled.payload import (
    MAX_MESSAGES,
    NO_OPTIONS,
    Kind,
    Message,
    Options,
    Request,
    canonical_options,
    checked,
    deterministic,
    pack_canonical,
    request_from,
)  # fmt: skip
from walled.protocol import (
    MAX_CONTEXT_BYTES,
    MAX_DEADLINE_MS,
    MAX_PAYLOAD_BYTES,
    CachePolicy,
    Context,
    Mode,
    Priority,
    RequestHeader,
)  # fmt: skip

Messages = str | Sequence[Mapping[str, Any] | Message]

MAX_RETRIES = 10
_POLICIES = get_args(CachePolicy)
_PRIORITIES = get_args(Priority)
_MODES = get_args(Mode)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a client applies to every call that does not say otherwise."""

    model: str = "default"
    deadline_s: float = 30.0
    priority: Priority = "normal"
    cache: CachePolicy = "default"
    local: bool = True
    """Read the shared cache in this process."""
    namespace: str = "default"
    session: str = ""
    mode: Mode = ""
    context: dict[str, str] = {}
    retries: int = 1


class SettingFields(TypedDict, total=False):
    """Fields of every call, and of `with_options`."""

    model: str
    deadline_s: float
    """Total time of the call in seconds; always finite."""
    priority: Priority
    cache: CachePolicy | bool
    """A cache policy; False: no reading in this process (the daemon still uses its cache); True: default."""
    namespace: str
    session: str
    mode: Mode
    """auto, ai_only, template_only or hybrid: what may answer; "" is the daemon's."""
    context: Mapping[str, str]
    """Facts (item, price, ...) for the slots of templates and for validation rules."""
    retries: int
    """How often a refused call is asked again after the daemon's retry_after_s, within its deadline."""


class OptionFields(SettingFields, total=False):
    """Sampling options; absent means the model's own default."""

    temperature: float | None
    max_tokens: int | None
    seed: int | None
    stop: str | Sequence[str]
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None


class TurnFields(OptionFields, total=False):
    """Fields of one turn of a conversation."""

    format: str | Mapping[str, Any]
    """"json", or a JSON schema the answer must satisfy."""
    tools: Sequence[Mapping[str, Any]]


class ChatFields(TurnFields, total=False):
    """Fields of chat."""

    system: str
    """System prompt; put in front of the messages."""


class GenerateFields(OptionFields, total=False):
    """Fields of generate."""

    system: str
    format: str | Mapping[str, Any]
    images: Sequence[bytes]


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A call made ready: what is asked, and under which settings."""

    settings: Settings
    kind: Kind
    payload: bytes
    deterministic: bool


_OPTIONS = frozenset(Options.__struct_fields__)
_SETTINGS = frozenset(SettingFields.__annotations__)
_CONTENT = {
    "chat": frozenset({"system", "format", "tools"}),
    "generate": frozenset({"system", "format", "images"}),
    "embed": frozenset[str](),
}
_MessageTuple = tuple[Message, ...]
_ROLES = frozenset(("system", "user", "assistant", "tool"))


def new_settings(changes: Mapping[str, Any], base: Settings = Settings()) -> Settings:  # noqa: B008 (frozen)
    """`base` with changes, checked. Raises BadRequest."""
    values: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    unknown = values.keys() - _SETTINGS
    if unknown:
        raise BadRequest(_unknown(sorted(unknown)[0], _SETTINGS))
    cache = values.get("cache")
    if cache is not None:
        if cache is True or cache is False:
            values["cache"], values["local"] = "default", cache
        elif cache not in _POLICIES:
            raise BadRequest(f"cache: expected one of {', '.join(_POLICIES)}, True or False, got {cache!r}")
    if values.get("mode", "") not in _MODES:
        raise BadRequest(f"mode: expected one of {', '.join(_MODES[1:])}, got {values['mode']!r}")
    if "context" in values:
        values["context"] = _context(values["context"])
    if values.get("priority", "normal") not in _PRIORITIES:
        raise BadRequest(f"priority: expected one of {', '.join(_PRIORITIES)}, got {values['priority']!r}")
    deadline_s = values.get("deadline_s", 1.0)
    if not isinstance(deadline_s, (int, float)) or not 0 < deadline_s <= MAX_DEADLINE_MS / 1000:
        raise BadRequest(
            f"deadline_s: expected seconds, over 0 and at most {MAX_DEADLINE_MS // 1000}, got {deadline_s!r}"
        )
    for name, longest in (("model", 256), ("namespace", 128), ("session", 128)):
        value = values.get(name, "x")
        if not isinstance(value, str) or len(value) > longest:
            raise BadRequest(f"{name}: expected a text of at most {longest} characters")
    retries = values.get("retries", 0)
    if type(retries) is not int or not 0 <= retries <= MAX_RETRIES:
        raise BadRequest(f"retries: expected 0 to {MAX_RETRIES}, got {retries!r}")
    if values.get("model", "x") == "":
        raise BadRequest('model is empty; "default" is always a model')
    return msgspec.structs.replace(base, **values)


def chat(settings: Settings, messages: Messages, fields: Mapping[str, Any]) -> Asked:
    """Raises BadRequest, TooLarge."""
    settings, options, content = _split(settings, fields, "chat") if fields else (settings, NO_OPTIONS, None)
    turns: tuple[Message, ...]
    if isinstance(messages, str):
        turns = (Message(role="user", content=messages),)
    else:
        try:
            turns = _plain_turns(messages) or msgspec.convert(messages, _MessageTuple)
        except (msgspec.ValidationError, TypeError):
            # The slow way knows more forms (tool calls as plain values) and names what is wrong.
            turns = request_from(
                {"kind": "chat", "messages": [_plain(m) for m in _listed(messages)]}
            ).messages
    if content is None:
        request = Request(kind="chat", messages=turns, options=options)
    else:
        system = content.pop("system", "")
        if system:
            turns = (Message(role="system", content=_text(system, "system")), *turns)
        if content:
            # Only format and tools need their values brought into canonical form.
            shaped = request_from({"kind": "chat", "messages": ({"role": "user"},), **content})
            request = Request(
                kind="chat", messages=turns, options=options, format=shaped.format, tools=shaped.tools
            )
        else:
            request = Request(kind="chat", messages=turns, options=options)
    if not turns:
        checked(request)  # says what is wrong
    return _asked(settings, request)


def _plain_turns(messages: Any) -> tuple[Message, ...] | None:
    """The turns of a list of {"role", "content"} dicts at a third of the cost of a conversion; None: convert.

    Nearly every call looks so, and a hit in the cache is made of few steps as dear as this one.
    """
    turns = []
    if type(messages) is not list or len(messages) > MAX_MESSAGES:
        return None
    try:
        for message in messages:
            if type(message) is not dict or len(message) != 2:
                return None
            role, content = message["role"], message["content"]
            if role not in _ROLES or type(content) is not str:
                return None
            turns.append(Message(role, content))
    except (KeyError, TypeError):  # another key, or a role that cannot be looked up
        return None
    return tuple(turns)


def generate(settings: Settings, prompt: str, fields: Mapping[str, Any]) -> Asked:
    """Raises BadRequest, TooLarge."""
    settings, options, content = _split(settings, fields, "generate")
    request = request_from({"kind": "generate", "prompt": _text(prompt, "prompt"), **(content or {})})
    return _asked(settings, msgspec.structs.replace(request, options=options))


def embed(settings: Settings, texts: str | Iterable[str], fields: Mapping[str, Any]) -> Asked:
    """Raises BadRequest, TooLarge."""
    settings, _, _ = _split(settings, fields, "embed")
    inputs = [texts] if isinstance(texts, str) else _listed(texts)
    return _asked(settings, request_from({"kind": "embed", "input": inputs}))


def from_item(settings: Settings, item: str | Mapping[str, Any]) -> Asked:
    """One entry of a batch: a text, or the fields of a call with `messages`, `prompt` or `input`."""
    if isinstance(item, str):
        return chat(settings, item, {})
    if not isinstance(item, Mapping):
        raise BadRequest(f"a batch takes texts and mappings, got {type(item).__name__}")
    fields = dict(item)
    kinds = [name for name in ("messages", "prompt", "input") if name in fields]
    if len(kinds) != 1:
        raise BadRequest("a request of a batch has exactly one of messages, prompt and input")
    what = fields.pop(kinds[0])
    if kinds[0] == "messages":
        return chat(settings, what, fields)
    return generate(settings, what, fields) if kinds[0] == "prompt" else embed(settings, what, fields)


def header(asked: Asked, remaining_s: float, *, stream: bool, accept: bool = False) -> RequestHeader:
    """The header of a request with that much time left. `accept`: to be told of waiting, as streams are."""
    settings = asked.settings
    return RequestHeader(
        settings.model,
        max(1, int(remaining_s * 1000)),
        asked.kind,
        settings.priority,
        settings.cache,
        asked.deterministic,
        stream,
        stream or accept,
        False,
        settings.namespace,
        settings.session,
        settings.mode,
        settings.context,
        stream,
    )


def refresh_header(asked: Asked) -> RequestHeader:
    """The header of a request that only renews a cached answer."""
    settings = asked.settings
    return RequestHeader(
        model=settings.model,
        deadline_ms=max(1, int(settings.deadline_s * 1000)),
        kind=asked.kind,
        priority="batch",
        cache="refresh",
        deterministic=asked.deterministic,
        background=True,
        namespace=settings.namespace,
        session=settings.session,
        context=settings.context,
    )


def _asked(settings: Settings, request: Request) -> Asked:
    payload = pack_canonical(request)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise TooLarge(f"the request is {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} fit one message")
    return Asked(settings, request.kind, payload, deterministic(request))


def _split(
    settings: Settings, fields: Mapping[str, Any], kind: Kind
) -> tuple[Settings, Options, dict[str, Any] | None]:
    """Settings, options and content among the fields of a call."""
    if fields.keys() <= _OPTIONS and kind != "embed":
        return settings, _options(fields), None
    changes: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    content: dict[str, Any] | None = None
    allowed = _CONTENT[kind]
    for name, value in fields.items():
        if value is None:
            continue
        if name in _OPTIONS and kind != "embed":
            if options is None:
                options = {}
            options[name] = value
        elif name in _SETTINGS:
            if changes is None:
                changes = {}
            changes[name] = value
        elif name in allowed:
            if content is None:
                content = {}
            content[name] = value
        else:
            raise BadRequest(_unknown(name, allowed | _SETTINGS | (_OPTIONS if kind != "embed" else set())))
    if changes is not None:
        settings = new_settings(changes, settings)
    return settings, NO_OPTIONS if options is None else _options(options), content


def _options(given: Mapping[str, Any]) -> Options:
    """Checked and canonical. Raises BadRequest."""
    stop = given.get("stop", ())
    if stop is None or isinstance(stop, str):
        given = {**given, "stop": (stop,) if stop else ()}
    try:
        options = msgspec.convert(given, Options)
    except (msgspec.ValidationError, OverflowError) as exc:
        raise BadRequest(f"options: {exc}") from None
    plain = True
    for value in given.values():
        if not value:
            plain = plain and type(value) is int  # None, an empty text, -0.0: what is packed may be another
        elif value != value:  # NaN passes every range  # noqa: PLR0124
            name = next(name for name in given if given[name] is value)
            raise BadRequest(f"options.{name} is {value}; a finite number is needed")
    return options if plain else canonical_options(options)


def _context(given: Any) -> dict[str, str]:
    try:
        context = msgspec.convert(given, Context)
    except msgspec.ValidationError as exc:
        raise BadRequest(f"context: {exc}; up to 32 names with texts of up to 512 characters") from None
    if len(msgspec.msgpack.encode(context)) > MAX_CONTEXT_BYTES:
        raise BadRequest(f"context: more than {MAX_CONTEXT_BYTES} bytes; give what rules and templates need")
    return context


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known))}"
    return f"{name}: unknown field of this call; {hint}"


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{what}: expected a text, got {type(value).__name__}")
    return value


def _listed(value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        raise BadRequest(f"expected a list, got {type(value).__name__}") from None


def _plain(message: Any) -> Any:
    return msgspec.to_builtins(message) if isinstance(message, Message) else message
