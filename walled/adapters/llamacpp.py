"""llama.cpp in this process: the only door to xllamacpp.

May live here: loading a GGUF, running jobs in its slots, its errors made ours. May not: HTTP, queueing.

What was found by trying, and is held here:
- The constructor holds the GIL for the whole load; nothing else of the process runs meanwhile.
- A job queued inside the engine cannot be cancelled, so there are never more jobs than its slots. A job in
  prefill can: `return_progress` calls back after every batch, and a callback that returns True stops the job
  and frees its slot within one batch.
- Taking a text apart into tokens is part of the call that hands a job in, takes a second for a megabyte and
  cannot be cancelled: a text that can never fit is refused before.
- An exception in a callback is swallowed by the engine and looks like an answer cut short: ours never raises.
- Errors come as ValueError, RuntimeError, or as a returned or streamed {"error": ...}.
- It always opens an HTTP listener: ours listens on a unix socket whose name is removed at once and asks for
  a random key.
- Interpreter exit with a stream in flight aborts the process: `close` stops and joins everything.
- Sessions need no help: the engine picks the slot with the longest common prefix. Pinning sessions to slots
  (id_slot) reused not one token more (80 % of the prompt tokens either way: 4 conversations of 5 turns on 4
  slots) and makes a job wait when its slot is busy. `Job.session` is therefore not used.
- Greedy and seeded answers were the same in every slot, alone and beside other jobs, with and without prefix
  reuse, so cached prefixes stay on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import secrets
import threading
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import xllamacpp

from walled.adapters import gguf
from walled.adapters.backend import BackendInfo, Delta, Done, Emit, Failed, Job, Timings, require
from walled.adapters.openai_format import Assembly, chat_body, embedding_answer
from walled.config import MAX_SOCKET_PATH_BYTES, EmbeddedConfig
from walled.core.served import with_defaults
from walled.errors import (
    BackendError,
    BadRequest,
    BootError,
    Cancelled,
    ContextTooLong,
    InternalError,
    WalledError,
)
from walled.payload import Options, Request
from walled.protocol import ModelInfo

BUILT_IN_MODEL = "walled-demo.gguf"
BUILT_IN_OPTIONS = Options(max_tokens=256, temperature=0.2)
"""A small model rambles when it is hot; requests and default_options go before these."""
BATCH_TOKENS = 256
"""Prompt tokens per step: the longest time a cancel waits, and other slots pause, during a prefill."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class _Run:
    """A job in the hands of a thread."""

    __slots__ = ("cancelled", "job")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cancelled = False


