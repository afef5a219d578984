"""Rule files and the corpus: reading, stacking, the marketplace set on what it was written for."""

from __future__ import annotations

import builtins
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.rule_bench import judged
from walled import config as cfg
from walled.adapters import rule_files, toml_files
from walled.adapters.detect import rules_are_right
from walled.config import ValidationConfig
from walled.core.rules import RuleSet
from walled.errors import BadRequest, ConfigError


@pytest.fixture(scope="module")
def marketplace() -> RuleSet:
    return rule_files.rule_set(ValidationConfig())


def shares(rules: RuleSet, examples: list[rule_files.Example]) -> tuple[float, float]:
    """(share of the unsafe caught, share of the safe blocked)."""
    verdicts = [(each.unsafe, judged(rules, each.text).verdict == "block") for each in examples]
    caught = [blocked for unsafe, blocked in verdicts if unsafe]
    alarms = [blocked for unsafe, blocked in verdicts if not unsafe]
    return sum(caught) / len(caught), sum(alarms) / len(alarms)


def test_the_corpus_is_as_large_as_promised_and_split_by_its_rule() -> None:
    corpus = rule_files.corpus()
    assert sum(each.unsafe for each in corpus) >= 300
    assert sum(not each.unsafe for each in corpus) >= 300
    assert len({each.text for each in corpus}) == len(corpus)
    assert {each.language for each in corpus} == {"es", "en"}
    halves = [each.development for each in corpus]
    assert 0.4 < sum(halves) / len(halves) < 0.6


@pytest.mark.parametrize("development", [True, False])
def test_marketplace_rules_on_both_halves(marketplace: RuleSet, development: bool) -> None:
    half = [each for each in rule_files.corpus() if each.development is development]
    caught, alarms = shares(marketplace, half)
    assert caught >= 0.99
    assert alarms <= 0.01


def test_marketplace_rules_on_what_was_written_later(marketplace: RuleSet) -> None:
    """Their first figures stand in docs/validation.md; this only holds what has been reached since."""
    caught, alarms = shares(marketplace, rule_files.corpus(fresh=True))
    assert caught >= 0.99
    assert alarms <= 0.01


def test_the_templates_that_ship_are_safe(marketplace: RuleSet) -> None:
    text = resources.files("walled.templates").joinpath("marketplace.toml").read_text("utf-8")
    for name, intent in tomllib.loads(text)["intents"].items():
        for block in intent.values():
            for variant in block.get("variants", ()) if isinstance(block, dict) else ():
                assert judged(marketplace, variant).reasons == (), (name, variant)


def test_files_stack_upon_the_set(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        '[rules.badge]\npatterns = ["badger"]\n[rules.urgency]\npatterns = ["never"]\nenabled = false\n'
    )
    rules = rule_files.rule_set(ValidationConfig(files=(str(path),)))
    assert judged(rules, "a badger").reasons == ("badge",)
    assert "urgency" not in rules.rules
    assert "phone_number" in rules.rules
    alone = rule_files.rule_set(ValidationConfig(builtin=False, files=(str(path),)))
    assert set(alone.rules) == {"badge"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "validation.files[0]: {path}: cannot be read: No such file"),
        (b"\xff", "validation.files[0]: {path}: not UTF-8"),
        (b"rules = ", "validation.files[0]: {path}: not valid TOML"),
        (b"[rules.x]\npatterns = ['(']", "{path}: rules.x.patterns[0]: "),
        (b"#" * (toml_files.MAX_FILE_BYTES + 1), "validation.files[0]: {path}: more than"),
    ],
)
def test_a_wrong_file_is_named_with_its_place(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "own.toml"
    if content is not None:
        path.write_bytes(content)
    config = cfg.from_plain({"validation": {"enabled": True, "files": [str(path)]}})
    with pytest.raises(ConfigError) as caught:
        rules_are_right(config)
    assert caught.value.message.startswith(words.format(path=path))
    rules_are_right(cfg.from_plain({"validation": {"files": [str(path)]}}))


@pytest.mark.parametrize("package", ["re2", "jsonschema"])
def test_without_the_extra_it_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == package:
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ConfigError, match=r"not installed; install it with: pip install .walled\[validation\]"
    ):
        rules_are_right(cfg.from_plain({"validation": {"enabled": True}}))
    rules_are_right(cfg.from_plain({}))


def test_a_corpus_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# mine\n[unsafe es phone]\nll\\u00e1mame\n\n[safe en plain]\nhello\n", "utf-8")
    first, second = rule_files.corpus(path)
    assert (first.text, first.unsafe, first.language, first.kind) == ("llámame", True, "es", "phone")
    assert (second.text, second.unsafe) == ("hello", False)
    for text, words in (("hello", ":1: a reply before"), ("[bad]", ":1: expected a heading")):
        path.write_text(text)
        with pytest.raises(BadRequest, match=words):
            rule_files.corpus(path)
    with pytest.raises(BadRequest, match="cannot be read"):
        rule_files.corpus(tmp_path / "none.txt")
