"""The bench commands from end to end, in their quick form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from walled_bench.command import bench
from walled_bench.daemon import Daemon, DaemonFailed, scripted, toml

EXPECTED = {
    "hits": "cache hit, client / bare floor",
    "misses": "requests answered at 64",
    "streams": "tokens relayed over 10 streams",
    "starts": "spawn to READY, scripted backend",
    "conversations": "3 conversations: share of answers complete",
    "kills": "kills: requests without exactly one ending",
}


@pytest.mark.process
@pytest.mark.parametrize("part", EXPECTED)
def test_every_part_measures_something(part: str, tmp_path: Path) -> None:
    if part == "conversations":
        pytest.importorskip("xllamacpp")
    output = tmp_path / "core.json"
    result = CliRunner().invoke(bench, ["core", "--quick", "--only", part, "--output", str(output)])
    assert result.exit_code == 0, result.output
    figures = {each["name"]: each for each in json.loads(output.read_text())}
    assert figures[EXPECTED[part]]["goal"]
    assert all(each["value"] is not None for each in figures.values())
    assert EXPECTED[part] in result.output
    assert "load" in result.output


@pytest.mark.process
def test_overload_measures_both_sides(tmp_path: Path) -> None:
    output = tmp_path / "overload.json"
    result = CliRunner().invoke(bench, ["overload", "--quick", "--output", str(output)])
    assert result.exit_code == 0, result.output
    figures = {each["name"]: each for each in json.loads(output.read_text())}
    assert all(each["value"] is not None for each in figures.values())
    assert figures["goodput at 4 x / peak, walled"]["goal"]
    assert figures["goodput at 4 x / peak, straight to the backend"]["value"] > 0
    assert figures["refusal at 4 x, p99"]["n"] > 0


@pytest.mark.process
def test_what_the_views_cost_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("textual")
    output = tmp_path / "views.json"
    result = CliRunner().invoke(bench, ["views", "--quick", "--output", str(output)])
    assert result.exit_code == 0, result.output
    figures = {each["name"]: each for each in json.loads(output.read_text())}
    assert figures["top at 80 x 24: share of a core"]["goal"] == "<= 2"
    assert figures["top at 200 x 50: written to the terminal"]["value"] > 0


def test_an_unknown_part_is_refused_before_anything_runs(tmp_path: Path) -> None:
    output = tmp_path / "core.json"
    result = CliRunner().invoke(bench, ["core", "--only", "nonsense", "--output", str(output)])
    assert result.exit_code == 2
    assert "nonsense" in result.output
    assert not output.exists()


@pytest.mark.process
def test_a_daemon_that_cannot_start_says_why_and_leaves_nothing() -> None:
    daemon = Daemon({**scripted(), "backend": "no such backend"})
    with pytest.raises(DaemonFailed, match="no such backend"), daemon:
        pass
    assert daemon.directory is not None
    assert not daemon.directory.exists()


def test_a_configuration_survives_its_toml() -> None:
    import tomllib

    config = {
        "backend": ["a", "b"], "daemon": {"run_dir": '/with "quotes"', "allow": True},
        "backends": {"two words": {"kind": "scripted", "token_s": 0.001, "models": ["x"]}},
    }  # fmt: skip
    assert tomllib.loads(toml(config)) == config
