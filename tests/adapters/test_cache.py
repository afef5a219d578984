"""The cache within one process: reading, writing, eviction, purge, descriptions, bad files."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest
from cache_actors import NOW_S, answer_of, key_of, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from walled.adapters import cache, cache_env
from walled.adapters.cache import CacheReader, CacheWriter
from walled.core.policy import CLOCK_SLACK_S
from walled.core.record import ModelMeta, Record, pack_record

MIB = 1 << 20


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CacheWriter]:
    found = CacheWriter(tmp_path / "cache", max_bytes=8 * MIB, max_entries=100)
    yield found
    found.close()


@pytest.fixture
def reader(writer: CacheWriter, tmp_path: Path) -> Iterator[CacheReader]:
    found = CacheReader(tmp_path / "cache")
    yield found
    found.close()


def put(writer: CacheWriter, *numbers: int, created_s: float = NOW_S, size: int = 2000) -> None:
    records = [record(key_of("r", number), created_s=created_s, size=size) for number in numbers]
    assert writer.put_many(records, created_s) == len(records)


def raw_counts(directory: Path) -> dict[bytes, int]:
    """Entries of every named database, seen by LMDB alone; nothing of this process may have it open."""
    with lmdb.open(os.fspath(directory), readonly=True, max_dbs=8) as env:
        handles = {name: env.open_db(name, create=False) for name in cache_env.DATABASES}
        with env.begin() as txn:
            return {name: txn.stat(handle)["entries"] for name, handle in handles.items()}


# --- one record's life --------------------------------------------------------------------------------


def test_an_answer_comes_back_fresh_then_stale_then_not_at_all(
    writer: CacheWriter, reader: CacheReader
) -> None:
    put(writer, 1)
    key = key_of("r", 1)
    assert reader.get(key, NOW_S) == record(key)
    assert reader.get(key, NOW_S + 999) == record(key)
    assert reader.get(key, NOW_S + 1999) == record(key)
    assert reader.get(key, NOW_S + 2000) is None
    assert reader.get(key_of("r", 2), NOW_S) is None
    stats = reader.stats()
    assert (stats.hits, stats.stale_hits, stats.misses, stats.corrupt, stats.errors) == (2, 1, 2, 0, 0)
    assert stats.entries == 1
    assert stats.oldest_s == NOW_S
    assert stats.open
    assert stats.problem == ""


def test_a_record_from_the_future_is_dead_and_leaves_first(writer: CacheWriter) -> None:
    """The clock was set back: such a record would otherwise be fresh until the clock has caught up."""
    put(writer, 2, created_s=NOW_S + CLOCK_SLACK_S - 1)
    put(writer, 1, created_s=NOW_S + 500)
    assert writer.get(key_of("r", 1), NOW_S) is None
    assert writer.get(key_of("r", 2), NOW_S) is not None
    assert writer.expired == 0
    put(writer, 3)
    assert writer.expired == 1
    assert writer.stats().entries == 2
    assert writer.get(key_of("r", 1), NOW_S + 500) is None


def test_what_cannot_live_is_not_stored(writer: CacheWriter) -> None:
    good = record(key_of("r", 0))
    replace = msgspec.structs.replace
    bad = [
        replace(good, key=b"short"),
        replace(good, created_s=float("nan")),
        replace(good, stale_until_s=float("inf")),
        replace(good, created_s=-1.0),
        replace(good, created_s=NOW_S + 1000),
        replace(good, stale_until_s=NOW_S),
        replace(good, answer=bytes(2 * MIB + 1)),
    ]
    for each in bad:
        assert writer.put_many([each], NOW_S) == 0
    assert writer.put_many([*bad, good], NOW_S) == 1
    assert writer.bypassed == 2 * len(bad)
    assert writer.stored == 1
    assert writer.stats().entries == 1
    assert writer.put_many([], NOW_S) == 0


def test_a_newer_answer_takes_the_place_of_the_old_one_and_of_its_index(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=100)
    for age in range(5):
        put(writer, 1, created_s=NOW_S + age)
    twice = [record(key_of("r", 1), created_s=NOW_S + 5), record(key_of("r", 1), created_s=NOW_S + 6)]
    assert writer.put_many(twice, NOW_S + 6) == 2
    found = writer.get(key_of("r", 1), NOW_S + 6)
    assert found is not None
    assert found.created_s == NOW_S + 6
    writer.close()
    counts = raw_counts(tmp_path)
    assert counts[b"answers"] == 1
    assert counts[b"expiry"] == 2


# --- eviction -----------------------------------------------------------------------------------------


def test_eviction_takes_the_expired_first_then_the_oldest(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=4)
    put(writer, 1, created_s=NOW_S)
    short = msgspec.structs.replace(record(key_of("r", 2), created_s=NOW_S + 2), stale_until_s=NOW_S + 10)
    assert writer.put_many([short], NOW_S + 2) == 1
    put(writer, 3, created_s=NOW_S + 1)
    put(writer, 4, created_s=NOW_S + 3)
    now_s = NOW_S + 20
    assert writer.put_many([record(key_of("r", 5), created_s=now_s)], now_s) == 1
    assert [writer.get(key_of("r", n), now_s) is not None for n in range(1, 6)] == [
        True,
        False,
        True,
        True,
        True,
    ]
    assert (writer.expired, writer.evicted) == (1, 0)
    assert writer.put_many([record(key_of("r", 6), created_s=now_s)], now_s) == 1
    assert writer.get(key_of("r", 1), now_s) is None
    assert (writer.expired, writer.evicted) == (1, 1)
    writer.close()
    assert raw_counts(tmp_path)[b"expiry"] == 2 * raw_counts(tmp_path)[b"answers"] == 8


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 60), st.sampled_from([10, 900, 3000, 50_000])), max_size=12),
        max_size=12,
    ),
    st.integers(1, 20),
)
def test_no_sequence_of_puts_passes_the_bounds(
    tmp_path: Path, batches: list[list[tuple[int, int]]], max_entries: int
) -> None:
    """By count and by bytes; and the newest that fits is there."""
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    writer = CacheWriter(tmp_path / "c", max_bytes=300_000, max_entries=max_entries)
    now_s = NOW_S
    for batch in batches:
        now_s += 1
        records = [record(key_of("p", number), created_s=now_s, size=size) for number, size in batch]
        writer.put_many(records, now_s)
        stats = writer.stats()
        assert stats.entries <= max_entries
        assert stats.live_bytes <= 300_000
        if records:
            last = writer.get(records[-1].key, now_s)
            assert last is None or last == records[-1]
            assert any(writer.get(each.key, now_s) for each in records)
    entries = writer.stats().entries
    writer.close()
    counts = raw_counts(tmp_path / "c")
    assert counts[b"answers"] == entries
    assert counts[b"expiry"] == 2 * entries


def test_more_than_the_map_holds_is_stored_in_turns(tmp_path: Path) -> None:
    """A hundred megabytes given at once to a cache of one: the last of them stay."""
    writer = CacheWriter(tmp_path, max_bytes=MIB, max_entries=1000)
    records = [record(key_of("m", n), created_s=NOW_S + n, size=200_000) for n in range(500)]
    assert writer.put_many(records, NOW_S + 500) == 500
    assert writer.bypassed == 0
    assert writer.get(records[-1].key, NOW_S + 500) == records[-1]
    assert writer.stats().live_bytes <= MIB
    assert writer.evicted >= 490


def test_a_map_without_headroom_makes_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages freed in a transaction cannot be used by it: without headroom a large record finds no place."""
    monkeypatch.setattr(cache, "map_bytes_for", lambda max_bytes: max_bytes + MIB // 4)
    writer = CacheWriter(tmp_path, max_bytes=16 * MIB, max_entries=100_000)
    records = [record(key_of("r", n), created_s=NOW_S + n / 1e4) for n in range(3600)]
    assert writer.put_many(records, NOW_S + 1) == 3600
    assert writer.stats().live_bytes > 14 * MIB
    big = record(key_of("big", 1), created_s=NOW_S + 1, size=3 * MIB)
    assert writer.put_many([big], NOW_S + 1) == 1
    assert writer.get(big.key, NOW_S + 1) == big
    assert writer.evicted > 1500, "half of all had to go, not only what the record itself needs"
    assert writer.bypassed == 0


def test_rubbish_in_the_index_is_swept_and_takes_no_record_with_it(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=3)
    put(writer, 2, 3)
    put(writer, 1, created_s=NOW_S + 0.5)
    writer.close()
    with lmdb.open(os.fspath(tmp_path), max_dbs=8, map_size=32 * MIB) as env:
        expiry = env.open_db(b"expiry")
        with env.begin(write=True, db=expiry) as txn:
            old = (1).to_bytes(8, "big")
            txn.put(b"c" + old + key_of("r", 1), b"")  # other times than the record's
            txn.put(b"e" + old + key_of("gone", 1), b"")  # no record
            txn.put(b"c", b"")
            txn.put(b"e\x00", b"")
            txn.put(b"x", b"")
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=3)
    put(writer, 4, created_s=NOW_S + 1)
    assert (writer.expired, writer.evicted) == (0, 1)
    assert writer.stats().entries == 3
    assert writer.get(key_of("r", 1), NOW_S + 1) is not None
    assert writer.get(key_of("r", 4), NOW_S + 1) is not None


