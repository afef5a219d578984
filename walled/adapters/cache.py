"""The shared cache: reading in any process, writing in workers. Nothing here ever fails a request.

May live here: get, put, purge, model descriptions, statistics. May not: opening files and LMDB's traps
(cache_env.py), the order of eviction (cache_order.py), bytes of a record (core/record.py), what may be cached
(core/policy.py).

Errors are counted, by kind, and become a miss (reading) or "not stored" (writing). docs/cache.md describes
the databases.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from walled.adapters import cache_env, cache_order
from walled.adapters.cache_env import MapFull, StoreError
from walled.core.policy import CLOCK_SLACK_S, freshness
from walled.core.record import (
    KEY_BYTES,
    Damaged,
    ModelMeta,
    Record,
    pack_meta,
    pack_record,
    unpack_meta,
    unpack_record,
)

CHECK_S: Final = 1.0
"""How often a reader looks whether its files were replaced, or have appeared."""
MIN_HEADROOM_BYTES: Final = 16 * 1024 * 1024
MAX_REMEMBERED: Final = 1024
"""Model names a reader remembers; names come from callers, so there could be any number."""
MAX_META_KEY_BYTES: Final = 480  # LMDB takes keys of up to 511

TEMPLATES_KEY: Final = b"set"

Batch = dict[bytes, tuple[Record, bytes]]
"""Key -> record and its packed form."""


class CacheStats(msgspec.Struct, frozen=True):
    """The file as it is, and what this process has counted."""

    directory: str
    open: bool
    problem: str
    """What went wrong last, for people; "" when nothing did."""
    entries: int
    live_bytes: int
    """Pages that hold answers and their index: what max_bytes bounds."""
    file_bytes: int
    map_bytes: int
    page_bytes: int
    free_pages: int
    """Pages of the file that may be used again; many more than live ones: a dead reader pins them."""
    oldest_s: float | None
    """Creation time (unix seconds) of the oldest answer."""
    readers: int
    """Slots taken in the reader table, by this process too."""
    hits: int
    stale_hits: int
    misses: int
    corrupt: int
    """Records that failed verification, and pages LMDB found broken."""
    errors: int
    """Reads that failed otherwise (file gone, reader table full, permission)."""
    stored: int
    bypassed: int
    """Records that were not stored: full map, full disk, too large, impossible times, permission."""
    evicted: int
    """Records removed to make room before their time."""
    expired: int
    """Dead records removed."""


class CacheReader:
    """Verified copies of stored answers, from this process's own map of the file.

    A cache that does not exist, or cannot be opened, only misses; it is looked for again once a second.
    Safe to use from several threads and after fork.
    """

    def __init__(self, directory: Path) -> None:
        self._env = cache_env.acquire(directory)
        self._checked_s = -math.inf
        self._meta: dict[str, tuple[float, int, ModelMeta | None]] = {}
        self._templates: tuple[float, int, bytes | None] | None = None
        self._closed = False
        self.hits = 0
        self.stale_hits = 0
        self.misses = 0
        self.corrupt = 0
        self.errors = 0
        self.stored = 0
        self.bypassed = 0
        self.evicted = 0
        self.expired = 0

    def get(self, key: bytes, now_s: float) -> Record | None:
        """The record of `key`, fresh or stale at `now_s` (unix seconds); None on a miss."""
        if not 0.0 <= now_s - self._checked_s < CHECK_S:
            self._look(now_s)
        env = self._env
        reading = env.reading
        if reading is None:
            reading = self._reopened()
            if reading is None:
                self.misses += 1
                return None
        begin, answers = reading
        try:
            with env.lock:
                txn = begin(answers, None, False, True)
                try:
                    value = txn.get(key)
                    record = None if value is None else unpack_record(key, value)
                finally:
                    txn.abort()
        except Damaged:
            self.corrupt += 1
            self.misses += 1
            return None
        except StoreError as exc:
            return self._get_again(key, now_s, exc, reading)
        if record is None or now_s >= record.stale_until_s or record.created_s > now_s + CLOCK_SLACK_S:
            self.misses += 1
            return None
        if now_s < record.fresh_until_s:
            self.hits += 1
        else:
            self.stale_hits += 1
        return record

    def _look(self, now_s: float) -> None:
        self._checked_s = now_s
        if not self._closed:
            self._env.verify()

    def _reopened(self) -> cache_env.Reading | None:
        """After a fork the file can be opened at once, after a failure not before the next `_look`."""
        return self._env.reading if not self._closed and self._env.open() else None

    def _get_again(
        self, key: bytes, now_s: float, exc: Exception, reading: cache_env.Reading
    ) -> Record | None:
        """A read failed. Once more when reopening helps, else a miss."""
        env = self._env
        # Not open any more: somebody closed it (a fork, a replaced file) between our look and our read.
        healable = env.reading is not reading or env.healable(exc)
        if env.reading is reading:
            env.failed(exc)
        if not healable or self._reopened() is None:
            self._count_error(exc)
            self.misses += 1
            return None
        try:
            record = self._record(key)
        except (Damaged, *StoreError) as again:
            self._count_error(again)
            record = None
        if record is None or freshness(record, now_s) == "dead":
            self.misses += 1
            return None
        self.hits += 1
        return record

    def _record(self, key: bytes) -> Record | None:
        with self._env.reading_txn() as txn:
            value = txn.get(key)
            return None if value is None else unpack_record(key, value)

    def _count_error(self, exc: Exception) -> None:
        if isinstance(exc, Damaged) or cache_env.is_damage(exc):
            self.corrupt += 1
        else:
            self.errors += 1

    def meta(self, name: str) -> ModelMeta | None:
        """The description of a model or alias; remembered, and read anew after a second or a reopening."""
        env = self._env
        clock_s = time.monotonic()
        known = self._meta.get(name)
        if known is not None and clock_s - known[0] < CHECK_S and known[1] == env.generation:
            return known[2]
        found = self._read_meta(name)
        if len(self._meta) >= MAX_REMEMBERED:
            self._meta.clear()
        self._meta[name] = (clock_s, env.generation, found)
        return found

    def _read_meta(self, name: str) -> ModelMeta | None:
        if self._closed:
            return None
        env = self._env
        env.verify()
        if env.reading is None:
            return None
        key = meta_key(name)
        try:
            with env.reading_txn() as txn:
                value = txn.get(key, db=env.meta)
                return None if value is None else unpack_meta(key, value)
        except Damaged as exc:
            self._count_error(exc)
        except StoreError as exc:
            env.failed(exc)
            self._count_error(exc)
        return None

    def templates(self) -> bytes | None:
        """The packed template set, None when there is none; the same object while nothing has changed.

        Remembered, and looked at anew after a second or a reopening, as `meta` is.
        """
        env = self._env
        clock_s = time.monotonic()
        known = self._templates
        if known is not None and clock_s - known[0] < CHECK_S and known[1] == env.generation:
            return known[2]
        found: bytes | None = None
        if not self._closed:
            env.verify()
        try:
            if env.reading is not None:
                with env.reading_txn() as txn:
                    value = txn.get(TEMPLATES_KEY, db=env.templates)
                    found = None if value is None else bytes(value)
        except StoreError as exc:
            env.failed(exc)
            self._count_error(exc)
        if known is not None and found == known[2]:
            found = known[2]
        self._templates = (clock_s, env.generation, found)
        return found

    def stats(self) -> CacheStats:
        """The file's figures, zero where it cannot be read, and this process's counts."""
        env = self._env
        pages = cache_env.Pages()
        oldest_s = None
        if not self._closed:
            env.verify()
        try:
            if env.reading is not None:
                pages = env.pages()
                with env.reading_txn() as txn:
                    oldest_s = cache_order.oldest_s(txn, env)
        except StoreError as exc:
            env.failed(exc)
            self._count_error(exc)
        return CacheStats(
            directory=str(env.directory),
            open=env.reading is not None,
            problem=env.problem,
            entries=pages.entries,
            live_bytes=pages.live * pages.page_bytes,
            file_bytes=pages.total * pages.page_bytes,
            map_bytes=pages.map_bytes,
            page_bytes=pages.page_bytes,
            free_pages=pages.free,
            oldest_s=oldest_s,
            readers=pages.readers,
            hits=self.hits,
            stale_hits=self.stale_hits,
            misses=self.misses,
            corrupt=self.corrupt,
            errors=self.errors,
            stored=self.stored,
            bypassed=self.bypassed,
            evicted=self.evicted,
            expired=self.expired,
        )

    def close(self) -> None:
        """Let go of the file; closed for the process when nobody else here uses it. Later reads miss."""
        if not self._closed:
            self._closed = True
            shared, self._env = self._env, cache_env.Environment(self._env.directory)  # one never opened
            cache_env.release(shared)


class CacheWriter(CacheReader):
    """Also writes. Several processes may write; LMDB lets one at a time.

    `max_bytes` bounds the pages of answers and index, `max_entries` their number.
    """

    def __init__(self, directory: Path, *, max_bytes: int, max_entries: int) -> None:
        super().__init__(directory)
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._env.make_writable(map_bytes_for(max_bytes))

    def put_many(self, records: Sequence[Record], now_s: float) -> int:
        """Store records, in one transaction unless they are very many, making room first; how many are in."""
        good = [(record, pack_record(record)) for record in records if self._storable(record, now_s)]
        values = {record.key: (record, value) for record, value in good}
        stored: set[bytes] = set()
        if values and self._ready(now_s):
            try:
                with self._env.write_lock:
                    for batch in self._batches(values):
                        stored |= self._put_or_make_way(batch, now_s)
            except StoreError as exc:
                self._env.failed(exc)
        count = sum(record.key in stored for record, _ in good)
        self.stored += count
        self.bypassed += len(records) - count
        return count

    def _batches(self, values: Batch) -> Iterator[Batch]:
        """All in one batch, or several when one would need more of the map than its headroom."""
        batch: Batch = {}
        size_bytes = 0
        for key, (record, value) in values.items():
            if batch and size_bytes + len(value) > self._max_bytes // 4:
                yield batch
                batch, size_bytes = {}, 0
            batch[key] = (record, value)
            size_bytes += len(value)
        yield batch

    def _put_or_make_way(self, batch: Batch, now_s: float) -> set[bytes]:
        try:
            return self._put(batch, now_s)
        except MapFull:
            self._make_way(now_s)
            return self._put(batch, now_s)

    def _storable(self, record: Record, now_s: float) -> bool:
        times = (record.created_s, record.fresh_until_s, record.stale_until_s)
        return (
            len(record.key) == KEY_BYTES
            and all(0 <= moment < cache_order.MAX_TIME_S for moment in times)
            and freshness(record, now_s) != "dead"
            and len(record.answer) <= self._max_bytes // 4
        )

    def _ready(self, now_s: float) -> bool:
        if not 0.0 <= now_s - self._checked_s < CHECK_S:
            self._look(now_s)
        return self._env.reading is not None or self._reopened() is not None

    def _put(self, values: Batch, now_s: float) -> set[bytes]:
        """One transaction; the keys that are in the cache after it. Hold `write_lock`."""
        need_bytes = sum(cache_order.estimated_bytes(len(value)) for _, value in values.values())
        with self._env.writing_txn() as txn:
            order = cache_order.Order(txn, self._env, now_s)
            for key in values:
                order.remove(key)
            order.expire()
            order.make_room(self._max_entries - len(values), self._max_bytes - need_bytes)
            for record, value in values.values():
                order.insert(record, value)
            order.make_room(self._max_entries, self._max_bytes)
        self._env.extend()
        self.expired += order.expired
        self.evicted += order.evicted
        return values.keys() - order.removed

    def _make_way(self, now_s: float) -> None:
        """The map is full: most likely a reader pins old pages. Free what can be freed, and half of the rest.

        Hold `write_lock`. LMDB uses pages freed by one transaction only in the second after it, hence the
        small ones at the end.
        """
        env = self._env
        env.reader_check()
        with env.writing_txn() as txn:
            order = cache_order.Order(txn, env, now_s)
            order.expire()
            order.make_room(self._max_entries // 2, self._max_bytes // 2)
        self.expired += order.expired
        self.evicted += order.evicted
        for turn in (b"1", b"2"):
            with env.writing_txn() as txn:
                txn.put(b"turn", turn, db=env.meta)

    def trim(self, now_s: float) -> int:
        """Use less memory: remove what has expired, then let go of the file's pages; how many were removed.

        Its pages count as this process's while nobody else has them. The next read opens it anew.
        """
        removed = 0
        if self._ready(now_s):
            try:
                with self._env.write_lock:
                    with self._env.writing_txn() as txn:
                        order = cache_order.Order(txn, self._env, now_s)
                        order.expire()
                    removed = order.expired
                    self._env.unmap()
            except StoreError as exc:
                self._env.failed(exc)
        self.expired += removed
        return removed

    def put_meta(self, metas: Sequence[ModelMeta]) -> int:
        """Store model descriptions, each under its name; how many are there. Unchanged ones cost nothing."""
        values = {meta_key(meta.name): pack_meta(meta_key(meta.name), meta) for meta in metas}
        if not self._closed:
            self._env.verify()
        if self._reopened() is None:
            return 0
        env = self._env
        try:
            with env.write_lock:
                with env.reading_txn() as txn:
                    new = {key: value for key, value in values.items() if txn.get(key, db=env.meta) != value}
                if new:
                    with env.writing_txn() as txn:
                        for key, value in new.items():
                            txn.put(key, value, db=env.meta)
                    env.extend()
        except StoreError as exc:
            env.failed(exc)
            self._count_error(exc)
            return 0
        self._meta.clear()
        return len(values)

    def put_templates(self, packed: bytes) -> bool:
        """Publish the template set; whether it is there. An unchanged one costs nothing."""
        if not self._closed:
            self._env.verify()
        if self._reopened() is None:
            return False
        env = self._env
        try:
            with env.write_lock:
                with env.reading_txn() as txn:
                    known = txn.get(TEMPLATES_KEY, db=env.templates)
                    changed = known is None or bytes(known) != packed
                if changed:
                    with env.writing_txn() as txn:
                        txn.put(TEMPLATES_KEY, packed, db=env.templates)
                    env.extend()
        except StoreError as exc:
            env.failed(exc)
            self._count_error(exc)
            return False
        self._templates = None
        return True

    def purge(
        self, *, namespace: str | None = None, model: str | None = None, key: bytes | None = None
    ) -> int:
        """Remove the records that match all that is given, everything when nothing is; how many."""
        if not self._closed:
            self._env.verify()
        if self._reopened() is None:
            return 0
        env = self._env
        try:
            with env.write_lock:
                with env.writing_txn() as txn:
                    order = cache_order.Order(txn, env, 0.0)
                    removed = order.purge(namespace, model, key)
                env.extend()
        except StoreError as exc:
            env.failed(exc)
            self._count_error(exc)
            return 0
        return removed

    def reader_check(self) -> int:
        """Free the slots of dead readers, whose snapshots pin pages; how many there were."""
        return self._env.reader_check()


def map_bytes_for(max_bytes: int) -> int:
    """Size of the map, and so the most the file can grow to.

    Half as much again as the answers may take, at least 16 MiB: a transaction copies the pages it changes,
    and pages it frees can only be used two transactions later.
    """
    size_bytes = max_bytes + max(max_bytes // 2, MIN_HEADROOM_BYTES)
    return -(-size_bytes // 65536) * 65536


def meta_key(name: str) -> bytes:
    """Where a model's description stands; a name too long for LMDB is stood for by its hash."""
    key = b"model:" + name.encode("utf-8", "surrogateescape")
    return key if len(key) <= MAX_META_KEY_BYTES else b"model#" + hashlib.sha256(key).digest()
