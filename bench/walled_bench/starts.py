"""Figure 4: how soon the daemon is ready, and how much memory it holds without a model.

May live here: this measurement. May not: starting the daemon (daemon.py), printing.

Ready means READY=1 at the notify socket, which the daemon sends only after a worker has really answered. The
first start of each kind is warm-up (the page cache). Memory is read after a few hundred requests.
"""

from __future__ import annotations

from typing import Any

from walled_client import Client

from walled_bench import questions
from walled_bench.daemon import Daemon, scripted
from walled_bench.figures import Figure, figure
from walled_bench.statistic import of_blocks

STARTS = 5
REQUESTS = 500
BUILT_IN: dict[str, Any] = {"backend": "embedded", "daemon": {"log_level": "warning"}}
MIB = 1024 * 1024


def measure(quick: bool = False) -> list[Figure]:
    """Both kinds of start in turn, then memory."""
    kinds = {"scripted": scripted(), "built-in": BUILT_IN}
    took: dict[str, list[float]] = {name: [] for name in kinds}
    warm_ups = 0 if quick else 1
    for turn in range((1 if quick else STARTS) + warm_ups):
        for name, config in kinds.items():
            with Daemon(config) as daemon:
                if turn >= warm_ups:
                    took[name].append(daemon.ready_s)
    return [
        figure("spawn to READY, scripted backend", of_blocks(took["scripted"]), "s", at_most=1.0),
        figure("spawn to READY, built-in model", of_blocks(took["built-in"]), "s", at_most=2.0),
        *_memory(20 if quick else REQUESTS),
    ]


def _memory(requests: int) -> list[Figure]:
    with Daemon(scripted(slots=16)) as daemon, Client(daemon.run_dir) as client:
        for number in range(requests):
            client.chat(questions.chat(number))
            client.chat(questions.chat(number), temperature=0)
        samples = daemon.sample()
    figures = [
        figure(
            "resident memory of all processes, no model",
            sum(each.rss_bytes for each in samples.values()) / MIB,
            "MiB",
            at_most=200,
            n=len(samples),
        ),
        figure(
            "memory of their own (USS) of all processes, no model",
            sum(each.uss_bytes for each in samples.values()) / MIB,
            "MiB",
            n=len(samples),
        ),
    ]
    figures += [
        figure(f"resident memory, {name}", each.rss_bytes / MIB, "MiB", n=1) for name, each in samples.items()
    ]
    return figures
