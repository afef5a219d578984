"""Reading the shared cache in the client's own process: what is served, under which key, and renewal."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from walled_client import AsyncClient, Client, calls

from tests.client.fake_broker import FakeBroker
from walled import protocol
from walled.adapters.cache import CacheWriter
from walled.core.record import ModelMeta, Record
from walled.errors import DaemonUnavailable, NotCached
from walled.payload import Answer, Usage, cache_key, model_fingerprint, pack_answer
from walled.protocol import RequestHeader

FINGERPRINT = model_fingerprint("scripted", "digest")
META = ModelMeta(name="default", backend="b", fingerprint=FINGERPRINT)


@pytest.fixture
def writer(run_dir: Path) -> Iterator[CacheWriter]:
    """The cache the clients of these tests find, knowing the model `default`."""
    found = CacheWriter(run_dir / "cache", max_bytes=1 << 22, max_entries=100)
    found.put_meta([META])
    yield found
    found.close()


def store(
    writer: CacheWriter,
    question: str,
    text: str,
    *,
    age_s: float = 1.0,
    life_s: float = 100.0,
    namespace: str = "default",
    fingerprint: bytes = FINGERPRINT,
    **fields: object,
) -> bytes:
    """Put an answer under the key of that call; the key."""
    fields = {"temperature": 0, **fields}
    payload = calls.chat(calls.Settings(), question, fields).payload
    key = cache_key(namespace, fingerprint, payload)
    created_s = time.time() - age_s
    answer = Answer(text=text, model="m", usage=Usage(1, 2))
    record = Record(
        key=key, namespace=namespace, model="default", backend="b", created_s=created_s,
        fresh_until_s=created_s + life_s, stale_until_s=created_s + 10 * life_s, answer=pack_answer(answer),
    )  # fmt: skip
    assert writer.put_many([record], time.time()) == 1
    return key


def test_a_fresh_answer_needs_no_daemon(writer: CacheWriter, run_dir: Path) -> None:
    store(writer, "q", "stored", age_s=5)
    with Client(run_dir, connect_timeout_s=0.1) as client:
        reply = client.chat("q", temperature=0)
        assert (reply.text, reply.source, reply.degraded, reply.backend) == ("stored", "cache", False, "b")
        assert 5 <= reply.age_s < 60
        assert reply.request_id == ""
        assert 0 < reply.phases.total_ms <= reply.elapsed_ms
        assert client.chat("q", temperature=0.0, stop=[]).text == "stored", "0 is 0.0, a default is absent"
        assert client.counters() == {"local_hits": 2}, "no connection has been made"
        with pytest.raises(DaemonUnavailable):
            client.chat("another", temperature=0)


def test_a_stream_of_a_hit_is_one_chunk(writer: CacheWriter, run_dir: Path) -> None:
    store(writer, "q", "stored")
    with Client(run_dir) as client, client.stream("q", temperature=0) as stream:
        assert [chunk.text for chunk in stream] == ["stored"]
        assert stream.reply.source == "cache"
        assert stream.request_id == ""


def test_a_batch_serves_hits_in_place(writer: CacheWriter, broker: FakeBroker) -> None:
    store(writer, "q", "stored")
    with Client(endpoint=broker.endpoint) as client:
        results = client.batch([{"messages": "q", "temperature": 0}, "miss"])
    assert [str(r) for r in results] == ["stored", "miss"]


@pytest.mark.parametrize(
    ("fields", "hit"),
    [
        ({}, True),
        ({"cache": "always"}, True),
        ({"cache": "only"}, True),
        ({"cache": True}, True),
        ({"cache": "bypass"}, False),
        ({"cache": "refresh"}, False),
        ({"cache": False}, False),
        ({"namespace": "other"}, False),
        ({"model": "unknown"}, False),
        ({"max_tokens": 5}, False),
        ({"system": "s"}, False),
        ({"temperature": None}, False),
        ({"deadline_s": 3, "priority": "batch", "session": "s"}, True),
    ],
)
def test_what_is_read_is_what_the_policy_allows_and_the_key_says(
    writer: CacheWriter, broker: FakeBroker, fields: dict[str, object], hit: bool
) -> None:
    store(writer, "q", "stored")
    with Client(endpoint=broker.endpoint) as client:
        reply = client.chat("q", **{"temperature": 0, **fields})  # type: ignore[arg-type]
    assert reply.source == ("cache" if hit else "model")
    assert reply.text == ("stored" if hit else "q")


def test_the_clients_own_cache_setting(writer: CacheWriter, broker: FakeBroker) -> None:
    store(writer, "q", "stored")
    with Client(endpoint=broker.endpoint, cache=False) as client:
        assert client.chat("q", temperature=0).source == "model"
        assert protocol.decode_header(RequestHeader, broker.next(protocol.REQUEST).header).cache == "default"
    with Client(endpoint=broker.endpoint, cache="bypass") as client:
        assert client.chat("q", temperature=0).source == "model"
        assert client.with_options(cache="default").chat("q", temperature=0).source == "cache"


def test_a_models_policy_is_obeyed(writer: CacheWriter, broker: FakeBroker) -> None:
    writer.put_meta(
        [
            ModelMeta(name="never", backend="b", fingerprint=FINGERPRINT, policy="never"),
            ModelMeta(name="always", backend="b", fingerprint=FINGERPRINT, policy="always"),
        ]
    )
    store(writer, "q", "stored", temperature=0.7)
    store(writer, "d", "stored")
    with Client(endpoint=broker.endpoint) as client:
        assert client.chat("q", temperature=0.7).source == "model"
        assert client.chat("q", temperature=0.7, model="always").source == "cache"
        assert client.chat("d", temperature=0, model="never").source == "model"
        assert client.chat("d", temperature=0, model="never", cache="always").source == "cache"


def test_only_fails_at_once_when_nothing_is_stored(writer: CacheWriter, run_dir: Path) -> None:
    store(writer, "stale", "old", age_s=50, life_s=10)
    with Client(run_dir) as client:
        for question in ("stale", "nothing"):
            with pytest.raises(NotCached):
                client.chat(question, temperature=0, cache="only")
        assert "late_replies" not in client.counters(), "no connection has been made"


def test_a_stale_answer_is_not_passed_off_as_fresh(writer: CacheWriter, broker: FakeBroker) -> None:
    store(writer, "q", "old", age_s=50, life_s=10)
    with Client(endpoint=broker.endpoint) as client:
        assert client.chat("q", temperature=0).source == "model"


def test_an_answer_of_other_weights_is_never_served(writer: CacheWriter, broker: FakeBroker) -> None:
    store(writer, "q", "of other weights", fingerprint=model_fingerprint("scripted", "old digest"))
    with Client(endpoint=broker.endpoint) as client:
        assert client.chat("q", temperature=0).source == "model"


def test_a_damaged_record_is_a_miss(writer: CacheWriter, broker: FakeBroker) -> None:
    key = store(writer, "q", "x")
    record = Record(
        key=key, namespace="default", model="default", backend="b", created_s=time.time(),
        fresh_until_s=time.time() + 50, stale_until_s=time.time() + 50, answer=b"\xc1 not an answer",
    )  # fmt: skip
    writer.put_many([record], time.time())
    with Client(endpoint=broker.endpoint) as client:
        assert client.chat("q", temperature=0).source == "model"


def test_a_cache_that_appears_later_is_found(
    broker: FakeBroker, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walled_client.local.LOOK_AGAIN_S", 0.0)
    with Client(endpoint=broker.endpoint) as client:
        assert client.chat("q", temperature=0).source == "model"
        elsewhere = run_dir / "elsewhere"
        writer = CacheWriter(elsewhere, max_bytes=1 << 22, max_entries=100)
        writer.put_meta([META])
        store(writer, "q", "stored")
        manifest = f'{{"cache_dir": "{elsewhere}", "endpoints": {{}}}}'
        (run_dir / "walled.json").write_text(manifest)
        client.chat("q", temperature=0)
        assert client.chat("q", temperature=0).source == "cache"
        writer.close()


def test_what_a_former_daemon_left_is_not_read_when_the_present_one_has_no_cache(
    broker: FakeBroker, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = run_dir / "leftover"
    monkeypatch.setenv("WALLED_CACHE_DIR", str(leftover))
    writer = CacheWriter(leftover, max_bytes=1 << 22, max_entries=100)
    writer.put_meta([META])
    store(writer, "q", "stored")
    with Client(run_dir=run_dir) as client:
        assert client.chat("q", temperature=0).source == "cache", "without a manifest the usual place"
    (run_dir / "walled.json").write_text('{"cache_dir": "", "endpoints": {}}')
    with Client(run_dir=run_dir) as client:
        assert client.chat("q", temperature=0).source == "model"
    writer.close()


def test_without_its_manifest_another_daemons_cache_is_not_read(
    broker: FakeBroker, run_dir: Path, tmp_path: Path
) -> None:
    """The usual cache is that of the usual run directory, not of one whose manifest was deleted."""
    writer = CacheWriter(run_dir / "cache", max_bytes=1 << 22, max_entries=100)
    writer.put_meta([META])
    store(writer, "q", "another daemon's")
    other = tmp_path / "other"
    other.mkdir()
    with Client(run_dir, endpoint=broker.endpoint) as client:
        assert client.chat("q", temperature=0).source == "cache", "or this shows nothing"
    with Client(other, endpoint=broker.endpoint) as client:
        assert client.chat("q", temperature=0).source == "model"
    writer.close()


# --- renewal ---------------------------------------------------------------------------------------


def test_a_hit_late_in_its_life_is_renewed_once_in_the_background(
    writer: CacheWriter, broker: FakeBroker
) -> None:
    store(writer, "old", "stored", age_s=9500, life_s=10_000)
    store(writer, "young", "stored", age_s=5000, life_s=10_000)
    with Client(endpoint=broker.endpoint) as client:
        client.chat("connect", temperature=1)
        broker.next(protocol.REQUEST)
        for _ in range(5):
            assert client.chat("young", temperature=0).source == "cache"
            assert client.chat("old", temperature=0).source == "cache"
        message = broker.next(protocol.REQUEST)
        header = protocol.decode_header(RequestHeader, message.header)
        assert (header.background, header.cache, header.priority) == (True, "refresh", "batch")
        assert not header.stream
        assert client.chat("last", temperature=1).text == "last"
        assert broker.next(protocol.REQUEST).request_id.hex() != message.request_id.hex()
        assert broker.seen.empty(), "renewed once, not five times"
        assert client.in_flight() == []
        assert client.counters()["late_replies"] == 0


def test_a_renewal_that_cannot_be_sent_costs_nothing_and_is_tried_again(
    writer: CacheWriter, run_dir: Path
) -> None:
    store(writer, "old", "stored", age_s=9500, life_s=10_000)
    broker = FakeBroker(run_dir)
    with Client(run_dir, connect_timeout_s=0.5) as client:
        started_s = time.monotonic()
        assert client.chat("old", temperature=0).source == "cache"
        assert time.monotonic() - started_s < 0.4
        assert client.in_flight() == []
        with broker:
            until_s = time.monotonic() + 10
            while broker.seen.empty():
                assert client.chat("old", temperature=0).source == "cache"
                assert time.monotonic() < until_s, "never tried again"
            assert protocol.decode_header(RequestHeader, broker.next(protocol.REQUEST).header).background


# --- asyncio and fork ------------------------------------------------------------------------------


def test_an_async_hit_does_not_touch_the_loop(writer: CacheWriter, run_dir: Path) -> None:
    store(writer, "q", "stored")
    client = AsyncClient(run_dir)
    call = client.chat("q", temperature=0)
    with pytest.raises(StopIteration) as ended:
        call.send(None)  # driven by hand: there is no loop it could use
    assert ended.value.value.source == "cache"


def test_async_renewal(writer: CacheWriter, broker: FakeBroker) -> None:
    store(writer, "old", "stored", age_s=9500, life_s=10_000)

    async def run() -> None:
        async with AsyncClient(endpoint=broker.endpoint) as client:
            await client.chat("connect")
            for _ in range(3):
                assert (await client.chat("old", temperature=0)).source == "cache"
            await client.chat("last")
            assert client.in_flight() == []

    asyncio.run(run())
    headers = [protocol.decode_header(RequestHeader, broker.next(protocol.REQUEST).header) for _ in range(3)]
    assert [header.background for header in headers] == [False, True, False]


def test_hits_go_on_after_a_fork(writer: CacheWriter, run_dir: Path) -> None:
    store(writer, "q", "stored")
    with Client(run_dir) as client:
        assert client.chat("q", temperature=0).source == "cache"
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, client.chat("q", temperature=0).source.encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read() == b"cache"
        os.waitpid(child, 0)
        assert client.chat("q", temperature=0).source == "cache"
