"""The supervisor's decisions: who is to live, who is to go, when the daemon is ready and when it is over.

May live here: the state of every child as the supervisor knows it, `handle(event, now) -> effects`. May not:
processes, pipes, signals, clocks, randomness (walled/supervisor.py has them). The words are in posts.py.

    running --stop--> draining --broker empty, or time up--> workers go --> broker and monitor go --> over
       |                 `--second stop, boot error, give-up: everybody goes at once--> over
"""

from __future__ import annotations

from collections import deque
from typing import Any

from walled.core import restart, watch
from walled.core.posts import (
    Beat,
    Closed,
    Effect,
    Event,
    Exited,
    Garbled,
    Key,
    Kill,
    Life,
    Log,
    Mode,
    Over,
    Post,
    Ready,
    Reconfigured,
    RecycleAsked,
    Reloaded,
    RemedyAsked,
    Report,
    RestartAsked,
    Send,
    Settings,
    Spec,
    Start,
    Started,
    StopAsked,
    WorkerDrained,
)
from walled.errors import BOOT_ERROR_EXIT
from walled.link import Order

TREE_INTERVAL_S = 2.0
TICK_S = 0.5
LATE_S = 1.5
"""A supervisor that saw nothing for this long was stopped itself; it must not judge its children by that."""
DRAIN_MARGIN_S = 1.0
"""What the broker gets on top of the drain's deadline to end requests itself."""
GIVEN_UP_MAX_S = 300.0
"""Longest pause between single tries to start a child that was given up."""
CONCERNED: dict[str, tuple[str, ...]] = {"unload": ("worker",), "shed": ("broker",), "fallback": ("broker",)}
"""Who carries a remedy out; of those not named here everybody."""
HURRY_S = 1.0
"""What children get to stop after a second SIGTERM."""


