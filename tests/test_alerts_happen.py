"""Alerts of a running daemon that really happen, one after the other: rules with windows of a second or two.

May live here: one daemon, its troubles, what is told of them. May not: states on a fake clock (core).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from walled_client import Client
from walled_client.observing import Observer

from tests.daemon_process import Daemon, ended, running, write_config
from walled.errors import BadRequest, WalledError

pytestmark = pytest.mark.process

QUICK = (
    "window_s = 2.0\nfor_s = 0.0\nclear_for_s = 1.0\nmin_samples = 1\nbaseline_s = 0.0\ninhibited_by = []\n"
)
ALWAYS = {"memory": 0.0, "threads": 1.0, "descriptors": 0.0001}
"""Thresholds that every machine is beyond."""


def rules(url: str, told: Path) -> str:
    """Of every built-in rule that trouble can be made for in seconds."""
    lines = [
        f'[alerts]\nwebhooks = {{ops = "{url}"}}',
        f'commands = {{note = ["/bin/sh", "-c", "echo $WALLED_ALERT $WALLED_STATUS >> {told}"], '
        'stuck = ["/bin/sleep", "600"]}\naction_timeout_s = 0.5',
    ]
    for name, fire in ALWAYS.items():
        lines.append(f"[alerts.rules.{name}]\nfire = {fire}\nclear = {fire}\n{QUICK}")
    lines += [
        f'[alerts.rules.errors]\nmin_failures = 1\nactions = ["log", "webhook:ops", "exec:note"]\n{QUICK}',
        f"[alerts.rules.slow_replies]\nfire = 0.05\nclear = 0.04\n{QUICK}",
        f'[alerts.rules.worker_crash_loop]\nactions = ["log", "exec:stuck"]\n{QUICK}'.replace(
            "window_s = 2.0", "window_s = 60.0"
        ),
        f"[alerts.rules.queue_age]\nfire = 0.3\nclear = 0.2\n{QUICK}",
        f"[alerts.rules.backend_down]\n{QUICK}",
        "[alerts.rules.slo_fast_burn]\nwindow_s = 4.0\nshort_window_s = 2.0\nmin_failures = 1",
    ]
    return "\n".join(lines)


class Ear(HTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Posted)
        self.heard: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Posted(BaseHTTPRequestHandler):
    server: Ear

    def do_POST(self) -> None:
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def ear() -> Iterator[Ear]:
    made = Ear()
    yield made
    made.shutdown()
    made.server_close()


def ask(client: Client, line: str) -> None:
    with contextlib.suppress(WalledError):
        client.chat(line, deadline_s=10)


def kill(daemon: Daemon, title: str) -> int:
    pid = daemon.children()[title]
    os.kill(pid, signal.SIGKILL)
    assert ended(pid, 5.0)
    return pid


def test_troubles_are_told_one_after_the_other(tmp_path: Path, ear: Ear) -> None:
    told = tmp_path / "told"
    backend = "workers = 2\nslots = 2\nfirst_token_s = 0.6\n"
    config = write_config(tmp_path, backend=backend + rules(f"http://127.0.0.1:{ear.server_port}/", told))
    with running(config) as daemon, Observer(tmp_path / "run") as observer:
        daemon.complete(4)
        until(daemon, *(f"alert {name} firing" for name in ALWAYS))
        states = {row["rule"]: row["state"] for row in observer.alerts()}
        assert {name: states[name] for name in ALWAYS} == dict.fromkeys(ALWAYS, "firing")

        with Client(run_dir=tmp_path / "run", cache=False) as client:
            asking = [threading.Thread(target=ask, args=(client, f"question {n}")) for n in range(8)]
            for thread in asking:
                thread.start()
            until(daemon, "alert queue_age firing", "alert slow_replies firing")
            for thread in asking:
                thread.join()
            for _ in range(3):
                ask(client, "x\n!fail backend_error")
            until(daemon, "alert errors firing", "alert slo_fast_burn firing")
            for _ in range(8):  # no request at all would prove nothing, and the alert would stay
                ask(client, "well again?")
        until(daemon, "alert errors resolved")

        for _ in range(2):
            kill(daemon, "worker 0")
            daemon.until(r"worker 0.* ready \(pid ")
        until(daemon, "alert worker_crash_loop firing", "action exec:stuck: more than 0.5 s")

        observer.silence("memory", "a test", 60.0)
        observer.add_alert("mine", metric="walled_system_cpu_ratio", aggregate="last", fire=2.0)
        with pytest.raises(BadRequest, match=r"alerts.rules.mine.metric: unknown metric"):
            observer.add_alert("mine", metric="walled_sistem_cpu_ratio", aggregate="last", fire=2.0)
        before = observer.alert_history()["changes"]
        kill(daemon, "monitor")
        daemon.until(r"monitor.* ready \(pid ")
        rows = {row["rule"]: row for row in observer.alerts()}
        assert rows["memory"]["silence"]["reason"] == "a test"
        assert rows["mine"]["schema"]["fire"] == 2.0
        assert observer.alert_history()["changes"][: len(before)] == before
        judged = observer.health()
        assert 0 <= judged["score"] <= 100
        assert observer.dashboard()["health"]["schema"] == "walled.health/1"

    posted = [message for message in ear.heard if message["groupLabels"]["alertname"] == "errors"]
    assert [message["status"] for message in posted] == ["firing", "resolved"]
    assert {message["version"] for message in posted} == {"4"}
    assert told.read_text().split("\n")[:2] == ["errors firing", "errors resolved"]
    assert sum("alert memory firing" in line for line in daemon.lines) == 1, "told once, restart or not"


def until(daemon: Daemon, *wanted: str) -> None:
    """The log has had all of these, in whatever order."""
    for text in wanted:
        while not any(text in line for line in daemon.lines):
            daemon.until(".")
