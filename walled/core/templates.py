"""Answers written beforehand: which intent a request has, in which language, and the words for it.

May live here: the structures, their checks, matching, choosing, filling, the packed form. May not: files
(adapters/template_files.py), the cache (adapters/cache.py), when a template is served (ladder).

A pattern is one or more phrases joined by ` + ` (all must occur, in any order). A phrase is up to MAX_WORDS
words that must follow each other; a word that ends in `~` stands for all words beginning so. Text and
patterns are compared without case, accents and punctuation. There is no backtracking: each word of a text is
looked up in a table of the phrases that begin with it, so the time is linear in the (capped) text.

Choosing is reproducible: session and intent give a place to start among the variants, each turn of the user
goes one further, and the text the assistant said last is never said again while there is another.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from walled.errors import ConfigError
from walled.payload import Request
from walled.protocol import Mode

FALLBACK: Final = "fallback"
"""The intent that answers when no other does; it has no patterns."""
MAX_LOOKED_CHARS: Final = 2000
"""Of a message, and of the conversation when its language is counted."""
MAX_WORDS: Final = 8
MAX_PHRASES: Final = 4
MAX_VARIANT_CHARS: Final = 1000
MAX_ENTRIES: Final = 200
"""Intents of a set, patterns or variants of a language."""
MIN_PREFIX_CHARS: Final = 3
MAX_WORD_CHARS: Final = 64
"""Longer words of a text are not looked at beyond this."""

_MAGIC: Final = b"WLT1"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,47}\Z")
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,4})?\Z")
_SLOT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_APOSTROPHES: Final = str.maketrans("", "", "'’`´")

Phrase = tuple[str, ...]
Hit = tuple[tuple[int, int, int], str, str]
"""Rank, intent, language of a pattern that occurs."""
Part = tuple[str, str]
"""Literal text, and the slot after it ("" after the last)."""


class Block(msgspec.Struct, frozen=True):
    """One intent in one language, as written."""

    patterns: tuple[str, ...]
    variants: tuple[str, ...]


class Intent(msgspec.Struct, frozen=True):
    """One intent, as written."""

    priority: int = 0
    """Of two intents whose patterns match the higher one wins, then the longer pattern, then the first."""
    languages: dict[str, Block] = {}


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What of the ladder's configuration a client must know while the daemon is dead."""

    mode: Mode = "auto"
    hybrid_intents: tuple[str, ...] = ()
    stale: bool = True
    templates: bool = True
    route_modes: dict[str, str] = {}
    """Of the routes that have a mode of their own."""


class _Packed(msgspec.Struct, frozen=True):
    language: str
    words: dict[str, tuple[str, ...]]
    intents: dict[str, Intent]
    rules: Rules


class Choice(NamedTuple):
    """A template that fits, filled."""

    text: str
    intent: str
    language: str


class _Pattern(NamedTuple):
    rank: tuple[int, int, int]
    intent: str
    language: str
    phrases: tuple[int, ...]


