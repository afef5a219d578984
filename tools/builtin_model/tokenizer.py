"""The byte-level BPE tokenizer: learning its merges, and encoding text just as llama.cpp does (gpt2, qwen2).

No model lives here; the merges are learnt from a seeded sample of the grammar. Digits stay single, so that a
number is copied digit by digit.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from .grammar import draw_dialogue

VOCAB_SIZE = 1536
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
# The qwen2 pattern of llama.cpp, with \p{L} and \p{N} written for the re module.
_WORD = re.compile(
    r"'(?i:s|t|re|ve|m|ll|d)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_letters() -> list[str]:
    """The printable stand-in of each of the 256 bytes, as GPT-2 chose them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


_LETTERS = byte_letters()


def split_words(text: str) -> list[str]:
    """Cut text into the pieces that merges never cross."""
    return _WORD.findall(text)


def learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Learn `count` merges. Ties are broken by spelling, so the same texts always give the same merges."""
    words = Counter(word for text in texts for word in split_words(text))
    parts = [[_LETTERS[b] for b in word.encode()] for word in sorted(words)]
    weight = [words[word] for word in sorted(words)]
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, pieces in enumerate(parts):
        for pair in pairwise(pieces):
            pairs[pair] += weight[index]
            where[pair].add(index)
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for index in sorted(where.pop(best)):
            old = parts[index]
            new = _merged(old, best)
            for pair in pairwise(old):
                pairs[pair] -= weight[index]
            for pair in pairwise(new):
                pairs[pair] += weight[index]
                where[pair].add(index)
            parts[index] = new
        pairs = +pairs
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    index = 0
    while index < len(pieces):
        if index + 1 < len(pieces) and (pieces[index], pieces[index + 1]) == pair:
            out.append(pieces[index] + pieces[index + 1])
            index += 2
        else:
            out.append(pieces[index])
            index += 1
    return out


@dataclass
class Tokenizer:
    """Merges and vocabulary: specials first, then the byte alphabet, then one token per merge."""

    merges: list[tuple[str, str]]
    vocab: list[str] = field(init=False)
    _ids: dict[str, int] = field(init=False, repr=False)
    _rank: dict[tuple[str, str], int] = field(init=False, repr=False)
    _cache: dict[str, list[int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.vocab = [*SPECIALS, *_LETTERS, *(a + b for a, b in self.merges)]
        self._ids = {token: index for index, token in enumerate(self.vocab)}
        self._rank = {pair: index for index, pair in enumerate(self.merges)}

    def special(self, name: str) -> int:
        """The id of a special token."""
        return SPECIALS.index(name)

    def encode_word(self, word: str) -> list[int]:
        """The ids of one piece from split_words."""
        if word not in self._cache:
            pieces = [_LETTERS[b] for b in word.encode()]
            while len(pieces) > 1:
                pair = min(pairwise(pieces), key=lambda p: self._rank.get(p, 1 << 30))
                if pair not in self._rank:
                    break
                pieces = _merged(pieces, pair)
            self._cache[word] = [self._ids[piece] for piece in pieces]
        return self._cache[word]

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; special tokens are not looked for."""
        return [token for word in split_words(text) for token in self.encode_word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, without the specials."""
        table = {letter: byte for byte, letter in enumerate(_LETTERS)}
        data = bytes(table[letter] for index in ids if index >= len(SPECIALS) for letter in self.vocab[index])
        return data.decode(errors="replace")


def make_tokenizer(seed: int, dialogues: int = 4000) -> Tokenizer:
    """Learn the tokenizer from its own sample of the grammar."""
    rng = random.Random(f"tokenizer {seed}")
    texts = [turn.text for _ in range(dialogues) for turn in draw_dialogue(rng).turns]
    return Tokenizer(learn_merges(texts, VOCAB_SIZE - 256 - len(SPECIALS)))
