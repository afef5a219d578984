"""A server that is Ollama on the wire, with scripted behaviour: recorded from Ollama 0.32.15.

May live here: what the real server sends, byte for byte but for dates, names and numbers, and ways to make it
misbehave as the real one was seen to. May not: anything of walled.

What was recorded and is kept: HTTP/1.1 with these headers in this order; a stream sends nothing, not even its
status, before its first record; one chunk for each record; errors before the first record are a status with
{"error": ...}, later ones a record; a client that half-closes counts as gone; waiting for a slot is silent.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from tests.fakes import ollama_records as records
from tests.fakes.ollama_records import Model

_JSON = "application/json; charset=utf-8"
_STREAM = "application/x-ndjson"
_REASONS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
}  # fmt: skip
_LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")


@dataclass
class Turn:
    """How one generation goes. The default is a good answer."""

    tokens: tuple[str, ...] = ("Hello", ",", " you", ".")
    thinking: tuple[str, ...] = ()
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    done_reason: str = "stop"
    status: int = 200
    error: str = ""
    """With status 200: an error record after the tokens. Else the error's text."""
    hold_at: int | None = None
    """Wait for `release` before this record."""
    end: str = "done"
    """"done"; "silent": the body ends well without a done record; "cut": the connection closes in the body;
    "cut_line": it closes inside a record; "reset": it is reset; "open": done, but the body never ends."""
    load_ns: int = 1_500_000
    raw: bytes | None = None
    """These bytes instead of any answer, then the connection closes."""

    def __post_init__(self) -> None:
        self.started = threading.Event()
        self.gone = threading.Event()
        """The client hung up while this turn was going on."""
        self.gone_s = 0.0
        self.ended = threading.Event()
        self._released = threading.Event()
        self._wake: Callable[[], object] | None = None

    def release(self) -> None:
        self._released.set()
        if self._wake is not None:
            self._wake()


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    method: str
    path: str
    body: dict[str, Any]
    connection: int

    @property
    def probe(self) -> bool:
        """Whether it is a one-token proof of walled's and not a job."""
        said = self.body.get("messages") or [{}]
        return self.body.get("input") == ["ok"] or said[-1].get("content") == "Say ok."


