"""Subscribers to the stream, in a process of their own: `python -m walled_bench.listeners RUN_DIR COUNT`.

May live here: connecting, receiving, counting. May not: measuring. Prints what each got when its input ends.
"""

from __future__ import annotations

import os
import select
import sys

from walled.adapters.sockets import Hub, Poller
from walled.config import endpoints

NICE = 19
"""What is measured is the daemon; whoever watches it waits."""


def main(run_dir: str, count: int) -> None:
    from pathlib import Path

    os.nice(NICE)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    hub = Hub()
    ends = endpoints(Path(run_dir))
    ports = [hub.subscriber(ends.metrics, [b""]) for _ in range(count)]
    for port in ports:
        port.connect()
    got = [0] * count
    poller = Poller(ports, [sys.stdin.fileno()])
    print("listening", flush=True)
    while sys.stdin.fileno() not in poller.wait(None) or select.select([sys.stdin], [], [], 0)[0] == []:
        for place, port in enumerate(ports):
            got[place] += len(port.receive(1000))
    print(" ".join(map(str, got)), flush=True)
    hub.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
