"""What may be read from, stored in and shared through the cache, and how long an answer lives.

May live here: decisions over a request's policy, a model's policy and times given as arguments.
May not: LMDB, clocks, the byte form of records (record.py).

A clock that was set back must not make an answer immortal: a record from more than CLOCK_SLACK_S in the
future is dead, and is evicted first. Within the slack (two processes never read the clock in the same
microsecond, and NTP slews) it counts as new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from walled.config import Config, ModelConfig
from walled.core.record import ModelMeta, Record
from walled.payload import model_fingerprint
from walled.protocol import CachePolicy, ModelInfo

__all__ = [
    "NOTHING",
    "Freshness",
    "ModelMeta",
    "Plan",
    "aliases",
    "freshness",
    "meta_of",
    "plan",
    "wants_refresh",
]

CLOCK_SLACK_S: Final = 60.0

Freshness = Literal["fresh", "stale", "dead"]


class Plan(NamedTuple):
    """What one request may do with the cache."""

    read: bool
    """A fresh record may be the answer."""
    store: bool
    """A complete answer is stored."""
    coalesce: bool
    """May share a generation with an identical request in flight."""
    only: bool
    """Never generate: a fresh record or NotCached."""


NOTHING: Final = Plan(read=False, store=False, coalesce=False, only=False)


def plan(cache: CachePolicy, deterministic: bool, meta: ModelMeta | None) -> Plan:
    """The plan for a request of policy `cache`; `meta` is its model's, None when it is not known.

    Without `meta` there is no fingerprint and so no key: nothing is read, stored or shared.

    - default: read, store and share when the model's policy allows it for such a request;
    - always: the same whatever the model's policy says;
    - bypass: neither read nor store nor share;
    - refresh: generate and store, whatever is there; also a request that is not deterministic (it renews
      what `always` has stored), but not for a model whose policy is `never`. Shared, so that a hundred
      readers of one answer about to die cost one generation;
    - only: read whatever is stored, never generate.
    """
    if cache == "only":
        return Plan(read=meta is not None, store=False, coalesce=False, only=True)
    if meta is None or cache == "bypass":
        return NOTHING
    if cache == "refresh":
        renew = meta.policy != "never"
        return Plan(read=False, store=renew, coalesce=renew, only=False)
    rule = "always" if cache == "always" else meta.policy
    cacheable = rule == "always" or (rule == "deterministic" and deterministic)
    return Plan(read=cacheable, store=cacheable, coalesce=cacheable, only=False)


def freshness(record: Record, now_s: float) -> Freshness:
    """Whether a record may be an answer (fresh), a fallback (stale), or nothing (dead)."""
    if record.created_s > now_s + CLOCK_SLACK_S or not now_s < record.stale_until_s:
        return "dead"
    return "fresh" if now_s < record.fresh_until_s else "stale"


def wants_refresh(record: Record, now_s: float, refresh_ahead: float) -> bool:
    """Whether a hit on a fresh record should renew it in the background.

    True in the last `refresh_ahead` share of its fresh life. A stale record needs no hint: a request that
    finds one generates anyway.
    """
    left_s = record.fresh_until_s - now_s
    return 0 < left_s < refresh_ahead * (record.fresh_until_s - record.created_s)


def meta_of(config: Config, backend_name: str, kind: str, info: ModelInfo) -> ModelMeta:
    """The description of a model that a worker announced, under this configuration.

    `cache.enabled` does not enter: with the cache switched off identical requests still share a generation.
    """
    model = config.models.get(info.name, ModelConfig())
    ttl_s = config.cache.ttl_s if model.ttl_s is None else model.ttl_s
    stale_ttl_s = config.cache.stale_ttl_s if model.stale_ttl_s is None else model.stale_ttl_s
    return ModelMeta(
        name=info.name,
        backend=backend_name,
        fingerprint=model_fingerprint(kind, info.digest),
        policy=model.cache or config.cache.policy,
        ttl_s=ttl_s,
        stale_ttl_s=max(ttl_s, stale_ttl_s),
        refresh_ahead=config.cache.refresh_ahead,
    )


def aliases(config: Config, backend_name: str, model_names: Sequence[str]) -> dict[str, str]:
    """Alias -> name, for the models `model_names` of one backend ("auto" must be resolved in `config`).

    "default" stands for config.default_model wherever that is served, else for the first model of the first
    backend. A route stands for the model of its first target. An alias never takes the place of a model that
    really has that name.
    """
    names = set(model_names)
    found = {
        alias: model.alias_of
        for alias, model in config.models.items()
        if model.alias_of in names and alias not in names
    }
    for name, route in config.routes.items():
        backend, _, model = route.targets[0].partition("/")
        if backend == backend_name and model in names and name not in names:
            found[name] = model
    if "default" in names:
        return found
    if config.default_model:
        target = found.get(config.default_model, config.default_model)
        if target in names:
            found["default"] = target
    elif model_names and backend_name == next(iter(config.enabled_backends())):
        found.setdefault("default", model_names[0])
    return found
