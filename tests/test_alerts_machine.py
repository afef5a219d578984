"""Alerts about processes and the machine that really happen in a running daemon, and remedies that arrive.

May live here: memory that is allocated, processors that are busy, threads and descriptors that are opened.
May not: requests and workers (test_alerts_happen.py).
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from walled_client import Client, Observer

from tests.daemon_process import Daemon, ended, running, write_config
from tests.test_alerts_happen import QUICK, again_and_again, kill, until
from walled.adapters.sockets import Hub
from walled.errors import BadRequest

pytestmark = pytest.mark.process

CONNECTIONS = 60
SCRAPERS = 8
GROWTH_RATIO = 0.02
"""Of the machine's memory, that is taken and given back."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def used_ratio() -> float:
    found = psutil.virtual_memory()
    return 1.0 - float(found.available) / float(found.total)


@pytest.fixture
def busy() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that use all processors; to be filled by the test."""
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for program in made:
        program.kill()
        program.wait()


def config_of(tmp_path: Path, port: int) -> Path:
    full = used_ratio() + GROWTH_RATIO / 2
    alerts = [
        f"[monitor]\nprometheus_port = {port}",
        f"[alerts.rules.memory]\nfire = {full}\nclear = {full}\n{QUICK}",
        f"[alerts.rules.cpu]\nfire = 0.9\nclear = 0.85\n{QUICK}",
        f"[alerts.rules.threads]\nfire = 11\nclear = 11\nmatch = {{role = 'monitor'}}\n{QUICK}",
        f"[alerts.rules.descriptors]\n{QUICK}",
    ]
    return write_config(tmp_path, backend="workers = 2\nslots = 2\n" + "\n".join(alerts))


def test_a_machine_in_trouble_and_the_remedies(tmp_path: Path, busy: list[subprocess.Popen[bytes]]) -> None:
    port = free_port()
    with running(config_of(tmp_path, port)) as daemon, Observer(tmp_path / "run") as observer:
        daemon.complete(4)
        pids = daemon.children()

        for _ in range(psutil.cpu_count() or 1):
            busy.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        until(daemon, "alert cpu firing")
        for program in busy:
            program.kill()

        scrapers: list[socket.socket] = []
        again_and_again(daemon, "alert threads firing", lambda number: scrape(port, scrapers, number))
        for scraper in scrapers:
            scraper.close()

        clients = Hub()
        ports = [clients.dealer(f"ipc://{tmp_path}/run/client.sock") for _ in range(CONNECTIONS)]
        for one in ports:
            one.connect()
        again_and_again(daemon, "alert descriptors firing", lambda _: fill(pids["broker"]))
        clients.close()

        ballast = bytearray(os.urandom(4096)) * int(psutil.virtual_memory().total * GROWTH_RATIO / 4096)
        until(daemon, "alert memory firing")
        for process in ("broker", "worker 0", "worker 1"):
            for remedy in ("gc", "malloc_trim"):
                until(daemon, f"{process}: memory: {remedy} because an alert wants it")
        until(daemon, "worker 0: memory: unload_idle because an alert wants it")
        del ballast

        # Another rule, at run time: the worker it names is replaced, once.
        observer.add_alert(
            "heavy", metric="walled_process_rss_bytes", aggregate="last", match={"worker": "1"},
            fire=1.0, actions=["log", "recycle"],
        )  # fmt: skip
        assert ended(pids["worker 1"], 20.0), "the old worker is gone"
        assert daemon.children()["worker 0"] == pids["worker 0"]
        its_state_outlives_the_monitor(daemon, observer)
        with Client(run_dir=tmp_path / "run") as client:
            assert client.chat("hello", deadline_s=10).text


def scrape(port: int, scrapers: list[socket.socket], number: int) -> None:
    """Have a thread of the monitor wait for each of them; it does not wait for ever, so they come again."""
    if number % 40 == 0:
        for scraper in scrapers:
            scraper.close()
        scrapers[:] = [socket.create_connection(("127.0.0.1", port)) for _ in range(SCRAPERS)]


def fill(pid: int) -> None:
    """Leave the process few more descriptors than it has open: 90 % of its limit are in use."""
    taken = len(os.listdir(f"/proc/{pid}/fd"))
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    if taken > CONNECTIONS:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (int(taken / 0.9), hard))


def its_state_outlives_the_monitor(daemon: Daemon, observer: Observer) -> None:
    """SIGKILL of the monitor: silences, rules of run time, history are there again; nobody is told twice."""
    observer.silence("memory", "a test", 60.0)
    observer.add_alert("mine", metric="walled_system_cpu_ratio", aggregate="last", fire=2.0)
    with pytest.raises(BadRequest, match=r"alerts.rules.mine.metric: unknown metric"):
        observer.add_alert("mine", metric="walled_sistem_cpu_ratio", aggregate="last", fire=2.0)
    assert observer.test_alert("heavy", since_s=60.0)[-1]["after"] == "firing"
    tried = {"metric": "walled_system_memory_used_ratio", "aggregate": "last", "fire": 0.0, "for_s": 0.0}
    assert [c["after"] for c in observer.test_alert("other", 60.0, schema=tried)] == ["pending", "firing"]
    before = observer.alert_history()["changes"]
    kill(daemon, "monitor")
    daemon.until(r"monitor.* ready \(pid ")
    rows = {row["rule"]: row for row in observer.alerts()}
    assert rows["memory"]["silence"]["reason"] == "a test"
    assert rows["mine"]["schema"]["fire"] == 2.0
    assert rows["heavy"]["state"] == "firing"
    assert "other" not in rows
    assert observer.alert_history()["changes"][: len(before)] == before
    assert observer.dashboard()["health"]["schema"] == "walled.health/1"
    observer.remove_alert("mine")
    assert "mine" not in {row["rule"] for row in observer.alerts()}
    assert sum("alert heavy firing" in line for line in daemon.lines) == 1, "told once, restart or not"
