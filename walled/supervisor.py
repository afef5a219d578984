"""The supervisor process: one loop over signals, child links, child sentinels and timers.

May live here: reading those, feeding core/supervision.py, carrying out its effects. May not: ZeroMQ, LMDB, a
model, anything that blocks. Signals only queue a byte; the loop acts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import walled
from walled import config as configuration
from walled import link as wire
from walled.adapters import detect, logs, process, template_files
from walled.adapters.notify import Notifier
from walled.adapters.runlock import AlreadyRunning, Manifest, RunLock
from walled.config import Config
from walled.core import posts, staffing
from walled.core.supervision import Supervision
from walled.errors import BOOT_ERROR_EXIT, BootError, ConfigError, ProtocolError

log = logging.getLogger(__name__)

VET_PAUSE_S = 10.0
"""Between two looks at the cache because of children that died."""
MEMORY_SIGNALS = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)
DIRECTORY_CHECK_S = 2.0
"""How often the run directory is looked at."""
VET_TIMEOUT_S = 10.0
"""Longest look at the cache before the children may open it."""


def run(
    config_path: Path | None,
    config: Config,
    *,
    child_command: Sequence[str] = process.CHILD_COMMAND,
) -> int:
    """Be the daemon until it ends; returns the exit status. Raises BootError when it cannot begin."""
    process.forbid_core_dumps()
    process.set_title("walled: supervisor")
    logs.set_up("supervisor", config.daemon.log_level, config.daemon.log_format)
    lock = RunLock.take(configuration.run_dir(config))
    try:
        wanted, config = config, detect.resolve(config)
        if wanted.backend == "auto":
            log.info("backend auto: %s", config.backend)
        detect.require_engines(config)
        addresses = configuration.endpoints(lock.directory)
        # Without a cache clients must not answer from what a former daemon left in one.
        cache = str(configuration.cache_dir(config)) if config.cache.enabled else ""
        manifest = Manifest(walled.__version__, os.getpid(), cache, addresses)
        supervisor = Supervisor(config_path, config, lock, manifest, child_command)
        try:
            return supervisor.run()
        finally:
            supervisor.close()
            if lock.holds():
                lock.remove_sockets(addresses)
    finally:
        lock.release()


class Supervisor:
    """The thin shell around the state machine."""

    def __init__(
        self,
        config_path: Path | None,
        config: Config,
        lock: RunLock,
        manifest: Manifest,
        child_command: Sequence[str],
    ) -> None:
        self._config_path = config_path
        self._config = config
        self._lock = lock
        self._manifest = manifest
        self._directory = lock.directory
        self._directory_due_s = self._vet_due_s = 0.0
        self._manifest_written = self._tell_clients()
        self._command = child_command
        self._token = os.urandom(16)
        self._notifier = Notifier(os.environ)
        self._children: dict[int, process.Child] = {}
        self._unborn: list[posts.Start] = []
        """Children that were started and still wait for their Spawn."""
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._selector.register(self._wakeup, selectors.EVENT_READ, ("signal", 0))
        self._core = Supervision(
            staffing.specs(config), staffing.settings(config), os.getpid(), time.monotonic()
        )
        self._require_packable(self._plain())
        self._over: posts.Over | None = None
        self._holding = False

    def run(self) -> int:
        """Start everybody, keep everybody alive, return the exit status of the daemon."""
        self._catch_signals()
        # The children import their modules while the cache is looked at; none opens it before its Spawn.
        self._holding = True
        self._carry_out(self._core.begin(time.monotonic()))
        self._vet_cache()
        self._core.excuse_absence(time.monotonic())
        self._holding = False
        for start in self._unborn:
            self._tell_spawn(start)
        self._unborn.clear()
        watchdog_due_s = time.monotonic()
        while self._over is None:
            now_s = time.monotonic()
            if self._notifier.watchdog_s and now_s >= watchdog_due_s:
                self._notifier.watchdog()
                watchdog_due_s = now_s + self._notifier.watchdog_s
            due_s = self._core.next_due_s(now_s)
            if self._notifier.watchdog_s:
                due_s = min(due_s, watchdog_due_s)
            self._read(self._selector.select(max(0.0, due_s - now_s)))
            self._handle(posts.Tick())
            self._watch_directory(time.monotonic())
        if self._over.exit_code == BOOT_ERROR_EXIT:
            raise BootError(self._over.reason)
        log.log(logging.ERROR if self._over.exit_code else logging.INFO, "ends: %s", self._over.reason)
        return self._over.exit_code

    def close(self) -> None:
        """Leave nothing behind, also when `run` ended by an exception."""
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.wait()
            child.close()
        self._children.clear()
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wakeup.close()
        self._wakeup_end.close()

    def _tell_clients(self) -> bool:
        """Write the manifest; a disk that is full now is no reason not to answer."""
        written = self._lock.write_manifest(self._manifest)
        if not written:
            log.error(
                "%s: the disk is full; clients do not learn where the cache is until there is room",
                self._directory,
            )
        return written

    def _watch_directory(self, now_s: float) -> None:
        """Make the run directory again when somebody has deleted it: new clients would find nobody.

        Who is connected stays connected. Raises BootError when another daemon took the place meanwhile.
        """
        if now_s < self._directory_due_s:
            return
        self._directory_due_s = now_s + DIRECTORY_CHECK_S
        held = self._lock.holds()
        if held and self._manifest_written:
            return
        try:
            if held:
                self._manifest_written = self._lock.write_manifest(self._manifest)
                return
            self._lock.retake()
            self._manifest_written = self._tell_clients()
        except AlreadyRunning:
            raise
        except BootError as exc:
            log.error("the run directory cannot be put in order: %s", exc.message)
            return
        log.error("the run directory %s was deleted; made again, sockets bound again", self._directory)
        self._carry_out(self._core.tell_all(wire.Order("rebind")))

    def _vet_cache(self) -> None:
        """Let a child that may die of it look whether the cache is sound; a bad one is set aside."""
        if not self._config.cache.enabled:
            return
        from walled.adapters import cache_check

        directory = configuration.cache_dir(self._config)
        verdict = cache_check.vet(directory, VET_TIMEOUT_S)
        if verdict.status == "set_aside":
            log.error(
                "cache: %s; set aside as %s, starting with an empty one",
                verdict.detail,
                ", ".join(verdict.moved),
            )
        elif verdict.status == "unknown":
            log.warning("cache: could not be checked and is used as it is: %s", verdict.detail)
        elif verdict.removed:
            log.warning("cache: %d damaged records removed", verdict.removed)

    def _vet_cache_again(self) -> None:
        """A child died as one that reads a broken file does: the next one must find a sound one."""
        now_s = time.monotonic()
        if now_s < self._vet_due_s:
            return
        self._vet_due_s = now_s + VET_PAUSE_S
        self._vet_cache()
        self._core.excuse_absence(time.monotonic())

    # --- what comes in -----------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _only_queue)

    def _read(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        # All links first: the supervisor may wake from a long sleep, and a child is judged by its last words.
        for key, _ in ready:
            if key.data[0] == "link":
                self._read_link(key.data[1])
        for key, _ in ready:
            if key.data[0] == "exit":
                self._reap(key.data[1])
        for key, _ in ready:
            if key.data[0] == "signal":
                self._read_signals()

    def _read_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in self._wakeup.recv(4096):
                if number == signal.SIGHUP:
                    self._reload()
                elif number in (signal.SIGTERM, signal.SIGINT):
                    self._handle(posts.StopAsked())

    def _read_link(self, ident: int) -> None:
        child = self._children.get(ident)
        if child is None:
            return
        try:
            messages = child.link.receive()
        except process.LinkClosed:
            with contextlib.suppress(KeyError):
                self._selector.unregister(child.link)
            self._handle(posts.Closed(ident))
            return
        except ProtocolError:
            self._handle(posts.Garbled(ident))
            return
        for message in messages:
            if isinstance(message, wire.Status):
                self._handle(posts.Beat(ident, message.phase, message.detail, message.answered))
            elif isinstance(message, wire.Ask):
                self._asked(ident, message)
            else:
                self._handle(posts.Garbled(ident))

    def _asked(self, ident: int, ask: wire.Ask) -> None:
        spec = self._core.spec_of(ident)
        if spec is not None and spec.role == "worker" and ask.op == "worker.recycle":
            self._handle(posts.RecycleAsked(ident, ask.why))
        elif spec is not None and spec.role == "monitor" and ask.op == "worker.restart":
            self._handle(posts.RestartAsked(ask.worker, "alert"))
        elif spec is not None and spec.role == "monitor" and ask.op == "remedy":
            self._handle(posts.RemedyAsked(ask.remedy, ask.for_s, ask.worker))
        elif spec is None or spec.role != "broker" or ask.op in ("worker.recycle", "remedy"):
            self._handle(posts.Garbled(ident))
        elif ask.op == "worker.restart":
            self._handle(posts.RestartAsked(ask.worker))
        elif ask.op == "worker.drained":
            self._handle(posts.WorkerDrained(ask.worker))
        elif ask.op == "reload":
            self._reload()
        else:
            self._handle(posts.StopAsked())

    def _reap(self, ident: int) -> None:
        self._read_link(ident)
        child = self._children[ident]
        exit_code = child.exit_code()
        if exit_code is None:
            return
        self._forget(ident)
        if -exit_code in MEMORY_SIGNALS:
            self._vet_cache_again()
        jitter = int.from_bytes(os.urandom(4), "little") / 2**32
        self._handle(posts.Exited(ident, exit_code, jitter))

    def _forget(self, ident: int) -> None:
        child = self._children.pop(ident)
        for item in (child.link, child.sentinel):
            with contextlib.suppress(KeyError):
                self._selector.unregister(item)
        child.close()

    # --- what goes out -----------------------------------------------------------------------------

    def _handle(self, event: posts.Event) -> None:
        self._carry_out(self._core.handle(event, time.monotonic()))

    def _carry_out(self, effects: list[posts.Effect]) -> None:
        pending = deque(effects)
        while pending:
            effect = pending.popleft()
            if isinstance(effect, posts.Start):
                pending.extend(self._start(effect))
            elif isinstance(effect, posts.Send):
                self._send(effect)
            elif isinstance(effect, posts.Kill):
                if effect.ident in self._children:
                    self._children[effect.ident].kill()
            elif isinstance(effect, posts.Log):
                log.log(logging.getLevelNamesMapping()[effect.level.upper()], "%s", effect.text)
            elif isinstance(effect, posts.Ready):
                self._announce(effect.detail)
            elif isinstance(effect, posts.Reloaded):
                self._notifier.ready(self._summary(""))
                log.info("reload finished")
            elif isinstance(effect, posts.Report):
                (self._notifier.stopping if effect.stopping else self._notifier.status)(effect.text)
            else:
                self._over = effect

    def _start(self, start: posts.Start) -> list[posts.Effect]:
        try:
            child = process.spawn(start.spec.role, self._command)
        except OSError as exc:
            log.error("%s cannot be started: %s", start.spec.role, exc)
            return self._core.handle(posts.Exited(start.ident, 1, 0.0), time.monotonic())
        self._children[start.ident] = child
        self._selector.register(child.link, selectors.EVENT_READ, ("link", start.ident))
        self._selector.register(child.sentinel, selectors.EVENT_READ, ("exit", start.ident))
        if self._holding:
            self._unborn.append(start)
        else:
            self._tell_spawn(start)
        return self._core.handle(posts.Started(start.ident, child.pid), time.monotonic())

    def _tell_spawn(self, start: posts.Start) -> None:
        spec = start.spec
        message = wire.Spawn(
            role=spec.role,
            slot=spec.slot,
            backend=spec.backend,
            token=self._token,
            config=self._plain(),
            supervisor_pid=os.getpid(),
            incarnation=start.incarnation,
        )
        child = self._children.get(start.ident)
        if child is not None:
            child.link.send(message)  # a child that is dead already is told by its sentinel

    def _send(self, send: posts.Send) -> None:
        child = self._children.get(send.ident)
        if child is not None and not child.link.send(send.order) and send.order.op != "tree":
            log.warning("pid %d does not take its order to %s", child.pid, send.order.op)

    def _plain(self) -> dict[str, Any]:
        """The configuration for a child, with the paths as this process resolved them."""
        plain = configuration.to_plain(self._config)
        plain["daemon"]["run_dir"] = str(self._directory)
        plain["cache"]["path"] = str(configuration.cache_dir(self._config))
        return plain

    @staticmethod
    def _require_packable(plain: dict[str, Any]) -> None:
        """Raise BootError for a configuration too large to be handed to a child."""
        try:
            wire.pack(wire.Order("reconfigure", config=plain))
        except ProtocolError as exc:
            raise BootError(f"the configuration is too large for the processes to be told: {exc}") from None

    # --- telling the world -------------------------------------------------------------------------

    def _summary(self, detail: str) -> str:
        return f"ready: {detail or staffing.describe(self._config)}, sockets in {self._directory}"

    def _announce(self, detail: str) -> None:
        self._notifier.ready(self._summary(detail))
        line = f"walled {walled.__version__} {self._summary(detail)}"
        if self._config.daemon.log_format == "json":
            log.info("%s", line)
        else:
            with contextlib.suppress(OSError):
                sys.stderr.write(line + "\n")  # one write: print makes two, and a child's line got between
                sys.stderr.flush()

    # --- reload ------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """Read the file again; on any trouble keep what is running."""
        try:
            new = configuration.load(self._config_path)
            template_files.load(new)
            detect.rules_are_right(new)
            merged, kept = staffing.merge(self._config, new)
            # Old and new values together may be impossible; a child would refuse them.
            configuration.from_plain(configuration.to_plain(merged), "the running values with the new ones")
            detect.require_engines(merged)
            self._require_packable(configuration.to_plain(merged))
        except (ConfigError, BootError) as exc:
            log.error("reload refused, nothing has changed: %s", exc.message)
            return
        for key in kept:
            log.warning("reload: %s has changed; it takes effect at the next start of the daemon", key)
        self._config = merged
        logs.set_level(merged.daemon.log_level)
        self._notifier.reloading()
        log.info("reloading %s", self._config_path or "(no configuration file, defaults)")
        self._handle(posts.Reconfigured(staffing.specs(merged), staffing.settings(merged), self._plain()))


def _only_queue(number: int, frame: object) -> None:
    """Signal handler: the wake-up descriptor has the signal's number already; the loop acts on it."""
