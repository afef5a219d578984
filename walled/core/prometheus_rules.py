"""Alert rules of walled in the words of Prometheus: what `walled-ctl alerts export` prints.

May live here: rule -> PromQL, the YAML of a rule file. May not: files, looking at numbers.

Prometheus has one threshold: `clear` is lost, `keep_firing_for` stands in for it. Inhibition and silences are
Alertmanager's. Everything else means the same as in core/alert_rules.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from walled.core import catalogue
from walled.core.alert_rules import QUANTILES, Rule

GROUP = "walled"
_OVER_TIME = {"avg": "avg_over_time", "min": "min_over_time", "max": "max_over_time"}
_FIELD = re.compile(r"\{(\w+)\}")

Group = dict[str, Any]


class _CannotSay(Exception):
    """Prometheus has no words for this rule."""


def groups(
    rules: Iterable[Rule], kinds: Mapping[str, str] | None = None
) -> tuple[list[Group], dict[str, str]]:
    """Groups as in a rule file, and the rules left out with the reason. `kinds`: of application metrics."""
    found, left_out = [], {}
    for rule in rules:
        try:
            found.append(_alert(rule, kinds or {}))
        except _CannotSay as exc:
            left_out[rule.name] = str(exc)
    return ([{"name": GROUP, "rules": found}] if found else []), left_out


def text(found: Iterable[Group], left_out: Mapping[str, str] | None = None) -> str:
    """The YAML of a rule file. JSON's strings are YAML's, so nothing here needs a YAML library."""
    lines = [f"# {name} is left out: {why}" for name, why in (left_out or {}).items()]
    lines.append("groups:")
    for group in found:
        lines += [f"  - name: {group['name']}", "    rules:"]
        for rule in group["rules"]:
            for place, (key, value) in enumerate(rule.items()):
                lead = "      - " if place == 0 else "        "
                if isinstance(value, dict):
                    lines.append(f"{lead}{key}:")
                    lines += [f"          {k}: {json.dumps(v)}" for k, v in value.items()]
                else:
                    lines.append(f"{lead}{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _alert(rule: Rule, kinds: Mapping[str, str]) -> dict[str, Any]:
    alert: dict[str, Any] = {"alert": _title(rule.name), "expr": _expression(rule, kinds)}
    if rule.for_s:
        alert["for"] = _time(rule.for_s)
    if rule.clear_for_s:
        alert["keep_firing_for"] = _time(rule.clear_for_s)
    alert["labels"] = {"severity": rule.severity, "rule": rule.name}
    alert["annotations"] = {"summary": _summary(rule, kinds)}
    if rule.runbook:
        alert["annotations"]["runbook"] = rule.runbook
    return alert


def _title(name: str) -> str:
    return "Walled" + "".join(part.capitalize() for part in name.split("_"))


def _expression(rule: Rule, kinds: Mapping[str, str]) -> str:
    """The condition, in PromQL."""
    compared = f"{rule.operator} {rule.fire:.15g}"
    kind = _kind(rule.metric, kinds)
    if rule.aggregate == "burn_rate":
        windows = [rule.window_s] + ([rule.short_window_s] if rule.short_window_s else [])
        budget = f"{1 - rule.objective:.15g}"
        parts = [f"{_share(rule, kind, window_s)} / {budget} {compared}" for window_s in windows]
        return " and ".join([*parts, *_floors(rule, kind)])
    value = _value(rule, kind, rule.window_s)
    if rule.baseline_s:
        value = f"({value}) / ({_value(rule, kind, rule.baseline_s)})"
    found = " and ".join([f"{value} {compared}", *_floors(rule, kind)])
    return found if rule.no_data != "alert" else f"({found}) or absent({rule.metric}{_matched(rule.match)})"


def _kind(metric: str, kinds: Mapping[str, str]) -> str:
    family = catalogue.BY_NAME.get(metric)
    kind = family.kind if family is not None else kinds.get(metric)
    if kind is None:
        raise _CannotSay(f"whether {metric} is a gauge or a counter is not known before it is sent")
    return kind


def _value(rule: Rule, kind: str, window_s: float) -> str:
    selected = rule.metric + _matched(rule.match)
    over = f"[{_time(window_s)}]"
    if rule.aggregate == "ratio":
        if kind != "gauge":
            return _share(rule, kind, window_s)
        if not rule.over:
            raise _CannotSay("a ratio of a gauge to itself")
        return f"{selected} / {rule.over}"
    if rule.aggregate == "rate":
        counted = f"{rule.metric}_count" if kind == "histogram" else rule.metric
        return f"sum(rate({counted}{_matched(rule.match)}{over}))"
    if kind == "histogram":
        bucket = f"{rule.metric}_bucket{_matched(rule.match)}"
        return f"histogram_quantile({QUANTILES[rule.aggregate]:g}, sum by (le) (rate({bucket}{over})))"
    if rule.aggregate in _OVER_TIME:
        return f"{_OVER_TIME[rule.aggregate]}({selected}{over})"
    if rule.aggregate in QUANTILES:
        return f"quantile_over_time({QUANTILES[rule.aggregate]:g}, {selected}{over})"
    if rule.aggregate == "slope_per_hour":
        return f"deriv({selected}{over}) * 3600"
    return selected


def _share(rule: Rule, kind: str, window_s: float) -> str:
    over = f"[{_time(window_s)}]"
    part, whole = _counted(rule, kind)
    return f"sum(rate({part}{over})) / sum(rate({whole}{over}))"


def _counted(rule: Rule, kind: str) -> tuple[str, str]:
    suffix = "_count" if kind == "histogram" else ""
    part = f"{rule.metric}{suffix}{_matched(rule.match)}"
    return part, f"{rule.over or rule.metric}{suffix}{_matched(rule.of)}"


def _floors(rule: Rule, kind: str) -> list[str]:
    """How much there must be to look at."""
    over, found = f"[{_time(rule.window_s)}]", []
    if rule.aggregate in ("ratio", "burn_rate") and kind != "gauge":
        part, whole = _counted(rule, kind)
        if rule.min_samples > 1:
            found.append(f"sum(increase({whole}{over})) >= {rule.min_samples}")
        if rule.min_failures > 1:
            found.append(f"sum(increase({part}{over})) >= {rule.min_failures}")
    elif kind == "histogram" and rule.min_samples > 1:
        counted = f"{rule.metric}_count{_matched(rule.match)}"
        found.append(f"sum(increase({counted}{over})) >= {rule.min_samples}")
    return found


def _matched(wanted: Mapping[str, str]) -> str:
    inner = []
    for label, pattern in sorted(wanted.items()):
        negated, values = pattern.startswith("!"), pattern.removeprefix("!").split("|")
        if len(values) == 1:
            inner.append(f"{label}{'!=' if negated else '='}{json.dumps(values[0])}")
        else:
            either = "|".join(re.escape(value) for value in values)
            inner.append(f"{label}{'!~' if negated else '=~'}{json.dumps(either)}")
    return "{" + ",".join(inner) + "}" if inner else ""


def _time(seconds: float) -> str:
    """A duration as Prometheus reads it; it knows nothing below a millisecond."""
    if seconds != int(seconds):
        return f"{max(1, round(seconds * 1000))}ms"
    for unit_s, unit in ((3600, "h"), (60, "m")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds // unit_s:.0f}{unit}"
    return f"{seconds:.0f}s"


def _summary(rule: Rule, kinds: Mapping[str, str]) -> str:
    family = catalogue.BY_NAME.get(rule.metric)
    whole = rule.aggregate in ("rate", "burn_rate") or _kind(rule.metric, kinds) != "gauge"
    names = () if whole or family is None else family.labels
    words = {
        "rule": rule.name,
        "value": "{{ $value | humanize }}",
        "fire": f"{rule.fire:g}",
        "severity": rule.severity,
        "labels": ", ".join(f"{name} {{{{ $labels.{name} }}}}" for name in names),
    }
    return _FIELD.sub(lambda found: words.get(found[1], found[0]), rule.summary or "{rule}: {value}").strip()
