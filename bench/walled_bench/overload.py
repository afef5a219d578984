"""Overload: goodput, refusals, a batch flood and memory, beside the same load sent straight to the backend.

May live here: this measurement and its schedule. May not: starting processes (daemon.py), printing.

Arrivals are open-loop: their times are drawn beforehand (Poisson, seeded) and kept whatever the answers do:
a slow server cannot slow its own load down. A latency counts from the scheduled time; how late the
generator sent is a figure of its own. The side without walled is a backend of the same slots and service time
behind a plain first-come queue, which does not know that its callers give up. Completions count only inside a
window that leaves out the start and the draining of the queue after the last arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from walled_client import AsyncClient

from walled.adapters.probe import ProcessSample
from walled.errors import WalledError
from walled_bench import questions
from walled_bench.daemon import Daemon, scripted
from walled_bench.figures import Figure, figure
from walled_bench.statistic import quantile

SLOTS = 8
TOKENS = 4
FIRST_TOKEN_S, TOKEN_S = 0.03, 0.01
SERVICE_S = FIRST_TOKEN_S + (TOKENS - 1) * TOKEN_S
CAPACITY = SLOTS / SERVICE_S
DEADLINE_S = 1.5
FACTORS = (0.5, 1.0, 2.0, 4.0)
SECONDS, WARM_S = 10.0, 2.0
QUICK_SECONDS, QUICK_WARM_S = 1.5, 0.5
SEED = 7
MEMORY_EVERY_S = 0.5


class Shot(NamedTuple):
    """One request: seconds since the start of its run."""

    scheduled_s: float
    sent_s: float
    done_s: float
    outcome: str
    """answered, degraded, or the code of its error."""

    @property
    def in_time(self) -> bool:
        return self.outcome == "answered" and self.done_s - self.scheduled_s <= DEADLINE_S


Ask = Callable[[int], Awaitable[str]]


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of arrival, exponentially apart."""
    dice = random.Random(seed)
    times, now_s = [], dice.expovariate(rate)
    while now_s < seconds:
        times.append(now_s)
        now_s += dice.expovariate(rate)
    return times


async def fire(times: Sequence[float], ask: Ask) -> list[Shot]:
    """Send at the scheduled times, whatever becomes of the earlier ones."""
    gc.collect()
    shots: list[Shot] = []
    began_s = time.perf_counter()

    async def one(number: int, scheduled_s: float) -> None:
        sent_s = time.perf_counter() - began_s
        outcome = await ask(number)
        shots.append(Shot(scheduled_s, sent_s, time.perf_counter() - began_s, outcome))

    async with asyncio.TaskGroup() as group:
        for number, scheduled_s in enumerate(times):
            if (ahead_s := scheduled_s - (time.perf_counter() - began_s)) > 0:
                await asyncio.sleep(ahead_s)
            group.create_task(one(number, scheduled_s))
    return shots


def goodput(shots: Sequence[Shot], warm_s: float, seconds: float) -> float:
    """Answers a second that came within their deadline, inside the window."""
    return sum(shot.in_time and warm_s <= shot.done_s < seconds for shot in shots) / (seconds - warm_s)


def straight() -> Ask:
    """The backend without walled: its slots behind a first-come queue without bound. A caller gives up at
    its deadline; the backend does not notice and works on."""
    slots = asyncio.Semaphore(SLOTS)
    working: set[asyncio.Task[None]] = set()

    async def work() -> None:
        async with slots:
            await asyncio.sleep(SERVICE_S)

    async def ask(number: int) -> str:
        task = asyncio.create_task(work())
        working.add(task)
        task.add_done_callback(working.discard)
        done, _ = await asyncio.wait((task,), timeout=DEADLINE_S)
        return "answered" if done else "deadline_exceeded"

    return ask


def through(client: AsyncClient, base: int, priority: str) -> Ask:
    """The same request to walled. Every question is new, so that nothing is shared or stored."""

    async def ask(number: int) -> str:
        options: dict[str, Any] = {"deadline_s": DEADLINE_S, "priority": priority, "mode": "ai_only"}
        try:
            reply = await client.chat(questions.chat(base + number), **options)
        except WalledError as error:
            return error.code
        if not reply.text.startswith("Question"):
            raise RuntimeError("not the scripted answer")
        return "degraded" if reply.degraded else "answered"

    return ask


def measure(quick: bool = False) -> list[Figure]:
    """All figures."""
    config = scripted(tokens=TOKENS, first_token_s=FIRST_TOKEN_S, token_s=TOKEN_S, slots=SLOTS)
    with Daemon(config) as daemon:
        return asyncio.run(_measure(daemon, quick))