class LlamaCppBackend:
    """One GGUF model with `slots` slots, one thread for each."""

    def __init__(self, config: EmbeddedConfig, slots: int, *, run_dir: Path) -> None:
        self._config = config
        self._slots = slots
        self._run_dir = run_dir
        self._server: Any = None
        self._emit: Emit = _nobody
        self._defaults = Options() if config.model_path else BUILT_IN_OPTIONS
        self._info = ModelInfo(name="", digest="")
        self._token_bytes = 0
        self._runs: dict[int, _Run] = {}
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Run | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    # --- the Backend interface ---

    def start(self, emit: Emit) -> BackendInfo:
        self._emit = emit
        with contextlib.ExitStack() as stack:
            if self._config.model_path:
                path = Path(self._config.model_path).expanduser().absolute()
            else:
                found = resources.files("walled.models").joinpath(BUILT_IN_MODEL)
                path = stack.enter_context(resources.as_file(found))
            header = gguf.inspect(path)
            self._check_kind(path, header)
            # The engine caps a slot's window at what the model was trained for; more would be memory unused.
            window = min(self._config.context_tokens, header.context_tokens or self._config.context_tokens)
            self._info = self._describe(path, header, window)
            self._token_bytes = header.token_bytes
            self._server = self._load(path, header, window)
        self._threads = [
            threading.Thread(target=self._work, name=f"llama {index}", daemon=True)
            for index in range(self._slots)
        ]
        for thread in self._threads:
            thread.start()
        self._prove(path)
        return BackendInfo((self._info,), self._slots)

    def submit(self, job: Job) -> None:
        try:
            require(job.request, self._info)
            self._check_fits(job.request)
        except WalledError as error:
            self._emit(Failed(job.job_id, error))
            return
        run = _Run(job)
        with self._lock:
            self._runs[job.job_id] = run
        self._queue.put(run)

    def cancel(self, job_id: int) -> None:
        with self._lock:
            run = self._runs.get(job_id)
            if run is not None:
                run.cancelled = True

    def close(self) -> None:
        with self._lock:
            for run in self._runs.values():
                run.cancelled = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._server = None  # its destructor stops the engine's own threads and joins them

    # --- loading ---

    def _check_kind(self, path: Path, header: gguf.GgufInfo) -> None:
        if "bert" in header.architecture and not self._config.embeddings:
            raise BootError(
                f"{path}: is an embedding model ({header.architecture}); set embeddings = true to serve it"
            )
        if header.architecture == "clip":
            raise BootError(f"{path}: is an image projector, not a language model; name the model's own file")

    def _describe(self, path: Path, header: gguf.GgufInfo, window: int) -> ModelInfo:
        config = self._config
        if config.embeddings:
            capabilities: tuple[str, ...] = ("embed",)
        else:
            # A template that does not know tools would drop them silently.
            tools = ("tools",) if "tools" in header.chat_template else ()
            capabilities = ("chat", "generate", "schema", *tools)
        settings = [header.digest, window, config.embeddings, xllamacpp.__version__]
        settings.append(msgspec.to_builtins(self._defaults))
        return ModelInfo(
            name=config.model or path.stem,
            digest=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
            capabilities=capabilities,
            context_tokens=window,
        )

    def _load(self, path: Path, header: gguf.GgufInfo, window: int) -> Any:
        config = self._config
        socket = self._socket_path()
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = self._slots
        params.n_ctx = window * self._slots
        params.n_batch = max(BATCH_TOKENS, self._slots)
        params.n_ubatch = params.n_batch
        params.cpuparams.n_threads = config.threads
        params.cpuparams_batch.n_threads = config.threads
        params.cache_ram_mib = 0
        params.fit_params = False
        params.ui = False
        params.warmup = False  # the probe warms up
        params.endpoint_slots = False
        params.verbosity = -1
        params.hostnames = [str(socket)]
        params.api_keys = [secrets.token_hex(32)]
        if config.embeddings:
            params.embedding = True
            # A text is embedded in one step, so the step must hold the longest one.
            params.n_batch = params.n_ubatch = window
            if not header.pooling:
                params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        socket.unlink(missing_ok=True)
        try:
            return xllamacpp.Server(params)
        except (RuntimeError, ValueError, MemoryError) as exc:
            raise BootError(
                f"{path}: llama.cpp cannot load it ({str(exc)[:200]}); the file may be damaged, of a kind "
                "this llama.cpp does not know, or too big for this machine at context_tokens = "
                f"{window} x {self._slots} slots"
            ) from None
        finally:
            socket.unlink(missing_ok=True)

    def _socket_path(self) -> Path:
        socket = self._run_dir / f"llama-{os.getpid()}.sock"
        if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
            raise BootError(
                f"{socket}: a socket path has at most {MAX_SOCKET_PATH_BYTES} bytes; "
                "choose a shorter daemon.run_dir"
            )
        socket.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        return socket

    def _prove(self, path: Path) -> None:
        """A real one-token generation (or embedding)."""
        try:
            if self._config.embeddings:
                reply = self._server.handle_embeddings({"input": ["hello"]})
            else:
                messages = [{"role": "user", "content": "hello"}]
                reply = self._server.handle_chat_completions({"messages": messages, "max_tokens": 1})
        except (RuntimeError, ValueError) as exc:
            self.close()
            raise BootError(f"{path}: the model does not answer: {str(exc)[:200]}") from None
        if "error" in reply:
            self.close()
            raise BootError(f"{path}: the model does not answer: {reply['error'].get('message', '')[:200]}")

    # --- jobs ---

    def _check_fits(self, request: Request) -> None:
        """Raises ContextTooLong for a text that needs more tokens than the window has, however it is cut.

        Only what users wrote counts: templates may leave out parts of earlier answers.
        """
        window = self._info.context_tokens
        most = self._token_bytes * window
        texts = [*request.input, request.prompt, *(m.content for m in request.messages if m.role == "user")]
        size = max(map(len, texts))
        if most and size > most:
            raise ContextTooLong(
                f"a text of {size} characters has more tokens than the context window, {window}; shorten it, "
                "or raise context_tokens as far as the model was trained for"
            )

    def _work(self) -> None:
        while (run := self._queue.get()) is not None:
            job = run.job
            try:
                ending: Done | Failed = self._embed(run) if job.request.kind == "embed" else self._chat(run)
            except WalledError as error:
                ending = Failed(job.job_id, error)
            except Exception as exc:
                ending = Failed(job.job_id, InternalError(f"llama.cpp adapter: {type(exc).__name__}"))
            with self._lock:
                del self._runs[job.job_id]
            self._emit(ending)

    def _chat(self, run: _Run) -> Done | Failed:
        if run.cancelled:
            raise Cancelled("cancelled before it began")
        job = run.job
        assembly = Assembly()
        faults: list[WalledError] = []
        timings: dict[str, Any] = {}
        emit, job_id = self._emit, job.job_id

        def take(chunk: bytes) -> bool:
            """Called by the engine for every chunk; True stops the job."""
            if run.cancelled:
                return True
            try:
                fields = _decode(chunk)
                if "error" in fields:
                    faults.append(_error(fields["error"]))
                    return True
                text = assembly.take(fields)
                if text:
                    emit(Delta(job_id, text))
                if "timings" in fields:
                    timings.update(fields["timings"])
            except Exception as exc:
                faults.append(InternalError(f"llama.cpp adapter: {type(exc).__name__} in a chunk"))
                return True
            return False

        body = chat_body(with_defaults(job.request, self._defaults))
        body["return_progress"] = True
        reply = _called(self._server.handle_chat_completions, body, take)
        if faults:
            raise faults[0]
        if reply and "error" in reply:
            raise _error(reply["error"])
        if run.cancelled and not assembly.finished:
            raise Cancelled("cancelled")
        phases = Timings(0.0, float(timings.get("prompt_ms", 0)), float(timings.get("predicted_ms", 0)))
        return Done(job_id, assembly.answer(self._info.name), phases)

    def _embed(self, run: _Run) -> Done | Failed:
        """One call for each text, so that a cancel does not wait for all of them."""
        job = run.job
        rows: list[Any] = []
        used = 0
        for index, text in enumerate(job.request.input):
            if run.cancelled:
                raise Cancelled("cancelled")
            reply = _called(self._server.handle_embeddings, {"input": [text]})
            if reply is None or "error" in reply:
                raise _error((reply or {}).get("error") or {})
            rows.append({"index": index, "embedding": reply["data"][0]["embedding"]})
            used += (reply.get("usage") or {}).get("prompt_tokens") or 0
        whole = {"data": rows, "usage": {"prompt_tokens": used}}
        return Done(job.job_id, embedding_answer(whole, len(rows), self._info.name))


