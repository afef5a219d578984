"""The monitor process: takes deltas, counts them, publishes the picture. Nothing else depends on it.

May live here: its loop over the PULL and XPUB sockets and the link. May not: the arithmetic
(core/counters.py, core/registry.py), the reading of /proc (adapters/probe.py, adapters/system.py), anything
a request waits for.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import walled
from walled import config as configuration
from walled import link as wire
from walled import protocol
from walled.adapters import logs, process, sockets
from walled.adapters.datagrams import MAX_BYTES, Letterbox
from walled.adapters.descriptors import Door
from walled.adapters.gpu import GpuProbe
from walled.adapters.judgement import Judgement
from walled.adapters.probe import FamilyProbe, plain
from walled.adapters.relief import SelfRelief, limits_of
from walled.adapters.scrape import ScrapeServer
from walled.adapters.system import SystemProbe
from walled.config import Config
from walled.core import counters, exposition, readings
from walled.core.counters import Publications
from walled.core.history import History
from walled.core.registry import Registry
from walled.errors import BadRequest, BootError, ProtocolError, WalledError

log = logging.getLogger(__name__)

COUNTERS_TOPIC = b"metric.counters"
PROCESSES_TOPIC = b"metric.processes"
BEAT_S = 0.4
SAMPLE_S = 1.0
SAMPLE_SHARE = 0.02
"""USS costs a walk through a process's page table: samples may take this share of a core."""
NICE = 10
"""Where there are too few processors, requests go first."""
SAVE_S = 60.0
GREET_S = 0.1
"""Between two rounds of last values for new subscribers."""
ANSWER_S = 0.05
"""Questions of one turn may take this long; the others wait for the next."""
STATE_FILE = "monitor.state"
MAX_STATE_BYTES = 64 * 1024 * 1024

Verb = Callable[[dict[str, Any], float], dict[str, Any]]
"""(the question's map, wall-clock time) -> the reply's map. Raises WalledError to refuse."""


def main(spawn: wire.Spawn, link: process.Link) -> int:
    """Be the monitor until told to stop."""
    os.nice(NICE)
    with contextlib.suppress(OSError):
        # It never takes a processor from somebody who is at work: its own work can wait some milliseconds.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    monitor = Monitor(spawn, link)
    try:
        return monitor.run()
    finally:
        monitor.close()


