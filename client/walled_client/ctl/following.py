"""Verbs that go on: reading the stream until Ctrl-C, a count, or the reader of the output leaves.

May live here: waiting for publications, telling of silence. May not: what a message means, printing of data.

Nothing is asked again while the stream flows. A monitor that is replaced is silent for a moment; the stream
goes on by itself, and a note on stderr tells of a silence that lasts.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import click

from walled_client.ctl.terminal import EXIT_INTERRUPTED, Terminal
from walled_client.picture import Picture
from walled_client.subscriber import Message, Subscriber

SILENCE_S = 5.0
SETTLE_S = 0.15
"""Publications of one second come in one burst: what is so long behind `health` belongs to the next."""
FIRST_S = 3.0
"""The last value of every topic comes at once; this is long."""

count_option = click.option(
    "--count", type=click.IntRange(1), metavar="N", help="Stop after so many [default: never]."
)


def until_interrupted(callback: Callable[..., int | None]) -> Callable[..., int | None]:
    """Ctrl-C ends the verb without a word, as it ends `tail -f`."""

    @functools.wraps(callback)
    def run(*args: Any, **kwargs: Any) -> int | None:
        try:
            return callback(*args, **kwargs)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED

    return run


def _heard(terminal: Terminal, subscriber: Subscriber) -> Iterator[Message]:
    """What comes, with a note on stderr when a silence begins and when it is over."""
    silent = False
    while True:
        message = subscriber.next(SILENCE_S)
        if message is None:
            if not silent:
                terminal.note(f"nothing heard for {SILENCE_S:g} s; waiting for the monitor")
            silent = True
            continue
        if silent:
            terminal.note("the monitor is heard again")
            silent = False
        yield message


def messages(terminal: Terminal, topics: tuple[str, ...]) -> Iterator[Message]:
    """Publications as they come. Raises DaemonUnavailable when no monitor is there to begin with."""
    with terminal.subscriber((*topics, "health")) as subscriber:
        terminal.ask_monitor("metrics.list")  # only to say at once that nobody is there
        for message in _heard(terminal, subscriber):
            if message.topic.startswith(topics):
                yield message


def pictures(terminal: Terminal) -> Generator[Picture, None, None]:
    """The daemon once a second; the first one has rates of the last minute from the monitor's memory."""
    picture = Picture()
    with terminal.subscriber(("metric.", "health")) as subscriber:
        board = terminal.ask_monitor("dashboard")
        picture.seed(board, time.time())
        for first in _heard(terminal, subscriber):
            time_s = None
            message: Message | None = first
            while message is not None:
                if picture.take(*message):
                    time_s = float(message.body["time_s"])
                message = subscriber.next(SETTLE_S if time_s is not None else 0.0)
            if time_s is not None:
                picture.tick(time_s)
                yield picture
