"""Template files of the configuration, and the set in the cache file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from walled import config as cfg
from walled.adapters import cache_check, template_files
from walled.adapters.cache import CacheReader, CacheWriter
from walled.core.templates import Rules, unpack
from walled.errors import ConfigError

GOOD = '[intents.weather.en]\npatterns = ["rain"]\nvariants = ["Maybe."]\n'


def config(**sections: object) -> cfg.Config:
    return cfg.from_plain(sections)


def test_the_builtin_set_and_files_on_top(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    found = template_files.load(config(templates={"files": [str(path)], "language": "es"}))
    assert {"greeting", "weather", "fallback"} <= set(found.intents)
    assert found.language == "es"
    alone = template_files.load(config(templates={"builtin": False, "files": [str(path)]}))
    assert alone.intents == ("weather",)


def test_the_ladder_is_published_with_them() -> None:
    found = template_files.load(
        config(
            ladder={"mode": "hybrid", "hybrid_intents": ["greeting"], "stale": False},
            routes={"shop": {"targets": ["embedded/x"], "mode": "ai_only"}},
        )
    )
    copy = unpack(found.pack())
    assert copy is not None
    assert copy.rules == Rules(
        mode="hybrid", hybrid_intents=("greeting",), stale=False, route_modes={"shop": "ai_only"}
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("[x", "not valid TOML"),
        (GOOD.replace("variants", "variant"), "intents.weather.en.variant: unknown key"),
    ],
)
def test_a_broken_file_is_named_and_the_daemon_does_not_start(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        template_files.load(config(templates={"files": [str(path)]}))
    assert str(path) in caught.value.message
    main = tmp_path / "walled.toml"
    main.write_text(f'[templates]\nfiles = ["{path}"]\n')
    done = subprocess.run(
        [sys.executable, "-m", "walled", "--config", str(main), "--check"], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert problem in done.stderr.decode()


def test_a_hybrid_intent_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"ladder.hybrid_intents: no template has the intent greting"):
        template_files.load(config(ladder={"hybrid_intents": ["greting"]}))


# --- in the cache file ----------------------------------------------------------------------------------


def test_published_templates_are_read_also_from_a_read_only_file(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "c", max_bytes=1 << 20, max_entries=10)
    assert writer.templates() is None
    assert writer.put_templates(b"one")
    assert writer.templates() == b"one"
    assert writer.put_templates(b"two" * 10_000)
    writer.close()
    os.chmod(tmp_path / "c/data.mdb", 0o440)
    reader = CacheReader(tmp_path / "c")
    first = reader.templates()
    assert first == b"two" * 10_000
    assert reader.templates() is first
    reader.close()
    os.chmod(tmp_path / "c/data.mdb", 0o640)
    assert cache_check.vet(tmp_path / "c", 10.0).status == "sound"
    reader = CacheReader(tmp_path / "c")
    assert reader.templates() == first
    reader.close()


def test_no_cache_no_templates(tmp_path: Path) -> None:
    reader = CacheReader(tmp_path / "nothing")
    assert reader.templates() is None
    reader.close()