class TemplateSet:
    """Intents and languages, ready for matching. Never changed once made."""

    def __init__(
        self,
        intents: Mapping[str, Intent],
        words: Mapping[str, Iterable[str]],
        language: str = "en",
        rules: Rules = Rules(),  # noqa: B008 (frozen)
    ) -> None:
        """Takes only what `load_plain` has checked."""
        self.language = language
        """Where the language of a request cannot be told."""
        self.rules = rules
        self._intents = dict(intents)
        self._words = {name: tuple(normalised(" ".join(found))) for name, found in words.items()}
        self._counted = {name: frozenset(found) for name, found in self._words.items()}
        self._variants = {
            (name, code): tuple(parts_of(text) for text in block.variants)
            for name, intent in intents.items()
            for code, block in intent.languages.items()
        }
        self._patterns: list[list[_Pattern]] = []
        """By the number of their first phrase."""
        self._by_word: dict[str, list[tuple[int, Phrase]]] = {}
        self._by_prefix: dict[str, list[tuple[int, Phrase]]] = {}
        self._longest_prefix = 0
        self._compile()

    @property
    def intents(self) -> tuple[str, ...]:
        return tuple(self._intents)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(sorted({code for intent in self._intents.values() for code in intent.languages}))

    def with_rules(self, rules: Rules, language: str) -> TemplateSet:
        """The same templates under other settings."""
        return TemplateSet(self._intents, self._words, language, rules)

    def variants(self, intent: str, language: str) -> tuple[tuple[Part, ...], ...]:
        return self._variants.get((intent, language), ())

    def pack(self) -> bytes:
        """What the cache file holds: a mark, a checksum, MessagePack."""
        body = msgspec.msgpack.encode(_Packed(self.language, self._words, self._intents, self.rules))
        return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body

    # --- matching -------------------------------------------------------------------------------------

    def found(self, text: str) -> list[Hit]:
        """(rank, intent, language) of the patterns that occur in a text; the higher rank is the better."""
        present = self._present(normalised(text))
        return [
            (pattern.rank, pattern.intent, pattern.language)
            for number in present
            for pattern in self._patterns[number]
            if all(other in present for other in pattern.phrases)
        ]

    def spoken(self, texts: Iterable[str]) -> str:
        """The language most of whose small words occur; "" when none leads."""
        counts = dict.fromkeys(self._counted, 0)
        for text in texts:
            for word in normalised(text):
                for name, known in self._counted.items():
                    counts[name] += word in known
        ranked = sorted(counts.values(), reverse=True)
        if not ranked or ranked[0] == 0 or (len(ranked) > 1 and ranked[0] == ranked[1]):
            return ""
        return max(counts, key=lambda name: counts[name])

    def _compile(self) -> None:
        numbers: dict[Phrase, int] = {}
        for order, (name, intent) in enumerate(self._intents.items()):
            for code, block in intent.languages.items():
                for text in block.patterns:
                    phrases = phrases_of(text)
                    ids = tuple(numbers.setdefault(phrase, len(numbers)) for phrase in phrases)
                    chars = sum(len(word) for phrase in phrases for word in phrase)
                    self._patterns += [[] for _ in range(len(numbers) - len(self._patterns))]
                    self._patterns[ids[0]].append(_Pattern((intent.priority, chars, -order), name, code, ids))
        for phrase, number in numbers.items():
            first = phrase[0]
            if first.endswith("~"):
                self._by_prefix.setdefault(first[:-1], []).append((number, phrase))
                self._longest_prefix = max(self._longest_prefix, len(first) - 1)
            else:
                self._by_word.setdefault(first, []).append((number, phrase))

    def _present(self, words: list[str]) -> set[int]:
        """Numbers of the phrases that occur."""
        present = set()
        for at, word in enumerate(words):
            candidates = list(self._by_word.get(word, ()))
            for length in range(MIN_PREFIX_CHARS, min(len(word), self._longest_prefix) + 1):
                candidates += self._by_prefix.get(word[:length], ())
            for number, phrase in candidates:
                if number not in present and _follows(phrase, words, at):
                    present.add(number)
        return present


def _follows(phrase: Phrase, words: list[str], at: int) -> bool:
    if at + len(phrase) > len(words):
        return False
    for offset, wanted in enumerate(phrase):
        word = words[at + offset]
        if wanted.endswith("~"):
            if not word.startswith(wanted[:-1]):
                return False
        elif word != wanted:
            return False
    return True


def normalised(text: str) -> list[str]:
    """The words of a text without case, accents and punctuation."""
    plain = unicodedata.normalize("NFKD", text.casefold().translate(_APOSTROPHES))
    # One letter can become eighteen; what is over the cap afterwards is not looked at either.
    plain = plain[: 2 * MAX_LOOKED_CHARS]
    letters = [letter if letter.isalnum() else " " for letter in plain if not unicodedata.combining(letter)]
    return [word[:MAX_WORD_CHARS] for word in "".join(letters).split()]


def phrases_of(pattern: str) -> tuple[Phrase, ...]:
    """A pattern taken apart. Raises ValueError saying what is wrong with it."""
    phrases = []
    for text in pattern.split(" + "):
        words: list[str] = []
        for written in text.split():
            parts = normalised(written.removesuffix("~"))
            if written.endswith("~"):
                if not parts or len(parts[-1]) < MIN_PREFIX_CHARS:
                    raise ValueError(f"`{written}`: `~` needs at least {MIN_PREFIX_CHARS} letters before it")
                parts[-1] += "~"
            words += parts
        if not words:
            raise ValueError("a phrase has no word")
        if len(words) > MAX_WORDS:
            raise ValueError(f"a phrase has {len(words)} words; at most {MAX_WORDS} are taken")
        phrases.append(tuple(words))
    if len(phrases) > MAX_PHRASES:
        raise ValueError(f"{len(phrases)} phrases; at most {MAX_PHRASES} are taken")
    return tuple(phrases)


