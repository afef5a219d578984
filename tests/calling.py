"""Callers for tests with faults: they ask without pause, and keep the books of what became of each call."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

from walled_client import Client

from walled import errors


class Callers:
    """Some clients with a thread each. `end` first, then look at the books."""

    def __init__(
        self,
        run_dir: Path,
        *,
        count: int = 3,
        line: str = "",
        model: str = "default",
        deadline_s: float = 20.0,
    ) -> None:
        self._run_dir = run_dir
        self._line = f"\n{line}" if line else ""
        self._model = model
        self._deadline_s = deadline_s
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self.endings: Counter[str] = Counter()
        """"answered", or the code of an error, or "wrong"."""
        self.longest_s = 0.0
        self._threads = [threading.Thread(target=self._call, args=(n,), daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _call(self, number: int) -> None:
        with Client(run_dir=self._run_dir, cache=False) as client:
            turn = 0
            while not self._stop.wait(0.01):
                turn += 1
                words = f"caller {number} turn {turn}"
                began_s = time.monotonic()
                try:
                    reply = client.chat(words + self._line, model=self._model, deadline_s=self._deadline_s)
                    ending = "answered" if reply.text.startswith(words) else "wrong"
                except errors.WalledError as exc:
                    ending = exc.code
                with self._changed:
                    self.endings[ending] += 1
                    self.longest_s = max(self.longest_s, time.monotonic() - began_s)
                    self._changed.notify_all()

    def more(self, count: int, timeout_s: float = 20.0) -> None:
        """Wait until so many more calls have been answered."""
        with self._changed:
            wanted = self.endings["answered"] + count
            assert self._changed.wait_for(lambda: self.endings["answered"] >= wanted, timeout_s), self.endings

    def end(self) -> Counter[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._deadline_s + 10)
            assert not thread.is_alive(), "a caller hangs"
        return self.endings
