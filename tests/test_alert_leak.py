"""A worker that really leaks is found, told and replaced; one that does not is left alone.

May live here: a daemon whose monitor has quick clocks (quick_clock_child.py). May not: statistics (core).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from walled_client import Client, Observer

from tests.daemon_process import ended, running, write_config
from tests.test_alerts_happen import told_soon

pytestmark = pytest.mark.process

QUICK_CLOCK = (sys.executable, "-m", "tests.quick_clock_daemon")
PIECE_BYTES = 1_000_000
"""Kept for ever by worker 0, ten to twenty times a second: about 100 MB in an hour of the monitor."""
DEADLINE_S = 60.0


def test_a_worker_that_leaks_is_found_and_replaced(tmp_path: Path) -> None:
    backend = "workers = 1\nslots = 2\n[alerts]\nbuiltin = false\n[alerts.rules.leak]\n"
    config = write_config(tmp_path, backend=backend)
    run_dir = tmp_path / "run"
    with running(config, command=QUICK_CLOCK) as daemon, Observer(run_dir, deadline_s=20.0) as observer:
        daemon.complete(3)
        leaking = daemon.children()["worker 0"]
        early = observer.health()["leaks"]
        assert {report["verdict"] for report in early.values()} <= {"INCONCLUSIVE"}, "far below 60 minutes"
        with Client(run_dir=run_dir, cache=False) as client:
            until_s = time.monotonic() + DEADLINE_S
            while not told_soon(daemon, "alert leak firing: role worker, worker 0 leaks memory"):
                assert time.monotonic() < until_s, observer.health()["leaks"]
                client.chat(f"one more\n!leak {PIECE_BYTES}", deadline_s=10)
            assert ended(leaking, 20.0), "the remedy: a new process"
            assert client.chat("hello", deadline_s=10).text
        told = [row for row in observer.alert_history()["actions"] if row["action"] == "recycle"]
        assert [row["result"] for row in told] == ["ok"]