class Supervision:
    """The state machine. `begin` first, then `handle` for every event; both return effects in order."""

    def __init__(self, specs: tuple[Spec, ...], settings: Settings, pid: int, now_s: float) -> None:
        self._posts: dict[Key, Post] = {(spec.role, spec.slot): Post(spec) for spec in specs}
        self._settings = settings
        self._pid = pid
        self._born_s = now_s
        self._seen_s = now_s
        self._mode = Mode.RUNNING
        self._ready = False
        self._exit_code = 0
        self._reason = "stopped"
        self._drain_until_s = 0.0
        self._idents = 0
        self._queue: deque[Key] = deque()
        self._replacing: Key | None = None
        self._reloading = False
        self._tree_due_s = 0.0
        self._tree_dirty = True
        self._effects: list[Effect] = []

    # --- entry points ------------------------------------------------------------------------------

    def begin(self, now_s: float) -> list[Effect]:
        """Start everybody at once."""
        for post in self._posts.values():
            self._start(post, now_s)
        return self._taken()

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """What follows from an event at `now_s` (monotonic)."""
        self._forgive_own_absence(now_s)
        if self._mode is Mode.OVER:
            return []
        if isinstance(event, Beat):
            self._beat(event, now_s)
        elif isinstance(event, Started):
            found = self._find(event.ident)
            if found:
                found[1].pid = event.pid
        elif isinstance(event, Exited):
            self._exited(event, now_s)
        elif isinstance(event, Garbled):
            self._kill_unsound(event.ident, "sent something that is not a message", "garbled")
        elif isinstance(event, Closed):
            self._closed(event.ident, now_s)
        elif isinstance(event, StopAsked):
            self._stop_asked(now_s)
        elif isinstance(event, RestartAsked):
            self._restart_asked(event, now_s)
        elif isinstance(event, RecycleAsked):
            self._recycle_asked(event, now_s)
        elif isinstance(event, RemedyAsked):
            self._remedy_asked(event)
        elif isinstance(event, WorkerDrained):
            self._park(event.slot, now_s)
        elif isinstance(event, Reconfigured):
            self._reconfigured(event, now_s)
        self._due(now_s)
        self._advance_replacements(now_s)
        self._advance_stop(now_s)
        self._send_tree(now_s)
        return self._taken()

    def next_due_s(self, now_s: float) -> float:
        """When Tick is to come at the latest."""
        due_s = now_s + TICK_S
        for post in self._posts.values():
            if post.start_at_s is not None:
                due_s = min(due_s, post.start_at_s)
            for life in post.lives():
                if life.kill_at_s is not None and not life.killed:
                    due_s = min(due_s, life.kill_at_s)
                elif life.phase in ("ready", "draining") and not life.killed:
                    # "Found and replaced within 5 s" leaves no time for a tick.
                    due_s = min(due_s, max(now_s, life.beat_s + self._settings.hang_timeout_s + 0.01))
        if self._mode is Mode.DRAINING:
            due_s = min(due_s, self._drain_until_s)
        return due_s

    def tell_all(self, order: Order) -> list[Effect]:
        """An order for every child that was not told to go."""
        lives = [life for post in self._posts.values() for life in post.lives()]
        return [Send(life.ident, order) for life in lives if life.kill_at_s is None]

    @property
    def ready(self) -> bool:
        return self._ready

    def spec_of(self, ident: int) -> Spec | None:
        """The post a living child fills."""
        found = self._find(ident)
        return found[0].spec if found else None

    # --- children ----------------------------------------------------------------------------------

    def _start(self, post: Post, now_s: float) -> None:
        self._idents += 1
        post.incarnations += 1
        post.start_at_s = None
        post.life = Life(self._idents, now_s)
        self._tree_dirty = True
        self._effects.append(Start(self._idents, post.spec, post.incarnations))

    def _beat(self, beat: Beat, now_s: float) -> None:
        found = self._find(beat.ident)
        if found is None:
            return
        post, life = found
        life.beat_s = now_s
        if beat.phase != life.phase:
            life.phase, life.phase_since_s = beat.phase, now_s
            self._tree_dirty = True
            if beat.phase == "ready" and life.ready_since_s is None:
                life.ready_since_s = now_s
                post.given_up = ""
                self._log("info", f"{post.name} ready (pid {life.pid})")
                self._drain_old(post, now_s)
        if beat.detail != life.detail:
            life.detail = beat.detail
            self._tree_dirty = True
        if post.spec.role != "broker":
            return
        if beat.answered and not self._ready and self._mode is Mode.RUNNING:
            self._ready = True
            self._effects.append(Ready(beat.detail))
        if beat.phase == "stopping" and self._mode is Mode.DRAINING:
            self._workers_go(now_s)

    def _closed(self, ident: int, now_s: float) -> None:
        """A child without its link cannot be told anything: it is ending, or will be ended."""
        found = self._find(ident)
        if found is not None and found[1].phase != "stopping":
            found[1].phase, found[1].phase_since_s, found[1].beat_s = "stopping", now_s, now_s

    def _exited(self, exited: Exited, now_s: float) -> None:
        found = self._find(exited.ident)
        if found is None:
            return
        post, life = found
        self._tree_dirty = True
        told = life.kill_at_s is not None
        words = watch.exit_words(exited.exit_code) + (
            f" ({life.detail})" if exited.exit_code > 0 and life.phase == "stopping" and life.detail else ""
        )
        if life is not post.life:
            post.old.remove(life)
            self._log("info" if told else "warning", f"{post.name} (pid {life.pid}, replaced): {words}")
            return
        post.life = None
        if told or self._mode in (Mode.WORKERS_GO, Mode.ALL_GO):
            level = "info" if exited.exit_code == 0 else "warning"
            self._log(level, f"{post.name} (pid {life.pid}) stopped: {words}")
            return
        if self._mode is Mode.DRAINING and post.spec.role != "worker":
            # With the broker its requests are gone; the monitor is not worth a restart now.
            self._log("error", f"{post.name} (pid {life.pid}) lost while draining: {words}")
            if post.spec.role == "broker":
                self._workers_go(now_s)
            return
        lived_s = now_s - life.ready_since_s if life.ready_since_s is not None else 0.0
        death = restart.Death(exited.exit_code, lived_s, exited.jitter)
        limits = self._settings.limits
        if lived_s > max(limits.backoff_max_s, limits.period_s):
            post.given_up_pause_s = 0.0
        decision = restart.decide(post.history, death, now_s, limits)
        if post.given_up_pause_s and lived_s <= limits.backoff_max_s:
            decision = restart.GiveUp("it died again when it was tried again")
        who = f"{post.name} (pid {life.pid})"
        if isinstance(decision, restart.Restart):
            post.history = decision.history
            post.restarts += 1
            post.reasons[life.death] += 1
            post.start_at_s = decision.at_s
            pause_s = decision.at_s - now_s
            when = f"in {pause_s:.1f} s" if pause_s > 0 else "at once"
            self._log("warning", f"{who} died: {words}; starting it again {when}")
            return
        self._log("error", f"{who} died: {words}; given up: {decision.reason}")
        if exited.exit_code == BOOT_ERROR_EXIT and not self._ready:
            self._all_go(now_s, BOOT_ERROR_EXIT, f"{post.name}: {life.detail or words}")
        else:
            self._given_up(post, decision.reason, now_s)

    def _given_up(self, post: Post, reason: str, now_s: float) -> None:
        former = post.serving_old()
        if former is not None:
            post.old.remove(former)
            post.life = former
            self._log("error", f"{post.name} (pid {former.pid}) goes on with what it had before")
            return
        post.given_up = reason
        if post.spec.role == "broker":
            self._all_go(now_s, 1, f"the broker cannot be kept alive: {reason}")
        elif not self._ready and not any(map(self._hopeful, self._posts.values())):
            self._all_go(now_s, 1, "no worker is left")
        else:
            # Even without any worker a daemon that was ready has the cache and templates to answer from.
            first_s = max(self._settings.limits.period_s, self._settings.limits.backoff_max_s)
            pause_s = min(2 * post.given_up_pause_s, GIVEN_UP_MAX_S) if post.given_up_pause_s else first_s
            post.given_up_pause_s, post.start_at_s = pause_s, now_s + pause_s
            post.reasons["given_up"] += 1
            self._log("warning", f"{post.name} is tried again in {pause_s:g} s")

    @staticmethod
    def _hopeful(post: Post) -> bool:
        """A worker's post that serves, may serve, or is down because an operator wanted it so."""
        return post.spec.role == "worker" and not post.given_up and not post.dropped

    def _kill(self, life: Life) -> None:
        if not life.killed:
            life.killed = True
            self._effects.append(Kill(life.ident))

    def _kill_unsound(self, ident: int, why: str, death: str) -> None:
        found = self._find(ident)
        if found is not None and not found[1].killed:
            found[1].death = death
            self._log("error", f"{found[0].name} (pid {found[1].pid}) {why}; killing it")
            self._kill(found[1])

    def _find(self, ident: int) -> tuple[Post, Life] | None:
        for post in self._posts.values():
            for life in post.lives():
                if life.ident == ident:
                    return post, life
        return None

    # --- time --------------------------------------------------------------------------------------

    def _forgive_own_absence(self, now_s: float) -> None:
        gap_s = now_s - self._seen_s
        if gap_s > LATE_S:
            self._log("warning", f"the supervisor itself was stopped or starved for {gap_s:.1f} s")
            self.excuse_absence(now_s)
        self._seen_s = now_s

    def excuse_absence(self, now_s: float) -> None:
        """The supervisor looked at nobody since the last event: all clocks stood still."""
        gap_s = now_s - self._seen_s
        self._seen_s = now_s
        for post in self._posts.values():
            for life in post.lives():
                life.beat_s += gap_s
                life.phase_since_s += gap_s
                if life.kill_at_s is not None:
                    life.kill_at_s += gap_s
        self._drain_until_s += gap_s

    def _due(self, now_s: float) -> None:
        for post in self._posts.values():
            for life in post.lives():
                reason = watch.overdue(life, now_s, self._settings)
                if reason:
                    self._kill_unsound(life.ident, reason, "hung" if reason.startswith("silent") else "late")
            if post.start_at_s is not None and now_s >= post.start_at_s:
                if self._mode in (Mode.RUNNING, Mode.DRAINING):
                    self._start(post, now_s)
                else:
                    post.start_at_s = None
        if self._mode is Mode.DRAINING and now_s >= self._drain_until_s:
            self._log("warning", "drain: time is up, stopping with requests in flight")
            self._workers_go(now_s)

    # --- replacing workers -------------------------------------------------------------------------

    def _restart_asked(self, event: RestartAsked, now_s: float) -> None:
        post = self._posts.get(("worker", event.slot))
        if post is None:
            self._log("warning", f"restart of worker {event.slot} asked for, but there is none")
        elif self._mode is Mode.RUNNING:
            self._replace(post, event.reason, now_s)

    def _recycle_asked(self, event: RecycleAsked, now_s: float) -> None:
        found = self._find(event.ident)
        if found is None or self._mode is not Mode.RUNNING:
            return
        post, life = found
        if life is post.life and not post.old and not post.dropped:
            self._log("warning", f"{post.name} (pid {life.pid}) is replaced at its own wish: {event.why}")
            self._replace(post, "memory", now_s)

    def _remedy_asked(self, event: RemedyAsked) -> None:
        order = Order("remedy", remedy=event.remedy, for_s=event.for_s)
        roles = CONCERNED.get(event.remedy, ("broker", "worker", "monitor"))
        for (role, slot), post in self._posts.items():
            if role in roles and (event.slot < 0 or slot == event.slot):
                self._effects += [Send(life.ident, order) for life in post.lives() if life.kill_at_s is None]

    def _replace(self, post: Post, reason: str, now_s: float) -> None:
        """Begin to replace the process of a post; one that is replaced already is left to finish."""
        post.given_up, post.given_up_pause_s, post.parked = "", 0.0, False
        if post.old:
            return
        post.reasons[reason] += 1
        post.history = restart.History()
        life = post.life
        if life is None:
            self._start(post, now_s)
        elif life.phase in ("starting", "loading") and life.ready_since_s is None:
            # Serves nobody: no reason to be gentle.
            post.life = None
            post.old.append(life)
            life.kill_at_s = now_s
            self._kill(life)
            self._start(post, now_s)
        elif post.spec.overlap:
            post.old.append(life)
            self._start(post, now_s)
        else:
            post.life = None
            post.old.append(life)
            self._drain(life, now_s)
            # Started by _advance_vacancies once the old life has given its slots back.

    def _drain_old(self, post: Post, now_s: float) -> None:
        for life in post.old:
            if life.kill_at_s is None and not life.killed:
                self._drain(life, now_s)

    def _drain(self, life: Life, now_s: float) -> None:
        deadline_s = self._settings.drain_timeout_s
        life.kill_at_s = now_s + deadline_s + self._settings.stop_timeout_s
        self._effects.append(Send(life.ident, Order("drain", deadline_s=deadline_s)))

    def _park(self, slot: int, now_s: float) -> None:
        post = self._posts.get(("worker", slot))
        if post is None or self._mode is not Mode.RUNNING:
            return
        self._log("info", f"{post.name} drained at an operator's wish; it stays down until it is restarted")
        post.parked, post.start_at_s = True, None
        for life in post.lives():
            self._tell_to_stop(life, now_s, self._settings.stop_timeout_s)

    def _advance_replacements(self, now_s: float) -> None:
        if self._mode is not Mode.RUNNING:
            return
        for key, post in list(self._posts.items()):
            if post.dropped:
                if not post.lives():
                    del self._posts[key]
                    self._tree_dirty = True
            elif (
                post.life is None
                and not post.old
                and post.start_at_s is None
                and not (post.given_up or post.parked)
            ):
                self._start(post, now_s)  # its former life was told to go so that this one can come
        while self._replacing is None or self._settled(self._replacing):
            self._replacing = self._queue.popleft() if self._queue else None
            if self._replacing is None:
                if self._reloading:
                    self._reloading = False
                    self._effects.append(Reloaded())
                return
            following = self._posts.get(self._replacing)
            if following is not None:
                self._replace(following, "reload", now_s)

    def _settled(self, key: Key) -> bool:
        """Whether a replacement is over, well or badly."""
        post = self._posts.get(key)
        if post is None or post.given_up or post.parked:
            return True
        return post.life is not None and post.life.ready_since_s is not None and not post.old

    def _reconfigured(self, event: Reconfigured, now_s: float) -> None:
        self._settings = event.settings
        if self._mode is not Mode.RUNNING:
            return
        self._queue.clear()
        self._replacing = None
        self._reloading = True
        wanted = {(spec.role, spec.slot): spec for spec in event.specs}
        for key, post in self._posts.items():
            spec = wanted.get(key)
            if spec is None:
                post.dropped, post.start_at_s = True, None
                for life in post.lives():
                    if life.kill_at_s is None:
                        self._drain(life, now_s)
                continue
            changed = post.spec != spec
            post.spec, post.dropped = spec, False
            if changed or post.given_up:
                self._queue.append(key)
        for key, spec in wanted.items():
            if key not in self._posts:
                self._posts[key] = Post(spec)
                self._start(self._posts[key], now_s)
        order = Order("reconfigure", config=event.plain)
        for post in self._posts.values():
            self._effects.extend(Send(life.ident, order) for life in post.lives() if life.kill_at_s is None)
        self._tree_dirty = True

    # --- stopping ----------------------------------------------------------------------------------

    def _stop_asked(self, now_s: float) -> None:
        if self._mode is Mode.RUNNING:
            broker = self._posts[("broker", 0)].life
            if broker is None or not self._ready:
                return self._all_go(now_s, 0, "stopped")
            self._mode = Mode.DRAINING
            timeout_s = self._settings.drain_timeout_s
            self._drain_until_s = now_s + timeout_s + DRAIN_MARGIN_S
            self._effects.append(Send(broker.ident, Order("drain", deadline_s=timeout_s)))
            self._effects.append(Report("draining", stopping=True))
            self._log("info", f"draining: requests in flight have {timeout_s:g} s; new ones are refused")
        elif self._mode is Mode.ALL_GO and self._exit_code == 0 and self._reason == "stopped at once":
            for post in self._posts.values():
                for life in post.lives():
                    self._kill(life)
        else:
            self._all_go(now_s, self._exit_code, "stopped at once", HURRY_S)
        return None

    def _workers_go(self, now_s: float) -> None:
        self._mode = Mode.WORKERS_GO
        for post in self._posts.values():
            post.start_at_s = None
            if post.spec.role == "worker":
                for life in post.lives():
                    self._tell_to_stop(life, now_s, self._settings.stop_timeout_s)

    def _all_go(self, now_s: float, exit_code: int, reason: str, patience_s: float | None = None) -> None:
        self._mode = Mode.ALL_GO
        self._exit_code, self._reason = exit_code, reason
        self._effects.append(Report(f"stopping: {reason}", stopping=True))
        for post in self._posts.values():
            post.start_at_s = None
            for life in post.lives():
                self._tell_to_stop(life, now_s, patience_s or self._settings.stop_timeout_s)

    def _tell_to_stop(self, life: Life, now_s: float, patience_s: float) -> None:
        at_s = now_s + patience_s
        life.kill_at_s = at_s if life.kill_at_s is None else min(life.kill_at_s, at_s)
        self._effects.append(Send(life.ident, Order("stop")))

    def _advance_stop(self, now_s: float) -> None:
        if self._mode is Mode.WORKERS_GO and not any(
            post.lives() for post in self._posts.values() if post.spec.role == "worker"
        ):
            self._all_go(now_s, self._exit_code, self._reason)
        if self._mode is Mode.ALL_GO and not any(post.lives() for post in self._posts.values()):
            self._mode = Mode.OVER
            self._effects.append(Over(self._exit_code, self._reason))

    # --- telling -----------------------------------------------------------------------------------

    def tree(self, now_s: float) -> dict[str, Any]:
        """The process tree for `walled-ctl status`."""
        return watch.tree(self._pid, now_s - self._born_s, self._posts.values())

    def _send_tree(self, now_s: float) -> None:
        readers = [
            life
            for post in self._posts.values()
            if post.spec.role != "worker"
            and (life := post.life) is not None
            and life.phase in ("ready", "draining")
        ]
        if readers and (self._tree_dirty or now_s >= self._tree_due_s):
            self._tree_dirty, self._tree_due_s = False, now_s + TREE_INTERVAL_S
            order = Order("tree", tree=self.tree(now_s))
            self._effects += [Send(life.ident, order) for life in readers]

    def _log(self, level: str, text: str) -> None:
        self._effects.append(Log(level, text))

    def _taken(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