class _Reader(asyncio.StreamReaderProtocol):
    """Tells that the client is gone without reading ahead of its next request."""

    def __init__(self, server: FakeOllama, loop: asyncio.AbstractEventLoop) -> None:
        self.left = asyncio.Event()
        super().__init__(
            asyncio.StreamReader(loop=loop), lambda r, w: server._connection(r, w, self), loop=loop
        )

    def eof_received(self) -> bool:
        self.left.set()
        return bool(super().eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self.left.set()
        super().connection_lost(exc)


class FakeOllama:
    """The server, in a thread of its own; a context manager."""

    def __init__(
        self, models: dict[str, Model] | None = None, *, parallel: int = 4, pullable: bool = False
    ) -> None:
        self.models = {"demo:latest": Model()} if models is None else dict(models)
        self.parallel = parallel
        self.pullable = pullable
        self.script: Callable[[Asked], Turn] = lambda asked: Turn()
        """What a job gets when no turn is queued."""
        self.turns: deque[Turn] = deque()
        """Played by the next jobs, in order, before the script."""
        self.probe_turns: deque[Turn] = deque()
        """The same for proofs."""
        self.asked: list[Asked] = []
        self.loaded: dict[str, tuple[Any, ...]] = {}
        self.reloads = 0
        self.connections = 0
        self.in_flight = self.peak = 0
        self.list_delay = threading.Event()
        self.list_delay.set()
        self._changed = threading.Condition()
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FakeOllama:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve; after `stop`, on the port it had."""
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10), "the fake server did not start"

    def stop(self) -> None:
        """As a killed server: every connection closes, the port refuses."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)
            self._loop = None

    def play(self, *turns: Turn) -> None:
        self.turns.extend(turns)

    def jobs(self, path: str = "") -> list[Asked]:
        """Generations and embeddings asked for, proofs left out."""
        kinds = (path,) if path else ("/api/chat", "/api/generate", "/api/embed")
        return [asked for asked in self.asked if asked.path in kinds and not asked.probe]

    def probes(self) -> list[Asked]:
        return [a for a in self.asked if a.path in ("/api/chat", "/api/embed") and a.probe]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait until something that was asked makes the condition true."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), "the fake server waited in vain"

    # --- HTTP ---

    async def _serve(self, ready: threading.Event) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._slots = asyncio.Semaphore(self.parallel)
        self.loaded.clear()
        server = await loop.create_server(lambda: _Reader(self, loop), "127.0.0.1", self._port)
        self._port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopping.wait()
        server.close()
        for writer in list(self._writers):
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: _Reader
    ) -> None:
        self.connections += 1
        number = self.connections
        self._writers.add(writer)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                await self._request(method, path, data, number, writer, client)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _request(
        self, method: str, path: str, data: bytes, number: int, writer: asyncio.StreamWriter, client: _Reader
    ) -> None:
        try:
            body = json.loads(data) if data else {}
        except ValueError:
            self._reply(writer, 400, {"error": "unexpected EOF"})
            return
        with self._changed:
            self.asked.append(Asked(method, path, body, number))
            self._changed.notify_all()
        if path == "/api/tags":
            await asyncio.to_thread(self.list_delay.wait)
            self._reply(writer, 200, {"models": [records.listed(n, m) for n, m in self.models.items()]})
        elif path == "/api/ps":
            self._reply(writer, 200, {"models": [records.running(n, self.models[n]) for n in self.loaded]})
        elif path == "/api/version":
            self._reply(writer, 200, {"version": "0.32.15"})
        elif path == "/api/show":
            self._show(writer, body)
        elif path == "/api/pull":
            await self._pull(writer, body["model"])
        elif path in ("/api/chat", "/api/generate", "/api/embed"):
            await self._generation(writer, client, path, body)
        else:
            self._write(writer, 404, "text/plain", b"404 page not found")

    def _write(self, writer: asyncio.StreamWriter, status: int, kind: str, data: bytes) -> None:
        long = len(data) > 2048  # more than the buffer of the real server's HTTP library
        size = "Transfer-Encoding: chunked" if long else f"Content-Length: {len(data)}"
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n{size}\r\n\r\n"
        )
        body = f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n" if long else data
        writer.write(head.encode() + body)

    def _reply(self, writer: asyncio.StreamWriter, status: int, value: Any) -> None:
        self._write(writer, status, _JSON, records.pack(value))

    def _refuse(self, writer: asyncio.StreamWriter, refusal: records.Refusal, body: dict[str, Any]) -> None:
        error = {"error": refusal.text}
        if not refusal.late or body.get("stream") is False or "input" in body:
            self._reply(writer, refusal.status, error)
            return
        data = records.pack(error)
        writer.write(
            f"HTTP/1.1 {refusal.status} {_REASONS[refusal.status]}\r\nContent-Type: application/json\r\n"
            f"Date: {formatdate(usegmt=True)}\r\nTransfer-Encoding: chunked\r\n\r\n"
            f"{len(data):x}\r\n".encode()
            + data
            + b"\r\n0\r\n\r\n"
        )

    def _begin(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {_STREAM}\r\nDate: {formatdate(usegmt=True)}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )

    def _chunk(self, writer: asyncio.StreamWriter, value: Any) -> None:
        data = records.pack(value) + b"\n"
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    # --- catalogue ---

    def _show(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        model = self.models.get(body["model"])
        if model is None:
            self._reply(writer, 404, {"error": f"model '{body['model']}' not found"})
        else:
            self._reply(writer, 200, records.shown(model))

    async def _pull(self, writer: asyncio.StreamWriter, name: str) -> None:
        digest = hashlib.sha256(b"layer").hexdigest()
        layer = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": 278655584}
        self._begin(writer)
        self._chunk(writer, {"status": "pulling manifest"})
        if not self.pullable:
            self._chunk(writer, {"error": "pull model manifest: file does not exist"})
        else:
            for step in (layer, {**layer, "completed": 73686078}, {**layer, "completed": 278655584}):
                self._chunk(writer, step)
            for status in ("verifying sha256 digest", "writing manifest", "success"):
                self._chunk(writer, {"status": status})
            self.models[name if ":" in name else f"{name}:latest"] = Model()
        writer.write(b"0\r\n\r\n")

    # --- generations ---

    async def _generation(
        self, writer: asyncio.StreamWriter, client: _Reader, path: str, body: dict[str, Any]
    ) -> None:
        refusal = records.refusal(self.models, path, body)
        if refusal is not None:
            self._refuse(writer, refusal, body)
            return
        if path == "/api/chat" and not body.get("messages"):
            load = {**records.record(True, body), "done": True, "done_reason": "load"}
            self._reply(writer, 200, load)
            return
        asked = Asked("POST", path, body, 0)
        if asked.probe:
            turn = self.probe_turns.popleft() if self.probe_turns else Turn()
        else:
            turn = self.turns.popleft() if self.turns else self.script(asked)
        name = body["model"]
        runner = (*(body.get("options", {}).get(key) for key in _LOAD_OPTIONS), body.get("shift"))
        if self.loaded.get(name, runner) != runner:
            self.reloads += 1
        if self.loaded.get(name) != runner:
            turn.load_ns = max(turn.load_ns, 257_335_833)
        self.loaded[name] = runner
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            async with self._slots:
                await self._turn(writer, client, path, body, turn)
        finally:
            self.in_flight -= 1
            turn.ended.set()

    async def _turn(
        self, writer: asyncio.StreamWriter, client: _Reader, path: str, body: dict[str, Any], turn: Turn
    ) -> None:
        turn.started.set()
        if turn.raw is not None:
            writer.write(turn.raw)
            writer.close()
        elif turn.status != 200:
            if not await self._held(turn, 0, client):
                return
            self._refuse(writer, records.Refusal(turn.status, turn.error, late=turn.status == 500), body)
        elif path == "/api/embed":
            if await self._held(turn, 0, client):
                vectors = [records.vector(text) for text in body["input"]]
                counts = {"total_duration": 31466237, "load_duration": turn.load_ns, "prompt_eval_count": 5}
                self._reply(writer, 200, {"model": body["model"], "embeddings": vectors, **counts})
        else:
            await self._stream(writer, client, path == "/api/chat", body, turn)

    async def _stream(
        self, writer: asyncio.StreamWriter, client: _Reader, chat: bool, body: dict[str, Any], turn: Turn
    ) -> None:
        sent = [records.record(chat, body, thinking=text) for text in turn.thinking]
        sent += [records.record(chat, body, text) for text in turn.tokens]
        if turn.tool_calls:
            sent.append(records.record(chat, body, "", calls=turn.tool_calls))
        if turn.error:
            sent.append({"error": turn.error})
        elif turn.end in ("done", "open"):
            sent.append(records.done(chat, body, turn.done_reason, len(turn.tokens), turn.load_ns))
        if turn.hold_at is not None and turn.hold_at == 0 and not await self._held(turn, 0, client):
            return
        self._begin(writer)
        for index, record in enumerate(sent):
            if index and not await self._held(turn, index, client):
                return
            self._chunk(writer, record)
            await writer.drain()
        if not await self._held(turn, len(sent), client):
            return
        if turn.end in ("done", "silent"):
            writer.write(b"0\r\n\r\n")
        elif turn.end == "open":
            await client.left.wait()
        elif turn.end == "cut_line":
            writer.write(b'7b\r\n{"model":"demo","created_at"')
            writer.close()
        else:
            if turn.end == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()

    async def _held(self, turn: Turn, index: int, client: _Reader) -> bool:
        """Wait for the turn's release when it holds here; False when the client left instead."""
        if turn.hold_at != index:
            return True
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        turn._wake = lambda: loop.call_soon_threadsafe(woken.set)
        if turn._released.is_set():
            return True
        waits = [asyncio.ensure_future(client.left.wait()), asyncio.ensure_future(woken.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if client.left.is_set():
            turn.gone_s = time.monotonic()
            turn.gone.set()
            return False
        return True
