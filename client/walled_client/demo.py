"""What `make run` shows: three questions to a running daemon, and the verdict whether they were answered.

May live here: the questions, asking them, judging the answers. May not: printing (ctl/demo.py), starting a
daemon (starting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from walled.errors import WalledError
from walled_client.client import Client
from walled_client.results import Reply

SYSTEM_EN = (
    "You answer buyers for the seller of a second-hand item.\n"
    "Item: blue bike\nPrice: 135 EUR\nLowest price (private): 110 EUR\nCondition: in good condition\n"
    "Place: Valencia\nShipping: 18 EUR\nBought in: 2019"
)
SYSTEM_ES = (
    "Respondes a los compradores en nombre del vendedor.\n"
    "Artículo: lámpara verde\nPrecio: 35 EUR\nPrecio mínimo (privado): 28 EUR\nEstado: como nueva\n"
    "Lugar: Valencia\nEnvío: 6 EUR\nComprado en: 2021"
)
MAX_TOKENS = 128


class Question(NamedTuple):
    title: str
    text: str
    system: str
    stream: bool = False
    repeated: bool = False
    """Asked before: the answer must come from the cache."""


QUESTIONS = (
    Question("streamed", "What can you do?", "", stream=True),
    Question("asked once", "How much is it?", SYSTEM_EN),
    Question("asked again", "How much is it?", SYSTEM_EN, repeated=True),
    Question("in Spanish", "¿Qué precio tiene?", SYSTEM_ES),
)


class Outcome(NamedTuple):
    question: Question
    reply: Reply | None
    problem: str
    """Why this counts as not answered; "" when all is well."""


def ask_all(
    client: Client, on_question: Callable[[Question], None], on_text: Callable[[str], None]
) -> Iterator[Outcome]:
    """Ask the questions in order; `on_text` gets the streamed one's text while it comes."""
    for question in QUESTIONS:
        on_question(question)
        try:
            reply = _ask(client, question, on_text)
        except WalledError as exc:
            yield Outcome(question, None, f"{exc.code}: {exc.message}")
            continue
        yield Outcome(question, reply, _problem(question, reply))


def _ask(client: Client, question: Question, on_text: Callable[[str], None]) -> Reply:
    # Temperature 0 makes the answer repeatable, and that makes it cacheable.
    if not question.stream:
        return client.chat(question.text, system=question.system, temperature=0, max_tokens=MAX_TOKENS)
    with client.stream(question.text, system=question.system, temperature=0, max_tokens=MAX_TOKENS) as stream:
        for chunk in stream:
            on_text(chunk.text)
        return stream.reply


def _problem(question: Question, reply: Reply) -> str:
    if not reply.text.strip():
        return "the answer is empty"
    if reply.degraded:
        return f"the answer is degraded (source {reply.source})"
    if question.repeated and reply.source != "cache":
        return f"asked again it should have come from the cache, and came from: {reply.source}"
    return ""
