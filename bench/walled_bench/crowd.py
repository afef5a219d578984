"""The load of the chaos campaign: callers of every habit, each with a book of its own.

May live here: asking, in tasks and in threads, and writing down how it ended. May not: faults (faults.py),
judging the books (chaos.py), callers in a process of their own (outsider.py).

Nobody here reads the cache file: a file that is damaged under a reader may cost its process, and these live
in the campaign's own. The outsiders read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import threading
import time
from typing import Any, NamedTuple

from walled_client import AsyncClient, Client

from walled import protocol
from walled.adapters.sockets import ConnectionEvent, Hub
from walled.errors import WalledError
from walled.payload import pack_request, request_from, unpack_answer
from walled_bench import questions
from walled_bench.daemon import Daemon
from walled_bench.ledger import Book, Stalls, Witness

STORED_QUESTIONS = 40
DEADLINES_S = (0.5, 2.0, 8.0)
PAUSE_S = (0.02, 0.12)
PRIORITIES: tuple[protocol.Priority, ...] = ("interactive", "normal", "batch")
WITNESS_EVERY_S = 0.05
THREADS = 2
LONGEST_S = max(DEADLINES_S)

DEAF_REQUESTS = 24
DEAF_BYTES = 100_000
DEAF_DEADLINE_S = 10.0
FLOOD = 150
FLOOD_DEADLINE_S = 2.0


class Habit(NamedTuple):
    """How a caller asks."""

    kind: str
    tasks: int
    act: str
    """chat, stream, stored or cancel."""


HABITS = (
    Habit("plain", 2, "chat"),
    Habit("streamed", 2, "stream"),
    Habit("slow reader", 1, "slow"),
    Habit("cacheable", 2, "stored"),
    Habit("withdrawn", 1, "cancel"),
)


class Crowd:
    """Everybody who asks from within this process; `end` waits for the last ending."""

    def __init__(self, daemon: Daemon, model: str, main: str, tokens: int, seed: int) -> None:
        """`model`: the name asked for; `main`: the model that is to answer."""
        self._daemon = daemon
        self._model, self._main, self._tokens = model, main, tokens
        self._dice = random.Random(seed)
        self._numbers = itertools.count(1_000_000)
        self._stop = threading.Event()
        self._client = AsyncClient(daemon.run_dir, cache=False, model=model, deadline_s=LONGEST_S)
        self._tasks: list[asyncio.Task[None]] = []
        self._threads: list[threading.Thread] = []
        self.books: list[Book] = []
        self.stalls = Stalls()
        self.witness: Witness | None = None
        self.deaf_twice = self.deaf_never = self.deaf_wrong = 0

    @property
    def client(self) -> AsyncClient:
        return self._client

    def book(self, kind: str) -> Book:
        book = Book(kind, self._main, self._tokens)
        book.stalls = self.stalls
        self.books.append(book)
        return book

    def begin(self, endpoint: str) -> None:
        """Have everybody ask until `end`. Belongs to the running loop."""
        for habit in HABITS:
            for _ in range(habit.tasks):
                dice = random.Random(self._dice.random())
                self._tasks.append(asyncio.create_task(self._ask(habit, self.book(habit.kind), dice)))
        for _ in range(THREADS):
            dice = random.Random(self._dice.random())
            thread = threading.Thread(
                target=self._ask_in_thread, args=(self.book("in threads"), dice), daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self.witness = Witness(endpoint, self._tokens, LONGEST_S)
        self._tasks.append(asyncio.create_task(self._bear_witness(self.witness)))

    async def end(self) -> None:
        """No new calls; wait for those that are open, for as long as their deadlines allow."""
        self._stop.set()
        end_s = time.monotonic() + LONGEST_S + 5
        await asyncio.wait(self._tasks, timeout=LONGEST_S + 5)
        for task in self._tasks:
            if not task.done():
                task.cancel()
            elif task.exception() is not None:
                raise task.exception() or AssertionError
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, end_s - time.monotonic()))
        if self.witness is not None:
            while self.witness.open and time.monotonic() < end_s:
                await asyncio.sleep(0.05)
                self.witness.drain()
            self.witness.close()
        await self._client.close()

    # --- habits ----------------------------------------------------------------------------------

    async def _ask(self, habit: Habit, book: Book, dice: random.Random) -> None:
        while not self._stop.is_set():
            number = dice.randrange(STORED_QUESTIONS) if habit.act == "stored" else next(self._numbers)
            deadline_s = dice.choice(DEADLINES_S)
            fields: dict[str, Any] = {
                "deadline_s": deadline_s,
                "priority": dice.choice(PRIORITIES),
                "context": {"number": str(number)},
            }
            began_s = book.begin()
            try:
                await self._one(habit.act, book, number, fields, began_s, dice)
            except Exception as error:
                # Whatever it is, it is an ending; the book tells typed from untyped.
                book.failed(error, began_s, deadline_s)
            await asyncio.sleep(dice.uniform(*PAUSE_S))

    async def _one(
        self, act: str, book: Book, number: int, fields: dict[str, Any], began_s: float, dice: random.Random
    ) -> None:
        turns, deadline_s = questions.chat(number), fields["deadline_s"]
        if act in ("stream", "slow"):
            text = ""
            async with self._client.stream(turns, **fields) as stream:
                async for chunk in stream:
                    text = chunk.text if chunk.restart else text + chunk.text
                    if act == "slow":
                        await asyncio.sleep(min(0.1, deadline_s / 20))
            book.reply(stream.reply, number, began_s, deadline_s, text)
        elif act == "stored":
            # A refreshed answer is generated and stored anew, so that faults also meet commits.
            if dice.random() < 0.5:
                fields["cache"] = "refresh"
            book.reply(await self._client.chat(turns, temperature=0, **fields), number, began_s, deadline_s)
        elif act == "cancel" and dice.random() < 0.5:
            async with self._client.stream(turns, **fields) as stream:
                async for _ in stream:
                    if dice.random() < 0.4:
                        break
            if stream.finished:
                book.reply(stream.reply, number, began_s, deadline_s)
            else:
                book.withdrawn(began_s, deadline_s)
        elif act == "cancel":
            task = asyncio.create_task(self._client.chat(turns, **fields))
            await asyncio.wait((task,), timeout=dice.uniform(0.0, 0.03))
            task.cancel()
            try:
                book.reply(await task, number, began_s, deadline_s)
            except asyncio.CancelledError:
                book.withdrawn(began_s, deadline_s)
        else:
            book.reply(await self._client.chat(turns, **fields), number, began_s, deadline_s)

    def _ask_in_thread(self, book: Book, dice: random.Random) -> None:
        with Client(self._daemon.run_dir, cache=False, model=self._model) as client:
            while not self._stop.wait(dice.uniform(*PAUSE_S)):
                number, deadline_s = next(self._numbers), dice.choice(DEADLINES_S)
                fields: dict[str, Any] = {"deadline_s": deadline_s, "context": {"number": str(number)}}
                began_s = book.begin()
                try:
                    if dice.random() < 0.5:
                        reply, text = client.chat(questions.chat(number), **fields), ""
                    else:
                        text = ""
                        with client.stream(questions.chat(number), **fields) as stream:
                            for chunk in stream:
                                text = chunk.text if chunk.restart else text + chunk.text
                        reply = stream.reply
                    book.reply(reply, number, began_s, deadline_s, text)
                except Exception as error:
                    book.failed(error, began_s, deadline_s)

    async def _bear_witness(self, witness: Witness) -> None:
        while not self._stop.is_set():
            witness.ask(next(self._numbers))
            await asyncio.sleep(WITNESS_EVERY_S)

    # --- what a fault has asked ------------------------------------------------------------------

    async def directive(self, book: Book, line: str, deadline_s: float) -> None:
        """One call whose last line commands the scripted backend. Nothing but a whole answer, a marked lesser
        one or a typed error may come of it."""
        number = next(self._numbers)
        turns = questions.chat(number)
        turns[-1]["content"] += f"\n{line}"
        began_s = book.begin()
        try:
            reply = await self._client.chat(turns, deadline_s=deadline_s, context={"number": str(number)})
            book.reply(reply, number, began_s, deadline_s)
        except Exception as error:
            book.failed(error, began_s, deadline_s)

    async def flood(self, book: Book) -> None:
        """A batch of many at once."""
        numbers = [next(self._numbers) for _ in range(FLOOD)]
        began_s = book.begin()
        book.begun += FLOOD - 1
        items = [{"messages": questions.chat(n), "context": {"number": str(n)}} for n in numbers]
        results = await self._client.batch(
            items, concurrency=FLOOD, priority="batch", deadline_s=FLOOD_DEADLINE_S
        )
        for number, result in zip(numbers, results, strict=True):
            if isinstance(result, WalledError):
                book.failed(result, began_s, FLOOD_DEADLINE_S)
            else:
                book.reply(result, number, began_s, FLOOD_DEADLINE_S)

    async def be_deaf(self, endpoint: str, seconds: float) -> None:
        """A client that asks for far more than it reads, and then reads all. None of its requests may end
        twice, and each must have ended when it has read everything, if its connection has lived."""
        hub = Hub()
        port = hub.dealer(endpoint, hwm=4)
        port.watch()
        port.connect()
        prefix = os.urandom(8)
        wanted: dict[bytes, str] = {}
        seen: set[bytes] = set()
        lost = False
        deadline_s = DEAF_DEADLINE_S
        try:
            for place in range(DEAF_REQUESTS):
                text = f"{place}" + "x" * DEAF_BYTES
                turns = [{"role": "user", "content": f"question {place}\n!text {text}"}]
                header = protocol.RequestHeader("default", int(deadline_s * 1000), mode="ai_only")
                request_id = prefix + place.to_bytes(8, "big")
                payload = pack_request(request_from({"kind": "chat", "messages": turns}))
                if port.send(protocol.frames(protocol.REQUEST, request_id, header, payload)):
                    wanted[request_id] = text
                await asyncio.sleep(0.01)
            await asyncio.sleep(seconds)
            end_s = time.monotonic() + deadline_s + 1.0
            while time.monotonic() < end_s and not lost and len(seen) < len(wanted):
                for parts in port.receive():
                    message = protocol.parse(parts)
                    if message.type not in (protocol.FINAL, protocol.ERROR, protocol.BUSY):
                        continue
                    self.deaf_twice += message.request_id in seen
                    seen.add(message.request_id)
                    if message.type == protocol.FINAL:
                        self.deaf_wrong += unpack_answer(message.payload).text != wanted[message.request_id]
                lost = any(event is ConnectionEvent.DOWN for event in port.connection_events())
                await asyncio.sleep(0.02)
            if not lost:
                self.deaf_never += len(wanted) - len(seen)
        finally:
            with contextlib.suppress(WalledError):
                port.close()
            hub.close()
