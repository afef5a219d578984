"""What can be seen of a running daemon: the client's health, dashboard and statistics; walled-ctl's views.

One daemon for all; what must break a daemon has one of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from walled_client import AsyncClient, Client
from walled_client.ctl import panels
from walled_client.ctl.drawing import BLOCKS
from walled_client.ctl.screen import Top
from walled_client.ctl.stat import COLUMNS
from walled_client.subscriber import Subscriber

from tests.client.test_ctl import OnTerminal, data, run
from tests.daemon_process import ROOT, Daemon, running, write_config
from walled.errors import BadRequest, DaemonUnavailable, WalledError

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With two workers, and requests behind it: six answered, one of them from the cache, and a failure."""
    directory = tmp_path_factory.mktemp("v")
    config = write_config(directory, backend="workers = 2\nslots = 4\nfirst_token_s = 0.02\n")
    with running(config) as one:
        one.complete(4)
        with Client(run_dir=one.run_dir, cache=False) as client:
            for number in (1, 2, 3, 4, 5, 5):
                client.chat(f"question {number}", temperature=0)
            with pytest.raises(WalledError):
                client.chat("x\n!fail backend_error", retries=0)
        until_counted(one, 7)
        yield one


def until_counted(daemon: Daemon, requests: int) -> None:
    """The broker tells the monitor of endings at its next beat."""
    with Subscriber(daemon.run_dir, topics=["metric.walled_requests_total"]) as subscriber:
        while (message := subscriber.next(20.0)) is not None:
            if sum(row["value"] for row in message.body["series"]) >= requests:
                return
    raise AssertionError("the requests were not counted")


def test_the_client_sees_health_dashboard_and_statistics(daemon: Daemon) -> None:
    with Client(run_dir=daemon.run_dir) as client:
        health = client.health()
        assert health["schema"] == "walled.health/1"
        assert health["grade"] in ("healthy", "degraded", "unhealthy")
        stats = client.stats(window_s=300)
        sources = {(row["outcome"], row["source"]): row["total"] for row in stats["endings"]}
        assert sources == {("ok", "model"): 5, ("ok", "cache"): 1, ("backend_error", "none"): 1}
        assert 0.02 <= stats["phases"]["request"]["p95_s"] < 5
        assert stats["client"]["local_hits"] == 0
        board = client.dashboard()
        assert board["daemon"]["state"] == "ready"
        assert board["health"]["score"] == pytest.approx(health["score"], abs=20)
        assert {"stats", "metrics", "totals", "alerts"} <= board.keys()
        with pytest.raises(BadRequest, match=r"stats\.window_s"):
            client.stats(window_s=0)


def test_the_async_client_sees_the_same(daemon: Daemon) -> None:
    async def look() -> list[dict[str, Any]]:
        async with AsyncClient(run_dir=daemon.run_dir) as client:
            return list(await asyncio.gather(client.health(), client.dashboard(), client.stats(window_s=300)))

    health, board, stats = asyncio.run(look())
    assert [one["schema"] for one in (health, board, stats)] == [
        "walled.health/1", "walled.dashboard/1", "walled.stats/1"
    ]  # fmt: skip
    assert board["daemon"]["state"] == "ready"
    assert stats["requests"]["total"] >= 7


def test_without_a_daemon_the_questions_fail_at_once_and_say_why(tmp_path: Path) -> None:
    with Client(run_dir=tmp_path, connect_timeout_s=0.1) as client:
        for ask in (client.health, client.dashboard, client.stats):
            with pytest.raises(DaemonUnavailable, match="no daemon takes requests at"):
                ask()


# --- walled-ctl --------------------------------------------------------------------------------------


def ctl(daemon: Daemon, *args: str) -> Result:
    return run("--run-dir", str(daemon.run_dir), *args)


