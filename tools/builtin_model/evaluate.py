"""The examination: asks the exported file, in llama.cpp, questions with known answers; scores the replies.

Facts are always held out (prices, places, names, half of the nouns). Templates are scored apart: the trained
ones, and the held-out ones, which means questions *and* system-prompt rules never seen in training.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from .engine import Engine
from .facts import Lang, Listing, draw_listing
from .grammar import BOOKS, Exchange, Turn, chat_exchange, deal_exchange, fact_exchange, system_prompt

_SPANISH = re.compile(
    r"\b(el|la|los|las|es|está|soy|eso|que|de|puedo"
    r"|sigue|cuesta|lo|hola|precio|nada|gracias|en|por|se|adiós|hasta|un|sí|no)\b",
    re.I,
)
_ENGLISH = re.compile(
    r"\b(the|is|it|i|you|am|can|of|and|to|are"
    r"|costs|price|in|hello|welcome|pleasure|for|sorry|goodbye|was|soon)\b",
    re.I,
)
_GENERAL = re.compile(
    r"demo|only (help|know)|cannot|do not know|not sure|don't"
    r"|ask the seller|can tell you|no listing|not given|larger"
    r"|solo (puedo|sé|soy)|no lo sé|no puedo|lo siento|hablar sobre|no tengo|no me han|pregunt|modelo",
    re.I,
)


@dataclass
class Tally:
    """Right answers out of asked, by name, with a few of the wrong ones to read."""

    right: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    wrong: list[dict[str, str]] = field(default_factory=list)

    def note(self, name: str, good: bool, ask: str, reply: str, wanted: str) -> None:
        """Count one answer."""
        self.asked[name] += 1
        self.right[name] += good
        if not good:
            self.wrong.append({"what": name, "ask": ask, "reply": reply, "wanted": wanted})

    def table(self) -> dict[str, dict[str, float]]:
        """Shares, by name."""
        return {
            name: {"right": self.right[name], "asked": count, "share": round(self.right[name] / count, 4)}
            for name, count in sorted(self.asked.items())
        }


def numbers(text: str) -> list[str]:
    """The numbers a text states, whole."""
    return re.findall(r"\d+(?:[.,:]\d+)?", text)


def states(reply: str, wanted: str) -> bool:
    """Whether a reply contains a fact, not as part of a longer number or word."""
    return re.search(rf"(?<![\w.,]){re.escape(wanted)}(?![\w]|[.,]\d)", reply, re.I) is not None


def leaks(reply: str, listing: Listing, asked: str) -> bool:
    """Whether the reply gives the minimum away. A number that is public or the buyer's own is no leak."""
    if listing.lowest is None or listing.lowest in (listing.price, *numbers(asked)):
        return False
    public = {number for slot in listing.slots("en").values() for number in numbers(slot)}
    return listing.lowest not in public and listing.lowest in numbers(reply)


def in_language(reply: str, lang: Lang) -> bool:
    """A crude look at which language a reply is in."""
    spanish, english = len(_SPANISH.findall(reply)), len(_ENGLISH.findall(reply))
    return spanish >= english if lang == "es" else english >= spanish


def judge(exchange: Exchange, reply: str, listing: Listing) -> bool:
    """Whether a reply to a fact question is right: the fact is there, or it is admitted to be missing."""
    book = BOOKS[exchange.lang]
    if exchange.intent == "status":
        tests = (
            ("available", "for sale", "disponible", "a la venta"),
            ("reserved", "reserva"),
            ("sold", "vend"),
        )[listing.status]
        return any(word in reply.lower() for word in tests)
    if not exchange.given:
        return any(word in reply for word in ("does not", "no dice", "no da "))
    if exchange.intent == "shipping" and listing.free_shipping:
        return ("gratis" if exchange.lang == "es" else "free") in reply
    if exchange.intent == "shipping" and listing.no_shipping:
        return reply in book.NO_SHIPPING
    return all(states(reply, wanted) for wanted in exchange.expect)


_FACT_KEYS = (
    "price",
    "price",
    "place",
    "shipping",
    "condition",
    "status",
    "payment",
    "hours",
    "year",
    "size",
    "extras",
    "brand",
    "colour",
    "reason",
    "seller",
)


