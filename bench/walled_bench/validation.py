"""What judging an answer costs: 500-character replies, cold and warm, streamed, hostile; and the corpus.

May live here: replies made of the corpus, timing, figures. May not: rules.

Times are of this thread's processor, because validation waits for nothing: what another process takes on a
busy machine is not what judging costs. The wall clock's figure stands beside it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from walled.adapters import rule_files
from walled.config import ValidationConfig
from walled.core.assess import assess, findings
from walled.core.holdback import Holdback
from walled.core.rules import RuleSet
from walled_bench.figures import Figure, figure
from walled_bench.statistic import of_blocks, quantile

CHARS = 500
REPLIES = 2000
BLOCKS = 5
GOAL_MS = 2.0
EVIL = r"""
[rules.evil]
patterns = ['x(?:a+)+$', 'y(?:a|aa)+$', 'z(?:.*a){12}$']
"""


def replies(count: int, seed: int, unsafe: bool = False) -> list[str]:
    """Replies of CHARS characters: sentences of the corpus in random order, one of them unsafe if asked."""
    rng = random.Random(seed)
    corpus = rule_files.corpus()
    safe = [each.text for each in corpus if not each.unsafe]
    bad = [each.text for each in corpus if each.unsafe]
    made = []
    for _ in range(count):
        parts = [rng.choice(bad)] if unsafe else []
        while sum(map(len, parts)) + len(parts) - 1 < CHARS:
            parts.append(rng.choice(safe))
        rng.shuffle(parts)
        made.append(" ".join(parts)[:CHARS])
    return made


def measure(quick: bool) -> list[Figure]:
    """All figures of docs/validation.md that are times or shares."""
    settings = ValidationConfig()
    began = time.thread_time()
    rules = rule_files.rule_set(settings)
    load_ms = (time.thread_time() - began) * 1000
    count = REPLIES // 10 if quick else REPLIES
    figures = [figure("validation: rules read and compiled", load_ms, "ms", n=1)]
    first = _timed(lambda text: assess(rules, text), replies(count // 4, 1))
    figures.append(
        figure("validation: first 500-character replies, p99, CPU", quantile(first[0], 0.99), "ms")
    )
    figures += _blocks(rules, "safe", [replies(count, 10 + n) for n in range(BLOCKS)])
    figures += _blocks(rules, "unsafe", [replies(count, 20 + n, unsafe=True) for n in range(BLOCKS)])
    figures += _streams(rules, replies(count // 10, 30))
    figures.append(_hostile())
    figures += _shares(rules)
    return figures


def _timed(call: Callable[[str], object], texts: Sequence[str]) -> tuple[list[float], list[float]]:
    """(milliseconds of this thread's processor, of the wall clock), for each text."""
    cpu, wall = [], []
    for text in texts:
        began_wall, began = time.perf_counter(), time.thread_time()
        call(text)
        cpu.append((time.thread_time() - began) * 1000)
        wall.append((time.perf_counter() - began_wall) * 1000)
    return cpu, wall


def _blocks(rules: RuleSet, what: str, blocks: Sequence[list[str]]) -> list[Figure]:
    timed = [_timed(lambda text: assess(rules, text), texts) for texts in blocks]
    n = sum(map(len, blocks))
    name = f"validation: {what} reply of {CHARS} characters"
    return [
        figure(f"{name}, p50, CPU", of_blocks([quantile(cpu, 0.5) for cpu, _ in timed], n), "ms"),
        figure(
            f"{name}, p99, CPU",
            of_blocks([quantile(cpu, 0.99) for cpu, _ in timed], n),
            "ms",
            at_most=GOAL_MS,
        ),
        figure(f"{name}, p99, wall", of_blocks([quantile(wall, 0.99) for _, wall in timed], n), "ms"),
    ]


def _streams(rules: RuleSet, texts: Sequence[str]) -> list[Figure]:
    """A reply streamed in tokens of four characters."""

    def stream(text: str) -> None:
        guard = Holdback(lambda part: bool(findings(rules, part)), ValidationConfig().holdback_chars)
        for at in range(0, len(text), 4):
            guard.feed(text[at : at + 4])
        guard.rest()

    cpu, _ = _timed(stream, texts)
    tokens = CHARS // 4
    return [
        figure(
            "validation: a streamed token of 4 characters",
            quantile(cpu, 0.5) * 1000 / tokens,
            "us",
            n=len(texts),
        )
    ]


def _hostile() -> Figure:
    """Patterns on which a backtracking engine would not end."""
    import tomllib

    from walled.adapters import patterns
    from walled.core.rules import load_plain

    engine = patterns.engine()
    rules = RuleSet(load_plain(tomllib.loads(EVIL), "evil.toml", engine), engine)
    texts = [letter + "a" * (50_000 - 2) + "b" for letter in "xyz"]
    cpu, _ = _timed(lambda text: assess(rules, text), texts)
    name = "validation: 50,000 characters against catastrophic patterns"
    return figure(name, max(cpu), "ms", at_most=2000, n=len(texts))


def _shares(rules: RuleSet) -> list[Figure]:
    """The corpus: what is caught, what is a false alarm, on both halves."""
    found = []
    for half, development in (("development", True), ("held-out", False)):
        examples = [each for each in rule_files.corpus() if each.development is development]
        verdicts = [(each.unsafe, assess(rules, each.text).blocked) for each in examples]
        caught = [blocked for unsafe, blocked in verdicts if unsafe]
        alarms = [blocked for unsafe, blocked in verdicts if not unsafe]
        goals = {"at_least": 99.0} if not development else {}
        found.append(
            figure(
                f"validation: unsafe caught, {half} half",
                100 * sum(caught) / len(caught),
                "%",
                n=len(caught),
                **goals,
            )
        )
        goals = {"at_most": 1.0} if not development else {}
        found.append(
            figure(
                f"validation: false alarms, {half} half",
                100 * sum(alarms) / len(alarms),
                "%",
                n=len(alarms),
                **goals,
            )
        )
    return found
