"""The supervisor's state machine, fed with events at chosen times; no process, no clock, no sleep."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walled.core import posts, watch
from walled.core.posts import Settings, Spec
from walled.core.restart import Limits
from walled.core.supervision import Supervision
from walled.link import Phase, Role

E = TypeVar("E")

SETTINGS = Settings(
    Limits(intensity=3, period_s=60.0, backoff_initial_s=0.2, backoff_max_s=2.0),
    start_timeout_s=30.0,
    hang_timeout_s=4.0,
    stop_timeout_s=5.0,
    drain_timeout_s=10.0,
)


def specs_of(workers: int, *, overlap: bool = True, settings: Any = None) -> tuple[Spec, ...]:
    return (
        Spec("broker", 0),
        Spec("monitor", 0),
        *(Spec("worker", n, "b", overlap, settings) for n in range(workers)),
    )


class World:
    """Children that do exactly what the test says, and a clock that stands still until told."""

    def __init__(self, workers: int = 2, *, overlap: bool = True) -> None:
        self.now_s = 1000.0
        self.log: list[posts.Effect] = []
        self.alive: dict[int, Spec] = {}
        self.core = Supervision(specs_of(workers, overlap=overlap), SETTINGS, 42, self.now_s)
        self._note(self.core.begin(self.now_s))

    def _note(self, effects: list[posts.Effect]) -> list[posts.Effect]:
        self.log += effects
        for effect in effects:
            if isinstance(effect, posts.Start):
                assert effect.ident not in self.alive
                self.alive[effect.ident] = effect.spec
                self._note(self.core.handle(posts.Started(effect.ident, 5000 + effect.ident), self.now_s))
            elif isinstance(effect, posts.Send | posts.Kill):
                assert effect.ident in self.alive, "an effect on a child that is gone"
        return effects

    def feed(self, event: posts.Event) -> list[posts.Effect]:
        mark = len(self.log)
        self._note(self.core.handle(event, self.now_s))
        return self.log[mark:]

    def beat(self, ident: int, phase: Phase = "ready", **more: Any) -> list[posts.Effect]:
        return self.feed(posts.Beat(ident, phase, **more))

    def exit(self, ident: int, code: int = -9) -> list[posts.Effect]:
        del self.alive[ident]
        return self.feed(posts.Exited(ident, code, 0.0))

    def run(self, seconds: float, silent: tuple[int, ...] = ()) -> list[posts.Effect]:
        """Time passes; every child that was ready beats on, but the silent ones."""
        mark, until_s = len(self.log), self.now_s + seconds
        while self.now_s < until_s:
            self.now_s = min(until_s, self.now_s + 0.25)
            for post in list(self.core._posts.values()):
                for life in post.lives():
                    if life.ident not in silent and life.phase in ("ready", "stopping"):
                        self.beat(life.ident, life.phase)
            self.feed(posts.Tick())
        return self.log[mark:]

    def ident(self, role: Role, slot: int = 0) -> int:
        """The newest living child of a post."""
        return max(i for i, spec in self.alive.items() if (spec.role, spec.slot) == (role, slot))

    def up(self) -> World:
        """Everybody ready, the daemon READY."""
        for ident in list(self.alive):
            self.beat(ident)
        self.beat(self.ident("broker"), answered=True, detail="model m")
        assert self.core.ready
        self.log.clear()
        return self


def found(effects: list[posts.Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def orders(effects: list[posts.Effect], op: str) -> list[int]:
    return [effect.ident for effect in found(effects, posts.Send) if effect.order.op == op]


# --- start -----------------------------------------------------------------------------------------


def test_everybody_is_started_at_once() -> None:
    started = [(e.spec.role, e.spec.slot, e.incarnation) for e in found(World(2).log, posts.Start)]
    assert started == [("broker", 0, 1), ("monitor", 0, 1), ("worker", 0, 1), ("worker", 1, 1)]


def test_ready_comes_once_and_only_when_a_worker_has_answered() -> None:
    world = World()
    for ident in list(world.alive):
        world.beat(ident)
    assert not found(world.log, posts.Ready)
    assert found(world.beat(world.ident("broker"), answered=True, detail="m"), posts.Ready) == [
        posts.Ready("m")
    ]
    assert not found(world.beat(world.ident("broker"), answered=True), posts.Ready)


def test_a_boot_error_before_ready_halts_the_daemon_with_the_childs_words() -> None:
    world = World(1)
    worker = world.ident("worker")
    world.beat(worker, "stopping", detail="x.gguf: not a GGUF")
    effects = world.exit(worker, 78)
    assert len(orders(effects, "stop")) == 2
    assert not found(effects, posts.Start)
    for ident in list(world.alive):
        world.exit(ident, 0)
    assert world.log[-1] == posts.Over(78, "worker 0: x.gguf: not a GGUF")


def test_a_boot_error_after_ready_costs_only_that_child() -> None:
    world = World(2).up()
    effects = world.exit(world.ident("worker", 1), 78)
    assert not found(effects, posts.Start)
    assert not orders(effects, "stop")
    assert not found(world.run(30), posts.Start)
    states = {
        c["slot"]: c["phase"] for c in world.core.tree(world.now_s)["children"] if c["role"] == "worker"
    }
    assert states == {0: "ready", 1: "failed"}


def test_not_ready_in_time_is_killed_and_started_again() -> None:
    world = World(1)
    worker = world.ident("worker")
    for ident in list(world.alive):
        world.beat(ident, "loading" if ident == worker else "ready")
    assert not found(world.run(29.0), posts.Kill)
    assert worker in [kill.ident for kill in found(world.run(1.5), posts.Kill)]
    assert found(world.exit(worker, -9), posts.Start)


# --- death -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["broker", "monitor", "worker"])
def test_a_killed_child_is_back_at_once(role: Role) -> None:
    world = World().up()
    effects = world.exit(world.ident(role))
    assert [(e.spec.role, e.incarnation) for e in found(effects, posts.Start)] == [(role, 2)]
    world.beat(world.ident(role))
    world.run(10)
    assert found(world.exit(world.ident(role)), posts.Start), "and each time again after a sound life"


def test_a_crash_loop_waits_longer_each_time() -> None:
    world = World(1)
    worker = world.ident("worker")
    assert found(world.exit(worker, 1), posts.Start)
    effects = world.exit(world.ident("worker"), 1)
    assert not found(effects, posts.Start)
    assert world.core.next_due_s(world.now_s) == pytest.approx(world.now_s + 0.2)
    assert found(world.run(0.25), posts.Start)


def test_exit_status_zero_unasked_is_a_death_too() -> None:
    world = World(1).up()
    assert found(world.exit(world.ident("worker"), 0), posts.Start)


def wear_out(world: World, role: Role, slot: int = 0) -> list[posts.Effect]:
    effects: list[posts.Effect] = []
    for _ in range(SETTINGS.limits.intensity + 1):
        world.run(5)
        ident = world.ident(role, slot)
        world.beat(ident)
        world.run(3)
        effects = world.exit(ident)
    return effects


def test_a_worn_out_monitor_is_done_without_and_tried_again_slowly() -> None:
    world = World().up()
    effects = wear_out(world, "monitor")
    assert not found(effects, posts.Start)
    assert not orders(effects, "stop")
    assert not found(world.run(59.0), posts.Start)
    assert found(world.run(2.0), posts.Start)


def test_a_worn_out_broker_ends_the_daemon() -> None:
    world = World().up()
    assert len(orders(wear_out(world, "broker"), "stop")) == 3
    for ident in list(world.alive):
        world.exit(ident, 0)
    over = found(world.log, posts.Over)
    assert [o.exit_code for o in over] == [1]
    assert "broker" in over[0].reason


def wear_out_unready(world: World, slot: int) -> list[posts.Effect]:
    """A worker that dies at each start until it is given up; the log line says so."""
    effects: list[posts.Effect] = []
    while not any("given up" in log.text for log in found(effects, posts.Log)):
        ident = world.ident("worker", slot)
        effects = world.exit(ident, 1)
        while not any(i for i, spec in world.alive.items() if spec.slot == slot and spec.role == "worker"):
            if any("given up" in log.text for log in found(effects, posts.Log)):
                break
            world.run(0.25)
    return effects


def test_a_daemon_that_never_answered_ends_with_its_last_worker_and_not_before() -> None:
    world = World(2)
    assert not orders(wear_out_unready(world, 0), "stop")
    assert orders(wear_out_unready(world, 1), "stop")
    for ident in list(world.alive):
        world.exit(ident, 0)
    assert world.log[-1] == posts.Over(1, "no worker is left")


def test_a_daemon_that_answered_lives_on_without_workers_for_the_cache_and_templates_do() -> None:
    world = World(2).up()
    assert not orders(wear_out(world, "worker", 0), "stop")
    assert not orders(wear_out(world, "worker", 1), "stop")
    rows = [row for row in world.core.tree(world.now_s)["children"] if row["role"] == "worker"]
    assert [row["phase"] for row in rows] == ["failed", "failed"]
    assert len(found(world.run(62.0), posts.Start)) == 2, "and tries them again"


def test_what_was_given_up_is_tried_once_a_time_and_ever_less_often() -> None:
    world = World(2).up()
    wear_out(world, "worker", 0)
    waits = []
    for _ in range(5):
        began_s = world.now_s
        while not any(spec.role == "worker" and spec.slot == 0 for spec in world.alive.values()):
            world.run(0.5)
        waits.append(round(world.now_s - began_s))
        effects = world.exit(world.ident("worker", 0), 1)
        assert not found(effects, posts.Start), "one try, not a fresh set of them"
    assert waits == [60, 120, 240, 300, 300]


def test_who_was_given_up_and_serves_again_has_a_clean_sheet() -> None:
    world = World(2).up()
    wear_out(world, "worker", 0)
    world.run(61.0)
    worker = world.ident("worker", 0)
    world.beat(worker)
    world.run(70.0)
    assert not any(row["detail"] for row in world.core.tree(world.now_s)["children"] if row["pid"] == 0)
    assert found(world.exit(worker), posts.Start), "back at once, as anybody"


# --- hanging ---------------------------------------------------------------------------------------


def test_a_silent_child_is_killed() -> None:
    world = World().up()
    worker = world.ident("worker", 1)
    assert not found(world.run(4.0, silent=(worker,)), posts.Kill)
    assert found(world.run(0.5, silent=(worker,)), posts.Kill) == [posts.Kill(worker)]
    assert not found(world.run(5.0, silent=(worker,)), posts.Kill), "once"


def test_a_loading_worker_needs_no_beats() -> None:
    world = World(1)
    worker = world.ident("worker")
    world.beat(worker, "loading")
    assert worker not in [kill.ident for kill in found(world.run(25.0), posts.Kill)]


@pytest.mark.parametrize("role", ["broker", "worker", "monitor"])
def test_a_child_that_hangs_before_its_first_word_is_killed_long_before_a_model_had_to_be_loaded(
    role: Role,
) -> None:
    world = World(1)
    hung = world.ident(role)
    for ident in list(world.alive):
        if ident != hung:
            world.beat(ident, "ready")
    assert not found(world.run(watch.SILENT_START_S - 1), posts.Kill)
    assert [kill.ident for kill in found(world.run(1.5), posts.Kill)] == [hung]


def test_a_supervisor_that_slept_blames_nobody() -> None:
    world = World().up()
    world.now_s += 3600.0
    assert not found(world.feed(posts.Tick()), posts.Kill)
    silent = (world.ident("worker"),)
    assert not found(world.run(3.5, silent), posts.Kill)
    assert found(world.run(1.0, silent), posts.Kill), "but who is still silent afterwards is judged"


def test_looking_at_the_cache_first_is_no_absence() -> None:
    world = World(1)
    world.now_s += 100.0
    world.core.excuse_absence(world.now_s)
    assert not found(world.feed(posts.Tick()), posts.Log)
    assert not found(world.run(watch.SILENT_START_S - 1), posts.Kill)
    assert found(world.run(1.5), posts.Kill)


def test_a_sleep_while_draining_takes_nothing_off_the_deadline() -> None:
    world = World().up()
    world.feed(posts.StopAsked())
    world.now_s += 3600.0
    assert not orders(world.feed(posts.Tick()), "stop")


def test_a_child_that_talks_nonsense_is_killed() -> None:
    world = World().up()
    worker = world.ident("worker")
    assert found(world.feed(posts.Garbled(worker)), posts.Kill) == [posts.Kill(worker)]
    assert found(world.exit(worker), posts.Start)


def test_a_child_that_closed_its_link_and_stays_is_killed() -> None:
    world = World().up()
    worker = world.ident("worker")
    world.feed(posts.Closed(worker))
    assert found(world.run(6.0, silent=(worker,)), posts.Kill) == [posts.Kill(worker)]


# --- stop ------------------------------------------------------------------------------------------


def test_stop_drains_then_workers_then_the_rest() -> None:
    world = World(2).up()
    broker, monitor = world.ident("broker"), world.ident("monitor")
    effects = world.feed(posts.StopAsked())
    assert orders(effects, "drain") == [broker]
    assert found(effects, posts.Report)[0].stopping
    world.run(3)
    assert not orders(world.log, "stop"), "requests are still running"
    workers = [world.ident("worker", 0), world.ident("worker", 1)]
    assert orders(world.beat(broker, "stopping"), "stop") == workers
    world.exit(workers[0], 0)
    effects = world.exit(workers[1], 0)
    assert sorted(orders(effects, "stop")) == sorted([broker, monitor])
    world.exit(monitor, 0)
    assert found(world.exit(broker, 0), posts.Over) == [posts.Over(0, "stopped")]
    assert not found(world.log, posts.Start)


def test_a_drain_ends_when_its_time_is_up() -> None:
    world = World(1).up()
    world.feed(posts.StopAsked())
    assert not orders(world.run(10.5), "stop")
    assert orders(world.run(1.0), "stop") == [world.ident("worker")]


def test_who_does_not_stop_is_killed() -> None:
    world = World(1).up()
    world.feed(posts.StopAsked())
    world.beat(world.ident("broker"), "stopping")
    worker = world.ident("worker")
    assert found(world.run(5.5), posts.Kill) == [posts.Kill(worker)]


def test_a_second_stop_hurries_and_a_third_kills() -> None:
    world = World(1).up()
    world.feed(posts.StopAsked())
    assert len(orders(world.feed(posts.StopAsked()), "stop")) == 3
    assert len(found(world.feed(posts.StopAsked()), posts.Kill)) == 3


def test_a_hurried_stop_kills_after_a_second() -> None:
    world = World(1).up()
    world.feed(posts.StopAsked())
    world.feed(posts.StopAsked())
    assert len(found(world.run(1.5), posts.Kill)) == 3


def test_stop_before_ready_does_not_drain() -> None:
    world = World(1)
    effects = world.feed(posts.StopAsked())
    assert len(orders(effects, "stop")) == 3
    for ident in list(world.alive):
        world.exit(ident, 0)
    assert world.log[-1] == posts.Over(0, "stopped")


def test_a_worker_lost_while_draining_comes_back_for_the_requests() -> None:
    world = World(1).up()
    world.feed(posts.StopAsked())
    assert found(world.exit(world.ident("worker")), posts.Start)


def test_a_broker_lost_while_draining_ends_the_drain() -> None:
    world = World(1).up()
    world.feed(posts.StopAsked())
    effects = world.exit(world.ident("broker"))
    assert not found(effects, posts.Start)
    assert orders(effects, "stop") == [world.ident("worker")]


def test_a_restart_that_is_due_does_not_happen_once_everybody_goes() -> None:
    world = World(1)
    world.exit(world.ident("worker"), 1)
    world.exit(world.ident("worker"), 1)
    world.feed(posts.StopAsked())
    assert not found(world.run(3), posts.Start)


# --- replacement -----------------------------------------------------------------------------------


def test_a_replacement_is_ready_before_the_old_worker_drains() -> None:
    world = World(1).up()
    old = world.ident("worker")
    effects = world.feed(posts.RestartAsked(0))
    new = found(effects, posts.Start)[0].ident
    assert not orders(effects, "drain")
    assert not orders(world.beat(new, "loading"), "drain")
    assert orders(world.beat(new, "ready"), "drain") == [old]
    effects = world.exit(old, 0)
    assert not found(effects, posts.Start)
    assert list(world.alive).count(new) == 1


def test_without_overlap_the_old_worker_goes_first() -> None:
    world = World(1, overlap=False).up()
    old = world.ident("worker")
    effects = world.feed(posts.RestartAsked(0))
    assert orders(effects, "drain") == [old]
    assert not found(effects, posts.Start)
    assert found(world.exit(old, 0), posts.Start)


def test_an_old_worker_that_will_not_drain_is_killed_in_the_end() -> None:
    world = World(1).up()
    old = world.ident("worker")
    world.feed(posts.RestartAsked(0))
    world.beat(world.ident("worker"))
    assert not found(world.run(14.0), posts.Kill)
    assert found(world.run(1.5), posts.Kill) == [posts.Kill(old)]


def test_a_replacement_that_cannot_start_leaves_the_old_worker_in_place() -> None:
    world = World(1).up()
    old = world.ident("worker")
    world.feed(posts.RestartAsked(0))
    effects = world.exit(world.ident("worker"), 78)
    assert not orders(effects, "drain")
    assert not orders(effects, "stop")
    assert world.ident("worker") == old
    assert found(world.exit(old), posts.Start), "and it is looked after as before"


def test_a_replacement_that_crashes_is_tried_again_while_the_old_serves() -> None:
    world = World(1).up()
    old = world.ident("worker")
    world.feed(posts.RestartAsked(0))
    assert found(world.exit(world.ident("worker"), 1), posts.Start)
    assert orders(world.beat(world.ident("worker")), "drain") == [old]


def test_an_old_worker_lost_during_its_replacement_is_not_replaced_twice() -> None:
    world = World(1).up()
    old = world.ident("worker")
    world.feed(posts.RestartAsked(0))
    assert not found(world.exit(old), posts.Start)
    assert not orders(world.beat(world.ident("worker")), "drain")


def test_a_loading_worker_is_replaced_at_once() -> None:
    world = World(1)
    old = world.ident("worker")
    world.beat(old, "loading")
    effects = world.feed(posts.RestartAsked(0))
    assert found(effects, posts.Kill) == [posts.Kill(old)]
    assert found(effects, posts.Start)


def test_a_restart_revives_a_worker_that_was_given_up() -> None:
    world = World(2).up()
    world.exit(world.ident("worker", 1), 78)
    assert found(world.feed(posts.RestartAsked(1)), posts.Start)


def test_a_worker_that_wants_to_be_recycled_serves_until_its_replacement_is_ready() -> None:
    world = World(2).up()
    old = world.ident("worker", 1)
    effects = world.feed(posts.RecycleAsked(old, "900 MB of 1000"))
    (new,) = [start.ident for start in found(effects, posts.Start)]
    assert not orders(effects, "drain")
    assert any("900 MB of 1000" in log.text for log in found(effects, posts.Log))
    assert not found(world.feed(posts.RecycleAsked(old)), posts.Start), "once"
    assert orders(world.beat(new), "drain") == [old]
    assert not found(world.feed(posts.RecycleAsked(old)), posts.Start), "not while it drains"
    assert not found(world.exit(old, 0), posts.Start)


def test_nobody_is_recycled_while_the_daemon_drains() -> None:
    world = World(1).up()
    world.feed(posts.StopAsked())
    assert not found(world.feed(posts.RecycleAsked(world.ident("worker"))), posts.Start)


def test_a_recycled_worker_that_dies_meanwhile_is_replaced_by_the_one_that_comes() -> None:
    world = World(1).up()
    old = world.ident("worker")
    world.feed(posts.RecycleAsked(old))
    assert not found(world.exit(old, -9), posts.Start)
    assert [spec.role for spec in world.alive.values()].count("worker") == 1


def test_a_restart_of_an_unknown_worker_is_only_logged() -> None:
    world = World(1).up()
    assert [type(effect) for effect in world.feed(posts.RestartAsked(7))] == [posts.Log]


def test_a_drained_worker_stays_down_until_it_is_restarted() -> None:
    world = World(1).up()
    worker = world.ident("worker")
    assert orders(world.feed(posts.WorkerDrained(0)), "stop") == [worker]
    world.exit(worker, 0)
    effects = world.run(30)
    assert not found(effects, posts.Start)
    assert not orders(effects, "stop"), "the operator wanted no worker; the daemon stays"
    assert found(world.feed(posts.RestartAsked(0)), posts.Start)


# --- reload ----------------------------------------------------------------------------------------


def reload(world: World, specs: tuple[Spec, ...]) -> list[posts.Effect]:
    return world.feed(posts.Reconfigured(specs, SETTINGS, {"a": 1}))


def test_a_reload_without_changes_only_tells_everybody() -> None:
    world = World(2).up()
    effects = reload(world, specs_of(2))
    assert len(orders(effects, "reconfigure")) == 4
    assert len(found(effects, posts.Reloaded)) == 1
    assert not found(effects, posts.Start)


def test_changed_workers_are_replaced_one_by_one() -> None:
    world = World(3).up()
    old = [world.ident("worker", n) for n in range(3)]
    effects = reload(world, specs_of(3, settings="new"))
    for n in range(3):
        starts = found(effects, posts.Start)
        assert [start.spec.slot for start in starts] == [n]
        assert orders(world.beat(starts[0].ident), "drain") == [old[n]]
        assert not found(world.log, posts.Reloaded)
        effects = world.exit(old[n], 0)
    assert len(found(effects, posts.Reloaded)) == 1


def test_more_workers_start_and_fewer_drain() -> None:
    world = World(1).up()
    starts = found(reload(world, specs_of(3)), posts.Start)
    assert [start.spec.slot for start in starts] == [1, 2]
    for start in starts:
        world.beat(start.ident)
    effects = reload(world, specs_of(2))
    assert orders(effects, "drain") == [starts[1].ident]
    effects = world.exit(starts[1].ident, 0)
    assert not found(effects, posts.Start)
    assert [c["slot"] for c in world.core.tree(world.now_s)["children"] if c["role"] == "worker"] == [0, 1]


def test_a_worker_that_came_back_into_the_configuration_serves_again() -> None:
    world = World(2).up()
    gone = world.ident("worker", 1)
    reload(world, specs_of(1))
    reload(world, specs_of(2))
    effects = world.exit(gone, 0)
    assert [start.spec.slot for start in found(effects, posts.Start)] == [1]


def test_a_reload_tries_again_what_was_given_up() -> None:
    world = World(2).up()
    world.exit(world.ident("worker", 1), 78)
    starts = found(reload(world, specs_of(2)), posts.Start)
    assert [start.spec.slot for start in starts] == [1]


def test_a_reload_while_draining_changes_nobody() -> None:
    world = World(1).up()
    world.feed(posts.StopAsked())
    effects = reload(world, specs_of(3))
    assert not found(effects, posts.Start)
    assert not orders(effects, "reconfigure")


# --- the tree --------------------------------------------------------------------------------------


def test_the_tree_reaches_broker_and_monitor_at_changes_and_every_few_seconds() -> None:
    world = World(1).up()
    readers = [world.ident("broker"), world.ident("monitor")]
    assert orders(world.exit(world.ident("worker")), "tree") == readers
    effects = world.run(6.0)
    assert 2 <= orders(effects, "tree").count(readers[1]) <= 4


def reasons(world: World) -> dict[str, int]:
    """Why workers were followed by others, all slots together."""
    total: Counter[str] = Counter()
    for row in world.core.tree(world.now_s)["children"]:
        if row["role"] == "worker":
            total.update(row.get("reasons", {}))
    return {reason: count for reason, count in total.items() if count}


def test_the_tree_says_why_workers_were_replaced() -> None:
    world = World(2).up()
    assert reasons(world) == {}
    world.exit(world.ident("worker", 1), -9)
    assert reasons(world) == {"died": 1}
    world.feed(posts.RecycleAsked(world.ident("worker", 0), "fat"))
    world.feed(posts.RestartAsked(0))  # it is being replaced already
    assert reasons(world) == {"died": 1, "memory": 1}
    world = World(1).up()
    world.feed(posts.Garbled(world.ident("worker")))
    world.exit(world.ident("worker"), -9)
    assert reasons(world) == {"garbled": 1}
    world = World(1).up()
    world.feed(posts.RestartAsked(0, "alert"))
    assert reasons(world) == {"alert": 1}


def test_a_remedy_reaches_those_it_concerns() -> None:
    world = World(2).up()
    broker, monitor = world.ident("broker"), world.ident("monitor")
    workers = [world.ident("worker", 0), world.ident("worker", 1)]
    for remedy, wanted in (
        ("gc", [broker, monitor, *workers]),
        ("trim", [broker, monitor, *workers]),
        ("unload", workers),
        ("shed", [broker]),
        ("fallback", [broker]),
    ):
        effects = world.feed(posts.RemedyAsked(remedy, 15.0))
        assert sorted(orders(effects, "remedy")) == sorted(wanted), remedy
    assert orders(world.feed(posts.RemedyAsked("unload", 0.0, 1)), "remedy") == [workers[1]]


def test_the_tree_names_every_process() -> None:
    world = World(2).up()
    world.exit(world.ident("worker", 1))
    tree = world.core.tree(world.now_s)
    assert tree["supervisor"]["pid"] == 42
    rows = [(c["role"], c["slot"], c["restarts"], c["pid"] > 0) for c in tree["children"]]
    assert rows == [
        ("broker", 0, 0, True),
        ("monitor", 0, 0, True),
        ("worker", 0, 0, True),
        ("worker", 1, 1, True),
    ]


# --- whatever happens ------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "beat",
                "exit",
                "run",
                "stop",
                "restart",
                "recycle",
                "park",
                "reload",
                "loading",
                "nap",
                "closed",
            ]
        ),
        st.integers(0, 9),
        st.sampled_from([0, 1, -9, -11, 78]),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS, st.booleans())
def test_whatever_happens_the_daemon_stops_when_asked_and_leaves_nobody(
    actions: list[tuple[str, int, int]], overlap: bool
) -> None:
    world = World(2, overlap=overlap)
    for action, number, code in actions:
        if found(world.log, posts.Over):
            break
        idents = sorted(world.alive)
        ident = idents[number % len(idents)] if idents else 0
        if action in ("beat", "loading") and idents:
            world.beat(ident, "ready" if action == "beat" else "loading", answered=number > 4)
        elif action == "exit" and idents:
            world.exit(ident, code)
        elif action == "run":
            world.run(number / 2)
        elif action == "nap":
            world.now_s += number * 10.0
            world.feed(posts.Tick())
        elif action == "closed" and idents:
            world.feed(posts.Closed(ident))
        elif action == "stop":
            world.feed(posts.StopAsked())
        elif action == "restart":
            world.feed(posts.RestartAsked(number % 3))
        elif action == "recycle" and idents:
            if world.alive[ident].role == "worker":
                world.feed(posts.RecycleAsked(ident))
        elif action == "park":
            world.feed(posts.WorkerDrained(number % 3))
        elif action == "reload":
            reload(world, specs_of(1 + number % 3, overlap=overlap, settings=number % 2))
        for key in {(spec.role, spec.slot) for spec in world.alive.values()}:
            lives = [i for i, spec in world.alive.items() if (spec.role, spec.slot) == key]
            assert len(lives) <= 2, "a post has at most an old and a new life"
    for _ in range(3):
        world.feed(posts.StopAsked())
    for ident in list(world.alive):
        world.exit(ident, -9)
    assert not world.alive
    assert len(found(world.log, posts.Over)) == 1
    assert not world.feed(posts.Tick())
