"""monitoring/: the Grafana dashboard and the Prometheus rules ask for nothing that walled does not have.

May live here: reading those files beside the catalogue. May not: Grafana, Prometheus, processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from walled.core import builtin_alerts, prometheus_rules
from walled.core.catalogue import BY_NAME

DIRECTORY = Path(__file__).parents[2] / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((DIRECTORY / "grafana-dashboard.json").read_text())
RULES = (DIRECTORY / "prometheus-rules.yml").read_text()
SELECTOR = re.compile(r"\b(walled_\w+)(?:\{([^}]*)\})?")
FREE = {"le", "instance", "job"}
"""Labels that Prometheus adds, or that are a histogram's."""


def expressions() -> Iterator[tuple[str, str]]:
    """(where it stands, PromQL)."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for line in RULES.splitlines():
        if line.strip().startswith("expr: "):
            yield "rules", json.loads(line.strip().removeprefix("expr: "))


def problems(expression: str) -> list[str]:
    """Metrics and labels of an expression that do not exist."""
    found = []
    labels: set[str] = set()
    for name, matchers in SELECTOR.findall(expression):
        family = BY_NAME.get(name)
        for suffix in ("_bucket", "_count", "_sum"):
            if family is None and name.endswith(suffix):
                family = BY_NAME.get(name.removesuffix(suffix))
                if family is not None and family.kind != "histogram":
                    family = None
        if family is None:
            found.append(name)
            continue
        if family.kind == "histogram" and name == family.name:
            found.append(f"{name}: a histogram has _bucket, _count and _sum")
        labels |= set(family.labels)
        found += [
            f"{name}{{{label}}}"
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", matchers)
            if label not in {*family.labels, *FREE}
        ]
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        found += [f"by {label}" for label in group.split(", ") if label not in labels | FREE]
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_and_label_exists(where: str, expression: str) -> None:
    assert SELECTOR.search(expression), where
    assert problems(expression) == []


def test_the_check_finds_what_is_wrong() -> None:
    assert problems("walled_requests_totl") == ["walled_requests_totl"]
    assert problems('walled_queue_depth{clas="x"}') == ["walled_queue_depth{clas}"]
    assert problems("sum by (slot) (walled_worker_state)") == ["by slot"]
    assert problems("rate(walled_request_duration_seconds[1m])") != []
    assert problems("walled_requests_total_bucket") == ["walled_requests_total_bucket"]


def test_legends_name_labels_that_are_there() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            names = {family for family, _ in SELECTOR.findall(target["expr"])}
            known = {label for name, family in BY_NAME.items() if name in names for label in family.labels}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known, panel["title"]


def test_the_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) >= 20
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]}
    assert len(places) == len(ids), "no panel lies on another"
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in DASHBOARD["panels"])
    assert all(p["datasource"]["uid"] == "${datasource}" for p in DASHBOARD["panels"])


def test_the_rules_are_the_built_in_ones() -> None:
    groups, left_out = prometheus_rules.groups(builtin_alerts.RULES)
    made = prometheus_rules.text(groups, left_out)
    assert RULES.partition("groups:")[2] == made.partition("groups:")[2], (
        "make it anew: walled-ctl alerts export > monitoring/prometheus-rules.yml"
    )
