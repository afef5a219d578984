"""Alerts: what state each rule is in, who is told, what is done. A table and its bookkeeping.

May live here: states, silences, inhibition, repetition, history, what outlives a restart. May not:
clocks, sockets, files, carrying anything out (adapters/actions.py); the number a rule judges
(core/alert_rules.py).

A missing number neither ends an alert nor begins its waiting anew: the clock of that rule stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from walled.core import alert_rules
from walled.core.alert_rules import Reader, Reading, Rule
from walled.errors import BadRequest

State = Literal["ok", "pending", "firing", "clearing", "unknown"]
Signal = Literal["bad", "between", "good", "none"]

MAX_HISTORY = 500
MAX_SILENCES = 200
EARLY_S = 0.5
"""A look comes a little early rather than a whole tick late: ticks are about a second apart, not exactly."""
LONGEST_GAP_S = 10.0
"""Nobody looked for longer (a restart): that time proves nothing."""

TABLE: dict[tuple[State, Signal], State] = {
    ("unknown", "bad"): "pending",
    ("unknown", "between"): "ok",
    ("unknown", "good"): "ok",
    ("unknown", "none"): "unknown",
    ("ok", "bad"): "pending",
    ("ok", "between"): "ok",
    ("ok", "good"): "ok",
    ("ok", "none"): "unknown",
    ("pending", "bad"): "pending",
    ("pending", "between"): "ok",
    ("pending", "good"): "ok",
    ("pending", "none"): "pending",
    ("firing", "bad"): "firing",
    ("firing", "between"): "firing",
    ("firing", "good"): "clearing",
    ("firing", "none"): "firing",
    ("clearing", "bad"): "firing",
    ("clearing", "between"): "firing",
    ("clearing", "good"): "clearing",
    ("clearing", "none"): "clearing",
}
"""Besides these: pending fires after `for_s` of being bad, clearing ends after `clear_for_s` of good."""


HELD = frozenset({"shed", "fallback"})
"""Remedies that are in force for as long as the alert lasts."""
REMEDIES = HELD | {"gc", "trim", "unload", "recycle"}
"""Actions on walled itself; the others tell somebody."""


class Change(NamedTuple):
    """A rule came into another state."""

    rule: str
    before: State
    after: State
    at_s: float
    value: float | None


class Notify(NamedTuple):
    """Tell people."""

    rule: Rule
    status: Literal["firing", "resolved"]
    summary: str
    value: float | None
    labels: dict[str, str]
    since_s: float
    at_s: float
    repeated: bool


class RunAction(NamedTuple):
    """Do something: one of the rule's actions, by name."""

    action: str
    about: Notify


Effect = Change | Notify | RunAction


class Silence(msgspec.Struct, frozen=True):
    rule: str
    reason: str
    until_s: float
    by: str = ""


class _Standing(msgspec.Struct):
    """Where one rule stands."""

    state: State = "unknown"
    since_s: float = 0.0
    """When it came into this state; moved on by the time nothing was known."""
    looked_s: float = -1.0
    fired_s: float = 0.0
    told_s: float = -1.0
    """When people were told last of this alert; -1: not yet."""
    acted: bool = False
    value: float | None = None
    labels: dict[str, str] = {}


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """What outlives the process."""

    standings: dict[str, _Standing]
    history: list[tuple[str, State, State, float, float | None]]
    silences: list[Silence]
    added: dict[str, dict[str, Any]]
    removed: list[str]


