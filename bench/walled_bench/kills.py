"""Figure 6: random SIGKILLs of workers, broker and monitor under load.

May live here: the campaign: load, kills, recovery, the checks after the end. May not: keeping the books
(ledger.py), starting the daemon (daemon.py).

Load: tasks on one AsyncClient that ask plain, streamed and cacheable questions, and the witness. The scripted
backend repeats the question, so every answer can be checked. Victims are drawn, with a seed, from the process
tree in the daemon's own status. Recovery: from the kill to the first success of a request that was sent after
it, by a client of its own that asks again at once when it gets an error. The next kill comes a random moment
after that recovery, so children also die while others are being replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from walled_client import AsyncClient
from walled_client.calls import Settings, chat

from walled.adapters.cache import CacheReader
from walled.adapters.cache_check import vet
from walled.config import endpoints
from walled.errors import WalledError
from walled.payload import cache_key, unpack_answer
from walled_bench import questions
from walled_bench.daemon import Daemon, members, scripted
from walled_bench.figures import Figure, figure
from walled_bench.ledger import Ledger, Witness
from walled_bench.statistic import Summary, of_blocks, quantile

ROLES = ("worker", "broker", "monitor")
TOKENS = 12
TASKS = 9
WORKERS = 2
DEADLINE_S = 8.0
RECOVERY_GOAL_S = 1.0
RECOVERY_LIMIT_S = 20.0
STORED_QUESTIONS = 40
LONGEST_PAUSE_S = 0.02
GAP_S = (0.02, 0.3)
WITNESS_EVERY_S = 0.02
VET_LIMIT_S = 30.0
KILLS = 200
IMPORTS = 3
QUICK_KILLS = 3


class Kill(NamedTuple):
    """One kill and what it cost."""

    role: str
    recovery_s: float


class Outcome(NamedTuple):
    """What a campaign found."""

    kills: list[Kill]
    ledger: Ledger
    witness: Witness
    late_replies: int
    malformed: int
    orphans: int
    records: int
    damaged: int
    exit_status: int | None
    imports_s: list[float]
    """What a new interpreter needs to import the broker, before and after: no recovery can be faster."""


def measure(quick: bool = False) -> list[Figure]:
    """The campaign as a part of `bench core`."""
    return figures(campaign(QUICK_KILLS if quick else KILLS, seed=1))


def campaign(count: int, seed: int) -> Outcome:
    """Run it. Everything it finds is in the outcome; it raises only when the daemon cannot be used at all."""
    config = scripted(tokens=TOKENS, first_token_s=0.003, token_s=0.001, slots=32, workers=WORKERS, seed=seed)
    # The campaign is not there to find out that the daemon gives up a child that is killed without end.
    config["supervisor"] = {"restart_intensity": 1_000_000}
    with Daemon(config) as daemon:
        session = daemon.pid
        imports_s = _import_times_s()
        kills, ledger, witness, counters = asyncio.run(_under_load(daemon, count, random.Random(seed)))
        imports_s += _import_times_s()
        left = daemon.stop()
        orphans = len(left) + len(members(session))
        records, damaged = _check_cache(daemon.cache_dir, ledger)
        return Outcome(
            kills, ledger, witness, counters["late_replies"], counters["malformed"], orphans, records,
            damaged, daemon.exit_status, imports_s,
        )  # fmt: skip


def _import_times_s() -> list[float]:
    times = []
    for _ in range(IMPORTS):
        began_s = time.monotonic()
        subprocess.run([sys.executable, "-P", "-c", "import walled.broker"], check=True, timeout=30)
        times.append(time.monotonic() - began_s)
    return times


async def _under_load(
    daemon: Daemon, count: int, draw: random.Random
) -> tuple[list[Kill], Ledger, Witness, dict[str, int]]:
    ledger = Ledger()
    stop = asyncio.Event()
    numbers = itertools.count(1_000_000)
    witness = Witness(endpoints(daemon.run_dir).client, TOKENS, DEADLINE_S)
    async with AsyncClient(daemon.run_dir, deadline_s=DEADLINE_S) as client:
        load = [
            asyncio.create_task(
                _ask(client, ledger, stop, numbers, ("plain", "stream", "stored")[n % 3], draw)
            )
            for n in range(TASKS)
        ]
        load.append(asyncio.create_task(_witness(witness, stop, numbers)))
        try:
            kills = await _kill(daemon, count, draw)
        finally:
            stop.set()
            await asyncio.wait(load, timeout=DEADLINE_S + 5)
        for task in load:
            if not task.done():
                task.cancel()
            elif task.exception() is not None:
                raise task.exception() or AssertionError
        counters = client.counters()
    # The last endings; no request of the witness may take longer than its deadline.
    end_s = time.monotonic() + DEADLINE_S + 2
    while witness.open and time.monotonic() < end_s:
        await asyncio.sleep(0.05)
        witness.drain()
    witness.close()
    return kills, ledger, witness, counters


async def _ask(
    client: AsyncClient,
    ledger: Ledger,
    stop: asyncio.Event,
    numbers: itertools.count[int],
    kind: str,
    draw: random.Random,
) -> None:
    while not stop.is_set():
        number = draw.randrange(STORED_QUESTIONS) if kind == "stored" else next(numbers)
        turns = questions.chat(number)
        wanted = questions.echo(questions.last_turn(number), TOKENS)
        began_s = ledger.begin()
        try:
            if kind == "stream":
                text = ""
                async with client.stream(turns) as stream:
                    async for chunk in stream:
                        text = chunk.text if chunk.restart else text + chunk.text
                if stream.reply.text != text:
                    ledger.wrong += 1
                    ledger.note("the chunks of a stream do not join to its reply")
                ledger.answered(stream.reply.source, text, wanted, began_s, DEADLINE_S)
            else:
                # A refreshed answer is generated and stored anew, so that kills also meet commits.
                fields: dict[str, Any] = {"temperature": 0} if kind == "stored" else {}
                if kind == "stored" and draw.random() < 0.5:
                    fields["cache"] = "refresh"
                reply = await client.chat(turns, **fields)
                ledger.answered(reply.source, reply.text, wanted, began_s, DEADLINE_S)
        except Exception as error:
            # Whatever it is, it is an ending; the ledger tells typed from untyped.
            ledger.failed(error, began_s, DEADLINE_S)
            await asyncio.sleep(0.01)
        await asyncio.sleep(draw.uniform(0, LONGEST_PAUSE_S))


async def _witness(witness: Witness, stop: asyncio.Event, numbers: itertools.count[int]) -> None:
    while not stop.is_set():
        witness.ask(next(numbers))
        await asyncio.sleep(WITNESS_EVERY_S)


async def _kill(daemon: Daemon, count: int, draw: random.Random) -> list[Kill]:
    kills: list[Kill] = []
    numbers = itertools.count(9_000_000)
    async with AsyncClient(daemon.run_dir, cache="bypass", deadline_s=DEADLINE_S) as client:
        while len(kills) < count:
            role, pid = await _victim(client, draw)
            killed_s = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                await _success(client, numbers, killed_s + RECOVERY_LIMIT_S)
                kills.append(Kill(role, time.monotonic() - killed_s))
            await asyncio.sleep(draw.uniform(*GAP_S))
    return kills


async def _victim(client: AsyncClient, draw: random.Random) -> tuple[str, int]:
    """A living child: first a role is drawn, then one of that role."""
    end_s = time.monotonic() + RECOVERY_LIMIT_S
    while time.monotonic() < end_s:
        try:
            status = await client.status(deadline_s=1.0)
        except WalledError:
            await asyncio.sleep(0.02)
            continue
        children = [child for child in status.get("tree", {}).get("children", ()) if child["pid"]]
        role = draw.choice(ROLES)
        found = [child["pid"] for child in children if child["role"] == role]
        if found:
            return role, draw.choice(found)
        await asyncio.sleep(0.02)
    raise RuntimeError(f"no living child in the daemon's status for {RECOVERY_LIMIT_S:g} s")


async def _success(client: AsyncClient, numbers: itertools.count[int], end_s: float) -> None:
    """Ask until an answer comes; a new question each time. Gives up at `end_s`."""
    while time.monotonic() < end_s:
        number = next(numbers)
        try:
            reply = await client.chat(questions.chat(number))
        except WalledError:
            await asyncio.sleep(0.005)
            continue
        if reply.text == questions.echo(questions.last_turn(number), TOKENS) and not reply.degraded:
            return
        raise RuntimeError("a wrong answer after a kill")


def _check_cache(directory: Path, ledger: Ledger) -> tuple[int, int]:
    """Records in the cache after the end, and how many are damaged or hold another question's answer."""
    result = vet(directory, VET_LIMIT_S)
    damaged = result.removed + (result.status != "sound")
    if result.status != "sound":
        ledger.note(f"the cache after the end: {result.status}: {result.detail}")
    reader = CacheReader(directory)
    meta = reader.meta("default")
    if meta is None:
        ledger.note(f"the cache after the end does not know the model: {reader.stats()}")
        return result.entries, damaged + 1
    now_s = time.time()
    for number in range(STORED_QUESTIONS):
        payload = chat(Settings(), questions.chat(number), {"temperature": 0}).payload
        record = reader.get(cache_key("default", meta.fingerprint, payload), now_s)
        wanted = questions.echo(questions.last_turn(number), TOKENS)
        if record is not None and unpack_answer(record.answer).text != wanted:
            damaged += 1
            ledger.note(f"the stored answer of question {number} is not its own")
    reader.close()
    return result.entries, damaged


