"""A bounded random campaign: every kind of fault under every kind of load, and the books of it.

May live here: the order of the campaign, the prober, the outsiders, the judgement, the tables. May not: the
faults (faults.py), the callers (crowd.py), single books (ledger.py).

A real daemon, two scripted backends with the same model and a third to fall back on; the scripted backend
repeats the question, so every answer can be checked. Faults come for most of the time, at most TOGETHER at
once; then a quiet end without faults, in which everything must be well again. The daemon is started anew when
it, or its supervisor, was killed: as a service manager would.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from walled_client import AsyncClient
from walled_client.calls import Settings, chat

from walled.adapters.cache import CacheReader
from walled.config import endpoints
from walled.core.leak import theil_sen
from walled.errors import WalledError
from walled.payload import cache_key, scope, unpack_answer
from walled_bench import faults, questions
from walled_bench.crowd import LONGEST_S, STORED_QUESTIONS, Crowd
from walled_bench.daemon import Daemon, DaemonFailed, members, scripted
from walled_bench.faults import KINDS, Planned, World
from walled_bench.figures import Figure, figure
from walled_bench.ledger import GRACE_S, Book, Witness
from walled_bench.statistic import quantile

MODEL, ROUTE = "main", "shop"
TOKENS = 12
TOGETHER = 2
CALM_SHARE = 0.2
"""Of the time: the quiet end."""
CALM_MIN_S, CALM_MAX_S = 3.0, 60.0
RECOVERY_LIMIT_S = 15.0
"""After any fault a new request must have been answered by then."""
HANG_LIMIT_S = 5.0
OUTSIDERS = 2
SAMPLE_S = 1.0
WARM_UP_S = 45.0
"""The broker, above all, takes so long until its memory is as large as it stays."""
JUDGED_S = 12.0
"""A life that is judged for growth has at least so many seconds after its warm-up."""
GROWTH_LIMIT_MB_PER_MIN = 4.0
WORKER_BUDGET_BYTES = 120_000_000
BROKER_LIMIT_BYTES = 200_000_000
LOST_TO_A_FILE = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)
MB = 1e6


class Struck(NamedTuple):
    """One fault that was done."""

    kind: str
    recovery_s: float


class Outcome(NamedTuple):
    """What a campaign found."""

    seed: int
    struck: list[Struck]
    books: list[Book]
    witness: Witness
    deaf: tuple[int, int, int]
    """Endings of the deaf clients' requests: twice, never, wrong."""
    world: World
    outsiders_lost: int
    outsiders_broken: int
    ended_by_itself: list[int]
    orphans: int
    wrong_records: int
    exit_status: int | None
    growth: dict[str, list[float]]
    """Megabytes a minute of each life that was long enough, by role."""
    peaks: dict[str, float]
    """Megabytes of USS at the highest, by role."""
    calm_failures: int
    calm_calls: int
    real_disk: bool
    stall_s: float
    """The longest moment in which the machine ran nothing of the campaign."""


def configuration(templates: Path) -> dict[str, Any]:
    """Two backends with one model, one to fall back on, little of everything that is bounded."""
    config = scripted()
    backend = {"kind": "scripted", "tokens": TOKENS, "first_token_s": 0.01, "token_s": 0.002, "slots": 8}
    config |= {
        "backend": ["left", "right", "spare"],
        "default_model": ROUTE,
        "backends": {
            "left": {**backend, "model": MODEL, "workers": 2},
            "right": {**backend, "model": MODEL},
            "spare": {**backend, "model": "spare"},
        },
        "routes": {ROUTE: {"targets": [f"left/{MODEL}", f"right/{MODEL}", "spare/spare"]}},
        "templates": {"builtin": False, "files": [str(templates)]},
        "cache": {"max_bytes": 4 * 1024 * 1024, "max_entries": 200, "ttl_s": 5.0},
        "broker": {"client_backlog_bytes": 262144},
        "memory": {
            "worker_budget_bytes": WORKER_BUDGET_BYTES,
            "check_interval_s": 0.2,
            "system_percent": 99.0,
            "system_critical_percent": 99.5,
            "psi_some_avg10": 0.0,
        },
        # The campaign is not there to find out that the daemon gives up a child that is killed without end.
        "supervisor": {"restart_intensity": 1_000_000},
    }
    return config


