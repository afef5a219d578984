"""The monitor beside the requests: killing it loses none of them; nothing it says holds a prompt.

May live here: a daemon under load and its monitor. May not: what alerts mean (test_alerts_happen.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import pytest
from walled_client import AsyncClient, Client, Observer

from tests.daemon_process import Daemon, running, write_config
from tests.test_alerts_happen import QUICK, kill, until
from walled.adapters.sockets import Hub, Poller
from walled.errors import WalledError
from walled.protocol import pack_map

pytestmark = pytest.mark.process

KILLS = 3
TASKS = 12
CANARY = "kanarienvogel7431"


async def ask_on(client: AsyncClient, task: int, done: threading.Event, replies: list[str]) -> None:
    number = 0
    while not done.is_set():
        number += 1
        reply = await client.chat(f"{task} {number}", deadline_s=10)
        assert reply.text.startswith(f"{task} {number}")
        replies.append(reply.source)


def test_killing_the_monitor_under_load_loses_no_request_and_no_state(tmp_path: Path) -> None:
    alerts = f"[alerts.rules.memory]\nfire = 0.0\nclear = 0.0\n{QUICK}"
    config = write_config(tmp_path, backend="workers = 2\nslots = 8\nfirst_token_s = 0.005\n" + alerts)
    replies: list[str] = []
    done = threading.Event()

    async def load() -> None:
        async with AsyncClient(tmp_path / "run", cache=False) as client:
            await asyncio.gather(*(ask_on(client, task, done, replies) for task in range(TASKS)))

    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(load())
        except BaseException as exc:
            failed.append(exc)

    with running(config) as daemon, Observer(tmp_path / "run") as observer:
        daemon.complete(4)
        others = {name: pid for name, pid in daemon.children().items() if name != "monitor"}
        until(daemon, "alert memory firing")
        observer.silence("memory", "during the test", 600.0)
        loading = threading.Thread(target=run)
        loading.start()
        try:
            for _ in range(KILLS):
                before, told = len(replies), observer.alert_history()["changes"]
                kill(daemon, "monitor")
                daemon.until(r"monitor.* ready \(pid ")
                (row,) = [row for row in observer.alerts() if row["rule"] == "memory"]
                assert (row["state"], row["silence"]["reason"]) == ("firing", "during the test")
                assert observer.alert_history()["changes"][: len(told)] == told
                assert len(replies) > before, "answers went on meanwhile"
        finally:
            done.set()
            loading.join()
        assert failed == []
        assert set(replies) == {"model"}
        assert {n: p for n, p in daemon.children().items() if n != "monitor"} == others
        assert sum("alert memory firing" in line for line in daemon.lines) == 1


class Eavesdropper:
    """Takes every byte of the stream, of all topics."""

    def __init__(self, run_dir: Path) -> None:
        self._hub = Hub()
        self._port = self._hub.subscriber(f"ipc://{run_dir}/metrics.sock", [b""])
        self._port.connect()
        self._poller = Poller([self._port])
        self.heard: list[bytes] = []

    def listen(self, wanted: bytes, timeout_s: float = 20.0) -> None:
        """Until something of that topic has come once more."""
        for _ in range(int(timeout_s * 10)):
            self._poller.wait(0.1)
            came = self._port.receive(10_000)
            self.heard += [part for parts in came for part in parts]
            if any(parts[0].startswith(wanted) for parts in came):
                return
        raise AssertionError(f"nothing on {wanted!r}")

    def close(self) -> None:
        self._hub.close()


def say_it_everywhere(run_dir: Path) -> None:
    """The word in every place of a request that is the caller's own."""
    line = f"my {CANARY} is for sale"
    everywhere: list[dict[str, Any]] = [
        {},
        {"temperature": 0},
        {"temperature": 0},
        {"session": CANARY, "namespace": CANARY, "context": {"item": CANARY}},
        {"system": line, "stop": [CANARY]},
        {"model": CANARY},
        {"deadline_s": 0.001},
        {"cache": "only", "temperature": 0.5},
    ]
    with Client(run_dir, retries=0) as client:
        for fields in everywhere:
            for text in (line, line + "\n!fail backend_error", line + f"\n!text {CANARY}"):
                with contextlib.suppress(WalledError):
                    client.chat(text, **{"deadline_s": 10.0, **fields})
        for chunk in client.stream(line, deadline_s=10):
            assert chunk
        client.embed([line], deadline_s=10)
        client.generate(line, deadline_s=10)


def test_no_prompt_and_no_answer_is_ever_in_what_the_monitor_says(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alerts = [
        f"[monitor]\nprometheus_port = {port}",
        f"[alerts.rules.errors]\nmin_failures = 1\n{QUICK}",
        f"[alerts.rules.slow_replies]\nfire = 0.000001\nclear = 0.0000001\n{QUICK}",
    ]
    config = write_config(tmp_path, backend="workers = 1\nslots = 2\n" + "\n".join(alerts))
    run_dir = tmp_path / "run"
    with running(config) as daemon, Observer(run_dir) as observer:
        daemon.complete(3)
        stream = Eavesdropper(run_dir)
        stream.listen(b"health")
        say_it_everywhere(run_dir)
        until(daemon, "alert errors firing", "alert slow_replies firing")
        for topic in (b"metric.walled_requests_total", b"health", b"metric.counters", b"metric.processes"):
            stream.listen(topic)
        stream.close()
        said = [b"\n".join(stream.heard), "\n".join(daemon.lines).encode()]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            said.append(answer.read())
        for op in ("dashboard", "stats", "metrics.list", "alerts.list", "alerts.history", "health"):
            said.append(pack_map(observer.ask(op)))
        observed = observer.dashboard()["totals"]["walled_requests_total"]
        assert sum(row["value"] for row in observed) >= 20, "it was there to be seen"
        stopped(daemon)
    said += [path.read_bytes() for path in run_dir.iterdir() if path.is_file()]
    said.append(zlib.decompress((run_dir / "monitor.state").read_bytes()))
    assert b"walled_requests_total" in said[0]
    assert b"walled_requests_total" in said[-1]
    for text in said:
        assert CANARY.encode() not in text


def stopped(daemon: Daemon) -> None:
    """Ended in order: whatever a process keeps for its successor is written."""
    assert daemon.stop() == 0
