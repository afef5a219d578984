"""The real children, with the monitor's clocks four hundred times as fast: an hour passes in nine seconds.

Only the clock is not real: memory is really allocated, really measured, and judged as it always is. A leak
cannot be told in less than an hour, and a test has no hour.
"""

from __future__ import annotations

import sys
import time

from walled import child, monitor
from walled.adapters import sockets

SPEED = 400.0


def hurry() -> None:
    """Clocks run on from now, SPEED times as fast, and waiting is as much shorter."""
    real_monotonic, real_time, real_wait = time.monotonic, time.time, sockets.Poller.wait
    began_s, began_unix_s = real_monotonic(), real_time()

    def monotonic() -> float:
        return began_s + (real_monotonic() - began_s) * SPEED

    def unix() -> float:
        return began_unix_s + (real_time() - began_unix_s) * SPEED

    def wait(self: sockets.Poller, timeout_s: float | None) -> set[sockets.Port | int]:
        return real_wait(self, None if timeout_s is None else max(0.001, timeout_s / SPEED))

    time.monotonic, time.time = monotonic, unix
    monitor.SAMPLE_SHARE = 0.2  # a look that takes milliseconds seems to take seconds
    sockets.Poller.wait = wait  # type: ignore[method-assign]


if __name__ == "__main__":
    if "monitor" in sys.argv[1:]:
        hurry()
    child.leave(child.run(sys.argv[1:]))
