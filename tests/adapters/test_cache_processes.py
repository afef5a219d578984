"""The cache between processes: killed readers and writers, full tables, maps and disks, rights, forks."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_actors import BIG, NOW_S, answer_of, key_of, record

from walled.adapters import cache_env
from walled.adapters.cache import CacheReader, CacheWriter

pytestmark = pytest.mark.process

MIB = 1 << 20
DEADLINE_S = 30.0
ROOT = Path(__file__).parents[2]


class Actor:
    """A process of cache_actors.py."""

    def __init__(self, name: str, directory: Path, *arguments: object) -> None:
        command = [sys.executable, str(Path(__file__).with_name("cache_actors.py")), name, str(directory)]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def says(self) -> dict[str, Any]:
        """Its next line; fails when none comes in time."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        assert readable, "the process said nothing in time"
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait(DEADLINE_S)}"
        found: dict[str, Any] = json.loads(line)
        return found

    def tell(self, line: bytes = b"\n") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)


Starter = Callable[..., Actor]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Starts actors; whatever is left of them at the end is killed."""
    actors: list[Actor] = []

    def starter(name: str, directory: Path, *arguments: object) -> Actor:
        actors.append(Actor(name, directory, *arguments))
        return actors[-1]

    yield starter
    for actor in actors:
        actor.close()


def filled(directory: Path, count: int, *, max_bytes: int = 8 * MIB, size: int = 2000) -> None:
    """A cache with the records r0, r1, ..., closed again."""
    writer = CacheWriter(directory, max_bytes=max_bytes, max_entries=100_000)
    assert writer.put_many([record(key_of("r", n), size=size) for n in range(count)], NOW_S) == count
    writer.close()


# --- readers that die or do not move ------------------------------------------------------------------


def test_a_dead_reader_pins_pages_until_the_reader_check(tmp_path: Path, start: Starter) -> None:
    """1.1 MB grew to 33.7 MB in 1,000 commits [ran]."""
    writer = CacheWriter(tmp_path, max_bytes=16 * MIB, max_entries=50)

    def turn_over(first: int) -> int:
        """50 commits that replace the whole content; how much the file grew, in bytes."""
        before = (tmp_path / "data.mdb").stat().st_size
        for number in range(first, first + 50):
            batch = [record(key_of("r", 10 * number + n), created_s=NOW_S + number) for n in range(10)]
            assert writer.put_many(batch, NOW_S + number) == 10
        return (tmp_path / "data.mdb").stat().st_size - before

    turn_over(0)
    turn_over(50)
    reader = start("pin", tmp_path)
    reader.says()
    reader.kill()
    assert writer.stats().readers == 2
    grown_bytes = turn_over(100)
    assert grown_bytes > 50 * 10 * 2000, "every page of the dead reader's snapshot and after is kept"
    assert writer.stats().free_pages * 4096 > 1.5 * writer.stats().live_bytes
    assert writer.reader_check() == 1
    assert writer.stats().readers == 1
    turn_over(150)
    assert turn_over(200) == 0, "the pages are used again"


def test_a_full_map_bypasses_and_heals(tmp_path: Path, start: Starter) -> None:
    writer = CacheWriter(tmp_path, max_bytes=MIB, max_entries=1000)
    assert writer.put_many([record(key_of("r", 0))], NOW_S) == 1
    reader = start("pin", tmp_path)
    reader.says()
    stored = [writer.put_many([record(key_of("f", n), size=200_000)], NOW_S) for n in range(150)]
    assert 0 in stored, "17 MiB of map hold no 30 MB of pinned pages"
    assert writer.bypassed == stored.count(0)
    assert "MDB_MAP_FULL" in writer.stats().problem
    last = 149 - stored[::-1].index(1)
    found = writer.get(key_of("f", last), NOW_S)
    assert found is None or found.answer == answer_of(key_of("f", last), 200_000)
    assert (tmp_path / "data.mdb").stat().st_size <= 17 * MIB
    reader.kill()  # the next put finds the dead reader by itself
    stored = [writer.put_many([record(key_of("h", n), size=200_000)], NOW_S) for n in range(30)]
    assert stored == [1] * 30
    assert writer.get(key_of("h", 29), NOW_S) is not None
    assert writer.stats().live_bytes <= MIB


def test_a_full_reader_table_is_misses_until_the_dead_are_cleared(tmp_path: Path, start: Starter) -> None:
    filled(tmp_path, 1)
    crowd = start("fill_reader_table", tmp_path)
    assert crowd.says()["taken"] == cache_env.MAX_READERS
    reader = CacheReader(tmp_path)
    assert reader.get(key_of("r", 0), NOW_S) is None
    assert "MDB_READERS_FULL" in reader.stats().problem
    crowd.kill()
    # The last process to go leaves the lock file to the first that comes, which clears it.
    assert reader.get(key_of("r", 0), NOW_S + 1) is not None


def test_a_reader_table_full_of_the_dead_is_cleared_by_a_writer_that_was_there(
    tmp_path: Path, start: Starter
) -> None:
    filled(tmp_path, 1)
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=10)
    assert writer.get(key_of("r", 0), NOW_S) is not None
    crowd = start("fill_reader_table", tmp_path)
    assert crowd.says()["taken"] == cache_env.MAX_READERS - 1
    late = start("read_loop", tmp_path)
    late.says()
    assert writer.get(key_of("r", 0), NOW_S) is not None, "whoever has a slot keeps it"
    crowd.kill()
    assert writer.reader_check() == cache_env.MAX_READERS - 1
    late.tell()
    said = late.says()
    assert (said["wrong"], said["corrupt"]) == (0, 0)


# --- writers --------------------------------------------------------------------------------------------


def test_two_processes_write_at_once(tmp_path: Path, start: Starter) -> None:
    (tmp_path / "c").mkdir()
    writers = [start("write", tmp_path / "c", name, 300, 64 * MIB, 2000) for name in ("a", "b")]
    for each in writers:
        assert each.says() == {"stored": 300, "bypassed": 0}
    reader = CacheReader(tmp_path / "c")
    for name in ("a", "b"):
        for number in range(300):
            key = key_of(name, number)
            found = reader.get(key, NOW_S)
            assert found is not None
            assert found.answer == answer_of(key)
    reader.close()
    assert cache_env.structural_problems(tmp_path / "c") == []


def test_readers_go_on_while_writers_are_killed_in_the_middle_of_commits(
    tmp_path: Path, start: Starter
) -> None:
    """After each of 100 SIGKILLs the next writer can write at once, and no reader notices anything."""
    CacheWriter(tmp_path, max_bytes=4 * MIB, max_entries=80).close()
    other = start("read_loop", tmp_path)
    other.says()
    said = start("kill_writers", tmp_path, 100).says()
    assert said.pop("hits") > 1000
    assert said == {"corrupt": 0, "errors": 0, "lost": []}
    other.tell()
    said = other.says()
    assert said["hits"] > 0
    assert (said["wrong"], said["corrupt"], said["errors"]) == (0, 0, 0)
    other.close()
    after = CacheWriter(tmp_path, max_bytes=4 * MIB, max_entries=80)
    assert after.put_many([record(key_of("k", 1), created_s=NOW_S + 50)], NOW_S + 50) == 1
    assert after.stats().entries <= 80
    after.close()
    assert cache_env.structural_problems(tmp_path) == []


def test_a_full_disk_bypasses_and_what_is_stored_stays_readable(tmp_path: Path, start: Starter) -> None:
    said = start("write_under_file_limit", tmp_path).says()
    assert said["stored"] >= 10
    assert said["bypassed"] == 100 - said["stored"]
    assert said["bypassed"] > 10
    assert said["wrong"] == 0
    assert said["found"] >= said["stored"]
    assert said["problem"]
    writer = CacheWriter(tmp_path, max_bytes=64 * MIB, max_entries=100_000)
    assert writer.put_many([record(key_of("f", 5), size=20_000)], NOW_S) == 1
    assert writer.get(key_of("f", 5), NOW_S) is not None


def test_a_reader_follows_a_map_that_another_process_has_made_larger(tmp_path: Path, start: Starter) -> None:
    filled(tmp_path, 1, max_bytes=MIB)
    reader = start("reader_of_a_growing_map", tmp_path)
    assert reader.says()["started"]
    assert start("write", tmp_path, "g", 2_000, 128 * MIB, 20_000).says()["stored"] == 2_000
    assert (tmp_path / "data.mdb").stat().st_size > 17 * MIB
    reader.tell()
    said = reader.says()
    assert said == {"found": 20, "before_bytes": 17 * MIB, "after_bytes": 192 * MIB}


# --- rights ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("group", "data_mode", "lock_mode", "directory_mode", "hit"),
    [
        (4242, 0o640, 0o660, 0o750, True),  # as CacheWriter makes them: the group reads
        (4242, 0o640, 0o640, 0o750, False),  # a read-only open needs write permission on the lock file
        (4242, 0o600, 0o660, 0o750, False),
        (4243, 0o640, 0o660, 0o750, False),  # another group
        (4242, 0o640, 0o660, 0o700, False),
    ],
)
def test_who_may_read(
    start: Starter,
    group: int,
    data_mode: int,
    lock_mode: int,
    directory_mode: int,
    hit: bool,
) -> None:
    directory = Path("/tmp", f"walled-rights-{os.getpid()}")  # pytest's own is closed to other users
    filled(directory, 1)
    try:
        for path, mode in (
            (directory / "data.mdb", data_mode),
            (directory / "lock.mdb", lock_mode),
            (directory, directory_mode),
        ):
            os.chown(path, 0, 4242)
            os.chmod(path, mode)
        said = start("read_without_rights", directory, group).says()
    finally:
        shutil.rmtree(directory)
    assert said["hit"] is hit
    assert said["open"] is hit
    assert (said["stored"], said["bypassed"]) == (0, 1)
    assert hit or "ermission denied" in said["problem"]


# --- forks and threads ----------------------------------------------------------------------------------


def test_both_sides_of_a_fork_go_on_reading_and_neither_harms_the_other(
    tmp_path: Path, start: Starter
) -> None:
    """A child that used its parent's environment broke the parent's reader slot [ran]."""
    filled(tmp_path, 1)
    assert start("fork", tmp_path).says() == {"statuses": [0] * 20, "misses": 0, "errors": 0}


def test_a_fork_during_a_read_that_does_not_end_costs_the_child_its_cache_and_the_parent_nothing(
    tmp_path: Path, start: Starter
) -> None:
    filled(tmp_path, 1)
    said = start("fork_while_locked", tmp_path).says()
    assert said == {"status": 0, "hit": True, "reopened": 0, "errors": 0}


def test_closing_never_unmaps_what_a_thread_is_copying(tmp_path: Path, start: Starter) -> None:
    filled(tmp_path, 20, size=BIG, max_bytes=16 * MIB)
    said = start("read_while_closing", tmp_path).says()
    assert said["hits"] > 0
    assert said["wrong"] == said["errors"], "a read that lost its environment is a counted miss"


# --- damage ---------------------------------------------------------------------------------------------


def test_damage_gives_no_wrong_answer_and_what_crashes_does_not_pass_the_check(
    tmp_path: Path, start: Starter
) -> None:
    """LMDB trusts its pages, so damage to their heads may crash a reader; the check must see that."""
    filled(tmp_path / "c", 200)
    said = start("survive_damage", tmp_path / "c", 20261124, 150).says()["outcomes"]
    assert sum(said.values()) == 150
    assert said.get("right, noticed", 0) + said.get("crashed, noticed", 0) > 20, said
    for outcome in ("wrong, noticed", "wrong, not noticed", "raised, noticed", "raised, not noticed"):
        assert outcome not in said, said
    assert "crashed, not noticed" not in said, said
