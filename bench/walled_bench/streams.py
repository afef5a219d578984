"""Figure 3: tokens relayed over ten streams, and what merging them costs the first token.

May live here: this measurement. May not: starting the daemon (daemon.py), printing.

The scripted backend hands out every token as an event of its own, at a scripted rate; the worker merges what
follows a PARTIAL within 10 ms. Rate: ten streams whose backend is faster than the relay, so that the relay is
the limit. First token: the time to a stream's first chunk, against the time of a whole one-token answer by
the same backend, which can never be merged; both alone, and both while ten paced streams run. First-token
times are taken by a client in another thread's place: one sync client, while the load runs in a process of
its own, so that the load's decoding is not counted as the daemon's delay.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from walled_client import AsyncClient, Client

from walled_bench import questions
from walled_bench.daemon import Daemon, scripted
from walled_bench.figures import Figure, figure
from walled_bench.statistic import median, of_blocks, quantile, ratios

STREAMS = 10
RATE_GOES, RATE_TOKENS = 7, 6000
FIRST_BLOCKS, FIRST_REQUESTS = 7, 60
FAST_TOKEN_S = 0.000_02
PACED_TOKEN_S = 0.001
LOAD_LIMIT_S = 60.0


def measure(quick: bool = False) -> list[Figure]:
    """Relay rate, then first tokens with and without load."""
    goes, tokens = (2, 300) if quick else (RATE_GOES, RATE_TOKENS)
    with Daemon(scripted(tokens=tokens, token_s=FAST_TOKEN_S, slots=32)) as daemon:
        rates, chunk_sizes = asyncio.run(_rates(daemon, goes, tokens))
    figures = [
        figure(f"tokens relayed over {STREAMS} streams", of_blocks(rates), "1/s", at_least=50_000),
        figure("tokens merged into one message, mean", of_blocks(chunk_sizes), "tokens"),
    ]
    blocks, requests = (2, 5) if quick else (FIRST_BLOCKS, FIRST_REQUESTS)
    # Long answers: when a stream is left after its first chunk there is still something to merge.
    with Daemon(scripted(tokens=2000, token_s=PACED_TOKEN_S, slots=32)) as daemon:
        figures += _first_tokens(daemon.run_dir, blocks, requests, "alone")
        with _load(daemon.run_dir):
            figures += _first_tokens(daemon.run_dir, blocks, requests, f"beside {STREAMS} streams")
    return figures


async def _rates(daemon: Daemon, goes: int, tokens: int) -> tuple[list[float], list[float]]:
    """Tokens per second of all streams together, and tokens per chunk, for each go; the first is warm-up."""
    rates: list[float] = []
    sizes: list[float] = []
    async with AsyncClient(daemon.run_dir) as client:
        for go in range(goes + 1):
            gc.collect()
            began_s = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_read(client, number, tokens)) for number in range(STREAMS)]
            took_s = time.perf_counter() - began_s
            if go:
                rates.append(STREAMS * tokens / took_s)
                sizes.append(STREAMS * tokens / sum(task.result() for task in tasks))
    return rates, sizes


async def _read(client: AsyncClient, number: int, tokens: int) -> int:
    """One stream to its end; how many chunks. The text must be the scripted one."""
    chunks = 0
    async with client.stream(questions.chat(number)) as stream:
        async for _ in stream:
            chunks += 1
    if stream.reply.text != questions.echo(questions.last_turn(number), tokens):
        raise RuntimeError("a stream did not give the scripted answer")
    return chunks


def _first_tokens(run_dir: Path, blocks: int, requests: int, where: str) -> list[Figure]:
    streamed: list[float] = []
    whole: list[float] = []
    tails: list[float] = []
    with Client(run_dir) as client:
        for block in range(blocks + 1):
            gc.collect()
            first_us: list[float] = []
            answer_us: list[float] = []
            for number in range(requests):
                turns = questions.chat(number)
                # The stream before this was left early; its cancellation must not be timed with the answer.
                client.chat(turns, max_tokens=1)
                began = time.perf_counter_ns()
                client.chat(turns, max_tokens=1)
                answer_us.append((time.perf_counter_ns() - began) / 1000)
                began = time.perf_counter_ns()
                with client.stream(turns) as stream:
                    next(stream)
                    first_us.append((time.perf_counter_ns() - began) / 1000)
            if block:
                streamed.append(median(first_us))
                whole.append(median(answer_us))
                tails.append(quantile(first_us, 0.95))
    n = blocks * requests
    return [
        figure(f"first token of a stream {where}, p50", of_blocks(streamed, n), "us"),
        figure(f"first token of a stream {where}, p95", of_blocks(tails, n), "us"),
        figure(f"whole one-token answer {where}, p50", of_blocks(whole, n), "us"),
        figure(
            f"first token / one-token answer {where}, p50",
            of_blocks(ratios(streamed, whole), n), "ratio", at_most=1.25,
        ),
    ]  # fmt: skip


@contextmanager
def _load(run_dir: Path) -> Iterator[None]:
    """Ten streams that never end, by a process of their own; running when the block begins."""
    command = [sys.executable, "-m", __name__, str(run_dir)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        if not select.select([child.stdout], [], [], 10)[0] or not json.loads(child.stdout.readline()):
            raise RuntimeError("the streams beside did not start")
        yield
        if child.poll() is not None:
            raise RuntimeError("the streams beside broke off")
    finally:
        child.stdin.close()
        child.stdout.close()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


async def _stream_for_ever(run_dir: Path) -> None:
    """Says `true` once every stream has given text; ends with its standard input."""
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def stopped() -> None:
        if not stop.done():
            stop.set_result(None)

    loop.add_reader(0, stopped)
    begun: set[int] = set()

    async def work(number: int) -> None:
        while True:
            async with client.stream(questions.chat(number)) as stream:
                async for _ in stream:
                    if number not in begun:
                        begun.add(number)
                        if len(begun) == STREAMS:
                            os.write(1, b"true\n")

    async with AsyncClient(run_dir) as client:
        tasks = [asyncio.create_task(work(number)) for number in range(STREAMS)]
        await asyncio.wait([stop, *tasks], timeout=LOAD_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


if __name__ == "__main__":
    asyncio.run(_stream_for_ever(Path(sys.argv[1])))
