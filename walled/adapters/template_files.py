"""Template sets from files: the one that ships with walled and those of the configuration.

May live here: stacking the sets, the settings published with them. May not: what a set means
(core/templates.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from walled.adapters import toml_files
from walled.config import Config
from walled.core.templates import Rules, TemplateSet, load_plain
from walled.errors import ConfigError

BUILTIN: Final = "marketplace.toml"


def load(config: Config) -> TemplateSet:
    """The templates of a configuration, with the settings of its ladder. Raises ConfigError."""
    found: TemplateSet | None = None
    if config.templates.builtin:
        import tomllib
        from importlib import resources

        text = resources.files("walled.templates").joinpath(BUILTIN).read_text("utf-8")
        found = load_plain(tomllib.loads(text), BUILTIN)
    problems = []
    for number, name in enumerate(config.templates.files):
        try:
            found = load_plain(toml_files.read(Path(name), f"templates.files[{number}]"), name, found)
        except ConfigError as exc:
            problems.append(exc.message)
    if found is None:
        found = TemplateSet({}, {})
    problems += [
        f"ladder.hybrid_intents: no template has the intent {intent}; known: {', '.join(found.intents)}"
        for intent in config.ladder.hybrid_intents
        if intent not in found.intents
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return found.with_rules(rules(config), config.templates.language)


def rules(config: Config) -> Rules:
    """What clients must know of the ladder while the daemon is dead."""
    ladder = config.ladder
    return Rules(
        mode=ladder.mode,
        hybrid_intents=ladder.hybrid_intents,
        stale=ladder.stale,
        templates=ladder.templates,
        route_modes={name: route.mode for name, route in config.routes.items() if route.mode},
    )
