"""TOML -> one frozen Config, checked once, every error with file, key path and suggestion.

May live here: the schema (keys, units, defaults, ranges), reading, checking, the paths derived from it.
May not: anything that acts on the configuration. config.example.toml lists every key; a test compares it
with this schema.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from walled import schema
from walled.errors import ConfigError

# Imported where used, because five processes pay for them at every start and need them hardly ever:
# platformdirs, tempfile, tomllib.

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)]
SecondsOrZero = Annotated[float, msgspec.Meta(ge=0, le=365 * 86400)]
Slots = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Workers = Annotated[int, msgspec.Meta(ge=1, le=64)]
Beat = Annotated[float, msgspec.Meta(ge=0.01, le=60)]
EntryName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
UpstreamName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

Capability = Literal["chat", "generate", "embed", "tools", "images", "schema"]

MAX_SOCKET_PATH_BYTES = 107
"""sun_path of Linux holds 108 bytes with its NUL; libzmq truncates silently past that."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections."""


class DaemonConfig(_Section, frozen=True, kw_only=True):
    run_dir: str = ""
    """Directory of the sockets and the lock; "" means $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/walled, else
    a directory of the user below the system's temporary directory."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: SecondsOrZero = 30.0
    """Longest time SIGTERM waits for running requests."""
    allow_scripted: bool = False
    """The scripted backend answers from a script instead of a model; tests and benches switch it on."""


class BrokerConfig(_Section, frozen=True, kw_only=True):
    queue_max_requests: Positive = 2000
    queue_max_bytes: Positive = 64 * 1024 * 1024
    max_payload_bytes: Annotated[int, msgspec.Meta(ge=1024, le=32 * 1024 * 1024)] = 8 * 1024 * 1024
    max_deadline_s: Seconds = 3600.0
    """Longer deadlines are shortened to this."""
    age_step_s: Seconds = 5.0
    """A waiting request moves up one priority class per this many seconds."""
    min_residence_s: SecondsOrZero = 2.0
    """Shortest time a model stays loaded before another may take its place."""
    max_wait_s: Seconds = 10.0
    """Longest time the queue of a model that is not loaded waits for one that is."""
    heartbeat_s: Beat = 0.5
    worker_liveness_s: Seconds = 2.5
    """A worker not heard of for this long is given up, and its requests run elsewhere."""
    start_wait_s: SecondsOrZero = 10.0
    """How long a request may wait for a model whose workers are (re)starting."""


class SupervisorConfig(_Section, frozen=True, kw_only=True):
    restart_intensity: NonNegative = 20
    """More restarts of one child than this within `restart_period_s` and walled gives up on it."""
    restart_period_s: Seconds = 60.0
    backoff_initial_s: SecondsOrZero = 0.2
    """Pause before a second restart in a row; doubles, jittered, to `backoff_max_s`. The first has none."""
    backoff_max_s: Seconds = 10.0
    start_timeout_s: Seconds = 300.0
    """Longest time a child may take until it is ready (loading a big model from a slow disk)."""
    hang_timeout_s: Annotated[float, msgspec.Meta(ge=0.75, le=3600)] = 4.0
    """A child whose working loop has been silent for this long is killed and replaced."""
    stop_timeout_s: Seconds = 5.0
    """Between asking a child to stop and killing it."""


class CacheConfig(_Section, frozen=True, kw_only=True):
    enabled: bool = True
    path: str = ""
    """Directory of the cache; "" means $CACHE_DIRECTORY, else the user's cache directory."""
    max_bytes: Annotated[int, msgspec.Meta(ge=1024 * 1024)] = 256 * 1024 * 1024
    max_entries: Positive = 1000
    ttl_s: SecondsOrZero = 3600.0
    """Fresh for this long."""
    stale_ttl_s: SecondsOrZero = 86400.0
    """Kept as stale (served only as a fallback) until this age."""
    policy: Literal["deterministic", "always", "never"] = "deterministic"
    """What is cached unless a model or a request says otherwise: answers to deterministic requests
    (temperature 0, a seed, embeddings), all, none."""
    refresh_ahead: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    """A hit in the last tenth of its fresh life renews the answer in the background; 0 switches it off."""


class MonitorConfig(_Section, frozen=True, kw_only=True):
    publish_interval_s: Seconds = 1.0


class BackendBase(_Section, frozen=True, kw_only=True):
    workers: Workers = 1
    """Worker processes of this backend."""
    slots: Slots = 4
    """Requests the backend runs at once, all workers together; never exceeded."""
    first_token_timeout_s: Seconds = 120.0
    inter_token_timeout_s: Seconds = 30.0
    default_options: dict[str, Any] = {}
    """Sampling options (temperature, max_tokens, ...) used where a request gives none."""


class EmbeddedConfig(BackendBase, frozen=True, kw_only=True, tag="embedded", tag_field="kind"):
    """llama.cpp in the worker process."""

    model_path: str = ""
    """A GGUF file; "" means the built-in demonstration model."""
    model: str = ""
    """Name requests use; "" means the file's name without .gguf."""
    context_tokens: Annotated[int, msgspec.Meta(ge=128)] = 1024
    """Context window of each slot (llama.cpp's n_ctx is this times the slots of a worker)."""
    threads: Positive = 1
    """Inference threads of each worker."""
    embeddings: bool = False
    """Load the model for embeddings instead of text."""


