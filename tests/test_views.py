"""What can be seen of a running daemon: the client's health, dashboard and statistics; walled-ctl's views.

One daemon for all; what must break a daemon has one of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from walled_client import AsyncClient, Client
from walled_client.subscriber import Subscriber

from tests.daemon_process import Daemon, running, write_config
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