def parts_of(variant: str) -> tuple[Part, ...]:
    """A variant taken apart at its {slots}; `{{` and `}}` are braces. Raises ValueError."""
    parts: list[Part] = []
    literal = ""
    at = 0
    while at < len(variant):
        letter = variant[at]
        if letter in "{}" and variant[at : at + 2] == letter * 2:
            literal += letter
            at += 2
        elif letter == "}":
            raise ValueError("a `}` without `{`; write `}}` for a brace")
        elif letter == "{":
            end = variant.find("}", at)
            name = variant[at + 1 : end] if end > 0 else ""
            if not _SLOT.match(name):
                raise ValueError("a slot is {name}, of letters, digits and _; write `{{` for a brace")
            parts.append((literal, name))
            literal = ""
            at = end + 1
        else:
            literal += letter
            at += 1
    parts.append((literal, ""))
    return tuple(parts)


def _filled(parts: tuple[Part, ...], context: Mapping[str, str]) -> str | None:
    """The text, or None when the context lacks a slot. Values are text: braces in them mean nothing."""
    text = ""
    for literal, slot in parts:
        text += literal
        if slot:
            value = context.get(slot, "").strip()
            if not value:
                return None
            text += value
    return text


# --- choosing -----------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    text: str
    """The last message of the user, capped."""
    first: str
    users: tuple[str, ...]
    """What the user said last, newest first, capped together."""
    turns: int
    said: str
    """What the assistant said last."""


def _asked(request: Request) -> _Asked | None:
    """What templates look at; None for a request that none can answer."""
    if request.kind == "embed" or request.tools or request.format or request.images:
        return None
    if request.kind == "generate":
        text = request.prompt[:MAX_LOOKED_CHARS]
        return _Asked(text, text, (text,), 1, "")
    messages = [message for message in request.messages if message.role != "system"]
    if not messages or messages[-1].role != "user":
        return None
    if any(message.images or message.tool_calls for message in messages):
        return None
    users = [message.content for message in messages if message.role == "user"]
    said = next((message.content for message in reversed(messages) if message.role == "assistant"), "")
    return _Asked(
        users[-1][:MAX_LOOKED_CHARS], users[0][:MAX_LOOKED_CHARS], tuple(_newest(users)), len(users), said
    )


def _newest(texts: list[str]) -> Iterator[str]:
    left = MAX_LOOKED_CHARS
    for text in reversed(texts):
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


def matches(templates: TemplateSet, request: Request) -> str:
    """The intent of a request; "" when no pattern occurs in it or templates are not for such requests."""
    asked = _asked(request)
    return _intent_of(templates, asked, "")[0] if asked is not None else ""


def choose(
    templates: TemplateSet, request: Request, context: Mapping[str, str], session: str
) -> Choice | None:
    """The template for a request; None when none fits. The same arguments give the same answer."""
    asked = _asked(request)
    if asked is None:
        return None
    intent, language = _intent_of(templates, asked, templates.language)
    if intent:
        choice = _variant(templates, intent, language, asked, context, session)
        if choice is not None:
            return choice
    for code in dict.fromkeys((language, templates.language)):
        choice = _variant(templates, FALLBACK, code, asked, context, session)
        if choice is not None:
            return choice
    return None


def _intent_of(templates: TemplateSet, asked: _Asked, default: str) -> tuple[str, str]:
    """The intent, "" for none, and the language. Where patterns of several languages occur ("ok") those of
    the one the user speaks count."""
    spoken = templates.spoken(asked.users)
    hits = templates.found(asked.text)
    if not hits:
        return "", spoken or default

    def order(hit: Hit) -> tuple[int, bool, int, bool, int]:
        (priority, chars, place), _, language = hit
        return priority, language == spoken, chars, language == templates.language, place

    _, intent, language = max(hits, key=order)
    return intent, language


def _variant(
    templates: TemplateSet,
    intent: str,
    language: str,
    asked: _Asked,
    context: Mapping[str, str],
    session: str,
) -> Choice | None:
    plain: list[str] = []
    telling: list[str] = []
    for parts in templates.variants(intent, language):
        text = _filled(parts, context)
        if text is not None and text not in plain:
            plain.append(text)
            if len(parts) > 1:
                telling.append(text)
    # What states a fact of the context answers better; a single such text would be said again and again.
    texts = telling if len(telling) > 1 else plain
    if not texts:
        return None
    seed = f"{session or asked.first}\0{intent}".encode("utf-8", "replace")
    start = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big")
    at = (start + asked.turns) % len(texts)
    if texts[at] == asked.said:
        at = (at + 1) % len(texts)
    return Choice(texts[at], intent, language)


# --- from plain values and bytes ------------------------------------------------------------------------


