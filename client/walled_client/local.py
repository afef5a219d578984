"""Reading the shared cache in the caller's own process: no message, no lock, no event loop.

May live here: key, plan and freshness of a lookup, and when a hit should be renewed in the background.
May not: sending anything.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from walled.adapters.cache import CacheReader
from walled.core.measured import lookups
from walled.core.policy import Plan, plan, wants_refresh
from walled.errors import NotCached
from walled.payload import key_hasher, scope, unpack_answer
from walled.protocol import Phases
from walled_client.calls import Asked
from walled_client.discovery import find
from walled_client.results import Reply

MAX_REFRESHED = 4096
"""Keys whose refresh is remembered."""
MAX_HASHERS = 1024
REFRESH_RETRY_S = 0.05
"""After a refresh that could not be sent."""
LOOK_AGAIN_S = 1.0
"""How often the run directory is asked again where the cache is, while it is not found."""


def _nothing() -> None:
    pass


class LocalCache:
    """Lookups in the cache of one daemon. Thread-safe, and safe after a fork, because CacheReader is."""

    def __init__(self, run_dir: Path | None) -> None:
        self._run_dir = run_dir
        self._directory = find(run_dir).cache_dir
        self._reader = CacheReader(self._directory)
        self._look_again_s = 0.0
        self._refreshed: dict[bytes, float] = {}
        self._refresh_after_s = 0.0
        self._plans: dict[tuple[str, bool, str], Plan] = {}
        """Plans depend on nothing else of a model than its policy."""
        self._hashers: dict[tuple[str, bytes], Any] = {}
        """The beginnings of keys, by namespace and fingerprint: half the cost of a key."""
        self._hits: dict[str, int] = {}
        """Fresh answers, by model as it was asked for."""
        self._lesser: Counter[tuple[str, str, str]] = Counter()
        """Answers of offline.py: (model, source, "degraded" or "")."""
        self.stir: Callable[[], None] = _nothing
        """Called about once a second while there are lookups: telling.py."""
        self.first = True
        """A mode of the published ladder may put templates first (offline.py); looked at anew each second."""
        self._first_checked_s = 0.0

    @property
    def reader(self) -> CacheReader:
        return self._reader

    def lookup(self, asked: Asked, started_s: float) -> tuple[Reply, bytes | None] | None:
        """A fresh answer, with the key to renew when it is time for that; None: ask the daemon.

        `started_s`: time.perf_counter() at the call. Raises NotCached when only the cache was asked for.
        """
        settings = asked.settings
        reader = self._reader
        meta = reader.meta(settings.model)
        if meta is None:
            self._look_again()
            return None
        # As in `key_to_read`, in a row: every hit goes through here.
        case = (settings.cache, asked.deterministic, meta.policy)
        what = self._plans.get(case)
        if what is None:
            what = self._plans[case] = plan(settings.cache, asked.deterministic, meta)
        if not what.read:
            return None
        namespace = settings.namespace
        if settings.context:
            namespace = scope(namespace, settings.context)
        place = (namespace, meta.fingerprint)
        hasher = self._hashers.get(place)
        if hasher is None:
            hasher = self._hasher(place)
        hasher = hasher.copy()
        hasher.update(asked.payload)
        key = hasher.digest()
        now_s = time.time()
        if now_s - self._first_checked_s >= 1.0:
            self._first_checked_s, self.first = now_s, True
            self.stir()
        record = reader.get(key, now_s)
        if record is None or now_s >= record.fresh_until_s:  # get() has dropped what is dead
            if what.only:
                raise NotCached(f"no fresh answer of {settings.model} is stored for this request")
            return None
        try:
            answer = unpack_answer(record.answer)
        except (msgspec.DecodeError, RecursionError):
            return None
        hits = self._hits
        hits[settings.model] = hits.get(settings.model, 0) + 1
        elapsed_ms = (time.perf_counter() - started_s) * 1000
        age_s = now_s - record.created_s
        reply = Reply(
            answer, "cache", False, "", record.backend, -1, 1, age_s if age_s > 0 else 0.0, True,
            Phases(total_ms=elapsed_ms), elapsed_ms,
        )  # fmt: skip
        # A model whose policy is "never" would generate and not store.
        if (
            what.store
            and wants_refresh(record, now_s, meta.refresh_ahead)
            and meta.policy != "never"
            and self._may_refresh(key, now_s)
        ):
            self._remember(key, record.fresh_until_s, now_s)
            return reply, key
        return reply, None

    def key_to_read(self, asked: Asked) -> bytes | None:
        """The key of a request that may be answered from the cache; None when it may not."""
        settings = asked.settings
        meta = self._reader.meta(settings.model)
        if meta is None or not plan(settings.cache, asked.deterministic, meta).read:
            return None
        namespace = scope(settings.namespace, settings.context) if settings.context else settings.namespace
        hasher = self._hasher((namespace, meta.fingerprint)).copy()
        hasher.update(asked.payload)
        return bytes(hasher.digest())

    @property
    def hits(self) -> int:
        """Fresh answers given."""
        return sum(list(self._hits.values()))

    def answered(self, asked: Asked, source: str, *, degraded: bool) -> None:
        """An answer other than a fresh one was given in this process."""
        self._lesser[asked.settings.model, source, "degraded" if degraded else ""] += 1
        self.stir()

    def counted(self) -> dict[tuple[str, ...], int]:
        """Totals so far, as telling.py takes them."""
        reader = self._reader
        found: dict[tuple[str, ...], int] = {
            ("served", model, "cache", ""): count for model, count in list(self._hits.items())
        }
        found |= {("served", *key): count for key, count in list(self._lesser.items())}
        results = {name.partition(".")[2]: count for name, count in lookups(reader).items()}
        return found | {("lookup", result): count for result, count in results.items() if count}

    def refresh_failed(self, key: bytes) -> None:
        """The renewal was not sent: a later hit may try again, but not at once."""
        self._refreshed.pop(key, None)
        self._refresh_after_s = time.time() + REFRESH_RETRY_S

    def close(self) -> None:
        self._reader.close()

    def _hasher(self, place: tuple[str, bytes]) -> Any:
        if len(self._hashers) >= MAX_HASHERS:
            self._hashers.clear()
        self._hashers[place] = hasher = key_hasher(*place)
        return hasher

    def _may_refresh(self, key: bytes, now_s: float) -> bool:
        return now_s >= self._refresh_after_s and self._refreshed.get(key, 0.0) < now_s

    def _remember(self, key: bytes, fresh_until_s: float, now_s: float) -> None:
        """Once per key and fresh period: the entry holds until the record as it is now is no longer fresh."""
        refreshed = self._refreshed
        if len(refreshed) >= MAX_REFRESHED:
            for old, until_s in list(refreshed.items()):
                if until_s < now_s:
                    refreshed.pop(old, None)
            if len(refreshed) >= MAX_REFRESHED:
                refreshed.clear()
        refreshed[key] = fresh_until_s

    def _look_again(self) -> None:
        """No model known: perhaps the daemon was started after us, with its cache elsewhere."""
        now_s = time.monotonic()
        if now_s < self._look_again_s:
            return
        self._look_again_s = now_s + LOOK_AGAIN_S
        directory = find(self._run_dir).cache_dir
        if directory != self._directory:
            old, self._reader, self._directory = self._reader, CacheReader(directory), directory
            old.close()
