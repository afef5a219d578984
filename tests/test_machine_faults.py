"""Faults of the machine under a running daemon: no memory, no disk, no descriptors, another time.

They are made with the kernel's own means (a memory cgroup, a small file system, resource limits), and the
clock with libfaketime; where those cannot be had the test is skipped and says why.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from walled_bench.faults import fill, small_disk
from walled_client import Client

from tests.calling import Callers
from tests.daemon_process import ended, running, write_config
from walled import errors

pytestmark = pytest.mark.process

MB = 1_000_000


def ask(client: Client, words: str) -> str:
    """Its source; a wrong answer is worse than none."""
    reply = client.chat(words, temperature=0, deadline_s=10)
    assert reply.text.startswith(words.partition("\n")[0])
    return reply.source


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Ask the world again and again; each `condition` is a call of the daemon and takes its time."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come to that in time"


# --- memory ----------------------------------------------------------------------------------------


class Cage:
    """A memory cgroup of version 1 or 2, with one process in it."""

    def __init__(self, pid: int, limit_bytes: int) -> None:
        self._version_1 = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
        root = Path("/sys/fs/cgroup/memory" if self._version_1 else "/sys/fs/cgroup")
        self._path = root / f"walled-test-{os.getpid()}"
        try:
            self._path.mkdir()
            limit = "memory.limit_in_bytes" if self._version_1 else "memory.max"
            (self._path / limit).write_text(str(limit_bytes))
            with contextlib.suppress(OSError):
                name = "memory.memsw.limit_in_bytes" if self._version_1 else "memory.swap.max"
                (self._path / name).write_text(str(limit_bytes) if self._version_1 else "0")
            (self._path / "cgroup.procs").write_text(str(pid))
        except OSError as exc:
            self.close()
            pytest.skip(f"no memory cgroup can be made here: {exc}")

    def kills(self) -> int:
        """How many of its processes the kernel has ended for want of memory."""
        text = (self._path / ("memory.oom_control" if self._version_1 else "memory.events")).read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._path.rmdir()


def test_a_worker_the_kernel_ends_for_want_of_memory_costs_time_only(tmp_path: Path) -> None:
    config = write_config(tmp_path, backend="workers = 1\nslots = 4")
    with running(config) as daemon, Client(run_dir=daemon.run_dir, cache=False) as client:
        children = daemon.complete(3)
        callers = Callers(daemon.run_dir)
        callers.more(5)
        cage = Cage(children["worker 0"], 40 * MB)
        try:
            reply = client.chat(f"swell\n!leak {100 * MB}", deadline_s=15)
            assert reply.text.startswith("swell"), "its second run is at a worker that may have the memory"
            assert reply.attempts == 2
            daemon.until(r"worker 0 \(pid \d+\) died: killed by SIGKILL; starting it again at once", 1)
            assert cage.kills() == 1
        finally:
            assert ended(children["worker 0"], 5.0)
            cage.close()
        callers.more(20)
        assert set(callers.end()) == {"answered"}
        after = daemon.children()
        assert (after["broker"], after["monitor"]) == (children["broker"], children["monitor"])
        assert daemon.stop() == 0


def test_for_want_of_memory_workers_go_first_then_the_monitor_and_the_broker_last(tmp_path: Path) -> None:
    with running(write_config(tmp_path)) as daemon:
        pids = daemon.complete(4) | {"supervisor": daemon.pid}
        points = {name: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for name, pid in pids.items()}
    assert points["worker 0"] == points["worker 1"] > points["monitor"]
    assert points["monitor"] > points["broker"] == points["supervisor"]


# --- disk ------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB for run directory and cache."""
    with small_disk(tmp_path) as found:
        if found is None:
            pytest.skip("a small file system cannot be mounted here (needs root)")
        yield found


def daemon_on(disk: Path) -> Path:
    config = write_config(disk)
    # More than the file system has: the file can never be as large as it may be.
    config.write_text(config.read_text().replace("[cache]", "[cache]\nmax_bytes = 400_000_000"))
    return config


def test_a_full_disk_costs_the_cache_and_nothing_else(disk: Path) -> None:
    """Every byte is taken: no answer is stored, no history, no manifest; all is answered and started."""
    config = daemon_on(disk)
    with running(config) as daemon, Client(run_dir=daemon.run_dir, cache=False) as client:
        children = daemon.complete(4)
        ask(client, "before")
        assert ask(client, "before") == "cache"
        callers = Callers(daemon.run_dir)
        filler = fill(disk)
        with pytest.raises(OSError, match="No space left"):
            (disk / "more").write_bytes(bytes(4096))
        (disk / "more").unlink()
        answer = "x" * 30_000
        for number in range(60):
            assert ask(client, f"question {number} {answer}") == "model"
        assert ask(client, "before") == "cache", "what is stored stays readable"
        for name in ("worker 0", "broker", "monitor"):
            os.kill(children[name], signal.SIGKILL)
            daemon.until(rf"supervisor: {name} ready")
        assert ask(client, "before") == "cache"
        assert ask(client, f"question 7 {answer}") == "model", "or the disk was not full"
        filler.unlink()
        until(lambda: ask(client, f"question 7 {answer}") == "cache")
        assert set(callers.end()) == {"answered"}
        assert not daemon.look_for("SIGBUS|SIGSEGV|defect", 0.0)
        assert daemon.stop() == 0


