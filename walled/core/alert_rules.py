"""What a rule is: its schema, its checks, and the number it looks at.

May live here: the schema, checks against the catalogue, reading one number through a Reader. May not: states,
notifications (core/alerts.py), the rules that ship with walled (core/builtin_alerts.py).

A rule over several series looks at the worst of them, and says which one that was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec

from walled import schema
from walled.core import catalogue
from walled.core.leak import medians, theil_sen
from walled.sections import AlertsConfig

Aggregate = Literal[
    "avg", "p50", "p75", "p90", "p95", "p99", "rate", "ratio", "last", "min", "max", "slope_per_hour",
    "burn_rate",
]  # fmt: skip
Operator = Literal[">", ">=", "<", "<="]
Span = Annotated[float, msgspec.Meta(ge=0, le=7 * 86400)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(max_length=400)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}$")]

QUANTILES = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99}
GROWTH = ("rate", "ratio", "burn_rate")
"""Aggregates of counters (and of how often a histogram observed)."""
SLOPE_POINTS = 60
MAX_RULES = 200
FIELDS = {"rule", "value", "fire", "severity", "labels"}
_FIELD = re.compile(r"\{(\w+)\}")


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One rule. docs/alerts.md shows this table to people and a test compares the two."""

    name: Name
    metric: str
    """A metric of docs/metrics.md, or walled_app_... of an application."""
    aggregate: Aggregate
    """How the samples of the window become one number."""
    match: dict[str, str] = {}
    """Label -> value, "a|b" for either, "!a" or "!a|b" for neither. ratio and burn_rate: of the part."""
    of: dict[str, str] = {}
    """ratio and burn_rate: the labels of the whole."""
    over: str = ""
    """ratio: the metric of the whole; "" is `metric`. Of two gauges their last values are divided."""
    operator: Operator = ">"
    fire: float
    """The threshold."""
    clear: float | None = None
    """The alert ends beyond this; None is `fire`. Between the two nothing changes."""
    window_s: Positive = 60.0
    baseline_s: Span = 0.0
    """Judge the number divided by what it is over this longer window; 0: do not."""
    short_window_s: Span = 0.0
    """burn_rate: a second window that must burn too; 0: none."""
    objective: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.999
    """burn_rate: share of the whole that must be good."""
    every_s: Positive = 1.0
    """Pause between two looks."""
    for_s: Span = 0.0
    """So long it must be bad before the alert fires."""
    clear_for_s: Span = 60.0
    """So long it must be good before the alert ends."""
    min_samples: Count = 1
    """With fewer samples in the window there is no number. ratio and burn_rate: the size of the whole."""
    min_failures: Count = 0
    """ratio and burn_rate: below this size of the part there is nothing to see."""
    no_data: Literal["hold", "ok", "alert"] = "hold"
    """No number: leave everything as it is, take it for good, take it for bad."""
    severity: Literal["info", "warning", "critical"] = "warning"
    inhibited_by: tuple[str, ...] = ()
    """While one of these rules fires, this one tells nobody and does nothing."""
    repeat_s: Span = 4 * 3600.0
    """Told again so often while it fires; 0: once."""
    summary: Text = ""
    """Of the fields {rule}, {value}, {fire}, {severity} and {labels}; "" makes one up."""
    runbook: Text = ""
    actions: tuple[Annotated[str, msgspec.Meta(max_length=100)], ...] = ("log",)
    """log, webhook:NAME, alertmanager:NAME, exec:NAME; gc, trim, unload, recycle, shed, fallback. Topic
    alert.RULE is always told."""


class Reader(Protocol):
    """What rules read: core/registry.py and core/history.py behind one face."""

    def series(
        self, name: str, match: Mapping[str, str] | None = None
    ) -> Iterable[tuple[dict[str, str], float]]: ...
    def quantile(
        self, name: str, q: float, match: Mapping[str, str] | None, window_s: float
    ) -> float | None: ...
    def rate(self, name: str, match: Mapping[str, str] | None, window_s: float) -> float | None: ...
    def grown(self, name: str, match: Mapping[str, str] | None, window_s: float) -> float | None: ...
    def window(
        self, name: str, labels: Mapping[str, str], window_s: float
    ) -> Sequence[tuple[float, float]]: ...
    def kind(self, name: str) -> str | None: ...


class Reading(NamedTuple):
    value: float
    labels: dict[str, str]
    """Of the worst series."""


def action_names(config: AlertsConfig) -> set[str]:
    """What rules may name."""
    named = (("webhook", config.webhooks), ("alertmanager", config.alertmanagers), ("exec", config.commands))
    own = {"log", "gc", "trim", "unload", "recycle", "shed", "fallback"}
    return own | {f"{kind}:{name}" for kind, names in named for name in names}


