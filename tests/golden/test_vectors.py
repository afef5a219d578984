"""The golden byte vectors, decoded by the codec of record (msgpack) and made again by ours (msgspec).

May live here: checks of the files beside this one, and of docs/protocol.md against them and the code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.golden import make_vectors
from walled import payload as pl
from walled import protocol as p

HERE = Path(__file__).parent


def load(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((HERE / name).read_text("utf-8"))
    return found


FRAMES = load("frames.json")
REQUESTS = load("requests.json")
ANSWERS = load("answers.json")
KEYS = load("keys.json")
HEADERS = {
    (p.REQUEST, "client"): p.RequestHeader,
    (p.REQUEST, "broker"): p.JobHeader,
    (p.ACCEPTED, "broker"): p.AcceptedHeader,
    (p.PARTIAL, "broker"): p.PartialHeader,
    (p.PARTIAL, "worker"): p.PartialHeader,
    (p.FINAL, "broker"): p.FinalHeader,
    (p.FINAL, "worker"): p.FinalHeader,
    (p.ERROR, "broker"): p.ErrorHeader,
    (p.BUSY, "broker"): p.ErrorHeader,
    (p.READY, "worker"): p.ReadyHeader,
    (p.CREDIT, "worker"): p.CreditHeader,
    (p.HEARTBEAT, "broker"): p.HeartbeatHeader,
    (p.HEARTBEAT, "worker"): p.HeartbeatHeader,
}


def named(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


def real(value: Any) -> Any:
    """The readable form with {"hex": ...} made bytes again."""
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: real(item) for key, item in value.items()}
    if isinstance(value, list):
        return [real(item) for item in value]
    return value


def test_the_files_are_what_the_code_makes() -> None:
    made = make_vectors.files()
    assert {name: make_vectors.text_of(vectors) for name, vectors in made.items()} == {
        name: (HERE / name).read_text("utf-8") for name in made
    }


def test_the_script_writes_nothing_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_vectors, "HERE", tmp_path)
    (tmp_path / "frames.json").write_text("[]\n")
    assert make_vectors.main([]) == 1
    assert (tmp_path / "frames.json").read_text() == "[]\n"
    assert [path.name for path in tmp_path.iterdir()] == ["frames.json"]
    assert "nothing was written" in capsys.readouterr().out
    assert make_vectors.main(["--replace"]) == 0
    assert make_vectors.main([]) == 0


def test_every_message_type_has_a_vector() -> None:
    assert {bytes([vector["type"]]) for vector in FRAMES} == set(p.TYPES)


@named(FRAMES)
def test_frames(vector: dict[str, Any]) -> None:
    parts = [bytes.fromhex(part) for part in vector["frames"]]
    header = real(vector["header"])
    assert parts[0] == b"WLD\x01"
    assert parts[1] == bytes([vector["type"]])
    assert parts[2].hex() == vector["request_id"]
    assert msgpack.unpackb(parts[3], strict_map_key=True) == header
    assert msgpack.packb(header) == parts[3]
    assert parts[4].hex() == vector["payload"]
    # And ours: taken apart, understood, put together again.
    envelope = p.parse(parts)
    sender = vector["direction"].split(" ")[0]
    cls = HEADERS.get((envelope.type, sender))
    if cls is None:
        assert header == {}
        again = p.frames(envelope.type, envelope.request_id, None, envelope.payload)
    else:
        ours = p.decode_header(cls, envelope.header)
        assert all(getattr(ours, name) is not None for name in header)
        again = p.frames(envelope.type, envelope.request_id, ours, envelope.payload)
    assert again == parts


@named([vector for vector in FRAMES if vector["type"] == p.CONTROL[0]])
def test_control_payloads_are_maps(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["payload"])
    assert p.unpack_map(payload) == msgpack.unpackb(payload)
    assert msgpack.packb(msgpack.unpackb(payload)) == payload


@named(REQUESTS)
def test_requests(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    packed = real(vector["packed"])
    assert msgpack.unpackb(data, strict_map_key=True) == packed
    assert msgpack.packb(packed) == data
    assert list(packed) == sorted(packed)
    request = pl.request_from(real(vector["asked"]))
    assert pl.pack_request(request) == data
    assert pl.unpack_request(data) == request


@named(ANSWERS)
def test_answers(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    packed = real(vector["packed"])
    assert msgpack.unpackb(data, strict_map_key=True) == packed
    assert msgpack.packb(packed) == data
    assert list(packed) == sorted(packed)
    assert pl.pack_answer(pl.unpack_answer(data)) == data


@named(KEYS)
def test_keys(vector: dict[str, Any]) -> None:
    # Written out byte by byte as docs/protocol.md does, not with our own functions.
    fingerprint = hashlib.sha256(f"walled-model\0{vector['kind']}\0{vector['digest']}".encode()).digest()
    assert fingerprint.hex() == vector["fingerprint"]
    namespace = vector["namespace"].encode()
    payload = bytes.fromhex(vector["payload"])
    hashed = b"walled-key\0" + b"1\0" + str(len(namespace)).encode() + b"\0" + namespace
    assert hashlib.sha256(hashed + fingerprint + payload).hexdigest() == vector["key"]
    assert pl.model_fingerprint(vector["kind"], vector["digest"]) == fingerprint
    assert pl.cache_key(vector["namespace"], fingerprint, payload).hex() == vector["key"]


def test_keys_of_different_questions_differ() -> None:
    assert len({vector["key"] for vector in KEYS}) == len(KEYS) - 1  # one is the same question twice
    by_name = {vector["name"]: vector["key"] for vector in KEYS}
    assert by_name["chat"] == by_name["same-question-other-spelling"]
