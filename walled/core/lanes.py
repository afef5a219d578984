"""The waiting requests of one model: priority classes with ageing, fair among clients within a class.

May live here: the order in which the jobs of one model start. May not: which model's turn it is
(residence.py), who runs a job (fleet.py), whether one is admitted (broker.py).

Within a class the clients take turns, one job each, oldest first. A job that has waited `age_step_s` in its
class moves up one, so a flood of interactive requests delays a batch request, but cannot starve it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from walled.core.flights import Job

CLASSES = 3


class Lane:
    """Queue of one model. Jobs that ended while waiting stay in it, marked, until they are passed over."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.count = 0
        """Live jobs waiting."""
        self.by_class = [0] * CLASSES
        self.service_s = 0.0
        """Moving average of dispatch-to-ending; 0 until something has finished."""
        self._turns: list[OrderedDict[bytes, deque[Job]]] = [OrderedDict() for _ in range(CLASSES)]
        self._ages: list[deque[tuple[float, Job]]] = [deque() for _ in range(CLASSES)]

    def push(self, job: Job, now: float) -> None:
        """Add a job at the end of its client's line."""
        self._enter(job, job.rank, now)
        self.count += 1

    def push_front(self, job: Job, now: float) -> None:
        """Put back a job that had its turn already: its worker died."""
        job.rank = 0
        job.entered_s = now
        job.queued = True
        turns = self._turns[0]
        turns.setdefault(job.client, deque()).appendleft(job)
        turns.move_to_end(job.client, last=False)
        self._ages[0].appendleft((now, job))
        self.by_class[0] += 1
        self.count += 1

    def _enter(self, job: Job, rank: int, now: float) -> None:
        job.rank = rank
        job.entered_s = now
        job.queued = True
        line = self._turns[rank].get(job.client)
        if line is None:
            self._turns[rank][job.client] = deque((job,))
        else:
            line.append(job)
        self._ages[rank].append((now, job))
        self.by_class[rank] += 1

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
            while ages and (not _is_at(ages[0], rank) or ages[0][0] + age_step_s <= now):
                entered_s, job = ages.popleft()
                if _is_at((entered_s, job), rank):
                    # Lines are in order of entry, so the oldest of the class stands first in its client's.
                    self._turns[rank][job.client].remove(job)
                    self.by_class[rank] -= 1
                    self._enter(job, rank - 1, now)
        ages = self._ages[0]
        while ages and not _is_at(ages[0], 0):
            ages.popleft()

    def head(self) -> tuple[int, float] | None:
        """(class, time of entry) of the most urgent waiting job: what lanes are compared by."""
        for rank in range(CLASSES):
            ages = self._ages[rank]
            while ages and not _is_at(ages[0], rank):
                ages.popleft()
            if ages:
                return rank, ages[0][0]
        return None

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
            for _, job in [entry for entry in self._ages[rank] if _is_at(entry, rank)]:
                yield job


def _is_at(entry: tuple[float, Job], rank: int) -> bool:
    """Whether an age entry still speaks of a waiting job (it may have started, ended or moved up)."""
    entered_s, job = entry
    return job.queued and job.rank == rank and job.entered_s == entered_s
