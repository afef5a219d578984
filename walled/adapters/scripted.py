"""A backend that answers from a script: for tests and benches, never for people.

May live here: deterministic answers, delays, faults on demand. May not: any model, any library.

Without delays a job is answered inside `submit`, by the caller's own thread. With delays one timer thread
plays all jobs; it sleeps at least TICK_S, and hands out every token that has come due. docs/testing.md lists
the fault directives.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import os
import random
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator

from walled.adapters.backend import (
    BackendInfo,
    Delta,
    Done,
    Emit,
    Failed,
    Job,
    Timings,
    require,
)
from walled.config import ScriptedConfig
from walled.errors import BY_CODE, BackendError, Cancelled, WalledError
from walled.payload import Answer, FinishReason, Request, Usage
from walled.protocol import ModelInfo

TICK_S = 0.001
EMBEDDING_SIZE = 32
CONTEXT_TOKENS = 1 << 20


class _Fault:
    """What a directive in the prompt's last line asks for."""

    __slots__ = ("fail", "fail_after", "hang", "slow_s", "stall_after", "text", "tokens")

    def __init__(self) -> None:
        self.fail: WalledError | None = None
        self.fail_after = 0
        self.stall_after: int | None = None
        self.hang = False
        self.slow_s = 0.0
        self.tokens: int | None = None
        self.text: str | None = None


class _Play:
    """One delayed job on its way."""

    __slots__ = (
        "answer",
        "began_s",
        "fail",
        "first_s",
        "index",
        "job",
        "load_ms",
        "next_s",
        "pieces",
        "slow_s",
        "submitted_s",
        "token_s",
    )

    def __init__(self, job: Job, answer: Answer, pieces: list[str]) -> None:
        self.job = job
        self.answer = answer
        self.pieces = pieces
        self.index = 0
        self.fail: WalledError | None = None
        self.began_s = 0.0
        self.first_s = 0.0
        self.next_s = 0.0
        self.token_s = 0.0
        self.load_ms = 0.0
        self.slow_s = 0.0
        self.submitted_s = 0.0


