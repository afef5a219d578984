"""How people really write: slips, lost marks, invented words, questions from outside the trade.

No listings and no replies live here.
"""

from __future__ import annotations

import random
from types import ModuleType

from . import phrases_en, phrases_es
from .facts import Lang

BOOKS: dict[Lang, ModuleType] = {"en": phrases_en, "es": phrases_es}
_WORDS = """
tree river king school hospital engine doctor garden book teacher window dog market bridge queen
planet number letter island paper army church city sister winter money body horse street voice law
fire plane cheese coffee party happy tired angry fast green open run write sleep cook travel paint
learn swim fight dance capital battle author castle virus protein atom church password file server
árbol río rey escuela hospital motor médico jardín libro ventana perro puente reina planeta número
carta isla ejército iglesia invierno dinero caballo calle voz fuego avión queso feliz cansado correr
escribir dormir cocinar viajar nadar bailar castillo
"""
_COMMON = tuple(_WORDS.split())


def roughen(rng: random.Random, text: str, lang: Lang) -> str:
    """Write a question as people do: openers, lost question marks, lower case, a slip of the finger."""
    book = BOOKS[lang]
    if rng.random() < 0.15:
        opener = rng.choice(book.OPENERS)
        text = opener + (
            text[0].lower() + text[1:] if opener[-2] not in "!:" and text[:2] not in ("I ", "I'") else text
        )
    if rng.random() < 0.1:
        text = text.rstrip(".") + rng.choice(book.CLOSERS)
    if rng.random() < 0.12:
        text = text.rstrip("?.!")
    elif rng.random() < 0.05 and text[-1].isalpha():
        text += rng.choice((".", "!", "?", "..."))
    if lang == "es" and rng.random() < 0.35:
        text = text.replace("¿", "").replace("¡", "")
    if rng.random() < 0.18:
        text = text.lower()
    if lang == "es" and rng.random() < 0.12:
        text = text.translate(str.maketrans("áéíóú", "aeiou"))
    if rng.random() < 0.06 and len(text) > 8 and not any(c.isdigit() for c in text):
        spot = rng.randrange(1, len(text) - 2)
        text = rng.choice(
            (text[:spot] + text[spot + 1 :], text[:spot] + text[spot + 1] + text[spot] + text[spot + 2 :])
        )
    return text


def _random_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return "".join(
            rng.choice("bcdfglmnprstv") + rng.choice("aeiou") for _ in range(rng.randint(1, 4))
        ) + rng.choice(("", "s", "n", "r", "l"))
    if kind < 0.55:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
    return rng.choice(_COMMON)


def unfamiliar_ask(rng: random.Random, lang: Lang) -> str:
    """A question from outside the trade: known topics, common words, invented words, numbers."""
    book = BOOKS[lang]
    template: str = rng.choice(book.UNFAMILIAR)
    # Drawn in this order whatever the template names, so that a template changes no later draw.
    topics = book.TOPICS
    x = rng.choice(topics) if rng.random() < 0.6 else f"{_random_word(rng)} {_random_word(rng)}"
    y, z, capital = _random_word(rng), _random_word(rng), _random_word(rng).capitalize()
    n, m = rng.randint(2, 900), rng.randint(2, 900)
    return template.format(x=x, y=y, z=z, Y=capital, n=n, m=m)
