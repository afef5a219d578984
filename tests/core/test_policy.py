"""What may be read, stored and shared, for how long, and under which names."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.config import from_plain
from walled.core.policy import (
    CLOCK_SLACK_S,
    NOTHING,
    ModelMeta,
    Plan,
    aliases,
    freshness,
    meta_of,
    plan,
    wants_refresh,
)
from walled.core.record import CacheRule, Record
from walled.payload import model_fingerprint
from walled.protocol import CachePolicy, ModelInfo

ALL = Plan(read=True, store=True, coalesce=True, only=False)
RENEW = Plan(read=False, store=True, coalesce=True, only=False)
ONLY = Plan(read=True, store=False, coalesce=False, only=True)


def meta(policy: CacheRule = "deterministic") -> ModelMeta:
    return ModelMeta(name="m", backend="b", fingerprint=bytes(32), policy=policy)


def record(created_s: float = 1000.0, ttl_s: float = 100.0, stale_ttl_s: float = 500.0) -> Record:
    return Record(
        bytes(32), created_s, created_s + ttl_s, created_s + stale_ttl_s, "default", "m", "b", b"\x80"
    )


@pytest.mark.parametrize(
    ("cache", "rule", "deterministic", "expected"),
    [
        ("default", "deterministic", True, ALL),
        ("default", "deterministic", False, NOTHING),
        ("default", "always", False, ALL),
        ("default", "never", True, NOTHING),
        ("always", "deterministic", False, ALL),
        ("always", "never", False, ALL),
        ("bypass", "always", True, NOTHING),
        ("refresh", "deterministic", True, RENEW),
        ("refresh", "deterministic", False, RENEW),
        ("refresh", "never", True, NOTHING),
        ("only", "deterministic", True, ONLY),
        ("only", "deterministic", False, ONLY),
        ("only", "never", False, ONLY),
    ],
)
def test_plan(cache: CachePolicy, rule: CacheRule, deterministic: bool, expected: Plan) -> None:
    assert plan(cache, deterministic, meta(rule)) == expected


@given(st.sampled_from(get_args(CachePolicy)), st.booleans())
def test_a_model_nobody_knows_has_no_key_so_nothing_is_done_with_it(
    cache: CachePolicy, deterministic: bool
) -> None:
    assert plan(cache, deterministic, None) == NOTHING._replace(only=cache == "only")


@given(
    st.sampled_from(get_args(CachePolicy)),
    st.booleans(),
    st.sampled_from(["deterministic", "always", "never"]),
)
def test_what_is_stored_may_be_shared_and_only_never_generates(
    cache: CachePolicy, deterministic: bool, rule: CacheRule
) -> None:
    found = plan(cache, deterministic, meta(rule))
    assert found.store == found.coalesce
    if found.only:
        assert not found.store


@pytest.mark.parametrize(
    ("now_s", "expected"),
    [
        (1000.0, "fresh"),
        (1099.9, "fresh"),
        (1100.0, "stale"),
        (1499.9, "stale"),
        (1500.0, "dead"),
        (1000.0 - CLOCK_SLACK_S, "fresh"),
        (999.9 - CLOCK_SLACK_S, "dead"),
        (0.0, "dead"),
    ],
)
def test_freshness(now_s: float, expected: str) -> None:
    assert freshness(record(), now_s) == expected


def test_without_ttl_an_answer_is_never_fresh() -> None:
    assert freshness(record(ttl_s=0.0), 1000.0) == "stale"
    assert freshness(record(ttl_s=0.0, stale_ttl_s=0.0), 1000.0) == "dead"


@given(st.floats(0, 4e9), st.floats(0, 4e9), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 4e9))
def test_no_answer_outlives_its_age_whatever_the_clock_did(
    created_s: float, now_s: float, ttl_s: float, more_s: float, later_s: float
) -> None:
    """Fresh, stale, dead in that order as time passes; and never alive for longer than stale_ttl + slack."""
    kept = record(created_s, ttl_s, ttl_s + more_s)
    order = ["fresh", "stale", "dead"]
    if now_s >= created_s and later_s >= now_s:
        assert order.index(freshness(kept, later_s)) >= order.index(freshness(kept, now_s))
    if freshness(kept, now_s) != "dead":
        assert created_s - CLOCK_SLACK_S <= now_s <= created_s + ttl_s + more_s


@pytest.mark.parametrize(
    ("now_s", "ahead", "expected"),
    [
        (1089.0, 0.1, False),
        (1091.0, 0.1, True),
        (1099.9, 0.1, True),
        (1100.0, 0.1, False),  # stale: whoever finds it generates anyway
        (1099.9, 0.0, False),  # switched off
        (1000.0, 1.0, False),
        (1000.1, 1.0, True),
    ],
)
def test_wants_refresh(now_s: float, ahead: float, expected: bool) -> None:
    assert wants_refresh(record(), now_s, ahead) is expected


def test_meta_follows_the_configuration_of_the_model() -> None:
    config = from_plain(
        {
            "backend": "embedded",
            "cache": {"ttl_s": 10, "stale_ttl_s": 20, "refresh_ahead": 0.5},
            "models": {"long": {"ttl_s": 100, "cache": "always"}, "short": {"ttl_s": 1, "stale_ttl_s": 2}},
        }
    )
    plain, long, short = (
        meta_of(config, "back", "embedded", ModelInfo(name=name, digest="d"))
        for name in ("x", "long", "short")
    )
    assert (plain.name, plain.backend, plain.policy) == ("x", "back", "deterministic")
    assert plain.fingerprint == model_fingerprint("embedded", "d")
    assert (plain.ttl_s, plain.stale_ttl_s, plain.refresh_ahead) == (10, 20, 0.5)
    assert (long.policy, long.ttl_s, long.stale_ttl_s) == ("always", 100, 100)
    assert (short.ttl_s, short.stale_ttl_s) == (1, 2)


def test_with_the_cache_off_identical_requests_still_share_a_generation() -> None:
    config = from_plain({"backend": "embedded", "cache": {"enabled": False}})
    meta = meta_of(config, "b", "embedded", ModelInfo(name="x", digest="d"))
    assert plan("default", True, meta).coalesce


def test_aliases() -> None:
    config = from_plain(
        {
            "backend": ["embedded", "ollama"],
            "models": {"chat": {"alias_of": "m1"}, "big": {"alias_of": "o1"}, "m2": {"alias_of": "m1"}},
        }
    )
    # m2 is served under its own name, which the alias m2 does not hide; `default`: the first backend's first
    assert aliases(config, "embedded", ["m1", "m2"]) == {"chat": "m1", "default": "m1"}
    assert aliases(config, "ollama", ["o1"]) == {"big": "o1"}
    assert aliases(config, "embedded", []) == {}


@pytest.mark.parametrize("chosen", ["o1", "big"])
def test_the_default_model_may_be_of_any_backend_and_may_be_named_by_its_alias(chosen: str) -> None:
    config = from_plain(
        {
            "backend": ["embedded", "ollama"],
            "default_model": chosen,
            "models": {"big": {"alias_of": "o1"}},
        }
    )
    assert aliases(config, "embedded", ["m1"]) == {}
    assert aliases(config, "ollama", ["o0", "o1"]) == {"big": "o1", "default": "o1"}


def test_a_model_really_named_default_is_the_default() -> None:
    config = from_plain({"backend": "embedded", "default_model": "x"})
    assert aliases(config, "embedded", ["default", "x"]) == {}
