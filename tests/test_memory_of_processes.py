"""Memory of a running daemon: remedies at work, a leaking worker recycled in time, nothing lost by it."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from walled_client import Client

from tests.daemon_process import Daemon, running, write_config
from tests.worker_bench import BrokerEnd, RunningWorker, scripted_config
from walled import config as cfg
from walled import errors, monitor, protocol
from walled import link as lk
from walled.adapters import process
from walled.adapters.cache import CacheReader, CacheWriter
from walled.adapters.relief import SelfProbe, SelfRelief, limits_of
from walled.adapters.sockets import Hub, Poller
from walled.core.memory import Limits
from walled.core.record import Record

MB = 1_000_000
BUDGET = 120 * MB
LEAK_BYTES = 60_000
LATER_S = 10_000.0
"""Longer than a process waits before it looks again: 50 times what the last look and its remedies took, and
collecting the garbage of a process that has run many tests takes a second."""


def never_short() -> Any:
    """A machine that has memory to spare: these tests are about the process."""

    class Roomy:
        def memory(self) -> tuple[float, float]:
            return 16e9, 0.1

        def pressure(self) -> dict[str, float]:
            return {}

    return Roomy()


class Full(SelfProbe):
    """A process that has what the test says."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self.size_bytes = size_bytes

    def rss_bytes(self) -> int:
        return self.size_bytes

    def uss_bytes(self) -> int:
        return self.size_bytes


# --- in one process --------------------------------------------------------------------------------


