"""The waiting requests of one model: priority classes with ageing, fair among clients within a class.

May live here: the order in which the jobs of one model start. May not: which model's turn it is
(residence.py), who runs a job (fleet.py), whether one is admitted (broker.py).

Within a class the clients take turns, one job each, oldest first. A job that has waited `age_step_s` in its
class moves up one, so a flood of interactive requests delays a batch request, but cannot starve it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from walled.core.flights import Job

CLASSES = 3


def place(model: str, backend: str = "") -> str:
    """The key of the lane of a model, at one backend or anywhere. No name of a model holds a NUL."""
    return f"{backend}\0{model}" if backend else model


_Entry: TypeAlias = "tuple[float, int, Job]"
"""(time of entry into its class, ticket of that entry, job)."""


class Lane:
    """Queue of one model. Jobs that ended while waiting stay in it, marked, until they are passed over."""

    def __init__(self, model: str, backend: str = "") -> None:
        self.model = model
        self.backend = backend
        """Where its jobs must run; "" is wherever the model is served."""
        self.name = place(model, backend)
        self.count = 0
        """Live jobs waiting."""
        self.by_class = [0] * CLASSES
        self.service_s = 0.0
        """Moving average of dispatch-to-ending; 0 until something has finished."""
        self._turns: list[OrderedDict[bytes, deque[Job]]] = [OrderedDict() for _ in range(CLASSES)]
        self._ages: list[deque[_Entry]] = [deque() for _ in range(CLASSES)]
        self._tickets = 0

    def push(self, job: Job, now: float) -> None:
        """Add a job at the end of its client's line."""
        self._enter(job, job.rank, now)
        self.count += 1

    def push_front(self, job: Job, now: float) -> None:
        """Put back a job that had its turn already: its worker died."""
        turns = self._turns[0]
        turns.setdefault(job.client, deque()).appendleft(job)
        turns.move_to_end(job.client, last=False)
        self._ages[0].appendleft(self._admit(job, 0, now))
        self.count += 1

    def _enter(self, job: Job, rank: int, now: float) -> None:
        entry = self._admit(job, rank, now)
        line = self._turns[rank].get(job.client)
        if line is None:
            self._turns[rank][job.client] = deque((job,))
        else:
            line.append(job)
        self._ages[rank].append(entry)

    def _admit(self, job: Job, rank: int, now: float) -> _Entry:
        self._tickets += 1
        job.ticket = self._tickets
        job.rank = rank
        job.queued = True
        self.by_class[rank] += 1
        return now, self._tickets, job

    def drop(self, job: Job) -> None:
        """A waiting job ended (cancelled, expired): stop counting it."""
        job.queued = False
        self.by_class[job.rank] -= 1
        self.count -= 1

    def promote(self, job: Job, rank: int, now: float) -> None:
        """Move a waiting job to a better class (a more urgent caller joined it)."""
        if rank >= job.rank:
            return
        self._turns[job.rank][job.client].remove(job)
        self.by_class[job.rank] -= 1
        self._enter(job, rank, now)

    def age(self, now: float, age_step_s: float) -> None:
        """Move up what has waited long enough in its class."""
        for rank in range(1, CLASSES):
            ages = self._ages[rank]
            while ages and (not _holds(ages[0]) or ages[0][0] + age_step_s <= now):
                entry = ages.popleft()
                job = entry[2]
                if _holds(entry):
                    # Lines are in order of entry, so the oldest of the class stands first in its client's.
                    self._turns[rank][job.client].remove(job)
                    self.by_class[rank] -= 1
                    self._enter(job, rank - 1, now)
        ages = self._ages[0]
        while ages and not _holds(ages[0]):
            ages.popleft()

    def head(self) -> tuple[int, float] | None:
        """(class, arrival) of the most urgent waiting job: what lanes are compared by."""
        for rank in range(CLASSES):
            ages = self._ages[rank]
            while ages and not _holds(ages[0]):
                ages.popleft()
            if ages:
                return rank, ages[0][2].created_s
        return None

    def oldest_s(self) -> float | None:
        """Arrival of the job that has waited longest; None when none waits. Visits every waiting job."""
        return min((job.created_s for job in self.waiting()), default=None)

    def pop(self) -> Job | None:
        """The job whose turn it is: best class first, clients in rotation."""
        for rank in range(CLASSES):
            turns = self._turns[rank]
            while turns:
                client, line = next(iter(turns.items()))
                job = None
                while line and job is None:
                    candidate = line.popleft()
                    if candidate.queued and candidate.rank == rank:
                        job = candidate
                if line:
                    turns.move_to_end(client)
                else:
                    del turns[client]
                if job is not None:
                    self.drop(job)
                    return job
        return None

    def ahead_of(self, rank: int) -> int:
        """How many waiting jobs a new one of this class would have to let pass."""
        return sum(self.by_class[: rank + 1])

    def observe(self, service_s: float) -> None:
        """Learn from one finished generation (exponentially weighted, 1/8 for the new value)."""
        self.service_s = (
            service_s if not self.service_s else self.service_s + (service_s - self.service_s) / 8
        )

    def waiting(self) -> Iterator[Job]:
        """The live waiting jobs, roughly in the order they will start."""
        for rank in range(CLASSES):
            yield from [entry[2] for entry in self._ages[rank] if _holds(entry)]


def _holds(entry: _Entry) -> bool:
    """Whether an age entry still speaks of a waiting job (it may have started, ended or moved up)."""
    _, ticket, job = entry
    return job.queued and job.ticket == ticket
