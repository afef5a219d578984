"""The thread of a worker that writes answers to the cache, several in one commit.

May live here: gathering records, one transaction for all that came while the last one ran, the timer of the
reader check. May not: what is worth storing, sockets.

A commit with fsync costs 0.3 to 3 ms, so the working loop never does one. What the thread did is told through
a callback that must be thread-safe and quick.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from walled.adapters.cache import CacheStats, CacheWriter
from walled.config import Config, cache_dir
from walled.core.policy import ModelMeta
from walled.core.record import Record

READER_CHECK_S = 30.0
LOOK_S = 5.0
"""How often the file's figures are taken, for the monitor."""
MAX_WAITING = 4096
"""Records not written yet; more are refused, because memory is worth more than a cached answer."""

_log = logging.getLogger("walled.storing")


class Stored(NamedTuple):
    """One commit is through."""

    tickets: tuple[int, ...]
    """Of the records it held."""
    done: bool
    """All of them are in the cache."""


class Storer:
    """Owns the CacheWriter; its thread is the only one that touches it."""

    def __init__(self, writer: CacheWriter, told: Callable[[Stored], None]) -> None:
        self._writer = writer
        self._told = told
        self._wake = threading.Condition()
        self._records: list[tuple[int, Record]] = []
        self._metas: list[ModelMeta] = []
        self._templates: bytes | None = None
        self._closing = False
        self._trimming = False
        self._figures: CacheStats | None = None
        self._counted = (0, 0)
        """Evicted and expired records that `told` has spoken of."""
        self._thread = threading.Thread(target=self._run, name="storer", daemon=True)
        self._thread.start()

    def put(self, ticket: int, record: Record) -> bool:
        """Have a record written; False when too many wait."""
        with self._wake:
            if len(self._records) >= MAX_WAITING:
                return False
            self._records.append((ticket, record))
            self._wake.notify()
        return True

    def put_meta(self, metas: Sequence[ModelMeta]) -> None:
        with self._wake:
            self._metas.extend(metas)
            self._wake.notify()

    def put_templates(self, packed: bytes) -> None:
        """Publish the template set; only the last one counts."""
        with self._wake:
            self._templates = packed
            self._wake.notify()

    def told(self, count: Callable[[str, int], None]) -> dict[str, float]:
        """Gauges of the cache file as it was within the last LOOK_S; evictions since the last call go to
        `count`."""
        found = self._figures
        if found is None or not found.open:
            return {}
        before, self._counted = self._counted, (found.evicted, found.expired)
        for name, grown in (
            ("cache_evictions_total", found.evicted - before[0]),
            ("cache_expired_total", found.expired - before[1]),
        ):
            if grown:
                count(name, grown)
        return {
            "walled_cache_entries": found.entries,
            "walled_cache_used_bytes": found.live_bytes,
            "walled_cache_file_bytes": found.file_bytes,
            "walled_cache_map_bytes": found.map_bytes,
            "walled_cache_readers": found.readers,
        }

    def trim(self) -> None:
        """Have the cache use less memory, soon."""
        with self._wake:
            self._trimming = True
            self._wake.notify()

    def close(self, timeout_s: float) -> None:
        """Write what waits, within `timeout_s`, and close the cache."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._writer.close()

    def _run(self) -> None:
        next_check_s = time.monotonic() + READER_CHECK_S
        next_look_s = 0.0
        while True:
            with self._wake:
                while not (
                    self._records or self._metas or self._templates or self._trimming or self._closing
                ):
                    if not self._wake.wait(max(0.0, next_look_s - time.monotonic())):
                        break
                records, self._records = self._records, []
                metas, self._metas = self._metas, []
                templates, self._templates = self._templates, None
                trimming, self._trimming = self._trimming, False
                if self._closing and not (records or metas or templates):
                    return
            if metas:
                self._guarded(partial(self._writer.put_meta, metas))
            if templates is not None:
                self._guarded(partial(self._writer.put_templates, templates))
            if records:
                self._write(records)
            if trimming:
                self._guarded(lambda: self._writer.trim(time.time()))
            if time.monotonic() >= next_check_s:
                next_check_s = time.monotonic() + READER_CHECK_S
                self._guarded(self._writer.reader_check)
            if time.monotonic() >= next_look_s:
                next_look_s = time.monotonic() + LOOK_S
                self._guarded(self._look)

    def _look(self) -> None:
        self._figures = self._writer.stats()

    def _write(self, records: list[tuple[int, Record]]) -> None:
        written = self._guarded(lambda: self._writer.put_many([record for _, record in records], time.time()))
        self._told(Stored(tuple(ticket for ticket, _ in records), written == len(records)))

    @staticmethod
    def _guarded(call: Callable[[], object]) -> object:
        """The cache must never fail a request: whatever it raises is logged and means "not stored"."""
        try:
            return call()
        except Exception as exc:
            _log.warning("cache: %s: %s", type(exc).__name__, exc)
            return None


def open_storer(config: Config, told: Callable[[Stored], None]) -> Storer | None:
    """A Storer on the configured cache; None when there is none or it cannot be opened."""
    cache = config.cache
    if not cache.enabled:
        return None
    try:
        writer = CacheWriter(cache_dir(config), max_bytes=cache.max_bytes, max_entries=cache.max_entries)
    except Exception as exc:
        # Without its cache walled still answers.
        _log.warning("cache: cannot be opened, nothing will be stored: %s", exc)
        return None
    return Storer(writer, told)
