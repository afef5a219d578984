"""The rules that ship with walled. docs/alerts.md shows them to people and a test compares the two.

May live here: rules as data, joined with those of the configuration. May not: looking at numbers.
A rule of the same name in [alerts.rules] changes these key by key.
"""

from __future__ import annotations

from walled.core import alert_rules
from walled.core.alert_rules import Rule
from walled.sections import AlertsConfig

NOT_OURS = (
    "cancelled|bad_request|too_large|unsupported|model_not_found|context_too_long|prompt_blocked|not_cached"
)
"""Endings that are the caller's doing: neither good nor bad."""
FAILED = {"outcome": f"!ok|{NOT_OURS}"}
COUNTED = {"outcome": f"!{NOT_OURS}"}
_RUNBOOK = "docs/alerts.md"


def _burn(name: str, factor: float, window_s: float, short_s: float, severity: str) -> Rule:
    return Rule(
        name=name,
        metric="walled_requests_total",
        aggregate="burn_rate",
        match=FAILED,
        of=COUNTED,
        fire=factor,
        window_s=window_s,
        short_window_s=short_s,
        min_failures=10,
        clear_for_s=120.0,
        severity="critical" if severity == "critical" else "warning",
        summary="errors use up the budget of 99.9 % at {value} times the rate it allows",
        runbook=_RUNBOOK,
    )


RULES: tuple[Rule, ...] = (
    Rule(
        name="memory",
        metric="walled_system_memory_used_ratio",
        aggregate="avg",
        fire=0.80,
        clear=0.75,
        window_s=30.0,
        for_s=30.0,
        severity="critical",
        summary="the machine's memory is used to {value} of 1",
        actions=("log", "gc", "trim", "unload"),
        runbook=_RUNBOOK,
    ),
    Rule(
        name="slow_replies",
        metric="walled_request_duration_seconds",
        aggregate="p95",
        fire=5.0,
        clear=4.0,
        window_s=300.0,
        min_samples=10,
        for_s=30.0,
        inhibited_by=("backend_down",),
        summary="one reply in twenty takes {value} s and more",
        actions=("log", "fallback"),
        runbook=_RUNBOOK,
    ),
    Rule(
        name="errors",
        metric="walled_requests_total",
        aggregate="ratio",
        match=FAILED,
        of=COUNTED,
        fire=0.10,
        clear=0.05,
        window_s=300.0,
        min_samples=20,
        min_failures=3,
        for_s=10.0,
        severity="critical",
        inhibited_by=("backend_down",),
        summary="a share of {value} of the requests fails",
        actions=("log", "fallback"),
        runbook=_RUNBOOK,
    ),
    Rule(
        name="cpu",
        metric="walled_system_cpu_ratio",
        aggregate="avg",
        fire=0.90,
        clear=0.85,
        window_s=60.0,
        for_s=120.0,
        summary="the processors are busy to {value} of 1",
        runbook=_RUNBOOK,
    ),
    Rule(
        name="threads",
        metric="walled_process_threads",
        aggregate="last",
        fire=500.0,
        clear=400.0,
        for_s=30.0,
        summary="{labels} has {value} threads",
        runbook=_RUNBOOK,
    ),
    Rule(
        name="descriptors",
        metric="walled_process_open_fds",
        aggregate="ratio",
        over="walled_process_max_fds",
        fire=0.80,
        clear=0.70,
        for_s=10.0,
        severity="critical",
        summary="{labels} has used {value} of its file descriptors",
        runbook=_RUNBOOK,
    ),
    Rule(
        name="backend_down",
        metric="walled_workers_live",
        aggregate="last",
        operator="<",
        fire=1.0,
        for_s=10.0,
        clear_for_s=10.0,
        severity="critical",
        summary="no worker serves {labels}",
        runbook=_RUNBOOK,
    ),
    Rule(
        name="breaker_open",
        metric="walled_breaker_state",
        aggregate="last",
        operator=">=",
        fire=2.0,
        clear=1.0,
        clear_for_s=10.0,
        summary="the circuit breaker is open: {labels}",
        runbook=_RUNBOOK,
    ),
    Rule(
        name="queue_age",
        metric="walled_queue_oldest_age_seconds",
        aggregate="last",
        fire=10.0,
        clear=5.0,
        for_s=5.0,
        clear_for_s=10.0,
        inhibited_by=("backend_down",),
        summary="a request has waited {value} s",
        actions=("log", "shed"),
        runbook=_RUNBOOK,
    ),
    Rule(
        name="cache_hit_collapse",
        metric="walled_requests_total",
        aggregate="ratio",
        match={"source": "cache"},
        of={"source": "!none"},
        operator="<",
        fire=0.3,
        clear=0.6,
        window_s=600.0,
        baseline_s=21_600.0,
        min_samples=50,
        for_s=60.0,
        summary="the share of answers from the cache is {value} of what is usual",
        runbook=_RUNBOOK,
    ),
    Rule(
        name="token_rate_collapse",
        metric="walled_request_per_output_token_seconds",
        aggregate="p50",
        fire=3.0,
        clear=2.0,
        window_s=300.0,
        baseline_s=21_600.0,
        min_samples=10,
        for_s=60.0,
        summary="a token takes the model {value} times as long as usual; is it still on its GPU?",
        runbook=_RUNBOOK,
    ),
    Rule(
        name="leak",
        metric="walled_leak_verdict",
        aggregate="last",
        operator=">=",
        fire=2.0,
        every_s=60.0,
        clear_for_s=0.0,
        summary="{labels} leaks memory",
        actions=("log", "recycle"),
        runbook=_RUNBOOK,
    ),
    Rule(
        name="worker_crash_loop",
        metric="walled_worker_restarts_total",
        aggregate="rate",
        match={"role": "worker", "reason": "died|hung|garbled|late|given_up"},
        operator=">=",
        fire=0.01,
        window_s=300.0,
        no_data="ok",
        severity="critical",
        summary="workers are replaced at {value} a second",
        runbook=_RUNBOOK,
    ),
    _burn("slo_fast_burn", 14.4, 3600.0, 300.0, "critical"),
    _burn("slo_slow_burn", 6.0, 21_600.0, 1800.0, "warning"),
)

BY_NAME = {rule.name: rule for rule in RULES}


def configured(config: AlertsConfig) -> list[Rule] | list[str]:
    """The rules of a configuration, or every mistake in them."""
    rules = dict(BY_NAME) if config.builtin else {}
    wrong: list[str] = []
    for name, given in config.rules.items():
        rule = alert_rules.parse(
            name, given, BY_NAME.get(name), f"alerts.rules.{name}", alert_rules.action_names(config)
        )
        if isinstance(rule, list):
            wrong += rule
        else:
            rules[name] = rule
    for name, rule in rules.items():
        for other in rule.inhibited_by:
            if other not in rules and name in config.rules:
                wrong.append(f"alerts.rules.{name}.inhibited_by: no rule is named {other!r}")
    return wrong or list(rules.values())
