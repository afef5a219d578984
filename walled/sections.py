"""The schema of the configuration: every section, key, unit, default and range, as frozen structs.

May live here: types and their documentation. May not: reading, checks across keys, paths (config.py).
config.example.toml lists every key; a test compares it with this schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)]
SecondsOrZero = Annotated[float, msgspec.Meta(ge=0, le=365 * 86400)]
Slots = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Workers = Annotated[int, msgspec.Meta(ge=1, le=64)]
Beat = Annotated[float, msgspec.Meta(ge=0.01, le=60)]
EntryName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
UpstreamName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

Target = Annotated[str, msgspec.Meta(pattern=r"^[^/]+/.+$", max_length=512)]

Mode = Literal["auto", "ai_only", "template_only", "hybrid"]
Capability = Literal["chat", "generate", "embed", "tools", "images", "schema"]


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
    client_backlog_bytes: Annotated[int, msgspec.Meta(ge=64 * 1024)] = 1024 * 1024
    """Unread answers kept for one client beyond its socket; past this they are dropped, its running requests
    are cancelled, and it reads an error for each."""
    backlog_bytes: Annotated[int, msgspec.Meta(ge=64 * 1024)] = 32 * 1024 * 1024
    """The same for all clients together; past this the one with the most loses its own."""
    max_deadline_s: Seconds = 3600.0
    """Longer deadlines are shortened to this."""
    age_step_s: Seconds = 5.0
    """A request that was passed over for so long, for each class between, gets a fifth of the starts of the
    better class."""
    queue_patience: Annotated[float, msgspec.Meta(ge=0, le=10_000)] = 10.0
    """While a queue does not shorten, its requests wait at most so many times what an answer takes, or half
    of the time their callers gave when that is more, and then are refused; 0: until their deadlines."""
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
    hang_timeout_s: Annotated[float, msgspec.Meta(ge=0.75, le=3600)] = 3.5
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
    prometheus_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """Loopback port of the Prometheus endpoint; 0: none. Takes effect at the next start."""
    prometheus_token_env: str = ""
    """Environment variable that holds the bearer token scrapers must show; empty: none is wanted."""


class MemoryConfig(_Section, frozen=True, kw_only=True):
    """What is done before memory runs out (docs/operations.md)."""

    enabled: bool = True
    worker_budget_bytes: NonNegative = 0
    """Memory one worker may have for itself (USS); before it is used up the worker is replaced. 0: an equal
    part, for each worker, of `system_percent` of the machine's memory."""
    broker_budget_bytes: NonNegative = 1024 * 1024 * 1024
    """The same for the broker, which is not replaced; 0: none."""
    monitor_budget_bytes: NonNegative = 512 * 1024 * 1024
    """The same for the monitor, which is replaced; 0: none."""
    system_percent: Annotated[float, msgspec.Meta(ge=1, le=100)] = 75.0
    """With this share of the machine's memory in use all processes give back what they can do without."""
    system_critical_percent: Annotated[float, msgspec.Meta(ge=1, le=100)] = 90.0
    """With this share in use workers also run fewer requests at once and unload idle models."""
    psi_some_avg10: Annotated[float, msgspec.Meta(ge=0, le=100)] = 10.0
    """The same as `system_percent`, when somebody waited for memory in this percentage of the last 10 s
    (/proc/pressure/memory); 0: not looked at."""
    gc_every_requests: NonNegative = 1000
    """A worker looks for reference cycles after this many requests, when it is idle; 0: Python decides."""
    check_interval_s: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 1.0
    settle_s: SecondsOrZero = 5.0
    """Pause after a remedy that takes something from somebody, to see whether it helped."""


class LadderConfig(_Section, frozen=True, kw_only=True):
    """What a request may get instead of its model's answer, and when (docs/reliability.md)."""

    mode: Mode = "auto"
    """auto: every step; ai_only: what models said, now or earlier (stale); template_only: templates only;
    hybrid: the template first for the intents of `hybrid_intents`, the model for the rest."""
    hybrid_intents: tuple[EntryName, ...] = ()
    stale: bool = True
    """Serve a stored answer that is no longer fresh."""
    templates: bool = True
    reserve_s: Seconds = 0.25
    """This long before a request's deadline a lesser answer takes the place of one that has not come; at
    most a fifth of the deadline."""
    retry_budget: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    """Retries per request, over time, of each backend."""
    retry_pause_s: SecondsOrZero = 0.1
    """Pause before a retry at the same backend; doubles, jittered."""
    breaker_failures: Positive = 5
    """Failures in a row that open a backend's circuit breaker."""
    breaker_error_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """...or this share of failures among the last `breaker_window` endings."""
    breaker_window: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 20
    breaker_open_s: Seconds = 5.0
    """Pause until one probe is let through; doubles with every failed probe to `breaker_open_max_s`."""
    breaker_open_max_s: Seconds = 60.0


class RouteConfig(_Section, frozen=True, kw_only=True):
    """A name requests may use for an ordered list of places to run."""

    targets: Annotated[tuple[Target, ...], msgspec.Meta(min_length=1, max_length=16)]
    """"BACKEND/MODEL", tried in this order; one with another model than the first is a fallback model."""
    mode: Literal["", "auto", "ai_only", "template_only", "hybrid"] = ""
    """"" follows ladder.mode."""


class TemplatesConfig(_Section, frozen=True, kw_only=True):
    """Answers written beforehand, by intent."""

    builtin: bool = True
    """Use the marketplace set that ships with walled (English, Spanish)."""
    files: tuple[str, ...] = ()
    """TOML files with more intents; one of the same name replaces that of the set."""
    language: Annotated[str, msgspec.Meta(min_length=2, max_length=8)] = "en"
    """Where the language of the request cannot be told."""