def _called(method: Any, body: dict[str, Any], *callback: Any) -> dict[str, Any] | None:
    """Call the engine; what it raises, made ours."""
    try:
        reply = method(json.dumps(body).encode(), *callback)
    except ValueError as exc:
        raise _refused(str(exc)) from None
    except RuntimeError as exc:
        raise BackendError(f"llama.cpp: {type(exc).__name__}") from None
    return None if reply is None else _decode(reply)


def _refused(text: str) -> WalledError:
    """A ValueError's reason may quote the prompt, so only what is known to be harmless is passed on."""
    if "schema" in text.lower() or "grammar" in text.lower():
        return BadRequest("format: llama.cpp cannot make a grammar of this JSON schema")
    return BadRequest("the model's chat template does not take these messages (check roles, order and tools)")


def _error(error: dict[str, Any]) -> WalledError:
    kind, message = error.get("type", ""), str(error.get("message", ""))[:200]
    if kind == "exceed_context_size_error":
        tokens, window = error.get("n_prompt_tokens", 0), error.get("n_ctx", 0)
        return ContextTooLong(
            f"the prompt has {tokens} tokens, the context window {window}; shorten the conversation, or "
            "raise context_tokens as far as the model was trained for"
        )
    if kind == "invalid_request_error":
        if "too large" in message or "context" in message:
            return ContextTooLong("the text does not fit the model's context window")
        return BadRequest("llama.cpp refuses the request's options or messages")
    return BackendError(f"llama.cpp failed the request ({kind or 'unknown error'})")


def _nobody(event: object) -> None:
    raise RuntimeError("start() first")
