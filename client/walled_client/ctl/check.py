"""walled-ctl check: one question about the daemon, answered as monitoring plugins answer.

May live here: thresholds, the line, the exit code. May not: judging alerts or health (the monitor does that).

The conventions are those of Nagios: one line `WALLED OK - text | label=value;warn;crit;min;max`, exit code
0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. Wrong usage is UNKNOWN too, for 2 would wake somebody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from walled.adapters.cache import CacheReader
from walled.errors import DaemonUnavailable, WalledError
from walled_client.ctl.drawing import percent, span
from walled_client.ctl.program import Verb
from walled_client.ctl.terminal import Terminal, pass_terminal, printable, size
from walled_client.discovery import find, place_of
from walled_client.picture import Picture

WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
OK, WARNING, CRITICAL, UNKNOWN = range(4)


class Limits(NamedTuple):
    """At or beyond `warning` it is WARNING, at or beyond `critical` CRITICAL; below them of floors."""

    warning: float
    critical: float
    floor: bool = False

    def judged(self, value: float) -> int:
        if self.floor:
            return CRITICAL if value < self.critical else WARNING if value < self.warning else OK
        return CRITICAL if value >= self.critical else WARNING if value >= self.warning else OK


class Finding(NamedTuple):
    status: int
    text: str
    perfdata: tuple[str, ...] = ()


class _WrongUsage(click.UsageError):
    exit_code = UNKNOWN


class CheckVerb(Verb):
    """Wrong usage ends with UNKNOWN."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as exc:
            raise _WrongUsage(exc.format_message(), exc.ctx) from None


@click.command("check", cls=CheckVerb, epilog="Example: walled-ctl check queue --warning 5 --critical 20")
@click.argument("target", type=click.Choice(["server", "backend", "queue", "workers", "cache", "memory"]))
@click.option("--warning", "-w", type=float, help="Limit of WARNING instead of the one below.")
@click.option("--critical", "-c", type=float, help="Limit of CRITICAL.")
@pass_terminal
def check_verb(terminal: Terminal, target: str, warning: float | None, critical: float | None) -> int:
    """Answer as a Nagios plugin does: one line with numbers.

    Exit code 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (wrong usage too).

    \b
    server   reachable, ready, and its health score (below 80, 50)
    backend  live workers of each backend (below 1: CRITICAL), and its circuit breaker
    queue    age of the oldest waiting request in seconds (5, 15)
    workers  worker processes that are not ready (1, all of them)
    cache    readable, and percent in use of what it may reach (no limits: it makes room by itself)
    memory   memory of the machine in use, percent (80, 90), and verdicts about leaks (WARNING)
    """
    usual = _LIMITS[target]
    limits = Limits(
        usual.warning if warning is None else warning,
        usual.critical if critical is None else critical,
        usual.floor,
    )
    try:
        found = _CHECKS[target](terminal, limits)
    except DaemonUnavailable as exc:
        found = Finding(CRITICAL if target == "server" else UNKNOWN, exc.message)
    except WalledError as exc:
        found = Finding(UNKNOWN, exc.message)
    data = {
        "schema": "walled.check/1",
        "ok": found.status == OK,
        "target": target,
        "status": WORDS[found.status],
        "text": found.text,
        "perfdata": list(found.perfdata),
    }
    text = printable(found.text).replace("\n", " ").replace("|", "/")
    line = f"WALLED {WORDS[found.status]} - {text}" + (
        f" | {' '.join(found.perfdata)}" if found.perfdata else ""
    )
    terminal.emit(data, lambda: click.echo(line))
    return found.status


def _perf(label: str, value: float, limits: Limits, unit: str = "", high: str = "") -> str:
    """label=value;warning;critical;least;most. A floor is written `80:`."""
    mark = ":" if limits.floor else ""
    return f"{label}={value:g}{unit};{limits.warning:g}{mark};{limits.critical:g}{mark};0;{high}".rstrip(";")


def _server(terminal: Terminal, limits: Limits) -> Finding:
    status = terminal.ask_daemon("status")
    state, up_s = str(status.get("state")), float(status.get("uptime_s") or 0)
    uptime = f"uptime={up_s:.0f}s"
    if state != "ready":
        return Finding(CRITICAL if state == "starting" else WARNING, f"the daemon is {state}", (uptime,))
    try:
        judged = terminal.ask_monitor("health")
    except WalledError as exc:
        return Finding(WARNING, f"ready, but its health is not known: {exc.message}", (uptime,))
    score = float(judged["score"])
    text = f"ready, {judged['grade']} {score:g} of 100"
    if judged["deductions"]:
        text += f": {judged['deductions'][0]['symptom']}"
    return Finding(limits.judged(score), text, (_perf("score", score, limits, high="100"), uptime))


def _picture(terminal: Terminal) -> Picture:
    picture = Picture()
    picture.seed(terminal.ask_monitor("dashboard"), 0.0)
    return picture


