"""Processes that use a cache beside the test, some of them only to be killed.

Run as `python cache_actors.py ACTOR DIRECTORY ...`; each prints a line when there is something to wait for,
and ends when its stdin does.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import lmdb

from walled.adapters import cache_env
from walled.adapters.cache import CacheReader, CacheWriter
from walled.core.record import Record

NOW_S = 1_000_000.0
NOBODY = 65534
BIG = 300_000


def key_of(name: str, number: int) -> bytes:
    """A key that everybody can compute, spread over the tree."""
    return zlib.crc32(f"{name}{number}".encode()).to_bytes(4, "big") + number.to_bytes(28, "big")


def answer_of(key: bytes, size: int = 2000) -> bytes:
    """The one right answer for a key."""
    return (key * (size // 32 + 1))[:size]


def record(key: bytes, *, created_s: float = NOW_S, size: int = 2000, namespace: str = "default") -> Record:
    return Record(
        key,
        created_s,
        created_s + 1000,
        created_s + 2000,
        namespace,
        "model",
        "backend",
        answer_of(key, size),
    )


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def wait_for_the_end() -> None:
    sys.stdin.buffer.read()


# --- the actors --------------------------------------------------------------------------------------


def pin(directory: Path) -> None:
    """A reader that never ends its transaction."""
    env = lmdb.open(os.fspath(directory), readonly=True, max_dbs=8, max_readers=cache_env.MAX_READERS)
    txn = env.begin()
    say(pinned=txn.id())
    wait_for_the_end()


def fill_reader_table(directory: Path) -> None:
    """Takes every reader slot there is."""
    env = lmdb.open(os.fspath(directory), readonly=True, max_dbs=8, max_readers=cache_env.MAX_READERS)
    taken = []
    try:
        while True:
            taken.append(env.begin())
    except lmdb.ReadersFullError:
        say(taken=len(taken))
    wait_for_the_end()


def write(directory: Path, name: str, count: str, max_bytes: str, size: str) -> None:
    """Writes `count` records of `size` bytes, ten to a commit."""
    writer = CacheWriter(directory, max_bytes=int(max_bytes), max_entries=100_000)
    stored = 0
    for first in range(0, int(count), 10):
        numbers = range(first, min(first + 10, int(count)))
        batch = [record(key_of(name, number), size=int(size)) for number in numbers]
        stored += writer.put_many(batch, NOW_S)
    say(stored=stored, bypassed=writer.bypassed)


def kill_writers(directory: Path, kills: str) -> None:
    """Forks a writer and kills it at some point of a commit, again and again, reading all the while."""
    reader = CacheReader(directory)
    draw = random.Random(1)
    hits = 0
    lost = []
    for _ in range(int(kills)):
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            _write_for_ever(directory, tell)
        os.close(tell)
        commits = b""
        for _ in range(draw.randrange(1, 8)):
            ready, _, _ = select.select([told], [], [], 20)
            commits += os.read(told, 1) if ready else b""
        if commits.strip(b"7"):
            lost.append(commits.decode())
        for _ in range(draw.randrange(300)):  # so that the kill falls on another point each time
            key = key_of("k", draw.randrange(100))
            found = reader.get(key, NOW_S + 50)
            if found is not None:
                assert found.answer == answer_of(key)
                hits += 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
    say(hits=hits, corrupt=reader.corrupt, errors=reader.errors, lost=lost)


def _write_for_ever(directory: Path, tell: int) -> None:
    """Overwrites a hundred records again and again; a byte for each commit says how many it stored."""
    writer = CacheWriter(directory, max_bytes=4 << 20, max_entries=80)
    for turn in itertools.count():
        batch = [
            record(key_of("k", (turn * 7 + number) % 100), created_s=NOW_S + turn % 50) for number in range(7)
        ]
        os.write(tell, b"%d" % writer.put_many(batch, NOW_S + 50))


def write_under_file_limit(directory: Path) -> None:
    """Writes to a disk that is full: no file may grow past one megabyte (EFBIG, as ENOSPC would)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    writer = CacheWriter(directory, max_bytes=64 << 20, max_entries=100_000)
    stored = [writer.put_many([record(key_of("f", number), size=20_000)], NOW_S) for number in range(100)]
    found = [writer.get(key_of("f", number), NOW_S) for number in range(100)]
    say(
        stored=sum(stored),
        bypassed=writer.bypassed,
        found=sum(1 for each in found if each is not None),
        wrong=sum(1 for each in found if each is not None and each.answer != answer_of(each.key, 20_000)),
        problem=writer.stats().problem,
    )


def read_without_rights(directory: Path, group: str) -> None:
    """Reads and writes as nobody, in group `group`."""
    os.setgroups([])
    os.setgid(int(group))
    os.setuid(NOBODY)
    reader = CacheReader(directory)
    found = reader.get(key_of("r", 0), NOW_S)
    stats = reader.stats()
    reader.close()
    writer = CacheWriter(directory, max_bytes=1 << 20, max_entries=10)
    stored = writer.put_many([record(key_of("r", 1))], NOW_S)
    say(
        hit=found is not None, open=stats.open, problem=stats.problem, stored=stored, bypassed=writer.bypassed
    )


def fork(directory: Path) -> None:
    """Reads before and after a fork, on both sides, the parent with another thread reading all the while."""
    reader, second = CacheReader(directory), CacheReader(directory)
    key = key_of("r", 0)
    stop = threading.Event()
    misses = []

    def read_on() -> None:
        while not stop.is_set():
            found = second.get(key, NOW_S)
            if found is None or found.answer != answer_of(key):
                misses.append(found)

    assert reader.get(key, NOW_S) is not None
    thread = threading.Thread(target=read_on)
    thread.start()
    statuses = []
    for _ in range(20):
        generation = reader._env.generation
        pid = os.fork()
        if pid == 0:
            found = reader.get(key, NOW_S)
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0 if second.get(key, NOW_S) is not None else 1)
            below = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
            right = found is not None and found.answer == answer_of(key)
            own = reader._env.generation > generation  # opened by the child itself
            os._exit(0 if right and own and below == 0 and reader.errors == 0 else 1)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        assert reader.get(key, NOW_S) is not None
    stop.set()
    thread.join()
    say(statuses=statuses, misses=len(misses), errors=reader.errors + second.errors)


