"""The registry: every series of the daemon, its value now and its recent past.

May live here: adding up, bounds, quantiles and rates over windows, the reading of deltas. May not: sockets,
clocks (a time is an argument), packing.

Anybody who may ask the daemon may send deltas, so nothing in one can make the monitor grow without bound:
families are those of core/catalogue.py or, capped, `walled_app_` ones; series are capped per family; what is
refused is counted.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from walled.core import catalogue
from walled.core.catalogue import APP_PREFIX, BUCKETS_S, Family
from walled.core.sketch import Sketch, SketchWindow

GAUGE_LIFE_S = 30.0
"""A gauge nobody has set for so long belongs to somebody who is gone."""
APP_GAUGE_LIFE_S = 600.0
"""Applications say what they know when it changes."""
MAX_APP_FAMILIES = 100
MAX_APP_SERIES = 50
MAX_APP_LABELS = 4
MAX_VALUE_CHARS = 80
MAX_ENTRIES = 2000
"""Entries, and observations, taken from one delta."""
_TIERS = ((1.0, 61), (10.0, 37), (300.0, 73))
_APP_NAME = re.compile(r"[a-z][a-z0-9_]{0,79}\Z")
_LABEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")

Labels = Mapping[str, str]


class Row(NamedTuple):
    """One series as it is now."""

    labels: dict[str, str]
    value: float
    """Of a histogram the number of observations."""
    sum: float
    buckets: tuple[int, ...]
    """Of a histogram: observations at or below each of BUCKETS_S, then all."""


class _Increments:
    """What a counter grew by, in slots of the recent past."""

    __slots__ = ("_slots",)

    def __init__(self) -> None:
        self._slots = [(array("q", [-1]) * size, array("d", [0.0]) * size) for _, size in _TIERS]

    def add(self, value: float, now_s: float) -> None:
        for (numbers, sums), (step_s, size) in zip(self._slots, _TIERS, strict=True):
            number = int(now_s // step_s)
            place = number % size
            if numbers[place] != number:
                numbers[place], sums[place] = number, 0.0
            sums[place] += value

    def since(self, window_s: float, now_s: float) -> float:
        for (numbers, sums), (step_s, size) in zip(self._slots, _TIERS, strict=True):
            if window_s <= step_s * (size - 1) or size == _TIERS[-1][1]:
                # Whole slots: the one that now is in is not full yet, so one more is looked at.
                oldest = int(now_s // step_s) - math.ceil(window_s / step_s) + 1
                return sum(s for n, s in zip(numbers, sums, strict=True) if n >= oldest)
        return 0.0


class _Series:
    __slots__ = ("buckets", "increments", "labels", "set_s", "sketches", "sum", "value")

    def __init__(self, labels: dict[str, str], kind: str) -> None:
        self.labels = labels
        self.value = self.sum = self.set_s = 0.0
        self.increments = _Increments() if kind != "gauge" else None
        self.sketches = SketchWindow() if kind == "histogram" else None
        self.buckets = [0] * (len(BUCKETS_S) + 1) if kind == "histogram" else []


class Registry:
    """All families and their series. `advance` tells it the time; readings refer to that."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._families: dict[str, Family] = dict(catalogue.BY_NAME)
        self._series: dict[str, dict[tuple[str, ...], _Series]] = {name: {} for name in self._families}
        self._began_s = self._now_s = now_s
        self._app = 0

    # --- writing -----------------------------------------------------------------------------------

    def advance(self, now_s: float) -> None:
        """It is `now_s`; gauges of those who are gone go."""
        self._now_s = now_s
        for name, family in self._families.items():
            if family.kind == "gauge" and name != "walled_build_info":
                table = self._series[name]
                life_s = APP_GAUGE_LIFE_S if name.startswith(APP_PREFIX) else GAUGE_LIFE_S
                for key in [k for k, s in table.items() if now_s - s.set_s > life_s]:
                    del table[key]

    def set(self, name: str, value: float, *labels: str) -> None:
        found = self._find(name, labels)
        if found is not None:
            found.value, found.set_s = value, self._now_s

    def increase(self, name: str, value: float, *labels: str) -> None:
        found = self._find(name, labels)
        if found is not None and found.increments is not None:
            found.value += value
            found.increments.add(value, self._now_s)

    def total(self, name: str, value: float, *labels: str) -> None:
        """A counter somebody else keeps: it stands at `value` now. A fall is a new beginning. When it grew to
        what it is at first sight nobody knows: that is no growth."""
        new = labels not in self._series[name]
        found = self._find(name, labels)
        if found is None or found.increments is None:
            return
        if new:
            found.value = found.sum = value
            return
        before = found.sum
        grown = value - before if value >= before else value
        found.sum = value
        found.value += grown
        found.increments.add(grown, self._now_s)

    def observe(self, name: str, value: float, *labels: str) -> None:
        found = self._find(name, labels)
        if found is None or found.sketches is None or found.increments is None:
            return
        found.value += 1
        found.sum += value
        found.increments.add(1, self._now_s)
        found.sketches.add(value, self._now_s)
        for place, bound in enumerate(BUCKETS_S):
            if value <= bound:
                found.buckets[place] += 1
                break
        else:
            found.buckets[-1] += 1

    def forget(self, label: str, values: Iterable[str]) -> None:
        """Drop every series whose `label` is one of `values`: that worker is gone."""
        gone = set(values)
        for table in self._series.values():
            for key in [k for k, s in table.items() if s.labels.get(label) in gone]:
                del table[key]

    def _find(self, name: str, labels: tuple[str, ...]) -> _Series | None:
        table = self._series[name]
        found = table.get(labels)
        if found is None:
            family = self._families[name]
            if len(labels) != len(family.labels):
                raise ValueError(f"{name} has the labels {family.labels}, not {len(labels)} of them")
            if len(table) >= family.max_series:
                if name != "walled_metrics_overflow_total":
                    self.increase("walled_metrics_overflow_total", 1, name)
                return None
            found = table[labels] = _Series(dict(zip(family.labels, labels, strict=True)), family.kind)
        return found

    # --- deltas ------------------------------------------------------------------------------------

    def apply(self, delta: Mapping[str, Any]) -> None:
        """Take {"series": [[name, labels, value]...], "observations": [[name, labels, [value...]]...],
        "app": [[name, {label: value}, value, kind]...]}; each part may be missing."""
        room = MAX_ENTRIES
        for part, take in (
            ("series", self._entry),
            ("observations", self._observed),
            ("app", self._app_entry),
        ):
            entries = delta.get(part, [])
            if not isinstance(entries, list):
                self._refuse()
                continue
            for entry in entries[:room]:
                if not (isinstance(entry, list) and take(entry)):
                    self._refuse()
            if len(entries) > room:
                self._refuse(len(entries) - room)

    def _refuse(self, count: int = 1) -> None:
        self.increase("walled_metrics_refused_total", count)

    def _known(self, name: Any, labels: Any) -> Family | None:
        if not (isinstance(name, str) and isinstance(labels, list) and name in catalogue.BY_NAME):
            return None
        family = catalogue.BY_NAME[name]
        sound = all(isinstance(v, str) and len(v) <= MAX_VALUE_CHARS for v in labels)
        return family if sound and len(labels) == len(family.labels) else None

    def _entry(self, entry: list[Any]) -> bool:
        if len(entry) != 3 or not _sound(entry[2]):
            return False
        name, labels, value = entry
        family = self._known(name, labels)
        if family is None or family.kind == "histogram" or (family.kind == "counter" and value < 0):
            return False
        (self.increase if family.kind == "counter" else self.set)(name, float(value), *labels)
        return True

    def _observed(self, entry: list[Any]) -> bool:
        if len(entry) != 3 or not isinstance(entry[2], list) or len(entry[2]) > MAX_ENTRIES:
            return False
        name, labels, values = entry
        family = self._known(name, labels)
        if family is None or family.kind != "histogram" or not all(_sound(v) and v >= 0 for v in values):
            return False
        for value in values:
            self.observe(name, float(value), *labels)
        return True

    def _app_entry(self, entry: list[Any]) -> bool:
        if len(entry) != 4 or app_problem(entry[0], entry[1], entry[2], entry[3]):
            return False
        name, labels, value, kind = entry
        full = APP_PREFIX + name
        names = tuple(sorted(labels))
        family = self._families.get(full)
        if family is None:
            if self._app >= MAX_APP_FAMILIES:
                return False
            self._app += 1
            family = Family(full, kind, "A metric of an application.", names, MAX_APP_SERIES)
            self._families[full], self._series[full] = family, {}
        if family.kind != kind or family.labels != names:
            return False  # the first who used the name said what it is
        values = [labels[label] for label in names]
        (self.increase if kind == "counter" else self.set)(full, float(value), *values)
        return True

    # --- reading -----------------------------------------------------------------------------------

    def families(self) -> Iterator[Family]:
        return iter(list(self._families.values()))

    def rows(self, name: str) -> list[Row]:
        """The series of a family, whole."""
        rows = []
        for series in self._series.get(name, {}).values():
            total, counts = 0, []
            for count in series.buckets:
                total += count
                counts.append(total)
            rows.append(Row(series.labels, series.value, series.sum, tuple(counts)))
        return rows

    def value(self, name: str, labels: Labels | None = None) -> float | None:
        """Of the one series with exactly these labels."""
        for series in self._series.get(name, {}).values():
            if series.labels == dict(labels or {}):
                return series.value
        return None

    def series(self, name: str, match: Labels | None = None) -> Iterable[tuple[dict[str, str], float]]:
        """(labels, value) of every series whose labels include `match`."""
        return [(series.labels, series.value) for series in self._matching(name, match)]

    def quantile(self, name: str, q: float, match: Labels | None, window_s: float) -> float | None:
        """Within 1 %; None when nothing was observed in the window or `name` is no histogram."""
        return self.distribution(name, match, window_s).quantile(q)

    def distribution(self, name: str, match: Labels | None, window_s: float) -> Sketch:
        """All that was observed in the window; empty when `name` is no histogram."""
        merged = Sketch()
        for series in self._matching(name, match):
            if series.sketches is not None:
                for sketch in series.sketches.since(window_s, self._now_s):
                    merged.merge(sketch)
        return merged

    def rate(self, name: str, match: Labels | None, window_s: float) -> float | None:
        """Growth per second of counters, observations per second of histograms. None without series."""
        grown = self.grown(name, match, window_s)
        return None if grown is None else grown / min(window_s, max(1.0, self._now_s - self._began_s))

    def grown(self, name: str, match: Labels | None, window_s: float) -> float | None:
        """Growth of counters in the window, observations of histograms. None without series."""
        found = [s.increments for s in self._matching(name, match) if s.increments is not None]
        if not found or window_s <= 0:
            return None
        return sum(increments.since(window_s, self._now_s) for increments in found)

    def _matching(self, name: str, match: Labels | None) -> list[_Series]:
        wanted = (match or {}).items()
        return [series for series in self._series.get(name, {}).values() if wanted <= series.labels.items()]


