"""Overload: goodput, refusals, a batch flood and memory, beside the same load sent straight to the backend.

May live here: this measurement and its schedule. May not: starting processes (daemon.py), printing.

Arrivals are open-loop: their times are drawn beforehand (Poisson, seeded) and kept whatever the answers do:
a slow server cannot slow its own load down. A latency counts from the scheduled time; how late the
generator sent is a figure of its own. The side without walled is the very same backend behind what a model
server puts in front of its slots: a first-come queue without bound, from which whoever gives up is removed.
Goodput counts only inside a window that leaves out the start and the draining after the last arrival;
refusals count wherever they fall.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from walled_client import AsyncClient

from walled.adapters.backend import Done, Event, Failed, Job
from walled.adapters.probe import ProcessSample
from walled.adapters.scripted import ScriptedBackend
from walled.config import ScriptedConfig
from walled.errors import WalledError
from walled.payload import request_from
from walled_bench import questions
from walled_bench.daemon import Daemon, scripted
from walled_bench.figures import Figure, figure
from walled_bench.statistic import quantile

SLOTS = 8
TOKENS = 4
FIRST_TOKEN_S, TOKEN_S = 0.03, 0.01
SERVICE_S = FIRST_TOKEN_S + (TOKENS - 1) * TOKEN_S
CAPACITY = SLOTS / SERVICE_S
SEED = 7
MEMORY_EVERY_S = 0.25


class Scale(NamedTuple):
    """How long and how hard."""

    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Of the capacity; the last one is what the goals speak of."""
    seconds: float = 10.0
    warm_s: float = 2.0
    deadline_s: float = 1.5
    together: bool = False
    """Both sides at the same time: quicker, and they take each other's processor."""


QUICK = Scale((1.0, 4.0), 0.7, 0.2, 0.5, together=True)


class Shot(NamedTuple):
    """One request: seconds since the start of its run."""

    scheduled_s: float
    sent_s: float
    done_s: float
    outcome: str
    """answered, degraded, or the code of its error."""


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


def goodput(shots: Sequence[Shot], scale: Scale) -> float:
    """Answers a second that came within their deadline, inside the window."""
    good = sum(
        shot.outcome == "answered"
        and shot.done_s - shot.scheduled_s <= scale.deadline_s
        and scale.warm_s <= shot.done_s < scale.seconds
        for shot in shots
    )
    return good / (scale.seconds - scale.warm_s)


class Straight:
    """The backend without walled. A context manager; `ask` is one call of it."""

    def __init__(self, scale: Scale) -> None:
        self._deadline_s = scale.deadline_s
        self._backend = ScriptedBackend(
            ScriptedConfig(slots=SLOTS, tokens=TOKENS, first_token_s=FIRST_TOKEN_S, token_s=TOKEN_S), SLOTS
        )
        self._loop = asyncio.get_running_loop()
        self._waiting: OrderedDict[int, Job] = OrderedDict()
        self._calls: dict[int, asyncio.Future[str]] = {}
        self._numbers = itertools.count(1)
        self._running = 0

    def __enter__(self) -> Straight:
        self._model = self._backend.start(self._emitted).models[0].name
        return self

    def __exit__(self, *exc: object) -> None:
        self._backend.close()

    def _emitted(self, event: Event) -> None:
        if isinstance(event, Done | Failed):
            self._loop.call_soon_threadsafe(self._ended, event)

    def _ended(self, event: Done | Failed) -> None:
        self._running -= 1
        call = self._calls.pop(event.job_id, None)
        if call is not None and not call.done():
            call.set_result("answered" if isinstance(event, Done) else event.error.code)
        self._start()

    def _start(self) -> None:
        while self._waiting and self._running < SLOTS:
            _, job = self._waiting.popitem(last=False)
            self._running += 1
            self._backend.submit(job)

    async def ask(self, number: int) -> str:
        job_id = next(self._numbers)
        request = request_from({"kind": "chat", "messages": questions.chat(number)})
        call = self._calls[job_id] = self._loop.create_future()
        self._waiting[job_id] = Job(job_id, request, self._model, float("inf"))
        self._start()
        try:
            return await asyncio.wait_for(call, self._deadline_s)
        except TimeoutError:
            self._calls.pop(job_id, None)
            if self._waiting.pop(job_id, None) is None:
                self._backend.cancel(job_id)
            return "deadline_exceeded"


def through(client: AsyncClient, scale: Scale, base: int, priority: str) -> Ask:
    """The same request to walled. Every question is new, so that nothing is shared or stored; and none is
    sent again by the client, or the load would be another."""
    options: dict[str, Any] = {
        "deadline_s": scale.deadline_s, "priority": priority, "mode": "ai_only", "retries": 0,
    }  # fmt: skip

    async def ask(number: int) -> str:
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
        return asyncio.run(_measure(daemon, QUICK if quick else Scale()))


