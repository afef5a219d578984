"""When a queue is a standing one: the controlled-delay rule, scaled to the service time of its lane.

May live here: the rule, and how long a job may then wait. May not: the queue (lanes.py), who is refused
(admission.py), endings (broker.py).

A queue that empties now and then does its work, however long it is for a moment. One in which even the least
wait of an interval was above the target only adds delay (Nichols and Jacobson, "Controlling Queue Delay",
2012). While it stands, the newest start first, for they still have time; what has waited most of its patience
is called before them, so that nothing is lost that can be answered; what has waited all of it is refused; and
a newcomer is taken only when its turn would come well within its own patience.
"""

from __future__ import annotations

TARGET = 0.5
"""Of one service time: the wait that is fine at any time."""
INTERVAL = 3.0
"""Service times over which the least wait must stay above the target for the queue to count as standing."""
LEAST_TARGET_S = 0.05
LEAST_INTERVAL_S = 0.2
SHARE = 0.5
"""Of the time its caller gave: a request may wait so long at least, for who gives time has time."""
CALL = 0.8
"""Of its patience, after which a request goes before the newer ones."""
ADMIT = 0.5
"""Of its patience: the expected wait a newcomer is taken with. Below CALL, or everything would be called, and
newest first would be oldest first again."""


class Codel:
    """One class of one lane. `started` is told of each job that starts; `emptied` of an empty queue."""

    __slots__ = ("_above_since_s", "standing")

    def __init__(self) -> None:
        self.standing = False
        self._above_since_s: float | None = None

    def started(self, oldest_wait_s: float, service_s: float, now: float) -> bool:
        """A job is about to start while the oldest in the queue has waited `oldest_wait_s`; whether the queue
        is a standing one. The oldest, for the wait of the job itself says nothing once newest go first."""
        if oldest_wait_s <= target_s(service_s):
            self.emptied()
        elif self._above_since_s is None:
            self._above_since_s = now
        elif now - self._above_since_s >= interval_s(service_s):
            self.standing = True
        return self.standing

    def emptied(self) -> None:
        """Nothing waits, or nothing has waited long."""
        self.standing = False
        self._above_since_s = None


def target_s(service_s: float) -> float:
    """The wait that is fine at any time."""
    return max(LEAST_TARGET_S, TARGET * service_s)


def interval_s(service_s: float) -> float:
    """How long the wait must stay above the target."""
    return max(LEAST_INTERVAL_S, INTERVAL * service_s)


def patience_s(service_s: float, left_s: float, times: float) -> float:
    """How long a request with `left_s` until its deadline may wait in a standing queue: `times` service times
    (broker.queue_patience), or SHARE of its time when that is more; never so long that its answer would come
    after its deadline. All of its time when nothing is known of the service, or `times` is 0."""
    if not service_s or not times:
        return left_s
    return max(0.0, min(left_s - service_s, max(times * service_s, SHARE * left_s)))


def too_late(deadline_s: float, service_s: float, now: float) -> bool:
    """Whether a job that started now would probably end after its deadline: refused, it costs nothing."""
    return now + service_s > deadline_s
