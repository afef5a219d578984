"""The byte form of what lies in the cache: sealed records and model descriptions.

May live here: the structures, packing, verified unpacking. May not: LMDB, clocks, policy (policy.py), the
meaning of an answer (payload.py).

Every value opens with eight bytes, then a MessagePack body (docs/cache.md has the same in prose):

    +-----------------+-----------------------+--------------------------------+
    | magic + version | CRC-32 of key + body  | body                           |
    | WLR 0x01        | 4 B, big-endian       | MessagePack array or map       |
    +-----------------+-----------------------+--------------------------------+

The checksum tells damage from health; it is no defence against a forger, because whoever can write the file
can compute any checksum. CRC-32 costs 0.8 us for 2 KB where blake2b costs 2.5 and SHA-256 2.1 (measured), a
tenth of a whole hit. It covers the LMDB key, the times and every other field; a record also carries its full
key, so a page that turns up at the wrong place is not taken for an answer to another question.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, Literal

import msgspec

RECORD_MAGIC: Final = b"WLR\x01"
META_MAGIC: Final = b"WLM\x01"
KEY_BYTES: Final = 32
HEAD_BYTES: Final = 8

CacheRule = Literal["deterministic", "always", "never"]

_head = struct.Struct(">4sI")
_unpack_head = _head.unpack_from
_crc32 = zlib.crc32


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One stored answer. Field order is the order in the body; new fields are added at the end."""

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


class Damaged(Exception):
    """The bytes are not a whole value of the key they stand under: another format, or damage."""


_encoder = msgspec.msgpack.Encoder()
_decode_record = msgspec.msgpack.Decoder(Record).decode
_decode_meta = msgspec.msgpack.Decoder(ModelMeta).decode


def pack_record(record: Record) -> bytes:
    """The value to store under `record.key`."""
    body = _encoder.encode(record)
    return _head.pack(RECORD_MAGIC, _crc32(body)) + body


def unpack_record(key: bytes, value: bytes | memoryview) -> Record:
    """A verified copy of the record of `key`. Raises Damaged; never returns another key's record."""
    try:
        magic, checksum = _unpack_head(value)
        body = value[HEAD_BYTES:]
        if magic != RECORD_MAGIC or _crc32(body) != checksum:
            raise Damaged
        record = _decode_record(body)
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Damaged from None
    if record.key != key:
        raise Damaged
    return record


def pack_meta(key: bytes, meta: ModelMeta) -> bytes:
    """The value to store under `key` in the meta database; the key enters the checksum only."""
    body = _encoder.encode(meta)
    return _head.pack(META_MAGIC, _crc32(body, _crc32(key))) + body


def unpack_meta(key: bytes, value: bytes | memoryview) -> ModelMeta:
    """A verified copy of the description under `key`. Raises Damaged."""
    try:
        magic, checksum = _unpack_head(value)
        body = value[HEAD_BYTES:]
        if magic != META_MAGIC or _crc32(body, _crc32(key)) != checksum:
            raise Damaged
        return _decode_meta(body)
    except (struct.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Damaged from None
