"""Copying drills: short rows that teach the network to look a fact up and repeat it, and nothing else.

On whole dialogues alone it became fluent long before it used the facts. A drill is either a run of random
tokens said again, or a listing of few facts with questions only about facts that are there.
"""

from __future__ import annotations

import random

from .facts import SLOTS, Lang, draw_listing
from .grammar import Dialogue, Turn, fact_exchange, system_prompt
from .tokenizer import SPECIALS, VOCAB_SIZE, Tokenizer

Row = tuple[list[int], list[float]]


def repeat_row(tokenizer: Tokenizer, rng: random.Random) -> Row:
    """Chunks of random tokens, then the same chunks again, in the same order or another."""
    digits = [tokenizer.encode(str(digit))[0] for digit in range(10)]
    chunks = []
    for _ in range(rng.randint(3, 10)):
        chunk = [rng.randrange(len(SPECIALS), VOCAB_SIZE)]
        kind = digits if rng.random() < 0.5 else range(len(SPECIALS), VOCAB_SIZE)
        chunks.append(chunk + [rng.choice(kind) for _ in range(rng.randint(1, 4))])
    ids = [token for chunk in chunks for token in chunk]
    weights = [0.0] * len(ids)
    for _ in range(rng.randint(1, 3)):
        shuffled = rng.random() < 0.6
        if shuffled:
            rng.shuffle(chunks)
        for chunk in chunks:
            ids += chunk
            weights += [0.0 if shuffled else 1.0] + [1.0] * (len(chunk) - 1)
    return ids, weights


def drill_dialogue(rng: random.Random) -> Dialogue:
    """Few facts, two to five questions, every one of which can be answered."""
    lang: Lang = "es" if rng.random() < 0.26 else "en"
    listing = draw_listing(rng, keep=rng.choice((0.15, 0.3, 0.5)), sure=rng.choice((0.3, 0.6)))
    keys = ["price", *(key for key in SLOTS if key in listing.said and key != "status")]
    turns = [Turn("system", system_prompt(rng, listing, lang))]
    exchanges = []
    for _ in range(rng.randint(2, 5)):
        exchange = fact_exchange(rng, listing, lang, rng.choice(keys), rough=False)
        exchanges.append(exchange)
        turns += [Turn("user", exchange.ask), exchange.reply]
    return Dialogue(tuple(turns), tuple(exchanges), listing)
