"""walled-ctl demo: what `make run` runs.

May live here: showing the demonstration. May not: its questions and verdict (demo.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from walled_client import demo
from walled_client.conversation import Conversation
from walled_client.ctl.asking import Chat
from walled_client.ctl.program import Verb
from walled_client.ctl.terminal import EXIT_FAILED, Terminal, origin, pass_terminal, printable
from walled_client.starting import OwnDaemon


@click.command("demo", cls=Verb, epilog="Example: walled-ctl demo --start")
@click.option(
    "--start",
    is_flag=True,
    help="Start a daemon of its own for this, with an empty cache, and stop it after.",
)
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Configuration of that daemon.",
)  # fmt: skip
@pass_terminal
def demo_verb(terminal: Terminal, start: bool, config: Path | None) -> int:
    """Show that it works: on a terminal a conversation, piped three questions.

    One is streamed, one asked twice so that the second answer comes from the cache, one in Spanish; each is
    printed with its source and timings.

    Exit code 0 only if every question was really answered and the repeated one came from the cache.
    """
    if config is not None and not start:
        raise click.UsageError("--config is for the daemon that --start starts")
    if not start:
        return _run(terminal)
    terminal.note("starting a daemon of our own ...")
    daemon = OwnDaemon(config, timeout_s=max(terminal.timeout_s, 120.0))
    with daemon:
        terminal.endpoint = daemon.endpoint
        code = _run(terminal)
        terminal.note("stopping it ...")
    return code or daemon.status or 0


def _run(terminal: Terminal) -> int:
    if sys.stdin.isatty() and sys.stdout.isatty() and not terminal.json:
        with terminal.client() as client:
            terminal.note(f"You talk to a seller's assistant. It knows:\n{demo.SYSTEM_EN}\n")
            return Chat(terminal, Conversation(client, system=demo.SYSTEM_EN, temperature=0)).run()
    with terminal.client() as client:
        return _questions(terminal, client)


def _questions(terminal: Terminal, client: Any) -> int:
    def on_question(question: demo.Question) -> None:
        if not terminal.json:
            click.echo(f"{question.title}: {question.text}")

    def on_text(text: str) -> None:
        if not terminal.json:
            click.echo(printable(text), nl=False)

    outcomes = []
    for outcome in demo.ask_all(client, on_question, on_text):
        outcomes.append(outcome)
        if terminal.json:
            continue
        if outcome.reply is not None:
            click.echo("" if outcome.question.stream else printable(outcome.reply.text))
            click.echo(origin(outcome.reply))
        if outcome.problem:
            click.secho(f"NOT ANSWERED: {printable(outcome.problem)}", fg="red")
        click.echo()
    good = sum(not outcome.problem for outcome in outcomes)
    data = {
        "schema": "walled.demo/1",
        "ok": good == len(outcomes),
        "answers": [
            {
                "title": outcome.question.title,
                "question": outcome.question.text,
                "problem": outcome.problem,
                "reply": outcome.reply.to_dict() if outcome.reply is not None else None,
            }
            for outcome in outcomes
        ],
    }
    terminal.emit(data, lambda: click.echo(f"{good} of {len(outcomes)} answered as they should be"))
    return 0 if data["ok"] else EXIT_FAILED
