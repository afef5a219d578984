"""Ollama, one or several servers of it: the one door to the `ollama` package.

May live here: the client (with what the library and HTTP raise turned into our errors), jobs and their
events. May not: which host is fit (ollama_hosts.py), JSON shapes (ollama_wire.py), the loop (loop_thread.py),
time limits but the connect timeout: silence and deadlines are judged by the worker, which then cancels.

The library's typed methods lose what walled needs: they cannot send `truncate: false` (without it Ollama
silently cuts a long prompt in half), drop JSON schema keywords and tool call ids, and open an image given as
text as a file of this machine. Its transport replaces bytes that are no UTF-8 and hides response headers
(Retry-After). So request and answer pass through its HTTP client as plain JSON.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import httpx
import msgspec
from ollama import AsyncClient, ResponseError

from walled.adapters import ollama_wire as wire
from walled.adapters import upstream
from walled.adapters.backend import BackendInfo, Changed, Delta, Done, Emit, Job, require
from walled.adapters.logs import safe_traceback
from walled.adapters.loop_thread import LoopThread
from walled.adapters.ollama_catalogue import Facts, Listed
from walled.adapters.ollama_hosts import Host, HostClient, Hosts, Progress
from walled.config import OllamaConfig
from walled.errors import BackendError, BootError, Truncated, WalledError

KEEP_IDLE_S = 60.0
"""How long an idle connection stays open for the next request."""
DRAIN_S = 0.25
"""Wait for the end of the HTTP body after the end mark; a connection that has none is given up."""
YIELD_EVERY = 32
"""Records after which a stream lets others run: a fast server's backlog must not hold up a cancel."""

_log = logging.getLogger("walled.ollama")
_decode = msgspec.json.Decoder().decode