def series_key(name: str, labels: Labels) -> str:
    """The name of a series in the history: name{label="value",...}, labels in order."""
    inner = ",".join(f'{label}="{_quotable(value)}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name


def _quotable(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _sound(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def app_problem(name: Any, labels: Any, value: Any, kind: Any) -> str:
    """What is wrong with a value of an application's metric; empty when nothing is."""
    if not (isinstance(name, str) and _APP_NAME.match(name)):
        return "a name is of lower-case letters, digits and _, at most 80, and begins with a letter"
    if kind not in ("gauge", "counter"):
        return "a metric is a gauge (the last value counts) or a counter (values are added)"
    if not _sound(value):
        return "a value is a finite number"
    if kind == "counter" and value < 0:
        return "a counter only grows: a negative value cannot be added"
    if not isinstance(labels, dict) or len(labels) > MAX_APP_LABELS:
        return f"at most {MAX_APP_LABELS} labels, as a mapping of texts"
    for label, text in labels.items():
        if not (isinstance(label, str) and _LABEL_NAME.match(label)):
            return f"label {str(label)[:40]!r}: lower-case letters, digits and _, at most 40"
        if not isinstance(text, str) or len(text) > MAX_VALUE_CHARS:
            return f"label {label}: a text of at most {MAX_VALUE_CHARS} characters is needed"
    return ""