def test_a_daemon_starts_on_a_full_disk_and_tells_its_clients_when_there_is_room(disk: Path) -> None:
    config = daemon_on(disk)
    filler = fill(disk)
    with running(config) as daemon:
        daemon.complete(4)
        manifest = daemon.run_dir / "walled.json"
        assert not manifest.exists()
        with Client(run_dir=daemon.run_dir, cache=False) as client:
            assert ask(client, "anybody?") == "model"
            filler.unlink()
            until(manifest.exists)
            until(lambda: ask(client, "again") == "cache")
        assert daemon.stop() == 0


def test_on_a_read_only_disk_there_is_no_cache_and_every_answer(disk: Path) -> None:
    (disk / "cache").mkdir()
    config = write_config(disk.parent)
    config.write_text(config.read_text().replace(str(disk.parent / "cache"), str(disk / "cache")))

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)

    with running(config) as daemon, Client(run_dir=daemon.run_dir, cache=False) as client:
        daemon.complete(4)
        ask(client, "kept")
        assert ask(client, "kept") == "cache"
        assert daemon.stop() == 0
    remount("ro")
    with running(config) as daemon, Client(run_dir=daemon.run_dir, cache=False) as client:
        daemon.complete(4)
        with pytest.raises(OSError, match="Read-only"):
            (disk / "cache" / "more").touch()
        for number in range(20):
            assert ask(client, f"question {number % 5}") == "model"
        remount("rw")
        until(lambda: ask(client, "question 1") == "cache")
        assert ask(client, "kept") == "cache"
        assert daemon.stop() == 0


# --- descriptors -----------------------------------------------------------------------------------


@contextlib.contextmanager
def without_descriptors(pid: int, spare: int = 0) -> Iterator[None]:
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, hard))
    yield
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


def test_a_supervisor_without_descriptors_starts_nobody_until_it_has_some_again(tmp_path: Path) -> None:
    with running(write_config(tmp_path)) as daemon:
        children = daemon.complete(4)
        callers = Callers(daemon.run_dir)
        with without_descriptors(daemon.pid):
            os.kill(children["worker 0"], signal.SIGKILL)
            # Its own three descriptors of that child are free again, and not enough for another one.
            daemon.until("worker cannot be started: .*Too many open files")
            callers.more(20)
        daemon.until("worker 0 ready")
        callers.more(5)
        assert set(callers.end()) == {"answered"}
        assert daemon.stop() == 0


def test_a_monitor_short_of_descriptors_keeps_new_subscribers_out_and_lives(tmp_path: Path) -> None:
    """libzmq aborts at an `accept` without a descriptor: it must not come to that."""
    with running(write_config(tmp_path)) as daemon:
        pid = daemon.complete(4)["monitor"]
        with Client(run_dir=daemon.run_dir) as client:
            until(lambda: bool(client.stats()))
        with without_descriptors(pid, spare=4):
            daemon.until("monitor: file descriptors are short; new subscribers are kept out", 5)
            for _ in range(10):
                with Client(run_dir=daemon.run_dir) as client:
                    assert ask(client, "anybody?")
                    with pytest.raises(errors.WalledError):
                        client.health(deadline_s=0.3)
        daemon.until("monitor: file descriptors are no longer short", 5)
        with Client(run_dir=daemon.run_dir) as client:
            assert client.health()
        assert daemon.children()["monitor"] == pid
        assert daemon.stop() == 0


# --- the clock -------------------------------------------------------------------------------------


def libfaketime() -> Path:
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        pytest.skip("libfaketime is not installed (there is a wheel for Linux on x86-64 only)")
    return Path(found.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"


def test_a_clock_that_jumps_back_and_forward_costs_at_most_cached_answers(tmp_path: Path) -> None:
    """The wall clock of every process of the daemon is set; the monotonic one goes on, as the kernel's."""
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    environment = {
        "LD_PRELOAD": str(libfaketime()),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }

    def set_to(offset: str) -> None:
        fresh = tmp_path / "clock.new"
        fresh.write_text(offset + "\n")
        fresh.replace(clock)

    with (
        running(write_config(tmp_path), environment=environment) as daemon,
        Client(run_dir=daemon.run_dir, cache=False) as client,
    ):
        children = daemon.complete(4)
        callers = Callers(daemon.run_dir)
        ask(client, "kept")
        assert ask(client, "kept") == "cache"
        for offset in ("-1d", "+30d", "-400d", "+0"):
            set_to(offset)
            began_s = time.monotonic()
            assert client.chat("slow\n!slow 0.3", deadline_s=5).text.startswith("slow")
            assert 0.3 <= time.monotonic() - began_s < 3.0, "no time of a request hangs on the wall clock"
            if offset != "+0":
                assert ask(client, "kept") == "model", f"at {offset} the answer is of another time"
            assert ask(client, "kept") in ("cache", "model")
            assert ask(client, f"new at {offset}") == "model"
            assert ask(client, f"new at {offset}") == "cache", f"at {offset} nothing is stored"
            callers.more(10)
        reply = client.chat("kept", temperature=0)
        assert reply.age_s >= 0
        # Longer than a child may be silent: nobody takes a jump for silence.
        assert not daemon.look_for("killing it|died|defect", 4.5)
        assert daemon.children() == children
        assert set(callers.end()) == {"answered"}
        assert daemon.control("status")["state"] == "ready"
        assert daemon.stop() == 0