class ValidationConfig(_Section, frozen=True, kw_only=True):
    """What answers must not say, and what happens to those that do (docs/validation.md)."""

    enabled: bool = False
    """Judge answers by rules before anybody sees them. Needs the extra `validation`."""
    builtin: bool = True
    """Use the marketplace rules that ship with walled (Spanish, English)."""
    files: tuple[str, ...] = ()
    """TOML files with more rules; one of the same name replaces that of the set."""
    canaries: tuple[Annotated[str, msgspec.Meta(min_length=6, max_length=256)], ...] = ()
    """Marks put into prompts that no answer may hold."""
    block_at: Annotated[int, msgspec.Meta(ge=1, le=100)] = 50
    """An answer of this score and more is withheld."""
    regenerations: Annotated[int, msgspec.Meta(ge=0, le=5)] = 1
    """How often a withheld answer is tried again for one request, when its deadline allows."""
    regenerate_budget: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    """Further tries per request, over time, of a worker."""
    regenerate_hint: Annotated[str, msgspec.Meta(max_length=2000)] = (
        "Your last reply was withheld because it broke these rules: {rules}. Answer again without contact "
        "details, links, personal data, pressure, or any way to pay or talk outside this platform."
    )
    """Put into the system prompt of a further try; {rules} stands for the names; "" for nothing."""
    holdback_chars: Annotated[int, msgspec.Meta(ge=0, le=4000)] = 120
    """Characters of a stream that wait until what follows them is known."""
    max_answer_chars: Annotated[int, msgspec.Meta(ge=1000, le=200_000)] = 50_000
    """A longer answer cannot be judged in time and is withheld."""
    json_schema: bool = True
    """Withhold an answer that is not what the request's `format` asks for."""
    may_skip: bool = False
    """A request with validation = "off" in its context is not judged."""
    prompt_max_chars: NonNegative = 0
    """Longer prompts are refused, all messages together; 0: no limit."""
    prompt_max_messages: NonNegative = 0
    """Prompts of more messages are refused; 0: no limit."""
    prompt_block_at: Annotated[int, msgspec.Meta(ge=0, le=100)] = 50
    """A prompt whose last user message has this score by the rules for prompts is refused; 0: never."""


class AlertsConfig(_Section, frozen=True, kw_only=True):
    """What is watched and who is told (docs/alerts.md)."""

    enabled: bool = True
    builtin: bool = True
    """Use the rules that ship with walled."""
    state_path: str = ""
    """File that keeps states, silences and history over a restart; "" is run_dir/alerts.state."""
    webhooks: dict[EntryName, str] = {}
    """Name -> URL that gets Alertmanager's webhook payload; a rule's action "webhook:NAME"."""
    alertmanagers: dict[EntryName, str] = {}
    """Name -> base URL of an Alertmanager; a rule's action "alertmanager:NAME"."""
    commands: dict[EntryName, Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=64)]] = {}
    """Name -> program and arguments, no shell; a rule's action "exec:NAME"."""
    action_timeout_s: Annotated[float, msgspec.Meta(ge=0.1, le=300)] = 5.0
    """An action that takes longer is given up; a program is killed."""
    actions_per_minute: Positive = 60
    """Of each action; what comes past it is counted and not done."""
    rules: dict[EntryName, dict[str, Any]] = {}
    """Rules of one's own, and changes to those that ship with walled, key by key."""


Knees = tuple[
    Annotated[float, msgspec.Meta(ge=0, le=100)],
    Annotated[float, msgspec.Meta(ge=0)],
    Annotated[float, msgspec.Meta(gt=0)],
]
"""(weight, good, bad): nothing is taken off up to good, `weight` points from bad on."""


class HealthConfig(_Section, frozen=True, kw_only=True):
    """What takes points off the health score: weight, good knee, bad knee of each indicator."""

    workers: Knees = (40.0, 0.0, 1.0)
    queue: Knees = (30.0, 2.0, 30.0)
    errors: Knees = (40.0, 0.001, 0.1)
    latency: Knees = (20.0, 3.0, 10.0)
    memory: Knees = (25.0, 0.75, 0.95)
    cpu: Knees = (10.0, 0.8, 1.0)
    descriptors: Knees = (20.0, 0.6, 0.95)
    breaker: Knees = (20.0, 0.0, 1.0)
    leak: Knees = (10.0, 1.0, 2.0)


class BackendBase(_Section, frozen=True, kw_only=True):
    workers: Workers = 1
    """Worker processes of this backend."""
    slots: Slots = 4
    """Requests the backend runs at once, all workers together; never exceeded."""
    adaptive_limit: bool = True
    """Hand it fewer than `slots` at once while its first tokens show that it queues inside."""
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
    validation: Literal["", "off"] = ""
    """"" follows validation.enabled."""


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
    memory: MemoryConfig = MemoryConfig()
    ladder: LadderConfig = LadderConfig()
    templates: TemplatesConfig = TemplatesConfig()
    validation: ValidationConfig = ValidationConfig()
    alerts: AlertsConfig = AlertsConfig()
    health: HealthConfig = HealthConfig()
    routes: dict[EntryName, RouteConfig] = {}
    backends: dict[EntryName, BackendConfig] = {}
    models: dict[EntryName, ModelConfig] = {}

    def enabled_backends(self) -> dict[str, BackendConfig]:
        """The chosen backends by name, in order. `auto` must have been resolved (config.with_backend)."""
        names = (self.backend,) if isinstance(self.backend, str) else self.backend
        known = {**BUILT_IN_BACKENDS, **self.backends}
        return {name: known[name] for name in names}


BUILT_IN_BACKENDS: dict[str, BackendConfig] = {"embedded": EmbeddedConfig(), "ollama": OllamaConfig()}
"""Those `backend` may name without their being listed."""