async def _measure(daemon: Daemon, scale: Scale) -> list[Figure]:
    memory = _Memory(daemon)
    async with AsyncClient(daemon.run_dir) as client, AsyncClient(daemon.run_dir) as other:
        await through(client, scale, 0, "normal")(0)
        # The broker has learned how long an answer takes, and its memory is warm.
        await fire(schedule(CAPACITY, scale.warm_s, SEED), through(client, scale, 1000, "normal"))
        before_bytes = memory.broker_bytes()
        async with memory.watching():
            figures = await _steps(client, scale)
            figures += await _flooded(client, other, scale)
        after_bytes = memory.broker_bytes()
    mib = 2**20
    return [
        *figures,
        figure("broker memory before the load", before_bytes / mib, "MiB"),
        figure(
            "broker memory, growth at its peak", (memory.peak_bytes - before_bytes) / mib, "MiB", at_most=32
        ),
        figure("broker memory, growth left after the load", (after_bytes - before_bytes) / mib, "MiB"),
    ]


async def _steps(client: AsyncClient, scale: Scale) -> list[Figure]:
    figures: list[Figure] = []
    rates: dict[str, list[float]] = {"walled": [], "straight": []}
    late_ms: list[float] = []
    last: list[Shot] = []
    for step, factor in enumerate(scale.factors):
        times = schedule(CAPACITY * factor, scale.seconds, SEED + step)
        with Straight(scale) as bare:
            sides: dict[str, Ask] = {
                "walled": through(client, scale, 100_000 * (step + 1), "normal"), "straight": bare.ask,
            }  # fmt: skip
            names = list(sides) if step % 2 else list(reversed(sides))
            if scale.together:
                runs = await asyncio.gather(*(fire(times, sides[name]) for name in names))
            else:
                runs = [await fire(times, sides[name]) for name in names]
        for name, shots in zip(names, runs, strict=True):
            rates[name].append(goodput(shots, scale))
            late_ms += [(shot.sent_s - shot.scheduled_s) * 1000 for shot in shots]
            if name == "walled":
                last = shots
        for name in sides:
            label = "walled" if name == "walled" else "straight to the backend"
            figures.append(
                figure(f"goodput at {factor:g} x capacity, {label}", rates[name][-1], "1/s", n=len(times))
            )
    shares = {name: _share(found[-1], max(found)) for name, found in rates.items()}
    return [
        *figures,
        figure("goodput at 4 x / peak, walled", shares["walled"], "ratio", at_least=0.9),
        figure("goodput at 4 x / peak, straight to the backend", shares["straight"], "ratio"),
        figure("goodput at 4 x / capacity, walled", rates["walled"][-1] / CAPACITY, "ratio"),
        *_endings(last),
        figure("lateness of the generator, p99", quantile(late_ms, 0.99), "ms", n=len(late_ms)),
    ]  # fmt: skip


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _endings(shots: list[Shot]) -> list[Figure]:
    """What became of the requests at 4 times the capacity."""
    refused_ms = [(shot.done_s - shot.sent_s) * 1000 for shot in shots if shot.outcome == "overloaded"]
    answered_ms = [(shot.done_s - shot.scheduled_s) * 1000 for shot in shots if shot.outcome == "answered"]
    dead = sum(shot.outcome == "deadline_exceeded" for shot in shots)
    return [
        figure("refusal at 4 x, p50", quantile(refused_ms, 0.5), "ms", n=len(refused_ms)),
        figure("refusal at 4 x, p99", quantile(refused_ms, 0.99), "ms", at_most=10, n=len(refused_ms)),
        figure("answer at 4 x, p50", quantile(answered_ms, 0.5), "ms", n=len(answered_ms)),
        figure("answer at 4 x, p99", quantile(answered_ms, 0.99), "ms", n=len(answered_ms)),
        figure("taken at 4 x, but not answered in time", dead, "requests", n=len(shots)),
    ]


async def _flooded(client: AsyncClient, other: AsyncClient, scale: Scale) -> list[Figure]:
    """Interactive requests at a fifth of the capacity: alone, and beside batch requests at four times it."""
    quiet = schedule(CAPACITY / 5, scale.seconds, SEED + 20)
    alone = await fire(quiet, through(client, scale, 1_000_000, "interactive"))
    flood = schedule(CAPACITY * 4, scale.seconds, SEED + 21)
    beside, batch = await asyncio.gather(
        fire(quiet, through(client, scale, 1_100_000, "interactive")),
        fire(flood, through(other, scale, 1_200_000, "batch")),
    )

    def p95_ms(shots: list[Shot]) -> float:
        times = [shot.done_s - shot.scheduled_s for shot in shots if shot.scheduled_s >= scale.warm_s]
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
        figure("goodput of the batch flood", goodput(batch, scale), "1/s", n=len(batch)),
        figure(
            "refusal of the batch flood, p99",
            quantile([(s.done_s - s.sent_s) * 1000 for s in batch if s.outcome == "overloaded"], 0.99), "ms",
        ),
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
