"""What the monitor publishes, as an iterator: metrics, health, alerts, events.

May live here: subscribing, finding gaps and new beginnings. May not: what a message means; asking the daemon.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from walled.adapters.datagrams import Pen
from walled.adapters.sockets import Hub, Poller, Port
from walled.config import endpoints
from walled.errors import ProtocolError
from walled.protocol import pack_map, unpack_map
from walled_client.discovery import find

ALL = ("metric.", "health", "alert.", "event.")
LONGEST_WAIT_S = 3600.0
QUEUE = 10_000
TELL_S = 1.0
"""Losses are told to the monitor at most so often."""


class Message(NamedTuple):
    """One publication, or what the subscriber noticed: topics event.gap and event.epoch are its own."""

    topic: str
    body: dict[str, Any]


class _Feed:
    """Numbers checked, repetitions left out, gaps reported; the same for both subscribers."""

    def __init__(self, callbacks: dict[str, Callable[[dict[str, Any]], None]]) -> None:
        self._seen: dict[str, int] = {}
        self._epoch = ""
        self._callbacks = callbacks
        self.lost = 0
        """Publications that never came: this subscriber was too slow, or not connected."""
        self.refused = 0
        self.callback_failures = 0

    def take(self, parts: list[bytes]) -> Iterator[Message]:
        try:
            topic, body = parts[0].decode(), unpack_map(parts[1])
            epoch, seq = str(body["epoch"]), int(body["seq"])
        except (ProtocolError, UnicodeDecodeError, IndexError, KeyError, TypeError, ValueError):
            self.refused += 1
            return
        if epoch != self._epoch:
            if self._epoch:
                yield Message("event.epoch", {"before": self._epoch, "now": epoch})
            self._epoch = epoch
            self._seen.clear()
        last = self._seen.get(topic)
        if last is not None and seq <= last:
            return  # the last value again, for somebody who subscribed later
        if last is not None and seq > last + 1:
            self.lost += seq - last - 1
            yield Message("event.gap", {"topic": topic, "lost": seq - last - 1})
        self._seen[topic] = seq
        if topic.startswith("alert.") and (callback := self._callbacks.get(topic[6:])) is not None:
            try:
                callback(body)
            except Exception:
                self.callback_failures += 1  # the callback's trouble, not the stream's
        yield Message(topic, body)


class _Line:
    """A hub and its SUB socket, which reconnects in the background."""

    def __init__(
        self,
        run_dir: str | Path | None,
        topics: Iterable[str],
        on_alert: dict[str, Callable[[dict[str, Any]], None]] | None,
        queue: int,
    ) -> None:
        self._hub = Hub()
        self._ends = endpoints(find(run_dir).run_dir)
        self._pen = Pen()
        self._lost_told, self._told_s = 0, 0.0
        self._port: Port = self._hub.subscriber(
            self._ends.metrics, [topic.encode() for topic in topics], hwm=queue
        )
        self._port.connect()
        self._feed = _Feed(dict(on_alert or {}))
        self._ready: list[Message] = []

    @property
    def lost(self) -> int:
        """Publications that never came."""
        return self._feed.lost

    @property
    def callback_failures(self) -> int:
        return self._feed.callback_failures

    def close(self) -> None:
        self._hub.close()
        self._pen.close()

    def _take(self) -> bool:
        for parts in self._port.receive():
            self._ready += self._feed.take(parts)
        if self._feed.lost > self._lost_told:
            self._tell_lost()
        return bool(self._ready)

    def _tell_lost(self) -> None:
        """The publisher cannot know: ZeroMQ drops for a slow subscriber without a word."""
        now_s = time.monotonic()
        lost = self._feed.lost - self._lost_told
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            if self._pen.send(self._ends.tell, pack_map({"counts": [["lost", lost]]})):
                self._lost_told += lost


class Subscriber(_Line):
    """`for topic, body in Subscriber(): ...`; the last value of every topic comes at once."""

    def __init__(
        self,
        run_dir: str | Path | None = None,
        *,
        topics: Iterable[str] = ALL,
        on_alert: dict[str, Callable[[dict[str, Any]], None]] | None = None,
        queue: int = QUEUE,
    ) -> None:
        """`topics` are prefixes; `on_alert` maps a rule's name to what is called with its messages;
        `queue` is how many messages are kept here for a program that does not read."""
        super().__init__(run_dir, topics, on_alert, queue)
        self._poller = Poller([self._port])

    def next(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None when none came in time."""
        until_s = time.monotonic() + (LONGEST_WAIT_S if timeout_s is None else timeout_s)
        while not self._ready and not self._take():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                if timeout_s is not None:
                    return None
                until_s = time.monotonic() + LONGEST_WAIT_S
            self._poller.wait(max(0.0, left_s))
        return self._ready.pop(0)

    def __iter__(self) -> Iterator[Message]:
        while True:
            message = self.next()
            if message is not None:
                yield message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncSubscriber(_Line):
    """`async for topic, body in AsyncSubscriber(): ...`"""

    def __aiter__(self) -> Self:
        return self

    def __init__(
        self,
        run_dir: str | Path | None = None,
        *,
        topics: Iterable[str] = ALL,
        on_alert: dict[str, Callable[[dict[str, Any]], None]] | None = None,
        queue: int = QUEUE,
    ) -> None:
        super().__init__(run_dir, topics, on_alert, queue)

    async def __anext__(self) -> Message:
        loop = asyncio.get_running_loop()
        while not self._ready and not self._take():
            stirred = asyncio.Event()
            loop.add_reader(self._port.fileno(), stirred.set)
            try:
                # The descriptor tells of changes only: what came before it was watched is looked for here.
                if not self._port.readable():
                    await stirred.wait()
            finally:
                loop.remove_reader(self._port.fileno())
        return self._ready.pop(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
