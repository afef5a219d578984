"""AsyncClient: asks the daemon from asyncio. The twin of client.py, method for method.

May live here: the public calls and how they run on the connection (aio_wire.py). May not: frames,
correlation (exchange.py), checking of arguments (calls.py), reading the cache (local.py).

A cache hit returns without touching the loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, Unpack

from walled.errors import BadRequest, Cancelled, DeadlineExceeded, StreamInterrupted, Unavailable, WalledError
from walled.protocol import CachePolicy, ControlRequest, Mode, Priority
from walled_client import calls, offline, presence
from walled_client.aio_wire import AsyncWire
from walled_client.calls import Asked, ChatFields, GenerateFields, Messages, SettingFields
from walled_client.discovery import Place, find, place_of
from walled_client.exchange import Call
from walled_client.local import LocalCache
from walled_client.results import Accepted, Embedding, Reply, StreamChunk, embedding_of
from walled_client.telling import Teller


class AsyncShared:
    """What a client and its `with_options` copies have in common: the connection and the cache reader."""

    def __init__(
        self, run_dir: Path | None, endpoint: str | None, connect_timeout_s: float, local: bool
    ) -> None:
        self.run_dir = run_dir
        self._endpoint = endpoint
        self._connect_timeout_s = connect_timeout_s
        self.cache = LocalCache(run_dir) if local else None
        self.offline = offline.Offline(self.cache) if self.cache else None
        self.teller = Teller(run_dir, self.cache.counted if self.cache else dict)
        if self.cache is not None:
            self.cache.stir = self.teller.stir
        self._wire: AsyncWire | None = None
        self._monitor: AsyncWire | None = None
        self._inherited: list[AsyncWire] = []
        self.closed = False

    def wire(self) -> AsyncWire:
        """The connection of the running loop: another loop, or a fork, gets a new one."""
        wire = self._wire
        if wire is not None and wire.loop is asyncio.get_running_loop() and wire.pid == os.getpid():
            return wire
        place = find(self.run_dir)
        self._wire = self._made(wire, self._endpoint or place.client, place)
        return self._wire

    def monitor(self) -> AsyncWire:
        """The connection to the monitor; made by the first question about metrics or health."""
        wire = self._monitor
        if wire is not None and wire.loop is asyncio.get_running_loop() and wire.pid == os.getpid():
            return wire
        place = find(self.run_dir)
        self._monitor = self._made(wire, place.monitor, place)
        return self._monitor

    def _made(self, former: AsyncWire | None, endpoint: str, place: Place) -> AsyncWire:
        if self.closed:
            raise Cancelled("the client is closed")
        if former is not None:
            if former.pid == os.getpid():
                former.drop()
            else:
                self._inherited.append(former)  # the parent's: neither used nor freed here
        loop = asyncio.get_running_loop()
        return AsyncWire(
            endpoint, self._connect_timeout_s, loop, lambda: presence.gone(place.run_dir, endpoint)
        )

    def counters(self) -> dict[str, int]:
        hits = self.cache.hits if self.cache else 0
        dropped = {"metrics_dropped": self.teller.dropped} if self.teller.dropped else {}
        return {"local_hits": hits, **(self._wire.exchange.counters if self._wire else {}), **dropped}

    async def close(self) -> None:
        self.closed = True
        for wire in (self._wire, self._monitor):
            if wire is not None and wire.pid == os.getpid():
                if wire.loop is asyncio.get_running_loop():
                    await wire.close()
                else:
                    wire.drop()
        self.teller.close()
        if self.cache is not None:
            self.cache.close()


class AsyncClient:
    """The asynchronous client: the same arguments and methods as Client, to be awaited.

    It may be made anywhere; the connection is made by the first call, on the loop that runs it.
    """

    def __init__(
        self,
        run_dir: str | Path | None = None,
        endpoint: str | None = None,
        *,
        cache: CachePolicy | bool = True,
        deadline_s: float = 30.0,
        connect_timeout_s: float = 1.0,
        priority: Priority = "normal",
        namespace: str = "default",
        session: str = "",
        model: str = "default",
        mode: Mode = "",
        context: Mapping[str, str] | None = None,
        retries: int = 1,
    ) -> None:
        self._settings = calls.new_settings(
            {"cache": cache, "deadline_s": deadline_s, "priority": priority, "namespace": namespace,
             "session": session, "model": model, "mode": mode, "context": context, "retries": retries}
        )  # fmt: skip
        self._shared = AsyncShared(
            place_of(run_dir, endpoint), endpoint, connect_timeout_s, self._settings.local
        )

    # --- asking ----------------------------------------------------------------------------------

    async def chat(self, messages: Messages, **fields: Unpack[ChatFields]) -> Reply:
        """As Client.chat."""
        started_s = time.perf_counter()
        asked = calls.chat(self._settings, messages, fields)
        return self._lookup(asked, started_s) or await self._run(asked, started_s)

    async def generate(self, prompt: str, **fields: Unpack[GenerateFields]) -> Reply:
        """As Client.generate."""
        started_s = time.perf_counter()
        asked = calls.generate(self._settings, prompt, fields)
        return self._lookup(asked, started_s) or await self._run(asked, started_s)

    async def embed(self, texts: str | Iterable[str], **fields: Unpack[SettingFields]) -> Embedding:
        """As Client.embed."""
        started_s = time.perf_counter()
        asked = calls.embed(self._settings, texts, fields)
        return embedding_of(self._lookup(asked, started_s) or await self._run(asked, started_s))

    def stream(
        self, messages: Messages, *, buffer: bool = False, **fields: Unpack[ChatFields]
    ) -> AsyncStream:
        """As Client.stream: `async for` over the chunks, then `.reply`. Not to be awaited itself."""
        started_s = time.perf_counter()
        return self._stream(calls.chat(self._settings, messages, fields), started_s, buffer)

    def stream_generate(
        self, prompt: str, *, buffer: bool = False, **fields: Unpack[GenerateFields]
    ) -> AsyncStream:
        """`generate` as a stream."""
        started_s = time.perf_counter()
        return self._stream(calls.generate(self._settings, prompt, fields), started_s, buffer)

    async def batch(
        self,
        requests: Iterable[str | Mapping[str, Any]],
        *,
        concurrency: int = 16,
        **fields: Unpack[SettingFields],
    ) -> list[Reply | WalledError]:
        """As Client.batch."""
        if concurrency < 1:
            raise BadRequest(f"concurrency: at least 1 is needed, got {concurrency}")
        settings = calls.new_settings(fields, self._settings) if fields else self._settings
        items = list(requests)
        results: dict[int, Reply | WalledError] = {}
        numbered = iter(enumerate(items))

        async def work() -> None:
            for place, item in numbered:
                started_s = time.perf_counter()
                try:
                    asked = calls.from_item(settings, item)
                    results[place] = self._lookup(asked, started_s) or await self._run(asked, started_s)
                except WalledError as exc:
                    results[place] = exc

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(items))):
                group.create_task(work())
        return [results[place] for place in range(len(items))]

    # --- looking and steering --------------------------------------------------------------------

    async def models(self, *, deadline_s: float = 5.0) -> dict[str, Any]:
        """What the daemon serves, as `walled.models/1`."""
        return await self._control(ControlRequest("models.list"), deadline_s)

    async def status(self, *, deadline_s: float = 5.0) -> dict[str, Any]:
        """The daemon's state, as `walled.status/1`."""
        return await self._control(ControlRequest("status"), deadline_s)

    async def health(self, *, deadline_s: float = 5.0) -> dict[str, Any]:
        """As Client.health."""
        return await self.ask_monitor("health", deadline_s=deadline_s)

    async def dashboard(self, *, deadline_s: float = 5.0) -> dict[str, Any]:
        """As Client.dashboard."""
        found = await self.ask_monitor("dashboard", deadline_s=deadline_s)
        try:
            found["daemon"] = await self.status(deadline_s=deadline_s)
        except (Unavailable, DeadlineExceeded):
            found["daemon"] = None
        return found

    async def stats(
        self, *, window_s: float = 60.0, model: str = "", deadline_s: float = 5.0
    ) -> dict[str, Any]:
        """As Client.stats."""
        found = await self.ask_monitor("stats", window_s=window_s, model=model, deadline_s=deadline_s)
        return found | {"client": self.counters()}

    async def ask_monitor(self, op: str, *, deadline_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        """As Client.ask_monitor."""
        return await self._shared.monitor().ask({"op": op, **fields}, deadline_s)

    def metric(
        self,
        name: str,
        value: float,
        labels: Mapping[str, str] | None = None,
        *,
        kind: Literal["gauge", "counter"] = "gauge",
    ) -> None:
        """As Client.metric; it never waits, so there is nothing to await."""
        self._shared.teller.metric(name, value, labels, kind)

    def in_flight(self) -> list[str]:
        """Request ids of this client's open calls."""
        return [request_id.hex() for request_id in self._shared.wire().exchange.pending]

    def cancel(self, request_id: str | None = None) -> int:
        """Cancel one open call by its request id, or all; those calls raise Cancelled. How many were open."""
        wire = self._shared.wire()
        found = [
            call
            for key, call in wire.exchange.pending.items()
            if request_id is None or key.hex() == request_id
        ]
        for call in found:
            wire.cancel(call)
        return len(found)

    def counters(self) -> dict[str, int]:
        """local_hits, late_replies, malformed, resent, connections_lost, ..."""
        return self._shared.counters()

    def with_options(self, **fields: Unpack[SettingFields]) -> Self:
        """A client with other settings on the same connection; closing either closes both."""
        copy = object.__new__(type(self))
        copy._shared = self._shared
        copy._settings = calls.new_settings(fields, self._settings)
        return copy

    async def close(self) -> None:
        """Cancel what is open and free the connection. Calls after this raise Cancelled."""
        await self._shared.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- inside ----------------------------------------------------------------------------------

    async def _run(self, asked: Asked, started_s: float) -> Reply:
        wire = self._shared.wire()
        left_s = asked.settings.deadline_s
        until_s = time.monotonic() + left_s
        retries = asked.settings.retries
        while True:
            call = wire.start(calls.header(asked, left_s, stream=False), asked.payload, left_s)
            await wire.wait(call)
            try:
                return call.reply(time.monotonic())
            except WalledError as exc:
                pause_s = offline.pause_s(call, exc, until_s - time.monotonic()) if retries else None
                if pause_s is None:
                    lesser = self._instead(asked, call, exc, started_s)
                    if lesser is None:
                        raise
                    return lesser
            retries -= 1
            await asyncio.sleep(pause_s)
            left_s = until_s - time.monotonic()

    def _stream(self, asked: Asked, started_s: float, buffer: bool) -> AsyncStream:
        hit = self._lookup(asked, started_s)
        if hit is not None:
            return AsyncStream(None, None, hit)
        wire = self._shared.wire()
        until_s = time.monotonic() + asked.settings.deadline_s

        def begin(left_s: float) -> Call:
            header = calls.header(asked, left_s, stream=not buffer, accept=True)
            return wire.start(header, asked.payload, left_s)

        retries = asked.settings.retries

        async def otherwise(call: Call, exc: WalledError) -> Call | Reply | None:
            nonlocal retries
            pause_s = offline.pause_s(call, exc, until_s - time.monotonic()) if retries else None
            if pause_s is None:
                return self._instead(asked, call, exc, started_s)
            retries -= 1
            await asyncio.sleep(pause_s)
            return begin(until_s - time.monotonic())

        return AsyncStream(wire, begin(asked.settings.deadline_s), None, otherwise)

    def _instead(self, asked: Asked, call: Call | None, exc: WalledError, started_s: float) -> Reply | None:
        """What can be had in this process in place of an answer no daemon gives."""
        found = self._shared.offline
        if found is None or not asked.settings.local or not offline.without_daemon(call, exc):
            return None
        return found.instead(asked, exc, started_s)

    def _lookup(self, asked: Asked, started_s: float) -> Reply | None:
        cache = self._shared.cache
        if cache is None or not asked.settings.local:
            return None
        if (cache.first or asked.settings.mode) and self._shared.offline is not None:
            first = self._shared.offline.first(asked, started_s)
            if first is not None:
                return first
        found = cache.lookup(asked, started_s)
        if found is None:
            return None
        reply, key = found
        if key is not None:
            self._renew(asked, key)
        return reply

    def _renew(self, asked: Asked, key: bytes) -> None:
        """Have an answer late in its life made anew, in the background; a failure is nobody's business."""
        try:
            wire = self._shared.wire()
            sent = wire.refresh(calls.refresh_header(asked), asked.payload, asked.settings.deadline_s)
        except WalledError:
            sent = False
        if not sent and self._shared.cache is not None:
            self._shared.cache.refresh_failed(key)

    async def _control(self, request: ControlRequest, deadline_s: float) -> dict[str, Any]:
        return await self._shared.wire().ask(request, deadline_s)


AsyncOtherwise = Callable[[Call, WalledError], Awaitable["Call | Reply | None"]]
"""What is done about a stream that failed before any text: a new call, a lesser answer, or nothing."""


class AsyncStream:
    """The chunks of one answer, then `.reply`. For one task at a time."""

    def __init__(
        self,
        wire: AsyncWire | None,
        call: Call | None,
        reply: Reply | None,
        otherwise: AsyncOtherwise | None = None,
    ) -> None:
        self._wire = wire
        self._call = call
        self._otherwise = otherwise
        self._hit = reply
        self._reply: Reply | None = None
        self._failed: WalledError | None = None
        self._closed = False

    def __aiter__(self) -> AsyncIterator[StreamChunk]:
        return self

    async def __anext__(self) -> StreamChunk:
        if self._reply is not None or self._closed:
            raise StopAsyncIteration
        if self._failed is not None:
            raise self._failed
        if self._hit is not None:
            return self._whole(self._hit)
        wire, call = self._wire, self._call
        assert wire is not None
        assert call is not None
        try:
            while True:
                taken = call.take(time.monotonic())
                if isinstance(taken, StreamChunk):
                    return taken
                if taken is not None:
                    self._reply = taken
                    break
                await wire.wait(call)
        except WalledError as exc:
            wire.cancel(call)
            found = await self._otherwise(call, exc) if self._otherwise is not None else None
            if found is None:
                self._failed = exc
                raise
            if isinstance(found, Reply):
                return self._whole(found)
            self._call = found
            return await self.__anext__()
        raise StopAsyncIteration

    def _whole(self, reply: Reply) -> StreamChunk:
        self._reply = reply
        if not reply.text:
            raise StopAsyncIteration
        return StreamChunk(reply.text)

    @property
    def request_id(self) -> str:
        """Hexadecimal; empty for an answer from the cache in this process."""
        return self._call.request_id.hex() if self._call is not None else ""

    @property
    def accepted(self) -> Accepted | None:
        """Place in the queue and expected wait, if the request had to wait."""
        return self._call.accepted if self._call is not None else None

    @property
    def finished(self) -> bool:
        """Whether the whole answer is there."""
        return self._reply is not None

    @property
    def reply(self) -> Reply:
        """The whole answer, after the last chunk."""
        if self._reply is None:
            raise self._failed or StreamInterrupted("the stream has not been read to its end")
        return self._reply

    async def finish(self) -> Reply:
        """Read the rest and return the whole answer."""
        async for _ in self:
            pass
        return self.reply

    async def close(self) -> None:
        """Stop; cancels the generation if it has not ended."""
        self._stop()

    aclose = close

    def _stop(self) -> None:
        if not self._closed:
            self._closed = True
            if self._wire is not None and self._call is not None and not self._call.ended:
                self._wire.cancel(self._call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop()

    def __del__(self) -> None:
        call, wire = self._call, self._wire
        if not self._closed and call is not None and wire is not None and not call.ended:
            if wire.closed or wire.loop.is_closed() or os.getpid() != wire.pid:
                return
            wire.loop.call_soon_threadsafe(wire.cancel, call)