def figures(outcome: Outcome) -> list[Figure]:
    """The campaign as figures; counts that must be zero have that as their goal."""
    kills, ledger, witness = outcome.kills, outcome.ledger, outcome.witness
    asked = ledger.begun + witness.asked
    slow = sum(kill.recovery_s > RECOVERY_GOAL_S for kill in kills)
    not_once = abs(ledger.open) + witness.never + witness.twice + outcome.late_replies
    odd = ledger.untyped + outcome.malformed + witness.malformed
    none: list[tuple[str, int, int]] = [
        ("requests without exactly one ending", not_once, asked),
        ("wrong or truncated successes", ledger.wrong + witness.wrong, asked),
        ("calls past their deadline", ledger.hung, ledger.begun),
        ("errors without a type, malformed frames", odd, asked),
        ("processes left after the end", outcome.orphans, len(kills)),
        ("damaged or wrong cache records", outcome.damaged, outcome.records),
        (f"recoveries over {RECOVERY_GOAL_S:g} s", slow, len(kills)),
    ]
    found = [figure("kills: SIGKILLs given", float(len(kills)), "")]
    found += [figure(f"kills: {name}", float(value), "", at_most=0, n=n) for name, value, n in none]
    found += [
        figure("kills: calls that failed with a typed error", _failed_share(ledger), "share", n=ledger.begun),
        figure("kills: witness requests lost with their broker", float(witness.lost), "", n=witness.asked),
    ]
    found.append(
        figure(
            "kills: bare start of an interpreter with the broker's modules", of_blocks(outcome.imports_s), "s"
        )
    )
    for role in ROLES:
        times = [kill.recovery_s for kill in kills if kill.role == role]
        if times:
            low, high = min(times), max(times)
            for label, share in (("p50", 0.5), ("p95", 0.95)):
                summary = Summary(quantile(times, share), low, high, len(times))
                found.append(figure(f"kills: recovery after a {role} died, {label}", summary, "s"))
    return found


def _failed_share(ledger: Ledger) -> float:
    good = sum(ledger.endings[source] for source in ("model", "cache", "coalesced", "stale"))
    return 1 - good / max(1, ledger.endings.total())
