"""The vocabulary of supervision: what is to run, what happens to it, what is to be done about it.

May live here: events, effects and the record of one post. May not: decisions (supervision.py).

A *post* is a place to be filled (the broker, the monitor, worker 2); a *life* is one process that fills it.
During a replacement a post has two lives: the new one loads while the old one serves.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import Any, NamedTuple

from walled.core import restart
from walled.link import Order, Phase, Remedy, Role

Key = tuple[Role, int]


class Spec(NamedTuple):
    """What a post is to run. Unequal specs mean: replace the process."""

    role: Role
    slot: int
    backend: str = ""
    overlap: bool = True
    """A replacement may run beside the old life; false where both would share one server's slots."""
    settings: Any = None
    """All that a running process cannot be told by Order(reconfigure)."""


class Settings(NamedTuple):
    """The numbers this state machine obeys."""

    limits: restart.Limits
    start_timeout_s: float
    hang_timeout_s: float
    stop_timeout_s: float
    drain_timeout_s: float


# --- events ----------------------------------------------------------------------------------------


class Started(NamedTuple):
    ident: int
    pid: int


class Beat(NamedTuple):
    """A Status message of a child."""

    ident: int
    phase: Phase
    detail: str = ""
    answered: bool = False


class Exited(NamedTuple):
    ident: int
    exit_code: int
    jitter: float


class Garbled(NamedTuple):
    """A child sent something that is not a link message."""

    ident: int


class Closed(NamedTuple):
    """A child closed its end of the link; it is about to end, or ill."""

    ident: int


class StopAsked(NamedTuple):
    """SIGTERM, SIGINT or walled-ctl stop. Each further one is less patient."""


class RestartAsked(NamedTuple):
    slot: int
    reason: str = "asked"
    """asked (an operator), alert (a remedy)."""


class RecycleAsked(NamedTuple):
    """A worker wants to be replaced by a new process, for the sake of its memory."""

    ident: int
    why: str = ""


class RemedyAsked(NamedTuple):
    """The monitor: an alert wants something done. `slot`: by this worker only; -1: by all concerned."""

    remedy: Remedy
    for_s: float
    slot: int = -1


class WorkerDrained(NamedTuple):
    """The broker: the worker an operator drained has no job left. It stays down until a restart is asked."""

    slot: int


class Reconfigured(NamedTuple):
    specs: tuple[Spec, ...]
    settings: Settings
    plain: dict[str, Any]


class Tick(NamedTuple):
    pass


Event = (
    Started
    | Beat
    | Exited
    | Garbled
    | Closed
    | StopAsked
    | RestartAsked
    | RecycleAsked
    | RemedyAsked
    | WorkerDrained
    | Reconfigured
    | Tick
)

# --- effects ---------------------------------------------------------------------------------------


class Start(NamedTuple):
    ident: int
    spec: Spec
    incarnation: int


class Send(NamedTuple):
    ident: int
    order: Order


class Kill(NamedTuple):
    ident: int


class Ready(NamedTuple):
    """For the first time some worker has really answered. `detail` is the broker's description."""

    detail: str


class Report(NamedTuple):
    """One line on the daemon's state, for the service manager."""

    text: str
    stopping: bool = False


class Reloaded(NamedTuple):
    """Every replacement a reload asked for is done."""


class Log(NamedTuple):
    level: str
    text: str


class Over(NamedTuple):
    """All children are gone."""

    exit_code: int
    reason: str


Effect = Start | Send | Kill | Ready | Report | Reloaded | Log | Over


class Mode(enum.Enum):
    RUNNING = "running"
    DRAINING = "draining"
    WORKERS_GO = "workers go"
    ALL_GO = "all go"
    OVER = "over"


REASONS = ("died", "hung", "garbled", "late", "given_up", "asked", "alert", "memory", "reload")
"""died: by itself; hung: silent; garbled: no sense in what it said; late: never ready, or did not stop;
given_up: died too often, tried again after a while; asked: an operator's; alert: a remedy; memory: its own
wish; reload: another configuration. From the first on each is there, with 0: a counter that appears at 1 has
not grown for anybody who looks at growth."""


class Life:
    """One process."""

    def __init__(self, ident: int, now_s: float) -> None:
        self.ident = ident
        self.pid = 0
        self.phase: Phase = "starting"
        self.phase_since_s = now_s
        self.beat_s = now_s
        self.ready_since_s: float | None = None
        self.detail = ""
        self.kill_at_s: float | None = None
        """When told to go: the end of patience."""
        self.killed = False
        self.death = "died"
        """What its end will count as: died by itself, or why it was ended by force."""


class Post:
    """A place to be filled."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.life: Life | None = None
        self.old: list[Life] = []
        """Lives that still serve until the new one is ready, and those that were told to go."""
        self.history = restart.History()
        self.restarts = 0
        self.reasons: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        """Why processes of this post were followed by others."""
        self.incarnations = 0
        self.start_at_s: float | None = None
        self.given_up = ""
        """Why it is not started again for now; stays until a life was ready."""
        self.given_up_pause_s = 0.0
        """Until the next single try; doubles."""
        self.parked = False
        self.dropped = False
        """No longer in the configuration; vanishes with its last life."""

    @property
    def name(self) -> str:
        return f"worker {self.spec.slot}" if self.spec.role == "worker" else self.spec.role

    def lives(self) -> list[Life]:
        return [*self.old, self.life] if self.life is not None else list(self.old)

    def serving_old(self) -> Life | None:
        """A former life that was not told to go: it serves until the new one is ready."""
        return next((life for life in self.old if life.kill_at_s is None and not life.killed), None)
