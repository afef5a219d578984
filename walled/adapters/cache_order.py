"""The order in which answers leave the cache: the `expiry` database and what is removed when.

May live here: index keys, insertion and removal of a record together with its index, sweeping within one
write transaction. May not: opening, committing, counting errors (cache.py).

`expiry` holds two keys per record, with empty values, and is walked from its front:

    +-----+---------------------------------+--------------+
    | "c" | creation                        | key, 32 B    |   the oldest first
    | "e" | end of life (stale_until)       | key, 32 B    |   the soonest dead first
    +-----+---------------------------------+--------------+
            unsigned 64-bit microseconds of unix time, big-endian

Answers and index change in one transaction. An index key whose record has gone, or has other times, or is
damaged is only rubbish; it is removed when a sweep meets it.
"""

from __future__ import annotations

import struct
from typing import Final

from walled.adapters.cache_env import Environment, Transaction
from walled.core.policy import CLOCK_SLACK_S
from walled.core.record import KEY_BYTES, Damaged, Record, unpack_record

MAX_TIME_S: Final = 2**63 / 1e6
MAX_EXPIRED_PER_SWEEP: Final = 256
"""So that no single put takes long after a night in which everything died."""

_CREATED: Final = b"c"
_EXPIRES: Final = b"e"
_HEAD = struct.Struct(">cQ")
_INDEX_BYTES: Final = _HEAD.size + KEY_BYTES
_PAGE_BYTES: Final = 4096
_INLINE_BYTES: Final = 1950
"""Records beyond this spill to pages of their own."""


