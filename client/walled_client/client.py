"""Client: asks the daemon, from any number of threads.

May live here: the public calls and how they run on the connection (wire.py). May not: frames, correlation
(exchange.py), checking of arguments (calls.py), reading the cache (local.py).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, Unpack

from walled.errors import BadRequest, DeadlineExceeded, StreamInterrupted, Unavailable, WalledError
from walled.protocol import CachePolicy, ControlRequest, Mode, Priority
from walled_client import calls, offline, presence
from walled_client.calls import Asked, ChatFields, GenerateFields, Messages, SettingFields, Settings
from walled_client.discovery import Place, find, place_of
from walled_client.exchange import Call
from walled_client.local import LocalCache
from walled_client.results import Accepted, Embedding, Reply, StreamChunk, embedding_of
from walled_client.telling import Teller
from walled_client.wire import Waiter, Wire


class Shared:
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
        self._closing = threading.Event()
        self._wires: dict[int, Wire] = {}
        """By process id: after a fork the child opens its own and leaves the parent's alone."""
        self._monitors: dict[int, Wire] = {}
        """The same, to the monitor."""
        self.closed = False

    def wire(self) -> Wire:
        pid = os.getpid()
        wire = self._wires.get(pid)
        if wire is None:
            place = find(self.run_dir)
            wire = self._made(self._wires, self._endpoint or place.client, place)
        return wire

    def monitor(self) -> Wire:
        """The connection to the monitor; made by the first question about metrics or health."""
        wire = self._monitors.get(os.getpid())
        if wire is None:
            place = find(self.run_dir)
            wire = self._made(self._monitors, place.monitor, place)
        return wire

    def _made(self, wires: dict[int, Wire], endpoint: str, place: Place) -> Wire:
        made = Wire(endpoint, self._connect_timeout_s, lambda: presence.gone(place.run_dir, endpoint))
        wire = wires.setdefault(os.getpid(), made)
        if wire is not made:
            made.close()
        if self.closed:
            wire.close()
        return wire

    def pause(self, seconds: float) -> None:
        """Sleep, unless the client is closed."""
        self._closing.wait(seconds)

    def counters(self) -> dict[str, int]:
        wire = self._wires.get(os.getpid())
        hits = self.cache.hits if self.cache else 0
        dropped = {"metrics_dropped": self.teller.dropped} if self.teller.dropped else {}
        return {"local_hits": hits, **(wire.exchange.counters if wire else {}), **dropped}

    def close(self) -> None:
        self.closed = True
        self._closing.set()
        for wires in (self._wires, self._monitors):
            wire = wires.get(os.getpid())
            if wire is not None:
                wire.close()
        self.teller.close()
        if self.cache is not None:
            self.cache.close()


