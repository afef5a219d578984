"""walled-ctl ask and chat.

May live here: asking, showing the answer. May not: what an answer is made of.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from walled.errors import WalledError
from walled_client.client import Stream
from walled_client.conversation import Conversation, ConversationStream
from walled_client.ctl.program import Verb
from walled_client.ctl.terminal import (
    EXIT_DEGRADED,
    Terminal,
    fail,
    on_terminal,
    origin,
    pass_terminal,
    printable,
)  # fmt: skip
from walled_client.results import Reply

HELP = """\
/help            this list
/clear           forget the conversation
/system TEXT     set the system prompt (nothing after it: none) and forget the conversation
/model NAME      talk to another model
/exit            leave (also Ctrl-D)
Ctrl-C while an answer comes cancels it."""


def _fields(context: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    found = {name: value for name, value in fields.items() if value is not None}
    if context:
        pairs = [text.partition("=") for text in context]
        wrong = [name for name, mark, _ in pairs if not mark or not name]
        if wrong:
            raise click.UsageError(f"--context: expected KEY=VALUE, got {wrong[0]!r} without a value")
        found["context"] = {name: value for name, _, value in pairs}
    return found


_mode_option = click.option(
    "--mode",
    type=click.Choice(["auto", "ai_only", "template_only", "hybrid"]),
    help="What may answer [default: the daemon's].",
)
_context_option = click.option(
    "--context",
    multiple=True,
    metavar="KEY=VALUE",
    help="A fact for templates and rules, such as price='80 euros'; may be repeated.",
)


@click.command(
    "ask",
    cls=Verb,
    epilog="Example: walled-ctl ask 'How much?' --system 'Item: lamp. Price: 10 EUR'",
)
@click.argument("question", required=False)
@click.option("--system", help="System prompt.")
@click.option("--model", help="Model name or alias [default: the daemon's].")
@click.option("--temperature", type=float, help="0 makes the answer repeatable, and cacheable.")
@click.option("--max-tokens", type=int, help="Longest answer, in tokens.")
@click.option("--seed", type=int, help="Makes a sampled answer repeatable, and cacheable.")
@click.option(
    "--cache",
    type=click.Choice(["default", "always", "bypass", "refresh", "only"]),
    help="What the cache may do [default: default].",
)
@click.option("--namespace", help="Cache namespace.")
@_mode_option
@_context_option
@click.option(
    "--stream/--no-stream", default=None, help="Show the answer while it comes [default: on a terminal]."
)
@pass_terminal
def ask_verb(terminal: Terminal, /, question: str | None, stream: bool | None, **options: Any) -> int:
    """Ask one question and print the answer.

    QUESTION "-" (or none, with piped input) is read from standard input. The answer goes to stdout; on a
    terminal, and always for a degraded answer, a line on stderr says where it came from.
    """
    piped = question in (None, "-") and sys.stdin is not None
    if question is None and (not piped or sys.stdin.isatty()):
        raise click.UsageError("a question is needed, or text on standard input")
    text = sys.stdin.read().strip() if piped else question or ""
    if not text.strip():
        raise click.UsageError("the question is empty")
    fields: Any = _fields(**options)
    with terminal.client() as client:
        if (on_terminal() if stream is None else stream) and not terminal.json:
            reply = _show(client.stream(text, **fields), terminal)
        else:
            reply = client.chat(text, **fields)
            data = {"schema": "walled.ask/1", "ok": True, **reply.to_dict()}
            terminal.emit(data, lambda: click.echo(_shown(reply.text)))
    if sys.stderr.isatty() or (reply.degraded and not terminal.json):
        terminal.note(origin(reply))
    return EXIT_DEGRADED if reply.degraded else 0


def _shown(text: str) -> str:
    """As it is into a pipe, made harmless on a terminal."""
    return printable(text) if on_terminal() else text


def _show(stream: Stream | ConversationStream, terminal: Terminal) -> Reply:
    with stream:
        for chunk in stream:
            if chunk.restart:
                terminal.note("\n(the answer begins anew)")
            click.echo(_shown(chunk.text), nl=False)
        click.echo()
        return stream.reply


@click.command("chat", cls=Verb, epilog="Example: walled-ctl chat --system 'Item: bike. Price: 80 EUR'")
@click.option("--system", default="", help="System prompt.")
@click.option("--model", help="Model name or alias [default: the daemon's].")
@click.option("--temperature", type=float)
@click.option("--max-tokens", type=int, help="Longest answer, in tokens.")
@_mode_option
@_context_option
@pass_terminal
def chat_verb(terminal: Terminal, /, system: str, **options: Any) -> int:
    """Hold a conversation. /help lists its commands.

    Without a terminal each line of standard input is one turn.
    """
    fields: Any = _fields(**options)
    with terminal.client() as client:
        return Chat(terminal, Conversation(client, system=system, **fields)).run()


class Chat:
    """The loop of `walled-ctl chat`; also what `demo` opens on a terminal."""

    def __init__(self, terminal: Terminal, conversation: Conversation) -> None:
        self._terminal = terminal
        self._talk = conversation
        self._turns: list[dict[str, Any]] = []
        self._person = sys.stdin.isatty()

    def run(self) -> int:
        """Until /exit or the end of input; the exit code."""
        if self._person:
            self._line_editing()
            self._terminal.note("/help lists the commands; Ctrl-D leaves")
        code = 0
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if self._command(line):
                    break
            elif line:
                code = self._say(line)
        if self._terminal.json:
            data = {"schema": "walled.chat/1", "ok": code == 0, "turns": self._turns}
            self._terminal.emit(data, lambda: None)
        return 0 if self._person else code

    def _line_editing(self) -> None:
        try:
            import readline  # noqa: F401 (importing it gives input() editing and history)
        except ImportError:
            pass

    def _read(self) -> str | None:
        if not self._person:
            line = sys.stdin.readline()
            return line.strip() if line else None
        try:
            return input("> ").strip()
        except EOFError:
            click.echo(err=True)
            return None
        except KeyboardInterrupt:
            click.echo(err=True)
            return ""

    def _command(self, line: str) -> bool:
        """Obey a /command; True to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/exit", "/quit"):
            return True
        if name == "/clear":
            self._talk.clear()
            self._terminal.note("forgotten")
        elif name == "/system":
            self._talk.history.system = rest
            self._talk.clear()
            self._terminal.note("system prompt set" if rest else "no system prompt")
        elif name == "/model":
            self._talk.use_model(rest or "default")
            self._terminal.note(f"model: {rest or 'default'}")
        else:
            self._terminal.note(HELP if name == "/help" else f"{name}: no such command\n{HELP}")
        return False

    def _say(self, text: str) -> int:
        stream: ConversationStream | None = None
        try:
            if self._terminal.json:
                reply = self._talk.say(text)
            else:
                stream = self._talk.stream(text)
                reply = _show(stream, self._terminal)
        except WalledError as exc:
            if not self._person:
                fail(exc, self._terminal)
            click.echo()
            click.secho(f"{exc.code}: {printable(exc.message)}", err=True, fg="red")
            return 1
        except KeyboardInterrupt:
            if not self._person:
                raise
            click.echo()
            self._terminal.note("cancelled")
            return 0
        self._turns.append({"question": text, **reply.to_dict()})
        self._terminal.note(origin(reply))
        return EXIT_DEGRADED if reply.degraded else 0
