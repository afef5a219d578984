"""Ollama, one or several servers of it: the one door to the `ollama` package.

May live here: the client (with what the library raises turned into our errors), jobs, their deadlines and
events, the thread with the event loop. May not: which host is fit (ollama_hosts.py), JSON shapes
(ollama_wire.py).

The library's typed methods lose what walled needs: they cannot send `truncate: false` (without it Ollama
silently cuts a long prompt in half), drop JSON schema keywords and tool call ids, and open an image given as
text as a file of this machine. So request and answer pass through its transport as plain JSON.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
from ollama import AsyncClient, ResponseError

from walled.adapters import ollama_wire as wire
from walled.adapters.backend import (
    BackendInfo,
    Changed,
    Delta,
    Done,
    Emit,
    Event,
    Failed,
    Job,
    require,
)
from walled.adapters.logs import safe_traceback
from walled.adapters.ollama_catalogue import Facts, Listed
from walled.adapters.ollama_hosts import Host, HostClient, Hosts, Progress
from walled.config import OllamaConfig
from walled.errors import (
    BackendError,
    BackendUnavailable,
    BootError,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    Truncated,
    WalledError,
)

KEEP_IDLE_S = 60.0
"""How long an idle connection stays open for the next request."""
DRAIN_S = 0.25
"""Wait for the end of the HTTP body after the end mark; a connection that has none is given up."""
JOIN_S = 5.0
YIELD_EVERY = 32
"""Records after which a stream lets others run: a fast server's backlog must not hold up a cancel."""

_log = logging.getLogger("walled.ollama")


