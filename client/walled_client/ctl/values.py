"""Values of options that several verbs take: times such as 10m, names of alert rules.

May live here: reading them, completing them in a shell. May not: using them.
"""

from __future__ import annotations

import re
from typing import Any

import click
from click.shell_completion import CompletionItem

from walled.core.builtin_alerts import RULES
from walled.core.catalogue import FAMILIES

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)\Z")


class Span(click.ParamType):  # type: ignore[type-arg]
    """30, 30s, 10m, 2h, 1d: seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = _SPAN.match(str(value).strip())
        if found is None or (value_s := float(found[1]) * _UNITS_S[found[2]]) <= 0:
            self.fail(f"{value!r} is no time above 0; write 30s, 10m, 2h or 1d", param, ctx)
        return value_s


SPAN = Span()


def rules(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of the rules that ship with walled."""
    return [CompletionItem(rule.name) for rule in RULES if rule.name.startswith(begun)]


def metrics(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(f.name, help=f.help) for f in FAMILIES if f.name.startswith(begun)]