class Alerts:
    """All rules and where they stand. Times are seconds of one clock that outlives restarts."""

    def __init__(self, rules: Iterable[Rule], actions: Iterable[str] = ("log",)) -> None:
        self._configured = {rule.name: rule for rule in rules}
        self._actions = set(actions)
        self._rules = dict(self._configured)
        self._standings = {name: _Standing() for name in self._rules}
        self._added: dict[str, dict[str, Any]] = {}
        self._removed: set[str] = set()
        self._silences: dict[str, Silence] = {}
        self._history: deque[Change] = deque(maxlen=MAX_HISTORY)
        self.changed = False
        """Something worth keeping has changed since `keep`."""

    # --- looking -------------------------------------------------------------------------------------

    def evaluate(self, now_s: float, reader: Reader) -> list[Effect]:
        """Look at every rule that is due."""
        effects: list[Effect] = []
        for name, silence in list(self._silences.items()):
            if silence.until_s <= now_s:
                del self._silences[name]
                self.changed = True
        due = [rule for rule in self._rules.values() if self._is_due(rule, now_s)]
        for rule in due:
            effects += self._look(rule, alert_rules.read(rule, reader), now_s)
        # Telling comes last, so that the order of rules does not matter to inhibition.
        for rule in due:
            effects += self._tell(rule, now_s)
        return effects

    def _is_due(self, rule: Rule, now_s: float) -> bool:
        looked_s = self._standings[rule.name].looked_s
        return not looked_s <= now_s < looked_s + rule.every_s - EARLY_S

    def _look(self, rule: Rule, reading: Reading | None, now_s: float) -> list[Change]:
        standing = self._standings[rule.name]
        signal = _signal(rule, reading)
        gone_s = max(0.0, now_s - standing.looked_s) if standing.looked_s >= 0 else 0.0
        if signal == "none" or gone_s > max(LONGEST_GAP_S, 3 * rule.every_s):
            standing.since_s += gone_s
        standing.since_s = min(standing.since_s, now_s)  # the clock may have been set back
        standing.looked_s = now_s
        if reading is not None:
            standing.value, standing.labels = reading.value, dict(reading.labels)
        changes = []
        for after in _steps(rule, standing, signal, now_s):
            changes.append(Change(rule.name, standing.state, after, now_s, standing.value))
            if after == "firing" and standing.state == "pending":
                standing.fired_s, standing.told_s, standing.acted = now_s, -1.0, False
            standing.state, standing.since_s = after, now_s
        self._history.extend(changes)
        self.changed = self.changed or bool(changes)
        return changes

    def _tell(self, rule: Rule, now_s: float) -> list[Effect]:
        standing = self._standings[rule.name]
        active = standing.state in ("firing", "clearing")
        if not active:
            if standing.told_s < 0:
                return []
            standing.told_s = -1.0
            self.changed = True
            if rule.name in self._silences:
                return []
            return self._effects(rule, "resolved", now_s, repeated=False)
        if standing.state == "clearing" or self.inhibitor(rule) is not None:
            return []
        first = standing.told_s < 0
        due = first or (rule.repeat_s > 0 and now_s - standing.told_s >= rule.repeat_s)
        if rule.name in self._silences:
            # A silence is about telling: remedies are carried out once all the same.
            if standing.acted:
                return []
            standing.acted = self.changed = True
            return [e for e in self._effects(rule, "firing", now_s, repeated=False) if _is_remedy(e)]
        if not due:
            return []
        effects = self._effects(rule, "firing", now_s, repeated=not first)
        if standing.acted and first:
            effects = [e for e in effects if not _is_remedy(e)]
        standing.told_s, standing.acted = now_s, True
        self.changed = True
        return effects

    def _effects(
        self, rule: Rule, status: Literal["firing", "resolved"], now_s: float, *, repeated: bool
    ) -> list[Effect]:
        standing = self._standings[rule.name]
        reading = Reading(standing.value if standing.value is not None else 0.0, standing.labels)
        text = alert_rules.summary(rule, reading)
        about = Notify(rule, status, text, standing.value, standing.labels, standing.fired_s, now_s, repeated)
        runs = [RunAction(action, about) for action in rule.actions]
        # A remedy is for the illness, not for its end.
        return [about, *(run for run in runs if status == "firing" or not _is_remedy(run))]

    def inhibitor(self, rule: Rule) -> str | None:
        """The firing rule that keeps this one quiet."""
        for name in rule.inhibited_by:
            standing = self._standings.get(name)
            if standing is not None and standing.state in ("firing", "clearing"):
                return name
        return None

    # --- at run time ---------------------------------------------------------------------------------

    def add(self, name: str, given: Any) -> Rule:
        """Take a new rule, or change one that exists. Raises BadRequest with every mistake; then nothing has
        changed."""
        if name not in self._rules and len(self._rules) >= alert_rules.MAX_RULES:
            raise BadRequest(f"there are {alert_rules.MAX_RULES} rules already; remove one")
        rule = self.draft(name, given)
        self._rules[name] = rule
        self._added[name] = msgspec.to_builtins(rule)
        self._removed.discard(name)
        self._standings.setdefault(name, _Standing())
        self.changed = True
        return rule

    def draft(self, name: str, given: Any) -> Rule:
        """The rule that `add` would take. Raises BadRequest with every mistake."""
        path = f"alerts.rules.{name}"[:100]
        rule = alert_rules.parse(name, given, self._rules.get(name), path, self._actions)
        if isinstance(rule, list):
            raise BadRequest("; ".join(rule))
        return rule

    def remove(self, name: str) -> None:
        self._known(name)
        del self._rules[name], self._standings[name]
        self._added.pop(name, None)
        self._silences.pop(name, None)
        if name in self._configured:
            self._removed.add(name)
        self.changed = True

    def silence(self, name: str, reason: str, until_s: float, now_s: float, by: str = "") -> Silence:
        """Tell nobody of this rule until then."""
        self._known(name)
        if not reason.strip():
            raise BadRequest("silence.reason: say why, for those who wonder later")
        if not now_s < until_s <= now_s + 30 * 86400:
            raise BadRequest("silence.for_s: more than 0 seconds and at most 30 days")
        made = self._silences[name] = Silence(name, reason[:400], until_s, by[:100])
        self.changed = True
        return made

    def unsilence(self, name: str) -> None:
        if name not in self._silences:
            raise BadRequest(f"{name[:100]!r} is not silenced")
        del self._silences[name]
        self.changed = True

    def _known(self, name: str) -> Rule:
        rule = self._rules.get(name)
        if rule is None:
            raise BadRequest(f"no rule {name[:100]!r}; alerts.list names them")
        return rule

    def rule(self, name: str) -> Rule:
        """Raises BadRequest for one that does not exist."""
        return self._known(name)

    def listing(self, now_s: float) -> list[dict[str, Any]]:
        """Every rule and where it stands, as plain values."""
        rows = []
        for name, rule in self._rules.items():
            standing, silence = self._standings[name], self._silences.get(name)
            rows.append(
                {
                    "rule": name,
                    "state": standing.state,
                    "severity": rule.severity,
                    "value": standing.value,
                    "labels": standing.labels,
                    "for_s": max(0.0, now_s - standing.since_s) if standing.looked_s >= 0 else 0.0,
                    "inhibited_by": self.inhibitor(rule),
                    "silence": msgspec.to_builtins(silence) if silence is not None else None,
                    "schema": msgspec.to_builtins(rule),
                }
            )
        return rows

    def states(self) -> dict[str, State]:
        return {name: standing.state for name, standing in self._standings.items()}

    def held(self) -> set[str]:
        """The remedies that are to be in force now."""
        standings = self._standings
        active = [r for r in self._rules.values() if standings[r.name].state in ("firing", "clearing")]
        return {action for rule in active if standings[rule.name].acted for action in rule.actions} & HELD

    def history(self, limit: int = MAX_HISTORY) -> list[Change]:
        """The newest last."""
        return list(self._history)[-limit:] if limit > 0 else []

    # --- a restart -----------------------------------------------------------------------------------

    def keep(self) -> bytes:
        """Everything `restore` needs."""
        self.changed = False
        kept = _Kept(
            self._standings, [tuple(c) for c in self._history], list(self._silences.values()), self._added,  # type: ignore[misc]
            sorted(self._removed),
        )  # fmt: skip
        return msgspec.msgpack.encode(kept)

    def restore(self, data: bytes) -> list[str]:
        """Go on where `keep` was called; returns what could not be taken, a line each. Raises ValueError for
        what `keep` never gave, and then nothing has changed."""
        try:
            kept = msgspec.msgpack.decode(data, type=_Kept)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise ValueError(f"state of the alerts: {exc}") from None
        lost = []
        for name, plain in list(kept.added.items())[: alert_rules.MAX_RULES]:
            rule = alert_rules.parse(name, plain, None, f"alerts.rules.{name}", self._actions)
            if isinstance(rule, list):
                lost += rule
            else:
                self._rules[name], self._added[name] = rule, plain
        for name in kept.removed:
            if name in self._configured and name not in self._added:
                self._rules.pop(name, None)
                self._removed.add(name)
        self._standings = {name: kept.standings.get(name, _Standing()) for name in self._rules}
        self._history.extend(Change(*row) for row in kept.history)
        self._silences = {s.rule: s for s in kept.silences[:MAX_SILENCES] if s.rule in self._rules}
        return lost


def _signal(rule: Rule, reading: Reading | None) -> Signal:
    if reading is None:
        return {"hold": "none", "ok": "good", "alert": "bad"}[rule.no_data]  # type: ignore[return-value]
    if alert_rules.beyond(rule.operator, reading.value, rule.fire):
        return "bad"
    if rule.clear is not None and alert_rules.beyond(rule.operator, reading.value, rule.clear):
        return "between"
    return "good"


def _steps(rule: Rule, standing: _Standing, signal: Signal, now_s: float) -> Iterable[State]:
    """The states the rule now goes through, one after the other."""
    state, since_s = TABLE[standing.state, signal], standing.since_s
    if state != standing.state:
        yield state
        since_s = now_s
    if signal == "bad" and state == "pending" and now_s - since_s >= rule.for_s:
        yield "firing"
    elif signal == "good" and state == "clearing" and now_s - since_s >= rule.clear_for_s:
        yield "ok"


def _is_remedy(effect: Effect) -> bool:
    return isinstance(effect, RunAction) and effect.action in REMEDIES
