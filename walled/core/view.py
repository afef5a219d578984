"""What the broker shows to operators: the replies of walled-ctl's verbs, as plain values.

May live here: reading the broker's state into the shapes of docs/protocol.md, section Control.
May not: changing it.
No prompt and no answer ever appears in a reply.
"""

from __future__ import annotations

from typing import Any

from walled import __version__
from walled.core.broker import Broker
from walled.core.flights import Job
from walled.errors import WalledError
from walled.protocol import PRIORITIES


def workers(broker: Broker, now: float) -> dict[str, Any]:
    """`workers.list`."""
    rows = []
    for worker in sorted(broker.dispatcher.fleet.workers.values(), key=lambda worker: worker.slot):
        residence = broker.dispatcher.residences.get(worker.backend)
        loaded = list(residence.loaded) if residence is not None and residence.limit else list(worker.models)
        rows.append(
            {
                "worker": worker.slot,
                "pid": worker.pid,
                "backend": worker.backend,
                "kind": worker.kind,
                "state": worker.state,
                "slots": worker.slots,
                "in_flight": len(worker.jobs),
                "served": worker.served,
                "models": list(worker.models),
                "loaded": loaded,
                "heartbeat_age_s": round(now - worker.heard_s, 3),
            }
        )
    return {"schema": "walled.workers/1", "ok": True, "workers": rows}


def models(broker: Broker) -> dict[str, Any]:
    """`models.list`."""
    rows = []
    for name, found in sorted(broker.dispatcher.fleet.by_place.items()):
        if "\0" in name:
            continue
        info = found[0].models[name]
        rows.append(
            {
                "name": name,
                "backend": found[0].backend,
                "kind": found[0].kind,
                "digest": info.digest,
                "capabilities": list(info.capabilities),
                "context_tokens": info.context_tokens,
                "workers": len(found),
                "slots": sum(worker.slots for worker in found),
                "aliases": sorted(
                    alias for alias, target in broker.dispatcher.aliases.items() if target == name
                ),
            }
        )
    return {
        "schema": "walled.models/1",
        "ok": True,
        "default": broker.dispatcher.aliases.get("default", ""),
        "models": rows,
    }


def queue(broker: Broker, now: float) -> dict[str, Any]:
    """`queue.list`."""
    queued = []
    for lane in broker.dispatcher.lanes.values():
        for position, job in enumerate(lane.waiting()):
            queued.append(
                _row(job, now)
                | {
                    "class": PRIORITIES[job.rank],
                    "position": position,
                    "eta_s": round(broker.dispatcher.eta_s(lane, position), 3),
                    "bytes": job.payload_bytes,
                }
            )
    running = [
        _row(job, now) | {"worker": worker.slot, "waiters": len(job.waiters), "streaming": job.streaming}
        for worker in broker.dispatcher.fleet.workers.values()
        for job in worker.jobs.values()
    ]
    return {"schema": "walled.queue/1", "ok": True, "queued": queued, "running": running}


def _row(job: Job, now: float) -> dict[str, Any]:
    first = job.waiters[0] if job.waiters else None
    return {
        "request": first.request_id.hex() if first else "",
        "model": job.model,
        "age_s": round(now - first.arrived_s, 3) if first else 0.0,
        "deadline_s": round(max(w.deadline_s for w in job.waiters) - now, 3) if job.waiters else 0.0,
    }


def status(
    broker: Broker, now: float, *, pid: int, started_s: float, tree: dict[str, Any], extra: dict[str, int]
) -> dict[str, Any]:
    """`status`. `extra`: counters of the shell; `tree`: the supervisor's view of its children."""
    by_class = dict.fromkeys(PRIORITIES, 0)
    oldest_s = now
    for lane in broker.dispatcher.waiting.values():
        for rank, count in enumerate(lane.by_class):
            by_class[PRIORITIES[rank]] += count
        oldest_s = min([oldest_s, *(waiter.arrived_s for job in lane.waiting() for waiter in job.waiters)])
    ready = bool(broker.dispatcher.fleet.workers)
    return {
        "schema": "walled.status/1",
        "ok": True,
        "version": __version__,
        "pid": pid,
        "epoch": broker.epoch.hex(),
        "uptime_s": round(now - started_s, 3),
        "state": "draining" if broker.draining else "ready" if ready else "starting",
        "queue": {
            "depth": broker.dispatcher.queued,
            "bytes": broker.dispatcher.queued_bytes,
            "by_class": by_class,
            "oldest_age_s": round(now - oldest_s, 3),
        },
        "in_flight": sum(len(worker.jobs) for worker in broker.dispatcher.fleet.workers.values()),
        "workers": workers(broker, now)["workers"],
        "models": models(broker)["models"],
        "counters": dict(sorted({**broker.counters, **extra}.items())),
        "tree": tree,
    }


def failure(error: WalledError) -> dict[str, Any]:
    """The reply to a verb that could not be carried out."""
    return {
        "schema": "walled.error/1",
        "ok": False,
        "error": {"code": error.code, "message": error.message, "retryable": error.retryable},
    }
