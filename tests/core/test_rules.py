"""Rule files: what they may say, and how they are told what they may not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rule_bench import rule_set
from walled.adapters import patterns
from walled.core.rules import RuleFile, load_plain
from walled.errors import ConfigError


def refusal(data: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_plain(data, "rules.toml", patterns.engine())
    lines = caught.value.message.splitlines()
    assert all(line.startswith("rules.toml: ") for line in lines)
    return [line.removeprefix("rules.toml: ") for line in lines]


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"paterns": ["x"]}, "rules.r.paterns: unknown key; did you mean `rules.r.patterns`?"),
        ({"patterns": "x"}, "rules.r.patterns: Expected `array`, got `str`"),
        ({"patterns": ["x"], "severity": "hi"}, 'rules.r.severity: expected one of "low", "medium"'),
        ({"patterns": ["x"], "score": 101}, "rules.r.score: Expected `int` <= 100"),
        ({"patterns": ["a", "(b"]}, "rules.r.patterns[1]: `(b` is no regular expression of RE2"),
        ({"patterns": ["a(?=b)"]}, "rules.r.patterns[0]: `a(?=b)` is no regular expression"),
        ({"patterns": [r"(a)\1"]}, "rules.r.patterns[0]: "),
        ({"patterns": ["a*"]}, "rules.r.patterns[0]: `a*` matches an empty text"),
        ({"patterns": ["x {pay}"]}, "rules.r.patterns[0]: no list is named pay; did you mean {pays}?"),
        ({"patterns": ["x"], "unless": ["["]}, "rules.r.unless[0]: "),
        ({"patterns": ["x"], "when": {"prompt": ["["]}}, "rules.r.when.prompt[0]: "),
        ({"detect": ["fone"]}, 'rules.r.detect[0]: expected one of "phone"'),
        ({}, "rules.r: finds nothing; it needs patterns"),
        ({"bounds": {"max_chars": 3}, "side": "prompt"}, "rules.r.side: a rule for prompts has only"),
        (
            {"bounds": {"min_chars": 5, "max_chars": 3}},
            "rules.r.bounds: min_chars (5) is above max_chars (3)",
        ),
        ({"bounds": {"min_chars": 5}, "cut": True}, "rules.r.cut: needs bounds.max_chars"),
        ({"detect": ["phone"], "replace": "x"}, "rules.r.replace: there are no patterns"),
        ({"patterns": ["x{1,3}" * 400], "score": -1}, "rules.r.score: Expected `int` >= 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(rule: dict[str, Any], line: str) -> None:
    found = refusal({"lists": {"pays": ["x"]}, "rules": {"r": rule}})
    assert len(found) == 1
    assert found[0].startswith(line), found


def test_names_and_lists_are_looked_at_too() -> None:
    assert refusal({"rules": {"Bad-Name": {"patterns": ["x"]}}})[0].startswith("rules.Bad-Name: a name")
    assert refusal({"lists": {"a": ["{b}"], "b": ["{a}"]}, "rules": {}})
    assert refusal({"rulez": {}}) == ["rulez: unknown key; did you mean `rules`?"]
    assert refusal({"denials": {"before": ["["]}})[0].startswith("denials.before[0]: ")
    both = refusal({"rules": {"a": {"patterns": ["("]}, "b": {"patterns": [")"]}}})
    assert [line.split(".patterns")[0] for line in both] == ["rules.a", "rules.b"]


def test_a_later_file_replaces_by_name_and_switches_off() -> None:
    engine = patterns.engine()
    first = load_plain({"rules": {"a": {"patterns": ["x"]}, "b": {"patterns": ["y"]}}}, "1", engine)
    second = load_plain({"rules": {"a": {"patterns": ["z"], "enabled": False}}}, "2", engine, first)
    assert set(second.rules) == {"a", "b"}
    assert not second.rules["a"].enabled
    assert second.rules["a"].patterns == ("z",)
    assert isinstance(second, RuleFile)


def test_the_digest_changes_with_the_rules_and_only_then() -> None:
    one = rule_set({"a": {"patterns": ["x"]}})
    assert one.digest == rule_set({"a": {"patterns": ["x"]}}).digest
    others = [
        rule_set({"a": {"patterns": ["y"]}}),
        rule_set({"a": {"patterns": ["x"], "score": 1}}),
        rule_set({"a": {"patterns": ["x"]}}, canaries=("0123456",)),
        rule_set({"a": {"patterns": ["x"]}}, lists={"l": ["x"]}),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5