def test_the_quick_figure_is_never_less_than_the_exact_one_and_both_see_an_allocation() -> None:
    probe = SelfProbe()
    rss, uss = probe.rss_bytes(), probe.uss_bytes()
    # Pages from the kernel: malloc may hand out what this process freed before and still has.
    with mmap.mmap(-1, 40 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
        assert probe.uss_bytes() - uss > 35 * MB
        assert probe.rss_bytes() - rss > 35 * MB
        assert probe.rss_bytes() >= probe.uss_bytes() - MB


def test_a_probe_without_proc_says_nothing_rather_than_fail(tmp_path: Path) -> None:
    assert SelfProbe(tmp_path).uss_bytes() == 0


def test_malloc_trim_gives_back_what_python_has_freed() -> None:
    """The trap of tests/adapters/test_probe.py, turned into a remedy."""
    process.give_freed_memory_back()
    blocks = [bytes(2000) for _ in range(20_000)]
    kept = blocks[::200]
    full = SelfProbe().uss_bytes()
    del blocks
    freed = SelfProbe().uss_bytes()
    assert freed > full - 10 * MB, "freed, yet still this process's own: else there is nothing to show"
    assert process.give_freed_memory_back()
    assert SelfProbe().uss_bytes() < freed - 20 * MB
    assert kept


def relief_of(probe: SelfProbe, **actions: Callable[[], object]) -> tuple[SelfRelief, Counter[str]]:
    counted: Counter[str] = Counter()

    def count(name: str, increment: int) -> None:
        counted[name] += increment

    config = cfg.MemoryConfig(settle_s=0.0)
    found = SelfRelief(
        config,
        limits_of(config, 100 * MB),
        count,
        actions,  # type: ignore[arg-type]
        probe=probe,
        system=never_short(),
    )
    return found, counted


def test_every_remedy_is_applied_in_order_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    probe = Full(50 * MB)
    names = ("cache_trim", "fewer_slots", "unload_idle", "recycle")
    relief, counted = relief_of(probe, **{name: lambda name=name: done.append(name) for name in names})
    relief.look(1.0)
    assert not done
    probe.size_bytes = 75 * MB
    relief.look(1 * LATER_S)
    assert done == list(names)
    assert counted == {f"memory_remedies_total.{name}": 1 for name in ("gc", "malloc_trim", *names)}
    assert relief.capped(8) == 4
    assert "75.0 MB of a budget of 100.0 MB" in caplog.text
    probe.size_bytes = 50 * MB
    relief.look(2 * LATER_S)
    assert relief.capped(8) == 8, "what was given up comes back"


def test_a_remedy_that_fails_is_counted_and_the_next_one_has_its_turn() -> None:
    def broken() -> None:
        raise OSError("no")

    probe, done = Full(50 * MB), []
    relief, counted = relief_of(probe, cache_trim=broken, recycle=lambda: done.append(1))
    relief.look(1.0)
    probe.size_bytes = 90 * MB
    relief.look(LATER_S)
    assert counted["memory_remedy_failures_total.cache_trim"] == 1
    assert done == [1]


def test_looking_takes_no_more_than_its_share_of_the_time() -> None:
    class Slow(Full):
        def rss_bytes(self) -> int:
            until_s = time.perf_counter() + 0.05
            while time.perf_counter() < until_s:
                pass
            return super().rss_bytes()

    probe = Slow(MB)
    relief, _ = relief_of(probe)
    relief.look(1.0)
    assert relief._due_s - 1.0 >= 0.05 / 0.02


def test_a_trimmed_cache_lets_go_of_its_pages_and_keeps_its_records(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, max_bytes=64 * MB, max_entries=1000)
    now_s = time.time()
    ends_s = [now_s + (1 if n == 0 else 100) for n in range(40)]
    records = [
        Record(bytes([n]) * 32, now_s, end_s, end_s, "", "m", "b", b"x" * 500_000)
        for n, end_s in enumerate(ends_s)
    ]
    assert writer.put_many(records, now_s) == 40
    for record in records:
        assert writer.get(record.key, now_s) is not None
    mapped = resident(tmp_path)
    assert mapped > 10 * MB
    assert writer.trim(now_s + 5) == 1, "what has expired goes"
    assert resident(tmp_path) == 0
    reader = CacheReader(tmp_path)
    assert all(reader.get(record.key, now_s) for record in records[1:])
    reader.close()
    writer.close()


def resident(directory: Path) -> int:
    path = str(directory / "data.mdb")
    return sum(m.rss for m in psutil.Process().memory_maps(grouped=False) if m.path == path)


# --- one worker ------------------------------------------------------------------------------------


def test_running_out_of_memory_is_a_typed_error_and_a_wish_for_a_new_process(tmp_path: Path) -> None:
    config = scripted_config(tmp_path)
    broker, worker = BrokerEnd(config), RunningWorker(config)
    try:
        broker.ready()
        broker.beat()
        broker.ask(b"job----A", "hello\n!bomb")
        assert broker.error(b"job----A").code == errors.BackendUnavailable.code
        broker.ask(b"job----B", "hello")
        assert broker.answer(b"job----B")[1].text, "it serves until its replacement comes"
        until_s = time.monotonic() + 5.0
        asks: list[lk.Ask] = []
        while not asks and time.monotonic() < until_s:
            worker.link.wait(0.5)
            asks = [message for message in worker.link.receive() if isinstance(message, lk.Ask)]
        assert [(ask.op, ask.why) for ask in asks] == [("worker.recycle", "it ran out of memory")]
    finally:
        worker.order("stop")
        worker.join()
        broker.close()


# --- the monitor -----------------------------------------------------------------------------------


def test_a_monitor_over_its_budget_says_so_saves_what_it_knows_and_makes_room_for_another(
    tmp_path: Path,
) -> None:
    config = cfg.from_plain(
        {
            "daemon": {"run_dir": str(tmp_path)},
            "memory": {"monitor_budget_bytes": 100 * MB, "check_interval_s": 0.05},
        }
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    supervisor = process.Link(ours)
    spawn = lk.Spawn("monitor", 0, "", b"", cfg.to_plain(config), os.getpid(), 1)
    found = monitor.Monitor(spawn, process.Link(theirs))
    probe = Full(30 * MB)
    found._relief._probe, found._relief._system = probe, never_short()
    hub = Hub()
    events = hub.subscriber(cfg.endpoints(tmp_path).metrics, [b"event.memory_remedy", b"metric.counters"])
    events.connect()
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(found.run()))
    thread.start()
    try:
        poller = Poller([events])
        while not (events.receive() and found._relief.gauges()["memory_uss_bytes"]):
            assert poller.wait(20.0), "nothing is published"
        probe.size_bytes = 90 * MB
        thread.join(20.0)
        assert status == [0]
        assert (tmp_path / monitor.STATE_FILE).exists()
        rows = found._registry.series("walled_events_total")
        counted = {labels["event"]: value for labels, value in rows}
        for remedy in ("gc", "malloc_trim", "recycle"):
            assert counted[f"memory_remedies_total.{remedy}"] == 1
        told: list[dict[str, Any]] = []
        while len(told) < 3 and poller.wait(5.0):
            found_now = [part for part in events.receive() if part[0] == b"event.memory_remedy"]
            told += [protocol.unpack_map(body) for _, body in found_now]
        assert [one["remedy"] for one in told] == ["gc", "malloc_trim", "recycle"]
        assert {one["process"] for one in told} == {"monitor"}
    finally:
        found._stopping = True
        thread.join(5.0)
        found.close()
        hub.close()
        supervisor.close()


# --- the daemon ------------------------------------------------------------------------------------


class Load:
    """Callers that ask without pause; every call must be answered."""

    def __init__(self, daemon: Daemon, question: str, threads: int = 3) -> None:
        self._daemon = daemon
        self._question = question
        self.answered = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        with Client(run_dir=self._daemon.run_dir, cache=False) as client:
            turn = 0
            while not self._stop.wait(0.01):
                turn += 1
                try:
                    text = client.chat(f"{number} {turn}\n{self._question}", deadline_s=20).text
                    wrong = "" if text.startswith(f"{number} {turn}") else f"wrong answer: {text[:40]}"
                except errors.WalledError as exc:
                    wrong = exc.code
                with self._lock:
                    self.answered += 1
                    if wrong:
                        self.failures.append(wrong)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


@pytest.mark.process
def test_a_leaking_worker_is_recycled_before_it_crosses_its_budget_and_no_request_is_lost(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, backend="workers = 1\nslots = 4")
    config.write_text(
        config.read_text()
        + f"\n[memory]\nworker_budget_bytes = {BUDGET}\ncheck_interval_s = 0.2\nsystem_percent = 99.0\n"
        + "system_critical_percent = 99.5\npsi_some_avg10 = 0.0\n"
    )
    with running(config) as daemon:
        daemon.complete(3)
        peaks: dict[int, int] = {}
        load = Load(daemon, f"!leak {LEAK_BYTES}")
        until_s = time.monotonic() + 40.0
        replaced = 0
        while replaced < 2 and time.monotonic() < until_s:
            for child in psutil.Process(daemon.pid).children():
                try:
                    if "worker" in " ".join(child.cmdline()):
                        peaks[child.pid] = max(peaks.get(child.pid, 0), child.memory_full_info().uss)
                except psutil.Error:
                    continue
            if daemon.look_for(r"worker 0 \(pid \d+, replaced\): exit status 0", 0.05):
                replaced += 1
        load.end()
        log = "\n".join(daemon.lines)
        assert replaced == 2, log
        assert load.failures == []
        assert load.answered > 300
        print(f"peaks of {load.answered} calls: {sorted(peaks.values())} of {BUDGET} bytes")
        assert max(peaks.values()) < BUDGET, peaks
        assert max(peaks.values()) > BUDGET / 3, "it did leak, or this shows nothing"
        for remedy in ("gc", "malloc_trim", "cache_trim", "recycle"):
            assert f"memory: {remedy} because" in log
        assert daemon.stop() == 0


def test_budgets_follow_the_configuration(tmp_path: Path) -> None:
    config = scripted_config(tmp_path)
    assert isinstance(limits_of(config.memory, 5), Limits)
    assert limits_of(config.memory, 5).system_ratio == config.memory.system_percent / 100
