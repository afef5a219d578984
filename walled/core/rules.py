"""Validation rules: what one can say, its checks at load, the set ready for matching.

May live here: the structures, reading them from plain values, composing term lists into patterns. May not:
files (adapters/rule_files.py), the engine that runs patterns (adapters/patterns.py), verdicts (assess.py).

A rule finds something in an answer, in a prompt, or in both; docs/validation.md has the file format. A
pattern is a regular expression in RE2's syntax, without look-around and back-references, over the text in
lower-case Latin letters without accents (normalise.py). `{name}` in a pattern stands for a list of terms of
the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Protocol, get_args

import msgspec

from walled import schema
from walled.core.normalise import folded, views
from walled.errors import ConfigError

Severity = Literal["low", "medium", "high", "critical"]
Detector = Literal["phone", "card", "account", "iban", "national_id", "long_number"]
Side = Literal["answer", "prompt", "both"]
Language = Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2,3}$")]

SCORES: Final[dict[str, int]] = {"low": 15, "medium": 35, "high": 60, "critical": 90}
"""What a rule of a severity adds when it has no score of its own."""
MAX_RULES: Final = 500
MAX_PATTERNS: Final = 400
"""Of one rule."""
MAX_PATTERN_CHARS: Final = 20_000
"""With its lists filled in."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,47}\Z")
_WORD_SIGNS: Final = re.compile(r"[^a-z0-9]+")
_SLOT: Final = re.compile(r"\{([a-z_][a-z0-9_]*)\}")

Texts = tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=4000)], ...]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all tables of a rule file."""


class Bounds(_Table, frozen=True, kw_only=True):
    """Length and punctuation; a bound that is left out is none."""

    min_chars: Annotated[int, msgspec.Meta(ge=0)] | None = None
    max_chars: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_lines: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_exclamations: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """`!` in all."""
    max_questions: Annotated[int, msgspec.Meta(ge=0)] | None = None
    max_repeated: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """The same character so often in a row."""
    max_capitals: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """Share of the letters, in texts of 20 letters and more."""


class When(_Table, frozen=True, kw_only=True):
    """A rule counts only where all of this holds."""

    context: dict[str, str] = {}
    """Facts of the request's context: name = value; "*" is any value, "" is none."""
    prompt: Texts = ()
    """Patterns, one of which the user's last message matches."""


class Rule(_Table, frozen=True, kw_only=True):
    """One rule as written."""

    severity: Severity = "high"
    score: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    """What a match adds; without it that of the severity."""
    side: Side = "answer"
    patterns: Texts = ()
    compact: Texts = ()
    """Terms that are looked for in the text without blanks and signs."""
    address: Texts = ()
    """Patterns over the text with spoken addresses written out: "a dot b at c dot com" is "a.b@c.com"."""
    detect: tuple[Detector, ...] = ()
    unless: Texts = ()
    """Patterns; what they cover does not count."""
    deniable: bool = False
    """What is denied does not count: "I do not take ..."."""
    bounds: Bounds | None = None
    languages: tuple[Language, ...] = ()
    """The answer is in one of these, as far as that can be told."""
    same_language: bool = False
    """The answer is in the language of the user's last message, as far as both can be told."""
    require: Texts = ()
    """Patterns, each of which the answer must match."""
    require_facts: tuple[str, ...] = ()
    """Names in the context whose value the answer must say, when the context has them."""
    forbid_facts: tuple[str, ...] = ()
    """Names in the context whose value the answer must not say."""
    leak_words: Annotated[int, msgspec.Meta(ge=4, le=100)] | None = None
    """So many words in a row of the system prompt in the answer."""
    when: When | None = None
    replace: str | None = None
    """Repair: what stands in for each match of `patterns`. Such a rule never blocks by itself."""
    cut: bool = False
    """Repair: an answer past bounds.max_chars or bounds.max_lines ends at its last whole sentence."""
    enabled: bool = True

    @property
    def points(self) -> int:
        return SCORES[self.severity] if self.score is None else self.score

    @property
    def repairs(self) -> bool:
        return self.replace is not None or self.cut


class Denials(_Table, frozen=True, kw_only=True):
    """How something is denied: patterns before it, and after it, in the same clause."""

    before: Texts = ()
    after: Texts = ()
    but: Texts = ()
    """What sounds like a denial and is none: "do not hesitate to"."""


