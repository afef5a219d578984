"""What clients tell the monitor: answers they had in their own process, metrics of the application.

May live here: adding up, bounds, when it is sent. May not: the counting of hits (local.py), which is on the
fast path, sockets (walled/adapters/datagrams.py).

A hit costs nothing here: it is counted where it happens, and looked at once a second. The thread that sends
lives only while there is something to send. What nobody takes is kept and added up, within bounds.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from walled.adapters.datagrams import Pen
from walled.core.registry import app_problem
from walled.errors import BadRequest
from walled.protocol import pack_map
from walled_client.discovery import find

TELL_S = 1.0
"""Shortest time between two messages of one client."""
QUIET_ROUNDS = 3
"""With nothing to tell for so many rounds the thread ends; it comes back when there is."""
MAX_PENDING = 500
"""Series of application metrics kept until they are sent; further ones are dropped and counted."""
MAX_ENTRIES = 60
"""Of one message: every one of the longest names and labels, it still is one datagram."""

Counts = dict[tuple[str, ...], int]
"""(kind, ...) -> total since the client began: ("served", model, source, "degraded" or "") and ("lookup",
result)."""


class Teller:
    """One per client; any thread may use it."""

    def __init__(self, run_dir: Path | None, counted: Callable[[], Counts]) -> None:
        """`counted` gives the totals so far."""
        self._run_dir = run_dir
        self._counted = counted
        self._pen = Pen()
        self._renew()
        self._told: Counts = {}
        self.dropped = 0
        """Values that were not kept, since the client began."""
        self._dropped_told = 0

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._pending: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
        self._sent_s = 0.0

    def _after_fork(self) -> None:
        """What was counted before the fork is the parent's to tell."""
        if self._pid != os.getpid():
            self._renew()
            self._told = self._counted()

    def stir(self) -> None:
        """There may be something to tell; called once a second by whoever counts."""
        self._after_fork()
        if self._thread is None and not self._closing.is_set():
            with self._lock:
                self._start()

    def metric(self, name: str, value: float, labels: Mapping[str, str] | None, kind: str) -> None:
        """Keep a value until it is sent. Raises BadRequest for what the monitor would refuse."""
        given = dict(labels or {})
        problem = app_problem(name, given, value, kind)
        if problem:
            raise BadRequest(f"metric {str(name)[:80]!r}: {problem}")
        self._after_fork()
        series = (name, kind, tuple(sorted(given.items())))
        with self._lock:
            pending = self._pending
            if series not in pending and len(pending) >= MAX_PENDING:
                self.dropped += 1
            elif kind == "counter":
                pending[series] = pending.get(series, 0.0) + value
            else:
                pending[series] = value
            if time.monotonic() - self._sent_s >= TELL_S:
                self._send()  # a program that ends right after this has been heard
            if pending:
                self._start()

    def close(self) -> None:
        """Tell what is left."""
        self._after_fork()
        with self._lock:
            self._closing.set()
            self._send()
            self._pen.close()

    # --- inside ------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, args=(self._closing,), daemon=True, name="tell")
            self._thread.start()

    def _run(self, closing: threading.Event) -> None:
        quiet = 0
        while not closing.wait(TELL_S):
            with self._lock:
                quiet = 0 if self._send() else quiet + 1
                if quiet >= QUIET_ROUNDS or closing.is_set():
                    self._thread = None
                    return

    def _send(self) -> bool:
        """Send all there is, with the lock; whether there was anything."""
        self._sent_s = time.monotonic()
        found = self._counted()
        grown = {key: count - self._told.get(key, 0) for key, count in found.items()}
        # A reader that was opened anew counts from zero.
        grown = {key: count if count >= 0 else found[key] for key, count in grown.items() if count}
        dropped = self.dropped - self._dropped_told
        if not (grown or self._pending or dropped):
            return False
        endpoint = find(self._run_dir).tell
        if grown or dropped:
            sent = list(grown.items())[:MAX_ENTRIES]  # the rest has its turn a second later
            counts = [[*key, count] for key, count in sent]
            if self._pen.send(endpoint, pack_map({"counts": counts, "dropped": dropped})):
                self._told |= {key: found[key] for key, _ in sent}
                self._dropped_told = self.dropped
        rest = list(self._pending.items())
        while rest:
            part, rest = rest[:MAX_ENTRIES], rest[MAX_ENTRIES:]
            app: list[Any] = [[name, dict(labels), value, kind] for (name, kind, labels), value in part]
            if not self._pen.send(endpoint, pack_map({"app": app})):
                break
            for series, _ in part:
                del self._pending[series]
        return True
