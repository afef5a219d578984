"""A real daemon with more to do than it can: who makes room, who comes back, what is seen of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from walled_client import AsyncClient, Client

from tests.daemon_process import DEADLINE_S, Daemon, running, write_config
from walled.errors import BackendOverloaded, Overloaded

pytestmark = pytest.mark.process

QUEUE = "[broker]\nqueue_max_requests = 2\n"
ONE_AT_A_TIME = "workers = 1\nslots = 1\ntokens = 4\nfirst_token_s = 0.05\ntoken_s = 0.05"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running(write_config(tmp_path, supervisor=QUEUE, backend=ONE_AT_A_TIME)) as found:
        yield found.ready()


async def until(daemon: Daemon, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until the daemon's status says so."""
    end_s = time.monotonic() + DEADLINE_S
    while not holds(await asyncio.to_thread(daemon.control, "status")):
        assert time.monotonic() < end_s


def test_a_better_class_takes_a_place_and_who_made_room_comes_back(daemon: Daemon) -> None:
    async def scene() -> None:
        async with AsyncClient(daemon.run_dir) as nightly, AsyncClient(daemon.run_dir) as people:
            first = asyncio.create_task(nightly.chat("first\n!slow 1", deadline_s=20))
            await until(daemon, lambda status: status["in_flight"] == 1)
            options: dict[str, Any] = {"priority": "batch", "deadline_s": 20}
            waits = asyncio.create_task(nightly.chat("waits", **options))
            await until(daemon, lambda status: status["queue"]["depth"] == 1)
            displaced = asyncio.create_task(nightly.chat("comes back", retries=9, **options))
            await until(daemon, lambda status: status["queue"]["depth"] == 2)
            with pytest.raises(Overloaded) as caught:
                await nightly.chat("no room", retries=0, **options)
            assert caught.value.retry_after_s is not None
            assert caught.value.retry_after_s > 0
            urgent = await people.chat("urgent", priority="interactive", deadline_s=20)
            assert (urgent.text, urgent.degraded) == ("urgent urgent urgent urgent", False)
            for task, text in ((first, "first"), (waits, "waits"), (displaced, "comes back")):
                reply = await task
                assert reply.text.startswith(text)
                assert reply.source == "model"
            status = await asyncio.to_thread(daemon.control, "status")
            assert status["counters"]["shed.displaced"] >= 1
            assert status["queue"]["depth"] == status["in_flight"] == 0

    asyncio.run(scene())


def test_a_backend_that_refuses_for_load_is_seen_to_be_handed_less(tmp_path: Path) -> None:
    config = write_config(tmp_path, backend="workers = 1\nslots = 8")
    with running(config) as daemon, Client(daemon.ready().run_dir) as client:
        with pytest.raises(BackendOverloaded):
            client.chat("now\n!fail backend_overloaded", retries=0, mode="ai_only", cache="bypass")
        end_s = time.monotonic() + DEADLINE_S
        while not any(row["value"] < 8 for row in client.dashboard()["metrics"]["walled_backend_limit"]):
            assert time.monotonic() < end_s
