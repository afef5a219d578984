"""Rules in the words of Prometheus: every built-in one can be said, and says the same."""

from __future__ import annotations

import json
import re

import msgspec

from walled.core import alert_rules, prometheus_rules
from walled.core.alert_rules import Rule
from walled.core.builtin_alerts import RULES


def expression(**schema: object) -> str:
    rule = alert_rules.parse("r", schema, None, "r", ["log"])
    assert isinstance(rule, Rule), rule
    groups, left_out = prometheus_rules.groups([rule])
    assert not left_out
    found: str = groups[0]["rules"][0]["expr"]
    return found


def test_every_built_in_rule_can_be_said() -> None:
    groups, left_out = prometheus_rules.groups(RULES)
    assert left_out == {}
    assert [alert["labels"]["rule"] for alert in groups[0]["rules"]] == [rule.name for rule in RULES]
    for alert, rule in zip(groups[0]["rules"], RULES, strict=True):
        assert rule.metric in alert["expr"]
        assert alert["expr"].count("(") == alert["expr"].count(")")
        assert not re.search(r"\{(value|labels|rule|fire)\}", alert["annotations"]["summary"])


def test_expressions_mean_what_the_rule_means() -> None:
    memory = {"metric": "walled_system_memory_used_ratio", "aggregate": "avg", "fire": 0.8, "window_s": 30}
    assert expression(**memory) == "avg_over_time(walled_system_memory_used_ratio[30s]) > 0.8"
    requests = {"metric": "walled_requests_total", "fire": 0.1, "window_s": 300}
    ratio = requests | {"aggregate": "ratio", "match": {"outcome": "!ok|cancelled"}, "of": {"model": "m"}}
    assert expression(**ratio, min_failures=3) == (
        'sum(rate(walled_requests_total{outcome!~"ok|cancelled"}[5m]))'
        ' / sum(rate(walled_requests_total{model="m"}[5m])) > 0.1'
        ' and sum(increase(walled_requests_total{outcome!~"ok|cancelled"}[5m])) >= 3'
    )
    p95 = {"metric": "walled_request_queue_seconds", "aggregate": "p95", "fire": 5.0, "window_s": 60}
    assert expression(**p95) == (
        "histogram_quantile(0.95, sum by (le) (rate(walled_request_queue_seconds_bucket[1m]))) > 5"
    )
    live = {
        "metric": "walled_workers_live",
        "aggregate": "last",
        "operator": "<",
        "fire": 1,
        "no_data": "alert",
    }
    assert expression(**live) == "(walled_workers_live < 1) or absent(walled_workers_live)"


def test_an_unknown_metric_of_an_application_is_left_out_until_its_kind_is_known() -> None:
    rule = msgspec.structs.replace(RULES[0], name="carts", metric="walled_app_carts")
    groups, left_out = prometheus_rules.groups([rule])
    assert groups == []
    assert "walled_app_carts" in left_out["carts"]
    assert "# carts is left out" in prometheus_rules.text(groups, left_out)
    assert prometheus_rules.groups([rule], {"walled_app_carts": "gauge"})[1] == {}


def test_the_text_is_lines_of_key_and_json() -> None:
    groups, _ = prometheus_rules.groups(RULES)
    lines = prometheus_rules.text(groups).splitlines()
    assert lines[:3] == ["groups:", "  - name: walled", "    rules:"]
    quoted = [line.partition(": ")[2] for line in lines[3:] if line.partition(": ")[2]]
    assert all(isinstance(json.loads(value), str) for value in quoted)
