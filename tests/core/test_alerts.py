"""Alerts on a fake clock: every state, what a gap does, storms, silences, inhibition, restarts, broken rules.

May live here: core/alerts.py, alert_rules.py, builtin_alerts.py with the real registry. May not: processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from walled.core import alert_rules, alerts, builtin_alerts, catalogue
from walled.core.alert_rules import Rule
from walled.core.alerts import Alerts, Change, Notify, RunAction
from walled.core.history import History
from walled.core.registry import Registry, series_key
from walled.errors import BadRequest
from walled.sections import AlertsConfig

WORDS = {"log", "recycle", "webhook:ops"}


class World(Registry):
    """The real registry and history with a clock that is set; it is the reader too."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.now_s, self.past = 0.0, History()

    def at(self, now_s: float) -> World:
        self.now_s = now_s
        self.advance(now_s)
        return self

    def gauge(self, name: str, value: float, *labels: str) -> None:
        self.set(name, value, *labels)
        family = catalogue.BY_NAME[name]
        key = series_key(name, dict(zip(family.labels, labels, strict=True)))
        self.past.append(key, self.now_s, value)

    def window(self, name: str, labels: Mapping[str, str], window_s: float) -> Sequence[tuple[float, float]]:
        return self.past.window(series_key(name, labels), self.now_s - window_s)

    def kind(self, name: str) -> str | None:
        family = catalogue.BY_NAME.get(name)
        return family.kind if family is not None else None


def rule(**changes: Any) -> Rule:
    given = {
        "name": "cpu",
        "metric": "walled_system_cpu_ratio",
        "aggregate": "last",
        "fire": 0.9,
        "clear": 0.8,
    }
    return msgspec.convert({**given, "for_s": 3.0, "clear_for_s": 3.0, **changes}, Rule)


def run(
    made: Alerts, values: Sequence[float | None], start_s: float = 1000.0
) -> tuple[list[Change], list[Notify], list[RunAction]]:
    """One value of the machine's CPU a second; None: nothing is known."""
    effects: list[alerts.Effect] = []
    for number, value in enumerate(values):
        world = World().at(start_s + number)
        if value is not None:
            world.gauge("walled_system_cpu_ratio", value)
        effects += made.evaluate(start_s + number, world)
    return (
        [e for e in effects if isinstance(e, Change)],
        [e for e in effects if isinstance(e, Notify)],
        [e for e in effects if isinstance(e, RunAction)],
    )


def test_the_table_knows_every_state_and_signal() -> None:
    states = {"ok", "pending", "firing", "clearing", "unknown"}
    assert {s for s, _ in alerts.TABLE} == states
    assert len(alerts.TABLE) == len(states) * 4


def test_a_whole_life() -> None:
    changes, told, ran = run(Alerts([rule()]), [0.1, *[0.95] * 5, *[0.1] * 5])
    assert [c.after for c in changes] == ["ok", "pending", "firing", "clearing", "ok"]
    assert [(n.status, n.at_s) for n in told] == [("firing", 1004.0), ("resolved", 1009.0)]
    assert [r.action for r in ran] == ["log", "log"]


def test_between_the_thresholds_nothing_ends() -> None:
    changes, _, _ = run(Alerts([rule()]), [*[0.95] * 5, *[0.85] * 50])
    assert changes[-1].after == "firing"


def test_a_short_peak_tells_nobody() -> None:
    _, told, _ = run(Alerts([rule()]), [0.95, 0.95, 0.1, 0.95, 0.95, 0.1] * 10)
    assert told == []


def test_a_missing_sample_never_ends_an_alert() -> None:
    changes, told, _ = run(Alerts([rule()]), [*[0.95] * 4, *[None] * 500])
    assert changes[-1].after == "firing"
    assert len(told) == 1


@pytest.mark.parametrize("gap", [1, 100])
def test_a_gap_stops_the_clock_and_does_not_set_it_back(gap: int) -> None:
    """Bad for two seconds, a gap, bad again: it fires when three seconds of being bad have been seen."""
    changes, _, _ = run(Alerts([rule()]), [0.95, 0.95, 0.95, *[None] * gap, 0.95, 0.95])
    fired = [c.at_s for c in changes if c.after == "firing"]
    assert fired == [1000.0 + 2 + gap + 1]


