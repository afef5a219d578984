"""walled-ctl config check and show; work without a daemon.

May live here: loading and showing. May not: what is valid (walled/config.py).
"""

from __future__ import annotations

import json
from typing import Any

import click

from walled import config
from walled.adapters import template_files
from walled.adapters.detect import rules_are_right
from walled_client.ctl.program import VerbGroup
from walled_client.ctl.terminal import Terminal, pass_terminal

_config_option = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False),
    envvar="WALLED_CONFIG",
    metavar="FILE",
    help="TOML file [default: $WALLED_CONFIG, else the defaults].",
)


@click.group("config", cls=VerbGroup, epilog="Example: walled-ctl config check --config walled.toml")
def config_verb() -> None:
    """Check or show a configuration; no daemon is needed."""


@config_verb.command("check", epilog="Example: walled-ctl config check --config walled.toml")
@_config_option
@pass_terminal
def config_check(terminal: Terminal, path: str | None) -> None:
    """Say whether a configuration is right; exit code 2 and a line per problem when not."""
    found = config.load(path)
    template_files.load(found)
    rules_are_right(found)
    data = {
        "schema": "walled.config_check/1",
        "ok": True,
        "file": path or "",
        "run_dir": str(config.run_dir(found)),
        "cache_dir": str(config.cache_dir(found)),
    }
    terminal.emit(data, lambda: click.echo(f"{path or 'defaults'}: ok"))


@config_verb.command("show", epilog="Example: walled-ctl config show --config walled.toml")
@_config_option
@pass_terminal
def config_show(terminal: Terminal, path: str | None) -> None:
    """Show every value in effect, defaults included, as TOML."""
    found = config.load(path)
    plain = config.to_plain(found)
    paths = {"run_dir": str(config.run_dir(found)), "cache_dir": str(config.cache_dir(found))}
    data = {"schema": "walled.config/1", "ok": True, "file": path or "", "config": plain, "paths": paths}

    def show() -> None:
        click.echo(f"# run directory: {paths['run_dir']}\n# cache: {paths['cache_dir']}")
        for line in _toml("", plain):
            click.echo(line)

    terminal.emit(data, show)


def _toml(prefix: str, value: Any) -> list[str]:
    """Dotted keys; TOML's strings, numbers and lists are written like JSON's."""
    lines: list[str] = []
    for name, inner in value.items():
        key = prefix + (
            name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)
        )
        if isinstance(inner, dict):
            lines += _toml(key + ".", inner)
        elif inner is not None:
            lines.append(f"{key} = {json.dumps(inner, ensure_ascii=False)}")
    return lines
