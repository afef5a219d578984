"""The books of the campaigns: what was asked, how each request ended, what was wrong with it.

May live here: counting and judging endings; the witness that counts them on the wire itself. May not:
killing, starting, printing.

Two books, because each sees what the other cannot. The client's book has every call: it must end once, in
time, with exactly the scripted answer or a typed error. The client drops a second ending by design, so the
witness speaks the protocol by hand, re-sends nothing, and counts every ending of every request id: exactly
one, or none when its connection was lost with the request in flight.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

from walled import protocol
from walled.adapters.sockets import ConnectionEvent, Hub
from walled.errors import WalledError
from walled.payload import pack_request, request_from, unpack_answer
from walled_bench import questions

if TYPE_CHECKING:
    from walled_client.results import Reply

MAX_PROBLEMS = 20
STALL_TICK_S = 0.02
STALL_S = 0.15
"""A tick that takes this long was a stall."""
GRACE_S = 1.0
"""Past its deadline a call may take this much longer before it counts as hung (a busy machine)."""


def _clock() -> str:
    return time.strftime("%H:%M:%S")


class Stalls:
    """When nothing ran that should have: a thread that sleeps briefly and notes how much longer it took.

    On a machine with more work than cores, or one that is itself paused, a call may come late by no fault of
    anybody; what is judged by the clock is judged without these moments. A context manager.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._found: list[tuple[float, float]] = []
        """(beginning, end), in order."""
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        began_s = time.monotonic()
        while not self._over.wait(STALL_TICK_S):
            now_s = time.monotonic()
            if now_s - began_s > STALL_S:
                self._found.append((began_s + STALL_TICK_S, now_s))
            began_s = now_s

    def within(self, began_s: float, ended_s: float) -> float:
        """Seconds of that time which were stalls."""
        return sum(max(0.0, min(end, ended_s) - max(begin, began_s)) for begin, end in self._found)

    def longest_s(self) -> float:
        return max((end - begin for begin, end in self._found), default=0.0)


