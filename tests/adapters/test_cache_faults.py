"""The cache when disk and clock misbehave under a running process or daemon: bypassed, counted, healed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from cache_actors import NOW_S, key_of, record
from walled_client import Client

from tests.daemon_process import Daemon, running, write_config
from walled.adapters.cache import CacheReader, CacheWriter
from walled.core.policy import CLOCK_SLACK_S
from walled.core.record import ModelMeta

MIB = 1 << 20


# --- the clock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-3600.0, -86400.0 * 5, 3600.0, 86400.0 * 365])
def test_after_a_jump_of_the_clock_the_cache_never_lies_and_works_on(tmp_path: Path, jump_s: float) -> None:
    """No answer of another time is fresh; what is stored after the jump is found; and so on the way back."""
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=100)
    reader = CacheReader(tmp_path)
    assert writer.put_many([record(key_of("r", 1))], NOW_S) == 1
    assert reader.get(key_of("r", 1), NOW_S) is not None
    there_s = NOW_S + jump_s
    found = reader.get(key_of("r", 1), there_s)
    assert found is None or (jump_s > 0 and there_s < found.stale_until_s)
    assert writer.put_many([record(key_of("r", 2), created_s=there_s)], there_s) == 1
    assert reader.get(key_of("r", 2), there_s) is not None
    assert writer.put_meta([ModelMeta(name="m", backend="b", fingerprint=bytes(32))]) == 1
    assert reader.meta("m") is not None
    back_s = NOW_S + CLOCK_SLACK_S + 1
    assert writer.put_many([record(key_of("r", 3), created_s=back_s)], back_s) == 1
    assert reader.get(key_of("r", 3), back_s) is not None
    again = reader.get(key_of("r", 2), back_s)
    assert again is None or again.created_s <= back_s + CLOCK_SLACK_S
    reader.close()
    writer.close()


# --- writing fails ---------------------------------------------------------------------------------

WRITE_ERRORS = [
    lmdb.MapFullError("full"),
    lmdb.ReadonlyError("read-only"),
    lmdb.DiskError("No space left on device"),
    lmdb.CorruptedError("bad page"),
    lmdb.TxnFullError("too much"),
    lmdb.PanicError("panic"),
    OSError(28, "No space left on device"),
    OSError(30, "Read-only file system"),
]


@pytest.mark.parametrize("error", WRITE_ERRORS, ids=lambda error: f"{type(error).__name__}")
def test_any_error_of_a_commit_bypasses_is_counted_and_passes(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=100)
    assert writer.put_many([record(key_of("r", 1))], NOW_S) == 1

    def fail() -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(writer._env, "writing_txn", fail)
        assert writer.put_many([record(key_of("r", 2)), record(key_of("r", 3))], NOW_S) == 0
        assert writer.put_meta([ModelMeta(name="m", backend="b", fingerprint=bytes(32))]) == 0
        assert writer.purge() == 0
        assert writer.trim(NOW_S) == 0
    assert writer.bypassed == 2
    if not isinstance(error, lmdb.PanicError):  # that one is cured by opening anew, which has happened
        assert writer.stats().problem
    later_s = NOW_S + 5
    assert writer.put_many([record(key_of("r", 4), created_s=later_s)], later_s) == 1
    assert writer.get(key_of("r", 1), later_s) is not None
    writer.close()


def test_a_file_that_was_cut_is_set_aside_before_it_is_written_to(tmp_path: Path) -> None:
    """Its missing pages would be SIGBUS, and a writer's process lost, and the next one's."""
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=100)
    assert writer.put_many([record(key_of("r", n)) for n in range(50)], NOW_S) == 50
    truncated(tmp_path)
    assert writer.put_many([record(key_of("r", 51))], NOW_S) == 0, "at once: no look at the file is due yet"
    assert writer.bypassed == 1
    later_s = NOW_S + 5
    assert writer.put_many([record(key_of("r", 52), created_s=later_s)], later_s) == 1
    assert writer.get(key_of("r", 52), later_s) is not None
    assert len(list(tmp_path.glob("data.mdb.bad-*"))) == 1
    writer.close()


def test_the_lock_file_has_its_disk_space_before_it_is_mapped(tmp_path: Path) -> None:
    """A hole in it is SIGBUS on a full disk, for whoever comes first: a worker, or an application."""
    CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=100).close()
    lock = tmp_path / "lock.mdb"
    size_bytes = lock.stat().st_size
    assert lock.stat().st_blocks * 512 >= size_bytes > 65_000
    with lock.open("wb") as file:
        file.truncate(size_bytes)  # as LMDB makes it, all hole
    assert lock.stat().st_blocks == 0
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=100)
    assert writer.put_many([record(key_of("r", 1))], NOW_S) == 1
    assert lock.stat().st_blocks * 512 >= lock.stat().st_size == size_bytes
    writer.close()


# --- the daemon ------------------------------------------------------------------------------------


def truncated(directory: Path) -> None:
    with (directory / "data.mdb").open("r+b") as file:
        file.truncate(8192)


def emptied(directory: Path) -> None:
    with (directory / "data.mdb").open("r+b") as file:
        file.truncate(0)


def overwritten(directory: Path) -> None:
    size = (directory / "data.mdb").stat().st_size
    with (directory / "data.mdb").open("r+b") as file:
        file.write(b"\xa5" * size)


def flipped(directory: Path) -> None:
    """A bit in every page but the first, at places drawn with a seed."""
    dice = random.Random(5)
    size = (directory / "data.mdb").stat().st_size
    with (directory / "data.mdb").open("r+b") as file:
        for start in range(4096, size, 4096):
            place = start + dice.randrange(4096)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << dice.randrange(8)]))


def replaced(directory: Path) -> None:
    other = directory / "other"
    other.write_bytes(b"not a cache" * 10_000)
    other.replace(directory / "data.mdb")


def deleted(directory: Path) -> None:
    shutil.rmtree(directory)


@pytest.mark.process
@pytest.mark.parametrize("fault", [truncated, emptied, overwritten, flipped, replaced, deleted])
def test_a_daemon_whose_cache_is_destroyed_while_it_runs_answers_every_request(
    tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    """The client reads no file of its own here: truncating a file that is mapped may cost a process (SIGBUS).

    A daemon's process that is lost that way is replaced, and its requests run elsewhere.
    """
    with running(write_config(tmp_path)) as daemon, Client(run_dir=daemon.run_dir, cache=False) as client:
        daemon.complete(4)
        for number in range(20):
            ask(client, f"before {number}")
        assert ask(client, "before 0") == "cache", "or there is no cache that could be destroyed"
        fault(tmp_path / "cache")
        for number in range(20):
            ask(client, f"before {number}")
            ask(client, f"after {number}")
        until_s = time.monotonic() + 3.0  # longer than a look at the file is put off
        turn = 0
        while time.monotonic() < until_s:
            turn += 1
            ask(client, f"later {turn % 20}")
        serves(daemon)
        assert daemon.stop() == 0


@pytest.mark.process
def test_a_child_that_died_as_of_a_broken_file_has_the_file_looked_at_before_its_next_life(
    tmp_path: Path,
) -> None:
    with running(write_config(tmp_path)) as daemon, Client(run_dir=daemon.run_dir, cache=False) as client:
        children = daemon.complete(4)
        for number in range(20):
            ask(client, f"before {number}")
        truncated(tmp_path / "cache")
        os.kill(children["worker 0"], signal.SIGBUS)
        daemon.until("cache: .*set aside as")
        daemon.until("worker 0 ready")
        ask(client, "after")


def ask(client: Client, words: str) -> str:
    reply = client.chat(words, temperature=0, deadline_s=15)
    assert reply.text.startswith(words), "a wrong answer is worse than none"
    return reply.source


def serves(daemon: Daemon) -> None:
    assert daemon.control("status")["state"] == "ready"
