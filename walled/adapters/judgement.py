"""The monitor's judgement: once a second alerts, health and leak verdicts from its registry and history.

May live here: bringing the cores, the state file and the actions together; the monitor's verbs about them.
May not: sockets, the loop (monitor.py), any rule or arithmetic of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from walled.adapters import alert_state
from walled.adapters.actions import Actions
from walled.config import Config
from walled.core import alert_replay, alert_rules, builtin_alerts, health, leak
from walled.core.alert_rules import Rule
from walled.core.alerts import Alerts, Notify, RunAction
from walled.core.history import History
from walled.core.registry import Registry, series_key
from walled.errors import BadRequest

log = logging.getLogger(__name__)

LEAK_EVERY_S = 60.0
LEAK_WINDOW_S = 6 * 3600.0
STATE_FILE = "alerts.state"
WEEK_S = 7 * 86_400.0
RENEW_S = 5.0
LEASE_S = 15.0
"""Remedies in force end so long after they were said last."""

Publication = tuple[bytes, dict[str, Any]]


class _View:
    """Registry and history as rules read them."""

    def __init__(self, registry: Registry, history: History) -> None:
        self._registry, self._history = registry, history
        self.time_s = 0.0
        self.series, self.quantile = registry.series, registry.quantile
        self.rate, self.grown = registry.rate, registry.grown

    def window(self, name: str, labels: Mapping[str, str], window_s: float) -> Sequence[tuple[float, float]]:
        return self._history.window(series_key(name, labels), self.time_s - window_s)

    def kind(self, name: str) -> str | None:
        return next((family.kind for family in self._registry.families() if family.name == name), None)


class Judgement:
    """`tick` once a second; `verbs` answers questions. Times are of the wall clock."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        history: History,
        directory: Path,
        remedy: Callable[[str, int, float], None],
    ) -> None:
        """`remedy` has a remedy carried out: its name, a worker's number or -1, for how many seconds."""
        self._config, self._registry, self._history = config, registry, history
        self._view = _View(registry, history)
        rules = builtin_alerts.configured(config.alerts) if config.alerts.enabled else []
        self._alerts = Alerts(
            [rule for rule in rules if isinstance(rule, Rule)], alert_rules.action_names(config.alerts)
        )
        self._remedy = remedy
        self._held: dict[str, float] = {}
        """Remedies that are in force, and when they are to be renewed."""
        self._actions = Actions(config.alerts, lambda name, worker: remedy(name, worker, 0.0))
        given = config.alerts.state_path
        self._path = Path(given) if given else directory / STATE_FILE
        self._health: health.Health | None = None
        self._leaks: dict[str, leak.Report] = {}
        self._leaks_due_s = 0.0
        self.born_s: dict[str, float] = {}
        """When each process was first seen: another one of its name before says nothing about it."""
        self.verbs = {
            "alerts.list": self._list,
            "alerts.history": self._history_of,
            "alerts.add": self._add,
            "alerts.remove": self._remove,
            "alerts.silence": self._silence,
            "alerts.unsilence": self._unsilence,
            "alerts.test": self._test,
            "health": self._health_now,
        }
        self._restore()

    def tick(self, now_s: float) -> list[Publication]:
        """Look at everything; what is to be published."""
        self._view.time_s = now_s
        published: list[Publication] = []
        if now_s >= self._leaks_due_s:
            self._judge_leaks(now_s)
            self._leaks_due_s = now_s + LEAK_EVERY_S
        self._judge_health()
        if self._health is not None:
            published.append((b"health", self._health.plain()))
        for effect in self._alerts.evaluate(now_s, self._view):
            if isinstance(effect, RunAction):
                self._actions.run(effect, now_s)
            elif isinstance(effect, Notify):
                body = effect._asdict() | {
                    "rule": effect.rule.name,
                    "severity": effect.rule.severity,
                    "runbook": effect.rule.runbook,
                    "actions": list(effect.rule.actions),
                }
                published.append((f"alert.{effect.rule.name}".encode(), body))
            else:
                published.append((b"event.alert", effect._asdict()))
        published += self._hold(now_s)
        for name, state in self._alerts.states().items():
            for other in ("ok", "pending", "firing", "clearing", "unknown"):
                self._registry.set("walled_alerts", float(state == other), name, other)
        for result, count in self._actions.take_counts().items():
            self._registry.increase("walled_alert_actions_total", count, result)
        self.save()
        return published

    def _hold(self, now_s: float) -> list[Publication]:
        """Say again what is to stay in force, and what is over. A monitor that is gone says nothing, and the
        remedy ends by itself."""
        wanted, changes = self._alerts.held(), []
        for name in sorted(wanted):
            if name not in self._held:
                changes.append((name, True))
            if not 0.0 <= self._held.get(name, 0.0) - now_s <= RENEW_S:
                self._remedy(name, -1, LEASE_S)
                self._held[name] = now_s + RENEW_S
        for name in self._held.keys() - wanted:
            del self._held[name]
            self._remedy(name, -1, 0.0)
            changes.append((name, False))
        for name, on in changes:
            log.warning("remedy %s is %s", name, "on" if on else "off")
        return [(b"event.remedy", {"remedy": name, "on": on}) for name, on in changes]

    def save(self) -> None:
        """Keep what changed; a crash after this loses nothing."""
        if not self._alerts.changed:
            return
        try:
            alert_state.save(self._path, self._alerts.keep())
        except OSError as exc:
            log.warning("%s: the state of alerts cannot be kept: %s", self._path, exc)

    def reconfigure(self, config: Config) -> None:
        """Rules, destinations and knees of a new configuration; states go on."""
        self._config = config
        rules = builtin_alerts.configured(config.alerts) if config.alerts.enabled else []
        kept = self._alerts.keep()
        self._alerts = Alerts(
            [rule for rule in rules if isinstance(rule, Rule)], alert_rules.action_names(config.alerts)
        )
        for problem in self._alerts.restore(kept):
            log.warning("alerts: %s", problem)
        self._alerts.changed = True
        self._actions.reconfigure(config.alerts)

    def close(self) -> None:
        self._actions.close()

    def _restore(self) -> None:
        try:
            data = alert_state.load(self._path)
            for problem in self._alerts.restore(data) if data is not None else ():
                log.warning("%s: %s", self._path, problem)
        except (OSError, ValueError) as exc:
            log.warning("%s: alerts begin anew: %s", self._path, exc)

    def _judge_health(self) -> None:
        chosen = self._config.backend != "auto"  # it is resolved by the supervisor, for its children
        backends = self._config.enabled_backends() if chosen else {}
        expected = sum(backend.workers for backend in backends.values())
        live = {labels["backend"]: count for labels, count in self._registry.series("walled_workers_live")}
        down = tuple(name for name in backends if live.get(name) == 0)
        found = health.judge(self._config.health, health.values(self._view, expected), down)
        self._health = found
        self._registry.set("walled_health_score", found.score)
        points = {one.indicator: one.points for one in found.deductions}
        for name in health.INDICATORS:
            self._registry.set("walled_health_deduction", points.get(name, 0.0), name)

    def _judge_leaks(self, now_s: float) -> None:
        self._leaks = {}
        for labels, _ in self._registry.series("walled_process_uss_bytes"):
            name = f"{labels['role']} {labels['worker']}".strip()
            since_s = max(now_s - LEAK_WINDOW_S, self.born_s.get(name, 0.0))
            samples = self._history.window(series_key("walled_process_uss_bytes", labels), since_s)
            requests = None
            if len(samples) > 1:
                span_s = samples[-1][0] - samples[0][0]
                rate = self._registry.rate("walled_requests_total", {}, span_s)
                requests = rate * span_s if rate is not None else None
            self._leaks[name] = report = leak.judge(samples, requests)
            number = leak.VERDICT_NUMBERS[report.verdict]
            self._registry.set("walled_leak_verdict", number, labels["role"], labels["worker"])

    # --- questions -------------------------------------------------------------------------------------

    def _list(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        return {"schema": "walled.alerts/1", "ok": True, "alerts": self._alerts.listing(now_s)}

    def _history_of(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        changes = [change._asdict() for change in self._alerts.history()]
        results = [result._asdict() for result in self._actions.results()]
        return {"schema": "walled.alert_history/1", "ok": True, "changes": changes, "actions": results}

    def _add(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        self._alerts.add(_text(question, "rule"), question.get("schema"))
        return self._done()

    def _remove(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        self._alerts.remove(_text(question, "rule"))
        return self._done()

    def _silence(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        for_s = question.get("for_s")
        if isinstance(for_s, bool) or not isinstance(for_s, int | float):
            raise BadRequest("silence.for_s: seconds are needed")
        by = str(question.get("by", ""))
        rule, reason = _text(question, "rule"), _text(question, "reason")
        self._alerts.silence(rule, reason, now_s + for_s, now_s, by)
        return self._done()

    def _unsilence(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        self._alerts.unsilence(_text(question, "rule"))
        return self._done()

    def _test(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        """{"rule", "schema": to try before it is added, "since_s", "series": only this one}."""
        name, given, since_s = _text(question, "rule"), question.get("schema"), question.get("since_s", 600)
        if isinstance(since_s, bool) or not isinstance(since_s, int | float) or not 0 < since_s <= WEEK_S:
            raise BadRequest("since_s: seconds back from now, at most 7 days, are needed")
        rule = self._alerts.rule(name) if given is None else self._alerts.draft(name, given)
        series = str(question.get("series") or "")
        changes = alert_replay.replay(rule, self._history, now_s - since_s, series)
        return {"schema": "walled.alert_test/1", "ok": True, "changes": [c._asdict() for c in changes]}

    def _health_now(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        if self._health is None:
            self._judge_health()
        judged = self._health.plain() if self._health is not None else {}
        leaks = {name: report._asdict() for name, report in self._leaks.items()}
        return {"schema": "walled.health/1", "ok": True, **judged, "leaks": leaks}

    def _done(self) -> dict[str, Any]:
        self.save()
        return {"schema": "walled.done/1", "ok": True}


def _text(question: dict[str, Any], key: str) -> str:
    value = question.get(key)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{key}: a text is needed")
    return value