class RuleFile(_Table, frozen=True, kw_only=True):
    """A rule file as written."""

    lists: dict[str, Texts] = {}
    denials: Denials = Denials()
    rules: dict[str, Rule] = {}


class Matcher(Protocol):
    """Compiled patterns, matched in time linear in the text."""

    def which(self, text: str) -> Sequence[int]:
        """Numbers of the patterns that occur."""

    def spans(self, number: int, text: str) -> list[tuple[int, int]]:
        """Where one of them occurs."""

    def replaced(self, number: int, text: str, by: str) -> str:
        """The text with every occurrence of one of them replaced by a literal text."""


class Engine(Protocol):
    """What compiles patterns."""

    def problem(self, pattern: str) -> str:
        """What is wrong with a pattern; "" when nothing is."""

    def compile(self, patterns: Sequence[str]) -> Matcher:
        """Compile sound patterns."""


class Compiled(msgspec.Struct, frozen=True):
    """Patterns of all rules in one matcher, and the rules they are of."""

    matcher: Matcher
    owners: tuple[str, ...]


class RuleSet:
    """Rules ready for use. Never changed once made."""

    def __init__(self, source: RuleFile, engine: Engine, canaries: Sequence[str] = ()) -> None:
        """Takes only what `load_plain` has checked."""
        self.source = source
        bare = [(_WORD_SIGNS.sub("", folded(canary)), views(canary).compact) for canary in canaries]
        self.canaries = tuple(sorted({form for forms in bare for form in forms if form}))
        """Their letters and digits, as written and with letters for digits."""
        self.rules = {name: rule for name, rule in source.rules.items() if rule.enabled}
        self.order = {name: number for number, name in enumerate(self.rules)}

        def compiled(field: str) -> Compiled:
            pairs = [
                (name, filled(pattern, source.lists))
                for name, rule in self.rules.items()
                for pattern in getattr(rule, field)
                if rule.replace is None
            ]
            return Compiled(
                engine.compile([pattern for _, pattern in pairs]), tuple(name for name, _ in pairs)
            )

        self.patterns = compiled("patterns")
        self.address = compiled("address")
        self.compact = compiled("compact")
        self.unless = self._by_rule(engine, "unless")
        self.require = self._by_rule(engine, "require")
        self.prompts = {
            name: engine.compile([filled(text, source.lists) for text in rule.when.prompt])
            for name, rule in self.rules.items()
            if rule.when is not None and rule.when.prompt
        }
        self.repairs = {
            name: engine.compile([filled(text, source.lists) for text in rule.patterns])
            for name, rule in self.rules.items()
            if rule.replace is not None
        }
        self.denied_before = engine.compile([filled(text, source.lists) for text in source.denials.before])
        self.denied_after = engine.compile([filled(text, source.lists) for text in source.denials.after])
        self.not_denied = engine.compile([filled(text, source.lists) for text in source.denials.but])
        self.detectors = {
            name: tuple(owner for owner, rule in self.rules.items() if name in rule.detect)
            for name in get_args(Detector)
        }
        self.others = tuple(
            name
            for name, rule in self.rules.items()
            if rule.bounds is not None
            or rule.languages
            or rule.same_language
            or rule.require
            or rule.require_facts
            or rule.forbid_facts
            or rule.leak_words
        )
        """Rules that look at more than patterns and numbers."""
        self.inbound = any(rule.side != "answer" for rule in self.rules.values())
        packed = msgspec.json.encode([VERSION, source, self.canaries])
        self.digest = hashlib.sha256(packed).hexdigest()[:16]
        """Changes with every change of a rule; part of the cache key of answers made under these."""

    def _by_rule(self, engine: Engine, field: str) -> dict[str, Matcher]:
        return {
            name: engine.compile([filled(text, self.source.lists) for text in getattr(rule, field)])
            for name, rule in self.rules.items()
            if getattr(rule, field)
        }


VERSION: Final = 1
"""Of what rules mean: a change of normalisation or detectors that changes verdicts makes it another."""


def filled(pattern: str, lists: Mapping[str, Sequence[str]]) -> str:
    """A pattern with its lists in place. Raises ValueError when it names one that is not there."""

    def terms(found: re.Match[str]) -> str:
        name = found[1]
        if name not in lists:
            near = schema.nearest(name, lists)
            hint = f"did you mean {{{near}}}?" if near else f"lists: {', '.join(lists) or 'none'}"
            raise ValueError(f"no list is named {name}; {hint}")
        return "(?:" + "|".join(lists[name]) + ")"

    for _ in range(4):  # lists may name lists, but not for ever
        pattern, count = _SLOT.subn(terms, pattern)
        if len(pattern) > MAX_PATTERN_CHARS:
            raise ValueError(f"longer than {MAX_PATTERN_CHARS} characters with its lists in place")
        if not count:
            return pattern
    raise ValueError("lists name lists more than three deep, or themselves")