class Ledger:
    """How the client's calls ended."""

    stalls: Stalls | None = None
    """Of the machine they are made on, when somebody looks."""

    def __init__(self) -> None:
        self.begun = 0
        self.endings: Counter[str] = Counter()
        """By outcome: `model`, `cache`, `coalesced`, ... or the code of an error."""
        self.wrong = 0
        """Successes with a text that is not the scripted one: truncated, of another question, or garbled."""
        self.hung = 0
        self.untyped = 0
        self.problems: list[str] = []

    def begin(self) -> float:
        self.begun += 1
        return time.monotonic()

    def answered(self, source: str, text: str, wanted: str, began_s: float, deadline_s: float) -> None:
        self.endings[source] += 1
        if text != wanted:
            self.wrong += 1
            self.note(f"a {source} answer has {len(text)} characters, not the {len(wanted)} scripted ones")
        self._timed(began_s, deadline_s)

    def failed(self, error: Exception, began_s: float, deadline_s: float) -> None:
        if isinstance(error, WalledError):
            self.endings[error.code] += 1
        else:
            self.untyped += 1
            self.endings["untyped"] += 1
            self.note(f"a call raised {type(error).__name__}: {error}")
        self._timed(began_s, deadline_s)

    def _timed(self, began_s: float, deadline_s: float) -> None:
        now_s = time.monotonic()
        took_s = now_s - began_s
        if self.stalls is not None and took_s > deadline_s + GRACE_S:
            took_s -= self.stalls.within(began_s, now_s)
        if took_s > deadline_s + GRACE_S:
            self.hung += 1
            self.note(f"a call with a deadline of {deadline_s:g} s took {took_s:.2f} s at {_clock()}")

    @property
    def open(self) -> int:
        """Calls that began and have not ended."""
        return self.begun - self.endings.total()

    def note(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


class Book(Ledger):
    """The calls of one kind of caller, where lesser answers are allowed if they say so.

    `model`: the one that was asked for; what another one said, and what comes from LESSER, must be marked.
    """

    LESSER = ("stale", "fallback_model", "template")

    def __init__(self, kind: str, model: str, tokens: int) -> None:
        super().__init__()
        self.kind = kind
        self.model = model
        self.tokens = tokens
        self.unmarked = 0
        """Lesser answers not marked as such, or whole ones that are."""

    def reply(self, reply: Reply, number: int, began_s: float, deadline_s: float, text: str = "") -> None:
        """A call ended with an answer. `text`: what a stream gave before, when it was one."""
        if text and text != reply.text:
            self.wrong += 1
            self.note("the chunks of a stream do not join to its reply")
        self.text_answer(
            reply.source, reply.text, number, began_s, deadline_s, model=reply.model, degraded=reply.degraded
        )

    def text_answer(
        self,
        source: str,
        text: str,
        number: int,
        began_s: float,
        deadline_s: float,
        *,
        model: str,
        degraded: bool,
    ) -> None:
        """The same, from its parts."""
        if source == "template":
            lesser, wanted = True, questions.template(number)
        else:
            lesser = source in self.LESSER or model != self.model
            wanted = questions.echo(questions.last_turn(number), self.tokens)
        if lesser != degraded:
            self.unmarked += 1
            self.note(f"a {source} answer of {model} says degraded={degraded}")
        self.answered(source, text, wanted, began_s, deadline_s)

    def coded(self, code: str, began_s: float, deadline_s: float) -> None:
        """A call ended with the typed error of that code."""
        self.endings[code] += 1
        self._timed(began_s, deadline_s)

    def withdrawn(self, began_s: float, deadline_s: float) -> None:
        """A call ended because its caller took it back."""
        self.endings["withdrawn"] += 1
        self._timed(began_s, deadline_s)

    def note(self, problem: str) -> None:
        super().note(problem if problem.startswith(self.kind) else f"{self.kind}: {problem}")


class Witness:
    """A client that speaks the protocol by hand and counts endings. Belongs to the running loop."""

    def __init__(self, endpoint: str, tokens: int, deadline_s: float) -> None:
        self._tokens = tokens
        self._deadline_s = deadline_s
        self._hub = Hub()
        self._port = self._hub.dealer(endpoint)
        self._port.watch()
        self._port.connect()
        self._prefix = os.urandom(8)
        self._counter = 0
        self._open: dict[bytes, tuple[str, float]] = {}
        """Request id -> the answer it must get, and when it should have ended."""
        self._sent: set[bytes] = set()
        self.asked = 0
        self.once = 0
        self.lost = 0
        """In flight when the connection was lost: their broker died, nobody can end them."""
        self.twice = 0
        self.wrong = 0
        self.never = 0
        self.malformed = 0
        self.finals = 0
        self._loop = asyncio.get_running_loop()
        self._fds = (self._port.fileno(), self._port.monitor_fileno())
        for fd in self._fds:
            self._loop.add_reader(fd, self.drain)

    def ask(self, number: int) -> bool:
        """Send one request; False when no broker takes it now (then nothing was asked)."""
        self.drain()
        request = request_from({"kind": "chat", "messages": questions.chat(number)})
        self._counter += 1
        request_id = self._prefix + self._counter.to_bytes(8, "big")
        # Models only: a template is an honest answer too, but not one whose text the witness knows.
        header = protocol.RequestHeader("default", int(self._deadline_s * 1000), mode="ai_only")
        sent = self._port.send(protocol.frames(protocol.REQUEST, request_id, header, pack_request(request)))
        if sent:
            self.asked += 1
            self._sent.add(request_id)
            wanted = questions.echo(questions.last_turn(number), self._tokens)
            self._open[request_id] = (wanted, time.monotonic() + self._deadline_s + GRACE_S)
        self.drain()
        return sent

    def drain(self) -> None:
        """Take all that has come. What the dead broker still said comes before the loss is seen."""
        while messages := self._port.receive():
            for parts in messages:
                self._take(parts)
        for event in self._port.connection_events():
            if event is ConnectionEvent.DOWN:
                self.lost += len(self._open)
                self._open.clear()
        if self._port.readable():
            self._loop.call_soon(self.drain)

    def _take(self, parts: list[bytes]) -> None:
        message = protocol.parse(parts)
        if message.type not in (protocol.FINAL, protocol.ERROR, protocol.BUSY):
            return
        known = self._open.pop(message.request_id, None)
        if known is None:
            # Never asked, ended before, or of a broker that is dead.
            self.twice += message.request_id in self._sent
            self.malformed += message.request_id not in self._sent
            return
        self.once += 1
        if message.type == protocol.FINAL:
            self.finals += 1
            self.wrong += unpack_answer(message.payload).text != known[0]

    def overdue(self) -> int:
        """Requests that should have ended by now and have not."""
        now_s = time.monotonic()
        return sum(end_s < now_s for _, end_s in self._open.values())

    @property
    def open(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """What is open now never ended; call when every deadline has passed, or `open` is 0."""
        self.never = len(self._open)
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._port.close()
        self._hub.close()
