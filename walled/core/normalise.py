"""What a text says when its disguise is taken off: the forms of it that rules are matched against.

May live here: folding of letters, joining of what was spaced out, undoing of leetspeak, spoken addresses.
May not: rules, numbers (digits.py), any library. Every step is linear in the text: fixed tables, and regular
expressions whose parts exclude each other, so that nothing is tried twice.

Look-alike letters are those a person takes for Latin ones on a screen (Unicode TR39 calls them confusables);
the table holds what is met in disguises, not all of Unicode's.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple


class Views(NamedTuple):
    """The forms of one text, all in lower-case Latin letters without accents."""

    text: str
    """As written."""
    plain: str
    """Spaced-out words joined, leetspeak undone (1 as i); "" when that changes nothing."""
    other: str
    """The same with 1 as l; "" when that changes nothing."""
    compact: str
    """Letters and digits alone, for words too long to come about by chance."""
    address: str
    """With spoken and bracketed "at" and "dot" as signs."""
    numbers: str
    """For rows of figures: as written, spelled-out words joined."""

    def texts(self) -> list[str]:
        """Those that patterns are matched against."""
        return [view for view in (self.text, self.plain, self.other) if view]


_LOOK_ALIKE: Final = {
    # Cyrillic
    "а": "a", "в": "b", "с": "c", "ԁ": "d", "е": "e", "ё": "e", "һ": "h", "н": "h", "і": "i", "ї": "i",
    "ј": "j", "к": "k", "ӏ": "l", "м": "m", "п": "n", "о": "o", "р": "p", "ԛ": "q", "г": "r", "ѕ": "s",
    "т": "t", "у": "y", "ѵ": "v", "ѡ": "w", "ш": "w", "щ": "w", "ԝ": "w", "х": "x", "ӽ": "x", "з": "3",
    "б": "6", "ь": "b", "ѣ": "b", "є": "e", "э": "e", "и": "u", "ц": "u", "я": "r", "ч": "4",
    # Greek
    "α": "a", "β": "b", "ϲ": "c", "δ": "d", "ε": "e", "φ": "f", "γ": "y", "η": "n", "ι": "i", "κ": "k",
    "λ": "l", "μ": "u", "ν": "v", "ο": "o", "ρ": "p", "σ": "o", "ς": "c", "τ": "t", "υ": "u", "χ": "x",
    "ω": "w", "ζ": "z", "ϳ": "j",
    # Latin beside the alphabet, small capitals, phonetic letters
    "ı": "i", "ł": "l", "đ": "d", "ð": "d", "ø": "o", "ħ": "h", "ŧ": "t", "ŀ": "l", "æ": "ae", "œ": "oe",
    "þ": "p", "ƒ": "f", "ǝ": "e", "ɑ": "a", "ɒ": "a", "ɓ": "b", "ɔ": "c", "ɗ": "d", "ə": "e", "ɛ": "e",
    "ɡ": "g", "ɢ": "g", "ɦ": "h", "ɩ": "i", "ɪ": "i", "ɫ": "l", "ɭ": "l", "ɯ": "w", "ɱ": "m", "ɲ": "n",
    "ɴ": "n", "ɵ": "o", "ɾ": "r", "ʀ": "r", "ʂ": "s", "ʃ": "s", "ʈ": "t", "ʉ": "u", "ʊ": "u", "ʋ": "v",
    "ʍ": "w", "ʏ": "y", "ʐ": "z", "ʙ": "b", "ʜ": "h", "ʟ": "l", "ᴀ": "a", "ᴃ": "b", "ᴄ": "c", "ᴅ": "d",
    "ᴇ": "e", "ᴊ": "j", "ᴋ": "k", "ᴍ": "m", "ᴏ": "o", "ᴘ": "p", "ᴛ": "t", "ᴜ": "u", "ᴠ": "v", "ᴡ": "w",
    "ᴢ": "z", "ꜱ": "s", "ꜰ": "f", "ꞓ": "c", "ꮃ": "w", "ꮪ": "s", "ꭺ": "a",
    # Armenian, Cherokee, Hebrew, Arabic figures are digits already (NFKC, \d)
    "հ": "h", "ո": "n", "ս": "u", "օ": "o", "ց": "g", "զ": "q", "ա": "w", "յ": "j", "Ꭺ": "a", "Ꮃ": "w",
    "Ꮋ": "h", "Ꭲ": "t", "Ꮪ": "s", "Ꮲ": "p", "Ꭼ": "e", "Ꮮ": "l", "Ꭱ": "r", "Ꮇ": "m", "Ꮖ": "i", "ס": "o",
    # Signs
    "№": "no", "º": "o", "ª": "a", "’": "'", "‘": "'", "`": "'", "´": "'", "“": '"', "”": '"', "«": '"',
    "»": '"', "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "―": "-", "−": "-", "⁄": "/", "∕": "/",
    "·": ".", "•": ".", "∙": ".", "。": ".", "․": ".", "ꓸ": ".", "、": ",", "，": ",", "｡": ".", "¡": " ",
    "¿": " ", "…": "...", "✆": " tel ", "☎": " tel ", "📞": " tel ", "📱": " tel ", "📲": " tel ",
    "₩": "w", "¢": "c", "₱": "p", "฿": "b", "₳": "a", "₮": "t", "₴": "s", "₦": "n", "₭": "k",
    "₲": "g", "¥": "y", "✉": " email ", "📧": " email ", "📩": " email ", "📨": " email ",
}  # fmt: skip


def _table() -> dict[int, str]:
    table = {ord(letter): plain for letter, plain in _LOOK_ALIKE.items()}
    for first in (0x1F150, 0x1F170, 0x1F1E6):  # letters in black circles, in black squares, of flags
        table |= {first + n: chr(ord("a") + n) for n in range(26)}
    table |= {0x2776 + n: str(n + 1) for n in range(9)}  # digits in black circles
    table |= {0x278A + n: str(n + 1) for n in range(9)}
    table |= {0x24EB + n: str(n + 11) for n in range(10)}
    table[0x24FF] = "0"
    return table


_TABLE: Final = _table()
_UNSEEN: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff"
    "\u20d0-\u20ff\ufe20-\ufe2f\ud800-\udfff\x00-\x08\x0e-\x1f\x7f]"
)
"""Characters of no width, marks on other characters, controls, halves of none."""
_FOREIGN_DIGIT: Final = re.compile(r"[^\x00-\x7f\D]")
_SPACED: Final = re.compile(r"(?<![a-z0-9])\S(?: \S){3,}(?![a-z0-9])")
"""Single characters with a space between: "w h a t s", "g m a i l . c o m"."""
_DOTTED: Final = re.compile(r"(?<![a-z0-9])[a-z0-9@$!](?:[ ._*~/|,:-]{1,3}[a-z0-9@$!]){3,}(?![a-z0-9])")
"""Single letters with other signs between: "w.h.a.t.s"."""
_LETTERS: Final = re.compile(r"(?<![a-z0-9])[a-z](?:[ ._*~/|-]{1,3}[a-z]){2,}(?![a-z0-9])")
"""Single letters alone, for numbers in words; figures keep what stands between them."""
_SIGNS: Final = re.compile(r"[ ._*~/|,:-]+")
_LONG: Final = re.compile(r"([a-vx-z])\1{2,}")
_MIXED: Final = re.compile(
    r"(?<![a-z0-9@$!|])(?:[a-z]++[0-9@$!|][a-z0-9@$!|]*+|[0-9@$!|]++[a-z][a-z0-9@$!|]*+)"
)
"""Words of letters and of what can stand for letters; the same without @, which addresses are told by."""
_MIXED_NO_AT: Final = re.compile(
    r"(?<![a-z0-9$!|])(?:[a-z]++[0-9$!|][a-z0-9$!|]*+|[0-9$!|]++[a-z][a-z0-9$!|]*+)"
)
_NOT_WORD: Final = re.compile(r"[^a-z0-9]+")
_LEET: Final = str.maketrans("0134578@$!|2", "oieastbasiiz")
_LEET_L: Final = str.maketrans("0134578@$!|2", "oleastbasllz")

_PROVIDERS: Final = (
    "gmail|hotmail|outlook|yahoo|icloud|proton|protonmail|live|msn|aol|gmx|mail|zoho|yandex|ymail|googlemail"
)
_AT: Final = re.compile(
    r" ?[(\[{<] ?(?:at|arroba|aroba|@|a) ?[)\]}>] ?| ?[-_*]+(?:at|arroba)[-_*]+ ?| (?:arroba|aroba) ?"
    r"| at (?=(?:" + _PROVIDERS + r")\b|[a-z0-9-]{2,40} (?:dot|punto)\b)| ?@ ?"
)
_ADDRESS: Final = re.compile(r"[@(\[{<]|rroba|\barob|\bdot\b|\bpunto\b|\bat[-_*]|\bat (?:" + _PROVIDERS + ")")
"""Where none of this occurs nothing is an address that has to be written out."""
_SIGN_DOT: Final = r" ?[(\[{<] ?(?:dot|punto|\.) ?[)\]}>] ?| ?[-_*]+(?:dot|punto)[-_*]+ ?"
_DOT: Final = re.compile(_SIGN_DOT + r"| (?:dot|punto) (?=[a-z]{2,40}\b)")
_DOT_ALONE: Final = re.compile(
    _SIGN_DOT + r"| (?:dot|punto) (?=(?:com|net|org|info|shop|online|xyz|site|store|eu|io|app|club|top|co)\b)"
    r"| (?:dot|punto) (?=es(?: ?[,;!?/]| barra\b|\.? ?\Z))"
)
"""Where there is no "at", a "dot" is one only before what can end a name: "el punto es que", "punto de"."""


def views(text: str) -> Views:
    """All forms of a text."""
    seen = folded(text)
    joined = _LONG.sub(r"\1", _DOTTED.sub(_no_signs, _SPACED.sub(_no_space, seen)))
    plain = _MIXED.sub(_deleet, joined)
    other = _MIXED.sub(_deleet_l, joined) if "1" in joined or "!" in joined or "|" in joined else ""
    address = _MIXED_NO_AT.sub(_deleet, joined) if "@" in joined else plain
    if _ADDRESS.search(address):
        address = _AT.sub("@", address)
        address = (_DOT if "@" in address else _DOT_ALONE).sub(".", address)
    return Views(
        seen,
        plain if plain != seen else "",
        other if other not in (seen, plain) else "",
        _NOT_WORD.sub("", plain),
        address,
        _LETTERS.sub(_no_signs, seen),
    )


def folded(text: str) -> str:
    """Lower case, compatibility forms and look-alikes replaced, accents and what has no width removed, white
    space made one blank (or one line end)."""
    if text.isascii():
        plain = text.lower()
    else:
        plain = unicodedata.normalize("NFKC", text).casefold()
        if not plain.isascii():
            plain = _UNSEEN.sub("", unicodedata.normalize("NFD", plain))
        if not plain.isascii():
            plain = _FOREIGN_DIGIT.sub(_ascii_digit, plain.translate(_TABLE))
    if "\n" in plain:
        return "\n".join(" ".join(line.split()) for line in plain.split("\n") if line and not line.isspace())
    return " ".join(plain.split())


def _ascii_digit(found: re.Match[str]) -> str:
    value = unicodedata.decimal(found[0], None)
    return found[0] if value is None else str(value)


def _no_space(found: re.Match[str]) -> str:
    return found[0].replace(" ", "")


def _no_signs(found: re.Match[str]) -> str:
    return _SIGNS.sub("", found[0])


def deleeted(word: str) -> str:
    """A word in which letters stand as digits or signs, with its letters: "wh4ts4pp". A number stays one."""
    return word if word.isalpha() or word.isdigit() else word.translate(_LEET)


def _deleet(found: re.Match[str]) -> str:
    return found[0].translate(_LEET)


def _deleet_l(found: re.Match[str]) -> str:
    return found[0].translate(_LEET_L)