def load_plain(data: Any, where: str, engine: Engine, base: RuleFile | None = None) -> RuleFile:
    """The rules of plain values, upon `base`: a rule or list of the same name replaces that of the base.

    Raises ConfigError with a line for every problem, naming `where` and the key path.
    """
    try:
        file = msgspec.convert(data, RuleFile)
    except msgspec.ValidationError as exc:
        wrong = schema.problems(data, RuleFile) or [str(exc)]
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in wrong)) from None
    problems = []
    for kind, names in (("lists", file.lists), ("rules", file.rules)):
        problems += [
            f"{kind}.{name}: a name is of lower-case letters, digits and _, at most 48"
            for name in names
            if not _NAME.match(name)
        ]
    if base is not None:
        file = RuleFile(
            lists={**base.lists, **file.lists},
            denials=Denials(
                before=(*base.denials.before, *file.denials.before),
                after=(*base.denials.after, *file.denials.after),
                but=(*base.denials.but, *file.denials.but),
            ),
            rules={**base.rules, **file.rules},
        )
    if len(file.rules) > MAX_RULES:
        problems.append(f"rules: {len(file.rules)} rules; at most {MAX_RULES} are taken")
    problems += _list_problems(file, engine)
    for name, rule in file.rules.items():
        problems += [f"rules.{name}{problem}" for problem in _rule_problems(rule, file.lists, engine)]
    for field in ("before", "after", "but"):
        problems += _pattern_problems(getattr(file.denials, field), f"denials.{field}", file.lists, engine)
    if problems:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
    return file


def _list_problems(file: RuleFile, engine: Engine) -> list[str]:
    return [
        line
        for name, terms in file.lists.items()
        for line in _pattern_problems(terms, f"lists.{name}", file.lists, engine)
    ]


def _rule_problems(rule: Rule, lists: Mapping[str, Sequence[str]], engine: Engine) -> list[str]:
    found: list[str] = []
    for field in ("patterns", "compact", "address", "unless", "require"):
        found += _pattern_problems(getattr(rule, field), f".{field}", lists, engine)
    if rule.when is not None:
        found += _pattern_problems(rule.when.prompt, ".when.prompt", lists, engine)
    looks = (
        rule.patterns or rule.compact or rule.address or rule.detect or rule.bounds or rule.languages
        or rule.same_language or rule.require or rule.require_facts or rule.forbid_facts or rule.leak_words
    )  # fmt: skip
    if not looks:
        found.append(": finds nothing; it needs patterns, compact, address, detect, bounds, languages, "
                     "same_language, require, require_facts, forbid_facts or leak_words")  # fmt: skip
    if rule.replace is not None and not rule.patterns:
        found.append(".replace: there are no patterns whose matches it could replace")
    if rule.cut and (rule.bounds is None or not (rule.bounds.max_chars or rule.bounds.max_lines)):
        found.append(".cut: needs bounds.max_chars or bounds.max_lines")
    if rule.side == "prompt" and (
        rule.bounds or rule.languages or rule.same_language or rule.require or rule.require_facts
        or rule.forbid_facts or rule.leak_words or rule.repairs
    ):  # fmt: skip
        found.append('.side: a rule for prompts has only patterns, compact, address and detect')  # fmt: skip
    if rule.bounds is not None:
        low, high = rule.bounds.min_chars, rule.bounds.max_chars
        if low is not None and high is not None and low > high:
            found.append(f".bounds: min_chars ({low}) is above max_chars ({high})")
    return found


def _pattern_problems(
    patterns: Sequence[str], path: str, lists: Mapping[str, Sequence[str]], engine: Engine
) -> list[str]:
    if len(patterns) > MAX_PATTERNS:
        return [f"{path}: {len(patterns)} texts; at most {MAX_PATTERNS} are taken"]
    found = []
    for number, pattern in enumerate(patterns):
        try:
            problem = engine.problem(filled(pattern, lists))
        except ValueError as exc:
            problem = str(exc)
        if problem:
            found.append(f"{path}[{number}]: {problem}")
    return found
