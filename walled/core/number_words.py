"""Numbers written in words, Spanish and English, as their figures: "seis cero cero", "oh seven hundred".

May live here: the words and how they combine. May not: what a row of figures means (digits.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_UNITS: Final = {
    "cero": 0, "zero": 0, "sero": 0, "zeros": 0, "ceros": 0, "oh": 0, "nought": 0, "naught": 0, "nil": 0,
    "uno": 1, "una": 1, "dos": 2, "tres": 3, "cuatro": 4, "quatro": 4, "cinco": 5, "sinco": 5, "seis": 6,
    "siete": 7, "ocho": 8, "nueve": 9,
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
}  # fmt: skip
_TEENS: Final = {
    "diez": 10, "once": 11, "doce": 12, "trece": 13, "catorce": 14, "quince": 15, "dieciseis": 16,
    "diecisiete": 17, "dieciocho": 18, "diecinueve": 19, "veinte": 20, "veintiuno": 21, "veintiun": 21,
    "veintiuna": 21, "veintidos": 22, "veintitres": 23, "veinticuatro": 24, "veinticinco": 25,
    "veintiseis": 26, "veintisiete": 27, "veintiocho": 28, "veintinueve": 29,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS_ES: Final = {
    "treinta": 30, "cuarenta": 40, "cincuenta": 50, "sesenta": 60, "setenta": 70, "ochenta": 80,
    "noventa": 90,
}  # fmt: skip
_TENS_EN: Final = {
    "twenty": 20, "thirty": 30, "forty": 40, "fourty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90,
}  # fmt: skip
_HUNDREDS_ES: Final = {
    "cien": 100, "ciento": 100, "doscientos": 200, "doscientas": 200, "trescientos": 300, "trescientas": 300,
    "cuatrocientos": 400, "cuatrocientas": 400, "quinientos": 500, "quinientas": 500, "seiscientos": 600,
    "seiscientas": 600, "setecientos": 700, "setecientas": 700, "ochocientos": 800, "ochocientas": 800,
    "novecientos": 900, "novecientas": 900,
}  # fmt: skip
_TIMES: Final = {"double": 2, "doble": 2, "triple": 3, "treble": 3}
_HUNDRED: Final = ("hundred", "hundreds")
_AND: Final = ("y", "and")

WORDS: Final = frozenset([*_UNITS, *_TEENS, *_TENS_ES, *_TENS_EN, *_HUNDREDS_ES])
"""Words a number can begin with; `double` and the like only before one of them."""
BEGINNINGS: Final = WORDS | frozenset(_TIMES)


def take(words: Sequence[str], at: int) -> tuple[str, int]:
    """The figures of the number that begins at words[at], and where the next word stands; ("", at): none.

    A number is what is said in one breath: "treinta y cuatro" is 34, "seis doce" are two.
    """
    count = len(words)
    word = words[at]
    times = _TIMES.get(word)
    if times is not None:
        if at + 1 < count and words[at + 1] in _UNITS:
            return str(_UNITS[words[at + 1]]) * times, at + 2
        return "", at
    if word in _HUNDREDS_ES:
        rest, after = _below_hundred(words, at + 1) if at + 1 < count else (0, at + 1)
        return _thousands(words, after, str(_HUNDREDS_ES[word] + rest))
    if word in _UNITS and at + 1 < count and words[at + 1] in _HUNDRED:
        after = at + 2
        joined = after + 1 if after < count and words[after] in _AND else after
        rest, end = _below_hundred(words, joined) if joined < count else (0, joined)
        # "nine hundred four five six" is 900 456: a unit joins a hundred only with "and".
        if rest == 0 or (joined == after and rest < 10):
            rest, end = 0, after
        return str(_UNITS[word] * 100 + rest), end
    value, after = _below_hundred(words, at)
    if after == at:
        return "", at
    return _thousands(words, after, str(value))


def _thousands(words: Sequence[str], at: int, figures: str) -> tuple[str, int]:
    if at < len(words) and words[at] in ("mil", "thousand"):
        return figures + "000", at + 1
    return figures, at


def _below_hundred(words: Sequence[str], at: int) -> tuple[int, int]:
    """(value, where the next word stands); (0, at) when no number below 100 begins here."""
    word = words[at]
    if word in _UNITS:
        return _UNITS[word], at + 1
    if word in _TEENS:
        return _TEENS[word], at + 1
    tens = _TENS_ES.get(word)
    if tens is not None:
        if at + 2 < len(words) and words[at + 1] == "y" and _UNITS.get(words[at + 2], 0) >= 1:
            return tens + _UNITS[words[at + 2]], at + 3
        return tens, at + 1
    tens = _TENS_EN.get(word)
    if tens is not None:
        if at + 1 < len(words) and _UNITS.get(words[at + 1], 0) >= 1:
            return tens + _UNITS[words[at + 1]], at + 2
        return tens, at + 1
    return 0, at
