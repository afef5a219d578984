"""Rows of figures in a text, however they are written, and which of them are phone numbers, cards, accounts.

May live here: finding rows (figures, words, look-alike letters, separators), shapes, check digits. May not:
what follows from a find (assess.py).

Shapes are those of the E.164 numbering plans of Spain, the United Kingdom and North America, and any number
with a country code. IBAN: ISO 13616, check digits by modulo 97 (ISO 7064). Cards: Luhn (ISO/IEC 7812-1). DNI
and NIE: the letter is the number modulo 23 of a fixed row. Books and barcodes: EAN-13.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from walled.core import number_words
from walled.core.normalise import deleeted

_CHUNK: Final = re.compile(r"[a-z0-9]+")
_LETTER_DIGITS: Final = str.maketrans("oqilsz", "001152")
_UNIT_END: Final = re.compile(r"[0-9]+[ls]\Z")
"""Litres or seconds at the end of a row; between figures an l is a one and an s a five."""
_PAIRS: Final = re.compile(r"(?:[0-9][a-z]){5,}[0-9]?\Z|(?:[a-z][0-9]){6,}[a-z]?\Z")
"""Figures with a letter between any two: "6a5b4c"."""
_BETWEEN: Final = frozenset(" -._/\\()[]{}*|,;~+·'\":=<>\n#^")
_JOINING: Final = frozenset((
    "y", "and", "then", "luego", "despues", "guion", "dash", "espacio", "space", "punto", "dot", "mas",
    "plus", "followed", "by",
))  # fmt: skip
MAX_WORD_CHARS: Final = 120
_NUMBER_WORD: Final = re.compile("[0-9]|" + "|".join(sorted(number_words.WORDS, key=len, reverse=True)))
MAX_GAP_CHARS: Final = 5
"""More than this between two figures, and they are no one row."""
_UNITS: Final = frozenset((
    "eur", "euro", "euros", "usd", "gbp", "dolar", "dolares", "dollar", "dollars", "pound", "pounds",
    "libras", "quid", "km", "kms", "kilometros", "kilometers", "kilometres", "miles", "millas", "cm",
    "mm", "m", "metros", "metres", "meters", "ft", "feet", "pies", "pulgadas", "inch", "inches", "kg",
    "kilos", "g", "gr", "gramos", "grams", "lb", "lbs", "gb", "tb", "mb", "w", "kw", "v", "hz", "khz",
    "mhz", "ghz", "mah", "ah", "wh", "l", "litros", "litres", "liters", "ml", "cv", "hp", "anos", "years",
    "meses", "months", "dias", "days", "horas", "hours", "minutos", "minutes", "piezas", "pieces",
    "fotos", "disparos", "shots", "percent", "ciento", "mil", "x", "unidades", "units", "metro",
    "personas", "people", "plazas", "puertas",
))  # fmt: skip
_MONEY: Final = frozenset("€$£")
_NOT_PHONE: Final = frozenset((
    "ref", "referencia", "reference", "order", "pedido", "part", "pieza", "serie", "serial", "tracking",
    "seguimiento", "isbn", "barcode", "barras", "ean", "lote", "lot", "model", "modelo", "set",
    "bastidor", "frame", "chasis", "chassis", "imei", "matricula", "plate", "version", "cartucho",
    "cartridge", "modelos", "sku", "upc", "pin", "articulo", "item", "edicion", "edition",
))  # fmt: skip
_PHONE: Final = frozenset((
    "llama", "llamame", "llamar", "llamas", "llamarme", "llamadme", "telefono", "telefonos", "tel",
    "telf", "tlf", "tlfn", "tfno", "tfn", "fono", "movil", "cel", "celular", "numero", "contacto",
    "contactame", "contactar", "localizarme", "marca", "marcame", "telefoneame", "escribeme", "escribir",
    "hablame", "apunta", "anota", "call", "ring", "text", "phone", "ph", "cell", "mobile", "reach",
    "dial", "number", "digits", "buzz", "ping", "message", "contact", "shout", "bell", "sms", "fijo",
    "linea",
))  # fmt: skip

_LIST: Final = re.compile(r"[0-9]{1,4}(?:, [0-9]{1,4})+,? (?:y|and|o|or|&) [0-9]{1,4}\Z")
"""612, 345 and 678."""
_ANY_NUMBER: Final = frozenset(
    ("numero", "number", "digits", "contacto", "contact", "message", "anota", "apunta")
)
"""Said of other numbers as well."""

IBAN_CHARS: Final = {
    "ad": 24, "ae": 23, "at": 20, "be": 16, "bg": 22, "ch": 21, "cy": 28, "cz": 24, "de": 22,
    "dk": 18, "ee": 20, "es": 24, "fi": 18, "fr": 27, "gb": 22, "gi": 23, "gr": 27, "hr": 21,
    "hu": 28, "ie": 22, "is": 26, "it": 27, "li": 21, "lt": 20, "lu": 20, "lv": 21, "mc": 27,
    "mt": 31, "nl": 18, "no": 15, "pl": 28, "pt": 25, "ro": 24, "se": 24, "si": 19, "sk": 24,
    "sm": 27, "tr": 26, "ua": 29, "br": 29, "ma": 28, "do": 28,
}  # fmt: skip
"""Length of an IBAN by country."""
_IBAN: Final = re.compile(
    r"(?<![a-z0-9])[a-z][ .-]?[a-z][ .:-]{0,2}[0-9o][ .-]?[0-9o](?:[ .-]{0,2}[a-z0-9]){10,40}"
)
_NATIONAL: Final = re.compile(
    r"(?<![a-z0-9])(?:([xyz])[ .-]?([0-9]{7})|([0-9]{2}[. ]?[0-9]{3}[. ]?[0-9]{3}))[ .-]?([a-z])(?![a-z0-9])"
)
_DNI_LETTERS: Final = "trwagmyfpdxbnjzsqvhlcke"


class Element(NamedTuple):
    """One number of a row."""

    figures: str
    word: bool
    """Written in words, or with letters for figures."""
    start: int
    end: int


class Row(NamedTuple):
    """Numbers that follow each other with hardly anything between."""

    elements: tuple[Element, ...]
    before: str
    """What stands before it, up to 40 characters."""
    after: str
    text: str
    """The row as written."""

    @property
    def figures(self) -> str:
        return "".join(element.figures for element in self.elements)


def rows(text: str) -> list[Row]:
    """The rows of a folded text that hold at least 5 figures."""
    found: list[Row] = []
    current: list[Element] = []
    for element in _elements(text):
        if current and not _follows(text, current[-1].end, element.start):
            _close(text, current, found)
            current = []
        current.append(element)
    _close(text, current, found)
    return found


def _close(text: str, current: list[Element], found: list[Row]) -> None:
    if sum(len(element.figures) for element in current) < 5:
        return
    while current and (
        _is_amount(text, current[-1]) or _UNIT_END.match(text, current[-1].start, current[-1].end)
    ):
        current = current[:-1]
    if not current or sum(len(element.figures) for element in current) < 5:
        return
    start, end = current[0].start, current[-1].end
    found.append(Row(tuple(current), text[max(0, start - 40) : start], text[end : end + 40], text[start:end]))


def _is_amount(text: str, element: Element) -> bool:
    """Whether a unit or a currency belongs to the number: then it counts something."""
    if len(element.figures) >= 9:
        return False
    after = text[element.end : element.end + 16].lstrip(" ")
    if after[:1] in _MONEY or after[:1] == "%":
        return True
    word = _CHUNK.match(after)
    if word is not None and word[0] in _UNITS:
        return True
    return text[max(0, element.start - 2) : element.start].strip(" ")[-1:] in _MONEY


def _follows(text: str, end: int, start: int) -> bool:
    between = text[end:start]
    if len(between) <= MAX_GAP_CHARS and all(letter in _BETWEEN for letter in between):
        return "=" not in between and "\n\n" not in between
    if len(between) > 24:
        return False
    words = _CHUNK.findall(between)
    signs = _CHUNK.sub("", between)
    return bool(words) and all(word in _JOINING for word in words) and all(sign in _BETWEEN for sign in signs)


def _elements(text: str) -> Iterator[Element]:
    """The numbers of a text one after the other."""
    chunks = [(found[0], found.start(), found.end()) for found in _CHUNK.finditer(text)]
    words = [chunk[0] for chunk in chunks]
    at = 0
    while at < len(words):
        word, start, end = chunks[at]
        if word.isdigit():
            yield Element(word, False, start, end)
            at += 1
            continue
        if word.isalpha():
            if word in number_words.BEGINNINGS:
                figures, after = number_words.take(words, at)
                if after > at and _near(text, chunks, at, after):
                    yield Element(figures, True, start, chunks[after - 1][2])
                    at = after
                    continue
                if word in number_words.WORDS:
                    yield Element(number_words.take([word], 0)[0], True, start, end)
            elif len(word) >= 6 and (glued := _glued(word)):
                yield Element(glued, True, start, end)
            elif word in ("o", "oo") and _beside_number(words, at):
                yield Element("0" * len(word), True, start, end)
            at += 1
            continue
        figures = _mixed(word)
        if figures:
            yield Element(figures, True, start, end)
        at += 1


def _near(text: str, chunks: list[tuple[str, int, int]], at: int, after: int) -> bool:
    """Whether the words of one number stand together ("treinta. y" do not)."""
    return all(text[chunks[n][2] : chunks[n + 1][1]].strip(" -") == "" for n in range(at, after - 1))


def _beside_number(words: list[str], at: int) -> bool:
    before = words[at - 1] if at else ""
    after = words[at + 1] if at + 1 < len(words) else ""
    return (before in number_words.WORDS or before.isdigit()) and (
        after in number_words.WORDS or after.isdigit()
    )


def _mixed(word: str) -> str:
    """The figures of a word of letters and figures; "" when it is none."""
    if len(word) > MAX_WORD_CHARS:
        return ""
    if _PAIRS.match(word):
        return "".join(letter for letter in word if letter.isdigit())
    spoken = deleeted(word)
    if spoken in number_words.WORDS:
        return number_words.take([spoken], 0)[0]
    if glued := _glued(word):
        return glued
    letters = [letter for letter in word if letter.isalpha()]
    if len(letters) <= max(2, 2 * len(word) // 3) and all(letter in "oqils" for letter in letters):
        return word.translate(_LETTER_DIGITS)
    return ""


def _glued(word: str) -> str:
    """The figures of number words written without blanks: "seisunodos"; "" when it is no such word."""
    if len(word) > MAX_WORD_CHARS:
        return ""
    parts = _NUMBER_WORD.findall(word)
    if len(parts) < 2 or sum(map(len, parts)) != len(word):
        return ""
    return "".join(part if part.isdigit() else number_words.take([part], 0)[0] for part in parts)


# --- what a row is ------------------------------------------------------------------------------------


def phone(row: Row) -> bool:
    """Whether a row is, or hides, a phone number."""
    figures = row.figures
    count = len(figures)
    if count < 7 or count > 18:
        return False
    near = set(_CHUNK.findall(row.before))
    about = near | set(_CHUNK.findall(row.after[:24]))
    said = bool(about & _PHONE)
    elements = row.elements
    if _enumeration(row) or _is_date(row):
        return False
    if near & _NOT_PHONE and not about & _PHONE - _ANY_NUMBER:
        return False
    if len(elements) == 1 and not elements[0].word and count in (8, 12, 13) and _ean(figures):
        return False
    if row.before.rstrip(" (").endswith("+"):
        return count >= 8
    hidden = _hidden(row)
    if _national_shape(figures):
        return True
    if hidden:
        alone = len(elements) >= 4 and all(element.word for element in elements)
        return count >= 9 or said or alone
    if count >= 9:
        return said and not _listed(row)
    return said and not _listed(row) and (len(elements) == 1 or count >= 7) and not near & _NOT_PHONE


def _national_shape(figures: str) -> bool:
    bare = figures[2:] if figures.startswith("00") else figures
    for code, length in (
        ("34", 9),
        ("44", 10),
        ("1", 10),
        ("351", 9),
        ("33", 9),
        ("353", 9),
        ("39", 10),
        ("49", 10),
    ):
        if (
            bare.startswith(code)
            and len(bare) == len(code) + length
            and (len(bare) != len(figures) or code != "1")
        ) and (code != "34" or bare[2] in "6789"):
            return True
    if len(figures) == 9:
        return figures[0] in "6789"
    if len(figures) == 10:
        return (figures[0] in "23456789" and figures[3] in "23456789") or figures[0] == "7"
    if len(figures) == 11 and figures[0] == "1":
        return figures[1] in "23456789" and figures[4] in "23456789"
    if len(figures) == 11:
        return figures[0] == "0" and figures[1] in "1237"
    return False


def _hidden(row: Row) -> bool:
    """Whether it is written so that a machine should not find it."""
    if sum(len(element.figures) for element in row.elements if element.word) >= 4:
        return True
    return len(row.elements) >= 7 and all(len(element.figures) == 1 for element in row.elements)


def _enumeration(row: Row) -> bool:
    """1, 2, 3, 4 ...: the same step from each number to the next, or ever larger ones with commas between."""
    elements = row.elements
    if len(elements) < 3 or any(len(element.figures) > 4 for element in elements):
        return False
    if len(elements) == 3 and _LIST.match(row.text) is None:
        return False
    values = [int(element.figures) for element in elements]
    steps = {after - before for before, after in itertools.pairwise(values)}
    if len(steps) == 1 and 0 not in steps:
        return True
    if not any(element.word for element in elements) and _LIST.match(row.text) is not None:
        return not set(_CHUNK.findall(row.before)) & (_PHONE - _ANY_NUMBER)
    spoken = any(element.word for element in elements)
    return not spoken and row.text.count(",") >= len(values) - 2 and all(step > 0 for step in steps)


def _listed(row: Row) -> bool:
    return row.text.count(", ") >= 3


def _is_date(row: Row) -> bool:
    return re.match(r"[0-9]{1,2}([/.-])[0-9]{1,2}\1(?:19|20)[0-9]{2}(?![0-9])", row.text) is not None or (
        re.match(r"(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}(?![0-9])", row.text) is not None
    )


def _ean(figures: str) -> bool:
    """EAN-8, UPC-A, EAN-13 and so ISBN-13: weights 3 and 1 from the right, sum divisible by 10."""
    total = sum(int(digit) * (3 if n % 2 else 1) for n, digit in enumerate(reversed(figures)))
    return total % 10 == 0


def card(row: Row) -> bool:
    """A payment card: 15 to 19 figures, the first of a card network, Luhn holds."""
    figures = row.figures
    count = len(figures)
    if not (16 <= count <= 19 and figures[0] in "23456") and not (
        count == 15 and figures[:2] in ("34", "37")
    ):
        return False
    total = 0
    for n, digit in enumerate(reversed(figures)):
        value = int(digit) * (2 if n % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def account(row: Row) -> bool:
    """A Spanish account number (CCC): 20 figures, check digits over bank and branch, and the account."""
    figures = row.figures
    if len(figures) != 20:
        return False
    weights = (1, 2, 4, 8, 5, 10, 9, 7, 3, 6)

    def check(part: str) -> int:
        left = 11 - sum(int(digit) * weight for digit, weight in zip(part, weights, strict=True)) % 11
        return {10: 1, 11: 0}.get(left, left)

    return check("00" + figures[:8]) == int(figures[8]) and check(figures[10:]) == int(figures[9])


def long_row(row: Row) -> bool:
    """So many figures, in words or one by one, that they can only be a number that is hidden."""
    return len(row.figures) >= 10 and _hidden(row) and not _enumeration(row)


def iban(text: str) -> bool:
    """Whether a folded text holds an IBAN."""
    for found in _IBAN.finditer(text):
        bare = "".join(_CHUNK.findall(found[0]))
        length = IBAN_CHARS.get(bare[:2])
        if length is None or len(bare) < length:
            continue
        head = bare[:2] + bare[2:4].replace("o", "0") + bare[4:length]
        moved = head[4:] + head[:4]
        value = int("".join(str(int(letter, 36)) for letter in moved))
        if value % 97 == 1 or "iban" in text:
            return True
    return False


def national_id(text: str) -> bool:
    """Whether a folded text holds a DNI or NIE whose letter is right."""
    for found in _NATIONAL.finditer(text):
        prefix, seven, eight, letter = found.groups()
        figures = f"{'xyz'.index(prefix)}{seven}" if prefix else re.sub(r"[^0-9]", "", eight)
        if _DNI_LETTERS[int(figures) % 23] == letter:
            return True
    return False
