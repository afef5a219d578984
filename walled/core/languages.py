"""Which language a text is in, by its small words. May live here: the words, the count. May not: rules."""

from __future__ import annotations

import re
from typing import Final

_WORDS: Final = {
    "es": "el la los las un una de del que y en es esta este por para con se lo me te mi tu su si pero "
    "como muy tiene tienes puedo puedes hay hola gracias yo al no mas",
    "en": "the a an of and in is it its this that for with to i you your my me if but how when where what "
    "very do does have has can could would there hello hi thanks be are am on at any not will was "
    "we",
    "fr": "le la les un une des du de et en est ce cette pour avec se je tu il vous nous mon ma votre si "
    "mais comme tres bonjour merci pas plus dans sur au",
    "de": "der die das ein eine und in ist es dieser mit fur zu ich du sie wir mein ihr wenn aber wie "
    "sehr hallo danke nicht auch auf den dem von sind kann",
    "it": "il lo la gli le un una di del che e in questo per con si mi ti mio tuo se ma come molto ciao "
    "grazie non piu sono ho puoi della sul al",
    "pt": "o a os as um uma de do da que e em este esta por para com se me meu seu mas como muito tem "
    "posso voce ola obrigado nao mais sim",
}
_BY_WORD: Final[dict[str, tuple[str, ...]]] = {
    word: tuple(code for code, text in _WORDS.items() if word in text.split())
    for word in {word for text in _WORDS.values() for word in text.split()}
}
_WORD: Final = re.compile(r"[a-z]+")
MIN_WORDS: Final = 3
"""Fewer small words of a language than this tell nothing."""
MAX_LOOKED_CHARS: Final = 2000


def spoken(text: str) -> str:
    """The language of a folded text; "" where none leads clearly."""
    counts = dict.fromkeys(_WORDS, 0)
    for word in _WORD.findall(text[:MAX_LOOKED_CHARS]):
        for code in _BY_WORD.get(word, ()):
            counts[code] += 1
    (first, most), (_, next_most) = sorted(counts.items(), key=lambda pair: -pair[1])[:2]
    return first if most >= MIN_WORDS and most >= 1.3 * next_most else ""
