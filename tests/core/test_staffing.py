"""What a configuration means for the supervisor, and what a reload may change."""

from __future__ import annotations

from typing import Any

import pytest

from walled import config as configuration
from walled.config import Config
from walled.core import staffing


def config(**sections: Any) -> Config:
    return configuration.from_plain(
        {
            "backend": ["a", "b"],
            "daemon": {"allow_scripted": True, "run_dir": "/run/w", **sections.pop("daemon", {})},
            "backends": {
                "a": {"kind": "scripted", "workers": 2, **sections.pop("a", {})},
                "b": {"kind": "ollama", **sections.pop("b", {})},
            },
            **sections,
        }
    )


def test_workers_are_numbered_through_all_backends() -> None:
    found = [(spec.role, spec.slot, spec.backend, spec.overlap) for spec in staffing.specs(config())]
    assert found == [
        ("broker", 0, "", True),
        ("monitor", 0, "", True),
        ("worker", 0, "a", True),
        ("worker", 1, "a", True),
        ("worker", 2, "b", False),
    ]


def changed(new: Config) -> set[int]:
    old = {spec.slot: spec for spec in staffing.specs(config()) if spec.role == "worker"}
    return {spec.slot for spec in staffing.specs(new) if spec.role == "worker" and old.get(spec.slot) != spec}


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (config(), set()),
        (config(cache={"ttl_s": 5.0}), set()),
        (config(models={"x": {"alias_of": "scripted"}}), set()),
        (config(b={"slots": 9}), {2}),
        (config(a={"tokens": 9}), {0, 1}),
        (config(a={"workers": 3}), {0, 1, 2, 3}),
    ],
)
def test_only_what_a_worker_cannot_be_told_replaces_it(new: Config, expected: set[int]) -> None:
    assert changed(new) == expected


def test_a_reload_keeps_what_is_fixed_for_life_and_names_it() -> None:
    new = config(
        daemon={"run_dir": "/run/other", "log_format": "json", "log_level": "debug"},
        cache={"path": "/elsewhere", "ttl_s": 5.0},
        broker={"queue_max_requests": 7},
    )
    merged, kept = staffing.merge(config(), new)
    assert kept == ("daemon.run_dir", "daemon.log_format", "cache.path")
    assert merged.daemon.run_dir == "/run/w"
    assert merged.daemon.log_level == "debug"
    assert merged.cache.path == ""
    assert merged.cache.ttl_s == 5.0
    assert merged.broker.queue_max_requests == 7


def test_every_key_named_as_fixed_exists() -> None:
    for section, keys in staffing.NEEDS_RESTART.items():
        for key in keys:
            assert hasattr(getattr(config(), section), key)


def test_auto_stays_what_it_was_found_to_be() -> None:
    auto = configuration.from_plain({})
    merged, kept = staffing.merge(configuration.with_backend(auto, "ollama"), auto)
    assert (merged.backend, kept) == ("ollama", ())


def test_auto_after_a_list_of_backends_is_not_guessed() -> None:
    merged, kept = staffing.merge(config(), configuration.from_plain({"daemon": {"run_dir": "/run/w"}}))
    assert merged.backend == ("a", "b")
    assert kept == ("daemon.allow_scripted", "backend")


def test_the_ready_line_names_models_and_backends() -> None:
    assert staffing.describe(config()) == "model scripted (a, scripted); every model of b, ollama"
    built_in = configuration.from_plain({"backend": "embedded"})
    assert staffing.describe(built_in) == "model walled-demo (embedded)"
    named = configuration.from_plain(
        {"backend": "e", "backends": {"e": {"kind": "embedded", "model_path": "/m/tiny.gguf"}}}
    )
    assert staffing.describe(named) == "model tiny (e, embedded)"
