"""TOML -> one frozen Config, checked once, every error with file, key path and suggestion.

May live here: reading, the checks the schema (sections.py) cannot make, the paths derived from it.
May not: anything that acts on the configuration.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from walled import schema
from walled.errors import ConfigError
from walled.sections import (
    BUILT_IN_BACKENDS,
    AlertsConfig,
    BackendConfig,
    BrokerConfig,
    CacheConfig,
    Config,
    DaemonConfig,
    EmbeddedConfig,
    HealthConfig,
    LadderConfig,
    MemoryConfig,
    ModelConfig,
    MonitorConfig,
    OllamaConfig,
    OpenAIConfig,
    RouteConfig,
    ScriptedConfig,
    SupervisorConfig,
    TemplatesConfig,
    ValidationConfig,
)

__all__ = [
    "BUILT_IN_BACKENDS",
    "MAX_SOCKET_PATH_BYTES",
    "AlertsConfig",
    "BackendConfig",
    "BrokerConfig",
    "CacheConfig",
    "Config",
    "DaemonConfig",
    "EmbeddedConfig",
    "Endpoints",
    "HealthConfig",
    "LadderConfig",
    "MemoryConfig",
    "ModelConfig",
    "MonitorConfig",
    "OllamaConfig",
    "OpenAIConfig",
    "RouteConfig",
    "ScriptedConfig",
    "SupervisorConfig",
    "TemplatesConfig",
    "ValidationConfig",
    "cache_dir",
    "default_cache_dir",
    "default_run_dir",
    "endpoints",
    "from_plain",
    "known_backends",
    "load",
    "run_dir",
    "to_plain",
    "with_backend",
]

# Imported where used, because five processes pay for them at every start and need them hardly ever:
# platformdirs, tempfile, tomllib.

MAX_SOCKET_PATH_BYTES = 107
"""sun_path of Linux holds 108 bytes with its NUL; libzmq truncates silently past that."""


def known_backends(config: Config) -> dict[str, BackendConfig]:
    """All backends that `backend` may name."""
    return {**BUILT_IN_BACKENDS, **config.backends}


def load(path: str | Path | None) -> Config:
    """The checked configuration of a TOML file, or the defaults for None. Raises ConfigError."""
    if path is None:
        return from_plain({}, "defaults")
    import tomllib

    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror or exc}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from None
    return from_plain(data, str(path))


def from_plain(data: dict[str, Any], where: str = "config") -> Config:
    """A Config from plain values; `where` names their origin in errors. Raises ConfigError."""
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as exc:
        wrong = schema.problems(data, Config) or [str(exc)]
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in wrong)) from None
    problems = [f"{where}: {problem}" for problem in _impossible(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def to_plain(config: Config) -> dict[str, Any]:
    """Plain values from which `from_plain` makes the same Config again."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def with_backend(config: Config, name: str) -> Config:
    """The configuration with `auto` resolved to one backend."""
    return msgspec.structs.replace(config, backend=name)


# --- checks msgspec cannot make --------------------------------------------------------------------


def _impossible(config: Config) -> list[str]:
    """Combinations that can never work, one line each."""
    problems = []
    if config.memory.system_critical_percent < config.memory.system_percent:
        problems.append(
            f"memory.system_critical_percent: {config.memory.system_critical_percent:g} is below "
            f"memory.system_percent ({config.memory.system_percent:g})"
        )
    problems += _alert_problems(config)
    known = known_backends(config)
    names = (config.backend,) if isinstance(config.backend, str) else config.backend
    if not names:
        problems.append("backend: expected a name or a list of names, got an empty list")
    if "auto" in config.backends:
        problems.append('backends.auto: "auto" stands for a choice among backends; give yours another name')
    for name in names:
        if name == "auto":
            if not isinstance(config.backend, str):
                problems.append('backend: "auto" cannot stand in a list; write backend = "auto"')
            continue
        if name not in known:
            near = schema.nearest(name, [*known, "auto"])
            hint = f'did you mean "{near}"?' if near else f"known: {', '.join(sorted([*known, 'auto']))}"
            problems.append(f'backend: no backend is named "{name}"; {hint}')
            continue
        backend = known[name]
        if isinstance(backend, ScriptedConfig) and not config.daemon.allow_scripted:
            problems.append(
                f'backend: "{name}" is scripted, it does not run a model; '
                "daemon.allow_scripted = true is needed to choose it"
            )
    if len(set(names)) != len(names):
        problems.append("backend: a name stands twice in the list")
    for name, backend in known.items():
        if backend.slots < backend.workers:
            problems.append(
                f"backends.{name}.slots: {backend.slots} slots cannot be shared by {backend.workers} "
                "workers; give each worker at least one"
            )
        problems += _option_problems(backend, f"backends.{name}.default_options")
        problems += _address_problems(backend, f"backends.{name}")
    if config.cache.stale_ttl_s < config.cache.ttl_s:
        problems.append("cache.stale_ttl_s: must not be shorter than cache.ttl_s")
    if config.broker.worker_liveness_s < 2 * config.broker.heartbeat_s:
        problems.append("broker.worker_liveness_s: must be at least twice broker.heartbeat_s")
    if config.supervisor.backoff_max_s < config.supervisor.backoff_initial_s:
        problems.append("supervisor.backoff_max_s: must not be shorter than supervisor.backoff_initial_s")
    for name, model in config.models.items():
        if model.alias_of and config.models.get(model.alias_of, ModelConfig()).alias_of:
            problems.append(
                f"models.{name}.alias_of: {model.alias_of} is an alias itself; name the real model"
            )
        if model.alias_of and model != ModelConfig(alias_of=model.alias_of):
            problems.append(
                f"models.{name}: an alias has no settings of its own; move them to models.{model.alias_of}"
            )
        if model.ttl_s is not None and model.stale_ttl_s is not None and model.stale_ttl_s < model.ttl_s:
            problems.append(f"models.{name}.stale_ttl_s: must not be shorter than models.{name}.ttl_s")
    for key, text in _paths(config).items():
        if "\0" in text:
            problems.append(f"{key}: a path cannot hold a NUL character")
        elif text.startswith("~"):
            problems.append(f"{key}: ~ is not expanded here; write the whole path")
    path = run_dir(config) / "metrics.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        problems.append(
            f"daemon.run_dir: socket path {path} is {len(os.fsencode(path))} bytes, at most "
            f"{MAX_SOCKET_PATH_BYTES} fit; choose a shorter directory"
        )
    return problems


