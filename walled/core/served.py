"""What one worker serves, derived from the configuration: its share of slots, its models, what it may store.

May live here: arithmetic over configuration, models and answers. May not: adapters, sockets, clocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from walled.config import BackendConfig, Config
from walled.core.policy import aliases, meta_of
from walled.core.record import ModelMeta, Record
from walled.errors import BackendError, BootError, InternalError
from walled.payload import Answer, Options, Request, pack_answer
from walled.protocol import MAX_PAYLOAD_BYTES, ModelInfo


class Place(NamedTuple):
    """A worker's place among the workers of its backend."""

    name: str
    config: BackendConfig
    kind: str
    number: int
    """Among the workers of this backend, from 0."""
    slots: int


class Model(NamedTuple):
    """One model as the worker serves it."""

    info: ModelInfo
    meta: ModelMeta


def place(config: Config, slot: int, backend_name: str) -> Place:
    """Slot numbers run over the enabled backends in their order; the remainder of a backend's slots goes to
    its first workers."""
    first = 0
    for name, backend in config.enabled_backends().items():
        if name == backend_name and first <= slot < first + backend.workers:
            index = slot - first
            share, rest = divmod(backend.slots, backend.workers)
            kind = str(backend.__struct_config__.tag)
            return Place(name, backend, kind, index, share + (1 if index < rest else 0))
        first += backend.workers
    raise BootError(f'worker {slot} is told to run backend "{backend_name}", which has no such worker')


def default_options(backend: BackendConfig) -> Options | None:
    """The backend's default_options, None when there are none."""
    return msgspec.convert(backend.default_options, Options) if backend.default_options else None


def with_defaults(request: Request, defaults: Options) -> Request:
    """The request with the defaults where it gives no option of its own."""
    given = request.options
    missing = {
        name: getattr(defaults, name)
        for name in Options.__struct_fields__
        if getattr(given, name) in (None, ()) and getattr(defaults, name) not in (None, ())
    }
    if not missing:
        return request
    return msgspec.structs.replace(request, options=msgspec.structs.replace(given, **missing))


def models(
    config: Config,
    where: Place,
    defaults: Options | None,
    infos: Iterable[ModelInfo],
    rules: Callable[[str], str] | None = None,
) -> dict[str, Model]:
    """The models by name. Default options change answers without being in the payload, so they are made part
    of the digest here, for every adapter. So do rules (`rules`: the version of those a model's answers are
    judged by): what was stored under others is not found any more."""
    served = {}
    for info in infos:
        if defaults is not None:
            packed = msgspec.msgpack.encode(defaults)
            info = msgspec.structs.replace(
                info, digest=f"{info.digest[:200]}+{hashlib.sha256(packed).hexdigest()[:16]}"
            )
        version = rules(info.name) if rules is not None else ""
        if version:
            info = msgspec.structs.replace(info, digest=f"{info.digest[:220]}+{version}")
        served[info.name] = Model(info, meta_of(config, where.name, where.kind, info))
    return served


def renewed(config: Config, where: Place, known: Mapping[str, Model]) -> dict[str, Model]:
    """The same models under a changed configuration of cache times and policies."""
    return {
        name: Model(model.info, meta_of(config, where.name, where.kind, model.info))
        for name, model in known.items()
    }


def metas(config: Config, where: Place, known: Mapping[str, Model]) -> list[ModelMeta]:
    """What clients need to compute keys with the daemon dead: one entry per model and per alias."""
    found = [model.meta for model in known.values()]
    for alias, name in aliases(config, where.name, tuple(known)).items():
        if name in known:
            found.append(msgspec.structs.replace(known[name].meta, name=alias))
    return found


def packed(answer: Answer, streamed_chars: int | None) -> bytes:
    """The bytes of an answer. Raises when it cannot travel, or is not what its stream said."""
    try:
        data = pack_answer(answer)
    except UnicodeEncodeError:
        raise BackendError("the model's answer is not valid Unicode") from None
    if len(data) > MAX_PAYLOAD_BYTES:
        raise BackendError(
            f"an answer of {len(data)} bytes; the protocol carries at most {MAX_PAYLOAD_BYTES}"
        )
    if streamed_chars is not None and streamed_chars != len(answer.text):
        raise InternalError("the backend's deltas do not join to its answer")
    return data


def worth_storing(answer: Answer, limit_asked: bool) -> bool:
    """Whether an answer is complete. One cut at a limit is complete only when the caller set that limit; an
    empty one never is."""
    if answer.finish_reason == "length" and not limit_asked:
        return False
    return bool(answer.text or answer.tool_calls or answer.embeddings)


def record(key: bytes, namespace: str, meta: ModelMeta, answer: bytes, now_s: float) -> Record:
    """The cache record of an answer made at `now_s` (unix seconds)."""
    return Record(
        key=key,
        created_s=now_s,
        fresh_until_s=now_s + meta.ttl_s,
        stale_until_s=now_s + max(meta.ttl_s, meta.stale_ttl_s),
        namespace=namespace,
        model=meta.name,
        backend=meta.backend,
        answer=answer,
    )
