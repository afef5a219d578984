"""Any OpenAI-compatible server (vLLM, llama-server, LM Studio).

May live here: calls over HTTP, the end of a stream told from its breaking off. May not: the dialect itself
(openai_format.py, openai_errors.py), what breaks in transit (upstream.py), the loop (loop_thread.py),
queueing, time limits of jobs: silence and deadlines are judged by the worker, which then cancels.

A cancelled job closes its connection, which is how these servers learn that nobody listens any more. Proxies
of the environment are not used: the server is one's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from walled import __version__
from walled.adapters import upstream
from walled.adapters.backend import BackendInfo, Delta, Done, Emit, Failed, Job, Timings, require
from walled.adapters.loop_thread import LoopThread
from walled.adapters.openai_errors import NoChat, refusal, status_of
from walled.adapters.openai_format import Assembly, chat_body, completion_body, embedding_answer
from walled.config import OpenAIConfig
from walled.errors import (
    BackendError,
    BackendUnauthorized,
    BackendUnavailable,
    BadRequest,
    BootError,
    ModelNotFound,
    Unsupported,
    WalledError,
)
from walled.protocol import ModelInfo

MAX_ERROR_BYTES = 1024 * 1024
MAX_EVENT_BYTES = 4 * 1024 * 1024
LIST_S = 5.0
"""At start: how long the list of models may take."""
LAST_WORDS_S = 2.0
"""After the end mark: how long the token counts and [DONE] may take."""
TRAILER_S = 0.1
"""After [DONE]: how long the end of the HTTP body may take."""
YIELD_EVERY = 32
"""Events after which a stream lets others run: a fast server's backlog must not hold up a cancel."""

_decode = msgspec.json.Decoder().decode


