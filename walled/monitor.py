"""The monitor process: takes deltas, counts them, publishes the picture. Nothing else depends on it.

May live here: its loop over the PULL and XPUB sockets and the link. May not: the arithmetic
(core/counters.py), the reading of /proc (adapters/probe.py), anything a request waits for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from walled import config as configuration
from walled import link as wire
from walled import protocol
from walled.adapters import logs, process, sockets
from walled.adapters.probe import FamilyProbe, plain
from walled.config import Config
from walled.core.counters import Publications, Registry
from walled.errors import ProtocolError

COUNTERS_TOPIC = b"metric.counters"
PROCESSES_TOPIC = b"metric.processes"
BEAT_S = 0.4
PROCESSES_INTERVAL_S = 5.0
"""USS costs a walk through a process's page table; not more often than this."""


def main(spawn: wire.Spawn, link: process.Link) -> int:
    """Be the monitor until told to stop."""
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
        self._registry = Registry()
        self._publications = Publications(os.urandom(8).hex())
        self._family = FamilyProbe(spawn.supervisor_pid)
        addresses = configuration.endpoints(Path(configuration.run_dir(self._config)))
        self._hub = sockets.Hub()
        self._deltas = self._hub.pull(addresses.delta)
        self._metrics = self._hub.publisher(addresses.metrics)
        self._poller = sockets.Poller([self._deltas, self._metrics], [link.fileno()])
        self._stopping = False

    def run(self) -> int:
        """Returns the exit status."""
        now_s = time.monotonic()
        beat_due_s = counters_due_s = processes_due_s = now_s
        while not self._stopping:
            now_s = time.monotonic()
            if now_s >= beat_due_s:
                self._link.send(wire.Status("ready"))
                beat_due_s = now_s + BEAT_S
            if now_s >= counters_due_s:
                self._publish(COUNTERS_TOPIC, self._registry.picture())
                counters_due_s = now_s + self._config.monitor.publish_interval_s
            if now_s >= processes_due_s:
                self._publish(PROCESSES_TOPIC, plain(self._family.sample()))
                processes_due_s = now_s + max(PROCESSES_INTERVAL_S, self._config.monitor.publish_interval_s)
            due_s = min(beat_due_s, counters_due_s, processes_due_s)
            self._poller.wait(max(0.0, due_s - now_s))
            self._take_orders()
            self._take_deltas()
            self._greet_subscribers()
        self._link.send(wire.Status("stopping"))
        return 0

    def close(self) -> None:
        self._hub.close()

    def _take_orders(self) -> None:
        for message in self._link.receive():
            if not isinstance(message, wire.Order):
                continue
            if message.op in ("stop", "drain"):
                self._stopping = True
            elif message.op == "reconfigure":
                self._reconfigure(configuration.from_plain(message.config))

    def _reconfigure(self, config: Config) -> None:
        self._config = config
        logs.set_level(config.daemon.log_level)

    def _take_deltas(self) -> None:
        # Bounded, so that a flood of deltas cannot keep the loop from its beat.
        for parts in self._deltas.receive(limit=1000):
            try:
                self._registry.apply(protocol.unpack_map(parts[0]))
            except ProtocolError:
                self._registry.refused += 1

    def _greet_subscribers(self) -> None:
        for parts in self._metrics.receive():
            if parts[0][:1] == b"\x01":
                for topic, message in self._publications.last_for(parts[0][1:]):
                    self._metrics.send([topic, protocol.pack_map(message)])

    def _publish(self, topic: bytes, body: dict[str, object]) -> None:
        message = self._publications.next(topic, body, time.time())
        self._metrics.send([topic, protocol.pack_map(message)])
