"""Where a request of a name may run, in order: routes of the configuration, aliases, plain models.

May live here: names -> targets. May not: workers, queues, what is tried when (ladder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from walled.config import Config
from walled.core.lanes import place


class Target(NamedTuple):
    """A place to run: a model, at one backend or ("") wherever it is served."""

    model: str
    backend: str = ""

    @property
    def lane(self) -> str:
        return place(self.model, self.backend)


class Route(NamedTuple):
    """What a name stands for. Targets with the model of the first are its equals, the others fall back."""

    targets: tuple[Target, ...]
    mode: str
    """auto, ai_only, template_only or hybrid."""

    def mode_for(self, asked: str) -> str:
        """The mode of a request that asks for `asked` ("": nothing)."""
        return asked or self.mode

    def fallback(self, target: Target) -> bool:
        """Whether an answer from there is of another model than was asked for."""
        return target.model != self.targets[0].model


NO_ROUTE: Final = Route((), "auto")


def routes(config: Config) -> dict[str, Route]:
    """The configured routes by name."""
    return {
        name: Route(tuple(_target(text) for text in route.targets), route.mode or config.ladder.mode)
        for name, route in config.routes.items()
    }


def _target(text: str) -> Target:
    backend, _, model = text.partition("/")
    return Target(model, backend)


def resolve(name: str, configured: Mapping[str, Route], aliases: Mapping[str, str], config: Config) -> Route:
    """The route of a name; of a plain model or alias, the model wherever it is served."""
    if name == "default" and config.default_model:
        name = config.default_model
    route = configured.get(name)
    if route is not None:
        return route
    return Route((Target(aliases.get(name, name)),), config.ladder.mode)