class OllamaConfig(BackendBase, frozen=True, kw_only=True, tag="ollama", tag_field="kind"):
    """One or more Ollama servers."""

    hosts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=32)] = ("http://127.0.0.1:11434",)
    models: dict[EntryName, UpstreamName] = {}
    """Name requests use -> Ollama's name; empty serves every model the servers list under its own name."""
    pull: bool = False
    """Pull configured models the server does not have."""
    connections: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 10
    """Most open connections to each host."""
    connect_timeout_s: Seconds = 2.0
    keep_alive_s: Annotated[float, msgspec.Meta(ge=-1, le=365 * 86400)] = 1800.0
    """How long Ollama keeps an idle model loaded; negative means for ever."""
    context_tokens: NonNegative = 0
    """num_ctx, the same for every request of a model because a change reloads it; 0 leaves Ollama's own."""
    load_options: dict[str, Any] = {}
    """Further options of Ollama that take effect at load (num_gpu, num_thread, ...)."""
    max_loaded_models: NonNegative = 0
    """Models the server holds at once (its OLLAMA_MAX_LOADED_MODELS); 0 means no limit known."""
    health_interval_s: Seconds = 5.0
    probe_interval_s: Seconds = 60.0
    """How often an idle host is proved by a real one-token generation."""


class OpenAIConfig(BackendBase, frozen=True, kw_only=True, tag="openai", tag_field="kind"):
    """Any server with OpenAI's API: vLLM, llama-server, LM Studio, ..."""

    base_url: Annotated[str, msgspec.Meta(min_length=1)]
    """Up to and with /v1."""
    models: dict[EntryName, UpstreamName] = {}
    """Name requests use -> the server's name; empty serves every model it lists."""
    capabilities: tuple[Capability, ...] = ("chat", "generate")
    """What the models can do: chat, generate, embed, tools, images, schema. The API has no way to ask."""
    api_key_env: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""
    """Environment variable that holds the key; never the key itself."""
    connections: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 10
    connect_timeout_s: Seconds = 2.0
    max_loaded_models: NonNegative = 0


class ScriptedConfig(BackendBase, frozen=True, kw_only=True, tag="scripted", tag_field="kind"):
    """Answers from a script, for tests and benches; needs daemon.allow_scripted."""

    model: EntryName = "scripted"
    models: tuple[EntryName, ...] = ()
    """Further model names that answer the same."""
    tokens: NonNegative = 8
    text: str = ""
    """The answer; "" repeats the last user message, cut or repeated to `tokens` words."""
    first_token_s: SecondsOrZero = 0.0
    token_s: SecondsOrZero = 0.0
    load_s: SecondsOrZero = 0.0
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Seeded variation of all delays, as a share of them."""
    seed: NonNegative = 0
    max_loaded_models: NonNegative = 0
    swap_s: SecondsOrZero = 0.0
    """Time to load a model that is not loaded, when max_loaded_models limits them."""
    faults: bool = True
    """Obey fault directives in a prompt's last line, such as `!fail backend_error` (docs/testing.md)."""


BackendConfig = EmbeddedConfig | OllamaConfig | OpenAIConfig | ScriptedConfig


class ModelConfig(_Section, frozen=True, kw_only=True):
    """What is special about one model name; a name not listed here gets the defaults."""

    alias_of: str = ""
    cache: Literal["", "deterministic", "always", "never"] = ""
    """"" follows cache.policy."""
    ttl_s: SecondsOrZero | None = None
    stale_ttl_s: SecondsOrZero | None = None


class Config(_Section, frozen=True, kw_only=True):
    backend: str | tuple[str, ...] = "auto"
    """Name of the backend (or a list of names) to run, of those in [backends.*]. "embedded" and "ollama"
    exist without being listed. "auto": an Ollama that answers on 127.0.0.1:11434, else the built-in model."""
    default_model: str = ""
    """What the model name "default" stands for; "" means the first model of the first backend."""
    daemon: DaemonConfig = DaemonConfig()
    broker: BrokerConfig = BrokerConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    cache: CacheConfig = CacheConfig()
    monitor: MonitorConfig = MonitorConfig()
    backends: dict[EntryName, BackendConfig] = {}
    models: dict[EntryName, ModelConfig] = {}

    def enabled_backends(self) -> dict[str, BackendConfig]:
        """The chosen backends by name, in order. `auto` must have been resolved (see with_backend)."""
        names = (self.backend,) if isinstance(self.backend, str) else self.backend
        known = known_backends(self)
        return {name: known[name] for name in names}


BUILT_IN_BACKENDS: dict[str, BackendConfig] = {"embedded": EmbeddedConfig(), "ollama": OllamaConfig()}


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


def endpoints(directory: Path) -> Endpoints:
    """The sockets below a run directory."""
    return Endpoints(*(f"ipc://{directory / name}.sock" for name in Endpoints.__struct_fields__))
