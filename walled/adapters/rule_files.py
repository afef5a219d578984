"""Rules from files: the set that ships with walled and those of the configuration; the corpus.

May live here: reading, stacking, handing the engine in. May not: what a rule means (core/rules.py).
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from walled.adapters import answer_schema, patterns, toml_files
from walled.config import Config, ValidationConfig
from walled.core.rules import RuleFile, RuleSet, load_plain
from walled.core.validating import Validator
from walled.errors import BadRequest, ConfigError

BUILTIN: Final = "marketplace.toml"
CORPUS: Final = ("corpus_safe.txt", "corpus_unsafe.txt")
FRESH: Final = ("corpus_fresh_1.txt", "corpus_fresh_2.txt", "corpus_fresh_3.txt")
"""Written later, each to measure rules that had been changed because of the one before."""
_ESCAPE: Final = re.compile(r"\\u([0-9a-fA-F]{4})")


def load(config: Config) -> RuleSet | None:
    """The rules of a configuration; None when validation is off. Raises ConfigError."""
    return rule_set(config.validation) if config.validation.enabled else None


def validator(config: Config) -> Validator | None:
    """What a worker judges with; None when validation is off. Raises ConfigError."""
    rules = load(config)
    if rules is None:
        return None
    shapes = answer_schema.shapes() if config.validation.json_schema else None
    return Validator(config.validation, config.models, rules, shapes)


def rule_set(settings: ValidationConfig) -> RuleSet:
    """The rules of a section, enabled or not. Raises ConfigError."""
    engine = patterns.engine()
    found: RuleFile | None = None
    if settings.builtin:
        text = resources.files("walled.rules").joinpath(BUILTIN).read_text("utf-8")
        found = load_plain(tomllib.loads(text), BUILTIN, engine)
    problems = []
    for number, name in enumerate(settings.files):
        key = f"validation.files[{number}]"
        try:
            found = load_plain(toml_files.read(Path(name), key), name, engine, found)
        except ConfigError as exc:
            problems.append(exc.message)
    if problems:
        raise ConfigError("\n".join(problems))
    return RuleSet(found or RuleFile(), engine, settings.canaries)


# --- the corpus ---------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One reply of a corpus, with what it is."""

    text: str
    unsafe: bool
    language: str
    kind: str
    development: bool
    """Rules may be written with it; the others are held out."""


def corpus(path: Path | None = None, *, fresh: bool = False) -> list[Example]:
    """The corpus that ships with walled, the fresh sets, or a file of the same form.

    Raises BadRequest naming the line.
    """
    if path is not None:
        try:
            return _examples(path.read_text("utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as exc:
            raise BadRequest(f"{path}: cannot be read: {exc}") from None
    found = []
    for name in FRESH if fresh else CORPUS:
        found += _examples(resources.files("walled.rules").joinpath(name).read_text("utf-8"), name)
    return found


def _examples(text: str, where: str) -> list[Example]:
    found = []
    heading: tuple[bool, str, str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            parts = line.strip("[] \t").split()
            if len(parts) != 3 or parts[0] not in ("safe", "unsafe"):
                raise BadRequest(f"{where}:{number}: expected a heading such as [unsafe es phone]")
            heading = (parts[0] == "unsafe", parts[1], parts[2])
            continue
        if heading is None:
            raise BadRequest(f"{where}:{number}: a reply before the first heading, such as [unsafe es phone]")
        reply = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), line)
        even = hashlib.sha256(reply.encode("utf-8", "surrogatepass")).digest()[0] % 2 == 0
        found.append(Example(reply, *heading, development=even))
    return found
