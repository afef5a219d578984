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
    "The item is a bike. It is in very good condition. The colour is blue. Pick-up in Oviedo. "
    "Shipping costs 15 EUR. The price is 120 EUR. Status: available. The seller is Nina."
)
SYSTEM_ES = (
    "Eres el asistente de un vendedor. Responde con brevedad y educación.\n"
    "Se vende lámpara. Estado: como nueva. El color es verde. Está en Oviedo. Pedimos 35 euros. "
    "Está disponible. El vendedor se llama Iván."
)
MAX_TOKENS = 64


class Question(NamedTuple):
    title: str
    text: str
    system: str
    stream: bool = False
    repeated: bool = False
    """Asked before: the answer must come from the cache."""


QUESTIONS = (
    Question("streamed", "How much is it and what condition is it in?", SYSTEM_EN, stream=True),
    Question("asked once", "Is it still available?", SYSTEM_EN),
    Question("asked again", "Is it still available?", SYSTEM_EN, repeated=True),
    Question("in Spanish", "¿Cuánto cuesta la lámpara?", SYSTEM_ES),
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