def fork_while_locked(directory: Path) -> None:
    """Forks while another thread is stuck in a read: the child must not hang, nor use the parent's."""
    reader = CacheReader(directory)
    assert reader.get(key_of("r", 0), NOW_S) is not None
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with reader._env.lock:
            locked.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    generation = reader._env.generation
    pid = os.fork()
    if pid == 0:
        found = [reader.get(key_of("r", 0), NOW_S + second) for second in range(3)]
        os._exit(0 if found == [None] * 3 else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    done.set()
    thread.join()
    hit = reader.get(key_of("r", 0), NOW_S) is not None
    say(status=status, hit=hit, reopened=reader._env.generation - generation, errors=reader.errors)


def read_while_closing(directory: Path) -> None:
    """Threads copy from the map while it is closed and reopened: unmapping under a copy would be SIGSEGV.

    The records are large because Python lets go of its lock while it computes the checksum of large data.
    """
    keep = CacheReader(directory)
    stop = threading.Event()
    wrong = []

    def read_on() -> None:
        number = 0
        while not stop.is_set():
            key = key_of("r", number % 20)
            found = keep.get(key, NOW_S)
            if found is None or found.answer != answer_of(key, BIG):
                wrong.append(key)
            number += 1

    threads = [threading.Thread(target=read_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(150):
        env = cache_env.acquire(directory)
        env.failed(lmdb.BadRslotError("closes at once, and is reopened by the next read"))
        cache_env.release(env)
    stop.set()
    for thread in threads:
        thread.join()
    say(wrong=len(wrong), hits=keep.hits, errors=keep.errors)


def read_loop(directory: Path) -> None:
    """Reads a hundred keys round and round until told to stop."""
    reader = CacheReader(directory)
    os.set_blocking(0, False)
    rounds = wrong = 0
    while True:
        for number in range(100):
            key = key_of("k", number)
            found = reader.get(key, NOW_S + rounds)
            if found is not None and found.answer != answer_of(key):
                wrong += 1
        rounds += 1
        if rounds == 1:
            say(started=True)
        if sys.stdin.buffer.read(1) is not None:
            break
    stats = reader.stats()
    say(wrong=wrong, hits=stats.hits + stats.stale_hits, corrupt=stats.corrupt, errors=stats.errors)


def reader_of_a_growing_map(directory: Path) -> None:
    """Maps the file, waits until another process has grown it past that map, reads again."""
    reader = CacheReader(directory)
    before = reader.get(key_of("r", 0), NOW_S)
    small_bytes = reader.stats().map_bytes
    say(started=before is not None)
    sys.stdin.buffer.readline()
    found = [reader.get(key_of("g", number), NOW_S) for number in range(0, 2_000, 100)]
    say(
        found=sum(1 for each in found if each is not None),
        before_bytes=small_bytes,
        after_bytes=reader.stats().map_bytes,
    )


def survive_damage(directory: Path, seed: str, trials: str) -> None:
    """Flips bytes in copies of a cache, each read to the end by a forked child that may crash.

    Says for each trial what the child came to and whether the walk over the plain bytes had noticed.
    """
    draw = random.Random(int(seed))
    original = (directory / "data.mdb").read_bytes()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    outcomes: dict[str, int] = {}
    for _ in range(int(trials)):
        copy = directory.parent / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        (copy / "lock.mdb").touch()
        damaged = bytearray(original)
        for _ in range(draw.choice([1, 1, 4, 64])):
            # half the damage where it hurts: in the heads of pages, which LMDB trusts
            page = draw.randrange(len(damaged) // 4096)
            where = page * 4096 + (draw.randrange(64) if draw.random() < 0.5 else draw.randrange(4096))
            damaged[where] ^= draw.randrange(1, 256)
        (copy / "data.mdb").write_bytes(damaged)
        noticed = bool(cache_env.structural_problems(copy))
        pid = os.fork()
        if pid == 0:
            signal.alarm(5)
            os._exit(_read_all(copy))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        word = {0: "right", 1: "wrong", 2: "raised"}.get(status, "crashed")
        name = f"{word}, {'noticed' if noticed else 'not noticed'}"
        outcomes[name] = outcomes.get(name, 0) + 1
    say(outcomes=outcomes)


def _read_all(directory: Path) -> int:
    """0: right answers and misses only; 1: a wrong answer; 2: an exception."""
    try:
        reader = CacheReader(directory)
        for number in range(200):
            key = key_of("r", number)
            found = reader.get(key, NOW_S)
            if found is not None and found.answer != answer_of(key):
                return 1
        reader.stats()
        reader.meta("model")
        reader.close()
    except BaseException:
        return 2
    return 0


ACTORS = {
    actor.__name__: actor
    for actor in (
        pin,
        fill_reader_table,
        write,
        kill_writers,
        write_under_file_limit,
        read_without_rights,
        fork,
        fork_while_locked,
        read_while_closing,
        read_loop,
        reader_of_a_growing_map,
        survive_damage,
    )
}


def main(arguments: Sequence[str]) -> None:
    actor, directory, *rest = arguments
    ACTORS[actor](Path(directory), *rest)  # type: ignore[operator]


if __name__ == "__main__":
    main(sys.argv[1:])
