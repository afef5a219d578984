"""What all verbs share: global options, printing for people and machines, errors to exit codes.

May live here: presentation. May not: what a verb does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import click

from walled.errors import BadRequest, ConfigError, DaemonUnavailable, WalledError
from walled_client.client import Client
from walled_client.control import Control
from walled_client.discovery import place_of
from walled_client.observing import Observer
from walled_client.results import Reply
from walled_client.subscriber import Subscriber

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_DEGRADED = 4
EXIT_INTERRUPTED = 130


class Terminal:
    """The global options, and the way to the reader of the output."""

    def __init__(self) -> None:
        self.run_dir: str | None = None
        self.endpoint: str | None = None
        self.json = False
        self.timeout_s = 30.0

    def client(self, **settings: Any) -> Client:
        """A client under the global options."""
        chosen = {name: value for name, value in settings.items() if value is not None}
        return Client(self.run_dir, self.endpoint, **{"deadline_s": self.timeout_s, **chosen})

    def ask_daemon(self, op: str, *, worker: int = -1, request: str = "") -> dict[str, Any]:
        """One operation of the control socket."""
        with Control(self.run_dir, self.endpoint) as control:
            return control.ask(op, worker=worker, request=request, deadline_s=min(self.timeout_s, 30.0))

    def ask_monitor(self, op: str, **fields: Any) -> dict[str, Any]:
        """One question to the monitor."""
        with self.observer() as observer:
            return observer.ask(op, **fields)

    def observer(self) -> Observer:
        """A connection to the monitor. A daemon that restarts its monitor is waited for."""
        return Observer(self.run_dir, self.endpoint, deadline_s=min(self.timeout_s, 5.0))

    def subscriber(self, topics: Sequence[str]) -> Subscriber:
        return Subscriber(place_of(self.run_dir, self.endpoint), topics=topics)

    def emit(self, data: dict[str, Any], show: Callable[[], None]) -> None:
        """The verb's data: one JSON object, or whatever `show` prints for people."""
        if self.json:
            click.echo(json.dumps(data, ensure_ascii=False))
        else:
            show()

    def note(self, text: str) -> None:
        """A message for people, on stderr, dimmed."""
        if not self.json:
            click.secho(text, err=True, dim=True)


pass_terminal = click.make_pass_decorator(Terminal, ensure=True)


def exit_code(error: WalledError) -> int:
    if isinstance(error, (BadRequest, ConfigError)):
        return EXIT_USAGE
    return EXIT_UNREACHABLE if isinstance(error, DaemonUnavailable) else EXIT_FAILED


def fail(error: WalledError, terminal: Terminal) -> NoReturn:
    """Say what is wrong and leave with the code for it."""
    if terminal.json:
        body = {
            "code": error.code,
            "message": error.message,
            "retryable": error.retryable,
            "retry_after_s": error.retry_after_s,
        }
        click.echo(json.dumps({"schema": "walled.error/1", "ok": False, "error": body}, ensure_ascii=False))
    else:
        hint = f" (try again in {error.retry_after_s:g} s)" if error.retry_after_s else ""
        click.secho(f"walled-ctl: {printable(error.message)}{hint}", err=True, fg="red")
    sys.exit(exit_code(error))


def use_color() -> bool | None:
    """False when colors are not wanted (https://no-color.org); None leaves it to the kind of output."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def on_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()


def columns() -> int:
    """Width of the output: COLUMNS, the terminal's, or 80."""
    return shutil.get_terminal_size((80, 24)).columns


def printable(text: str) -> str:
    """Text of a model without control characters: an answer must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[int] = (),
    color: Callable[[Sequence[str]], str | None] = lambda _: None,
) -> None:
    """Aligned columns on stdout; numbers, and the columns of `right`, to the right. `color`: of a row."""
    lines = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[n]) for line in [list(headings), *lines]) for n in range(len(headings))]
    rightward = [
        n in right or (bool(lines) and all(_is_number(line[n]) for line in lines))
        for n in range(len(headings))
    ]

    def row_text(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, rightward, strict=True)
        ).rstrip()

    click.secho(row_text(headings), dim=True)
    for line in lines:
        chosen = color(line)
        click.echo(click.style(row_text(line), fg=chosen) if chosen else row_text(line))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).removeprefix("-").isdigit() or text in ("", "-")


def seconds(value: float) -> str:
    """A duration for people: 250 ms, 4.2 s, 3 min, 5 h 2 min, 4 d 1 h."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes = int(value // 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def origin(reply: Reply) -> str:
    """One line on where an answer came from and where its time went."""
    parts = [f"source {reply.source}"]
    if reply.model:
        parts.append(f"model {reply.model}")
    if reply.degraded:
        parts.append(f"DEGRADED, {reply.reason}" if reply.reason else "DEGRADED")
    if reply.age_s:
        parts.append(f"age {seconds(reply.age_s)}")
    if reply.usage.completion_tokens:
        parts.append(f"{reply.usage.completion_tokens} tokens")
    phases = [
        f"{name} {value:.1f}"
        for name, value in (
            ("queue", reply.phases.queue_ms),
            ("load", reply.phases.load_ms),
            ("prefill", reply.phases.prefill_ms),
            ("first token", reply.phases.first_token_ms),
            ("decode", reply.phases.decode_ms),
            ("store", reply.phases.store_ms),
        )
        if value >= 0.05
    ]
    whole = f"{reply.elapsed_ms:.1f} ms" if reply.elapsed_ms >= 0.1 else f"{reply.elapsed_ms * 1000:.0f} us"
    parts.append(whole + (f" ({', '.join(phases)})" if phases else ""))
    return "[" + " | ".join(parts) + "]"