def test_a_gap_while_it_clears_does_not_end_it() -> None:
    changes, _, _ = run(Alerts([rule()]), [*[0.95] * 4, 0.1, *[None] * 100])
    assert changes[-1].after == "clearing"


def test_no_data_can_be_good_or_bad() -> None:
    assert run(Alerts([rule(no_data="alert")]), [None] * 5)[0][-1].after == "firing"
    assert run(Alerts([rule(no_data="ok")]), [*[0.95] * 4, *[None] * 5])[0][-1].after == "ok"
    assert run(Alerts([rule()]), [0.1, None])[0][-1].after == "unknown"


def test_a_storm_of_crossings_tells_once_per_change() -> None:
    made = Alerts([rule(for_s=0.0, clear_for_s=10.0, repeat_s=0.0)])
    changes, told, _ = run(made, [0.95, 0.1] * 10_000)
    assert len([c for c in changes if c.after == "firing" and c.before == "pending"]) == 1
    assert [n.status for n in told] == ["firing"]
    assert [n.status for n in run(made, [0.1] * 20, 21_000.0)[1]] == ["resolved"]
    assert len(made.history()) <= alerts.MAX_HISTORY


def test_ticks_that_come_a_little_early_are_looks_all_the_same() -> None:
    made, looks = Alerts([rule(for_s=0.0), rule(name="rare", every_s=5.0)]), 0
    for number in range(20):
        now_s = 1000.0 + number + (0.002 if number % 2 else -0.002)
        world = World().at(now_s)
        world.gauge("walled_system_cpu_ratio", 0.95 if number % 2 else 0.1)
        looks += any(isinstance(e, Change) and e.rule == "cpu" for e in made.evaluate(now_s, world))
    assert looks == 20
    assert sum(change.rule == "rare" for change in made.history()) <= 4


def test_it_is_repeated_while_it_fires() -> None:
    _, told, _ = run(Alerts([rule(repeat_s=10.0)]), [0.95] * 35)
    assert [(n.at_s, n.repeated) for n in told] == [(1003, False), (1013, True), (1023, True), (1033, True)]


def test_silence_is_about_telling_and_ends() -> None:
    made = Alerts([rule(actions=["log", "recycle"])], WORDS)
    made.silence("cpu", "we know", 1020.0, 1000.0)
    _, told, ran = run(made, [0.95] * 15)
    assert told == []
    assert [r.action for r in ran] == ["recycle"]
    _, told, ran = run(made, [0.95] * 10, 1015.0)
    assert [n.at_s for n in told] == [1020.0]
    assert [r.action for r in ran] == ["log"]


def test_what_was_never_told_is_not_resolved() -> None:
    made = Alerts([rule()])
    made.silence("cpu", "we know", 2000.0, 1000.0)
    assert run(made, [*[0.95] * 5, *[0.1] * 10])[1] == []


def test_inhibition_whatever_the_order_of_rules() -> None:
    cause = rule(name="cause")
    effect = rule(name="effect", inhibited_by=("cause",))
    for rules in ([cause, effect], [effect, cause]):
        _, told, _ = run(Alerts(rules), [0.95] * 6)
        assert [n.rule.name for n in told] == ["cause"]


def test_remedies_in_force_last_as_long_as_the_alert_also_over_a_restart() -> None:
    made = Alerts([rule(actions=("log", "shed", "gc")), rule(name="other", actions=("fallback",), fire=0.99)])
    assert made.held() == set()
    run(made, [0.95] * 5)
    assert made.held() == {"shed"}
    again = Alerts([rule(actions=("log", "shed", "gc"))])
    again.restore(made.keep())
    assert again.held() == {"shed"}
    run(made, [0.1] * 2, 1005.0)
    assert made.held() == {"shed"}, "while it clears, the remedy stays"
    run(made, [0.1] * 5, 1007.0)
    assert made.held() == set()


