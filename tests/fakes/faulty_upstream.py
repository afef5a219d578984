"""A model server that fails in every way one can, in Ollama's and OpenAI's dialects at once, on raw sockets.

May live here: HTTP by hand, faults, what decides which request meets which. May not: anything of walled, JSON
values of the real Ollama (ollama_records.py). What a sound Ollama does in detail is ollama_server.py's.

    with FaultyUpstream() as upstream:              # .url is Ollama's, .openai_url has the /v1
        upstream.play(Fault("500"), Fault("cut"))   # the next two generations; then upstream.script decides
        upstream.script = flapping(5, 5, Fault("503"))       # or chances(seed, {Fault("reset"): 0.1}), or ...
        upstream.down(); upstream.up()              # refuse connections on the same port, and serve again
        upstream.count("text of the last message")  # generations asked for with it; probes are counted apart

Kinds (KINDS), by what the client sees: `ok`; `429`, `500`, `503`, `502`, `401`, `404` with an error in the
dialect (`retry_after` is sent as it is); `loading`; `context`; `policy` (a status), `policy_end` (midway:
OpenAI's finish_reason, Ollama's error record); `reset_early` before the status line; `hangup` the same with a
FIN; `silent`; `slow` (`seconds` before the first token); `cut` (FIN), `reset` (RST), `stall`, `bad_chunk`,
`bad_json`, `bad_utf8`, `unloaded` after `after` tokens; `html` with status 200; `not_http`; `dies`: refuses
connections from then on for `seconds`. Every wait ends with the client's leaving or with `stop`.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.fakes import ollama_records as records
from tests.fakes.faulty_dialects import SECRET, Dialect, Ollama, OpenAI

MAX_REMEMBERED = 100_000
STATUSES = ("401", "404", "429", "500", "502", "503")
EARLY = (
    *STATUSES,
    "loading",
    "context",
    "policy",
    "reset_early",
    "hangup",
    "silent",
    "html",
    "not_http",
    "dies",
)
LATE = ("policy_end", "cut", "reset", "stall", "bad_chunk", "bad_json", "bad_utf8", "unloaded")
KINDS = ("ok", "slow", *EARLY, *LATE)


class Fault(NamedTuple):
    """How one generation goes wrong."""

    kind: str = "ok"
    seconds: float = 0.2
    after: int = 2
    retry_after: str = ""


class Call(NamedTuple):
    """One generation that was asked for."""

    path: str
    text: str
    """Of the last message, or the prompt."""
    fault: str
    probe: bool
    """walled's own one-token generation."""


Script = Callable[[int], Fault]
"""The fault of the n-th generation, from 0, of those that met no queued fault."""


def always(fault: Fault) -> Script:
    return lambda number: fault


def flapping(good: int, bad: int, fault: Fault) -> Script:
    """`good` sound answers, `bad` faults, and again."""
    return lambda number: Fault() if number % (good + bad) < good else fault


def chances(seed: int, faults: Mapping[Fault, float]) -> Script:
    """Each fault with its probability, the same ones for the same seed whatever the order of asking."""

    def chosen(number: int) -> Fault:
        left = random.Random(f"{seed}/{number}").random()
        for fault, chance in faults.items():
            left -= chance
            if left < 0:
                return fault
        return Fault()

    return chosen


