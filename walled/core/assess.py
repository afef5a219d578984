"""What rules find in a text: score, level, verdict, reasons; and the text repaired.

May live here: running every kind of rule over a text, adding up. May not: reading rules (rules.py), when a
text is checked and what follows (holdback.py, worker).

The score is 100 * (1 - product of (1 - points / 100)) over the rules that matched: two medium finds weigh
more than one, and no number of low ones reaches 100. Levels: safe below 10, low below 30, medium below 50,
high below 80, critical from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from walled.core import digits, languages
from walled.core.normalise import Views, folded, views
from walled.core.rules import Bounds, Compiled, Rule, RuleSet
from walled.payload import Validation

Level = Literal["safe", "low", "medium", "high", "critical"]

CANARY: Final = "canary"
"""Reason: a canary of the configuration is in the answer."""
TOO_LONG: Final = "answer_too_long"
"""Reason: too long to be looked at."""
DENIAL_CHARS: Final = 80
"""How far before and after a find its denial is looked for."""
MIN_CAPITALS: Final = 20

_ROW_DETECTORS: Final = {
    "phone": digits.phone, "card": digits.card, "account": digits.account, "long_number": digits.long_row,
}  # fmt: skip
_TEXT_DETECTORS: Final = {"iban": digits.iban, "national_id": digits.national_id}
_CLAUSE_END: Final = re.compile(r"[.;:!?\n,]|\b(?:pero|but|sino|so|asi que|mejor|instead|just)\b")
_SENTENCE_END: Final = re.compile(r"[.!?\u2026]['\")\u00bb\u201d]?(?=\s|\Z)")
_RUN: Final = re.compile(r"(\S)\1+")
_WORD: Final = re.compile(r"[a-z0-9]+")


class Facts(NamedTuple):
    """What is known of the request an answer is for."""

    context: Mapping[str, str] = {}
    system: str = ""
    prompt: str = ""
    """The user's last message."""


class Assessment(NamedTuple):
    """The outcome for one text."""

    validation: Validation
    text: str
    """The text, repaired when the verdict is `repair`."""

    @property
    def blocked(self) -> bool:
        return self.validation.verdict == "block"


NO_FACTS: Final = Facts()


def level_of(score: int) -> Level:
    if score < 10:
        return "safe"
    if score < 30:
        return "low"
    if score < 50:
        return "medium"
    return "high" if score < 80 else "critical"


def assess(rules: RuleSet, text: str, facts: Facts = NO_FACTS, block_at: int = 50) -> Assessment:
    """Judge a whole answer; repair what can be when nothing blocks it."""
    found = findings(rules, text, facts)
    found += _whole(rules, text, facts, found)
    judged = judged_as(rules, found, block_at)
    if judged.verdict == "block":
        return Assessment(judged, text)
    repaired, by = _repaired(rules, text)
    if repaired == text:
        return Assessment(judged, text)
    # What a repair leaves must stand the rules as well.
    again = findings(rules, repaired, facts)
    again = [name for name in [*again, *_whole(rules, repaired, facts, again)] if name not in by]
    judged = judged_as(rules, [*again, *by], block_at)
    if judged.verdict == "block":
        return Assessment(judged, text)
    return Assessment(
        Validation(level=judged.level, reasons=judged.reasons, score=judged.score, verdict="repair"), repaired
    )


def judged_as(rules: RuleSet, found: Iterable[str], block_at: int) -> Validation:
    """The judgement on a set of findings."""
    points: dict[str, int] = {}
    for name in found:
        rule = rules.rules.get(name)
        points[name] = 100 if rule is None else rule.points
    left = 1.0
    for name, value in points.items():
        if name not in rules.rules or not rules.rules[name].repairs:
            left *= 1 - value / 100
    score = round(100 * (1 - left))
    reasons = sorted(points, key=lambda name: (-points[name], rules.order.get(name, -1)))
    return Validation(
        level=level_of(score),
        reasons=tuple(reasons),
        score=score,
        verdict="block" if score >= block_at else "pass",
    )


