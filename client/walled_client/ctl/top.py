"""walled-ctl top: the daemon on one live screen; one sample of it when nobody watches.

May live here: choosing between screen and sample. May not: drawing (panels.py, screen.py).
"""

from __future__ import annotations

import os
import time
from typing import Any

import click

from walled.errors import Unsupported, WalledError
from walled_client.ctl import following, panels
from walled_client.ctl.drawing import blocks
from walled_client.ctl.following import until_interrupted
from walled_client.ctl.program import Verb
from walled_client.ctl.stat import sample
from walled_client.ctl.terminal import (
    EXIT_OK,
    Terminal,
    columns,
    on_terminal,
    pass_terminal,
    use_color,
)
from walled_client.discovery import place_of
from walled_client.picture import HISTORIES, POINTS, Picture


@click.command("top", cls=Verb, epilog="Example: walled-ctl top")
@pass_terminal
@until_interrupted
def top_verb(terminal: Terminal) -> int | None:
    """Watch the daemon live: health, alerts, queue, rates, times, workers, cache, machine.

    Keys: q quit, e explain the health score, p pause, arrows scroll. Two columns from 132 characters on.
    Needs the extra: pip install 'walled[top]'. Piped, or with --json, one sample is printed without it.
    """
    if terminal.json or not on_terminal() or os.environ.get("TERM") == "dumb":
        return _sample(terminal)
    try:
        from walled_client.ctl.screen import Top
    except ImportError:
        raise Unsupported(
            "top needs textual, which is not installed: pip install 'walled[top]'; "
            "walled-ctl stat and walled-ctl status do without"
        ) from None
    with terminal.observer() as observer:
        board = observer.dashboard()
    board["daemon"] = _daemon(terminal)
    run_dir = place_of(terminal.run_dir, terminal.endpoint)
    color = use_color() is None
    Top(os.fspath(run_dir) if run_dir else None, terminal.endpoint, board, blocks(), color).run()
    return EXIT_OK


def _sample(terminal: Terminal) -> int:
    """What the screen would show now, after one second of listening."""
    stream = following.pictures(terminal)
    picture = next(stream)
    picture = next(stream)
    stream.close()
    picture.daemon = _daemon(terminal)
    _remember(terminal, picture)
    data: dict[str, Any] = {
        **sample(picture),
        "schema": "walled.top/1",
        "quantiles_s": picture.quantiles,
        "alerts": picture.firing(),
        "deductions": picture.health.get("deductions"),
        "daemon": picture.daemon,
        "processes": picture.processes,
        "series": {name: list(values) for name, values in picture.series.items()},
    }

    def show() -> None:
        for line in panels.screen(picture, columns(), panels.View(explain=True, steps=blocks())):
            click.echo(panels.plain(line))

    terminal.emit(data, show)
    return EXIT_OK


def _daemon(terminal: Terminal) -> dict[str, Any] | None:
    try:
        return terminal.ask_daemon("status")
    except WalledError:
        return None


def _remember(terminal: Terminal, picture: Picture) -> None:
    found = {}
    with terminal.observer() as observer:
        for name, metric in HISTORIES.items():
            try:
                found[name] = observer.ask("history", metric=metric, since_s=POINTS)["series"]
            except WalledError:
                continue  # nothing has been measured of it yet
    picture.series.clear()
    picture.remember(found, time.time())
