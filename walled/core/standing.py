"""The broker as it stands, as series for the monitor: queue, workers, what runs.

May live here: reading the broker's state. May not: changing it, sending, what is counted (core/measured.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from walled.core.broker import Broker
from walled.protocol import PRIORITIES

_BREAKER = {"closed": 0, "half_open": 1, "open": 2}

Entry = list[Any]
"""[family, [label values], value], as core/registry.py takes it."""


def names(broker: Broker) -> dict[str, str]:
    """What models may be asked for as -> what they are called."""
    dispatcher = broker.dispatcher
    known = {name: name for name in (*dispatcher.metas, *broker.config.routes)}
    known |= {name: lane.model for name, lane in dispatcher.lanes.items()}
    return known | {alias: name for alias, name in dispatcher.aliases.items() if name in known}


def series(broker: Broker, backends: Iterable[str], now: float) -> list[Entry]:
    """Everything that is a gauge. `backends`: those that are configured, live or not."""
    dispatcher = broker.dispatcher
    workers = dispatcher.fleet.workers.values()
    found: list[Entry] = [
        ["walled_requests_in_flight", [], sum(len(worker.jobs) for worker in workers)],
        ["walled_queue_bytes", [], dispatcher.queued_bytes],
    ]
    depths = dict.fromkeys(PRIORITIES, 0)
    oldest = dict.fromkeys(PRIORITIES, now)
    stands = dict.fromkeys(PRIORITIES, 0)
    for lane in dispatcher.waiting.values():
        for name, codel in zip(PRIORITIES, lane.codels, strict=True):
            stands[name] |= codel.standing
        for job in lane.waiting():
            name = PRIORITIES[job.rank]
            depths[name] += 1
            oldest[name] = min(oldest[name], job.created_s)
    found += [["walled_queue_depth", [name], depth] for name, depth in depths.items()]
    found += [["walled_queue_oldest_age_seconds", [name], now - then_s] for name, then_s in oldest.items()]
    found += [["walled_queue_standing", [rank], value] for rank, value in stands.items()]
    live = dict.fromkeys(backends, 0)
    for worker in workers:
        found.append(["walled_worker_heartbeat_age_seconds", [str(worker.slot)], now - worker.heard_s])
        live[worker.backend] = live.get(worker.backend, 0) + (worker.state == "ready")
    states = broker.descent.circuits.states(now)
    found += [["walled_breaker_state", [name], _BREAKER[state]] for name, state in states.items()]
    fleet = dispatcher.fleet
    for backend, slots in fleet.slots_by_backend().items():
        limit = fleet.limits.get(backend)
        found.append(["walled_backend_limit", [backend], min(limit.value, slots) if limit else slots])
    return found + [["walled_workers_live", [name], count] for name, count in live.items()]
