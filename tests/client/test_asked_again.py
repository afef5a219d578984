"""A refused call is asked again when the daemon said, within its deadline; the same for every way to call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from walled_client import AsyncClient, Client

from tests.client.fake_broker import FakeBroker, Peer, echo
from walled import protocol
from walled.errors import Overloaded, WalledError
from walled.protocol import ErrorHeader

PAUSE_S = 0.15


def _chat(broker: FakeBroker, **options: Any) -> str:
    with Client(endpoint=broker.endpoint) as client:
        return client.chat("Hi there", **options).text


def _stream(broker: FakeBroker, **options: Any) -> str:
    with Client(endpoint=broker.endpoint) as client:
        return "".join(chunk.text for chunk in client.stream("Hi there", **options))


def _batch(broker: FakeBroker, **options: Any) -> str:
    with Client(endpoint=broker.endpoint) as client:
        (outcome,) = client.batch(["Hi there"], **options)
        if isinstance(outcome, WalledError):
            raise outcome
        return outcome.text


def _async_chat(broker: FakeBroker, **options: Any) -> str:
    async def ask() -> str:
        async with AsyncClient(endpoint=broker.endpoint) as client:
            return (await client.chat("Hi there", **options)).text

    return asyncio.run(ask())


def _async_stream(broker: FakeBroker, **options: Any) -> str:
    async def ask() -> str:
        async with AsyncClient(endpoint=broker.endpoint) as client:
            return "".join([chunk.text async for chunk in client.stream("Hi there", **options)])

    return asyncio.run(ask())


def _async_batch(broker: FakeBroker, **options: Any) -> str:
    async def ask() -> str:
        async with AsyncClient(endpoint=broker.endpoint) as client:
            (outcome,) = await client.batch(["Hi there"], **options)
            if isinstance(outcome, WalledError):
                raise outcome
            return outcome.text

    return asyncio.run(ask())


WAYS = [_chat, _stream, _batch, _async_chat, _async_stream, _async_batch]
Way = Callable[..., str]


class Refusing:
    """Refuses the first `times` requests; notes when each came and what time it still had."""

    def __init__(self, times: int, pause_s: float | None = PAUSE_S, code: str = "overloaded") -> None:
        self.left = times
        self.pause_s, self.code = pause_s, code
        self.came_s: list[float] = []
        self.deadlines_ms: list[int] = []
        self.ids: set[bytes] = set()

    def __call__(self, peer: Peer) -> None:
        if peer.message.type != protocol.REQUEST:
            return
        self.came_s.append(time.monotonic())
        self.deadlines_ms.append(peer.header().deadline_ms)
        self.ids.add(peer.request_id)
        if self.left:
            self.left -= 1
            peer.send(protocol.BUSY, ErrorHeader(self.code, "too much", True, self.pause_s))
        else:
            echo(peer)


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__.strip("_"))
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


def test_a_refused_call_is_asked_again_when_it_was_told_to(broker: FakeBroker, way: Way) -> None:
    broker.behaviour = refusing = Refusing(1)
    assert way(broker, deadline_s=20) == "Hi there"
    first_s, second_s = refusing.came_s
    assert second_s - first_s >= PAUSE_S
    assert len(refusing.ids) == 2, "a new request, not the old one's ghost"
    assert refusing.deadlines_ms[1] <= refusing.deadlines_ms[0] - PAUSE_S * 1000, "with the time that is left"


def test_not_when_it_would_take_most_of_the_time_left(broker: FakeBroker, way: Way) -> None:
    broker.behaviour = refusing = Refusing(9, pause_s=6.0)
    began_s = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        way(broker, deadline_s=10)
    assert time.monotonic() - began_s < 5
    assert caught.value.retry_after_s == 6.0
    assert len(refusing.came_s) == 1


def test_as_often_as_asked_for_and_no_more(broker: FakeBroker, way: Way) -> None:
    for retries in (0, 1, 3):
        broker.behaviour = refusing = Refusing(99, pause_s=0.01)
        with pytest.raises(Overloaded):
            way(broker, deadline_s=20, retries=retries)
        assert len(refusing.came_s) == 1 + retries


def test_only_what_says_when_to_come_back(broker: FakeBroker, way: Way) -> None:
    for code, pause_s in (("overloaded", None), ("context_too_long", 0.01)):
        broker.behaviour = refusing = Refusing(9, pause_s, code)
        with pytest.raises(WalledError) as caught:
            way(broker, deadline_s=20)
        assert caught.value.code == code
        assert len(refusing.came_s) == 1


def test_refused_clients_do_not_all_come_back_at_the_same_moment(broker: FakeBroker) -> None:
    pauses = []
    for _ in range(6):
        broker.behaviour = refusing = Refusing(1, pause_s=0.1)
        _chat(broker, deadline_s=20)
        pauses.append(refusing.came_s[1] - refusing.came_s[0])
    assert max(pauses) - min(pauses) > 0.001
