"""docs/client.md and docs/cli.md tell the truth: examples run; verbs, fields, exit codes are there."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path

import click
import pytest
from walled_client import Client
from walled_client.calls import SettingFields
from walled_client.ctl import terminal
from walled_client.ctl.program import EPILOG, program

from tests.client.fake_broker import FakeBroker
from walled.payload import Options

ROOT = Path(__file__).parents[2]
CLIENT = (ROOT / "docs/client.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", CLIENT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(broker: FakeBroker, number: int, tmp_path: Path) -> None:
    example = tmp_path / f"example_{number + 1}.py"
    example.write_text(EXAMPLES[number], encoding="utf-8")
    runpy.run_path(str(example))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 6


def test_every_method_and_field_is_described() -> None:
    methods = [name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")]
    fields = [*SettingFields.__annotations__, *Options.__struct_fields__]
    for name in [*methods, *fields]:
        assert re.search(rf"`{name}[`(]|\b{name}\(", CLIENT), name


def test_every_verb_is_described() -> None:
    for name in program.verbs:
        assert f"`{name}" in CLI, name
        command = program.get_command(click.Context(program), name)
        if isinstance(command, click.Group):
            for verb in command.commands:
                assert f"{name} {verb}" in CLI or f"{name} [{verb}]" in CLI, (name, verb)


def test_every_schema_is_described() -> None:
    found = set()
    for path in (ROOT / "client/walled_client/ctl").glob("*.py"):
        found |= set(re.findall(r"walled\.[a-z_]+/\d", path.read_text(encoding="utf-8")))
    assert len(found) >= 8
    for schema in found:
        assert schema in CLI, schema


def test_every_exit_code_is_described() -> None:
    codes = [value for name, value in vars(terminal).items() if name.startswith("EXIT_")]
    assert len(codes) == 6
    for code in codes:
        assert f"| {code} |" in CLI
        assert f"  {code}  " in EPILOG
