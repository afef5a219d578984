"""Figure 2: the miss path from dict to answer, beside the bare prototype of the same work.

May live here: this measurement. May not: starting processes (daemon.py, prototype.py), printing.

Scripted backend without delays, one worker, requests that are not deterministic, so that nothing is stored or
shared. Latency at concurrency 1 by the sync client; rate and processor time with 64 tasks on one AsyncClient.
Prototype and daemon run in alternating blocks, because absolute times swing with whatever else the machine
does. The first block of each is warm-up and not counted. The garbage collector stays on.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Callable
from typing import Any

from walled_client import AsyncClient, Client

from walled_bench import questions
from walled_bench.daemon import Daemon, cpu_s, scripted
from walled_bench.figures import Figure, figure
from walled_bench.prototype import Prototype
from walled_bench.statistic import median, of_blocks, quantile, ratios

TOKENS = 40
CONCURRENCY = 64
SINGLE_BLOCKS, SINGLE_REQUESTS = 11, 300
FLOOD_BLOCKS, FLOOD_REQUESTS = 7, 4000


def measure(quick: bool = False) -> list[Figure]:
    """Latency, rate, processor time."""
    config = scripted(tokens=TOKENS, slots=128)
    # Stored answers are written behind one another; the cache must hold what a run stores.
    config["cache"] = {"max_entries": 20_000}
    numbers = itertools.count()
    with Daemon(config) as daemon:
        assert daemon.directory is not None
        with Prototype(daemon.directory / "bare", TOKENS) as bare:
            figures = _singles(daemon, bare, numbers, quick)
            figures += asyncio.run(_floods(daemon, bare, numbers, quick))
    return figures


def _singles(daemon: Daemon, bare: Prototype, numbers: itertools.count[int], quick: bool) -> list[Figure]:
    blocks, count = (2, 20) if quick else (SINGLE_BLOCKS, SINGLE_REQUESTS)
    p50s: dict[str, list[float]] = {"bare": [], "walled": [], "stored": []}
    p99s: list[float] = []
    with Client(daemon.run_dir) as client:
        ways: dict[str, Callable[[list[dict[str, Any]]], object]] = {
            "bare": bare.ask,
            "walled": client.chat,
            "stored": lambda turns: client.chat(turns, temperature=0),
        }
        for block in range(blocks + 1):
            order = list(ways)
            for name in order if block % 2 else reversed(order):
                # A commit to the disk takes its time; fewer of those will do.
                times = _times_us(ways[name], numbers, count // 5 if name == "stored" else count)
                if block:
                    p50s[name].append(median(times))
                    if name == "walled":
                        p99s.append(quantile(times, 0.99))
    n = blocks * count
    return [
        figure("miss, dict to answer, p50 at 1", of_blocks(p50s["walled"], n), "us", at_most=300),
        figure("miss, dict to answer, p99 at 1", of_blocks(p99s, n), "us"),
        figure("miss, bare prototype, p50 at 1", of_blocks(p50s["bare"], n), "us"),
        figure(
            "miss, walled / bare prototype, p50 at 1",
            of_blocks(ratios(p50s["walled"], p50s["bare"]), n), "ratio",
        ),
        figure("miss that is stored, p50 at 1", of_blocks(p50s["stored"], blocks * (count // 5)), "us"),
    ]  # fmt: skip


def _times_us(
    ask: Callable[[list[dict[str, Any]]], object], numbers: itertools.count[int], count: int
) -> list[float]:
    gc.collect()
    times = []
    clock = time.perf_counter_ns
    for number in itertools.islice(numbers, count):
        turns = questions.chat(number)
        began = clock()
        ask(turns)
        times.append((clock() - began) / 1000)
    return times


async def _floods(
    daemon: Daemon, bare: Prototype, numbers: itertools.count[int], quick: bool
) -> list[Figure]:
    blocks, count = (1, 200) if quick else (FLOOD_BLOCKS, FLOOD_REQUESTS)
    rates: dict[str, list[float]] = {"bare": [], "walled": [], "stored": []}
    cpu_us: dict[str, list[float]] = {
        name: [] for name in ("broker", "worker", "client", "all three", "apart", "bare")
    }
    async with AsyncClient(daemon.run_dir) as client:
        for block in range(blocks + 1):
            for name in ("bare", "walled", "stored") if block % 2 else ("stored", "walled", "bare"):
                asked = [questions.chat(number) for number in itertools.islice(numbers, count)]
                gc.collect()
                before, bare_s = daemon.sample(), bare.cpu_s()
                own_s, began_s = time.process_time(), time.perf_counter()
                if name == "bare":
                    bare.flood(asked, CONCURRENCY)
                elif name == "walled":
                    await _flood(client, asked, {})
                else:
                    await _flood(client, asked, {"temperature": 0})
                took_s = time.perf_counter() - began_s
                own_s = time.process_time() - own_s
                if not block:
                    continue
                rates[name].append(len(asked) / took_s)
                if name == "bare":
                    cpu_us["bare"].append((bare.cpu_s() - bare_s + own_s) * 1e6 / len(asked))
                if name == "walled":
                    after = daemon.sample()
                    broker, worker = (cpu_s(before, after, role) for role in ("broker", "worker"))
                    apart = cpu_s(before, after, "monitor") + cpu_s(before, after, "supervisor")
                    shares = (broker, worker, own_s, broker + worker + own_s, apart)
                    for share, values in zip(shares, cpu_us.values(), strict=False):
                        values.append(share * 1e6 / len(asked))
    n = blocks * count
    return [
        figure(f"requests answered at {CONCURRENCY}", of_blocks(rates["walled"], n), "1/s", at_least=12_000),
        figure(f"requests at {CONCURRENCY}, bare prototype", of_blocks(rates["bare"], n), "1/s"),
        figure(
            f"requests at {CONCURRENCY}, walled / bare prototype",
            of_blocks(ratios(rates["walled"], rates["bare"]), n), "ratio",
        ),
        figure(f"requests answered and stored at {CONCURRENCY}", of_blocks(rates["stored"], n), "1/s"),
        figure(
            "processor time a request: broker + worker + client",
            of_blocks(cpu_us["all three"], n), "us", at_most=150,
        ),
        *(
            figure(f"processor time a request: {name}", of_blocks(cpu_us[name], n), "us")
            for name in ("broker", "worker", "client")
        ),
        figure("processor time a request: bare prototype, all three", of_blocks(cpu_us["bare"], n), "us"),
        figure(
            "processor time a request: walled / bare prototype",
            of_blocks(ratios(cpu_us["all three"], cpu_us["bare"]), n), "ratio",
        ),
        figure("processor time a request: monitor + supervisor", of_blocks(cpu_us["apart"], n), "us"),
    ]  # fmt: skip


async def _flood(client: AsyncClient, asked: list[list[dict[str, Any]]], options: dict[str, Any]) -> None:
    """64 tasks until all are answered; an error or a wrong answer ends the bench: all must succeed."""
    left = iter(asked)

    async def work() -> None:
        for turns in left:
            reply = await client.chat(turns, **options)
            if not reply.text.startswith("Question"):
                raise RuntimeError("not the scripted answer")

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(work())