# --- purge --------------------------------------------------------------------------------------------


def test_purge_by_namespace_by_model_by_key_and_altogether(writer: CacheWriter) -> None:
    def fill() -> None:
        writer.purge()
        replace = msgspec.structs.replace
        records = [
            replace(record(key_of("r", number), namespace=space), model=model)
            for number, (space, model) in enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")])
        ]
        assert writer.put_many(records, NOW_S) == 4

    def left() -> set[int]:
        return {number for number in range(4) if writer.get(key_of("r", number), NOW_S)}

    fill()
    assert writer.purge(namespace="a") == 2
    assert left() == {2, 3}
    fill()
    assert writer.purge(model="y") == 2
    assert left() == {0, 2}
    fill()
    assert writer.purge(namespace="a", model="y") == 1
    assert left() == {0, 2, 3}
    fill()
    assert writer.purge(key=key_of("r", 2)) == 1
    assert left() == {0, 1, 3}
    assert writer.purge(key=key_of("r", 2)) == 0
    assert writer.purge(key=key_of("r", 3), namespace="a") == 0
    assert writer.purge(namespace="nobody") == 0
    assert writer.purge() == 3
    assert left() == set()
    assert writer.stats().oldest_s is None


# --- descriptions of models ---------------------------------------------------------------------------