class Client:
    """A synchronous client; thread-safe, usable after a fork, cheap to keep for the life of the program.

    `run_dir`: the daemon's run directory (default: the rule the daemon uses); `endpoint` instead of it names
    the client socket itself, and then the cache is looked for in the default place.
    `cache`: a cache policy for every call, or False to never read the shared cache in this process.
    Nothing is connected or opened for writing here; the connection is made by the first call that needs it.
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
        self._shared = Shared(place_of(run_dir, endpoint), endpoint, connect_timeout_s, self._settings.local)

    # --- asking ----------------------------------------------------------------------------------

    def chat(self, messages: Messages, **fields: Unpack[ChatFields]) -> Reply:
        """The answer to a conversation (a list of messages) or to one question (a text).

        Fields: model, system, format, tools, the sampling options (temperature, max_tokens, seed, stop,
        top_p, top_k, min_p, repeat_penalty, presence_penalty, frequency_penalty) and deadline_s, priority,
        cache, namespace, session, mode, context, retries. Raises the errors of walled.errors.
        """
        started_s = time.perf_counter()
        return self._run(calls.chat(self._settings, messages, fields), started_s)

    def generate(self, prompt: str, **fields: Unpack[GenerateFields]) -> Reply:
        """The continuation of a prompt, without a chat template. Fields as for chat, images, but no tools."""
        started_s = time.perf_counter()
        return self._run(calls.generate(self._settings, prompt, fields), started_s)

    def embed(self, texts: str | Iterable[str], **fields: Unpack[SettingFields]) -> Embedding:
        """One vector per text."""
        started_s = time.perf_counter()
        return embedding_of(self._run(calls.embed(self._settings, texts, fields), started_s))

    def stream(self, messages: Messages, *, buffer: bool = False, **fields: Unpack[ChatFields]) -> Stream:
        """The answer while it is being made: iterate over the chunks, then read `.reply`.

        Leaving early (`close`, the end of a `with` block, dropping the stream) cancels the generation.
        `buffer`: deliver text only when it is final, so that no restart is ever seen.
        """
        started_s = time.perf_counter()
        return self._stream(calls.chat(self._settings, messages, fields), started_s, buffer)

    def stream_generate(
        self, prompt: str, *, buffer: bool = False, **fields: Unpack[GenerateFields]
    ) -> Stream:
        """`generate` as a stream."""
        started_s = time.perf_counter()
        return self._stream(calls.generate(self._settings, prompt, fields), started_s, buffer)

    def batch(
        self,
        requests: Iterable[str | Mapping[str, Any]],
        *,
        concurrency: int = 16,
        **fields: Unpack[SettingFields],
    ) -> list[Reply | WalledError]:
        """Many requests, at most `concurrency` at a time; answers in the order of the requests.

        A request is a text or a mapping with `messages`, `prompt` or `input` and any fields of the call. An
        error stands in its request's place. `deadline_s` counts for each request from its sending.
        """
        if concurrency < 1:
            raise BadRequest(f"concurrency: at least 1 is needed, got {concurrency}")
        settings = calls.new_settings(fields, self._settings) if fields else self._settings
        return self._batch(list(requests), settings, concurrency)

    # --- looking and steering --------------------------------------------------------------------

    def models(self, *, deadline_s: float = 5.0) -> dict[str, Any]:
        """What the daemon serves, as `walled.models/1`."""
        return self._control(ControlRequest("models.list"), deadline_s)

    def status(self, *, deadline_s: float = 5.0) -> dict[str, Any]:
        """The daemon's state, as `walled.status/1`."""
        return self._control(ControlRequest("status"), deadline_s)

    def health(self, *, deadline_s: float = 5.0) -> dict[str, Any]:
        """Score, grade and every deduction with symptom, impact, cause and action, as `walled.health/1`."""
        return self.ask_monitor("health", deadline_s=deadline_s)

    def dashboard(self, *, deadline_s: float = 5.0) -> dict[str, Any]:
        """Everything in one map, as `walled.dashboard/1`: `stats` (times, rates, tokens), `metrics` and
        `totals` (processes, machine, cache, the application's own), `health`, `alerts`, and `daemon`: what
        `status` gives, or None while no broker answers."""
        found = self.ask_monitor("dashboard", deadline_s=deadline_s)
        try:
            found["daemon"] = self.status(deadline_s=deadline_s)
        except (Unavailable, DeadlineExceeded):
            found["daemon"] = None
        return found

    def stats(self, *, window_s: float = 60.0, model: str = "", deadline_s: float = 5.0) -> dict[str, Any]:
        """How requests fared in the last `window_s` seconds (at most 6 h), as `walled.stats/1`: `endings` by
        outcome and source, `tokens`, `phases` with p50_s, p95_s, p99_s and counts by `bounds_s`. `client`
        is what this client counted. `model`: only of this one."""
        found = self.ask_monitor("stats", window_s=window_s, model=model, deadline_s=deadline_s)
        return found | {"client": self.counters()}

    def ask_monitor(self, op: str, *, deadline_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Any question of docs/metrics.md to the monitor, for its reply's map."""
        return self._shared.monitor().ask({"op": op, **fields}, deadline_s)

    def metric(
        self,
        name: str,
        value: float,
        labels: Mapping[str, str] | None = None,
        *,
        kind: Literal["gauge", "counter"] = "gauge",
    ) -> None:
        """Publish a number of the application as `walled_app_NAME`, beside walled's own (docs/metrics.md).

        Never waits, also with no daemon; sent at most once a second. `kind`: of a gauge the last value
        counts, to a counter the values are added. Raises BadRequest for a name, label or value out of bounds.
        """
        self._shared.teller.metric(name, value, labels, kind)

    def in_flight(self) -> list[str]:
        """Request ids of this client's open calls, all threads together."""
        return self._shared.wire().in_flight()

    def cancel(self, request_id: str | None = None) -> int:
        """Cancel one open call of this client by its request id, or all; those calls raise Cancelled.

        Returns how many were open.
        """
        ids = None if request_id is None else {_request_id(request_id)}
        return self._shared.wire().cancel_ids(ids)

    def counters(self) -> dict[str, int]:
        """local_hits, late_replies, malformed, resent, connections_lost, ..."""
        return self._shared.counters()

    def with_options(self, **fields: Unpack[SettingFields]) -> Self:
        """A client with other settings on the same connection; closing either closes both."""
        copy = object.__new__(type(self))
        copy._shared = self._shared
        copy._settings = calls.new_settings(fields, self._settings)
        return copy

    def close(self) -> None:
        """Cancel what is open and free the connection. Calls after this raise Cancelled."""
        self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ----------------------------------------------------------------------------------

    def _run(self, asked: Asked, started_s: float) -> Reply:
        cache = self._shared.cache
        if cache is not None and asked.settings.local:
            if cache.first or asked.settings.mode:
                first = self._first(asked, started_s)
                if first is not None:
                    return first
            found = cache.lookup(asked, started_s)
            if found is not None:
                if found[1] is not None:
                    self._renew(asked, found[1])
                return found[0]
        wire = self._shared.wire()
        deadline_s = left_s = asked.settings.deadline_s
        until_s = time.monotonic() + deadline_s
        retries = asked.settings.retries
        while True:
            waiter = Waiter()
            call = wire.start(calls.header(asked, left_s, stream=False), asked.payload, left_s, waiter)
            try:
                wire.wait(call, waiter)
            except BaseException:
                wire.cancel(call)
                raise
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
            self._shared.pause(pause_s)
            left_s = until_s - time.monotonic()

    def _stream(self, asked: Asked, started_s: float, buffer: bool) -> Stream:
        hit = self._lookup(asked, started_s)
        if hit is not None:
            return Stream(None, None, hit)
        wire = self._shared.wire()
        until_s = time.monotonic() + asked.settings.deadline_s
        waiter = Waiter()

        def begin(left_s: float) -> Call:
            header = calls.header(asked, left_s, stream=not buffer, accept=True)
            return wire.start(header, asked.payload, left_s, waiter)

        retries = asked.settings.retries

        def otherwise(call: Call, exc: WalledError) -> Call | Reply | None:
            nonlocal retries
            pause_s = offline.pause_s(call, exc, until_s - time.monotonic()) if retries else None
            if pause_s is None:
                return self._instead(asked, call, exc, started_s)
            retries -= 1
            self._shared.pause(pause_s)
            return begin(until_s - time.monotonic())

        call = begin(asked.settings.deadline_s)
        stream = Stream(wire, call, None, otherwise)
        wire.wait_sent(call, waiter)
        return stream

    def _first(self, asked: Asked, started_s: float) -> Reply | None:
        """The template of a mode that puts templates before the model."""
        found = self._shared.offline
        return found.first(asked, started_s) if found is not None else None

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
        if cache.first or asked.settings.mode:
            first = self._first(asked, started_s)
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

    def _batch(
        self, requests: Sequence[str | Mapping[str, Any]], settings: Settings, concurrency: int
    ) -> list[Reply | WalledError]:
        results: list[Reply | WalledError | None] = [None] * len(requests)
        wire: Wire | None = None
        waiter = Waiter()
        places: dict[Call, _Place] = {}
        refused: list[tuple[float, _Place]] = []

        def start(place: _Place) -> None:
            assert wire is not None
            left_s = place.until_s - time.monotonic()
            header = calls.header(place.asked, left_s, stream=False)
            places[wire.start(header, place.asked.payload, left_s, waiter)] = place

        def collect() -> None:
            assert wire is not None
            wire.wait_any(waiter)
            while waiter.finished:
                call = waiter.finished.popleft()
                place = places.pop(call)
                results[place.number] = outcome = _outcome(call)
                if isinstance(outcome, Reply):
                    continue
                left_s = place.until_s - time.monotonic()
                pause_s = offline.pause_s(call, outcome, left_s) if place.retries else None
                if pause_s is not None:
                    place.retries -= 1
                    refused.append((time.monotonic() + pause_s, place))
                else:
                    lesser = self._instead(place.asked, call, outcome, place.started_s)
                    results[place.number] = lesser or outcome

        try:
            for number, item in enumerate(requests):
                started_s = time.perf_counter()
                try:
                    asked = calls.from_item(settings, item)
                    hit = self._lookup(asked, started_s)
                except WalledError as exc:
                    results[number] = exc
                    continue
                if hit is not None:
                    results[number] = hit
                    continue
                wire = wire or self._shared.wire()
                while len(places) >= concurrency:
                    collect()
                start(_Place(number, asked, started_s))
            while places or refused:
                if len(places) < concurrency and refused:
                    refused.sort(key=lambda due: due[0])
                    wait_s = refused[0][0] - time.monotonic()
                    if wait_s <= 0 or not places:
                        self._shared.pause(max(0.0, wait_s))
                        again = refused.pop(0)[1]
                        if time.monotonic() < again.until_s:  # its refusal stands in its place otherwise
                            start(again)
                        continue
                collect()
        except BaseException:
            for call in places:
                assert wire is not None
                wire.cancel(call)
            raise
        assert all(result is not None for result in results)
        return results  # type: ignore[return-value]  # every place has been filled

    def _control(self, request: ControlRequest, deadline_s: float) -> dict[str, Any]:
        return self._shared.wire().ask(request, deadline_s)


class _Place:
    """A request of a batch on its way."""

    __slots__ = ("asked", "number", "retries", "started_s", "until_s")

    def __init__(self, number: int, asked: Asked, started_s: float) -> None:
        self.number = number
        self.asked = asked
        self.started_s = started_s
        self.until_s = time.monotonic() + asked.settings.deadline_s
        self.retries = asked.settings.retries


Otherwise = Callable[[Call, WalledError], "Call | Reply | None"]
"""What is done about a stream that failed before any text: a new call, a lesser answer, or nothing."""


class Stream:
    """The chunks of one answer, then `.reply`. For one thread at a time."""

    def __init__(
        self, wire: Wire | None, call: Call | None, reply: Reply | None, otherwise: Otherwise | None = None
    ) -> None:
        self._wire = wire
        self._call = call
        self._otherwise = otherwise
        self._hit = reply
        self._reply: Reply | None = None
        self._failed: WalledError | None = None
        self._closed = False

    def __iter__(self) -> Iterator[StreamChunk]:
        return self

    def __next__(self) -> StreamChunk:
        if self._reply is not None or self._closed:
            raise StopIteration
        if self._failed is not None:
            raise self._failed
        if self._hit is not None:
            return self._whole(self._hit)
        return self._receive()

    def _whole(self, reply: Reply) -> StreamChunk:
        self._reply = reply
        if not reply.text:
            raise StopIteration
        return StreamChunk(reply.text)

    def _receive(self) -> StreamChunk:
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
                    raise StopIteration
                wire.wait(call, call.waiter)
        except WalledError as exc:
            wire.cancel(call)
            found = self._otherwise(call, exc) if self._otherwise is not None else None
            if found is None:
                self._failed = exc
                raise
            if isinstance(found, Reply):
                return self._whole(found)
            self._call = found
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise
        return self._receive()

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

    def finish(self) -> Reply:
        """Read the rest and return the whole answer."""
        for _ in self:
            pass
        return self.reply

    def close(self) -> None:
        """Stop; cancels the generation if it has not ended."""
        if not self._closed:
            self._closed = True
            if self._wire is not None and self._call is not None:
                self._wire.cancel(self._call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and self._wire is not None and self._call is not None and not self._call.ended:
            self._wire.abandon(self._call)


def _outcome(call: Call) -> Reply | WalledError:
    try:
        return call.reply(time.monotonic())
    except WalledError as exc:
        return exc


def _request_id(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise BadRequest("request_id: expected hexadecimal digits") from None
