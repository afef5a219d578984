"""What the monitor costs, and how right it is: quantiles, the stream, leak verdicts, history.

May live here: this measurement. May not: starting daemons (daemon.py), simulated memory (leaks.py), printing.

The stream is switched between one message a second and a thousand by reloading the configuration, with the
same subscribers connected throughout, in blocks that alternate: a request's time is compared within a run.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from walled_client import Client, Subscriber

from walled.core.history import History
from walled_bench import leaks, questions
from walled_bench.daemon import Daemon, cpu_s, scripted
from walled_bench.figures import Figure, figure
from walled_bench.statistic import median, of_blocks, quantile, ratios

SUBSCRIBERS = 20
RATE = 1000
"""Messages a second."""
BLOCKS, REQUESTS = 16, 2000
PACE_S = 0.5
HIT_BLOCKS, HITS = 15, 2000
DAYS = 7


def measure(quick: bool = False) -> list[Figure]:
    return [*_quantiles(quick), *_stream(quick), *_hits(quick), *_leaks(quick), *_history(quick)]


# --- quantiles -----------------------------------------------------------------------------------------


def _quantiles(quick: bool) -> list[Figure]:
    """p95 of the registry beside the requests' own times, for several spreads of the backend's times."""
    errors: list[float] = []
    count = 60 if quick else 400
    for jitter in (0.2,) if quick else (0.1, 0.4, 0.9):
        config = scripted(tokens=4, slots=16, first_token_s=0.04, token_s=0.004, jitter=jitter)
        with Daemon(config) as daemon, Client(daemon.run_dir, cache=False) as client:

            def one(number: int, client: Client = client) -> float:
                return client.chat(questions.chat(number)).phases.total_ms / 1000

            with ThreadPoolExecutor(16) as pool:
                own = list(pool.map(one, range(count)))
            told = _phase(client, count)
            errors += [abs(told[f"p{p}_s"] / quantile(own, p / 100) - 1) for p in (50, 95, 99)]
    p95s = errors[1::3]
    return [
        figure("p95 of the registry, error against the requests'", of_blocks(p95s), "ratio", at_most=0.02),
        figure("p50, p95, p99 of the registry, largest error", max(errors), "ratio", at_most=0.02),
    ]


def _phase(client: Client, count: int) -> dict[str, float]:
    """The statistics of requests, once all have been told."""
    while True:
        found: dict[str, float] = client.stats(window_s=300)["phases"]["request"]
        if found["count"] >= count:
            return found


# --- the stream ----------------------------------------------------------------------------------------


@contextmanager
def _listeners(run_dir: Path, count: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "walled_bench.listeners", str(run_dir), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def _stream(quick: bool) -> list[Figure]:
    config = scripted(tokens=8, slots=16)
    blocks, count = (2, 50) if quick else (BLOCKS, REQUESTS)
    ways = ("calm", "busy", "again")
    p50s: dict[str, list[float]] = {name: [] for name in ways}
    p99s: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    published: list[float] = []
    with (
        Daemon({**config, "monitor": {"publish_interval_s": 1.0}}) as daemon,
        _listeners(daemon.run_dir, SUBSCRIBERS - 1),
        _listeners(daemon.run_dir, 1) as stopped,
        Client(daemon.run_dir, cache=False) as client,
    ):
        os.kill(stopped.pid, signal.SIGSTOP)
        with Subscriber(daemon.run_dir, topics=["metric.counters"]) as witness:
            for block in range(blocks + 1):
                for name in ways if block % 2 else reversed(ways):
                    interval_s = 1 / RATE if name == "busy" else 1.0
                    daemon.configure({**config, "monitor": {"publish_interval_s": interval_s}})
                    os.kill(daemon.pid, signal.SIGHUP)
                    _until_paced(witness, interval_s)
                    first, before = _newest(witness), daemon.sample()
                    began_s = time.perf_counter()
                    times = _times_us(client, count)
                    took_s = time.perf_counter() - began_s
                    last, after = _newest(witness), daemon.sample()
                    if not block:
                        continue
                    p50s[name].append(median(times))
                    p99s[name].append(quantile(times, 0.99))
                    cpu[name].append(cpu_s(before, after, "monitor") / took_s)
                    if name == "busy":
                        published.append((last - first) / took_s)
    n = blocks * count
    return [
        figure(f"messages published, {SUBSCRIBERS} subscribers, one stopped", of_blocks(published), "1/s"),
        figure(
            "request p50, 1,000 messages/s / 1 message/s",
            of_blocks(ratios(p50s["busy"], p50s["calm"]), n), "ratio", at_most=1.05,
        ),
        figure(
            "request p99, 1,000 messages/s / 1 message/s",
            of_blocks(ratios(p99s["busy"], p99s["calm"]), n), "ratio",
        ),
        figure(
            "request p50, 1 message/s / 1 message/s (the noise)",
            of_blocks(ratios(p50s["again"], p50s["calm"]), n), "ratio",
        ),
        figure("request p50 at 1 message/s", of_blocks(p50s["calm"], n), "us"),
        figure("monitor, processor time, 1 message/s", of_blocks(cpu["calm"]), "core", at_most=0.05),
        figure("monitor, processor time, 1,000 messages/s", of_blocks(cpu["busy"]), "core"),
    ]  # fmt: skip


def _until_paced(witness: Subscriber, interval_s: float) -> None:
    """Messages come at their new pace: half a second of them is neither far too few nor far too many."""
    wanted = PACE_S / interval_s
    for _ in range(60):
        _newest(witness)
        first, until_s = _newest(witness), time.perf_counter() + PACE_S
        while (left_s := until_s - time.perf_counter()) > 0:
            witness.next(left_s)
        count = _newest(witness) - first
        if wanted / 4 <= count <= 2 * wanted + 2:
            return
    raise RuntimeError(f"the monitor does not publish every {interval_s:g} s")


def _newest(witness: Subscriber) -> int:
    """The number of the last message that has come; waits for one."""
    seq = 0
    while (message := witness.next(0.0 if seq else 5.0)) is not None:
        seq = message.body.get("seq", seq)
    return seq


def _times_us(client: Client, count: int) -> list[float]:
    gc.collect()
    times = []
    clock = time.perf_counter_ns
    for number in range(count):
        turns = questions.chat(random.getrandbits(40) + number)
        began = clock()
        client.chat(turns)
        times.append((clock() - began) / 1000)
    return times


# --- hits that are told --------------------------------------------------------------------------------


def _hits(quick: bool) -> list[Figure]:
    """A hit of a client that tells its hits, beside one that does not."""
    blocks, count = (3, 200) if quick else (HIT_BLOCKS, HITS)
    asked = [questions.chat(number) for number in range(100)]
    with (
        Daemon(scripted(tokens=50, slots=16)) as daemon,
        Client(daemon.run_dir) as telling,
        Client(daemon.run_dir) as silent,
    ):
        local = silent._shared.cache
        assert local is not None
        local.stir = lambda: None
        for turns in asked:
            telling.chat(turns, temperature=0)
        p50s: dict[str, list[float]] = {"telling": [], "silent": []}
        for block in range(blocks + 1):
            ways: list[tuple[str, Client]] = [("telling", telling), ("silent", silent)]
            for name, client in ways if block % 2 else reversed(ways):
                gc.collect()
                times = [_hit_us(client, asked[place % len(asked)]) for place in range(count)]
                if block:
                    p50s[name].append(median(times))
        hits = telling.counters()["local_hits"]
        missing = _untold(telling, hits)
    return [
        figure(
            "cache hit p50, client that tells / that does not",
            of_blocks(ratios(p50s["telling"], p50s["silent"]), blocks * count), "ratio", at_most=1.05,
        ),
        figure("hits in clients that the monitor does not know of", missing, "count", at_most=0, n=hits),
    ]  # fmt: skip


def _hit_us(client: Client, turns: list[dict[str, Any]]) -> float:
    began = time.perf_counter_ns()
    client.chat(turns, temperature=0)
    return (time.perf_counter_ns() - began) / 1000


def _untold(client: Client, hits: int) -> float:
    """How many of them are still missing after five seconds."""
    until_s, told = time.monotonic() + 5.0, 0.0
    while told < hits and time.monotonic() < until_s:
        endings = client.stats(window_s=60)["endings"]
        told = sum(row["total"] for row in endings if row["source"] == "cache")
    return hits - told


# --- leaks, history ------------------------------------------------------------------------------------


def _leaks(quick: bool) -> list[Figure]:
    count = 20 if quick else 300
    found = []
    for kind in leaks.KINDS:
        share = leaks.verdicts(kind, count)["LEAK"] / count
        if kind.mb_per_h:
            found.append(figure(f"{kind.name}, found at 60 minutes", share, "share", at_least=0.95, n=count))
        else:
            found.append(figure(f"{kind.name}, false LEAK", share, "share", at_most=0.05, n=count))
    return found


def _history(quick: bool) -> list[Figure]:
    """Appending a second of 200 series, on the first day and on the last of seven simulated ones."""
    names = [f"walled_series_{number}" for number in range(20 if quick else 200)]
    history, at_s = History(), 1e9
    size: list[int] = []

    def second_us(step_s: float) -> float:
        nonlocal at_s
        at_s += step_s
        began = time.perf_counter_ns()
        for name in names:
            history.append(name, at_s, at_s % 7)
        return (time.perf_counter_ns() - began) / 1000

    def day(append: Callable[[float], float]) -> float:
        # Every 20th second is enough to fill the rings; the last seconds are taken one by one and timed.
        for _ in range(4320 if not quick else 400):
            append(20.0 if not quick else 216.0)
        times = [append(1.0) for _ in range(300)]
        size.append(sum(len(ring[2]) for rings in history.plain().values() for ring in rings))
        return median(times)

    days = [day(second_us) for _ in range(DAYS)]
    return [
        figure("history, one second of 200 series, day 1", days[0], "us"),
        figure("history, last day / first day", days[-1] / days[0], "ratio", at_most=1.5, n=DAYS),
        figure("history, bytes on day 7 / day 1", size[-1] / size[0], "ratio", at_most=1.0),
        figure("history, bytes of a series", size[-1] / len(names), "bytes"),
    ]