def test_a_new_process_goes_on_where_the_old_one_was() -> None:
    made = Alerts([rule()], WORDS)
    made.add("mine", {"metric": "walled_system_cpu_ratio", "aggregate": "last", "fire": 5})
    made.silence("mine", "later", 9000.0, 1000.0, "me")
    run(made, [0.95] * 5)
    after = Alerts([rule()], WORDS)
    assert after.restore(made.keep()) == []
    assert after.states() == {"cpu": "firing", "mine": "ok"}
    assert after.history() == made.history()
    assert run(after, [0.95] * 5, 1005.0)[1] == [], "it was told already"
    row = next(row for row in after.listing(1010.0) if row["rule"] == "mine")
    assert row["silence"]["reason"] == "later"
    assert [n.status for n in run(after, [0.1] * 5, 1010.0)[1]] == ["resolved"]


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x80", b"[]", b"\x81\xa1x\x01"])
def test_a_broken_state_is_refused_and_harms_nothing(junk: bytes) -> None:
    made = Alerts([rule()])
    run(made, [0.95] * 5)
    with pytest.raises(ValueError, match="state of the alerts"):
        made.restore(junk)
    assert made.states() == {"cpu": "firing"}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"metric": "walled_system_cpu_ration"}, "metric: unknown metric 'walled_system_cpu_ration'; did you mean"),  # noqa: E501
        ({"aggregate": "mean"}, "aggregate: expected one of"),
        ({"fire": 0.5, "clear": 0.9}, "clear: 0.9 is above fire (0.5)"),
        ({"operator": "<", "fire": 0.5, "clear": 0.1}, "clear: 0.1 is below fire (0.5)"),
        ({"macth": {}}, "macth: unknown key; did you mean"),
        ({"match": {"model": "a"}}, "match.model: walled_system_cpu_ratio has no such label"),
        ({"aggregate": "rate"}, "aggregate: walled_system_cpu_ratio is a gauge"),
        ({"metric": "walled_request_duration_seconds"}, "aggregate: walled_request_duration_seconds is a hist"),  # noqa: E501
        ({"actions": ["webhok:ops"]}, 'actions[0]: no action "webhok:ops"; did you mean "webhook:ops"?'),
        ({"summary": "{value.__class__}"}, "summary: only"),
        ({"summary": "{value:>999999999}"}, "summary: only"),
        ({"window_s": -1}, "window_s: Expected `float` > 0"),
        ({"inhibited_by": ["x"]}, "inhibited_by: a rule cannot inhibit itself"),
        ({"short_window_s": 5}, "short_window_s: only for burn_rate"),
        ({"baseline_s": 90}, "baseline_s: at least twice"),
    ],
)  # fmt: skip
def test_broken_rules_are_refused_with_key_path(given: dict[str, Any], line: str) -> None:
    base = {"metric": "walled_system_cpu_ratio", "aggregate": "last", "fire": 0.9}
    made = Alerts([rule()], WORDS)
    with pytest.raises(BadRequest) as caught:
        made.add("x", {**base, **given})
    assert f"alerts.rules.x.{line}" in caught.value.message
    assert set(made.states()) == {"cpu"}


def test_rules_come_and_go_at_run_time() -> None:
    made = Alerts([rule()])
    made.add("cpu", {"fire": 0.95})
    assert made.rule("cpu").fire == 0.95
    assert made.rule("cpu").for_s == 3.0
    made.remove("cpu")
    again = Alerts([rule()])
    again.restore(made.keep())
    assert again.states() == {}
    for ask in (made.remove, made.rule, made.unsilence):
        with pytest.raises(BadRequest):
            ask("cpu")


@pytest.mark.parametrize(
    ("how", "wanted"),
    [("avg", 2.0), ("min", 0.0), ("max", 4.0), ("p50", 2.0), ("p99", 4.0), ("last", 4.0), ("slope_per_hour", 3600)],  # noqa: E501
)  # fmt: skip
def test_aggregates_of_a_gauge(how: Any, wanted: float) -> None:
    assert alert_rules.aggregate(how, [(float(n), float(n)) for n in range(5)]) == pytest.approx(wanted)


def test_labels_match_either_or_neither() -> None:
    labels = {"outcome": "ok"}
    assert alert_rules.matches(labels, {"outcome": "ok|late"})
    assert not alert_rules.matches(labels, {"outcome": "!ok|late"})
    assert alert_rules.matches(labels, {"outcome": "!late"})


# --- the rules that ship with walled ------------------------------------------------------------------


