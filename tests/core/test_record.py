"""The byte form of cache values: round trip, damage, and the bytes docs/cache.md promises."""

from __future__ import annotations

import zlib

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core.record import (
    Damaged,
    ModelMeta,
    Record,
    pack_meta,
    pack_record,
    unpack_meta,
    unpack_record,
)

times = st.floats(min_value=0, max_value=4e9)
records = st.builds(
    Record,
    key=st.binary(min_size=32, max_size=32),
    created_s=times,
    fresh_until_s=times,
    stale_until_s=times,
    namespace=st.text(max_size=20),
    model=st.text(max_size=20),
    backend=st.text(max_size=20),
    answer=st.binary(max_size=300),
)
metas = st.builds(
    ModelMeta,
    name=st.text(max_size=20),
    backend=st.text(max_size=20),
    fingerprint=st.binary(min_size=32, max_size=32),
    policy=st.sampled_from(["deterministic", "always", "never"]),
    ttl_s=times,
    stale_ttl_s=times,
    refresh_ahead=st.floats(0, 1),
)
EXAMPLE = Record(
    key=bytes(range(32)),
    created_s=1.0,
    fresh_until_s=2.0,
    stale_until_s=3.0,
    namespace="default",
    model="m",
    backend="b",
    answer=b"\x80",
)
EXAMPLE_META = ModelMeta(name="m", backend="b", fingerprint=bytes(32))


@given(records)
def test_a_record_comes_back_as_it_was_put(record: Record) -> None:
    assert unpack_record(record.key, pack_record(record)) == record


@given(records, st.data())
def test_no_single_damaged_byte_is_believed(record: Record, data: st.DataObject) -> None:
    value = bytearray(pack_record(record))
    where = data.draw(st.integers(0, len(value) - 1))
    value[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damaged):
        unpack_record(record.key, bytes(value))


@given(records, st.data())
def test_a_cut_record_is_not_believed(record: Record, data: st.DataObject) -> None:
    value = pack_record(record)
    with pytest.raises(Damaged):
        unpack_record(record.key, value[: data.draw(st.integers(0, len(value) - 1))])


@given(st.binary(max_size=200))
def test_foreign_bytes_are_damage_and_nothing_else(value: bytes) -> None:
    for key in (b"", bytes(32)):
        with pytest.raises(Damaged):
            unpack_record(key, value)
        with pytest.raises(Damaged):
            unpack_meta(key, value)


@given(records, st.binary(min_size=32, max_size=32))
def test_a_record_under_another_key_is_not_believed(record: Record, key: bytes) -> None:
    if key != record.key:
        with pytest.raises(Damaged):
            unpack_record(key, pack_record(record))


def test_a_record_is_a_copy_not_a_view_of_the_map() -> None:
    value = bytearray(pack_record(EXAMPLE))
    record = unpack_record(EXAMPLE.key, memoryview(value))
    value[:] = bytes(len(value))
    assert record == EXAMPLE
    assert type(record.answer) is bytes
    assert type(record.key) is bytes


def sealed(*fields: object) -> bytes:
    """A value made by hand, as docs/cache.md says, with the codec of record."""
    body = msgpack.packb([*fields, bytes(4)])[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_the_format_is_the_documented_one() -> None:
    assert pack_record(EXAMPLE) == sealed("WLR1", *msgspec.structs.astuple(EXAMPLE))
    assert pack_meta(b"model:m", EXAMPLE_META) == sealed(
        "WLM1", b"model:m", {"name": "m", "backend": "b", "fingerprint": bytes(32)}
    )


def test_fields_a_newer_version_appends_are_passed_over() -> None:
    value = sealed("WLR1", *msgspec.structs.astuple(EXAMPLE), "new", {"field": 1})
    assert unpack_record(EXAMPLE.key, value) == EXAMPLE


@pytest.mark.parametrize("tag", ["WLR2", "WLM1", "", 1, None])
def test_another_format_is_a_miss_not_a_guess(tag: object) -> None:
    with pytest.raises(Damaged):
        unpack_record(EXAMPLE.key, sealed(tag, *msgspec.structs.astuple(EXAMPLE)))


@pytest.mark.parametrize("fields", [(), ("WLR1",), ("WLR1", bytes(range(32)), 1.0), ("WLR1", "text", 1, 2)])
def test_a_sound_checksum_over_something_else_is_not_believed(fields: tuple[object, ...]) -> None:
    for unpack in (unpack_record, unpack_meta):
        with pytest.raises(Damaged):
            unpack(EXAMPLE.key, sealed(*fields))


def test_golden_record() -> None:
    """The example of docs/cache.md, byte for byte."""
    expected = (
        "9a" "a4574c5231" "c420" + bytes(range(32)).hex() + "cb3ff0000000000000" "cb4000000000000000"
        "cb4008000000000000" "a764656661756c74" "a16d" "a162" "c40180" "c404" "ef1586c2"
    )  # fmt: skip
    assert pack_record(EXAMPLE).hex() == expected


@given(metas, st.text(max_size=10))
def test_a_description_comes_back_under_its_own_key_only(meta: ModelMeta, other: str) -> None:
    key = f"model:{meta.name}".encode("utf-8", "surrogatepass")
    value = pack_meta(key, meta)
    assert unpack_meta(key, value) == meta
    if other:
        with pytest.raises(Damaged):
            unpack_meta(key + other.encode("utf-8", "surrogatepass"), value)