def _backend(terminal: Terminal, limits: Limits) -> Finding:
    picture = _picture(terminal)
    live = picture.by("walled_workers_live", "backend")
    if not live:
        return Finding(UNKNOWN, "the broker has not told of any backend yet")
    breakers = picture.by("walled_breaker_state", "backend")
    status, words = OK, []
    for name, count in sorted(live.items()):
        breaker = breakers.get(name, 0.0)
        status = max(status, CRITICAL if count < 1 or breaker >= 2 else WARNING if breaker >= 1 else OK)
        status = max(status, limits.judged(count))
        opened = (
            " and its breaker open" if breaker >= 2 else " and its breaker half open" if breaker >= 1 else ""
        )
        words.append(f"{name} has {count:g} live workers{opened}")
    perfdata = tuple(_perf(f"live_{name}", count, limits) for name, count in sorted(live.items()))
    return Finding(status, ", ".join(words), perfdata)


def _queue(terminal: Terminal, limits: Limits) -> Finding:
    status = terminal.ask_daemon("status")
    queue = status.get("queue") or {}
    oldest_s, depth = float(queue.get("oldest_age_s") or 0), int(queue.get("depth") or 0)
    text = f"{depth} waiting, the oldest for {span(oldest_s)}"
    flight = int(status.get("in_flight") or 0)
    perfdata = (
        _perf("oldest", oldest_s, limits, "s"),
        f"depth={depth}",
        f"in_flight={flight}",
    )
    return Finding(limits.judged(oldest_s), text, perfdata)


def _workers(terminal: Terminal, limits: Limits) -> Finding:
    status = terminal.ask_daemon("status")
    children = (status.get("tree") or {}).get("children") or ()
    posts: dict[Any, bool] = {}
    restarts = 0
    for child in children:
        if child.get("role") == "worker":
            slot = child.get("slot")
            # One that is being replaced has two lives; one that is ready is enough.
            posts[slot] = posts.get(slot, False) or child.get("phase") == "ready"
            restarts += int(child.get("restarts") or 0)
    if not posts:
        return Finding(UNKNOWN, "the daemon does not tell yet of its workers")
    ready = sum(posts.values())
    missing = len(posts) - ready
    limits = limits._replace(critical=min(limits.critical, float(len(posts))))
    lame = ", ".join(f"worker {slot}" for slot, fine in sorted(posts.items()) if not fine)
    text = f"{ready} of {len(posts)} ready" + (f"; not ready: {lame}" if lame else "")
    busy = sum(int(worker.get("in_flight") or 0) for worker in status.get("workers") or ())
    perfdata = (f"ready={ready};;;0;{len(posts)}", f"busy={busy}", f"restarts={restarts}c")
    return Finding(limits.judged(missing), text, perfdata)


def _cache(terminal: Terminal, limits: Limits) -> Finding:
    reader = CacheReader(find(place_of(terminal.run_dir, terminal.endpoint)).cache_dir)
    try:
        stats = reader.stats()
    finally:
        reader.close()
    if not stats.open:
        return Finding(CRITICAL, f"the cache cannot be read: {stats.problem or 'there is none'}")
    used = 100 * stats.live_bytes / stats.map_bytes if stats.map_bytes else 0.0
    text = f"{stats.entries} answers, {size(stats.live_bytes)} of {size(stats.map_bytes)}"
    perfdata = [f"entries={stats.entries}", f"bytes={stats.live_bytes}B;;;0;{stats.map_bytes}"]
    try:
        picture = _picture(terminal)
    except WalledError:
        pass  # the cache is there without a daemon too
    else:
        answered = picture.by("walled_requests_total", "source")
        whole = sum(count for source, count in answered.items() if source != "none")
        if whole:
            hits = answered.get("cache", 0.0) / whole
            text += f", {percent(hits)} of all answers came from it"
            perfdata.append(f"hits={hits * 100:.1f}%")
    return Finding(limits.judged(used), text, tuple(perfdata))


def _memory(terminal: Terminal, limits: Limits) -> Finding:
    picture = _picture(terminal)
    ratio = picture.value("walled_system_memory_used_ratio")
    if ratio is None:
        return Finding(UNKNOWN, "the monitor has not measured the machine's memory yet")
    used = round(ratio * 100, 1)
    status, text = limits.judged(used), f"{used:g} % of the machine's memory is in use"
    perfdata = [_perf("used", used, limits, "%", "100")]
    for row in picture.families.get("walled_process_uss_bytes", ()):
        name = f"{row['labels']['role']}{row['labels']['worker']}"
        perfdata.append(f"{name}={row['value']:.0f}B")
    leaks = [
        name for name, report in (picture.health.get("leaks") or {}).items() if report["verdict"] == "LEAK"
    ]
    if leaks:
        status, text = max(status, WARNING), f"{text}; {', '.join(leaks)} leaks"
    return Finding(status, text, tuple(perfdata))


_LIMITS = {
    "server": Limits(80, 50, floor=True),
    "backend": Limits(1, 1, floor=True),
    "queue": Limits(5, 15),
    "workers": Limits(1, 10_000),
    "cache": Limits(math.inf, math.inf),
    "memory": Limits(80, 90),
}
_CHECKS: dict[str, Callable[[Terminal, Limits], Finding]] = {
    "server": _server,
    "backend": _backend,
    "queue": _queue,
    "workers": _workers,
    "cache": _cache,
    "memory": _memory,
}
