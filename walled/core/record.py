"""The byte form of what lies in the cache: sealed records and model descriptions.

May live here: the structures, packing, verified unpacking. May not: LMDB, clocks, policy (policy.py), the
meaning of an answer (payload.py).

Every value is one MessagePack array (docs/cache.md has the same in prose):

    +--------+------+----------------------------------------+------------------------+
    | "WLR1" | key  | times, names, answer | description     | CRC-32 of all before,  |
    | "WLM1" |      |                                        | binary, 4 B, LE        |
    +--------+------+----------------------------------------+------------------------+

The first element says what it is and in which version. A CRC-32 stored behind its data, least significant
byte first, makes the CRC-32 of the whole a constant, so a reader checks a value with one call and takes it
apart with one more: 1.0 us for 2 KB, where a header in front cost 1.7 (measured).

The checksum tells damage from health; it is no defence against a forger, because whoever can write the file
can compute any checksum. CRC-32 costs 0.7 us for 2 KB where blake2b costs 2.5 and SHA-256 2.1 (measured). It
covers the key, the times and every other field; and the key in the value must be the key it was found under,
so a page that turns up at the wrong place is not taken for the answer to another question.
"""

from __future__ import annotations

import zlib
from typing import Final, Literal

import msgspec

KEY_BYTES: Final = 32

CacheRule = Literal["deterministic", "always", "never"]

_crc32 = zlib.crc32
_SEAL_HEAD: Final = b"\xc4\x04"  # binary of four bytes
_SOUND: Final = 0x2144DF1C  # CRC-32 of anything followed by its own CRC-32


class Record(msgspec.Struct, array_like=True, tag="WLR1", frozen=True, gc=False):
    """One stored answer. Field order is the order in the array; new fields are added before the checksum."""

    key: bytes
    """payload.cache_key: 32 bytes."""
    created_s: float
    fresh_until_s: float
    stale_until_s: float
    """Unix seconds. Fresh before fresh_until_s, then stale before stale_until_s, then dead."""
    namespace: str
    model: str
    """The configured name, not an alias."""
    backend: str
    answer: bytes
    """payload.pack_answer."""


class ModelMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client must know of a model to compute keys and judge records while the daemon is dead."""

    name: str
    """A model's configured name, or an alias of it; the entry stands under this name."""
    backend: str
    fingerprint: bytes
    """payload.model_fingerprint: 32 bytes."""
    policy: CacheRule = "deterministic"
    ttl_s: float = 3600.0
    stale_ttl_s: float = 86400.0
    refresh_ahead: float = 0.1


class _MetaValue(msgspec.Struct, array_like=True, tag="WLM1", frozen=True):
    """A description as it is stored."""

    key: bytes
    """The key of the meta database it stands under."""
    meta: ModelMeta


class Damaged(Exception):
    """The bytes are not a whole value of the key they stand under: another format, or damage."""


_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(Record).decode
_decode_meta = msgspec.msgpack.Decoder(_MetaValue).decode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _sealed(array: bytes) -> bytes:
    """A short MessagePack array with the checksum as one more element."""
    body = bytes([array[0] + 1]) + array[1:] + _SEAL_HEAD
    return body + _crc32(body).to_bytes(4, "little")


def pack_record(record: Record) -> bytes:
    """The value to store under `record.key`."""
    return _sealed(_encode(record))


def unpack_record(key: bytes, value: bytes | memoryview) -> Record:
    """A verified copy of the record of `key`. Raises Damaged; never returns another key's record."""
    if _crc32(value) != _SOUND:
        raise Damaged
    try:
        record = _decode_record(value)
    except _UNREADABLE:
        raise Damaged from None
    if record.key != key:
        raise Damaged
    return record


def pack_meta(key: bytes, meta: ModelMeta) -> bytes:
    """The value to store under `key` in the meta database."""
    return _sealed(_encode(_MetaValue(key, meta)))


def unpack_meta(key: bytes, value: bytes | memoryview) -> ModelMeta:
    """A verified copy of the description under `key`. Raises Damaged."""
    if _crc32(value) != _SOUND:
        raise Damaged
    try:
        found = _decode_meta(value)
    except _UNREADABLE:
        raise Damaged from None
    if found.key != key:
        raise Damaged
    return found.meta