@pytest.mark.parametrize(
    ("args", "schema", "words"),
    [
        (
            ("status",),
            "walled.status/1",
            ["Score:", "`- worker 1", "monitor", "0 in flight of 4 slots", "Next:"],
        ),
        (("health", "--explain"), "walled.health/1", [" of 100", "INCONCLUSIVE"]),
        (("alerts",), "walled.alerts/1", ["memory", "> 0.8", "critical"]),
        (("alerts", "history"), "walled.alert_history/1", ["before", "unknown"]),
        (("alerts", "test", "memory"), "walled.alert_replay/1", ["walled_system_memory_used_ratio"]),
        (("alerts", "export"), "walled.alert_export/1", ["groups:", "WalledMemory"]),
        (("stat",), "walled.stat/1", ["/4"]),
        (("latency", "--since", "10m"), "walled.latency/1", ["first_token", "p95", "request: 7 seen", "<="]),
        (("metrics",), "walled.metric_values/1", ["walled_requests_total", "Requests ended"]),
        (
            ("metrics", "walled_requests_t*", "--label", "source=cache"),
            "walled.metric_values/1",
            ['walled_requests_total{model="scripted",outcome="ok",source="cache"} 1'],
        ),
        (
            ("metrics", "follow", "walled_build_info", "--count", "1"),
            "walled.metric/1",
            ["walled_build_info{"],
        ),
        (("history", "walled_system_cpu_ratio"), "walled.history/1", ["last"]),
        (("events", "--count", "1"), "walled.event/1", ["="]),
        (("check", "workers"), "walled.check/1", ["WALLED OK - 2 of 2 ready | ready=2;;;0;2"]),
        (("check", "backend"), "walled.check/1", ["WALLED OK - s has 2 live workers | live_s=2;1:;1:;0"]),
        (("check", "queue"), "walled.check/1", ["WALLED OK - 0 waiting", "depth=0"]),
        (("check", "cache"), "walled.check/1", ["WALLED OK - 5 answers", "entries=5"]),
        (("top",), "walled.top/1", ["health", "requests/s", "p95", "worker 1", "processors"]),
        (("profile", "monitor", "--stacks"), "walled.profile/1", ["Monitor.run"]),
    ],
)
def test_views_of_a_running_daemon(
    daemon: Daemon, args: tuple[str, ...], schema: str, words: list[str]
) -> None:
    shown, plain = ctl(daemon, *args), ctl(daemon, *args, "--json")
    for word in words:
        assert word in shown.stdout, shown.output
    assert data(plain)["schema"] == schema
    assert shown.exit_code == plain.exit_code
    if args[0] != "health":  # the machine that runs the tests may well be unwell
        assert shown.exit_code == 0, shown.output
    assert "\x1b" not in shown.stdout


def test_one_line_of_stat_goes_into_a_pipe_and_its_headings_do_not(daemon: Daemon) -> None:
    found = ctl(daemon, "stat", "--count", "2")
    assert len(found.stdout.splitlines()) == 2
    assert found.stderr.split() == [name for name, _ in COLUMNS]
    assert len(ctl(daemon, "stat").stdout.splitlines()) == 1


def test_silences_are_set_seen_and_ended(daemon: Daemon) -> None:
    assert ctl(daemon, "alerts", "silence", "cpu", "--reason", "a test", "--for", "2h").exit_code == 0
    assert "a test" in ctl(daemon, "alerts").stdout
    assert ctl(daemon, "alerts", "unsilence", "cpu").exit_code == 0
    assert "a test" not in ctl(daemon, "alerts").stdout
    again = ctl(daemon, "alerts", "unsilence", "cpu")
    assert (again.exit_code, again.stdout) == (2, "")


def test_check_has_thresholds_and_the_codes_of_nagios(daemon: Daemon, tmp_path: Path) -> None:
    assert ctl(daemon, "check", "memory", "-w", "0.0", "-c", "101").exit_code == 1
    found = ctl(daemon, "check", "memory", "--critical", "0.0")
    assert found.exit_code == 2
    assert re.fullmatch(
        r"WALLED CRITICAL - [\d.]+ % .*\| used=[\d.]+%;80;0;0;100 .*broker=\d+B.*\n", found.stdout
    )
    assert ctl(daemon, "check", "backend", "-w", "3").exit_code == 1
    assert ctl(daemon, "check", "server").exit_code in (0, 1, 2)
    assert ctl(daemon, "check", "nonsense").exit_code == 3
    nobody = run("--run-dir", str(tmp_path), "--timeout", "0.2", "check", "server")
    assert (nobody.exit_code, nobody.stdout[:18]) == (2, "WALLED CRITICAL - ")
    assert run("--run-dir", str(tmp_path), "--timeout", "0.2", "check", "queue").exit_code == 3


@pytest.mark.parametrize(
    "args", [("stat",), ("events",), ("alerts",), ("history", "m"), ("latency",), ("metrics",)]
)
def test_without_a_daemon_every_view_says_so(tmp_path: Path, args: tuple[str, ...]) -> None:
    found = run("--run-dir", str(tmp_path), "--timeout", "0.2", *args)
    assert (found.exit_code, found.stdout) == (3, "")
    assert "monitor.sock" in found.stderr


