"""Any OpenAI-compatible server (vLLM, llama-server, LM Studio): the only door to httpx besides its tests.

May live here: calls over HTTP, the end of a stream told from its breaking off, HTTP's errors made ours. May
not: the dialect itself (openai_format.py), queueing.

All calls run on one event loop in one thread. A cancelled job closes its connection, which is how these
servers learn that nobody listens any more. Proxies of the environment are not used: the server is one's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx
import msgspec

from walled import __version__
from walled.adapters.backend import BackendInfo, Delta, Done, Emit, Failed, Job, Timings, require
from walled.adapters.openai_errors import NoChat, refusal, status_of
from walled.adapters.openai_format import Assembly, chat_body, completion_body, embedding_answer
from walled.config import OpenAIConfig
from walled.errors import (
    BackendError,
    BackendUnauthorized,
    BackendUnavailable,
    BadRequest,
    BootError,
    Cancelled,
    InternalError,
    ModelNotFound,
    Truncated,
    Unsupported,
    WalledError,
)
from walled.protocol import ModelInfo

MAX_EVENT_BYTES = 4 * 1024 * 1024
MAX_REPLY_BYTES = 64 * 1024 * 1024
LAST_WORDS_S = 2.0
"""After the end mark: how long the token counts and [DONE] may take."""
TRAILER_S = 0.1
"""After [DONE]: how long the end of the HTTP body may take."""
CLOSE_S = 2.0

_decode = msgspec.json.Decoder().decode


class OpenAIBackend:
    """A server by its base URL."""

    def __init__(self, config: OpenAIConfig, slots: int) -> None:
        self._config = config
        # A job that waited for a connection would be queued inside the backend.
        self._slots = min(slots, config.connections)
        self._where = _without_password(config.base_url)
        self._emit: Emit = _nobody
        self._infos: dict[str, ModelInfo] = {}
        self._upstream: dict[str, str] = {}
        self._no_chat: set[str] = set()
        """Models that are completed without a chat template, found out by trying."""
        self._tasks: dict[int, asyncio.Task[Done]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._client: httpx.AsyncClient | None = None

    # --- the Backend interface ---

    def start(self, emit: Emit) -> BackendInfo:
        self._emit = emit
        headers = {"user-agent": f"walled/{__version__}", **self._authorization()}
        self._client = self._made_client(headers)
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai", daemon=True)
        self._thread.start()
        try:
            self._wait(self._prepare())
        except (BadRequest, ModelNotFound, Unsupported, BackendUnauthorized) as exc:
            self.close()
            raise BootError(f"{self._where}: a one-token request is refused: {exc.message}") from None
        except WalledError as exc:
            self.close()
            if isinstance(exc, BootError | BackendUnavailable):
                raise
            raise BackendUnavailable(exc.message) from None
        return BackendInfo(tuple(self._infos.values()), self._slots, self._config.max_loaded_models)

    def submit(self, job: Job) -> None:
        try:
            require(job.request, self._infos[job.model])
        except WalledError as error:
            self._emit(Failed(job.job_id, error))
            return
        self._loop.call_soon_threadsafe(self._begin, job)

    def cancel(self, job_id: int) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._cancel, job_id)

    def close(self) -> None:
        if self._thread is None:
            self._loop.close()
            return
        self._wait(self._end_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._thread = None
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # --- start ---

    def _authorization(self) -> dict[str, str]:
        variable = self._config.api_key_env
        if not variable:
            return {}
        key = os.environ.get(variable, "")
        if not key or not key.isascii() or not key.isprintable():
            raise BootError(
                f"environment variable {variable} (api_key_env) holds no usable key; set it first"
            )
        return {"authorization": f"Bearer {key}"}

    def _made_client(self, headers: dict[str, str]) -> httpx.AsyncClient:
        config = self._config
        try:
            return httpx.AsyncClient(
                base_url=config.base_url.rstrip("/") + "/",
                headers=headers,
                timeout=httpx.Timeout(None, connect=config.connect_timeout_s),
                limits=httpx.Limits(
                    max_connections=config.connections, max_keepalive_connections=config.connections
                ),
                trust_env=False,
            )
        except (httpx.InvalidURL, ValueError) as exc:
            raise BootError(f"base_url {self._where!r} is not a URL: {exc}") from None

    async def _prepare(self) -> None:
        """What the server has, and a real one-token call."""
        listed = await self._listed()
        wanted = dict(self._config.models) or {name: name for name in listed or ()}
        if not wanted:
            raise BackendUnavailable(f"{self._where}: lists no models; name them in backends.*.models")
        missing = [upstream for upstream in wanted.values() if listed is not None and upstream not in listed]
        if missing:
            raise BackendUnavailable(
                f"{self._where}: does not have the model {', '.join(missing)}; it has: "
                f"{', '.join(sorted(listed or ())) or 'none'}"
            )
        for name, upstream in wanted.items():
            self._upstream[name] = upstream
            self._infos[name] = self._describe(name, upstream, (listed or {}).get(upstream, {}))
        try:
            async with asyncio.timeout(self._config.first_token_timeout_s):
                await self._probe(next(iter(wanted.values())))
        except TimeoutError:
            raise BackendUnavailable(f"{self._where}: does not answer a one-token request") from None

    async def _listed(self) -> dict[str, dict[str, Any]] | None:
        """The server's models; None when it has no list."""
        try:
            async with asyncio.timeout(self._config.connect_timeout_s + 10):
                reply = await self._call("GET", "models")
            return {str(entry["id"]): entry for entry in reply["data"]}
        except (ModelNotFound, Unsupported):
            return None
        except TimeoutError:
            raise BackendUnavailable(f"{self._where}: does not answer") from None
        except (KeyError, TypeError):
            raise BackendUnavailable(f"{self._where}: its list of models is not OpenAI's") from None

    def _describe(self, name: str, upstream: str, entry: dict[str, Any]) -> ModelInfo:
        meta = entry.get("meta") if isinstance(entry.get("meta"), dict) else {}
        # The API has no digest. What stays the same for the same weights, and is there, stands in for it.
        known = [self._config.base_url, upstream, entry.get("root"), entry.get("owned_by"), meta]
        window = entry.get("max_model_len") or (meta or {}).get("n_ctx") or 0
        return ModelInfo(
            name=name,
            digest=hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest(),
            capabilities=tuple(self._config.capabilities),
            context_tokens=window if isinstance(window, int) and window > 0 else 0,
        )

    async def _probe(self, upstream: str) -> None:
        capabilities = self._config.capabilities
        if "chat" in capabilities or "generate" in capabilities:
            messages = [{"role": "user", "content": "hello"}]
            try:
                body = {"model": upstream, "messages": messages, "max_tokens": 1}
                await self._call("POST", "chat/completions", body)
            except NoChat:
                body = {"model": upstream, "prompt": "hello", "max_tokens": 1}
                await self._call("POST", "completions", body)
        else:
            await self._call("POST", "embeddings", {"model": upstream, "input": ["hello"]})

    # --- jobs (on the loop) ---

    def _begin(self, job: Job) -> None:
        task = self._loop.create_task(self._run(job))
        self._tasks[job.job_id] = task
        # A task that is cancelled before its first step never runs a line of its own: only this sees its end.
        task.add_done_callback(lambda task: self._ended(job.job_id, task))

    def _cancel(self, job_id: int) -> None:
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()

    def _ended(self, job_id: int, task: asyncio.Task[Done]) -> None:
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
            self._emit(Failed(job_id, InternalError(f"openai adapter: {type(error).__name__}")))

    async def _end_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        if self._client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._client.aclose(), CLOSE_S)

    async def _run(self, job: Job) -> Done:
        request, upstream = job.request, self._upstream[job.model]
        if request.kind == "embed":
            began = time.monotonic()
            body: dict[str, Any] = {
                "model": upstream,
                "input": list(request.input),
                "encoding_format": "float",
            }
            try:
                async with asyncio.timeout(self._config.first_token_timeout_s):
                    reply = await self._call("POST", "embeddings", body)
            except TimeoutError:
                raise BackendError(f"{self._where}: no embeddings within first_token_timeout_s") from None
            took_ms = (time.monotonic() - began) * 1000
            answer = embedding_answer(reply, len(request.input), job.model)
            return Done(job.job_id, answer, Timings(prefill_ms=took_ms))
        if job.model not in self._no_chat:
            try:
                return await self._stream(job, "chat/completions", {"model": upstream, **chat_body(request)})
            except NoChat:
                if request.kind == "chat":
                    raise Unsupported(f"model {job.model} has no chat template; use generate") from None
                self._no_chat.add(job.model)
        elif request.kind == "chat":
            raise Unsupported(f"model {job.model} has no chat template; use generate")
        return await self._stream(job, "completions", {"model": upstream, **completion_body(request)})

    async def _stream(self, job: Job, path: str, body: dict[str, Any]) -> Done:
        began = time.monotonic()
        first_s = 0.0
        assembly = Assembly()
        timings: dict[str, Any] = {}
        async with contextlib.AsyncExitStack() as stack:
            limit_s = self._config.first_token_timeout_s
            try:
                async with asyncio.timeout(limit_s):
                    response = await self._opened(stack, path, body)
            except TimeoutError:
                raise BackendError(f"{self._where}: no answer within first_token_timeout_s") from None
            events = _events(response)
            while True:
                if assembly.finished:
                    limit_s = min(LAST_WORDS_S, self._config.inter_token_timeout_s)
                elif first_s:
                    limit_s = self._config.inter_token_timeout_s
                else:
                    limit_s = max(0.001, began + self._config.first_token_timeout_s - time.monotonic())
                try:
                    async with asyncio.timeout(limit_s):
                        data = await anext(events, None)
                except TimeoutError:
                    if assembly.finished:
                        break
                    what = "inter_token_timeout_s" if first_s else "first_token_timeout_s"
                    raise BackendError(f"{self._where}: the stream stalled for {what}") from None
                except httpx.TransportError:
                    if assembly.finished:
                        break
                    raise Truncated(f"{self._where}: the stream broke off before its end mark") from None
                if data is None:
                    break
                if data == b"[DONE]":
                    assembly.end()
                    with contextlib.suppress(TimeoutError, httpx.TransportError):
                        async with asyncio.timeout(TRAILER_S):
                            await anext(
                                events, None
                            )  # a response read to its end leaves a reusable connection
                    break
                chunk = self._chunk(data)
                text = assembly.take(chunk)
                if text or assembly.finished:
                    first_s = first_s or time.monotonic()
                if text:
                    self._emit(Delta(job.job_id, text))
                if isinstance(chunk.get("timings"), dict):
                    timings = chunk["timings"]
        ended = time.monotonic()
        first_s = first_s or ended
        return Done(
            job.job_id,
            assembly.answer(job.model),
            Timings(
                prefill_ms=float(timings.get("prompt_ms") or (first_s - began) * 1000),
                decode_ms=float(timings.get("predicted_ms") or (ended - first_s) * 1000),
            ),
        )

    def _chunk(self, data: bytes) -> dict[str, Any]:
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BackendError(f"{self._where}: the stream holds what is not JSON") from None
        if not isinstance(chunk, dict):
            raise BackendError(f"{self._where}: the stream holds what is not a chunk")
        if chunk.get("error"):
            raise refusal(self._where, self._config.api_key_env, status_of(chunk["error"]), data)
        return chunk

    # --- calls ---

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A call whose reply is one JSON object."""
        async with contextlib.AsyncExitStack() as stack:
            response = await self._opened(stack, path, body, method)
            try:
                data = await _read(response, MAX_REPLY_BYTES)
            except httpx.TransportError:
                raise Truncated(f"{self._where}: the reply to {path} broke off") from None
        return self._chunk(data)

    async def _opened(
        self,
        stack: contextlib.AsyncExitStack,
        path: str,
        body: dict[str, Any] | None,
        method: str = "POST",
    ) -> httpx.Response:
        """A response whose status is good. A kept connection that the server has closed in the meantime is
        tried once more on a new one."""
        assert self._client is not None
        for last in (False, True):
            try:
                return await self._checked(stack, self._client.stream(method, path, json=body), path)
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                raise BackendUnavailable(
                    f"{self._where}: cannot be reached ({type(exc).__name__}); is the server running?"
                ) from None
            except httpx.TransportError as exc:
                if last:
                    raise BackendUnavailable(
                        f"{self._where}: hung up before it answered ({type(exc).__name__})"
                    ) from None
        raise AssertionError

    async def _checked(self, stack: contextlib.AsyncExitStack, call: Any, path: str) -> httpx.Response:
        response: httpx.Response = await stack.enter_async_context(call)
        if response.status_code == 200:
            return response
        try:
            said = await _read(response, MAX_EVENT_BYTES)
        except (httpx.TransportError, BackendError):
            said = b""
        retry_after = response.headers.get("retry-after", "")
        raise refusal(
            self._where,
            self._config.api_key_env,
            response.status_code,
            said,
            path=path,
            retry_after=retry_after,
        )


async def _read(response: httpx.Response, limit: int) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > limit:
            raise BackendError(f"a reply of more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The data of each server-sent event. An event that is cut off is not an event."""
    rest = b""
    lines: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        rest += part
        size += len(part)
        if size > MAX_EVENT_BYTES:
            raise BackendError(f"a streamed event of more than {MAX_EVENT_BYTES} bytes")
        *whole, rest = rest.split(b"\n")
        for line in whole:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                lines.append(line[5:].removeprefix(b" "))
            elif not line and lines:
                yield b"\n".join(lines)
                lines, size = [], 0


def _without_password(url: str) -> str:
    """The URL as errors and logs may show it."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _nobody(event: object) -> None:
    raise RuntimeError("start() first")
