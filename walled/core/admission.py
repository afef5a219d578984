"""Whether a request that cannot start at once may wait, who makes room for it, and who has waited too long.

May live here: the rules of refusal, over the queue and its estimates. May not: endings (broker.py), the order
of those who wait (lanes.py), when a queue stands (codel.py).

Refused is, in this order: whoever cannot be answered in time; while the queue of its class stands, whoever
would have to wait for a good part of its patience; and when the queue is full, the newest of the lowest
class, of the client that has most waiting there. That may be the newcomer itself: it takes nobody's place
whose class is better than its own, and within its class only that of a client with more than its own share.
"""

from __future__ import annotations

from walled.core import codel
from walled.core.dispatch import Dispatcher
from walled.core.flights import Job
from walled.core.lanes import CLASSES, Lane

MOST_DISPLACED = 16
"""Waiting requests that make room for one large one; who needs more is refused."""


def untimely(
    dispatcher: Dispatcher, lane: Lane, rank: int, client: bytes, deadline_s: float, now: float
) -> str:
    """Why a newcomer should not wait; "" when it may."""
    if not lane.count:
        # An empty lane is always tried: an estimate that refused everything could never learn better.
        return ""
    left_s = deadline_s - now
    eta_s = dispatcher.eta_s(lane, lane.ahead_of_client(rank, client))
    if eta_s + lane.service_s > left_s:
        return f"the answer would start in {eta_s:.1f} s, too late for its deadline"
    if lane.stands(rank):
        times = dispatcher.config.broker.queue_patience
        patience_s = codel.patience_s(lane.service_s, left_s, times)
        if times and eta_s > codel.ADMIT * patience_s:
            return f"more is asked than can be answered; the answer would start in {eta_s:.1f} s"
    return ""


def displaced(dispatcher: Dispatcher, rank: int, client: bytes, size: int) -> list[Job] | None:
    """Who makes room for a newcomer of `size` bytes: nobody while there is room, None when nobody may."""
    limits = dispatcher.config.broker
    count = dispatcher.queued + 1 - limits.queue_max_requests
    excess = dispatcher.queued_bytes + size - limits.queue_max_bytes
    found: list[Job] = []
    if count <= 0 and excess <= 0:
        return found
    lowest = next((r for r in range(CLASSES - 1, -1, -1) if _any(dispatcher, r)), 0)
    if lowest < rank:
        return None
    for victim in _newest(dispatcher, lowest, client if lowest == rank else None):
        found.append(victim)
        count -= 1
        excess -= victim.payload_bytes
        if count <= 0 and excess <= 0:
            return found
        if len(found) == MOST_DISPLACED:
            break
    return None


def _any(dispatcher: Dispatcher, rank: int) -> bool:
    return any(lane.by_class[rank] for lane in dispatcher.waiting.values())


def _newest(dispatcher: Dispatcher, rank: int, client: bytes | None) -> list[Job]:
    """The jobs of the longest line of a class, newest first; for a `client` of the same class only those by
    which that line is longer than its own will be."""
    lane = max(dispatcher.waiting.values(), key=lambda lane: lane.by_class[rank])
    line = lane.longest_line(rank)
    if client is None:
        return line[::-1]
    if not line or line[0].client == client:
        return []
    own = lane.waiting_of(rank, client) + 1
    return line[: own - 1 : -1] if len(line) > own else []


def late(dispatcher: Dispatcher, job: Job, now: float) -> str:
    """Why a job whose turn has come should not be run any more; "" when it should."""
    lane = dispatcher.lanes[job.lane]
    if job.waits_until_s <= now and lane.stands(job.rank):
        return f"it has waited for {now - job.created_s:.1f} s, and more is asked than can be answered"
    deadline_s = max(waiter.deadline_s for waiter in job.waiters)
    if lane.count and codel.too_late(deadline_s, lane.service_s, now):
        # When nobody else waits, it is tried: the estimate may be wrong, and nobody is the worse for it.
        return f"its turn came {deadline_s - now:.1f} s before its deadline, too late for an answer"
    return ""