async def _measure(daemon: Daemon, quick: bool) -> list[Figure]:
    seconds, warm_s = (QUICK_SECONDS, QUICK_WARM_S) if quick else (SECONDS, WARM_S)
    memory = _Memory(daemon)
    async with AsyncClient(daemon.run_dir) as client, AsyncClient(daemon.run_dir) as other:
        await through(client, 0, "normal")(0)
        # The broker has learned how long an answer takes, and its memory is warm.
        await fire(schedule(CAPACITY, 1.0, SEED), through(client, 1000, "normal"))
        before_bytes = memory.broker_bytes()
        async with memory.watching():
            figures = await _steps(client, seconds, warm_s)
            figures += await _flooded(client, other, seconds, warm_s)
        after_bytes = memory.broker_bytes()
    megabytes = [(memory.peak_bytes - before_bytes) / 2**20, (after_bytes - before_bytes) / 2**20]
    return [
        *figures,
        figure("broker memory, growth at its peak", megabytes[0], "MiB", at_most=32),
        figure("broker memory, growth left after the load", megabytes[1], "MiB"),
    ]


async def _steps(client: AsyncClient, seconds: float, warm_s: float) -> list[Figure]:
    figures: list[Figure] = []
    rates: dict[str, list[float]] = {"walled": [], "straight": []}
    refused_ms: list[float] = []
    slow_s: list[float] = []
    late_ms: list[float] = []
    dead = 0
    for step, factor in enumerate(FACTORS):
        times = schedule(CAPACITY * factor, seconds, SEED + step)
        base = 100_000 * (step + 1)
        sides: dict[str, Ask] = {"walled": through(client, base, "normal"), "straight": straight()}
        for name in sides if step % 2 else reversed(sides):
            shots = await fire(times, sides[name])
            rates[name].append(goodput(shots, warm_s, seconds))
            late_ms += [(shot.sent_s - shot.scheduled_s) * 1000 for shot in shots]
            if name == "walled" and factor == FACTORS[-1]:
                refused_ms = [
                    (shot.done_s - shot.sent_s) * 1000 for shot in shots if shot.outcome == "overloaded"
                ]
                slow_s = [shot.done_s - shot.scheduled_s for shot in shots if shot.outcome == "answered"]
                dead = sum(shot.outcome == "deadline_exceeded" for shot in shots)
        for name in sides:
            label = "walled" if name == "walled" else "straight to the backend"
            figures.append(
                figure(f"goodput at {factor:g} x capacity, {label}", rates[name][-1], "1/s", n=len(times))
            )
    peaks = {name: max(found) for name, found in rates.items()}
    return [
        *figures,
        figure("goodput at 4 x / peak, walled", rates["walled"][-1] / peaks["walled"], "ratio", at_least=0.9),
        figure(
            "goodput at 4 x / peak, straight to the backend",
            rates["straight"][-1] / peaks["straight"], "ratio",
        ),
        figure("goodput at 4 x / capacity, walled", rates["walled"][-1] / CAPACITY, "ratio"),
        figure("refusal at 4 x, p50", quantile(refused_ms, 0.5), "ms", n=len(refused_ms)),
        figure("refusal at 4 x, p99", quantile(refused_ms, 0.99), "ms", at_most=10, n=len(refused_ms)),
        figure("answer at 4 x, p50", quantile(slow_s, 0.5) * 1000, "ms", n=len(slow_s)),
        figure("answer at 4 x, p99", quantile(slow_s, 0.99) * 1000, "ms", n=len(slow_s)),
        figure("taken at 4 x, but not answered in time", dead, "requests"),
        figure("lateness of the generator, p99", quantile(late_ms, 0.99), "ms", n=len(late_ms)),
    ]  # fmt: skip


async def _flooded(client: AsyncClient, other: AsyncClient, seconds: float, warm_s: float) -> list[Figure]:
    """Interactive requests at a fifth of the capacity: alone, and beside batch requests at four times it."""
    quiet = schedule(CAPACITY / 5, seconds, SEED + 20)
    alone = await fire(quiet, through(client, 1_000_000, "interactive"))
    flood = schedule(CAPACITY * 4, seconds, SEED + 21)
    beside, batch = await asyncio.gather(
        fire(quiet, through(client, 1_100_000, "interactive")),
        fire(flood, through(other, 1_200_000, "batch")),
    )

    def p95_ms(shots: list[Shot]) -> float:
        times = [shot.done_s - shot.scheduled_s for shot in shots if shot.scheduled_s >= warm_s]
        return quantile(times, 0.95) * 1000

    lost = sum(shot.outcome != "answered" for shot in beside)
    unloaded_ms = p95_ms(alone)
    return [
        figure("interactive alone, p95", unloaded_ms, "ms", n=len(alone)),
        figure(
            "interactive beside a batch flood, p95", p95_ms(beside), "ms",
            at_most=round(1.2 * unloaded_ms + SERVICE_S * 1000, 1), n=len(beside),
        ),
        figure("interactive beside a batch flood, not answered", lost, "requests", at_most=0, n=len(beside)),
        figure("goodput of the batch flood", goodput(batch, warm_s, seconds), "1/s", n=len(batch)),
    ]  # fmt: skip


class _Memory:
    """Resident memory of the broker, looked at while the load runs."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.peak_bytes = 0

    def broker_bytes(self) -> int:
        sample: ProcessSample = self._daemon.sample()["broker"]
        self.peak_bytes = max(self.peak_bytes, sample.rss_bytes)
        return sample.rss_bytes

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                await asyncio.to_thread(self.broker_bytes)
                await asyncio.sleep(MEMORY_EVERY_S)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