class _Client(AsyncClient):
    """The library's client with a bounded pool of connections; raises only WalledErrors."""

    def __init__(self, url: str, connections: int, connect_timeout_s: float) -> None:
        super().__init__(
            url,
            # A read may take as long as the worker allows: it cancels.
            timeout=httpx.Timeout(None, connect=connect_timeout_s),
            limits=httpx.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=KEEP_IDLE_S,
            ),
            follow_redirects=False,
            trust_env=False,  # a proxy from the environment must not get between walled and its own host
        )
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._http: httpx.AsyncClient = self._client

    async def tags(self) -> dict[str, Listed]:
        """The models the server has, by full name."""
        reply = await self._json("GET", "/api/tags", None, "")
        try:
            return {
                wire.full_name(str(model["model"])): Listed(
                    str(model["digest"]), bool(model.get("remote_host"))
                )
                for model in reply["models"] or ()
            }
        except (AttributeError, KeyError, TypeError):
            raise BackendError(f"{self._url}: the list of models is not one of Ollama's") from None

    async def facts(self, model: str) -> Facts:
        """What the server says the model can do."""
        reply = await self._json("POST", "/api/show", {"model": model}, model)
        try:
            details = reply.get("model_info") or {}
            sizes = [details[key] for key in details if key.endswith(".context_length")]
            return Facts(
                wire.capabilities(reply.get("capabilities")),
                int(sizes[0]) if sizes else 0,
                wire.parameter(reply.get("parameters") or "", "num_ctx"),
            )
        except (AttributeError, TypeError, ValueError):
            raise BackendError(f"{self._url}: the description of {model} is not one of Ollama's") from None

    async def loaded(self) -> set[str]:
        """Full names of the models in memory."""
        reply = await self._json("GET", "/api/ps", None, "")
        try:
            return {wire.full_name(str(model["model"])) for model in reply["models"] or ()}
        except (KeyError, TypeError):
            raise BackendError(f"{self._url}: the list of loaded models is not one of Ollama's") from None

    async def call(self, path: str, body: dict[str, Any], model: str) -> dict[str, Any]:
        """One request, one JSON map."""
        return await self._json("POST", path, body, model)

    async def records(
        self, path: str, body: dict[str, Any], model: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The records of a streamed answer. Closing the generator closes the connection unless it ended."""
        async with AsyncExitStack() as stack:
            response = await self._answered(stack, "POST", path, body, model)
            async for line in upstream.lines(response, self._url):
                yield self._record(line, model)

    async def pulling(self, model: str) -> AsyncGenerator[Progress, None]:
        """The steps of a pull; ends when the model is there."""
        status = ""
        try:
            stream: Any = await self.pull(model, stream=True)
            async with aclosing(stream):
                async for step in stream:
                    status = step.status or ""
                    yield Progress(status, step.completed or 0, step.total or 0)
        except ResponseError as exc:
            raise wire.error_of(exc.status_code, str(exc.error), model, self._url) from None
        except httpx.RequestError as exc:
            raise upstream.broken(self._url, exc) from None
        except Exception as exc:
            _log.error("pulling from %s: %s", self._url, safe_traceback(exc))
            raise BackendError(f"pulling from {self._url} failed: {type(exc).__name__}") from None
        if status != "success":
            raise Truncated(f"{self._url} ended the pull of {model} before it was complete")

    async def _json(self, method: str, path: str, body: Any, model: str) -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            response = await self._answered(stack, method, path, body, model)
            data = await upstream.read(response, self._url)
        return self._record(upstream.Line(data, True), model)

    async def _answered(
        self, stack: AsyncExitStack, method: str, path: str, body: Any, model: str
    ) -> httpx.Response:
        """The response, its status good; sent once, whatever happens."""
        try:
            response = await stack.enter_async_context(self._http.stream(method, path, json=body))
        except httpx.RequestError as exc:
            raise upstream.unanswered(self._url, exc, self._connect_timeout_s) from None
        if response.status_code == 200:
            return response
        try:
            said = wire.said(await upstream.read(response, self._url))
        except BackendError:
            said = ""  # the status says enough
        wait_s = upstream.retry_after_s(response.headers.get("retry-after", ""))
        raise wire.error_of(response.status_code, said, model, self._url, wait_s)

    def _record(self, line: upstream.Line, model: str) -> dict[str, Any]:
        try:
            record = _decode(line.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if not line.whole:
                raise Truncated(f"{self._url} broke off its answer inside a record") from None
            raise BackendError(f"{self._url} does not answer as Ollama does: not JSON") from None
        if not isinstance(record, dict):
            raise BackendError(f"{self._url} does not answer as Ollama does: not a JSON map")
        if record.get("error"):
            raise wire.error_of(-1, wire.said(line.data), model, self._url)
        return record


class OllamaBackend:
    """Runs jobs on the configured hosts, in one event loop in a thread of its own."""

    def __init__(self, config: OllamaConfig, slots: int) -> None:
        self._config = config
        self._slots = slots
        self._hosts: Hosts | None = None
        self._loop = LoopThread("ollama", self._run, self._release)

    def start(self, emit: Emit) -> BackendInfo:
        unknown = set(self._config.load_options) - wire.LOAD_OPTIONS
        if unknown:
            raise BootError(
                f"load_options: {', '.join(sorted(unknown))} cannot be set there; Ollama's load options are "
                f"{', '.join(sorted(wire.LOAD_OPTIONS))}, and sampling goes into default_options"
            )
        for library in ("httpx", "httpcore"):  # they write a line for every request, at debug for every chunk
            logging.getLogger(library).setLevel(logging.WARNING)
        return self._loop.start(emit, self._open())

    def submit(self, job: Job) -> None:
        self._loop.submit(job)

    def cancel(self, job_id: int) -> None:
        self._loop.cancel(job_id)

    def close(self) -> None:
        self._loop.close()

    # --- in the loop's thread ---

    async def _open(self) -> BackendInfo:
        config = self._config
        clients: dict[str, HostClient] = {}
        for url in config.hosts:
            try:
                clients[url] = _Client(url, config.connections, config.connect_timeout_s)
            except (ValueError, httpx.InvalidURL) as exc:
                raise BootError(
                    f'hosts: "{url}" is not the address of a server ({exc}); expected http://HOST:PORT'
                ) from None
        self._hosts = Hosts(config, self._slots, clients, lambda info: self._loop.emit(Changed(info)))
        return await self._hosts.open()

    async def _release(self) -> None:
        if self._hosts is not None:
            await self._hosts.close()

    async def _run(self, job: Job) -> Done:
        """The answer. A host that cannot be reached has not been asked, so the next one is; whatever else
        goes wrong is the broker's to repeat, and then another host is preferred."""
        hosts = self._hosts
        assert hosts is not None
        name, info = hosts.catalogue.find(job.model)
        require(job.request, info)
        tried: set[Host] = set()
        while True:
            async with hosts.lease(name, job.session, tried) as host:
                began_s = asyncio.get_running_loop().time()
                try:
                    return await self._attempt(host, job, name)
                except asyncio.CancelledError:
                    hosts.unheard(host, began_s)
                    raise
                except BackendError as exc:
                    hosts.failed(host, exc)
                    tried.add(host)
                    unreached = isinstance(exc, upstream.Unreached | upstream.SlowConnect)
                    if not unreached or not hosts.others(name, tried):
                        raise

    async def _attempt(self, host: Host, job: Job, name: str) -> Done:
        """The whole answer from one host. Raises what went wrong."""
        hosts = self._hosts
        assert hosts is not None
        path, body = wire.body(job.request, name, hosts.load_options, self._config.keep_alive_s)
        if job.request.kind == "embed":
            record = await host.client.call(path, body, name)
            answer, timings = wire.embed_answer(record, name, len(job.request.input)), wire.timings(record)
        else:
            reply = wire.Reply()
            async with aclosing(host.client.records(path, body, name)) as stream:
                await self._stream(stream, host, job.job_id, reply)
            answer, timings = reply.answer(name), reply.timings()
        hosts.answered(host, name, timings.load_ms)
        return Done(job.job_id, answer, timings)

    async def _stream(
        self, stream: AsyncGenerator[dict[str, Any], None], host: Host, job_id: int, reply: wire.Reply
    ) -> None:
        """Pass the records on until the end mark, or the end of the body."""
        clock, emit = asyncio.get_running_loop().time, self._loop.emit
        count = 0
        async for record in stream:
            text = reply.add(record)
            host.heard_s = clock()
            if text or (reply.begun and not reply.done):
                emit(Delta(job_id, text))  # a thought is no text, but a sign of life
            if reply.done:
                await _drain(stream)
                return
            count += 1
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        # Without an end mark: Reply.answer says so.


async def _drain(stream: AsyncGenerator[dict[str, Any], None]) -> None:
    """Read the end of the body, so that the connection can be used again; failing at that harms nobody."""
    try:
        async with asyncio.timeout(DRAIN_S):
            await anext(stream)
    except (StopAsyncIteration, TimeoutError, WalledError):
        pass
