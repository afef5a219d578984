"""Which posts a configuration means, and what of a new configuration can be had without a restart.

May live here: Config -> Specs and Settings, the table of reloadable keys. May not: acting on them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from walled import config as configuration
from walled.config import Config
from walled.core import restart
from walled.core.posts import Settings, Spec

NEEDS_RESTART: dict[str, tuple[str, ...]] = {
    "daemon": ("run_dir", "log_format", "allow_scripted"),
    "cache": ("enabled", "path", "max_bytes", "max_entries"),
}
"""Section -> keys that are fixed for the life of the daemon. All other keys follow a reload."""

OWN_SLOTS = ("embedded", "scripted")
"""Kinds whose every worker brings its own slots: old and new may run side by side. The others share a
server's slots, which must never be exceeded."""


def specs(config: Config) -> tuple[Spec, ...]:
    """The posts to fill; workers are numbered through all enabled backends, in order."""
    found = [Spec("broker", 0), Spec("monitor", 0)]
    slot = 0
    for name, backend in config.enabled_backends().items():
        section = msgspec.to_builtins(backend)
        for index in range(backend.workers):
            found.append(
                Spec(
                    "worker",
                    slot,
                    name,
                    overlap=backend.__struct_config__.tag in OWN_SLOTS,
                    settings={"section": section, "index": index},
                )
            )
            slot += 1
    return tuple(found)


def settings(config: Config) -> Settings:
    """The numbers the supervisor obeys."""
    section = config.supervisor
    return Settings(
        restart.Limits(
            section.restart_intensity,
            section.restart_period_s,
            section.backoff_initial_s,
            section.backoff_max_s,
        ),
        section.start_timeout_s,
        section.hang_timeout_s,
        section.stop_timeout_s,
        config.daemon.drain_timeout_s,
    )


def merge(running: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """What to run after a reload, and the changed keys that stay as they were until a restart.

    All processes must agree on those, the ones born later included, so the running value is kept.
    """
    kept: list[str] = []
    for section, keys in NEEDS_RESTART.items():
        old_part, new_part = getattr(running, section), getattr(new, section)
        changes: dict[str, Any] = {
            key: getattr(old_part, key) for key in keys if getattr(old_part, key) != getattr(new_part, key)
        }
        if changes:
            kept += [f"{section}.{key}" for key in changes]
            new = msgspec.structs.replace(new, **{section: msgspec.structs.replace(new_part, **changes)})
    if new.backend == "auto":
        # Looking for an Ollama again would block, and a daemon that changes its engine by itself surprises.
        new = msgspec.structs.replace(new, backend=running.backend)
        if running.backend not in configuration.BUILT_IN_BACKENDS:
            kept.append("backend")
    return new, tuple(kept)


def describe(config: Config) -> str:
    """The enabled backends in a few words, for the line that says the daemon is ready."""
    words = []
    for name, backend in config.enabled_backends().items():
        kind = str(backend.__struct_config__.tag)
        label = kind if name == kind else f"{name}, {kind}"
        if isinstance(backend, configuration.EmbeddedConfig):
            stem = backend.model_path.rpartition("/")[2].removesuffix(".gguf")
            words.append(f"model {backend.model or stem or 'walled-demo'} ({label})")
        elif isinstance(backend, configuration.ScriptedConfig):
            words.append(f"model {backend.model} ({label})")
        elif backend.models:
            words.append(f"models {', '.join(backend.models)} ({label})")
        else:
            words.append(f"every model of {label}")
    return "; ".join(words)