def campaign(seconds: float, seed: int, say: Callable[[str], None] = lambda line: None) -> Outcome:
    """Run it for about that long. Raises only when the daemon cannot be used at all."""
    with tempfile.TemporaryDirectory(prefix="wc-") as scratch, faults.small_disk(Path(scratch)) as disk:
        directory = Path(scratch)
        templates = directory / "templates.toml"
        templates.write_text(questions.TEMPLATES)
        config = configuration(templates)
        daemon = Daemon(config, directory=directory, disk=disk)
        daemon.start()
        try:
            found = _Campaign(daemon, config, disk, seed, say)
            with found.stalls:
                return asyncio.run(found.run(seconds))
        finally:
            daemon.stop()


class _Campaign:
    """One campaign on the running loop."""

    def __init__(
        self,
        daemon: Daemon,
        config: dict[str, Any],
        disk: Path | None,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._daemon = daemon
        self._disk = disk
        self._seed = seed
        self._say = say
        self._endpoint = endpoints(daemon.run_dir).client
        self._crowd = Crowd(daemon, ROUTE, MODEL, TOKENS, seed)
        self.stalls = self._crowd.stalls
        self._world = World(daemon, self._crowd, config, disk)
        self._world.kill_outsider = self._kill_an_outsider
        self._plan: Iterator[Planned] = faults.plan(seed)
        self._numbers = itertools.count(9_000_000)
        self._prober = AsyncClient(daemon.run_dir, cache="bypass", model=ROUTE, mode="ai_only", retries=0)
        self._struck: list[Struck] = []
        self._sessions = {daemon.pid}
        self._ended_by_itself: list[int] = []
        self._outside = self._crowd.book("other processes")
        self._outsiders: list[asyncio.subprocess.Process] = []
        self._lost = self._broken = 0
        self._over = False
        self._samples: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        self._calm_failures = self._calm_calls = 0

    async def run(self, seconds: float) -> Outcome:
        calm_s = min(CALM_MAX_S, max(CALM_MIN_S, seconds * CALM_SHARE))
        until_s = time.monotonic() + seconds - calm_s
        self._crowd.begin(self._endpoint)
        watch = [asyncio.create_task(self._sample()), asyncio.create_task(self._keep())]
        watch += [asyncio.create_task(self._be_outside(self._seed + n)) for n in range(OUTSIDERS)]
        await self._strike(until_s)
        await self._calm(calm_s)
        self._over = True
        await self._crowd.end()
        for process in self._outsiders:
            if process.stdin is not None:
                process.stdin.close()
        await asyncio.wait(watch, timeout=LONGEST_S + 5)
        for task in watch:
            if not task.done():
                task.cancel()
                self._broken += 1
                self._outside.note("a client process did not end")
            elif task.exception() is not None:
                raise task.exception() or AssertionError
        await self._prober.close()
        return await asyncio.to_thread(self._outcome)

    # --- faults ----------------------------------------------------------------------------------

    async def _strike(self, until_s: float) -> None:
        running: set[asyncio.Task[None]] = set()
        for planned in self._plan:
            await asyncio.sleep(planned.gap_s)
            if time.monotonic() >= until_s:
                break
            alone = KINDS[planned.kind].alone
            while len(running) >= (1 if alone else TOGETHER):
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._one(planned))
            running.add(task)
            if alone:
                await asyncio.wait(running)
        if running:
            await asyncio.wait(running)

    async def _one(self, planned: Planned) -> None:
        self._say(f"{time.strftime('%H:%M:%S')}  {planned.kind}")
        began_s = time.monotonic()
        doing = asyncio.create_task(KINDS[planned.kind].do(self._world, random.Random(planned.seed)))
        # What a fault does first it does at once; a request of before it proves nothing.
        await asyncio.sleep(0)
        recovery_s = await self._success(began_s)
        self._struck.append(Struck(planned.kind, recovery_s))
        await doing
        if self._daemon.ended() is None:
            self._sessions.add(self._daemon.pid)

    async def _success(self, began_s: float) -> float:
        """Seconds until a new question is answered in full by a model; RECOVERY_LIMIT_S at most."""
        while time.monotonic() - began_s < RECOVERY_LIMIT_S:
            number = next(self._numbers)
            try:
                reply = await self._prober.chat(questions.chat(number), deadline_s=3.0)
            except WalledError:
                await asyncio.sleep(0.01)
                continue
            if reply.text == questions.echo(questions.last_turn(number), TOKENS):
                return time.monotonic() - began_s
        return RECOVERY_LIMIT_S

    async def _keep(self) -> None:
        """Start a daemon that ended by itself, and write that down."""
        while not self._over:
            status = self._daemon.ended()
            if status is not None and self._daemon.running:
                self._ended_by_itself.append(status)
                self._outside.note(f"the daemon ended by itself with {status}: {self._daemon.log_tail()}")
                await asyncio.to_thread(self._daemon.kill)
                with contextlib.suppress(DaemonFailed):
                    await asyncio.to_thread(self._daemon.start)
                    self._sessions.add(self._daemon.pid)
            await asyncio.sleep(0.1)

    async def _calm(self, seconds: float) -> None:
        """No more faults. Once all is well again every call must be answered in full."""
        self._say("quiet")
        until_s = time.monotonic() + seconds
        await self._all_there(until_s)
        while time.monotonic() < until_s:
            number = next(self._numbers)
            self._calm_calls += 1
            try:
                reply = await self._prober.chat(questions.chat(number), deadline_s=LONGEST_S)
                good = not reply.degraded
            except WalledError as error:
                good = False
                self._outside.note(f"in the quiet end a call failed: {error.code}")
            self._calm_failures += not good
            await asyncio.sleep(0.05)

    async def _all_there(self, until_s: float) -> None:
        """Wait until every process is ready; replacements of the last faults may still be on their way."""
        while time.monotonic() < until_s:
            with contextlib.suppress(WalledError):
                status = await self._prober.status(deadline_s=1.0)
                children = status.get("tree", {}).get("children", ())
                if len(children) >= 5 and all(child["phase"] == "ready" for child in children):
                    return
            await asyncio.sleep(0.1)
        self._calm_failures += 1
        self._outside.note("not every process was ready again in the quiet end")

    # --- clients in processes of their own ----------------------------------------------------------

    async def _be_outside(self, seed: int) -> None:
        """Keep one such client alive, and read its endings."""
        for turn in itertools.count():
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "walled_bench.outsider",
                str(self._daemon.run_dir), ROUTE, str(seed + 1000 * turn),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            self._outsiders.append(process)
            if self._over and process.stdin is not None:
                process.stdin.close()
            assert process.stdout is not None
            async for line in process.stdout:
                if line.endswith(b"\n"):  # the last words of one that was killed are none
                    self._write_down(json.loads(line))
            status = await process.wait()
            self._outsiders.remove(process)
            if -status in LOST_TO_A_FILE:
                self._lost += 1
                if not self._world.lost_files:
                    self._broken += 1
                    self._outside.note(f"a client process died by signal {-status} on a sound cache file")
            elif status not in (0, -signal.SIGKILL):
                self._broken += 1
                self._outside.note(f"a client process ended with {status}")
            if self._over:
                return

    def _write_down(self, report: dict[str, Any]) -> None:
        book, number = self._outside, report["number"]
        began_s = book.begin() - report["took_s"]
        if "source" in report:
            book.text_answer(
                report["source"], report["text"], number, began_s, report["deadline_s"],
                model=report["model"], degraded=report["degraded"],
            )  # fmt: skip
        elif "code" in report:
            book.coded(report["code"], began_s, report["deadline_s"])
        else:
            book.failed(RuntimeError(report["untyped"]), began_s, report["deadline_s"])

    def _kill_an_outsider(self) -> None:
        if self._outsiders:
            with contextlib.suppress(ProcessLookupError):
                self._outsiders[0].kill()

    # --- memory and the end ---------------------------------------------------------------------------

    async def _sample(self) -> None:
        while not self._over:
            if self._daemon.running:
                for sample in await asyncio.to_thread(self._sampled):
                    self._samples[sample[:2]].append(sample[2:])
            await asyncio.sleep(SAMPLE_S)

    def _sampled(self) -> list[tuple[str, int, float, float]]:
        now_s = time.monotonic()
        with contextlib.suppress(AssertionError):
            return [(s.name, s.pid, now_s, s.uss_bytes / MB) for s in self._daemon.sample().values()]
        return []

    def _outcome(self) -> Outcome:
        """After the last ending: stop, count what is left, look into the cache."""
        orphans = self._world.orphans + len(self._daemon.stop() if self._daemon.running else [])
        orphans += sum(len(members(session)) for session in self._sessions)
        growth: dict[str, list[float]] = defaultdict(list)
        peaks: dict[str, float] = {}
        for (name, _), points in self._samples.items():
            role = name.partition(" ")[0]
            if role not in ("supervisor", "broker", "monitor", "worker"):
                continue  # a child that has not got its title yet
            peaks[role] = max([peaks.get(role, 0.0), *(size for _, size in points)])
            settled = [point for point in points if point[0] >= points[0][0] + WARM_UP_S]
            if settled and settled[-1][0] - settled[0][0] >= JUDGED_S:
                growth[role].append(theil_sen(settled).value * 60)
        witness = self._crowd.witness
        assert witness is not None
        crowd = self._crowd
        return Outcome(
            self._seed, self._struck, crowd.books, witness,
            (crowd.deaf_twice, crowd.deaf_never, crowd.deaf_wrong), self._world, self._lost, self._broken,
            self._ended_by_itself, orphans, self._wrong_records(), self._daemon.exit_status,
            dict(growth), peaks, self._calm_failures, self._calm_calls, self._disk is not None,
            self.stalls.longest_s(),
        )  # fmt: skip

    def _wrong_records(self) -> int:
        """Stored answers that are readable and another question's. A damaged one is none."""
        reader = CacheReader(self._daemon.cache_dir)
        meta, wrong, now_s = reader.meta(MODEL), 0, time.time()
        for number in range(STORED_QUESTIONS) if meta is not None else ():
            context = {"number": str(number)}
            payload = chat(Settings(), questions.chat(number), {"temperature": 0}).payload
            assert meta is not None
            record = reader.get(cache_key(scope("default", context), meta.fingerprint, payload), now_s)
            wanted = questions.echo(questions.last_turn(number), TOKENS)
            wrong += record is not None and unpack_answer(record.answer).text != wanted
        reader.close()
        return wrong


