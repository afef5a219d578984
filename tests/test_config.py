"""walled/config.py: what a file may say, how it is told what it may not, and that the example is the truth.

May live here: reading, checking, precedence of places, config.example.toml. May not: anything that runs.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from walled import config as cfg
from walled.errors import ConfigError

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "WALLED_RUN_DIR",
        "RUNTIME_DIRECTORY",
        "XDG_RUNTIME_DIR",
        "WALLED_CACHE_DIR",
        "CACHE_DIRECTORY",
    ):
        monkeypatch.delenv(name, raising=False)


def refusal(text: str) -> list[str]:
    """The lines of the ConfigError a TOML text gives, without their `file: `."""
    with pytest.raises(ConfigError) as caught:
        cfg.from_plain(tomllib.loads(text), "walled.toml")
    lines = caught.value.message.splitlines()
    assert all(line.startswith("walled.toml: ") for line in lines)
    return [line.removeprefix("walled.toml: ") for line in lines]


# --- unknown keys, wrong values ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("brokr.x = 1", "brokr: unknown key; did you mean `broker`?"),
        ("broker.hartbeat_s = 1", "broker.hartbeat_s: unknown key; did you mean `broker.heartbeat_s`?"),
        ("cache.zzz = 1", "cache.zzz: unknown key; valid keys: enabled, max_bytes, max_entries, path, "
                          "policy, refresh_ahead, stale_ttl_s, ttl_s"),
        ("backends.o = {kind = 'ollama', host = []}",
         "backends.o.host: unknown key; did you mean `backends.o.hosts`?"),
        ("models.a.tll_s = 1", "models.a.tll_s: unknown key; did you mean `models.a.ttl_s`?"),
        ("backends.o = {kind = 'olama'}",
         'backends.o.kind: expected one of "embedded", "ollama", "openai", "scripted", got \'olama\'; '
         'did you mean "ollama"?'),
        ("backends.o = {}",
         'backends.o.kind: expected one of "embedded", "ollama", "openai", "scripted", got None'),
        ("backends.o = {kind = 'openai'}", "backends.o.base_url: is missing; it has no default"),
        ("backends.o = 3", "backends.o: expected a table, got 3"),
        ("backends = []", "backends: expected a table, got an array"),
        ("broker = 'x'", "broker: expected a table, got a text"),
        ("models.a = true", "models.a: expected a table, got a boolean"),
        ("broker.heartbeat_s = '1'", "broker.heartbeat_s: Expected `float`, got `str`"),
        ("broker.heartbeat_s = true", "broker.heartbeat_s: Expected `float`, got `bool`"),
        ("broker.queue_max_requests = 1.5", "broker.queue_max_requests: Expected `int`, got `float`"),
        ("broker.queue_max_requests = 0", "broker.queue_max_requests: Expected `int` >= 1"),
        ("daemon.log_level = 'loud'",
         'daemon.log_level: expected one of "debug", "info", "warning", "error", got \'loud\''),
        ("backends.o = {kind = 'openai', base_url = 'http://x', capabilities = ['chat', 'tolls']}",
         'backends.o.capabilities[1]: expected one of "chat", "generate", "embed", "tools", "images", '
         "\"schema\", got 'tolls'; did you mean \"tools\"?"),
        ("backends.o = {kind = 'ollama', hosts = ['http://a', 3]}",
         "backends.o.hosts[1]: Expected `str`, got `int`"),
        ("backends.o = {kind = 'ollama', hosts = []}", "backends.o.hosts: Expected `array` of length >= 1"),
        ("backends.o = {kind = 'ollama', models = {a = ''}}",
         "backends.o.models.a: Expected `str` of length >= 1"),
        ("models.a.ttl_s = 1e12", "models.a.ttl_s: Expected `float` <= 31536000.0"),
        ("backend = 3", "backend: Expected `str | array`, got `int`"),
    ],
)  # fmt: skip
def test_wrong_keys_and_values_are_named(text: str, line: str) -> None:
    assert refusal(text) == [line]


def test_all_mistakes_are_told_at_once() -> None:
    lines = refusal("brokr.x = 1\nbackend = 3\n[cache]\nttl_s = 'long'\nmax_bytes = 1\n[models.a]\nx = 1")
    assert [line.split(":")[0] for line in lines] == [
        "brokr",
        "backend",
        "cache.ttl_s",
        "cache.max_bytes",
        "models.a.x",
    ]


FLOATS = [
    f"{section}.{field.name}"
    for section, struct in (("daemon", cfg.DaemonConfig), ("broker", cfg.BrokerConfig),
                            ("supervisor", cfg.SupervisorConfig), ("cache", cfg.CacheConfig),
                            ("monitor", cfg.MonitorConfig), ("backends.ollama", cfg.OllamaConfig),
                            ("backends.scripted", cfg.ScriptedConfig))
    for field in msgspec.structs.fields(struct)
    if isinstance(field.default, float)
]  # fmt: skip


@pytest.mark.parametrize("path", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_setting_takes_a_number_that_is_none(path: str, value: str) -> None:
    kind = {"ollama": "kind = 'ollama'", "scripted": "kind = 'scripted'"}.get(path.split(".")[1], "")
    section, _, key = path.rpartition(".")
    (line,) = refusal(f"[{section}]\n{kind}\n{key} = {value}")
    assert line.startswith(f"{path}: Expected `float`")


def test_there_are_floats_to_be_tested() -> None:
    assert len(FLOATS) > 30


# --- impossible combinations ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("backend = 'olama'", 'backend: no backend is named "olama"; did you mean "ollama"?'),
        ("backend = 'zzz'", 'backend: no backend is named "zzz"; known: auto, embedded, ollama'),
        ("backend = []", "backend: expected a name or a list of names, got an empty list"),
        ("backend = ['ollama', 'ollama']", "backend: a name stands twice in the list"),
        ("backend = ['auto', 'ollama']", 'backend: "auto" cannot stand in a list; write backend = "auto"'),
        ("backends.auto = {kind = 'ollama'}",
         'backends.auto: "auto" stands for a choice among backends; give yours another name'),
        ("backend = 's'\nbackends.s = {kind = 'scripted'}",
         'backend: "s" is scripted, it does not run a model; '
         "daemon.allow_scripted = true is needed to choose it"),
        ("backends.o = {kind = 'ollama', workers = 5}",
         "backends.o.slots: 4 slots cannot be shared by 5 workers; give each worker at least one"),
        ("cache = {ttl_s = 10, stale_ttl_s = 5}",
         "cache.stale_ttl_s: must not be shorter than cache.ttl_s"),
        ("broker.heartbeat_s = 2", "broker.worker_liveness_s: must be at least twice broker.heartbeat_s"),
        ("supervisor.backoff_initial_s = 20",
         "supervisor.backoff_max_s: must not be shorter than supervisor.backoff_initial_s"),
        ("models.a = {ttl_s = 9, stale_ttl_s = 8}",
         "models.a.stale_ttl_s: must not be shorter than models.a.ttl_s"),
        ("models.a = {alias_of = 'b', ttl_s = 8}",
         "models.a: an alias has no settings of its own; move them to models.b"),
        ("models.a = {alias_of = 'b'}\nmodels.b = {alias_of = 'c'}",
         "models.a.alias_of: b is an alias itself; name the real model"),
        ("models.a.alias_of = 'a'", "models.a.alias_of: a is an alias itself; name the real model"),
        ("cache.path = '~/cache'", "cache.path: ~ is not expanded here; write the whole path"),
        ('daemon.run_dir = "/a\\u0000b"', "daemon.run_dir: a path cannot hold a NUL character"),
        ("backends.e = {kind = 'embedded', model_path = '~/m.gguf'}",
         "backends.e.model_path: ~ is not expanded here; write the whole path"),
        ("backends.e = {kind = 'embedded', default_options = {temprature = 1}}",
         "backends.e.default_options.temprature: unknown option; did you mean `temperature`?"),
        ("backends.e = {kind = 'embedded', default_options = {temperature = 9}}",
         "backends.e.default_options.temperature: Expected `float` <= 5.0"),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work(text: str, line: str) -> None:
    assert refusal(text) == [line]


def test_a_loop_of_aliases_names_both_ends() -> None:
    lines = refusal("models.a.alias_of = 'b'\nmodels.b.alias_of = 'a'")
    assert [line.split(":")[0] for line in lines] == ["models.a.alias_of", "models.b.alias_of"]


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "127.0.0.1:11434", "http://", "ftp://x", "http://x:99999", "http://x:y", "http://[::1"],
)
def test_bad_urls_are_refused(url: str) -> None:
    (line,) = refusal(f"backends.o = {{kind = 'ollama', hosts = ['http://good', '{url}']}}")
    assert line == 'backends.o.hosts[1]: expected a URL such as "http://127.0.0.1:11434"'
    if url:
        (line,) = refusal(f"backends.o = {{kind = 'openai', base_url = '{url}'}}")
        assert line.startswith("backends.o.base_url: expected a URL")


@pytest.mark.parametrize("url", ["http://x", "https://x:8443/v1", "http://[::1]:11434", "http://10.0.0.1:1/"])
def test_good_urls_are_taken(url: str) -> None:
    cfg.from_plain(tomllib.loads(f"backends.o = {{kind = 'ollama', hosts = ['{url}']}}"))


def test_no_secret_is_repeated_in_an_error() -> None:
    for text in (
        "backends.o = {kind = 'ollama', hosts = ['http://u:hunter2@x']}",
        "backends.o = {kind = 'openai', base_url = 'http://x', api_key_env = 'sk-hunter2'}",
    ):
        (line,) = refusal(text)
        assert "hunter2" not in line


def test_a_host_that_stands_twice_is_refused() -> None:
    assert refusal("backends.o = {kind = 'ollama', hosts = ['http://a', 'http://a/']}") == [
        "backends.o.hosts: a host stands twice in the list"
    ]


# --- files ------------------------------------------------------------------------------------------


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read: No such file"):
        cfg.load(tmp_path / "gone.toml")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        cfg.load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"backend =", b"[broker\n", b"a = 1\na = 2\n", b"\xff\xfe", b"x = 'unfinished"]
)
def test_what_is_not_toml_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "walled.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"walled\.toml: not valid TOML"):
        cfg.load(path)


def test_no_file_means_the_defaults() -> None:
    assert cfg.load(None) == cfg.Config() == cfg.from_plain({})


# --- round trip -------------------------------------------------------------------------------------

FULL = """
backend = ["gpu", "ollama"]
default_model = "chat"
daemon = {run_dir = "/run/walled", allow_scripted = true}
backends.gpu = {kind = "openai", base_url = "http://gpu:8000/v1", models = {big = "meta/Llama-70B"}}
backends.o2 = {kind = "ollama", hosts = ["http://a", "http://b"], load_options = {num_gpu = 3}}
backends.s = {kind = "scripted", models = ["x", "y"], jitter = 1}
backends.e = {kind = "embedded", default_options = {temperature = 0.5, stop = ["END"]}}
models.chat.alias_of = "big"
models.big = {cache = "always", ttl_s = 60}
"""


@pytest.mark.parametrize("text", ["", FULL])
def test_plain_values_make_the_same_config_again(text: str) -> None:
    config = cfg.from_plain(tomllib.loads(text))
    plain = cfg.to_plain(config)
    assert cfg.from_plain(plain) == config
    # As it travels to a child: through MessagePack.
    assert cfg.from_plain(msgspec.msgpack.decode(msgspec.msgpack.encode(plain))) == config


def test_enabled_backends_keep_their_order() -> None:
    config = cfg.from_plain(tomllib.loads(FULL))
    assert list(config.enabled_backends()) == ["gpu", "ollama"]
    assert cfg.with_backend(cfg.Config(), "embedded").enabled_backends() == {"embedded": cfg.EmbeddedConfig()}


def test_a_listed_backend_replaces_the_built_in_one() -> None:
    config = cfg.from_plain(
        tomllib.loads("backend = 'ollama'\nbackends.ollama = {kind = 'ollama', slots = 9}")
    )
    assert config.enabled_backends()["ollama"].slots == 9


# --- places -----------------------------------------------------------------------------------------


def test_run_dir_by_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = cfg.Config()
    assert cfg.run_dir(config).parent == tmp_path
    assert re.fullmatch(r"walled-\d+", cfg.run_dir(config).name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert cfg.run_dir(config) == Path("/run/user/7/walled")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/walled:/run/other")
    assert cfg.run_dir(config) == Path("/run/walled")
    monkeypatch.setenv("WALLED_RUN_DIR", "/run/mine")
    assert cfg.run_dir(config) == Path("/run/mine")
    named = cfg.from_plain({"daemon": {"run_dir": "/run/named"}})
    assert cfg.run_dir(named) == Path("/run/named")


def test_cache_dir_by_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    config = cfg.Config()
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/u/.cache")
    assert cfg.cache_dir(config) == Path("/home/u/.cache/walled")
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/walled:/x")
    assert cfg.cache_dir(config) == Path("/var/cache/walled")
    monkeypatch.setenv("WALLED_CACHE_DIR", "/var/cache/mine")
    assert cfg.cache_dir(config) == Path("/var/cache/mine")
    assert cfg.cache_dir(cfg.from_plain({"cache": {"path": "/named"}})) == Path("/named")


def test_relative_places_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert cfg.run_dir(cfg.from_plain({"daemon": {"run_dir": "r"}})) == tmp_path / "r"


def test_a_socket_path_is_measured_in_bytes_and_exactly() -> None:
    longest = max(cfg.Endpoints.__struct_fields__, key=len)
    room = cfg.MAX_SOCKET_PATH_BYTES - len(f"/{longest}.sock") - 1
    for directory in ("/" + "x" * room, "/" + "ñ" * (room // 2)):
        cfg.from_plain({"daemon": {"run_dir": directory}})
        (line,) = refusal(f"daemon.run_dir = '{directory}xx'")
        assert "at most 107 fit; choose a shorter directory" in line


def test_a_too_long_place_from_the_environment_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WALLED_RUN_DIR", "/" + "x" * 120)
    assert "choose a shorter directory" in refusal("")[0]


# --- config.example.toml ----------------------------------------------------------------------------

SWITCHED_OFF = re.compile(r"^#(?=[\w\[])", re.M)
NOT_DEFAULTS = {
    "backends.gpu-box.base_url": "required",
    "models.walled-demo.ttl_s": "follows cache.ttl_s",
    "models.walled-demo.stale_ttl_s": "follows cache.stale_ttl_s",
    "models.shop-assistant.alias_of": "an example",
    "routes.shop.targets": "required",
}


def switched_on() -> dict[str, Any]:
    return tomllib.loads(SWITCHED_OFF.sub("", EXAMPLE.read_text("utf-8")))


def test_the_example_as_shipped_is_the_defaults() -> None:
    assert cfg.load(EXAMPLE) == cfg.Config()


def test_every_setting_of_the_example_is_valid() -> None:
    config = cfg.from_plain(switched_on())
    assert set(config.backends) == {"embedded", "ollama", "gpu-box", "script"}


def test_the_example_lists_every_key_and_no_other() -> None:
    data = switched_on()
    listed = {("Config", key) for key in data}
    wanted = {("Config", field.name) for field in msgspec.structs.fields(cfg.Config)}
    places: list[tuple[type[msgspec.Struct], list[dict[str, Any]]]] = [
        (cfg.DaemonConfig, [data["daemon"]]),
        (cfg.BrokerConfig, [data["broker"]]),
        (cfg.SupervisorConfig, [data["supervisor"]]),
        (cfg.CacheConfig, [data["cache"]]),
        (cfg.MonitorConfig, [data["monitor"]]),
        (cfg.MemoryConfig, [data["memory"]]),
        (cfg.AlertsConfig, [data["alerts"]]),
        (cfg.HealthConfig, [data["health"]]),
        (cfg.LadderConfig, [data["ladder"]]),
        (cfg.TemplatesConfig, [data["templates"]]),
        (cfg.RouteConfig, list(data["routes"].values())),
        (cfg.EmbeddedConfig, [data["backends"]["embedded"]]),
        (cfg.OllamaConfig, [data["backends"]["ollama"]]),
        (cfg.OpenAIConfig, [data["backends"]["gpu-box"]]),
        (cfg.ScriptedConfig, [data["backends"]["script"]]),
        (cfg.ModelConfig, list(data["models"].values())),
    ]
    for struct, tables in places:
        listed |= {(struct.__name__, key) for table in tables for key in table if key != "kind"}
        wanted |= {(struct.__name__, field.name) for field in msgspec.structs.fields(struct)}
    assert listed == wanted


def test_the_defaults_the_example_states_are_the_real_ones() -> None:
    data = switched_on()
    config = cfg.from_plain(data)
    differing = set()
    for name, table in data["backends"].items():
        backend: Any = config.backends[name]
        for field in msgspec.structs.fields(type(backend)):
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            if getattr(backend, field.name) != default:
                differing.add(f"backends.{name}.{field.name}")
        assert table["kind"] == type(backend).__struct_config__.tag
    for name in data["models"]:
        for field in msgspec.structs.fields(cfg.ModelConfig):
            if getattr(config.models[name], field.name) != field.default:
                differing.add(f"models.{name}.{field.name}")
    for name in data["routes"]:
        for field in msgspec.structs.fields(cfg.RouteConfig):
            if getattr(config.routes[name], field.name) != field.default:
                differing.add(f"routes.{name}.{field.name}")
    assert differing == set(NOT_DEFAULTS)
    assert msgspec.structs.replace(config, backends={}, models={}, routes={}) == cfg.Config()


def test_the_example_explains_every_setting_with_its_unit() -> None:
    settings = re.findall(r"^#(\w+) = (.*)$", EXAMPLE.read_text("utf-8"), re.M)
    assert len(settings) > 80
    for key, rest in settings:
        _, mark, comment = rest.partition("  # ") if "  # " in rest else rest.partition(" # ")
        assert mark, f"{key} is not explained"
        for suffix, unit in {"_s": "second", "_bytes": "bytes", "_tokens": "tokens"}.items():
            if key.endswith(suffix):
                assert unit in comment, (key, comment)
