"""Whose model may be loaded: grouping against swap thrash, for backends that hold few models at once.

May live here: what a backend has loaded and when it may load something else. May not: queues, workers.

A backend that holds one model pays seconds for every change. So its loaded models are served while they have
work, a change waits until the loaded model has been there `min_residence_s`, and a queue of another model
waits at most `max_wait_s` before the loaded one is drained for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Residence:
    """Loaded models of one backend. `limit` 0 means it holds all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.loaded: dict[str, float] = {}
        """Model -> when it was loaded, in order of last use."""
        self.switching_to: str | None = None
        self.swaps = 0

    def may_start(
        self,
        model: str,
        now: float,
        *,
        running: Callable[[str], int],
        min_residence_s: float,
    ) -> bool:
        """Whether a job of the model may be sent now. Pure; `started` records that it was."""
        if not self.limit:
            return True
        if self.switching_to is not None and self.switching_to != model:
            return False
        if model in self.loaded or len(self.loaded) < self.limit:
            return True
        return self._evictable(now, running, min_residence_s) is not None

    def _evictable(self, now: float, running: Callable[[str], int], min_residence_s: float) -> str | None:
        for name, since in self.loaded.items():
            if not running(name) and now - since >= min_residence_s:
                return name
        return None

    def started(self, model: str, now: float, running: Callable[[str], int], min_residence_s: float) -> None:
        """A job of the model was sent."""
        if not self.limit:
            return
        if model in self.loaded:
            self.loaded[model] = self.loaded.pop(model)
        else:
            if len(self.loaded) >= self.limit:
                victim = self._evictable(now, running, min_residence_s)
                if victim is not None:
                    del self.loaded[victim]
            self.loaded[model] = now
            self.swaps += 1
        if self.switching_to == model:
            self.switching_to = None

    def consider_switch(
        self, waiting: Iterable[tuple[str, float]], now: float, *, max_wait_s: float, min_residence_s: float
    ) -> None:
        """Begin to drain the loaded models when a queue of another has waited too long.

        `waiting`: (model, since when its oldest job waits) of every non-empty queue of this backend.
        """
        if not self.limit or self.switching_to is not None:
            return
        if len(self.loaded) < self.limit or not any(
            now - since >= min_residence_s for since in self.loaded.values()
        ):
            return
        late = [
            (since, name) for name, since in waiting if name not in self.loaded and now - since >= max_wait_s
        ]
        if late:
            self.switching_to = min(late)[1]

    def forget_switch(self, model: str) -> None:
        """The queue that was waited for is empty (its requests ended): stop draining for it."""
        if self.switching_to == model:
            self.switching_to = None