def test_descriptions_stand_under_names_and_aliases(writer: CacheWriter, reader: CacheReader) -> None:
    long_name = "ü" * 300
    metas = [
        ModelMeta(name=name, backend="b", fingerprint=bytes([n]) * 32, ttl_s=n)
        for n, name in enumerate(["m", "default", "", long_name])
    ]
    assert writer.put_meta(metas) == 4
    for each in metas:
        assert reader.meta(each.name) == each
    assert reader.meta("unknown") is None


def test_a_description_is_remembered_for_a_second(
    writer: CacheWriter, reader: CacheReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = [100.0]
    monkeypatch.setattr(cache.time, "monotonic", lambda: clock_s[0])
    first = ModelMeta(name="m", backend="b", fingerprint=bytes(32))
    second = msgspec.structs.replace(first, fingerprint=b"f" * 32)
    assert reader.meta("m") is None
    writer.put_meta([first])
    assert reader.meta("m") is None
    clock_s[0] += 1.0
    assert reader.meta("m") == first
    writer.put_meta([second])
    clock_s[0] += 0.9
    assert reader.meta("m") == first
    clock_s[0] += 0.2
    assert reader.meta("m") == second
    assert writer.meta("m") == second


def test_unchanged_descriptions_cost_no_commit(writer: CacheWriter) -> None:
    meta = ModelMeta(name="m", backend="b", fingerprint=bytes(32))
    writer.put_meta([meta])
    before = _last_transaction(writer)
    assert writer.put_meta([meta, meta]) == 1
    assert _last_transaction(writer) == before
    writer.put_meta([msgspec.structs.replace(meta, ttl_s=1.0)])
    assert _last_transaction(writer) == before + 1


def _last_transaction(reader: CacheReader) -> int:
    env = reader._env._env
    assert env is not None
    return int(env.info()["last_txnid"])


# --- how the file is opened ---------------------------------------------------------------------------


def test_writemap_and_metasync_are_off_and_commits_are_synced(writer: CacheWriter) -> None:
    env = writer._env._env
    assert env is not None
    flags = env.flags()
    assert not flags["writemap"]
    assert not flags["metasync"]
    assert not flags["map_async"]
    assert not flags["readahead"]
    assert flags["sync"]
    assert flags["lock"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_file_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        CacheWriter(tmp_path / "c", max_bytes=MIB, max_entries=10).close()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "c").iterdir()}
    assert modes == {"data.mdb": 0o640, "lock.mdb": 0o660}
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) & 0o007 == 0