def load_plain(
    data: Mapping[str, Any], where: str = "templates", base: TemplateSet | None = None
) -> TemplateSet:
    """A set from plain values (docs/templates.md), on top of another. Raises ConfigError, a line per problem.

    `where` names the origin of the values. An intent of the same name replaces that of `base` in whole.
    """
    problems: list[str] = []
    for key in data:
        if key not in ("intents", "languages"):
            problems.append(f"{key}: unknown key; valid here: intents, languages")
    words = dict(base._words) if base else {}
    for code, table in _table(data.get("languages", {}), "languages", problems).items():
        path = f"languages.{code}"
        found = _table(table, path, problems)
        problems += [f"{path}.{key}: unknown key; valid here: words" for key in found if key != "words"]
        if not _LANGUAGE.match(str(code)):
            problems.append(f"{path}: a language is a code such as en or es")
        words[code] = _texts(found.get("words"), f"{path}.words", problems)
    intents = dict(base._intents) if base else {}
    for name, table in _table(data.get("intents", {}), "intents", problems).items():
        if not _NAME.match(str(name)):
            problems.append(f"intents.{name}: a name is of small letters, digits and _, at most 48")
        intents[name] = _intent(str(name), _table(table, f"intents.{name}", problems), problems)
    if len(intents) > MAX_ENTRIES:
        problems.append(f"intents: {len(intents)}; at most {MAX_ENTRIES} are taken")
    if problems:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
    return TemplateSet(intents, words, base.language if base else "en", base.rules if base else Rules())


def _intent(name: str, table: dict[str, Any], problems: list[str]) -> Intent:
    path = f"intents.{name}"
    priority = table.get("priority", 0)
    if type(priority) is not int or not -100 <= priority <= 100:
        problems.append(f"{path}.priority: expected a whole number of -100 to 100, got {priority!r}")
        priority = 0
    blocks = {}
    for code, value in table.items():
        if code == "priority":
            continue
        here = f"{path}.{code}"
        if not _LANGUAGE.match(str(code)):
            problems.append(f"{here}: unknown key; valid here: priority, and languages such as en or es")
            continue
        block = _table(value, here, problems)
        problems += [
            f"{here}.{key}: unknown key; valid here: patterns, variants"
            for key in block
            if key not in ("patterns", "variants")
        ]
        patterns = _texts(
            block.get("patterns", [] if name == FALLBACK else None), f"{here}.patterns", problems
        )
        variants = _texts(block.get("variants"), f"{here}.variants", problems)
        if name == FALLBACK and patterns:
            problems.append(f"{here}.patterns: the fallback answers when no pattern matches; it has none")
        if name != FALLBACK and "patterns" in block and not patterns:
            problems.append(f"{here}.patterns: empty; nothing could ever match")
        if "variants" in block and not variants:
            problems.append(f"{here}.variants: empty; at least one text is needed")
        problems += _wrong(patterns, phrases_of, f"{here}.patterns")
        problems += _wrong(variants, parts_of, f"{here}.variants")
        blocks[code] = Block(patterns, variants)
    if not blocks:
        problems.append(f"{path}: no language; write [{path}.en] with patterns and variants")
    return Intent(priority, blocks)


def _wrong(texts: Iterable[str], check: Any, path: str) -> Iterator[str]:
    for number, text in enumerate(texts):
        try:
            check(text)
        except ValueError as exc:
            yield f"{path}[{number}]: {exc}"


def _table(value: Any, path: str, problems: list[str]) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    problems.append(f"{path}: expected a table, got {type(value).__name__}")
    return {}


def _texts(value: Any, path: str, problems: list[str]) -> tuple[str, ...]:
    if value is None:
        problems.append(f"{path}: missing; a list of texts is needed")
        return ()
    if not isinstance(value, list | tuple) or not all(
        isinstance(text, str) and text.strip() for text in value
    ):
        problems.append(f"{path}: expected a list of texts that are not empty")
        return ()
    if len(value) > MAX_ENTRIES or any(len(text) > MAX_VARIANT_CHARS for text in value):
        problems.append(f"{path}: at most {MAX_ENTRIES} texts of {MAX_VARIANT_CHARS} characters are taken")
        return ()
    return tuple(value)


def unpack(data: bytes) -> TemplateSet | None:
    """The set of packed bytes; None when they are damaged or of another version."""
    if data[:4] != _MAGIC or zlib.crc32(data[8:]).to_bytes(4, "little") != data[4:8]:
        return None
    try:
        packed = msgspec.msgpack.decode(data[8:], type=_Packed)
        return TemplateSet(packed.intents, packed.words, packed.language, packed.rules)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return None