# --- checks ------------------------------------------------------------------------------------------


def parse(name: str, given: Any, base: Rule | None, path: str, actions: Iterable[str]) -> Rule | list[str]:
    """The rule `given` describes, on top of `base` when it changes a rule; or every mistake in it,
    a line each with its key path. `actions`: what a rule may name."""
    if not isinstance(given, dict):
        return [f"{path}: expected a table"]
    merged = {**(msgspec.to_builtins(base) if base is not None else {}), **given, "name": name}
    try:
        rule = msgspec.convert(merged, Rule)
    except msgspec.ValidationError as exc:
        return schema.problems(merged, Rule, path) or [f"{path}: {exc}"]
    return [f"{path}.{problem}" for problem in _impossible(rule, set(actions))] or rule


def _impossible(rule: Rule, actions: set[str]) -> list[str]:
    found = _metric_problems(rule)
    upward = rule.operator in (">", ">=")
    if rule.clear is not None and (rule.clear > rule.fire if upward else rule.clear < rule.fire):
        side = "above" if upward else "below"
        found.append(
            f"clear: {rule.clear:g} is {side} fire ({rule.fire:g}), the alert would end while it still fires"
        )
    if rule.aggregate == "ratio" and not rule.over and not rule.match:
        found.append("match: a ratio needs the labels of its part, or `over`, the metric of its whole")
    if rule.aggregate == "burn_rate" and not rule.match:
        found.append("match: a burn rate needs the labels of the failures")
    if rule.short_window_s and (rule.aggregate != "burn_rate" or rule.short_window_s >= rule.window_s):
        found.append("short_window_s: only for burn_rate, and shorter than window_s")
    if rule.baseline_s and rule.baseline_s < 2 * rule.window_s:
        found.append("baseline_s: at least twice window_s, or it is made of what it is compared with")
    if rule.name in rule.inhibited_by:
        found.append("inhibited_by: a rule cannot inhibit itself")
    for place, action in enumerate(rule.actions):
        if action not in actions:
            near = schema.nearest(action, actions)
            hint = f'did you mean "{near}"?' if near else f"known: {', '.join(sorted(actions))}"
            found.append(f'actions[{place}]: no action "{action}"; {hint}')
    if not set(_FIELD.findall(rule.summary)) <= FIELDS or re.search("[{}]", _FIELD.sub("", rule.summary)):
        found.append("summary: only {rule}, {value}, {fire}, {severity} and {labels} stand in braces")
    return found


def _metric_problems(rule: Rule) -> list[str]:
    found = []
    for key, name in (("metric", rule.metric), ("over", rule.over)):
        if not name or name.startswith(catalogue.APP_PREFIX):
            continue
        family = catalogue.BY_NAME.get(name)
        if family is None:
            near = schema.nearest(name, catalogue.BY_NAME)
            hint = f"did you mean `{near}`?" if near else "docs/metrics.md lists them"
            found.append(f"{key}: unknown metric {name!r}; {hint}")
            continue
        for field, labels in (("match", rule.match), ("of", rule.of)):
            for label in labels:
                if label not in family.labels and key == "metric":
                    has = ", ".join(family.labels) or "no labels"
                    found.append(f"{field}.{label}: {name} has no such label; it has {has}")
        if family.kind == "histogram" and rule.aggregate not in (*QUANTILES, *GROWTH):
            found.append(f"aggregate: {name} is a histogram; use p50 to p99 or rate")
        if family.kind == "histogram" and any("|" in v or v[:1] == "!" for v in rule.match.values()):
            found.append("match: a histogram is matched by plain values only")
        if family.kind == "gauge" and (rule.aggregate in ("rate", "burn_rate")):
            found.append(f"aggregate: {name} is a gauge; use last, avg, min, max, p50 to p99 or ratio")
    return found


def summary(rule: Rule, reading: Reading) -> str:
    """The words of a notification."""
    labels = ", ".join(f"{label} {value}" for label, value in sorted(reading.labels.items()) if value)
    words = {
        "rule": rule.name,
        "value": f"{reading.value:.4g}",
        "fire": f"{rule.fire:g}",
        "severity": rule.severity,
        "labels": labels,
    }
    template = rule.summary or "{rule}: {value} {labels}"
    # Not str.format: a template comes from outside, and format reads attributes and pads to any width.
    return _FIELD.sub(lambda found: words.get(found[1], found[0]), template).strip()


# --- reading -----------------------------------------------------------------------------------------


def matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether labels fit "a", "a|b", "!a", "!a|b"."""
    for label, pattern in wanted.items():
        negated = pattern.startswith("!")
        if (labels.get(label, "") in pattern.removeprefix("!").split("|")) == negated:
            return False
    return True


def beyond(operator: Operator, value: float, threshold: float) -> bool:
    match operator:
        case ">":
            return value > threshold
        case ">=":
            return value >= threshold
        case "<":
            return value < threshold
        case "<=":
            return value <= threshold


def read(rule: Rule, reader: Reader) -> Reading | None:
    """The number the rule judges; None when there is none."""
    now = _read(rule, reader)
    if now is None or not rule.baseline_s:
        return now
    usual = _read(msgspec.structs.replace(rule, window_s=rule.baseline_s), reader)
    return Reading(now.value / usual.value, now.labels) if usual is not None and usual.value > 0 else None


def _read(rule: Rule, reader: Reader) -> Reading | None:
    if rule.aggregate == "burn_rate":
        return _burn(rule, reader)
    kind = reader.kind(rule.metric)
    if rule.aggregate == "ratio":
        return _gauge_ratio(rule, reader) if kind == "gauge" else _share(rule, reader, rule.window_s)
    if rule.aggregate == "rate" and kind != "gauge":
        rates = list(_each(reader.rate, reader, rule.metric, rule.match, rule.window_s))
        grown = sum(_each(reader.grown, reader, rule.metric, rule.match, rule.window_s))
        if not rates or (grown < rule.min_samples and rule.min_samples > 1):
            return None
        return Reading(sum(rates), {})
    if kind == "histogram":
        count = reader.grown(rule.metric, rule.match, rule.window_s)
        if count is None or count < rule.min_samples:
            return None
        value = reader.quantile(rule.metric, QUANTILES[rule.aggregate], rule.match, rule.window_s)
        return None if value is None else Reading(value, dict(rule.match))
    return _worst(rule, _gauges(rule, reader))


def _each(
    read: Callable[[str, Mapping[str, str], float], float | None],
    reader: Reader,
    name: str,
    wanted: Mapping[str, str],
    window_s: float,
) -> Iterable[float]:
    """What `read`, the reader's rate or grown, says of every series that fits."""
    for labels, _ in reader.series(name):
        if matches(labels, wanted):
            found = read(name, labels, window_s)
            if found is not None:
                yield found


def _share(rule: Rule, reader: Reader, window_s: float) -> Reading | None:
    whole = sum(_each(reader.grown, reader, rule.over or rule.metric, rule.of, window_s))
    part = sum(_each(reader.grown, reader, rule.metric, rule.match, window_s))
    if whole <= 0 or whole < rule.min_samples:
        return None
    return Reading(part / whole if part >= rule.min_failures else 0.0, {})


def _burn(rule: Rule, reader: Reader) -> Reading | None:
    """How many times faster than the objective allows: over the long window and still over the short one."""
    long = _share(rule, reader, rule.window_s)
    if long is None or not rule.short_window_s:
        share = long
    else:
        # Failures are counted over the long window; the short one only says whether it goes on.
        lenient = msgspec.structs.replace(rule, min_failures=0, min_samples=0)
        short = _share(lenient, reader, rule.short_window_s)
        share = Reading(min(long.value, short.value if short is not None else 0.0), {})
    return None if share is None else Reading(share.value / (1 - rule.objective), {})


def _gauge_ratio(rule: Rule, reader: Reader) -> Reading | None:
    wholes = {
        tuple(sorted(labels.items())): value for labels, value in reader.series(rule.over or rule.metric)
    }
    found = []
    for labels, value in reader.series(rule.metric):
        whole = wholes.get(tuple(sorted(labels.items())), 0.0)
        if matches(labels, rule.match) and whole > 0:
            found.append(Reading(value / whole, labels))
    return _worst(rule, found)


def _gauges(rule: Rule, reader: Reader) -> Iterable[Reading]:
    for labels, value in reader.series(rule.metric):
        if not matches(labels, rule.match):
            continue
        if rule.aggregate == "last":
            yield Reading(value, labels)
            continue
        samples = reader.window(rule.metric, labels, rule.window_s)
        if samples and len(samples) >= rule.min_samples:
            yield Reading(aggregate(rule.aggregate, samples), labels)


def aggregate(how: Aggregate, samples: Sequence[tuple[float, float]]) -> float:
    """One number from the samples (time, value) of a gauge."""
    values = [value for _, value in samples]
    match how:
        case "avg":
            return fmean(values)
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "slope_per_hour":
            piece_s = max(1e-9, (samples[-1][0] - samples[0][0]) / SLOPE_POINTS)
            return theil_sen(medians(samples, piece_s)).value * 3600
        case "last" | "rate" | "ratio" | "burn_rate":
            return values[-1]
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(QUANTILES[how] * len(ordered)))]


def _worst(rule: Rule, found: Iterable[Reading]) -> Reading | None:
    pick = max if rule.operator in (">", ">=") else min
    return pick(found, key=lambda reading: reading.value, default=None)