def test_a_view_goes_on_when_the_monitor_is_replaced(tmp_path: Path) -> None:
    """And ends quietly when its reader leaves."""
    with running(write_config(tmp_path)) as daemon:
        daemon.complete(4)
        with viewing(daemon, "stat", "--count", "1000", "--json") as stat:
            first = json.loads(line_of(stat))
            os.kill(daemon.children()["monitor"], signal.SIGKILL)
            daemon.until(r"monitor.* ready \(pid ")
            born_s = time.time()
            while json.loads(line_of(stat))["time_s"] < born_s:
                pass
            assert first["schema"] == "walled.stat/1"
            assert stat.stdout is not None
            stat.stdout.close()
            assert stat.wait(20) in (0, 1)
            assert stat.stderr is not None
            assert stat.stderr.read() == b""
        with viewing(daemon, "events") as events:
            line_of(events)
            events.send_signal(signal.SIGINT)
            assert events.wait(20) == 130
            assert events.stderr is not None
            assert events.stderr.read() == b""


class Watched(Top):
    """The screen, and word of every drawing."""

    def __init__(self, daemon: Daemon, board: dict[str, Any]) -> None:
        self.drawn = asyncio.Event()
        super().__init__(str(daemon.run_dir), None, board, BLOCKS, True)

    def draw(self) -> None:
        super().draw()
        self.drawn.set()

    def text(self) -> str:
        return "\n".join(panels.plain(line) for line in self.board.lines)

    async def until(self, *words: str) -> None:
        async with asyncio.timeout(20):
            while not all(word in self.text() for word in words):
                self.drawn.clear()
                await self.drawn.wait()


async def board_of(daemon: Daemon) -> dict[str, Any]:
    async with AsyncClient(run_dir=daemon.run_dir) as client:
        return await client.dashboard()


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_the_screen_lives_explains_and_pauses(daemon: Daemon, size: tuple[int, int]) -> None:
    async def watch() -> None:
        app = Watched(daemon, await board_of(daemon))
        async with app.run_test(size=size) as pilot:
            await app.until("ready", "worker 1", "requests/s", "alerts")
            ticked_s = app.picture.time_s
            while app.picture.time_s == ticked_s:
                app.drawn.clear()
                await app.drawn.wait()
            await pilot.press("p")
            await app.until("paused")
            app.picture.health = {"score": 60, "grade": "degraded", "deductions": [ILL]}
            await pilot.press("e")
            assert "cause   because" in app.text()
            await pilot.press("pagedown", "home")
            assert all(panels.length(line) <= size[0] for line in app.board.lines)
            assert "because" in app.export_screenshot()
            await pilot.press("q")
        assert app.return_code == 0

    asyncio.run(asyncio.wait_for(watch(), 60))


def test_the_screen_outlives_the_monitor_and_says_when_the_daemon_is_dead(tmp_path: Path) -> None:
    async def watch(daemon: Daemon) -> None:
        app = Watched(daemon, await board_of(daemon))
        async with app.run_test(size=(200, 24)):
            await app.until("ready", "worker 1")
            os.kill(daemon.children()["monitor"], signal.SIGKILL)
            await app.until("the monitor was replaced")
            os.kill(daemon.pid, signal.SIGKILL)
            await app.until("no daemon answers for", "not known: the broker does not answer")

    with running(write_config(tmp_path)) as daemon:
        daemon.complete(4)
        asyncio.run(asyncio.wait_for(watch(daemon), 60))


ILL = {
    "indicator": "cpu", "points": 40.0, "value": 1.0, "symptom": "busy", "impact": "slow",
    "cause": "because", "action": "wait",
}  # fmt: skip


def test_top_on_a_real_terminal_leaves_it_as_it_was(daemon: Daemon) -> None:
    on = OnTerminal("--run-dir", str(daemon.run_dir), "top", COLUMNS="80", LINES="24")
    on.expect("requests/s")
    on.expect("processes")
    on.type("q")
    assert on.end() == 0
    assert "\x1b[?1049l" in on.text, "the alternate screen is left"
    gone = OnTerminal("--run-dir", "/nonexistent", "--timeout", "0.2", "top", NO_COLOR="1")
    assert gone.end() == 3
    assert "monitor.sock" in gone.text
    assert "\x1b[?1049h" not in gone.text


@contextlib.contextmanager
def viewing(daemon: Daemon, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """walled-ctl in a process of its own, its output a pipe."""
    program = "from walled_client.ctl import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--run-dir", str(daemon.run_dir), *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, bufsize=0,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def line_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    text = b""
    while not text.endswith(b"\n"):
        assert select.select([process.stdout], [], [], 20.0)[0], "nothing was printed"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, "it ended"
        text += byte
    return text.decode()