class ScriptedBackend:
    """Deterministic answers at scripted times."""

    def __init__(self, config: ScriptedConfig, slots: int) -> None:
        self._config = config
        self._slots = slots
        self._names = (config.model, *(name for name in config.models if name != config.model))
        self._infos = {name: self._info(name) for name in self._names}
        self._emit: Emit = _nobody
        self._random = random.Random(config.seed)
        self._instant = not (
            config.first_token_s or config.token_s or (config.swap_s and config.max_loaded_models)
        )
        self._fixed_pieces = self._cut(config.text) if config.text else None
        self._echoed: tuple[tuple[str, int], list[str]] = (("", 0), [])
        # What follows belongs to the timer thread; others only leave word in the inbox. A lock held while a
        # thousand tokens go out would keep a new job waiting, and its first token with it.
        self._inbox: deque[_Play | int | None] = deque()
        """A job to begin, the id of one to cancel, None to close."""
        self._word = threading.Event()
        self._due: list[tuple[float, int, _Play]] = []
        self._order = itertools.count()
        self._plays: dict[int, _Play] = {}
        self._loaded: dict[str, float] = {}
        """Loaded models, least recently used first -> when the load is over."""
        self.swaps = 0
        self._leak: list[bytearray] = []
        """What `!leak` keeps for ever."""
        self._thread: threading.Thread | None = None

    def start(self, emit: Emit) -> BackendInfo:
        self._emit = emit
        if self._config.load_s:
            time.sleep(self._config.load_s)
        self._thread = threading.Thread(target=self._run, name="scripted", daemon=True)
        self._thread.start()
        return BackendInfo(tuple(self._infos.values()), self._slots, self._config.max_loaded_models)

    def submit(self, job: Job) -> None:
        try:
            require(job.request, self._infos[job.model])
            fault = self._fault(job.request) if self._config.faults else None
        except WalledError as error:
            self._emit(Failed(job.job_id, error))
            return
        if fault is None and self._instant:
            answer, pieces = self._answer(job, None)
            if pieces:
                self._emit(Delta(job.job_id, answer.text))
            self._emit(Done(job.job_id, answer))
            return
        self._begin(job, fault or _Fault())

    def cancel(self, job_id: int) -> None:
        self._leave_word(job_id)

    def unload_idle(self) -> int:
        used = {play.job.model for play in list(self._plays.values())}
        idle = [model for model in list(self._loaded) if model not in used]
        for model in idle:
            self._loaded.pop(model, None)
        return len(idle)

    def close(self) -> None:
        if self._thread is not None:
            self._leave_word(None)
            self._thread.join()
            self._thread = None

    def _leave_word(self, word: _Play | int | None) -> None:
        self._inbox.append(word)
        self._word.set()

    # --- the script ---

    def _info(self, name: str) -> ModelInfo:
        config = self._config
        script = f"scripted/1 {name} {config.tokens} {config.text}"
        return ModelInfo(
            name=name,
            digest=hashlib.sha256(script.encode()).hexdigest(),
            capabilities=("chat", "generate", "embed"),
            context_tokens=CONTEXT_TOKENS,
        )

    @staticmethod
    def _cut(text: str) -> list[str]:
        """Tokens: words with the space before them."""
        words = text.split(" ")
        return [word if index == 0 else " " + word for index, word in enumerate(words)]

    def _answer(self, job: Job, fault: _Fault | None) -> tuple[Answer, list[str]]:
        request = job.request
        if request.kind == "embed":
            vectors = tuple(_vector(text) for text in request.input)
            used = sum(text.count(" ") + 1 for text in request.input)
            return Answer(model=job.model, embeddings=vectors, usage=Usage(0, used)), []
        question = _question(request)
        wanted = self._config.tokens if fault is None or fault.tokens is None else fault.tokens
        if fault is not None and fault.text is not None:
            pieces = self._cut(fault.text)
        elif self._fixed_pieces is not None and (fault is None or fault.tokens is None):
            pieces = self._fixed_pieces
        else:
            pieces = self._echo(self._config.text or question, wanted)
        finish: FinishReason = "stop"
        limit = request.options.max_tokens
        if limit is not None and limit < len(pieces):
            pieces, finish = pieces[:limit], "length"
        return (
            Answer(
                model=job.model,
                text="".join(pieces),
                finish_reason=finish,
                usage=Usage(len(pieces), question.count(" ") + 1),
            ),
            pieces,
        )

    def _echo(self, text: str, tokens: int) -> list[str]:
        """`tokens` words of the text, over and over. The last one is kept: cutting a long answer for each of
        ten streams that begin together would be what their first tokens wait for."""
        asked = (text, tokens)
        if self._echoed[0] != asked:
            words = text.split() or ["..."]
            cycle = itertools.islice(itertools.cycle(words), tokens)
            pieces = [word if index == 0 else " " + word for index, word in enumerate(cycle)]
            self._echoed = (asked, pieces)
        return self._echoed[1]

    def _fault(self, request: Request) -> _Fault | None:
        """The directives in the last line of the prompt; None when there are none."""
        text = _question(request)
        start = text.rfind("\n") + 1
        if not text.startswith("!", start):
            return None
        fault = _Fault()
        words = iter(text[start:].split(" "))
        for word in words:
            self._directive(fault, word, words)
        return fault

    def _directive(self, fault: _Fault, word: str, words: Iterator[str]) -> None:
        try:
            if word == "!fail":
                fault.fail, fault.fail_after = _error(next(words)), 0
            elif word == "!fail_after":
                fault.fail_after = int(next(words))
                fault.fail = _error(next(words))
            elif word == "!stall":
                fault.stall_after = 0
            elif word == "!stall_after":
                fault.stall_after = int(next(words))
            elif word == "!crash":
                os.kill(os.getpid(), signal.SIGKILL)
            elif word == "!hang":
                fault.hang = True
            elif word == "!leak":
                # Written to, or it would be no memory at all.
                self._leak.append(bytearray(b"\x01") * int(next(words)))
            elif word == "!bomb":
                self._leak.append(bytearray(1 << 46))  # more than any process may have
            elif word == "!slow":
                fault.slow_s = float(next(words))
            elif word == "!tokens":
                fault.tokens = int(next(words))
            elif word == "!text":
                fault.text = " ".join(words)
            else:
                raise ValueError(word)
        except (StopIteration, ValueError):
            raise BackendError("scripted: not a valid directive; see docs/testing.md") from None

    # --- delayed jobs ---

    def _begin(self, job: Job, fault: _Fault) -> None:
        while fault.hang:
            time.sleep(3600)  # the caller's own loop is what hangs
        answer, pieces = self._answer(job, fault)
        play = _Play(job, answer, pieces)
        if fault.stall_after is not None:
            play.fail = _STALL
            play.pieces = pieces[: fault.stall_after]
        elif fault.fail is not None:
            play.fail = fault.fail
            play.pieces = pieces[: fault.fail_after]
        play.slow_s = fault.slow_s
        play.submitted_s = time.monotonic()
        self._leave_word(play)

    def _varied(self, delay_s: float) -> float:
        jitter = self._config.jitter
        return delay_s * self._random.uniform(1 - jitter, 1 + jitter) if jitter else delay_s

    def _load(self, model: str, now: float) -> float:
        """When `model` is loaded; a model pushed out of a full server has to be loaded again."""
        limit = self._config.max_loaded_models
        if not limit or not self._config.swap_s:
            return now
        ready_s = self._loaded.pop(model, None)
        if ready_s is None:
            if self._loaded or self.swaps:
                self.swaps += 1
            while len(self._loaded) >= limit:
                self._loaded.pop(next(iter(self._loaded)))
            ready_s = now + self._config.swap_s
        self._loaded[model] = ready_s
        return max(now, ready_s)

    # --- the timer thread ---

    def _run(self) -> None:
        due = self._due
        while True:
            self._word.clear()
            while self._inbox:
                word = self._inbox.popleft()
                if word is None:
                    for job_id in list(self._plays):
                        self._end(Failed(job_id, Cancelled("the backend is closing")))
                    return
                if isinstance(word, _Play):
                    self._place(word)
                elif word in self._plays:
                    self._end(Failed(word, Cancelled("cancelled")))
            now = time.monotonic()
            while due and due[0][0] <= now and not self._inbox:
                self._advance(heapq.heappop(due)[2], now)
            if not self._inbox:
                self._word.wait(max(due[0][0] - now, TICK_S) if due else None)

    def _place(self, play: _Play) -> None:
        """Put a new job on the calendar."""
        loaded_s = self._load(play.job.model, play.submitted_s)
        play.began_s = loaded_s
        play.load_ms = (loaded_s - play.submitted_s) * 1000
        play.first_s = play.next_s = loaded_s + self._varied(self._config.first_token_s + play.slow_s)
        play.token_s = self._varied(self._config.token_s)
        self._plays[play.job.job_id] = play
        heapq.heappush(self._due, (play.next_s, next(self._order), play))

    def _end(self, event: Done | Failed) -> None:
        del self._plays[event.job_id]
        self._emit(event)

    def _advance(self, play: _Play, now: float) -> None:
        """Hand out the tokens of one job that are due."""
        job_id = play.job.job_id
        if self._plays.get(job_id) is not play:
            return
        emit, pieces = self._emit, play.pieces
        while play.index < len(pieces) and play.next_s <= now:
            emit(Delta(job_id, pieces[play.index]))
            play.index += 1
            play.next_s += play.token_s
        if play.index < len(pieces):
            heapq.heappush(self._due, (play.next_s, next(self._order), play))
        elif play.fail is _STALL:
            return  # it stays on the books without a date
        elif play.fail is not None:
            self._end(Failed(job_id, play.fail))
        else:
            decode_ms = (now - play.first_s) * 1000
            prefill_ms = (play.first_s - play.began_s) * 1000
            self._end(Done(job_id, play.answer, Timings(play.load_ms, prefill_ms, decode_ms)))


_STALL = BackendError("stalled")
"""Marks a job that stops moving without an ending; never emitted."""


def _nobody(event: object) -> None:
    raise RuntimeError("start() first")


def _question(request: Request) -> str:
    if request.kind == "chat":
        for message in reversed(request.messages):
            if message.role == "user":
                return message.content
        return request.messages[-1].content
    return request.prompt if request.kind == "generate" else request.input[-1]


def _error(code: str) -> WalledError:
    """A fresh error of a wire code; unknown codes are a mistake in the test's prompt."""
    cls = BY_CODE.get(code)
    if cls is None:
        raise ValueError(code)
    return cls(f"scripted failure: {code}", retry_after_s=0.05 if code == "overloaded" else None)


def _vector(text: str) -> bytes:
    """A unit vector that depends on the text alone."""
    seeded = random.Random(hashlib.sha256(text.encode()).digest())
    values = [seeded.gauss(0, 1) for _ in range(EMBEDDING_SIZE)]
    norm = sum(value * value for value in values) ** 0.5
    return struct.pack(f"<{EMBEDDING_SIZE}f", *(value / norm for value in values))