class FaultyUpstream:
    """The server, in a thread of its own; a context manager."""

    def __init__(
        self,
        *,
        model: str = "demo",
        tokens: tuple[str, ...] = ("Hello", ",", " you", "."),
        token_s: float = 0.0,
        faulty_probes: bool = False,
        tls: Path | None = None,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.token_s = token_s
        self.faulty_probes = faulty_probes
        """Whether walled's proofs meet the faults of `script` too."""
        self.script: Script = always(Fault())
        self.calls: deque[Call] = deque(maxlen=MAX_REMEMBERED)
        self.left = 0
        """Clients that hung up while they were being answered."""
        self._queued: deque[Fault] = deque()
        self._scripted = 0
        self._tls = _self_signed(tls) if tls is not None else None
        self._changed = threading.Condition()
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    # --- for the test ---

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def __enter__(self) -> FaultyUpstream:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10), "the faulty upstream did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def play(self, *faults: Fault) -> None:
        """For the next generations, in this order."""
        self._queued.extend(faults)

    def down(self) -> None:
        """As a killed server: all connections are reset and new ones refused, until `up`."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)

    def up(self) -> None:
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def count(self, text: str = "") -> int:
        """Generations asked for, probes left out; of one request, by the text of its last message."""
        return sum(not call.probe and (not text or call.text == text) for call in list(self.calls))

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait until a call or a hang-up makes the condition true."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), "the faulty upstream waited in vain"

    # --- connections ---

    async def _live(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping, self._listening = asyncio.Event(), asyncio.Lock()
        await self._listen()
        ready.set()
        await self._stopping.wait()
        await self._close()

    async def _listen(self) -> None:
        async with self._listening:
            if self._server is None:
                self._server = await asyncio.start_server(
                    self._connection, "127.0.0.1", self._port, ssl=self._tls, backlog=256
                )
                self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for writer in list(self._writers):
            _reset(writer)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self._tls is None:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while not writer.is_closing():
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS handshake on a plain port
                    writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                    return
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                _, path, _ = head[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                await self._request(path, json.loads(data) if data else {}, _Wire(self, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        except _Left:
            with self._changed:
                self.left += 1
                self._changed.notify_all()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _request(self, path: str, body: dict[str, Any], wire: _Wire) -> None:
        listed = records.Model(("completion",))
        name = f"{self.model}:latest"
        values: dict[str, Any] = {
            "/api/tags": {"models": [records.listed(name, listed)]},
            "/api/ps": {"models": [records.running(name, listed)]},
            "/api/version": {"version": "0.32.15"},
            "/api/show": records.shown(listed),
            "/v1/models": {"object": "list", "data": [{"id": self.model, "object": "model"}]},
        }
        if path in values:
            wire.reply(200, values[path])
        elif path in ("/api/chat", "/api/generate", "/v1/chat/completions"):
            await self._generation(path, body, wire)
        else:
            wire.reply(404, {"error": "404 page not found"})

    async def _generation(self, path: str, body: dict[str, Any], wire: _Wire) -> None:
        openai = path.startswith("/v1/")
        said = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        probe = said == "Say ok." or (openai and not body.get("stream"))
        fault = Fault()
        if not probe or self.faulty_probes:
            if self._queued and not probe:
                fault = self._queued.popleft()
            else:
                fault = self.script(self._scripted)
                self._scripted += 1
        with self._changed:
            self.calls.append(Call(path, said, fault.kind, probe))
            self._changed.notify_all()
        dialect = OpenAI(self.model) if openai else Ollama(path == "/api/chat", body)
        if openai and probe and fault.kind not in EARLY:
            wire.reply(200, dialect.whole())
        elif fault.kind in EARLY:
            await self._early(fault, dialect, wire)
        else:
            await self._stream(fault, dialect, wire)

    async def _early(self, fault: Fault, dialect: Dialect, wire: _Wire) -> None:
        kind = fault.kind
        if kind in STATUSES or kind in ("loading", "context", "policy"):
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            wire.reply(*dialect.refusal(kind), headers)
        elif kind == "silent":
            await wire.until_left()
        elif kind == "html":
            wire.reply(200, f"<html><body>\n<p>{SECRET}</p>\n</body></html>\n")
        elif kind == "not_http":
            wire.write(b"220 mail.example ESMTP\r\n\r\n")
            wire.close()
        elif kind == "hangup":
            wire.close()
        else:
            if kind == "dies":
                self._loop.call_later(fault.seconds, lambda: self._loop.create_task(self._listen()))
                await self._close()
            wire.reset()

    async def _stream(self, fault: Fault, dialect: Dialect, wire: _Wire) -> None:
        if fault.kind == "slow":
            await wire.pause(fault.seconds)
        wire.begin(dialect.content_type)
        for index, token in enumerate(self.tokens):
            if index == min(fault.after, len(self.tokens) - 1) and fault.kind in LATE:
                await self._late(fault.kind, dialect, wire)
                return
            if index and self.token_s:
                await wire.pause(self.token_s)
            wire.chunk(dialect.token(token))
            await wire.drain()
        for data in dialect.end(len(self.tokens)):
            wire.chunk(data)
        wire.write(b"0\r\n\r\n")

    async def _late(self, kind: str, dialect: Dialect, wire: _Wire) -> None:
        await wire.drain()
        if kind in ("policy_end", "unloaded"):
            for data in dialect.ending(kind):
                wire.chunk(data)
            wire.write(b"0\r\n\r\n")
            return
        if kind == "stall":
            await wire.until_left()
        elif kind == "reset":
            wire.reset()
        elif kind == "bad_chunk":
            wire.write(b"zz\r\nnot a chunk\r\n")
        elif kind == "bad_json":
            wire.chunk(dialect.framed(b'{"' + SECRET.encode() + b'": nonsense}'))
        elif kind == "bad_utf8":
            wire.chunk(dialect.token("@").replace(b"@", b"\xff\xfe"))
        wire.close()


class _Left(Exception):
    """The client hung up while it was being answered."""


class _Wire:
    """One connection, by hand."""

    def __init__(
        self, server: FaultyUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server, self._reader, self._writer = server, reader, writer

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()
        if self._reader.at_eof():
            raise _Left

    def reply(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        html = isinstance(value, str)
        data = value.encode() if html else json.dumps(value).encode()
        more = "".join(f"{name}: {text}\r\n" for name, text in (headers or {}).items())
        kind = "text/html" if html else "application/json"
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(data)}\r\n\r\n"
        self.write(head.encode() + data)

    def begin(self, content_type: str) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.write(head.encode())

    def chunk(self, data: bytes) -> None:
        self.write(b"%x\r\n%s\r\n" % (len(data), data))

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        _reset(self._writer)

    async def until_left(self) -> None:
        """For ever, or until the client hangs up."""
        await self._reader.read(1)
        raise _Left

    async def pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.until_left()
        except TimeoutError:
            pass


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with an RST: nothing more is sent, and the client is told so."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _self_signed(directory: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate nobody trusts."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
