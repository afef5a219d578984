"""What must always hold of the broker's state, and the story told when it does not.

May live here: checks over the whole state (they visit everything: for tests). May not: changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from walled.errors import InternalError

if TYPE_CHECKING:
    from walled.core.broker import Broker


def story(broker: Broker, breach: str) -> str:
    """A broken invariant with the events that led to it: types and ids only, never payloads."""
    lines = [
        f"  {when:.6f} {kind.__name__} {_short(peer)} {_short(request)}"
        for when, kind, peer, request in broker.history
    ]
    return f"{breach}; the last {len(lines)} events:\n" + "\n".join(lines)


def _short(value: object) -> str:
    return value.hex()[:16] if isinstance(value, bytes) else type(value).__name__


def validate(broker: Broker) -> None:
    """Raise InternalError with the story when an invariant is broken."""
    dispatcher = broker.dispatcher
    workers = list(dispatcher.fleet.workers.values())
    lanes, descent = dispatcher.lanes, broker.descent
    queued = [job for lane in lanes.values() for job in lane.waiting()]
    waiters = [waiter for table in broker.clients.values() for waiter in table.values()]
    holds = {
        "queue count": dispatcher.queued == len(queued) == sum(lane.count for lane in lanes.values()),
        "caller count": broker.callers == len(waiters),
        "queue bytes": dispatcher.queued_bytes == sum(job.payload_bytes for job in queued),
        "waiting lanes": set(dispatcher.waiting) == {name for name, lane in lanes.items() if lane.count},
        "class counts": all(sum(lane.by_class) == lane.count for lane in lanes.values()),
        "queued jobs have callers": all(job.waiters and job.worker is None for job in queued),
        "slots are not exceeded": all(len(w.jobs) <= w.slots or w.shrunk for w in workers),
        "running jobs know their worker": all(
            job.worker is worker and not job.queued for worker in workers for job in worker.jobs.values()
        ),
        "every caller waits for one living job": all(
            (
                waiter in waiter.job.waiters
                and waiter.job.queued
                + (waiter.job.worker in workers)
                + (waiter.job in descent.between)
                + (waiter.job in descent.resting)
                == 1
            )
            if waiter.job is not None
            else (waiter in broker.limbo) != (waiter in descent.lookups.first)
            for waiter in waiters
        ),
        "jobs between two steps have callers who are looked for": all(
            any(waiter.hard and waiter.ticket for waiter in job.waiters) for job in descent.between
        ),
        "resting jobs have callers and an alarm": all(job.waiters and job.alarm_s for job in descent.resting),
        "nobody is looked for who has no job": all(
            waiter.job in descent.between for waiter in waiters if waiter.hard
        ),
        "fallback jobs are neither shared nor stored": not any(
            job.fallback and (job.key is not None or job.store)
            for job in [*queued, *(job for worker in workers for job in worker.jobs.values())]
        ),
        "shared jobs are alive": all(job.waiters for job in broker.flights.values()),
        "no empty client": all(broker.clients.values()),
        "one model at a time": all(
            len({job.model for w in workers if w.backend == backend for job in w.jobs.values()})
            <= residence.limit
            for backend, residence in dispatcher.residences.items()
            if residence.limit
        ),
    }
    for name, held in holds.items():
        if not held:
            raise InternalError(story(broker, f"broken: {name}"))
