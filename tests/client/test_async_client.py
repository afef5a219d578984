"""AsyncClient against a real ROUTER: one descriptor, many calls, time, lost daemons, streams, loops."""

from __future__ import annotations

import asyncio
import gc
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from walled_client import AsyncClient, Client

from tests.client.fake_broker import FakeBroker, Peer, echo
from walled import protocol
from walled.errors import (
    BadRequest,
    Cancelled,
    DaemonUnavailable,
    DeadlineExceeded,
    Overloaded,
    StreamInterrupted,
    WalledError,
)
from walled.protocol import ErrorHeader, RequestHeader


class Held:
    """A behaviour that answers nothing by itself; the test takes the requests by their text, on its loop."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._peers: dict[str, asyncio.Future[Peer]] = {}
        broker.behaviour = self._hold

    def _hold(self, peer: Peer) -> None:
        if peer.message.type == protocol.REQUEST:
            text = peer.prompt()
            self._loop.call_soon_threadsafe(lambda: self._future(text).set_result(peer))

    def _future(self, text: str) -> asyncio.Future[Peer]:
        return self._peers.setdefault(text, self._loop.create_future())

    async def peer(self, text: str) -> Peer:
        return await asyncio.wait_for(asyncio.shield(self._future(text)), 5)

    async def do(self, text: str, action: Callable[[Peer], object]) -> None:
        peer = await self.peer(text)
        self._broker.do(lambda: action(peer) and None)


async def seen(broker: FakeBroker, kind: bytes) -> protocol.Envelope:
    """The next message of that type, without blocking the loop."""
    return await asyncio.to_thread(broker.next, kind)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 30)

    asyncio.run(bounded())


@asynccontextmanager
async def asking(call: Awaitable[object]) -> AsyncIterator[asyncio.Task[object]]:
    async def awaited() -> object:
        return await call

    task = asyncio.create_task(awaited())
    try:
        yield task
    finally:
        task.cancel()


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    for name in ("chat", "generate", "embed", "stream", "stream_generate", "batch", "models", "status",
                 "cancel", "in_flight", "counters", "with_options", "close", "__init__"):  # fmt: skip
        ours = inspect.signature(getattr(AsyncClient, name)).parameters
        theirs = inspect.signature(getattr(Client, name)).parameters
        assert {n: (p.kind, p.default) for n, p in ours.items()} == {
            n: (p.kind, p.default) for n, p in theirs.items()
        }, name
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert public == {name for name in dir(AsyncClient) if not name.startswith("_")}


def test_calls_streams_and_batches(broker: FakeBroker) -> None:
    async def test() -> None:
        async with AsyncClient(endpoint=broker.endpoint) as client:
            assert (await client.chat("hello")).text == "hello"
            assert (await client.generate("once")).text == "once"
            stream = client.stream("one two three")
            assert [chunk.text async for chunk in stream] == ["one", " two", " three"]
            assert stream.reply.text == "one two three"
            results = await client.batch(["a", {"prompt": "b"}, {"messages": []}, "d"], concurrency=2)
            assert [str(r) for r in (results[0], results[1], results[3])] == ["a", "b", "d"]
            assert isinstance(results[2], BadRequest)
            assert await client.batch([]) == []

    run(test)


def test_many_calls_at_once_each_get_their_own_answer(broker: FakeBroker) -> None:
    async def test() -> None:
        async with AsyncClient(endpoint=broker.endpoint) as client:

            async def ask(n: int) -> None:
                text = f"question {n}"
                if n % 3:
                    assert (await client.chat(text)).text == text
                else:
                    assert (await client.stream(text).finish()).text == text

            await asyncio.gather(*(ask(n) for n in range(1500)))
            assert client.in_flight() == []
            assert client.counters()["late_replies"] == 0

    run(test)


def test_answers_out_of_order(broker: FakeBroker) -> None:
    async def test() -> None:
        held = Held(broker)
        async with AsyncClient(endpoint=broker.endpoint) as client:
            tasks = {name: asyncio.create_task(client.chat(name)) for name in ("a", "b", "c")}
            for name in ("c", "a", "b"):
                await held.do(name, lambda peer, name=name: peer.final(f"to {name}"))  # type: ignore[misc]
                assert (await tasks[name]).text == f"to {name}"

    run(test)


def test_typed_errors(broker: FakeBroker) -> None:
    broker.behaviour = lambda peer: peer.send(protocol.BUSY, ErrorHeader("overloaded", "full", True, 1.5))

    async def test() -> None:
        async with AsyncClient(endpoint=broker.endpoint) as client:
            with pytest.raises(Overloaded) as caught:
                await client.chat("x")
            assert caught.value.retry_after_s == 1.5
            with pytest.raises(Overloaded):
                await client.stream("x").finish()

    run(test)


def test_a_frozen_broker_never_hangs_a_caller(broker: FakeBroker) -> None:
    async def test() -> None:
        held = Held(broker)
        async with AsyncClient(endpoint=broker.endpoint) as client:
            started_s = time.monotonic()
            async with asking(client.chat("long", deadline_s=20)) as long:
                with pytest.raises(DeadlineExceeded):
                    await client.chat("x", deadline_s=0.2)
                assert 0.2 <= time.monotonic() - started_s < 2
                request_id = (await held.peer("x")).request_id
                assert (await seen(broker, protocol.CANCEL)).request_id == request_id
                await held.do("x", lambda peer: peer.final("too late"))
                await held.do("long", lambda peer: peer.final("in time"))
                assert str(await long) == "in time"

    run(test)


def test_no_daemon_and_recovery(run_dir: Path) -> None:
    broker = FakeBroker(run_dir)

    async def test() -> None:
        async with AsyncClient(run_dir, connect_timeout_s=0.2) as client:
            started_s = time.monotonic()
            with pytest.raises(DaemonUnavailable):
                await client.chat("x")
            assert 0.2 <= time.monotonic() - started_s < 1
            with pytest.raises(DaemonUnavailable):
                await client.stream("x").finish()
            with pytest.raises(DaemonUnavailable):
                await client.models()
            with broker:
                assert await reached(client)
            with pytest.raises(DaemonUnavailable):
                await client.chat("x")
            with broker:
                assert await reached(client)

    async def reached(client: AsyncClient) -> bool:
        for _ in range(50):
            try:
                return (await client.chat("are you there")).text == "are you there"
            except DaemonUnavailable:
                pass
        return False

    run(test)


def test_what_was_in_flight_is_sent_again_and_begun_streams_are_interrupted(broker: FakeBroker) -> None:
    async def test() -> None:
        held = Held(broker)
        async with AsyncClient(endpoint=broker.endpoint, connect_timeout_s=5) as client:
            stream = client.stream("s")
            await held.do("s", lambda peer: peer.partial(0, "half"))
            assert (await anext(stream)).text == "half"
            async with asking(client.chat("x", deadline_s=20)) as call:
                await held.peer("x")
                await asyncio.to_thread(broker.stop)
                broker.behaviour = echo
                broker.start()
                with pytest.raises(StreamInterrupted):
                    await anext(stream)
                assert str(await call) == "x"
            assert client.counters()["resent"] == 1

    run(test)


@pytest.mark.parametrize("leave", ["close", "with", "drop"])
def test_leaving_a_stream_early_cancels_it(broker: FakeBroker, leave: str) -> None:
    async def test() -> None:
        held = Held(broker)
        async with AsyncClient(endpoint=broker.endpoint) as client:
            stream = client.stream("x")
            await held.do("x", lambda peer: peer.partial(0, "first"))
            assert (await anext(stream)).text == "first"
            request_id = bytes.fromhex(stream.request_id)
            with pytest.raises(StreamInterrupted):
                _ = stream.reply
            if leave == "close":
                await stream.close()
                assert [chunk async for chunk in stream] == []
            elif leave == "with":
                async with stream:
                    pass
            else:
                del stream
                gc.collect()
            assert (await seen(broker, protocol.CANCEL)).request_id == request_id
            assert client.in_flight() == []

    run(test)


def test_cancelling_the_task_cancels_the_request(broker: FakeBroker) -> None:
    async def test() -> None:
        held = Held(broker)
        async with AsyncClient(endpoint=broker.endpoint) as client:
            task = asyncio.create_task(client.chat("x"))
            request_id = (await held.peer("x")).request_id
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await seen(broker, protocol.CANCEL)).request_id == request_id
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.chat("y"), 0.1)
            assert client.in_flight() == []

    run(test)


def test_cancel_by_id_and_close(broker: FakeBroker) -> None:
    async def test() -> None:
        held = Held(broker)
        client = AsyncClient(endpoint=broker.endpoint)
        tasks = [asyncio.create_task(client.chat(name)) for name in ("a", "b")]
        request_id = (await held.peer("a")).request_id.hex()
        await held.peer("b")
        assert len(client.in_flight()) == 2
        assert client.cancel(request_id) == 1
        with pytest.raises(Cancelled):
            await tasks[0]
        await client.close()
        await client.close()
        with pytest.raises(Cancelled):
            await tasks[1]
        assert (await seen(broker, protocol.CANCEL)).request_id.hex() == request_id
        assert await seen(broker, protocol.CANCEL)
        assert await seen(broker, protocol.DISCONNECT)
        with pytest.raises(Cancelled):
            await client.chat("x")

    run(test)


def test_hostile_frames_are_dropped(broker: FakeBroker) -> None:
    def hostile(peer: Peer) -> None:
        peer.raw([b""])
        peer.raw([protocol.PREAMBLE, b"\xee", peer.request_id, b"\x80", b""])
        peer.raw([protocol.PREAMBLE, protocol.FINAL, b"unknown", b"\x80", b"\x80"])
        peer.final("still here")
        peer.final("again")

    broker.behaviour = hostile

    async def test() -> None:
        async with AsyncClient(endpoint=broker.endpoint) as client:
            for _ in range(3):
                assert (await client.chat("x")).text == "still here"
            assert client.counters()["malformed"] >= 4
            assert client.counters()["late_replies"] >= 2

    run(test)


def test_one_client_on_one_loop_after_another(broker: FakeBroker) -> None:
    client = AsyncClient(endpoint=broker.endpoint)

    async def ask(text: str) -> str:
        return (await client.chat(text)).text

    assert asyncio.run(ask("first loop")) == "first loop"
    assert asyncio.run(ask("second loop")) == "second loop"
    asyncio.run(client.close())
    with pytest.raises(Cancelled):
        asyncio.run(ask("closed"))


def test_options_of_the_client_and_of_a_call(broker: FakeBroker) -> None:
    async def test() -> None:
        async with AsyncClient(endpoint=broker.endpoint, namespace="shop") as client:
            await client.with_options(session="s", deadline_s=5).chat("x", priority="interactive")
            header = protocol.decode_header(RequestHeader, (await seen(broker, protocol.REQUEST)).header)
            assert (header.namespace, header.session, header.priority) == ("shop", "s", "interactive")
            assert 4900 <= header.deadline_ms <= 5000
            for wrong in ({"temperature": -1}, {"deadline_s": 0}, {"nonsense": 1}):
                with pytest.raises(BadRequest):
                    await client.chat("x", **wrong)  # type: ignore[typeddict-item]
            with pytest.raises(BadRequest):
                await client.batch(["x"], concurrency=0)

    run(test)


def test_control_replies_and_refusals(broker: FakeBroker) -> None:
    def control(peer: Peer) -> None:
        op = protocol.unpack_control(peer.message.payload).op
        if op == "status":
            reply = {"schema": "walled.status/1", "ok": True}
        else:
            reply = {"schema": "x", "ok": False, "error": {"code": "unavailable", "message": "not yet"}}
        peer.send(protocol.CONTROL, None, protocol.pack_map(reply))

    broker.behaviour = control

    async def test() -> None:
        async with AsyncClient(endpoint=broker.endpoint) as client:
            assert (await client.status())["schema"] == "walled.status/1"
            with pytest.raises(WalledError, match="not yet") as caught:
                await client.models()
            assert caught.value.code == "unavailable"

    run(test)
