"""What a rule would have done in the past: the history, read as the registry was read then.

May live here: a Reader over the history at a moment, walking it. May not: states (alerts.py), clocks.

The history holds less than the registry did: means of 1 s, 10 s or 5 minutes, and of a histogram three
quantiles of the last minute over all its series. So a replay may differ from what was, by about a step of the
history; a histogram is looked at by the kept quantile nearest to the rule's.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import msgspec

from walled.core import catalogue
from walled.core.alert_rules import Rule
from walled.core.alerts import Alerts, Change
from walled.core.history import History
from walled.errors import BadRequest

MAX_STEPS = 4000
STALE_S = 30.0
"""A gauge that was not measured for longer had no value then."""
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Samples = list[tuple[float, float]]


def labels_of(series: str) -> dict[str, str]:
    """Of a name that registry.series_key made."""
    found = _LABEL.findall(series.partition("{")[2])
    return {label: re.sub(r"\\(.)", r"\1", value) for label, value in found}


class _Past:
    """A Reader of the series of the history as they were at `now_s`."""

    def __init__(self, series: Mapping[str, Mapping[str, Samples]]) -> None:
        self._families = {
            family: [(labels_of(name), samples) for name, samples in found.items()]
            for family, found in series.items()
        }
        self.now_s = 0.0

    def series(
        self, name: str, match: Mapping[str, str] | None = None
    ) -> Iterable[tuple[dict[str, str], float]]:
        counter = self.kind(name) == "counter"
        for labels, samples in self._matching(name, match):
            place = bisect_right(samples, self.now_s, key=_time)
            if place and (counter or self.now_s - samples[place - 1][0] <= STALE_S):
                yield labels, samples[place - 1][1]

    def quantile(self, name: str, q: float, match: Mapping[str, str] | None, window_s: float) -> float | None:
        kept = [labels["quantile"] for labels, _ in self._families.get(name, ()) if "quantile" in labels]
        if not kept:
            return None
        nearest = min(kept, key=lambda text: abs(float(text) - q))
        return next((value for _, value in self.series(name, {"quantile": nearest})), None)

    def rate(self, name: str, match: Mapping[str, str] | None, window_s: float) -> float | None:
        if self.kind(name) == "histogram":
            return self._often(name, window_s)
        rates = [grown / span_s for grown, span_s in self._growths(name, match, window_s)]
        return sum(rates) if rates else None

    def grown(self, name: str, match: Mapping[str, str] | None, window_s: float) -> float | None:
        if self.kind(name) == "histogram":
            return self._often(name, window_s)
        grown = [grown for grown, _ in self._growths(name, match, window_s)]
        return sum(grown) if grown else None

    def _often(self, name: str, window_s: float) -> float | None:
        """How often was not kept, only that something was observed."""
        return (
            1e9 if any(self._within(samples, window_s) for _, samples in self._matching(name, {})) else None
        )

    def _growths(
        self, name: str, match: Mapping[str, str] | None, window_s: float
    ) -> Iterable[tuple[float, float]]:
        """(growth, seconds it took) of each series."""
        for _, samples in self._matching(name, match):
            found = self._within(samples, window_s)
            if len(found) > 1 and found[-1][0] > found[0][0]:
                grown = sum(max(0.0, after - before) for (_, before), (_, after) in pairwise(found))
                yield grown, found[-1][0] - found[0][0]

    def window(self, name: str, labels: Mapping[str, str], window_s: float) -> Sequence[tuple[float, float]]:
        return next(
            (
                self._within(samples, window_s)
                for own, samples in self._matching(name, labels)
                if own == labels
            ),
            [],
        )

    def kind(self, name: str) -> str | None:
        family = catalogue.BY_NAME.get(name)
        if family is not None:
            return family.kind
        return "counter" if name.endswith("_total") else "gauge"

    def _matching(self, name: str, match: Mapping[str, str] | None) -> list[tuple[dict[str, str], Samples]]:
        wanted = (match or {}).items()
        return [found for found in self._families.get(name, ()) if wanted <= found[0].items()]

    def _within(self, samples: Samples, window_s: float) -> Samples:
        first = bisect_left(samples, self.now_s - window_s, key=_time)
        return samples[first : bisect_right(samples, self.now_s, key=_time)]


def _time(sample: tuple[float, float]) -> float:
    return sample[0]


def replay(rule: Rule, history: History, since_s: float, series: str = "") -> list[Change]:
    """The changes of state the rule would have made on the history from `since_s` (its clock) on. `series`:
    looking at this one alone. Raises BadRequest when nothing of the rule's metric was kept."""
    before_s = since_s - max(rule.window_s, rule.baseline_s, rule.short_window_s)
    families: dict[str, dict[str, Samples]] = {}
    for name in history.names():
        family = name.partition("{")[0]
        if family in (rule.metric, rule.over) and (not series or name == series or family != rule.metric):
            families.setdefault(family, {})[name] = _both(history, name, since_s, before_s)
    if not families.get(rule.metric):
        what = series or rule.metric
        raise BadRequest(f"{rule.name}: there is no history of {what[:200]}; metrics.list names all series")
    past = _Past(families)
    alone = msgspec.structs.replace(rule, inhibited_by=(), actions=())
    if past.kind(rule.metric) == "histogram":
        alone = msgspec.structs.replace(alone, match={})
    alerts, changes = Alerts([alone]), []
    moments = sorted({t for found in families.values() for samples in found.values() for t, _ in samples})
    moments = moments[bisect_left(moments, since_s) :]
    for past.now_s in moments[-MAX_STEPS:]:
        changes += [e for e in alerts.evaluate(past.now_s, past) if isinstance(e, Change)]
    return changes


def _both(history: History, name: str, since_s: float, before_s: float) -> Samples:
    """Fine steps where they are looked at, coarse ones before that."""
    fine = history.window(name, since_s)
    first_s = fine[0][0] if fine else float("inf")
    return [sample for sample in history.window(name, before_s) if sample[0] < first_s] + fine