def findings(rules: RuleSet, text: str, facts: Facts = NO_FACTS, side: str = "answer") -> list[str]:
    """Names of the rules that find something anywhere in a text: what can be said of a part of an answer as
    well as of the whole."""
    seen = views(text)
    found: dict[str, None] = {}
    if side == "answer" and rules.canaries:
        bare = "".join(_WORD.findall(seen.text))
        if any(canary in bare or canary in seen.compact for canary in rules.canaries):
            found[CANARY] = None
    for view in seen.texts():
        _match(rules, rules.patterns, view, found)
    _match_compact(rules, seen, found)
    if rules.address.owners:
        _match(rules, rules.address, seen.address, found)
    _numbers(rules, seen, found)
    return [name for name in found if name not in rules.rules or _applies(rules, name, facts, side)]


def inbound(rules: RuleSet, text: str, block_at: int) -> Validation:
    """Judge a prompt."""
    return judged_as(rules, findings(rules, text, NO_FACTS, "prompt"), block_at)


def _match(rules: RuleSet, compiled: Compiled, view: str, found: dict[str, None]) -> None:
    matcher, owners = compiled.matcher, compiled.owners
    for number in matcher.which(view):
        name = owners[number]
        if name in found:
            continue
        rule = rules.rules[name]
        unless = rules.unless.get(name)
        if unless is None and not rule.deniable:
            found[name] = None
            continue
        spans = matcher.spans(number, view)
        if unless is not None:
            covered = [span for n in unless.which(view) for span in unless.spans(n, view)]
            spans = [
                (start, end) for start, end in spans if not any(a < end and start < b for a, b in covered)
            ]
        if rule.deniable:
            spans = [span for span in spans if not _denied(rules, view, *span)]
        if spans:
            found[name] = None


def _match_compact(rules: RuleSet, seen: Views, found: dict[str, None]) -> None:
    """Only what is hidden: a term that stands in the text in one piece is for the patterns to judge."""
    compiled = rules.compact
    for number in compiled.matcher.which(seen.compact):
        for start, end in compiled.matcher.spans(number, seen.compact):
            term = seen.compact[start:end]
            if term not in seen.text and term not in seen.plain:
                found[compiled.owners[number]] = None
                break


def _denied(rules: RuleSet, view: str, start: int, end: int) -> bool:
    before = view[max(0, start - DENIAL_CHARS) : start]
    cut = 0
    for mark in _CLAUSE_END.finditer(before):
        cut = mark.end()
    # The find itself may begin with what denies it.
    said = before[cut:] + view[start:end]
    if rules.denied_before.which(said) and not rules.not_denied.which(said):
        return True
    after = view[end : end + DENIAL_CHARS]
    return bool(rules.denied_after.which(after))


def _numbers(rules: RuleSet, seen: Views, found: dict[str, None]) -> None:
    text_owners = [(name, rules.detectors[name]) for name in _TEXT_DETECTORS if rules.detectors[name]]
    for name, owners in text_owners:
        if _TEXT_DETECTORS[name](seen.text) or (seen.plain and _TEXT_DETECTORS[name](seen.plain)):
            found.update(dict.fromkeys(owners))
    row_owners = [(name, rules.detectors[name]) for name in _ROW_DETECTORS if rules.detectors[name]]
    if not row_owners:
        return
    for row in digits.rows(seen.numbers):
        for name, owners in row_owners:
            if _ROW_DETECTORS[name](row):
                found.update(dict.fromkeys(owners))


def _applies(rules: RuleSet, name: str, facts: Facts, side: str) -> bool:
    rule = rules.rules[name]
    if rule.side not in ("both", side):
        return False
    when = rule.when
    if when is None:
        return True
    for key, wanted in when.context.items():
        value = facts.context.get(key, "")
        if (wanted == "*" and not value) or (wanted not in ("*", value)):
            return False
    return name not in rules.prompts or bool(rules.prompts[name].which(folded(facts.prompt)))


# --- rules about the whole of an answer ---------------------------------------------------------------