class OpenAIBackend:
    """A server by its base URL."""

    def __init__(self, config: OpenAIConfig, slots: int) -> None:
        self._config = config
        # A job that waited for a connection would be queued inside the backend.
        self._slots = min(slots, config.connections)
        self._where = _without_password(config.base_url)
        self._infos: dict[str, ModelInfo] = {}
        self._upstream: dict[str, str] = {}
        self._no_chat: set[str] = set()
        """Models that are completed without a chat template, found out by trying."""
        self._client: httpx.AsyncClient | None = None
        self._loop = LoopThread("openai", self._run, self._release)

    # --- the Backend interface ---

    def start(self, emit: Emit) -> BackendInfo:
        self._client = self._made_client({"user-agent": f"walled/{__version__}", **self._authorization()})
        try:
            return self._loop.start(emit, self._prepare())
        except (BadRequest, ModelNotFound, Unsupported, BackendUnauthorized) as exc:
            raise BootError(f"{self._where}: a one-token request is refused: {exc.message}") from None
        except WalledError as exc:
            if isinstance(exc, BootError | BackendUnavailable):
                raise
            raise BackendUnavailable(exc.message) from None

    def submit(self, job: Job) -> None:
        try:
            require(job.request, self._infos[job.model])
        except WalledError as error:
            self._loop.emit(Failed(job.job_id, error))
            return
        self._loop.submit(job)

    def cancel(self, job_id: int) -> None:
        self._loop.cancel(job_id)

    def close(self) -> None:
        self._loop.close()

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

    async def _prepare(self) -> BackendInfo:
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
        for name, theirs in wanted.items():
            self._upstream[name] = theirs
            self._infos[name] = self._describe(name, theirs, (listed or {}).get(theirs, {}))
        try:
            async with asyncio.timeout(self._config.first_token_timeout_s):
                await self._probe(next(iter(wanted.values())))
        except TimeoutError:
            raise BackendUnavailable(f"{self._where}: does not answer a one-token request") from None
        return BackendInfo(tuple(self._infos.values()), self._slots, self._config.max_loaded_models)

    async def _listed(self) -> dict[str, dict[str, Any]] | None:
        """The server's models; None when it has no list."""
        try:
            async with asyncio.timeout(self._config.connect_timeout_s + LIST_S):
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

    async def _release(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _run(self, job: Job) -> Done:
        """The answer of one generation. Only a server without a chat endpoint, or a model without a chat
        template, is asked twice, on the other endpoint: it generated nothing, and it is remembered."""
        request, upstream_name = job.request, self._upstream[job.model]
        if request.kind == "embed":
            began = time.monotonic()
            body: dict[str, Any] = {
                "model": upstream_name,
                "input": list(request.input),
                "encoding_format": "float",
            }
            reply = await self._call("POST", "embeddings", body)
            took_ms = (time.monotonic() - began) * 1000
            answer = embedding_answer(reply, len(request.input), job.model)
            return Done(job.job_id, answer, Timings(prefill_ms=took_ms))
        if job.model not in self._no_chat:
            try:
                body = {"model": upstream_name, **chat_body(request)}
                return await self._stream(job, "chat/completions", body)
            except NoChat:
                if request.kind == "chat":
                    raise Unsupported(f"model {job.model} has no chat template; use generate") from None
                self._no_chat.add(job.model)
        elif request.kind == "chat":
            raise Unsupported(f"model {job.model} has no chat template; use generate")
        return await self._stream(job, "completions", {"model": upstream_name, **completion_body(request)})

    async def _stream(self, job: Job, path: str, body: dict[str, Any]) -> Done:
        began, first_s, count = time.monotonic(), 0.0, 0
        assembly = Assembly()
        timings: dict[str, Any] = {}
        async with contextlib.AsyncExitStack() as stack:
            events = _events(await self._opened(stack, path, body), self._where)
            while True:
                try:
                    async with asyncio.timeout(LAST_WORDS_S if assembly.finished else None):
                        data = await anext(events, None)
                except (TimeoutError, BackendError):
                    if assembly.finished:
                        break
                    raise
                if data is None:
                    break
                if data == b"[DONE]":
                    assembly.end()
                    with contextlib.suppress(TimeoutError, BackendError):
                        # A response read to its end leaves a reusable connection.
                        async with asyncio.timeout(TRAILER_S):
                            await anext(events, None)
                    break
                chunk = self._chunk(data)
                before = assembly.pieces
                text = self._taken(assembly, chunk)
                if assembly.pieces > before:
                    first_s = first_s or time.monotonic()
                    self._loop.emit(Delta(job.job_id, text))  # a thought is no text, but a sign of life
                if isinstance(chunk.get("timings"), dict):
                    timings = chunk["timings"]
                count += 1
                if count % YIELD_EVERY == 0:
                    await asyncio.sleep(0)
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

    def _taken(self, assembly: Assembly, chunk: dict[str, Any]) -> str:
        try:
            return assembly.take(chunk)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise BackendError(f"{self._where}: a chunk of the stream is not one of OpenAI's") from None

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
            data = await upstream.read(response, self._where)
        return self._chunk(data)

    async def _opened(
        self,
        stack: contextlib.AsyncExitStack,
        path: str,
        body: dict[str, Any] | None,
        method: str = "POST",
    ) -> httpx.Response:
        """A response whose status is good; sent once, whatever happens."""
        assert self._client is not None
        config = self._config
        try:
            response: httpx.Response = await stack.enter_async_context(
                self._client.stream(method, path, json=body)
            )
        except httpx.RequestError as exc:
            raise upstream.unanswered(self._where, exc, config.connect_timeout_s) from None
        if response.status_code == 200:
            return response
        try:
            said = await upstream.read(response, self._where, MAX_ERROR_BYTES)
        except BackendError:
            said = b""  # the status says enough
        raise refusal(
            self._where,
            config.api_key_env,
            response.status_code,
            said,
            path=path,
            retry_after_s=upstream.retry_after_s(response.headers.get("retry-after", "")),
        )


async def _events(response: httpx.Response, where: str) -> AsyncIterator[bytes]:
    """The data of each server-sent event. An event that is cut off is not an event."""
    gathered: list[bytes] = []
    size, foreign = 0, b""
    async for line in upstream.lines(response, where):
        if line.data.startswith(b"data:") and line.whole:
            gathered.append(line.data[5:].removeprefix(b" "))
            size += len(line.data)
            if size > MAX_EVENT_BYTES:
                raise BackendError(f"{where}: a streamed event of more than {MAX_EVENT_BYTES} bytes")
        elif not line.data and gathered:
            yield b"\n".join(gathered)
            gathered, size = [], 0
        elif line.data and not line.data.startswith((b":", b"event:", b"id:", b"retry:", b"data:")):
            foreign += line.data[: MAX_ERROR_BYTES - len(foreign)]
    if foreign.startswith(b"{") and b'"error"' in foreign:
        yield foreign  # an error object instead of a stream, under status 200
    elif foreign:
        raise BackendError(f"{where}: answers what is not a stream of events; base_url should end with /v1")


def _without_password(url: str) -> str:
    """The URL as errors and logs may show it."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