def _alert_problems(config: Config) -> list[str]:
    problems = []
    for field in msgspec.structs.fields(HealthConfig):
        _, good, bad = getattr(config.health, field.name)
        if good >= bad:
            problems.append(
                f"health.{field.name}: the good knee ({good:g}) is not below the bad one ({bad:g})"
            )
    alerts = config.alerts
    for key, urls in (("webhooks", alerts.webhooks), ("alertmanagers", alerts.alertmanagers)):
        for name, url in urls.items():
            if problem := _url_problem(url):
                problems.append(f"alerts.{key}.{name}: {problem}")
    if alerts.rules:
        from walled.core import builtin_alerts

        found = builtin_alerts.configured(alerts)
        problems += [line for line in found if isinstance(line, str)]
    return problems


def _option_problems(backend: BackendConfig, path: str) -> list[str]:
    from walled.payload import Options

    fields = [field.name for field in msgspec.structs.fields(Options)]
    problems = []
    for key in backend.default_options:
        if key not in fields:
            near = schema.nearest(key, fields)
            hint = f"did you mean `{near}`?" if near else f"valid keys: {', '.join(fields)}"
            problems.append(f"{path}.{key}: unknown option; {hint}")
    if not problems:
        try:
            msgspec.convert(backend.default_options, Options)
        except msgspec.ValidationError as exc:
            text, _, where = str(exc).partition(" - at `$")
            problems.append(f"{path}{where.rstrip('`')}: {text}")
    return problems


def _address_problems(backend: BackendConfig, path: str) -> list[str]:
    if isinstance(backend, OllamaConfig):
        found = [
            f"{path}.hosts[{number}]: {problem}"
            for number, host in enumerate(backend.hosts)
            if (problem := _url_problem(host))
        ]
        if len({host.rstrip("/") for host in backend.hosts}) != len(backend.hosts):
            found.append(f"{path}.hosts: a host stands twice in the list")
        return found
    if isinstance(backend, OpenAIConfig) and (problem := _url_problem(backend.base_url)):
        return [f"{path}.base_url: {problem}"]
    return []


def _url_problem(url: str) -> str:
    """Why a URL cannot be connected to; empty when it can. Never repeats a password in it."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        plain = parts.username is None
    except ValueError:  # the port is not a number up to 65535, or a bracket is missing
        sound, plain = "", True
    if not plain:
        return "a user name or password does not belong into the URL"
    return "" if sound else 'expected a URL such as "http://127.0.0.1:11434"'


def _paths(config: Config) -> dict[str, str]:
    found = {"daemon.run_dir": config.daemon.run_dir, "cache.path": config.cache.path}
    found["alerts.state_path"] = config.alerts.state_path
    for name, backend in config.backends.items():
        if isinstance(backend, EmbeddedConfig):
            found[f"backends.{name}.model_path"] = backend.model_path
    return found


# --- paths -----------------------------------------------------------------------------------------


def run_dir(config: Config) -> Path:
    """Where the sockets are. The same rule in daemon, client and walled-ctl."""
    return Path(config.daemon.run_dir).absolute() if config.daemon.run_dir else default_run_dir()


def default_run_dir() -> Path:
    """$WALLED_RUN_DIR, $RUNTIME_DIRECTORY (systemd), $XDG_RUNTIME_DIR/walled, or <tmp>/walled-<uid>."""
    for variable, suffix in (
        ("WALLED_RUN_DIR", ""),
        ("RUNTIME_DIRECTORY", ""),
        ("XDG_RUNTIME_DIR", "walled"),
    ):
        value = os.environ.get(variable, "").split(":")[0]
        if value:
            return Path(value, suffix).absolute()
    import tempfile

    uid = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir(), f"walled-{uid}")


def cache_dir(config: Config) -> Path:
    """Where the shared cache lives."""
    return Path(config.cache.path).absolute() if config.cache.path else default_cache_dir()


def default_cache_dir() -> Path:
    """$WALLED_CACHE_DIR, $CACHE_DIRECTORY (systemd), or the user's cache directory."""
    for variable in ("WALLED_CACHE_DIR", "CACHE_DIRECTORY"):
        value = os.environ.get(variable, "").split(":")[0]
        if value:
            return Path(value).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("walled"))


class Endpoints(msgspec.Struct, frozen=True):
    """The daemon's socket addresses, as ZeroMQ endpoints."""

    client: str
    worker: str
    control: str
    delta: str
    """PULL of the monitor: counters from broker and workers."""
    metrics: str
    """PUB of the monitor."""
    monitor: str
    """ROUTER of the monitor: questions about metrics and history."""
    tell: str
    """Not ZeroMQ's: a Unix datagram socket of the monitor, for what clients tell it."""


def endpoints(directory: Path) -> Endpoints:
    """The sockets below a run directory."""
    return Endpoints(*(f"ipc://{directory / name}.sock" for name in Endpoints.__struct_fields__))
