"""What the benches ask: conversations of an ordinary size, made from a number.

May live here: building requests and the answers the scripted backend must give. May not: sending.
"""

from __future__ import annotations

import itertools
from typing import Any

SYSTEM = (
    "You are the assistant of a second-hand marketplace. You answer for the seller in a friendly tone, in "
    "at most three sentences. Item: wooden desk, 120 x 60 cm, one drawer, light scratches. Price: 85 euros, "
    "pick up in the old town, no shipping. Never agree to a payment outside of the platform."
)


def chat(number: int) -> list[dict[str, Any]]:
    """A conversation of four turns, about 700 bytes; no two numbers give the same.

    Keys are in canonical order, so that a floor that packs it as it stands gets the very same bytes.
    """
    return [
        {"content": SYSTEM, "role": "system"},
        {"content": "Hello, is the desk still available?", "role": "user"},
        {"content": "Yes, it is. Would you like to come and see it?", "role": "assistant"},
        {"content": last_turn(number), "role": "user"},
    ]


def long_chat(number: int) -> list[dict[str, Any]]:
    """The same under a long system prompt: about 2 KB, the size the design reckons with."""
    return [{"content": " ".join([SYSTEM] * 6), "role": "system"}, *chat(number)[1:]]


def last_turn(number: int) -> str:
    return f"Question {number}: would you take {20 + number % 60} euros if I pick it up on Saturday morning?"


def echo(text: str, tokens: int) -> str:
    """What the scripted backend answers to a last user message: its words, cut or repeated."""
    return " ".join(itertools.islice(itertools.cycle(text.split()), tokens))


def template(number: int) -> str:
    """What the template of TEMPLATES answers to a question whose context has the number."""
    return f"Question {number} will be looked at later."


TEMPLATES = """
[intents.fallback.en]
variants = ["Question {number} will be looked at later."]
"""
"""A set with one answer, which tells whose it is."""
