"""Figure 5: ten conversations at once on the built-in model, beside the engine called directly.

May live here: this measurement. May not: starting daemon or engine (daemon.py, engine.py), printing.

Both sides run the same engine with the same slots and threads, loaded at the same time, and take turns: a
round is all ten conversations from their first turn to their last, each turn with the whole history. Greedy,
so that both say the same; nothing is cached. Throughput is completion tokens over the time of the round; the
daemon's cost is the ratio of two rounds that ran one after the other. Like is compared with like: whole
answers with the engine called for whole answers, streams with the engine called with a callback.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any, NamedTuple

from walled_client import AsyncClient, WalledError

from walled_bench import bargains
from walled_bench.daemon import Daemon, cpu_s
from walled_bench.engine import BareEngine
from walled_bench.figures import Figure, figure
from walled_bench.statistic import of_blocks, quantile, ratios

CONVERSATIONS = 10
SLOTS = 10
THREADS = 1
ROUNDS = 11
WAYS = ("whole", "streamed")
DEADLINE_S = 60.0
CONTEXT_TOKENS = 1024


class Round(NamedTuple):
    """What one round gave."""

    tokens: int
    took_s: float
    turn_s: list[float]
    first_s: list[float]
    cpu_s: float
    """Of all processes of the daemon and this one."""


def measure(quick: bool = False) -> list[Figure]:
    """Rounds in turn; the first of each side is warm-up."""
    rounds = 1 if quick else ROUNDS
    conversations, turns = (3, 2) if quick else (CONVERSATIONS, len(bargains.TURNS))
    engine: dict[str, Any] = {
        "kind": "embedded", "slots": SLOTS, "threads": THREADS, "context_tokens": CONTEXT_TOKENS,
    }  # fmt: skip
    config = {"backend": "model", "daemon": {"log_level": "warning"}, "backends": {"model": engine}}
    ours: dict[str, list[Round]] = {way: [] for way in WAYS}
    theirs: dict[str, list[tuple[int, float, float]]] = {way: [] for way in WAYS}
    with Daemon(config) as daemon:
        assert daemon.directory is not None
        with BareEngine(daemon.directory, SLOTS, THREADS, CONTEXT_TOKENS) as bare:
            for number in range(rounds + 1):
                for way in WAYS:
                    for which in ("bare", "walled") if number % 2 else ("walled", "bare"):
                        stream = way == "streamed"
                        if which == "bare":
                            direct = bare.round(conversations, turns, stream)
                            theirs[way] += [direct] if number else []
                        else:
                            mine = asyncio.run(_round(daemon, conversations, turns, stream))
                            ours[way] += [mine] if number else []
    name = f"{conversations} conversations"
    asked = rounds * conversations * turns * len(WAYS)
    whole = sum(len(each.turn_s) for way in WAYS for each in ours[way])
    found = [figure(f"{name}: share of answers complete", whole / asked, "", at_least=1, n=asked)]
    for way in WAYS:
        found += _figures(f"{name}, {way}", ours[way], theirs[way], 0.9 if way == "whole" else None)
    first = _blocks(ours["streamed"], "first_s", 0.95)
    return [*found, figure(f"{name}, streamed: first token, p95", first, "s")]


def _figures(
    name: str, ours: list[Round], theirs: list[tuple[int, float, float]], at_least: float | None
) -> list[Figure]:
    rates = [each.tokens / each.took_s for each in ours]
    bare_rates = [tokens / took_s for tokens, took_s, _ in theirs]
    cpu_ms = [each.cpu_s * 1000 / each.tokens for each in ours if each.tokens]
    bare_cpu_ms = [cpu * 1000 / tokens for tokens, _, cpu in theirs]
    same = ratios([each.tokens for each in ours], [tokens for tokens, _, _ in theirs])
    compared = of_blocks(ratios(rates, bare_rates))
    return [
        figure(f"{name}: answer, p95", _blocks(ours, "turn_s", 0.95), "s"),
        figure(f"{name}: answer, p50", _blocks(ours, "turn_s", 0.5), "s"),
        figure(f"{name}: tokens", of_blocks(rates), "1/s"),
        figure(f"{name}: tokens, engine called directly", of_blocks(bare_rates), "1/s"),
        figure(f"{name}: tokens, daemon / engine", compared, "ratio", at_least=at_least),
        figure(f"{name}: processor time a token, daemon and client", of_blocks(cpu_ms), "ms"),
        figure(f"{name}: processor time a token, engine", of_blocks(bare_cpu_ms), "ms"),
        figure(f"{name}: tokens of a round, daemon / engine", of_blocks(same), "ratio"),
    ]


def _blocks(rounds: list[Round], field: str, share: float) -> Any:
    values = [quantile(getattr(each, field), share) for each in rounds]
    return of_blocks(values, sum(len(getattr(each, field)) for each in rounds))


async def _round(daemon: Daemon, conversations: int, turns: int, stream: bool) -> Round:
    gc.collect()
    turn_s: list[float] = []
    first_s: list[float] = []
    tokens = 0

    async def talk(number: int) -> None:
        nonlocal tokens
        history = [{"role": "system", "content": bargains.system(number)}]
        for turn in bargains.TURNS[:turns]:
            history.append({"role": "user", "content": turn})
            asked_s = time.perf_counter()
            try:
                if stream:
                    async with client.stream(history, **options) as chunks:  # type: ignore[arg-type]
                        began_s = 0.0
                        async for _ in chunks:
                            began_s = began_s or time.perf_counter()
                    reply = chunks.reply
                else:
                    reply = await client.chat(history, **options)  # type: ignore[arg-type]
                    began_s = time.perf_counter()
            except WalledError:
                return  # not among the complete answers
            if reply.finish_reason not in ("stop", "length") or not reply.text or reply.degraded:
                return
            # Only whole answers count, for latency and for throughput.
            turn_s.append(time.perf_counter() - asked_s)
            first_s.append(began_s - asked_s)
            tokens += reply.usage.completion_tokens
            history.append({"role": "assistant", "content": reply.text})

    options = {"temperature": 0, "max_tokens": bargains.MAX_TOKENS, "cache": "bypass"}
    async with AsyncClient(daemon.run_dir, deadline_s=DEADLINE_S) as client:
        await client.models()  # the connection is no part of a round
        before, own_s = daemon.sample(), time.process_time()
        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(conversations):
                group.create_task(talk(number))
        took_s = time.perf_counter() - began_s
        cpu = cpu_s(before, daemon.sample(), "") + time.process_time() - own_s
    return Round(tokens, took_s, turn_s, first_s, cpu)
