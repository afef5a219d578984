"""Looking at the lives of children: is one overdue, what does its exit mean, how do they all stand.

May live here: pure readings of core/posts.py. May not: changing anything (supervision.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from signal import Signals
from typing import Any

from walled.core.posts import Life, Post, Settings

SILENT_START_S = 20.0
"""A child that has said nothing since its birth still imports its modules; no machine is so slow at that.
Loading a model, which may take long, is said."""
DETAIL_CHARS = 200
"""Of a child's detail in the tree: 64 workers must fit into one link message."""


def overdue(life: Life, now_s: float, settings: Settings) -> str:
    """Why a life must be ended by force now; empty when it need not."""
    if life.killed:
        return ""
    silent_s = now_s - life.beat_s
    if life.kill_at_s is not None and now_s >= life.kill_at_s:
        return "has not stopped in time"
    if life.phase in ("ready", "draining"):
        return f"silent for {silent_s:.1f} s" if silent_s > settings.hang_timeout_s else ""
    if life.phase == "stopping":
        # The broker may go on saying so: drained, it waits to be told that the workers are gone.
        unasked = life.kill_at_s is None and silent_s > settings.stop_timeout_s
        return "said it stops and did not" if unasked else ""
    limit_s = settings.start_timeout_s
    if life.phase == "starting":
        limit_s = min(limit_s, SILENT_START_S)
    return f"not ready after {limit_s:g} s" if now_s - life.phase_since_s > limit_s else ""


def exit_words(exit_code: int) -> str:
    """An exit code as subprocess gives it, in words."""
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return f"killed by {Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def tree(pid: int, uptime_s: float, posts: Iterable[Post]) -> dict[str, Any]:
    """The process tree as `walled-ctl status` shows it."""
    children: list[dict[str, Any]] = []
    for post in posts:
        first = len(children)
        common = {"role": post.spec.role, "slot": post.spec.slot, "restarts": post.restarts}
        children.extend(
            {**common, "pid": life.pid, "phase": life.phase, "detail": life.detail[:DETAIL_CHARS]}
            for life in post.lives()
        )
        if not post.lives():
            phase = "failed" if post.given_up else "drained" if post.parked else "waiting"
            children.append({**common, "pid": 0, "phase": phase, "detail": post.given_up})
        # Of the post, not of a life: once.
        children[first]["reasons"] = dict(post.reasons)
    return {"supervisor": {"pid": pid, "uptime_s": round(uptime_s, 1)}, "children": children}