def estimated_bytes(value_bytes: int) -> int:
    """What a record will take on disk: whole pages past _INLINE_BYTES, pages two thirds full below."""
    index_bytes = 2 * (_INDEX_BYTES + 10) * 3 // 2
    if value_bytes > _INLINE_BYTES:
        return -(-(value_bytes + 16) // _PAGE_BYTES) * _PAGE_BYTES + 64 + index_bytes
    return (value_bytes + KEY_BYTES + 10) * 3 // 2 + index_bytes


def oldest_s(txn: Transaction, env: Environment) -> float | None:
    """Creation time of the oldest record."""
    found = _first(txn, env, _CREATED)
    return None if found is None else _moment_s(found)


def scrub(txn: Transaction, env: Environment) -> tuple[int, int]:
    """Read every record as a reader would, and remove damaged ones; how many were there, how many left."""
    entries = 0
    damaged = []
    for key, value in txn.cursor(env.answers):
        entries += 1
        try:
            unpack_record(key, value)
        except Damaged:
            damaged.append(key)
    for key, _ in txn.cursor(env.answers):
        if txn.get(key, db=env.answers) is None:
            damaged.append(key)
    for key in damaged:
        txn.delete(key, db=env.answers)
    return entries, len(damaged)


class Order:
    """The records within one write transaction, in the order of their leaving."""

    def __init__(self, txn: Transaction, env: Environment, now_s: float) -> None:
        self._txn = txn
        self._env = env
        self._now_s = now_s
        self._inserted: set[bytes] = set()
        self.removed: set[bytes] = set()
        """Keys that were inserted here and had to leave again."""
        self.expired = 0
        self.evicted = 0

    def insert(self, record: Record, value: bytes) -> None:
        """Add a record that is not there (see `remove`)."""
        txn, env = self._txn, self._env
        txn.put(record.key, value, db=env.answers)
        txn.put(_index_key(_CREATED, record.created_s, record.key), b"", db=env.expiry)
        txn.put(_index_key(_EXPIRES, record.stale_until_s, record.key), b"", db=env.expiry)
        self._inserted.add(record.key)

    def remove(self, key: bytes) -> bool:
        """Remove the record of a key, if there is one, with its index."""
        value = self._txn.get(key, db=self._env.answers)
        if value is None:
            return False
        try:
            record = unpack_record(key, value)
        except Damaged:
            pass  # its times are unknown, so its index becomes rubbish
        else:
            self._txn.delete(_index_key(_CREATED, record.created_s, key), db=self._env.expiry)
            self._txn.delete(_index_key(_EXPIRES, record.stale_until_s, key), db=self._env.expiry)
        self._txn.delete(key, db=self._env.answers)
        if key in self._inserted:
            self.removed.add(key)
        return True

    def expire(self) -> None:
        """Remove dead records, those from the future first, at most MAX_EXPIRED_PER_SWEEP of each."""
        future_s = self._now_s + CLOCK_SLACK_S
        for _ in range(MAX_EXPIRED_PER_SWEEP):
            found = _last(self._txn, self._env, _CREATED)
            if found is None or _moment_s(found) <= future_s:
                break
            self.expired += self._drop(found)
        for _ in range(MAX_EXPIRED_PER_SWEEP):
            found = _first(self._txn, self._env, _EXPIRES)
            if found is None or _moment_s(found) > self._now_s:
                break
            self.expired += self._drop(found)

    def make_room(self, max_entries: int, max_bytes: int) -> None:
        """Remove the oldest until no more than that is left."""
        while self._over(max_entries, max_bytes):
            found = _first(self._txn, self._env, _CREATED)
            if found is None:
                break
            self.evicted += self._drop(found)

    def purge(self, namespace: str | None, model: str | None, key: bytes | None) -> int:
        """Remove what matches all that is given; damaged records match any namespace and model."""
        txn, env = self._txn, self._env
        if namespace is None and model is None and key is None:
            count = int(txn.stat(env.answers)["entries"])
            txn.drop(env.answers, delete=False)
            txn.drop(env.expiry, delete=False)
            return count
        if key is not None:
            value = txn.get(key, db=env.answers)
            wanted = [key] if value is not None and _matches(key, value, namespace, model) else []
        else:
            wanted = [
                found for found, value in txn.cursor(env.answers) if _matches(found, value, namespace, model)
            ]
        return sum(self.remove(found) for found in wanted)

    def _over(self, max_entries: int, max_bytes: int) -> bool:
        answers = self._txn.stat(self._env.answers)
        if answers["entries"] == 0:
            return False
        if answers["entries"] > max_entries:
            return True
        return _bytes(answers) + _bytes(self._txn.stat(self._env.expiry)) > max_bytes

    def _drop(self, index_key: bytes) -> bool:
        """Remove what an index key stands for; whether that was a record and not rubbish."""
        txn, env = self._txn, self._env
        txn.delete(index_key, db=env.expiry)
        if len(index_key) != _INDEX_BYTES:
            return False
        kind, key = index_key[:1], index_key[_HEAD.size :]
        value = txn.get(key, db=env.answers)
        if value is None:
            return False
        try:
            record = unpack_record(key, value)
        except Damaged:
            return self.remove(key)
        moment_s = record.created_s if kind == _CREATED else record.stale_until_s
        return index_key == _index_key(kind, moment_s, key) and self.remove(key)


def _index_key(kind: bytes, moment_s: float, key: bytes) -> bytes:
    return _HEAD.pack(kind, int(moment_s * 1e6)) + key


def _moment_s(index_key: bytes) -> float:
    """The time in an index key; 0 for one that is too short to be one, so that it goes first."""
    return int.from_bytes(index_key[1 : _HEAD.size], "big") / 1e6 if len(index_key) >= _HEAD.size else 0.0


def _first(txn: Transaction, env: Environment, kind: bytes) -> bytes | None:
    with txn.cursor(env.expiry) as cursor:
        found = bytes(cursor.key()) if cursor.set_range(kind) else b""
    return found if found.startswith(kind) else None


def _last(txn: Transaction, env: Environment, kind: bytes) -> bytes | None:
    after = bytes([kind[0] + 1])
    with txn.cursor(env.expiry) as cursor:
        there = cursor.prev() if cursor.set_range(after) else cursor.last()
        found = bytes(cursor.key()) if there else b""
    return found if found.startswith(kind) else None


def _bytes(stat: dict[str, int]) -> int:
    return int((stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * stat["psize"])


def _matches(key: bytes, value: bytes, namespace: str | None, model: str | None) -> bool:
    try:
        record = unpack_record(key, value)
    except Damaged:
        return True
    return namespace in (None, record.namespace) and model in (None, record.model)