def test_all_users_of_one_process_share_one_environment(tmp_path: Path) -> None:
    """LMDB must not open a file twice in a process; two Clients and a worker may live in one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    early = CacheReader(tmp_path / "link")
    assert early.get(key_of("r", 1), NOW_S) is None
    writer = CacheWriter(tmp_path / "real", max_bytes=MIB, max_entries=10)
    put(writer, 1)
    late = CacheReader(tmp_path / "real")
    for reader in (early, late, writer):
        assert reader.get(key_of("r", 1), NOW_S) is not None
    writer.close()
    late.close()
    assert early.get(key_of("r", 1), NOW_S) is not None
    assert late.get(key_of("r", 1), NOW_S) is None
    assert writer.put_many([record(key_of("r", 2))], NOW_S) == 0
    early.close()
    early.close()
    raw_counts(tmp_path / "real")  # would be refused if anything still had it open


def test_a_reader_that_came_first_does_not_stop_the_writer(tmp_path: Path) -> None:
    CacheWriter(tmp_path, max_bytes=MIB, max_entries=10).close()
    reader = CacheReader(tmp_path)
    assert reader.get(key_of("r", 1), NOW_S) is None
    assert reader.stats().open
    writer = CacheWriter(tmp_path, max_bytes=MIB, max_entries=10)
    put(writer, 1)
    assert reader.get(key_of("r", 1), NOW_S) is not None


def test_a_cache_that_is_not_there_yet_is_found_within_a_second(tmp_path: Path) -> None:
    reader = CacheReader(tmp_path / "a" / "b")
    assert reader.get(key_of("r", 1), NOW_S) is None
    assert not reader.stats().open
    assert "No such file" in reader.stats().problem
    assert not (tmp_path / "a").exists(), "a reader makes nothing"
    other = CacheWriter(tmp_path / "elsewhere", max_bytes=MIB, max_entries=10)
    put(other, 1)
    other.close()
    (tmp_path / "a").mkdir()
    os.rename(tmp_path / "elsewhere", tmp_path / "a" / "b")
    assert reader.get(key_of("r", 1), NOW_S + 1) is not None
    assert reader.stats().problem == ""
    assert reader.errors == 0


def test_a_reader_does_not_look_more_than_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    reader = CacheReader(tmp_path)
    monkeypatch.setattr(reader._env, "verify", lambda: looks.append(1))
    for tenth in range(21):
        reader.get(key_of("r", 1), NOW_S + tenth / 10)
    assert len(looks) == 3
    reader.get(key_of("r", 1), NOW_S - 5000)  # a clock that was set back does not stop the looking
    assert len(looks) == 4


def test_a_replaced_file_is_noticed_and_reopened(tmp_path: Path) -> None:
    old = CacheWriter(tmp_path / "old", max_bytes=MIB, max_entries=10)
    put(old, 1)
    new = CacheWriter(tmp_path / "new", max_bytes=MIB, max_entries=10)
    put(new, 2)
    new.close()
    reader = CacheReader(tmp_path / "old")
    assert reader.get(key_of("r", 1), NOW_S) is not None
    for name in ("data.mdb", "lock.mdb"):
        os.rename(tmp_path / "new" / name, tmp_path / "old" / name)
    assert reader.get(key_of("r", 2), NOW_S + 1) is not None
    assert reader.get(key_of("r", 1), NOW_S + 1) is None
    assert old.put_many([record(key_of("r", 3))], NOW_S + 2) == 1
    assert reader.get(key_of("r", 3), NOW_S + 2) is not None


def test_a_directory_that_goes_away_is_misses_then_made_anew_by_the_writer(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "c", max_bytes=MIB, max_entries=10)
    reader = CacheReader(tmp_path / "c")
    put(writer, 1)
    shutil.rmtree(tmp_path / "c")
    assert reader.get(key_of("r", 1), NOW_S + 5) is None
    assert writer.put_many([record(key_of("r", 2))], NOW_S + 5) == 1
    assert reader.get(key_of("r", 2), NOW_S + 6) is not None


def test_a_path_that_cannot_be_a_directory_bypasses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    writer = CacheWriter(tmp_path / "file" / "c", max_bytes=MIB, max_entries=10)
    assert writer.put_many([record(key_of("r", 1))], NOW_S) == 0
    assert writer.put_meta([ModelMeta(name="m", backend="b", fingerprint=bytes(32))]) == 0
    assert writer.purge() == 0
    assert writer.reader_check() == 0
    assert writer.get(key_of("r", 1), NOW_S) is None
    assert writer.meta("m") is None
    assert writer.stats().bypassed == 1
    assert "Not a directory" in writer.stats().problem


# --- damage -------------------------------------------------------------------------------------------


def _flip(path: Path, where: int) -> None:
    with path.open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 0x40]))


@pytest.mark.parametrize("part", ["tag", "key", "created", "answer", "checksum"])
def test_a_flipped_byte_of_a_record_is_a_counted_miss_and_no_other_record_suffers(
    tmp_path: Path, part: str
) -> None:
    writer = CacheWriter(tmp_path, max_bytes=MIB, max_entries=10)
    put(writer, 1, 2, 3, created_s=NOW_S)
    key = key_of("r", 2)
    value = pack_record(record(key))
    offset = {
        "tag": 2,
        "key": value.index(key) + 5,
        "created": value.index(key) + 35,
        "answer": 1000,
        "checksum": len(value) - 2,
    }[part]
    data = (tmp_path / "data.mdb").read_bytes()
    assert data.count(value) == 1
    _flip(tmp_path / "data.mdb", data.index(value) + offset)
    assert writer.get(key, NOW_S) is None
    assert writer.get(key_of("r", 1), NOW_S) is not None
    assert writer.get(key_of("r", 3), NOW_S) is not None
    stats = writer.stats()
    assert (stats.corrupt, stats.misses, stats.errors) == (1, 1, 0)
    put(writer, 2, created_s=NOW_S + 1)
    assert writer.get(key, NOW_S + 1) is not None, "written anew, it is well again"
    assert writer.purge() == 3


def test_records_of_another_format_are_misses_and_purged_with_the_rest(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, max_bytes=MIB, max_entries=10)
    put(writer, 1)
    writer.close()
    with lmdb.open(os.fspath(tmp_path), max_dbs=8, map_size=32 * MIB) as env:
        with env.begin(write=True, db=env.open_db(b"answers")) as txn:
            txn.put(key_of("r", 7), b"\x91\xa4WLR2")
        with env.begin(write=True, db=env.open_db(b"meta")) as txn:
            txn.put(b"model:m", b"\x91\xa4WLM2")
    writer = CacheWriter(tmp_path, max_bytes=MIB, max_entries=10)
    assert writer.get(key_of("r", 7), NOW_S) is None
    assert writer.meta("m") is None
    assert writer.corrupt == 2
    assert writer.purge(namespace="default") == 2


def test_a_truncated_file_is_not_opened_because_its_pages_are_sigbus(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, max_bytes=MIB, max_entries=100)
    put(writer, *range(50))
    writer.close()
    size_bytes = (tmp_path / "data.mdb").stat().st_size
    os.truncate(tmp_path / "data.mdb", size_bytes // 2)
    reader = CacheReader(tmp_path)
    for number in range(50):
        assert reader.get(key_of("r", number), NOW_S + number) is None
    assert f"must be {size_bytes}" in reader.stats().problem
    reader.close()


def test_a_file_that_shrinks_under_a_reader_is_closed_at_the_next_look(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, max_bytes=MIB, max_entries=100)
    put(writer, *range(50))
    writer.close()
    reader = CacheReader(tmp_path)
    assert reader.get(key_of("r", 1), NOW_S) is not None
    os.truncate(tmp_path / "data.mdb", (tmp_path / "data.mdb").stat().st_size // 2)
    assert reader.get(key_of("r", 1), NOW_S + 1) is None
    assert not reader.stats().open


def _short_file(directory: Path) -> int:
    """Makes an intact file without its last pages; returns the length it should have.

    Some sequences of puts and deletes in one transaction end so: about one in eight of these.
    """
    for seed in range(50):
        draw = random.Random(seed)
        shutil.rmtree(directory, ignore_errors=True)
        with lmdb.open(os.fspath(directory), max_dbs=8, map_size=32 * MIB, sync=False) as env:
            database = env.open_db(b"scratch")
            for _ in range(5):
                with env.begin(write=True, db=database) as txn:
                    keys = [draw.randbytes(8) for _ in range(draw.randrange(1, 60))]
                    for key in keys:
                        txn.put(key, bytes(draw.choice([10, 1000, 1900, 5000, 20_000])))
                    for key in draw.sample(keys, draw.randrange(len(keys) + 1)):
                        txn.delete(key)
                wanted_bytes = (int(env.info()["last_pgno"]) + 1) * 4096
                if (directory / "data.mdb").stat().st_size < wanted_bytes:
                    return wanted_bytes
    raise AssertionError("LMDB writes every page now: drop Environment.extend()")


def test_an_intact_file_that_lacks_only_unused_last_pages_is_lengthened(tmp_path: Path) -> None:
    """LMDB never writes a page taken and given back in one transaction; that is no truncation."""
    wanted_bytes = _short_file(tmp_path / "c")
    refusing = CacheReader(tmp_path / "c")
    assert refusing.get(key_of("r", 1), NOW_S) is None
    assert f"must be {wanted_bytes}" in refusing.stats().problem
    refusing.close()
    writer = CacheWriter(tmp_path / "c", max_bytes=MIB, max_entries=100)
    assert (tmp_path / "c" / "data.mdb").stat().st_size >= wanted_bytes
    put(writer, 1)
    writer.close()
    reader = CacheReader(tmp_path / "c")
    assert reader.get(key_of("r", 1), NOW_S) is not None


def test_no_commit_leaves_a_file_that_readers_would_refuse(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, max_bytes=MIB, max_entries=30)
    draw = random.Random(1)
    for turn in range(150):
        records = [
            record(
                key_of("s", draw.randrange(60)), created_s=NOW_S + turn, size=draw.choice([10, 1900, 9000])
            )
            for _ in range(draw.randrange(1, 12))
        ]
        writer.put_many(records, NOW_S + turn)
        if turn % 10 == 9:
            writer.purge(key=records[0].key)
        env = writer._env._env
        assert env is not None
        assert (tmp_path / "data.mdb").stat().st_size >= (env.info()["last_pgno"] + 1) * 4096


def test_any_error_of_lmdb_is_a_counted_miss(
    writer: CacheWriter, reader: CacheReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(writer, 1)
    env = writer._env
    kept = env.reading
    for error in (lmdb.ReadersFullError(""), lmdb.CorruptedError(""), lmdb.Error("x"), OSError(5, "io")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        env.reading = (fail, None)
        assert reader.get(key_of("r", 1), NOW_S) is None
        env.reading = kept
    assert (reader.errors, reader.corrupt, reader.misses) == (3, 1, 4)
    assert reader.get(key_of("r", 1), NOW_S) is not None


def test_the_map_leaves_room_for_copies() -> None:
    assert cache.map_bytes_for(MIB) == 17 * MIB
    assert cache.map_bytes_for(256 * MIB) == 384 * MIB


def test_a_get_does_not_depend_on_the_type_of_what_is_asked(reader: CacheReader) -> None:
    for key in (b"", b"x", bytes(500), bytes(5000)):
        assert reader.get(key, NOW_S) is None


def test_answers_come_out_whole_at_any_size(writer: CacheWriter) -> None:
    for number, size in enumerate([0, 1, 1900, 1950, 2000, 4000, 4096, 100_000, 1_000_000]):
        key = key_of("s", number)
        assert writer.put_many([record(key, size=size)], NOW_S) == 1
        found: Record | None = writer.get(key, NOW_S)
        assert found is not None
        assert found.answer == answer_of(key, size)