# --- judgement ---------------------------------------------------------------------------------------


def figures(outcome: Outcome) -> list[Figure]:
    """The campaign as figures; counts that must be zero have that as their goal."""
    books, witness = outcome.books, outcome.witness
    asked = sum(book.begun for book in books)
    twice, never, deaf_wrong = outcome.deaf
    not_once = sum(abs(book.open) for book in books) + witness.never + witness.twice + twice + never
    wrong = sum(book.wrong for book in books) + witness.wrong + deaf_wrong
    none: list[tuple[str, int, int]] = [
        ("requests without exactly one ending", not_once, asked + witness.asked),
        ("wrong or truncated successes", wrong, asked + witness.asked),
        ("lesser answers not marked, or whole ones marked", sum(book.unmarked for book in books), asked),
        (f"calls more than {GRACE_S:g} s past their deadline", sum(book.hung for book in books), asked),
        ("errors without a type, malformed frames",
         sum(book.untyped for book in books) + witness.malformed, asked),
        ("wrong records in the cache after the end", outcome.wrong_records, STORED_QUESTIONS),
        ("processes left by a dead supervisor or after the end", outcome.orphans, len(outcome.struck)),
        ("ends of the daemon by itself", len(outcome.ended_by_itself), len(outcome.struck)),
        ("client processes broken", outcome.outsiders_broken, 0),
        ("calls not answered in full in the quiet end", outcome.calm_failures, outcome.calm_calls),
    ]  # fmt: skip
    found = [figure("chaos: faults", float(len(outcome.struck)), "")]
    found += [figure(f"chaos: {name}", float(value), "", at_most=0, n=n) for name, value, n in none]
    recoveries = [struck.recovery_s for struck in outcome.struck]
    world = outcome.world
    found += [
        figure("chaos: recovery, p50", quantile(recoveries, 0.5), "s", n=len(recoveries)),
        figure("chaos: recovery, longest", max(recoveries, default=0.0), "s",
               at_most=RECOVERY_LIMIT_S - 0.01, n=len(recoveries)),
    ]  # fmt: skip
    if world.gone_s:
        n = len(world.gone_s)
        found += [
            figure("chaos: a hung process is found and ended, longest", max(world.gone_s), "s",
                   at_most=HANG_LIMIT_S, n=n),
            figure("chaos: ... and another one is in its place, longest",
                   max(world.replaced_s, default=None), "s", n=len(world.replaced_s)),
        ]  # fmt: skip
    for role, slopes in sorted(outcome.growth.items()):
        found.append(
            figure(f"chaos: growth of a {role}, median of lives", quantile(slopes, 0.5), "MB/min",
                   at_most=GROWTH_LIMIT_MB_PER_MIN, n=len(slopes))
        )  # fmt: skip
    limits = {"worker": WORKER_BUDGET_BYTES / MB, "broker": BROKER_LIMIT_BYTES / MB}
    for role, peak in sorted(outcome.peaks.items()):
        found.append(figure(f"chaos: USS of a {role}, highest", peak, "MB", at_most=limits.get(role)))
    endings = _endings(books)
    whole = sum(endings[name] for name in ("model", "cache", "coalesced"))
    lesser = sum(endings[name] for name in Book.LESSER)
    ended = max(1, endings.total() - endings["withdrawn"])
    found += [
        figure("chaos: calls answered in full", whole / ended, "share", n=ended),
        figure("chaos: calls answered with less, marked", lesser / ended, "share", n=ended),
        figure("chaos: client processes lost to a damaged cache file", float(outcome.outsiders_lost), ""),
        figure("chaos: longest stall of the machine (taken off the times)", outcome.stall_s, "s"),
    ]
    return found


