"""What requests see when the daemon is stopped, reloaded, or loses a process: exactly one ending each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon_process import DEADLINE_S, Daemon, running, write_config
from walled import payload, protocol
from walled.adapters.sockets import Hub, Poller

pytestmark = pytest.mark.process

ENDINGS = {protocol.FINAL: "final", protocol.ERROR: "error", protocol.BUSY: "busy"}
QUESTION = payload.pack_request(payload.request_from({"kind": "generate", "prompt": "tell me"}))
SLOW = "workers = 1\ntokens = 40\ntoken_s = 0.05"
"""About two seconds an answer."""


class Asker:
    """A client of a few lines: asks, and counts how each request ends."""

    def __init__(self, daemon: Daemon) -> None:
        self._hub = Hub()
        self._port = self._hub.dealer(f"ipc://{daemon.run_dir}/client.sock")
        self._port.connect()
        self._poller = Poller([self._port])
        self.endings: dict[int, list[tuple[str, str, float | None]]] = {}
        self.texts: dict[int, str] = {}

    def ask(self, number: int) -> None:
        header = protocol.RequestHeader(model="default", deadline_ms=30_000, kind="generate", cache="bypass")
        frames = protocol.frames(protocol.REQUEST, b"%d" % number, header, QUESTION)
        until_s = time.monotonic() + DEADLINE_S
        while not self._port.send(frames):
            assert time.monotonic() < until_s
            self._poller.wait(0.02)  # nothing says "connected" but that a send is taken

    def collect(self, count: int, timeout_s: float = DEADLINE_S) -> None:
        """Read until that many requests have ended, or the time is up."""
        until_s = time.monotonic() + timeout_s
        while len(self.endings) < count and time.monotonic() < until_s:
            self._poller.wait(until_s - time.monotonic())
            for parts in self._port.receive():
                self._note(protocol.parse(parts))

    def _note(self, message: protocol.Envelope) -> None:
        if message.type not in ENDINGS:
            return
        code, retry_after_s = "", None
        if message.type == protocol.FINAL:
            self.texts[int(message.request_id)] = payload.unpack_answer(message.payload).text
        else:
            header = protocol.decode_header(protocol.ErrorHeader, message.header)
            code, retry_after_s = header.code, header.retry_after_s
        ending = (ENDINGS[message.type], code, retry_after_s)
        self.endings.setdefault(int(message.request_id), []).append(ending)

    def running(self, daemon: Daemon, count: int) -> None:
        """Wait until the daemon has that many requests in its workers' hands."""
        until_s = time.monotonic() + DEADLINE_S
        while len(daemon.control("queue.list")["running"]) < count:
            assert time.monotonic() < until_s

    def close(self) -> None:
        self._hub.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running(write_config(tmp_path, backend=SLOW)) as found:
        yield found.ready()


@pytest.fixture
def asker(daemon: Daemon) -> Iterator[Asker]:
    found = Asker(daemon)
    yield found
    found.close()


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(daemon: Daemon, asker: Asker) -> None:
    for number in range(3):
        asker.ask(number)
    asker.running(daemon, 3)
    daemon.signal(signal.SIGTERM)
    daemon.until("draining")
    while daemon.control("status")["state"] != "draining":
        pass
    asker.ask(99)
    asker.collect(4)
    assert [asker.endings[number][0][0] for number in range(3)] == ["final"] * 3
    kind, code, retry_after_s = asker.endings[99][0]
    assert kind in ("busy", "error")
    assert code == "draining"
    assert retry_after_s is not None
    assert daemon.wait() == 0


def test_a_second_sigterm_ends_requests_with_an_error_not_with_silence(daemon: Daemon, asker: Asker) -> None:
    asker.ask(1)
    asker.running(daemon, 1)
    daemon.signal(signal.SIGTERM)
    daemon.until("draining")
    daemon.signal(signal.SIGTERM)
    asker.collect(1, 5.0)
    assert asker.endings[1][0][:2] == ("error", "draining")
    assert daemon.wait(5.0) == 0


def test_the_drains_deadline_ends_what_is_left(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, daemon="drain_timeout_s = 0.3", backend="workers = 1\ntokens = 900\ntoken_s = 0.05"
    )
    with running(config) as daemon:
        asker = Asker(daemon.ready())
        asker.ask(1)
        asker.running(daemon, 1)
        daemon.signal(signal.SIGTERM)
        asker.collect(1, 5.0)
        assert asker.endings[1][0][:2] == ("error", "draining")
        assert daemon.wait(8.0) == 0
        asker.close()


def test_a_reload_that_replaces_every_worker_loses_nothing(daemon: Daemon, asker: Asker) -> None:
    for number in range(4):
        asker.ask(number)
    asker.running(daemon, 4)
    write_config(daemon.config.parent, backend=SLOW.replace("workers = 1", "workers = 2").replace("40", "41"))
    daemon.signal(signal.SIGHUP)
    daemon.until("reloading")
    for number in range(4, 12):
        asker.ask(number)
    asker.collect(12)
    assert {number: [ending[0] for ending in endings] for number, endings in asker.endings.items()} == {
        number: ["final"] for number in range(12)
    }
    daemon.until("reload finished")
    assert daemon.stop() == 0


def test_an_operators_restart_loses_nothing(daemon: Daemon, asker: Asker) -> None:
    for number in range(4):
        asker.ask(number)
    asker.running(daemon, 4)
    assert daemon.control("workers.restart", 0)["ok"]
    asker.collect(4)
    assert all(endings == [("final", "", None)] for endings in asker.endings.values())
    daemon.until("replaced.: exit status 0")


def test_a_killed_worker_costs_time_only(daemon: Daemon, asker: Asker) -> None:
    for number in range(4):
        asker.ask(number)
    asker.running(daemon, 4)
    os.kill(daemon.children()["worker 0"], signal.SIGKILL)
    asker.collect(4)
    assert all(endings == [("final", "", None)] for endings in asker.endings.values())


def test_a_killed_monitor_costs_nothing(daemon: Daemon, asker: Asker) -> None:
    asker.ask(1)
    asker.running(daemon, 1)
    os.kill(daemon.complete(3)["monitor"], signal.SIGKILL)
    asker.collect(1)
    assert asker.endings == {1: [("final", "", None)]}


def test_a_drained_worker_is_parked_and_a_restart_brings_it_back(tmp_path: Path) -> None:
    with running(write_config(tmp_path, backend=SLOW.replace("workers = 1", "workers = 2"))) as daemon:
        asker = Asker(daemon.ready())
        daemon.complete(4)
        for number in range(4):
            asker.ask(number)
        asker.running(daemon, 4)
        assert daemon.control("workers.drain", 1)["ok"]
        daemon.until("worker 1 drained at an operator's wish")
        asker.collect(4)
        assert all(endings == [("final", "", None)] for endings in asker.endings.values())
        daemon.until(r"worker 1 \(pid \d+\) stopped: exit status 0")
        assert daemon.control("workers.restart", 1)["ok"]
        daemon.until(r"supervisor: worker 1 ready")
        asker.close()
        assert daemon.stop() == 0
