"""Alerts about requests that really happen in a running daemon: rules with windows of a second or two.

May live here: one daemon, its troubles with requests and workers, what is told of them. May not: troubles of
the machine (test_alerts_machine.py), leaks (test_alert_leak.py), states on a fake clock (core).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from walled_client import Client, Observer

from tests.daemon_process import Daemon, ended, running, write_config
from walled.errors import Overloaded, WalledError

pytestmark = pytest.mark.process

QUICK = "window_s = 2.0\nfor_s = 0.0\nclear_for_s = 1.0\nmin_samples = 1\ninhibited_by = []\n"
LINE = "what does the bike cost"


def rules(url: str, told: Path) -> str:
    """The built-in rules about requests and workers, as they are but for their times and thresholds."""
    lines = [
        f'[alerts]\nwebhooks = {{ops = "{url}"}}',
        f'commands = {{note = ["/bin/sh", "-c", "echo $WALLED_ALERT $WALLED_STATUS >> {told}"], '
        'stuck = ["/bin/sleep", "600"]}\naction_timeout_s = 0.5',
        f'[alerts.rules.errors]\nmin_failures = 1\nactions = ["log", "webhook:ops", "exec:note"]\n{QUICK}',
        f"[alerts.rules.slow_replies]\nfire = 0.4\nclear = 0.3\n{QUICK}",
        f'[alerts.rules.worker_crash_loop]\nactions = ["log", "exec:stuck"]\n{QUICK}'.replace(
            "window_s = 2.0", "window_s = 60.0"
        ),
        f"[alerts.rules.queue_age]\nfire = 0.3\nclear = 0.2\n{QUICK}",
        f"[alerts.rules.backend_down]\n{QUICK}",
        f"[alerts.rules.breaker_open]\n{QUICK}",
        "[alerts.rules.slo_fast_burn]\nwindow_s = 4.0\nshort_window_s = 2.0\nmin_failures = 1",
        "[alerts.rules.slo_slow_burn]\nwindow_s = 5.0\nshort_window_s = 2.0\nmin_failures = 1",
        f"[alerts.rules.cache_hit_collapse]\nbaseline_s = 60.0\n{QUICK}",
        f"[alerts.rules.token_rate_collapse]\nbaseline_s = 20.0\n{QUICK}",
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


def until(daemon: Daemon, *wanted: str) -> None:
    """The log has had all of these, in whatever order."""
    for text in wanted:
        while not any(text in line for line in daemon.lines):
            daemon.until(".")


def told_soon(daemon: Daemon, text: str) -> bool:
    """Whether the log has had it by now, or has it within a moment."""
    return any(text in line for line in daemon.lines) or daemon.look_for(text, 0.05) is not None


def again_and_again(daemon: Daemon, wanted: str, do: Any) -> None:
    """Do something until the log has that; every doing is real load."""
    for number in range(400):
        if told_soon(daemon, wanted):
            return
        do(number)
    raise AssertionError(f"never {wanted!r} in:\n" + "\n".join(daemon.lines))


def refusal(client: Client) -> str:
    """What a request hears that can wait."""
    try:
        client.chat("not urgent", priority="batch", deadline_s=0.3, retries=0)
    except WalledError as exc:
        return exc.message
    return ""


def until_taken(client: Client) -> None:
    """A request that would be shed is answered: the word has reached the broker."""
    for _ in range(200):
        try:
            client.chat("not urgent either", priority="batch", deadline_s=10, retries=0)
        except Overloaded:
            continue
        return
    raise AssertionError("load is shed for ever")


BACKEND = "workers = 2\nslots = 2\ntokens = 4\nfirst_token_s = {first}\ntoken_s = {token}\n"


def test_troubles_are_told_one_after_the_other(tmp_path: Path, ear: Ear) -> None:
    told = tmp_path / "told"
    alerts = rules(f"http://127.0.0.1:{ear.server_port}/", told)
    config = write_config(tmp_path, backend=BACKEND.format(first=0.02, token=0.002) + alerts)
    with running(config) as daemon, Observer(tmp_path / "run") as observer:
        daemon.complete(4)
        with Client(run_dir=tmp_path / "run") as client:
            # A good time first: answers from the cache in this process, and tokens at their usual pace.
            for number in range(200):
                client.chat(f"{LINE} {number % 5}", temperature=0, deadline_s=10)
            for number in range(20):
                ask(client, f"new {number}")
            # Then nobody asks the same twice.
            again_and_again(
                daemon, "alert cache_hit_collapse firing", lambda number: ask(client, f"other {number}")
            )
            # The model server answers on, ten times slower: its GPU is gone.
            config = write_config(tmp_path, backend=BACKEND.format(first=0.02, token=0.06) + alerts)
            daemon.signal(signal.SIGHUP)
            daemon.until("reload finished")
            again_and_again(
                daemon, "alert token_rate_collapse firing", lambda number: ask(client, f"slow {number}")
            )

            # More is asked than can be answered in time.
            asking = [
                threading.Thread(target=ask, args=(client, f"question {n}\n!slow 0.6")) for n in range(24)
            ]
            for thread in asking:
                thread.start()
            until(daemon, "alert queue_age firing", "remedy shed is on")
            assert any("load is shed" in refusal(client) for _ in range(40))
            until(daemon, "alert slow_replies firing")
            for thread in asking:
                thread.join()
            until(daemon, "remedy shed is off")
            until_taken(client)

            for _ in range(3):
                ask(client, "x\n!fail backend_error")
            until(daemon, *(f"alert {n} firing" for n in ("errors", "slo_fast_burn", "slo_slow_burn")))
            # The backend goes on failing: it is left alone.
            again_and_again(
                daemon,
                "alert breaker_open firing",
                lambda number: ask(client, f"{number}\n!fail backend_error"),
            )
            # No request at all would prove nothing, and the alert would stay.
            again_and_again(daemon, "alert errors resolved", lambda number: ask(client, f"well {number}?"))

        for _ in range(2):
            kill(daemon, "worker 0")
            daemon.until(r"worker 0.* ready \(pid ")
        until(daemon, "alert worker_crash_loop firing", "action exec:stuck: more than 0.5 s")
        for slot in (0, 1):
            daemon.control("workers.drain", slot)
        until(daemon, "alert backend_down firing")
        assert observer.health()["score"] <= 49
        for slot in (0, 1):
            daemon.control("workers.restart", slot)
        until(daemon, "alert backend_down resolved")
        lines = "\n".join(daemon.lines)

    posted = [message for message in ear.heard if message["groupLabels"]["alertname"] == "errors"]
    statuses = [message["status"] for message in posted]
    assert statuses[:2] == ["firing", "resolved"]
    assert all(before != after for before, after in pairwise(statuses)), "told once per change"
    assert {message["version"] for message in posted} == {"4"}
    assert told.read_text().split("\n")[:2] == ["errors firing", "errors resolved"]
    assert LINE not in lines