def _whole(rules: RuleSet, text: str, facts: Facts, already: Sequence[str]) -> list[str]:
    if not rules.others:
        return []
    found = []
    plain = folded(text)
    language = ""
    for name in rules.others:
        rule = rules.rules[name]
        if name in already or rule.side == "prompt" or not _applies(rules, name, facts, "answer"):
            continue
        if (rule.languages or rule.same_language) and not language:
            language = languages.spoken(plain) or "?"
        if (
            (rule.bounds is not None and _out_of_bounds(rule.bounds, text, plain))
            or (rule.languages and language != "?" and language not in rule.languages)
            or (
                rule.same_language
                and language not in ("?", languages.spoken(folded(facts.prompt)) or language)
            )
            or (rule.require and len(rules.require[name].which(plain)) < len(rule.require))
            or _wrong_facts(rule, plain, facts)
            or (rule.leak_words and _leaks(plain, folded(facts.system), rule.leak_words))
        ):
            found.append(name)
    return found


def _out_of_bounds(bounds: Bounds, text: str, plain: str) -> bool:
    count = len(text)
    if bounds.min_chars is not None and len(text.strip()) < bounds.min_chars:
        return True
    if bounds.max_chars is not None and count > bounds.max_chars:
        return True
    if bounds.max_lines is not None and text.strip().count("\n") >= bounds.max_lines:
        return True
    if bounds.max_exclamations is not None and plain.count("!") > bounds.max_exclamations:
        return True
    if bounds.max_questions is not None and plain.count("?") > bounds.max_questions:
        return True
    if bounds.max_repeated is not None and any(
        found.end() - found.start() > bounds.max_repeated for found in _RUN.finditer(text)
    ):
        return True
    if bounds.max_capitals is not None:
        letters = [letter for letter in text if letter.isalpha()]
        if len(letters) >= MIN_CAPITALS:
            return sum(letter.isupper() for letter in letters) > bounds.max_capitals * len(letters)
    return False


def _wrong_facts(rule: Rule, plain: str, facts: Facts) -> bool:
    words: str | None = None
    for names, wanted in ((rule.require_facts, True), (rule.forbid_facts, False)):
        for name in names:
            value = " ".join(_WORD.findall(folded(facts.context.get(name, ""))))
            if not value:
                continue
            if words is None:
                words = f" {' '.join(_WORD.findall(plain))} "
            if (f" {value} " in words) is not wanted:
                return True
    return False


def _leaks(plain: str, system: str, count: int) -> bool:
    """Whether `count` words in a row stand in both."""
    theirs, ours = _WORD.findall(system), _WORD.findall(plain)
    if len(theirs) < count or len(ours) < count:
        return False
    known = {tuple(theirs[n : n + count]) for n in range(len(theirs) - count + 1)}
    return any(tuple(ours[n : n + count]) in known for n in range(len(ours) - count + 1))


# --- repair -------------------------------------------------------------------------------------------


def _repaired(rules: RuleSet, text: str) -> tuple[str, list[str]]:
    """The text, and the names of the rules that changed it."""
    by = []
    for name, rule in rules.rules.items():
        if not rule.repairs:
            continue
        changed = text
        if rule.replace is not None:
            matcher = rules.repairs[name]
            for number in matcher.which(changed):
                changed = matcher.replaced(number, changed, rule.replace)
        if rule.cut and rule.bounds is not None:
            changed = _cut(changed, rule.bounds)
        if changed != text:
            text = changed
            by.append(name)
    return text, by


def _cut(text: str, bounds: Bounds) -> str:
    """The text up to its last whole sentence within the bounds; unchanged when there is none."""
    limit = len(text) if bounds.max_chars is None else bounds.max_chars
    if bounds.max_lines is not None:
        lines = text.strip().split("\n")
        if len(lines) > bounds.max_lines:
            limit = min(limit, len("\n".join(lines[: bounds.max_lines])))
    if limit >= len(text):
        return text
    ends = [found.end() for found in _SENTENCE_END.finditer(text[: limit + 1]) if found.end() <= limit]
    return text[: ends[-1]] if ends else text