class Monitor:
    """The thin shell around the registry."""

    def __init__(self, spawn: wire.Spawn, link: process.Link) -> None:
        self._config = configuration.from_plain(spawn.config)
        self._link = link
        self._counters = counters.Registry()
        """What was sent, under the senders' names: topic metric.counters."""
        self._registry = Registry(time.monotonic())
        self._registry.set("walled_build_info", 1, walled.__version__)
        self._history = History()
        self._publications = Publications(os.urandom(8).hex())
        self._family = FamilyProbe(spawn.supervisor_pid)
        self._system = SystemProbe()
        self._gpus = GpuProbe()
        self._cpu_s: dict[str, tuple[float, float]] = {}
        self._pids: dict[str, int] = {}
        self._published: dict[str, dict[str, Any]] = {}
        directory = Path(configuration.run_dir(self._config))
        self._state_path = directory / STATE_FILE
        self._restore()
        self._judgement = self._judge_by(self._config)
        addresses = configuration.endpoints(directory)
        self._hub = sockets.Hub()
        self._deltas = self._hub.pull(addresses.delta)
        self._metrics = self._hub.publisher(addresses.metrics)
        self._questions = self._hub.router(addresses.monitor, hwm=100, max_bytes=64 * 1024)
        self._doors = [Door(addresses.metrics), Door(addresses.monitor)]
        self._told = Letterbox(addresses.tell)
        self._models: dict[str, str] = {}
        """What models are asked for as -> what they are called: of the broker."""
        self.verbs: dict[str, Verb] = {
            "metrics.list": self._metrics_list,
            "metrics.values": self._metrics_values,
            "history": self._history_of,
            "dashboard": self._dashboard,
            "stats": self._stats,
            **self._judgement.verbs,
        }
        self._greeted_s = 0.0
        self._listen()
        port, variable = self._config.monitor.prometheus_port, self._config.monitor.prometheus_token_env
        token = os.environ.get(variable, "") if variable else ""
        if port and variable and not token:
            raise BootError(f"monitor.prometheus_token_env: {variable} is not set in the environment")
        self._scrape = ScrapeServer(port, token) if port else None
        self._stopping = False
        memory = self._config.memory
        self._relief = SelfRelief(
            memory, limits_of(memory, memory.monitor_budget_bytes), self._count_own, {"recycle": self._leave}
        )

    def run(self) -> int:
        """Returns the exit status."""
        now_s = time.monotonic()
        beat_due_s = counters_due_s = processes_due_s = sample_due_s = now_s
        save_due_s = now_s + SAVE_S
        while not self._stopping:
            now_s = time.monotonic()
            if now_s >= beat_due_s:
                self._link.send(wire.Status("ready"))
                self._watch_the_doors()
                self._relief.look(now_s)
                beat_due_s = now_s + BEAT_S
            if now_s >= counters_due_s:
                self._publish(COUNTERS_TOPIC, self._counters.picture())
                counters_due_s = max(now_s, counters_due_s + self._config.monitor.publish_interval_s)
            if now_s >= processes_due_s:
                processes_due_s = now_s + max(SAMPLE_S, self._sample_processes(now_s) / SAMPLE_SHARE)
            if now_s >= sample_due_s:
                self._registry.set("walled_sample_lag_seconds", now_s - sample_due_s)
                self._sample(now_s)
                sample_due_s = max(now_s, sample_due_s + SAMPLE_S)
            if now_s >= save_due_s:
                self._save()
                save_due_s = now_s + SAVE_S
            due_s = min(beat_due_s, counters_due_s, processes_due_s, sample_due_s)
            if now_s < self._greeted_s + GREET_S:
                # Whoever subscribes over and over is not even listened to until it is time again.
                ready = self._deaf_poller.wait(max(0.0, min(due_s, self._greeted_s + GREET_S) - now_s))
            else:
                ready = self._poller.wait(max(0.0, due_s - now_s))
            if self._link.fileno() in ready:
                self._take_orders()
            if self._deltas in ready:
                self._take_deltas()
            if self._told.fileno() in ready:
                self._take_told()
            if self._metrics in ready:
                self._greet_subscribers(time.monotonic())
            if self._questions in ready:
                self._take_questions()
        self._save()
        self._judgement.save()
        self._link.send(wire.Status("stopping"))
        return 0

    def close(self) -> None:
        if self._scrape is not None:
            self._scrape.close()
        self._judgement.close()
        self._told.close()
        self._gpus.close()
        self._hub.close()

    def _watch_the_doors(self) -> None:
        """libzmq would end this process for one subscriber too many."""
        if sum(door.look() for door in self._doors):  # every one must look
            shut = any(door.shut for door in self._doors)
            log.warning(
                "file descriptors are %s; new subscribers are %s",
                "short" if shut else "no longer short",
                "kept out" if shut else "let in again",
            )

    def _leave(self) -> None:
        """Be replaced: what is worth keeping is saved, and the supervisor starts another one at once."""
        self._stopping = True

    def _count_own(self, name: str, increment: int) -> None:
        self._counted("monitor", {name: increment})

    def _counted(self, source: str, found: dict[str, Any]) -> None:
        """Counters under names of their own; a remedy against too much memory is announced as well."""
        readings.counters(self._registry, source, found)
        for name in found:
            kind, _, remedy = str(name).partition(".")
            if kind == "memory_remedies_total":
                self._publish(b"event.memory_remedy", {"process": source, "remedy": remedy[:40]})

    def _take_orders(self) -> None:
        for message in self._link.receive():
            if not isinstance(message, wire.Order):
                continue
            if message.op in ("stop", "drain"):
                self._stopping = True
            elif message.op == "rebind":
                for port in (self._deltas, self._metrics, self._questions):
                    port.bind_again()
                self._told.bind_again()
                self._listen()
            elif message.op == "remedy":
                gc.collect()
                process.give_freed_memory_back()
            elif message.op == "tree":
                readings.tree(self._registry, message.tree)
            elif message.op == "reconfigure":
                self._reconfigure(configuration.from_plain(message.config))

    def _listen(self) -> None:
        fds = [self._link.fileno(), self._told.fileno()]
        self._poller = sockets.Poller([self._deltas, self._metrics, self._questions], fds)
        self._deaf_poller = sockets.Poller([self._deltas, self._questions], fds)

    def _reconfigure(self, config: Config) -> None:
        self._config = config
        self._judgement.reconfigure(config)
        self._relief.reconfigure(config.memory, limits_of(config.memory, config.memory.monitor_budget_bytes))
        logs.set_level(config.daemon.log_level)

    def _take_deltas(self) -> None:
        # Bounded, so that a flood of deltas cannot keep the loop from its beat.
        for parts in self._deltas.receive(limit=1000):
            try:
                delta = protocol.unpack_map(parts[0])
            except ProtocolError:
                self._counters.refused += 1
                self._registry.increase("walled_metrics_refused_total", 1)
                continue
            self._counters.apply(delta)
            source, own, gauges = delta.get("from"), delta.get("counters"), delta.get("gauges")
            if isinstance(source, str):
                self._counted(source, own if isinstance(own, dict) else {})
                if source == "broker" and isinstance(gauges, dict):
                    readings.gauges(self._registry, gauges)
                if source == "broker" and isinstance(delta.get("models"), dict):
                    self._models = delta["models"]
            self._registry.apply(delta)

    def _take_told(self) -> None:
        for data in self._told.receive(200):
            try:
                message = protocol.unpack_map(data, MAX_BYTES)
            except ProtocolError:
                self._registry.increase("walled_metrics_refused_total", 1)
                continue
            readings.told_by_client(self._registry, message, self._models)

    def _greet_subscribers(self, now_s: float) -> None:
        """Last values for who is new, each topic once for all of them: everybody who subscribes a topic gets
        what is sent on it."""
        if now_s < self._greeted_s + GREET_S:
            return
        came = [parts[0][1:] for parts in self._metrics.receive() if parts[0][:1] == b"\x01"]
        if not came:
            return
        self._greeted_s = now_s
        newcomers = set(came)
        if len(came) > len(newcomers):
            self._registry.increase("walled_subscriptions_merged_total", len(came) - len(newcomers))
        for topic, message in self._publications.last_for(*newcomers):
            self._metrics.send([topic, protocol.pack_map(message)])

    def _publish(self, topic: bytes, body: dict[str, object]) -> None:
        message = self._publications.next(topic, body, time.time())
        if not self._metrics.send([topic, protocol.pack_map(message)]):
            self._registry.increase("walled_pub_drops_total", 1)

    # --- sampling ------------------------------------------------------------------------------------

    def _sample_processes(self, now_s: float) -> float:
        """Sample and publish; returns what it took, in seconds."""
        samples = self._family.sample()
        if not samples:
            return time.monotonic() - now_s  # it could not look; that says nothing about the others
        registry = self._registry
        for one in samples:
            readings.process(
                registry,
                one.name,
                uss_bytes=one.uss_bytes,
                rss_bytes=one.rss_bytes,
                cpu_s=one.cpu_s,
                threads=one.threads,
            )
            labels = readings.post(one.name)
            before_s, then_s = self._cpu_s.get(one.name, (one.cpu_s, now_s))
            if now_s > then_s and one.cpu_s >= before_s:
                registry.set("walled_process_cpu_ratio", (one.cpu_s - before_s) / (now_s - then_s), *labels)
            open_and_limit = self._system.descriptors(one.pid)
            if open_and_limit is not None:
                registry.set("walled_process_open_fds", open_and_limit[0], *labels)
                registry.set("walled_process_max_fds", open_and_limit[1], *labels)
            if self._pids.get(one.name) != one.pid:
                self._judgement.born_s[one.name] = time.time()
            self._pids[one.name] = one.pid
        names = {one.name for one in samples}
        for name in names - self._cpu_s.keys():
            self._publish(b"event.process_born", {"process": name})
        for name in self._cpu_s.keys() - names:
            self._publish(b"event.process_gone", {"process": name})
            role, slot = readings.post(name)
            if role == "worker":
                registry.forget("worker", [slot])
        self._cpu_s = {one.name: (one.cpu_s, now_s) for one in samples}
        self._publish(PROCESSES_TOPIC, plain(samples))
        took_s = time.monotonic() - now_s
        registry.set("walled_sample_duration_seconds", took_s)
        return took_s

    def _sample(self, now_s: float) -> None:
        """The machine, then everything into the history and to the subscribers."""
        registry = self._registry
        registry.advance(now_s)
        cpu, memory = self._system.cpu_ratio(), self._system.memory()
        if cpu is not None:
            registry.set("walled_system_cpu_ratio", cpu)
        if memory is not None:
            registry.set("walled_system_memory_total_bytes", memory[0])
            registry.set("walled_system_memory_used_ratio", memory[1])
        for resource, share in self._system.pressure().items():
            registry.set("walled_system_pressure_ratio", share, resource)
        for gpu in self._gpus.sample():
            registry.set("walled_gpu_memory_used_bytes", gpu.used_bytes, str(gpu.number))
            registry.set("walled_gpu_memory_total_bytes", gpu.total_bytes, str(gpu.number))
            registry.set("walled_gpu_utilization_ratio", gpu.busy_ratio, str(gpu.number))
        if self._scrape is not None:
            self._scrape.offer(exposition.text(registry))
        for topic, body in self._judgement.tick(time.time()):
            self._publish(topic, body)
        readings.remember(registry, self._history, time.time())
        for family in registry.families():
            message = readings.family(registry, family.name)
            if self._published.get(family.name, {"name": family.name, "series": []}) != message:
                self._published[family.name] = message
                self._publish(f"metric.{family.name}".encode(), message)

    def _judge_by(self, config: Config) -> Judgement:
        def remedy(name: str, worker: int, for_s: float) -> None:
            if name == "recycle":
                self._link.send(wire.Ask("worker.restart", worker=worker))
            else:
                ask = wire.Ask("remedy", remedy=cast(wire.Remedy, name), worker=worker, for_s=for_s)
                self._link.send(ask)

        directory = Path(configuration.run_dir(config))
        return Judgement(config, self._registry, self._history, directory, remedy)

    # --- questions -----------------------------------------------------------------------------------

    def _take_questions(self) -> None:
        until_s = time.monotonic() + ANSWER_S
        while time.monotonic() < until_s and (asked := self._questions.receive(limit=1)):
            parts = asked[0]
            request_id = (
                parts[3] if len(parts) > 3 and len(parts[3]) <= protocol.MAX_REQUEST_ID_BYTES else b""
            )
            try:
                message = protocol.parse(parts[1:])
                if message.type != protocol.CONTROL:
                    raise ProtocolError("the monitor's socket takes CONTROL only", reason="type")
                question = protocol.unpack_map(message.payload, 64 * 1024)
                verb = self.verbs.get(str(question.get("op")))
                if verb is None:
                    raise BadRequest(f"unknown verb; the monitor has {', '.join(sorted(self.verbs))}")
                reply = verb(question, time.time())
            except WalledError as exc:
                error = {"code": exc.code, "message": exc.message, "retryable": exc.retryable}
                reply = {"schema": "walled.error/1", "ok": False, "error": error}
            frames = protocol.frames(protocol.CONTROL, request_id, None, protocol.pack_map(reply))
            self._questions.send_to(parts[0], frames)

    def _dashboard(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        """Everything a person looks at first, in one map."""
        found = readings.dashboard(self._registry)
        found["health"] = self._judgement.verbs["health"](question, now_s)
        found["alerts"] = self._judgement.verbs["alerts.list"](question, now_s)["alerts"]
        return found

    def _stats(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        """{"op": "stats", "window_s": seconds back, "model": only of this one}."""
        window_s, model = question.get("window_s", 60), question.get("model", "")
        if isinstance(window_s, bool) or not isinstance(window_s, int | float) or not 0 < window_s <= 21600:
            raise BadRequest("stats.window_s: more than 0 and at most 21600 seconds (6 h) are kept")
        if not isinstance(model, str):
            raise BadRequest("stats.model: a text is needed")
        return readings.stats(self._registry, float(window_s), model)

    def _metrics_list(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        rows = [
            {"name": f.name, "type": f.kind, "help": f.help, "labels": list(f.labels)}
            for f in self._registry.families()
        ]
        return {"schema": "walled.metrics/1", "ok": True, "metrics": rows, "series": self._history.names()}

    def _metrics_values(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        """{"op": "metrics.values", "names": families, all if left out}: what is published of them."""
        names = question.get("names")
        if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
            raise BadRequest("metrics.values: names is a list of metrics; metrics.list has them")
        found = [f.name for f in self._registry.families() if names is None or f.name in names]
        rows = [readings.family(self._registry, name) for name in found]
        return {"schema": "walled.metric_values/1", "ok": True, "metrics": rows}

    def _history_of(self, question: dict[str, Any], now_s: float) -> dict[str, Any]:
        """{"op": "history", "metric": a series or a family, "since_s": seconds back}."""
        metric, since_s = question.get("metric"), question.get("since_s", 600)
        if not isinstance(metric, str) or isinstance(since_s, bool) or not isinstance(since_s, int | float):
            raise BadRequest("history needs metric, a string, and since_s, seconds back from now")
        names = [n for n in self._history.names() if n == metric or n.partition("{")[0] == metric][:20]
        if not names:
            raise BadRequest(f"no history of {metric[:200]!r}; metrics.list names all series")
        series = {name: [list(p) for p in self._history.window(name, now_s - since_s)] for name in names}
        return {"schema": "walled.history/1", "ok": True, "metric": metric, "series": series}

    # --- surviving a restart ---------------------------------------------------------------------------

    def _restore(self) -> None:
        try:
            data = zlib.decompressobj().decompress(self._state_path.read_bytes(), MAX_STATE_BYTES)
            self._history.take(protocol.unpack_map(data, MAX_STATE_BYTES).get("history", {}))
        except FileNotFoundError:
            return
        except (OSError, zlib.error, ProtocolError, ValueError, AttributeError) as exc:
            log.warning("%s: the history is not readable and begins anew: %s", self._state_path, exc)

    def _save(self) -> None:
        data = zlib.compress(protocol.pack_map({"history": self._history.plain()}), 1)
        fresh = self._state_path.with_suffix(".new")
        try:
            fresh.write_bytes(data)
            fresh.replace(self._state_path)
        except OSError as exc:
            log.warning("%s: the history cannot be kept: %s", self._state_path, exc)
        process.give_freed_memory_back()  # all of it was once more in memory, packed