class _Client(AsyncClient):
    """The library's client with a bounded pool of connections; raises only WalledErrors."""

    def __init__(self, url: str, connections: int, connect_timeout_s: float) -> None:
        super().__init__(
            url,
            # Deadlines are the jobs' (below); a read may take as long as the model does.
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
        try:
            return {wire.full_name(str(model.model)) for model in (await self.ps()).models}
        except Exception as exc:
            raise self._typed(exc, "", False) from None

    async def call(self, path: str, body: dict[str, Any], model: str) -> dict[str, Any]:
        """One request, one JSON map."""
        return await self._json("POST", path, body, model)

    async def records(
        self, path: str, body: dict[str, Any], model: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The records of a streamed answer. Closing the generator closes the connection unless it ended."""
        begun = False
        try:
            stream: Any = await self._request(dict, "POST", path, json=body, stream=True)
            async with aclosing(stream):
                async for record in stream:
                    begun = True
                    yield record
        except WalledError:
            raise
        except Exception as exc:
            raise self._typed(exc, model, begun) from None

    async def pulling(self, model: str) -> AsyncGenerator[Progress, None]:
        """The steps of a pull; ends when the model is there."""
        status = ""
        try:
            stream: Any = await self.pull(model, stream=True)
            async with aclosing(stream):
                async for step in stream:
                    status = step.status or ""
                    yield Progress(status, step.completed or 0, step.total or 0)
        except Exception as exc:
            raise self._typed(exc, model, True) from None
        if status != "success":
            raise Truncated(f"{self._url} ended the pull of {model} before it was complete")

    async def _json(self, method: str, path: str, body: Any, model: str) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = await self._request(dict, method, path, json=body)
        except Exception as exc:
            raise self._typed(exc, model, False) from None
        return reply

    def _typed(self, exc: Exception, model: str, begun: bool) -> WalledError:
        """Our error for the library's. `begun`: part of an answer has come, so the rest is missing."""
        url = self._url
        if isinstance(exc, ResponseError):
            return wire.error_of(exc.status_code, str(exc.error), model, url)
        if isinstance(exc, ConnectionError | httpx.ConnectError | httpx.ConnectTimeout):
            return BackendUnavailable(f"{url} cannot be reached; is Ollama running there?", retry_after_s=1.0)
        if isinstance(exc, httpx.TransportError | ValueError) and begun:
            return Truncated(f"{url} broke off its answer ({type(exc).__name__})")
        if isinstance(exc, httpx.TransportError):
            text = f"{url} closed the connection without an answer ({type(exc).__name__})"
            return BackendUnavailable(text, retry_after_s=1.0)
        if isinstance(exc, ValueError | TypeError | AttributeError):
            return BackendError(f"{url} does not answer as Ollama does ({type(exc).__name__})")
        _log.error("talking to %s: %s", url, safe_traceback(exc))
        return BackendError(f"talking to {url} failed: {type(exc).__name__}")


class OllamaBackend:
    """Runs jobs on the configured hosts, in one event loop in a thread of its own."""

    def __init__(self, config: OllamaConfig, slots: int) -> None:
        self._config = config
        self._slots = slots
        self._emit: Emit = _nobody
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        """Guards _closing against a submit at the same time."""
        self._closing = False
        self._hosts: Hosts | None = None
        self._tasks: dict[int, asyncio.Task[Event]] = {}

    def start(self, emit: Emit) -> BackendInfo:
        unknown = set(self._config.load_options) - wire.LOAD_OPTIONS
        if unknown:
            raise BootError(
                f"load_options: {', '.join(sorted(unknown))} cannot be set there; Ollama's load options are "
                f"{', '.join(sorted(wire.LOAD_OPTIONS))}, and sampling goes into default_options"
            )
        for library in ("httpx", "httpcore"):  # they write a line for every request, at debug for every chunk
            logging.getLogger(library).setLevel(logging.WARNING)
        self._emit = emit
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(loop,), name="ollama", daemon=True)
        self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(self._open(), loop).result()
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> None:
        with self._lock:
            if not self._closing and self._loop is not None:
                self._loop.call_soon_threadsafe(self._begin, job)
                return
        self._emit(Failed(job.job_id, Cancelled("the backend is closing")))

    def cancel(self, job_id: int) -> None:
        with self._lock:
            if not self._closing and self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel, job_id)

    def close(self) -> None:
        with self._lock:
            already, self._closing = self._closing, True
        loop, thread = self._loop, self._thread
        if already or loop is None or thread is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._close(), loop)
        try:
            closing.result(timeout=JOIN_S)
        except TimeoutError:
            _log.error("ollama: connections did not close within %g s", JOIN_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

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
        self._hosts = Hosts(config, self._slots, clients, lambda info: self._emit(Changed(info)))
        return await self._hosts.open()

    async def _close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._hosts is not None:
            await self._hosts.close()

    def _begin(self, job: Job) -> None:
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks[job.job_id] = task
        task.add_done_callback(lambda done: self._ended(job.job_id, done))

    def _cancel(self, job_id: int) -> None:
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()

    def _ended(self, job_id: int, task: asyncio.Task[Event]) -> None:
        """The one place where a job's ending is emitted: after its slot and connection are free."""
        del self._tasks[job_id]
        if task.cancelled():
            self._emit(Failed(job_id, Cancelled("cancelled")))
            return
        error = task.exception()
        if error is None:
            self._emit(task.result())
        elif isinstance(error, WalledError):
            self._emit(Failed(job_id, error))
        else:
            _log.error("ollama job: %s", safe_traceback(error))
            self._emit(Failed(job_id, InternalError(f"the Ollama adapter failed: {type(error).__name__}")))

    async def _run(self, job: Job) -> Event:
        hosts = self._hosts
        assert hosts is not None
        name, info = hosts.catalogue.find(job.model)
        require(job.request, info)
        tried: set[Host] = set()
        try:
            # loop.time() is time.monotonic(), the clock of deadline_s.
            async with asyncio.timeout_at(job.deadline_s):
                while True:
                    async with hosts.lease(name, job.session, tried) as host:
                        reply = wire.Reply()
                        try:
                            return await self._attempt(host, job, name, reply)
                        except (BackendError, Overloaded) as exc:
                            gone = isinstance(exc, BackendUnavailable)
                            if gone or isinstance(exc, Truncated):
                                hosts.doubt(host, exc, gone=gone and not isinstance(exc, _Silent))
                            tried.add(host)
                            if reply.begun or not hosts.others(name, tried):
                                raise
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before Ollama's answer was complete") from None

    async def _attempt(self, host: Host, job: Job, name: str, reply: wire.Reply) -> Done:
        """The whole answer from one host. Raises what went wrong; `reply` tells whether text was emitted."""
        hosts = self._hosts
        assert hosts is not None
        path, body = wire.body(job.request, name, hosts.load_options, self._config.keep_alive_s)
        if job.request.kind == "embed":
            record = await self._embed(host, path, body, name)
            answer, timings = wire.embed_answer(record, name, len(job.request.input)), wire.timings(record)
        else:
            async with aclosing(host.client.records(path, body, name)) as stream:
                await self._stream(stream, host, job.job_id, reply)
            answer, timings = reply.answer(name), reply.timings()
        hosts.answered(host, name, timings.load_ms)
        return Done(job.job_id, answer, timings)

    async def _embed(self, host: Host, path: str, body: dict[str, Any], name: str) -> dict[str, Any]:
        limit_s = self._config.first_token_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await host.client.call(path, body, name)
        except TimeoutError:
            raise _Silent(f"{host.url} answered nothing within {limit_s:g} s") from None

    async def _stream(
        self, stream: AsyncGenerator[dict[str, Any], None], host: Host, job_id: int, reply: wire.Reply
    ) -> None:
        """Pass the records on until the end mark, or the end of the body, or a deadline."""
        clock = asyncio.get_running_loop().time
        count = 0
        limit_s = self._config.first_token_timeout_s
        try:
            while not reply.done:
                async with asyncio.timeout(limit_s):
                    record = await anext(stream)
                text = reply.add(record)
                host.heard_s = clock()
                if text:
                    self._emit(Delta(job_id, text))
                count += 1
                if count % YIELD_EVERY == 0:
                    await asyncio.sleep(0)
                limit_s = self._config.inter_token_timeout_s
        except StopAsyncIteration:
            return  # without an end mark: Reply.answer says so
        except TimeoutError:
            if reply.begun:
                raise Truncated(f"{host.url} stopped in its answer for {limit_s:g} s") from None
            raise _Silent(f"{host.url} sent no token within {limit_s:g} s") from None
        await _drain(stream)


class _Silent(BackendUnavailable):
    """The host took the request and said nothing: it is to be proved, but its other streams may be fine."""


async def _drain(stream: AsyncGenerator[dict[str, Any], None]) -> None:
    """Read the end of the body, so that the connection can be used again; failing at that harms nobody."""
    try:
        async with asyncio.timeout(DRAIN_S):
            await anext(stream)
    except (StopAsyncIteration, TimeoutError, WalledError):
        pass


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """The thread: run the loop until it is stopped, then end what is left of it."""
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_end_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _end_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _nobody(event: Event) -> None:
    """Stands for `emit` until `start` brings one."""