def test_every_built_in_rule_is_sound() -> None:
    for one in builtin_alerts.RULES:
        known = alert_rules.action_names(AlertsConfig())
        assert isinstance(alert_rules.parse(one.name, {}, one, one.name, known), Rule), one.name
        assert one.metric in catalogue.BY_NAME
        assert set(one.inhibited_by) <= set(builtin_alerts.BY_NAME)


def _gauge(name: str, good: float, bad: float, *labels: str) -> Any:
    return lambda world, ill: world.gauge(name, bad if ill else good, *labels)


def _requests(share: float, source: str = "model") -> Any:
    def feed(world: World, ill: bool) -> None:
        failed = share if ill else 0.0
        world.increase("walled_requests_total", 20 * (1 - failed), "m", "ok", source)
        world.increase("walled_requests_total", 20 * failed, "m", "backend_error", "none")

    return feed


def _hits(world: World, ill: bool) -> None:
    world.increase("walled_requests_total", 2 if ill else 10, "m", "ok", "cache")
    world.increase("walled_requests_total", 18 if ill else 10, "m", "ok", "model")


def _descriptors(world: World, ill: bool) -> None:
    world.gauge("walled_process_max_fds", 1000, "broker", "")
    world.gauge("walled_process_open_fds", 900 if ill else 50, "broker", "")


def _restarts(world: World, ill: bool) -> None:
    world.increase("walled_worker_restarts_total", 0.5 if ill else 0.0, "worker", "died")


PROVOKED: dict[str, Any] = {
    "memory": _gauge("walled_system_memory_used_ratio", 0.5, 0.9),
    "slow_replies": lambda w, ill: w.observe("walled_request_duration_seconds", 9 if ill else 1, "m", "model"),  # noqa: E501
    "errors": _requests(0.3),
    "cpu": _gauge("walled_system_cpu_ratio", 0.3, 0.99),
    "threads": _gauge("walled_process_threads", 20, 900, "broker", ""),
    "descriptors": _descriptors,
    "backend_down": _gauge("walled_workers_live", 2, 0, "s"),
    "breaker_open": _gauge("walled_breaker_state", 0, 2, "s"),
    "queue_age": _gauge("walled_queue_oldest_age_seconds", 0, 30, "all"),
    "cache_hit_collapse": _hits,
    "token_rate_collapse": lambda w, ill: w.observe(
        "walled_request_per_output_token_seconds", 0.08 if ill else 0.01, "m"
    ),
    "leak": _gauge("walled_leak_verdict", 0, 2, "worker", "0"),
    "worker_crash_loop": _restarts,
    "slo_fast_burn": _requests(0.2),
    "slo_slow_burn": _requests(0.05),
}  # fmt: skip


@pytest.mark.parametrize("name", list(builtin_alerts.BY_NAME))
def test_every_built_in_rule_fires_when_it_happens_and_not_before(name: str) -> None:
    """An hour and more of health, one step a second (of ten for the long windows), then the illness."""
    one = builtin_alerts.BY_NAME[name]
    made, world, feed = Alerts([msgspec.structs.replace(one, inhibited_by=())]), World(), PROVOKED[name]
    long = one.window_s > 1000 or one.baseline_s > 0
    step_s = 10 if long else 1
    well_s, ill_s = (7200, 4000) if long else (400, 700)
    for ill, until_s in ((False, well_s), (True, well_s + ill_s)):
        fired = False
        while world.now_s < until_s and not fired:
            world.at(world.now_s + step_s)
            feed(world, ill)
            fired = any(isinstance(e, Notify) for e in made.evaluate(world.now_s, world))
        assert fired == ill, (ill, world.now_s, made.listing(world.now_s))


@pytest.mark.parametrize("name", ["errors", "slo_fast_burn"])
def test_a_monitor_that_has_just_begun_takes_one_failure_for_one(name: str) -> None:
    """Not for what an hour of that rate would be: floors are counts of what really was."""
    built_in, world = builtin_alerts.BY_NAME[name], World()
    for second in range(1, 6):
        world.at(float(second)).increase("walled_requests_total", 1, "m", "ok", "model")
    world.increase("walled_requests_total", 2, "m", "backend_error", "none")
    found = alert_rules.read(built_in, world)
    assert found is None or found.value == 0.0
    world.increase("walled_requests_total", 30, "m", "backend_error", "none")
    found = alert_rules.read(built_in, world)
    assert found is not None
    assert found.value > built_in.fire
