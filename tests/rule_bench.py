"""Rules for tests, on the real engine. May live here: making rule sets. May not: assertions."""

from __future__ import annotations

from typing import Any

from walled.adapters import patterns
from walled.core.assess import Facts, assess
from walled.core.rules import RuleSet, load_plain
from walled.payload import Validation


def rule_set(rules: dict[str, Any], *, canaries: tuple[str, ...] = (), **file: Any) -> RuleSet:
    """The set of a rule file as plain values."""
    engine = patterns.engine()
    return RuleSet(load_plain({"rules": rules, **file}, "rules.toml", engine), engine, canaries)


def judged(rules: RuleSet, text: str, facts: Facts | None = None, block_at: int = 50) -> Validation:
    return assess(rules, text, facts or Facts(), block_at).validation
