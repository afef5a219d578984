"""The waiting requests of one model: priority classes, fair among clients within a class.

May live here: the order in which the jobs of one model start. May not: which model's turn it is
(residence.py), who runs a job (fleet.py), whether one is admitted or refused (admission.py).

Within a class the clients take turns, one job each: the oldest, or while the queue of the class stands
(codel.py) the newest, unless one has waited most of its patience: that one is called first. A class that has
waited long gets a start now and then from the better ones (dispatch.py), and there the oldest goes first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from walled.core.codel import Codel

if TYPE_CHECKING:
    from walled.core.flights import Job

CLASSES = 3
LEARN = 16


def place(model: str, backend: str = "") -> str:
    """The key of the lane of a model, at one backend or anywhere. No name of a model holds a NUL."""
    return f"{backend}\0{model}" if backend else model


class Line:
    """The waiting jobs of one client in one class."""

    __slots__ = ("calls", "jobs")

    def __init__(self) -> None:
        self.jobs: OrderedDict[int, Job] = OrderedDict()
        """By ticket, in order of entry."""
        self.calls: list[tuple[float, int]] = []
        """(when it is called, ticket), sorted."""

    def add(self, job: Job) -> None:
        self.jobs[job.ticket] = job
        insort(self.calls, (job.call_s, job.ticket))

    def remove(self, job: Job) -> None:
        del self.jobs[job.ticket]
        del self.calls[bisect_left(self.calls, (job.call_s, job.ticket))]

    def oldest(self) -> Job:
        return next(iter(self.jobs.values()))

    def newest(self) -> Job:
        return next(reversed(self.jobs.values()))

    def called(self, now: float) -> Job | None:
        """The one that was to be called first, once its time has come."""
        call_s, ticket = self.calls[0]
        return self.jobs[ticket] if call_s <= now else None


class Lane:
    """Queue of one model."""

    def __init__(self, model: str, backend: str = "") -> None:
        self.model = model
        self.backend = backend
        """Where its jobs must run; "" is wherever the model is served."""
        self.name = place(model, backend)
        self.count = 0
        """Jobs waiting."""
        self.by_class = [0] * CLASSES
        self.service_s = 0.0
        """Moving average of dispatch-to-ending; 0 until something has finished."""
        self._observed = 0
        self.booked_s = 0.0
        """Until then refused requests were told to come again."""
        self.codels = tuple(Codel() for _ in range(CLASSES))
        self._turns: list[OrderedDict[bytes, Line]] = [OrderedDict() for _ in range(CLASSES)]
        """By client, whose turn is next first; no line is empty."""
        self._ages: list[OrderedDict[int, tuple[float, Job]]] = [OrderedDict() for _ in range(CLASSES)]
        """(time of entry into the class, job) by ticket, in order of entry."""
        self._tickets = 0

    # --- in and out ------------------------------------------------------------------------------------

    def push(self, job: Job, now: float) -> None:
        """Add a job at the end of its client's line."""
        self._enter(job, job.rank, now)
        self.count += 1

    def push_front(self, job: Job, now: float) -> None:
        """Put back a job that had its turn already: its worker died. It is called at once."""
        job.call_s = float("-inf")
        self._enter(job, 0, now)
        self.count += 1
        turns = self._turns[0]
        turns[job.client].jobs.move_to_end(job.ticket, last=False)
        turns.move_to_end(job.client, last=False)
        self._ages[0].move_to_end(job.ticket, last=False)

    def _enter(self, job: Job, rank: int, now: float) -> None:
        self._tickets += 1
        job.ticket = self._tickets
        job.rank = rank
        job.queued = True
        self.by_class[rank] += 1
        self._ages[rank][job.ticket] = now, job
        line = self._turns[rank].get(job.client)
        if line is None:
            line = self._turns[rank][job.client] = Line()
        line.add(job)

    def _leave(self, job: Job) -> None:
        rank = job.rank
        del self._ages[rank][job.ticket]
        line = self._turns[rank][job.client]
        line.remove(job)
        if not line.jobs:
            del self._turns[rank][job.client]
        self.by_class[rank] -= 1
        if not self.by_class[rank]:
            self.codels[rank].emptied()

    def drop(self, job: Job) -> None:
        """Take a waiting job out: it starts, or it ended (cancelled, expired, refused)."""
        self._leave(job)
        job.queued = False
        self.count -= 1

    def promote(self, job: Job, rank: int, now: float) -> None:
        """Move a waiting job to a better class (a more urgent caller joined it)."""
        if rank < job.rank:
            self._leave(job)
            self._enter(job, rank, now)

    def pop(self, now: float) -> Job | None:
        """The job whose turn it is: best class first, clients in rotation."""
        for rank in range(CLASSES):
            turns = self._turns[rank]
            if not turns:
                continue
            line = next(iter(turns.values()))
            if self._look(rank, now):
                return self._started(line.called(now) or line.newest())
            return self._started(line.oldest())
        return None

    def pop_aged(self, rank: int) -> Job:
        """The oldest job of the client whose turn it is in a class that is not empty."""
        return self._started(next(iter(self._turns[rank].values())).oldest())

    def _started(self, job: Job) -> Job:
        self.drop(job)
        turns = self._turns[job.rank]
        if job.client in turns:
            turns.move_to_end(job.client)
        return job

    # --- time ------------------------------------------------------------------------------------------

    def _look(self, rank: int, now: float) -> bool:
        """Whether the queue of a class that is not empty stands."""
        return self.codels[rank].started(now - self.since_s(rank), self.service_s, now)

    def overdue(self, now: float) -> list[Job]:
        """Those whose patience is over, of classes whose queue stands; lowest class first. They stay."""
        late: list[Job] = []
        for rank in range(CLASSES - 1, -1, -1):
            if not self._ages[rank] or not self._look(rank, now):
                continue
            for line in self._turns[rank].values():
                for call_s, ticket in line.calls:
                    if call_s > now:
                        break
                    job = line.jobs[ticket]
                    if job.waits_until_s <= now:
                        late.append(job)
        return late

    # --- looking ---------------------------------------------------------------------------------------

    def stands(self, rank: int) -> bool:
        """Whether the queue that a job of a class is in stands: its class, or one that goes first."""
        return any(codel.standing for codel in self.codels[: rank + 1])

    def head(self) -> tuple[int, float] | None:
        """(class, arrival) of the most urgent waiting job: what lanes are compared by."""
        for rank, ages in enumerate(self._ages):
            if ages:
                return rank, next(iter(ages.values()))[1].created_s
        return None

    def since_s(self, rank: int) -> float:
        """Entry of the job that has waited longest in a class that is not empty."""
        return next(iter(self._ages[rank].values()))[0]

    def oldest_s(self) -> float | None:
        """Arrival of the job that has waited longest; None when none waits. Visits every waiting job."""
        return min((job.created_s for job in self.waiting()), default=None)

    def ahead_of(self, rank: int) -> int:
        """How many waiting jobs a new one of this class would have to let pass."""
        return sum(self.by_class[: rank + 1])

    def ahead_of_client(self, rank: int, client: bytes) -> int:
        """The same for one client's new job, which need not wait for the turns that others have queued up
        beyond as many as its own."""
        turns = self._turns[rank]
        own = self.waiting_of(rank, client)
        others = len(turns) - (own > 0)
        return sum(self.by_class[:rank]) + min(self.by_class[rank], own + others * (own + 1))

    def waiting_of(self, rank: int, client: bytes) -> int:
        """How many of a client's jobs wait in a class."""
        line = self._turns[rank].get(client)
        return len(line.jobs) if line is not None else 0

    def longest_line(self, rank: int) -> list[Job]:
        """The jobs of the client with the most in a class, oldest first; of equal ones, the client with the
        newest; empty when none waits."""
        lines = self._turns[rank].values()
        if not lines:
            return []
        longest = max(lines, key=lambda line: (len(line.jobs), next(reversed(line.jobs))))
        return list(longest.jobs.values())

    def observe(self, service_s: float) -> None:
        """Learn from one finished generation (the mean of the first ones, then exponentially weighted, with
        one part in LEARN for the new value: lengths of answers vary, and the queue must not with each)."""
        if self._observed < LEARN:
            self._observed += 1
        self.service_s += (service_s - self.service_s) / self._observed

    def outlasted(self, took_s: float) -> None:
        """Learn from one that was given up after `took_s`: it would have taken longer still."""
        if took_s > self.service_s:
            self.observe(took_s)

    def waiting(self) -> Iterator[Job]:
        """The waiting jobs, class by class in order of entry."""
        for ages in self._ages:
            yield from [job for _, job in ages.values()]