def _endings(books: list[Book]) -> Counter[str]:
    return sum((book.endings for book in books), Counter[str]())


def tables(outcome: Outcome) -> Iterator[str]:
    """The ledger and the faults, line by line."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    begun: Counter[str] = Counter()
    for book in outcome.books:
        rows[book.kind] += book.endings
        begun[book.kind] += book.begun
    layout = "{:<17}{:>7}{:>8}{:>8}{:>8}{:>10}{:>10}{:>8}  {}"
    yield "ledger"
    yield layout.format(
        "calls", "begun", "model", "cache", "stale", "fallback", "template", "taken", "errors by code"
    )
    begun["together"] = begun.total()
    for kind, endings in [*rows.items(), ("together", _endings(outcome.books))]:
        cached = endings["cache"] + endings["coalesced"]
        known = ("model", "cache", "coalesced", *Book.LESSER, "withdrawn")
        codes = ", ".join(f"{name} {count}" for name, count in endings.most_common() if name not in known)
        yield layout.format(
            kind, begun[kind], endings["model"], cached, endings["stale"],
            endings["fallback_model"], endings["template"], endings["withdrawn"], codes,
        ).rstrip()  # fmt: skip
    witness = outcome.witness
    yield (
        f"on the wire: {witness.asked} asked by hand, {witness.once} ended once, {witness.lost} lost with "
        f"their broker, {witness.twice} ended twice, {witness.never} never"
    )
    yield "model: answered by a model; cache: fresh, or shared with another's; taken: back, by the caller"
    yield ""
    yield "{:<24}{:>6}{:>14}{:>14}".format("faults", "times", "recovery p50", "longest")
    times: dict[str, list[float]] = defaultdict(list)
    for struck in outcome.struck:
        times[struck.kind].append(struck.recovery_s)
    for kind in KINDS:
        found = times.get(kind, [])
        if found:
            yield f"{kind:<24}{len(found):>6}{quantile(found, 0.5):>12.2f} s{max(found):>12.2f} s"
    for kind, count in outcome.world.not_done.items():
        yield f"({kind}: {count} times nobody was there to do it to)"
    disk = "a tmpfs of its own, really full" if outcome.real_disk else "a limit on the size of files"
    yield f"the full disk was {disk}"
    yield ""


def problems(outcome: Outcome) -> list[str]:
    """What the books noted, for people."""
    return [problem for book in outcome.books for problem in book.problems]