def _sale(
    engine: Engine, rng: random.Random, lang: Lang, *, held: bool, count: int, tally: Tally, name: str
) -> None:
    """Dialogues about one listing; the model's own replies stay in the history."""
    for index in range(count):
        listing = draw_listing(rng, held=True)
        turns = [Turn("system", system_prompt(rng, listing, lang, held))]
        keys = ["price", rng.choice(_FACT_KEYS), "lowest", rng.choice(_FACT_KEYS)]
        rng.shuffle(keys)
        for key in [*keys, *(("unfamiliar",) if index % 2 else ("prompt",))]:
            if key in BOOKS[lang].FACTS:
                exchange = fact_exchange(rng, listing, lang, key, held=held, rough=False)
            else:
                exchange = deal_exchange(rng, listing, lang, key, held=held, rough=False)
            turns.append(Turn("user", exchange.ask))
            reply, ended = engine.reply(turns)
            turns.append(Turn("assistant", reply))
            wanted = ", ".join(exchange.expect) or exchange.reply.text
            if key in BOOKS[lang].FACTS:
                label = key if exchange.given else "admits a missing fact"
                tally.note(f"{name}: {label}", judge(exchange, reply, listing), exchange.ask, reply, wanted)
            elif key == "lowest":
                tally.note(
                    f"{name}: asked for the minimum, states the price",
                    states(reply, listing.price),
                    exchange.ask,
                    reply,
                    wanted,
                )
            else:
                tally.note(
                    f"{name}: {key} gets a general reply",
                    _GENERAL.search(reply) is not None,
                    exchange.ask,
                    reply,
                    wanted,
                )
            if listing.lowest is not None:
                where = "when asked for it" if key in ("lowest", "prompt") else "otherwise"
                tally.note(
                    f"{name}: keeps the minimum private {where}",
                    not leaks(reply, listing, exchange.ask),
                    exchange.ask,
                    reply,
                    f"not {listing.lowest}",
                )
            tally.note(
                f"{name}: ends by itself, right language",
                ended == "stop" and in_language(reply, lang),
                exchange.ask,
                reply,
                ended,
            )


def _chat(
    engine: Engine, rng: random.Random, lang: Lang, *, held: bool, count: int, tally: Tally, name: str
) -> None:
    """Single questions with no listing: half without a system prompt, half with a general one."""
    book = BOOKS[lang]
    for index in range(count):
        key = ("unfamiliar", "nofacts", "what", "hello", "who", "unfamiliar", "nofacts", "prompt")[index % 8]
        exchange = chat_exchange(rng, lang, key, held, rough=False)
        prompts = book.GENERAL_PROMPTS_HELD if held else book.GENERAL_PROMPTS
        turns = [Turn("system", rng.choice(prompts))] if rng.random() < 0.5 else []
        reply, ended = engine.reply([*turns, Turn("user", exchange.ask)])
        invented = set(numbers(reply)) - set(numbers(exchange.ask))
        good = _GENERAL.search(reply) is not None and not invented
        tally.note(
            f"{name}: {key}",
            good and ended == "stop" and in_language(reply, lang),
            exchange.ask,
            reply,
            exchange.reply.text,
        )


def examine(engine: Engine, seed: int, sales: int, chats: int) -> Tally:
    """The whole examination: both languages, trained and held-out templates, always on held-out facts."""
    tally = Tally()
    for lang in ("en", "es"):
        for held in (False, True):
            rng = random.Random(f"evaluate {seed} {lang} {held}")
            name = f"{lang}, {'held-out' if held else 'trained'} templates"
            _sale(engine, rng, lang, held=held, count=sales, tally=tally, name=name)
            _chat(engine, rng, lang, held=held, count=chats, tally=tally, name=f"{name}, no listing")
    return tally


def samples(engine: Engine, asks: Sequence[tuple[str, ...]]) -> list[dict[str, str]]:
    """Replies to fixed questions, for people to read. An entry: system prompt ("" for none) and question."""
    out = []
    for system, ask in asks:
        turns = ([Turn("system", system)] if system else []) + [Turn("user", ask)]
        out.append({"system": system, "ask": ask, "reply": engine.reply(turns)[0]})
    return out
