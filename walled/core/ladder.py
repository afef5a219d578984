"""The ladder: what may follow a failure, which lesser answers a request may get, and how long each step has.

May live here: pure arithmetic over error codes, modes, limits and seconds. May not: jobs, callers, queues
(descent.py takes the steps), where a model runs (routes.py), the texts of templates.

The steps, best answer first: the model -> a retry (from a budget, before the first token) -> another backend
with the same model -> a stored answer that is no longer fresh -> a fallback model -> a template -> a typed
refusal. Which of them are open is said by the request's mode and by what went wrong.
"""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import Final, NamedTuple

from walled.protocol import ErrorHeader, RequestHeader
from walled.sections import LadderConfig

RESERVE_SHARE: Final = 0.2
"""Of a request's time, at most, is kept for lesser answers."""
LAST_MOMENT_S: Final = 0.02
"""A stream that runs is left alone until so long before its deadline."""
MAX_RETRIES: Final = 2
"""At one place, of one request, whatever the budget holds."""
NO_WORKER_GRACE_S: Final = 1.0
"""A worker that has died is back within this; a lesser answer is looked for when it is not."""
HUNG_S: Final = 2.0
HUNG_TIMES: Final = 4.0
"""A call given up at its deadline counts against its backend when it took this long and so many times as
long as the calls of its model do."""


class Stage(IntEnum):
    """How far down a request without a place has come."""

    SAME = 0
    """Another backend with the same model."""
    STALE = 1
    OTHER = 2
    """A fallback model."""
    TEMPLATE = 3
    END = 4


class Verdict(NamedTuple):
    """What an error says about the steps after it."""

    retry: bool = False
    """The same place may be asked again."""
    elsewhere: bool = False
    """Another backend with the same model may do better."""
    other: bool = False
    """Another model may do better."""
    lesser: bool = False
    """A stale answer or a template may take its place; without it the caller gets the error as it is."""
    bars: bool = False
    """The model must not be asked again, wherever it runs."""
    health: str = ""
    """What it says about the backend: bad, good, or nothing."""


_BROKEN: Final = Verdict(retry=True, elsewhere=True, other=True, lesser=True, health="bad")
_AWAY: Final = Verdict(elsewhere=True, other=True, lesser=True, health="bad")
_POLICY: Final = Verdict(other=True, lesser=True, bars=True, health="good")
_CALLER: Final = Verdict()

VERDICTS: Final[dict[str, Verdict]] = {
    "backend_error": _BROKEN,
    "backend_unavailable": _BROKEN,
    "backend_overloaded": _BROKEN,
    "truncated": _BROKEN,
    # Silence has used its share of the time; the same server would be as silent.
    "backend_timeout": _AWAY,
    "backend_unauthorized": _AWAY,
    "internal": _AWAY,
    "model_not_found": _AWAY._replace(health=""),
    "context_too_long": _POLICY,
    "content_refused": _POLICY,
    "blocked": _POLICY,
    # The broker's own: nothing was begun.
    "overloaded": Verdict(retry=True, elsewhere=True, other=True, lesser=True),
    "unavailable": Verdict(elsewhere=True, other=True, lesser=True),
    # Two workers died of it: it is not tried on a third.
    "worker_lost": Verdict(lesser=True),
    "deadline_exceeded": Verdict(lesser=True),
}
"""By code; any other error is the caller's own, and final."""

TELLING: Final = frozenset({"context_too_long", "content_refused", "blocked"})
"""What says more to a caller than that a server was away."""
NOT_BEGUN: Final = frozenset({"overloaded", "unavailable"})


def verdict(code: str) -> Verdict:
    return VERDICTS.get(code, _CALLER)


def cause(before: ErrorHeader, error: ErrorHeader) -> ErrorHeader:
    """Of two errors of one request, the one its caller is told of: the first, but for a more telling one."""
    if error.code in TELLING:
        return error
    return error if before.code in NOT_BEGUN and error.code not in NOT_BEGUN else before


def lesser(header: RequestHeader, mode: str, limits: LadderConfig) -> tuple[str, ...]:
    """The lesser answers a request may get, of `stale` and `template`, in this order.

    A stored answer was a model's, so `ai_only` takes it; who asked for a new one (`refresh`, `bypass`) does
    not.
    """
    if header.background:
        return ()
    stale = limits.stale and mode != "template_only" and header.cache not in ("bypass", "refresh")
    template = limits.templates and mode != "ai_only" and header.kind != "embed"
    return ("stale",) * stale + ("template",) * template


def first(mode: str, limits: LadderConfig) -> str:
    """What is looked up before any model: `template`, `intent` (one of hybrid_intents), or nothing."""
    if mode == "template_only":
        return "template"
    return "intent" if mode == "hybrid" and limits.templates and limits.hybrid_intents else ""


def reserve_s(limits: LadderConfig, left_s: float) -> float:
    """The part of the time left that is kept for lesser answers."""
    share_s = RESERVE_SHARE * left_s
    reserve_s: float = limits.reserve_s
    return share_s if share_s < reserve_s else reserve_s


def pause_s(limits: LadderConfig, retries: int, salt: bytes) -> float:
    """Before the next retry, `retries` of which were made: doubling, spread by half by `salt`, so that
    requests that failed together do not come back together."""
    spread = zlib.crc32(salt) / 0xFFFFFFFF
    return limits.retry_pause_s * 2.0**retries * (0.75 + 0.5 * spread)


def hung(took_s: float, usual_s: float) -> bool:
    """Whether a call that was given up at its caller's deadline speaks against its backend. `usual_s`: what
    calls of this model take; 0 when none has ended yet, and then the model may just be loading."""
    return usual_s > 0 and took_s >= max(HUNG_S, HUNG_TIMES * usual_s)
