"""From dialogues to training rows: token ids, loss weights and packing. No model and no wording live here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .drills import drill_dialogue, repeat_row
from .grammar import Dialogue, Turn, draw_dialogue
from .tokenizer import Tokenizer, split_words

FACT_WEIGHT, REPLY_WEIGHT, OTHER_WEIGHT = 3.0, 1.0, 0.1
RAW_SHARE = 0.03  # dialogues written without the chat template, for callers who send a bare prompt
REPEAT_SHARE = 0.3  # of the drills
CUT = 160  # room worth filling with a dialogue cut short

Row = tuple[list[int], list[float]]


def _body(tokenizer: Tokenizer, turn: Turn) -> Row:
    ids: list[int] = []
    weights: list[float] = []
    spot = 0
    for word in split_words(turn.text):
        end = spot + len(word)
        weight = OTHER_WEIGHT
        if turn.role == "assistant":
            weight = FACT_WEIGHT if any(a < end and spot < b for a, b in turn.facts) else REPLY_WEIGHT
        tokens = tokenizer.encode_word(word)
        ids += tokens
        weights += [weight] * len(tokens)
        spot = end
    return ids, weights


def dialogue_row(tokenizer: Tokenizer, dialogue: Dialogue) -> Row:
    """ChatML, header and body encoded apart, as the template makes llama.cpp do it.

    A weight belongs to the token that is predicted.
    """
    start, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    weights: list[float] = []
    for turn in dialogue.turns:
        body, body_weights = _body(tokenizer, turn)
        head = [start, *tokenizer.encode(turn.role), *newline]
        ids += [*head, *body, end, *newline]
        closing = REPLY_WEIGHT if turn.role == "assistant" else OTHER_WEIGHT
        weights += [0.0] * len(head) + body_weights + [closing] + [0.0] * len(newline)
    return ids, weights


def raw_row(tokenizer: Tokenizer, dialogue: Dialogue) -> Row:
    """The same words with no template: prompt, line break, reply, end."""
    ids: list[int] = []
    weights: list[float] = []
    newline = tokenizer.encode("\n")
    for turn in dialogue.turns[:-1]:
        body, _ = _body(tokenizer, Turn("user", turn.text))
        ids += [*body, *newline]
        weights += [OTHER_WEIGHT] * len(body) + [REPLY_WEIGHT] * len(newline)
    body, body_weights = _body(tokenizer, dialogue.turns[-1])
    return [*ids, *body, tokenizer.special("<|im_end|>")], [*weights, *body_weights, REPLY_WEIGHT]


@dataclass(frozen=True)
class Batch:
    """Packed rows. `segment` keeps the dialogues of a row from seeing each other; padding has weight 0."""

    ids: npt.NDArray[np.int32]
    segment: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]


def _draw_row(tokenizer: Tokenizer, rng: random.Random, turns: tuple[int, int], drills: float) -> Row:
    if drills and rng.random() < drills:
        if rng.random() < REPEAT_SHARE:
            return repeat_row(tokenizer, rng)
        return dialogue_row(tokenizer, drill_dialogue(rng))
    dialogue = draw_dialogue(rng, turns=turns)
    return (raw_row if rng.random() < RAW_SHARE else dialogue_row)(tokenizer, dialogue)


def batches(
    tokenizer: Tokenizer,
    rng: random.Random,
    rows: int,
    length: int,
    turns: tuple[int, int],
    *,
    drills: float = 0.0,
) -> Iterator[Batch]:
    """Endless batches of freshly drawn rows, packed tightly from a pool. `drills` is the share of drills."""
    pool: list[Row] = []
    pad = tokenizer.special("<|pad|>")
    while True:
        ids = np.full((rows, length + 1), pad, np.int32)
        segment = np.zeros((rows, length + 1), np.int32)
        weight = np.zeros((rows, length + 1), np.float32)
        for row in range(rows):
            used, number = 0, 0
            while True:
                while len(pool) < 160:
                    made = _draw_row(tokenizer, rng, turns, drills)
                    if len(made[0]) <= length:
                        pool.append(made)
                room = length + 1 - used
                fits = [index for index, item in enumerate(pool) if len(item[0]) <= room]
                if used == 0:
                    pick = 0
                elif fits:
                    pick = max(fits, key=lambda index: len(pool[index][0]))
                elif room >= CUT:
                    pick = 0  # fill up with the beginning of a dialogue
                else:
                    break
                tokens, weights = (part[:room] for part in pool.pop(pick))
                number += 1
                stop = used + len(tokens)
                ids[row, used:stop], segment[row, used:stop] = tokens, number
                weight[row, used + 1 : stop] = weights[1:]
                used = stop
        yield Batch(ids, segment, weight)
