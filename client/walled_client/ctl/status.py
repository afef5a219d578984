"""walled-ctl status: one screen about the daemon, like `systemctl status`.

May live here: bringing the answers of broker and monitor together, showing them. May not: judging.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from walled.errors import WalledError
from walled_client.ctl import health
from walled_client.ctl.drawing import percent, rate, span
from walled_client.ctl.program import Verb
from walled_client.ctl.terminal import (
    EXIT_DEGRADED,
    EXIT_OK,
    Terminal,
    pass_terminal,
    printable,
    seconds,
    size,
)
from walled_client.picture import Picture

_LABEL = 9


@click.command("status", cls=Verb, epilog="Example: walled-ctl status --json")
@pass_terminal
def status_verb(terminal: Terminal) -> int:
    """Show the daemon on one screen: state, score, processes, queue, last alert, what to do next.

    Exit code 4 when it is not ready. Without the monitor everything else is still shown.
    """
    data = gather(terminal)
    terminal.emit(data, lambda: _show(data))
    return EXIT_OK if data.get("state") == "ready" else EXIT_DEGRADED


def gather(terminal: Terminal) -> dict[str, Any]:
    """`walled.status/1` of the broker, with `health`, `alerts` (not well), `last_alert`, `stats`, `processes`
    and `next_action`; None where the monitor gives no answer."""
    data = terminal.ask_daemon("status")
    more: dict[str, Any] = {"health": None, "alerts": None, "last_alert": None, "stats": None}
    more |= {"processes": None, "cache": None}
    if any(c.get("role") == "monitor" and c.get("phase") == "ready" for c in _children(data)):
        try:
            with terminal.observer() as observer:
                board = observer.dashboard()
                changes = observer.alert_history()["changes"]
        except WalledError as exc:
            terminal.note(f"the monitor does not answer: {printable(exc.message)}")
        else:
            picture = Picture()
            picture.seed(board, time.time())
            more |= {
                "health": board["health"],
                "alerts": picture.firing(),
                "last_alert": next((change for change in reversed(changes) if _told(change)), None),
                "stats": board["stats"],
                "processes": _processes(board["metrics"]),
                "cache": {
                    name: picture.value(f"walled_cache_{name}")
                    for name in ("entries", "used_bytes", "file_bytes", "map_bytes")
                },
            }
    data |= more
    data["next_action"] = health.next_action(data, more["health"], more["alerts"] or ())
    return data


def _told(change: Mapping[str, Any]) -> bool:
    """Whether an alert began or ended with this change."""
    before, after = str(change["before"]), str(change["after"])
    return after == "firing" or (before == "clearing" and after == "ok")


def _children(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list((data.get("tree") or {}).get("children") or ())


def _processes(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name in ("uss_bytes", "rss_bytes", "cpu_ratio", "threads", "open_fds"):
        for row in metrics.get(f"walled_process_{name}") or ():
            key = (row["labels"]["role"], row["labels"]["worker"])
            found.setdefault(key, {"role": key[0], "worker": key[1]})[name] = row["value"]
    return list(found.values())


def _show(data: dict[str, Any]) -> None:
    state = str(data.get("state", "?"))
    judged = data.get("health")
    mark = health.COLORS.get(str((judged or {}).get("grade")), "green" if state == "ready" else "yellow")
    version = printable(str(data.get("version", "?")))
    click.echo(click.style("*", fg=mark, bold=True) + f" walled {version}")
    color = "green" if state == "ready" else "yellow"
    up = seconds(
        float((data.get("tree") or {}).get("supervisor", {}).get("uptime_s") or data.get("uptime_s") or 0)
    )
    _line("State", click.style(printable(state), fg=color) + f", up {up}")
    _line("Score", health.headline(judged) if judged else "not known: the monitor does not answer")
    for row in (judged or {}).get("deductions") or ():
        _line("", f"{-float(row['points']):.1f}  {row['indicator']}: {printable(row['symptom'])}")
    _tree(data)
    queue = data.get("queue") or {}
    classes = ", ".join(f"{name} {count}" for name, count in (queue.get("by_class") or {}).items())
    oldest_s = float(queue.get("oldest_age_s") or 0)
    waiting = f"{queue.get('depth', 0)} waiting ({size(float(queue.get('bytes') or 0))}"
    _line("Queue", waiting + (f"; {classes}" if classes else "") + f"), oldest {span(oldest_s)}")
    slots = sum(int(worker.get("slots") or 0) for worker in data.get("workers") or ())
    _line("", f"{data.get('in_flight', 0)} in flight of {slots} slots")
    _requests(data)
    cache = data.get("cache") or {}
    if cache.get("entries") is not None:
        used, room = cache.get("used_bytes"), cache.get("map_bytes")
        of = f" of {size(room)}" if room else ""
        _line(
            "Cache", f"{rate(cache['entries'])} answers" + (f", {size(used)}{of}" if used is not None else "")
        )
    for model in data.get("models") or ():
        names = " ".join(
            [str(model.get("name", "?")), *(f"({alias})" for alias in model.get("aliases") or ())]
        )
        _line("Model", printable(f"{names} at {model.get('backend', '?')}, {model.get('slots', '?')} slots"))
    _alerts(data)
    _line("Next", printable(data["next_action"]) or "nothing to do")


def _line(label: str, text: str) -> None:
    click.echo(f"{label + ':' if label else '':>{_LABEL}} {text}")


def _tree(data: dict[str, Any]) -> None:
    supervisor = (data.get("tree") or {}).get("supervisor") or {}
    usage = {(row["role"], row["worker"]): row for row in data.get("processes") or ()}
    workers = {worker.get("worker"): worker for worker in data.get("workers") or ()}
    children = _children(data)
    _line("Process", f"supervisor {supervisor.get('pid', '?')}{_usage(usage.get(('supervisor', '')))}")
    rows = []
    for child in children:
        role, slot = str(child.get("role", "?")), child.get("slot", "")
        own = usage.get((role, str(slot) if role == "worker" else ""))
        name = f"{role} {slot}" if role == "worker" else role
        phase = str(child.get("phase", ""))
        words = [f"{name:<9} {child.get('pid') or '-':>7}  {phase:<8}{_usage(own)}"]
        worker = workers.get(slot) if role == "worker" else None
        if worker:
            busy = f"{worker.get('in_flight', 0)}/{worker.get('slots', '?')} busy"
            words.append(f"{worker.get('backend', '')}: {busy}, {worker.get('served', 0)} served")
        elif child.get("detail"):
            words.append(str(child["detail"]))
        if child.get("restarts"):
            words.append(f"{child['restarts']} restarts")
        rows.append((phase, "  ".join(words)))
    for place, (phase, text) in enumerate(rows):
        branch = "`-" if place == len(rows) - 1 else "|-"
        color = None if phase in ("ready", "") else "red" if phase == "failed" else "yellow"
        _line("", f"{branch} " + click.style(printable(text), fg=color))


def _usage(own: Mapping[str, Any] | None) -> str:
    if own is None:
        return ""
    return f"  {size(float(own.get('uss_bytes') or 0)):>9} {percent(own.get('cpu_ratio')):>6}"


def _requests(data: dict[str, Any]) -> None:
    counters, stats = data.get("counters") or {}, data.get("stats")
    _line("Requests", f"{counters.get('requests', 0)} since the broker began")
    if stats:
        times = stats["phases"]["request"]
        words = [f"{rate(stats['requests']['per_s'])} a second in the last minute"]
        if times["count"]:
            words.append(f"p50 {span(times['p50_s'])}, p95 {span(times['p95_s'])}")
        if stats["tokens"]["output"]["total"]:
            words.append(f"{rate(stats['tokens']['output']['per_s'])} tokens/s")
        _line("", "; ".join(words))


def _alerts(data: dict[str, Any]) -> None:
    rows, last = data.get("alerts"), data.get("last_alert")
    for row in rows or ():
        state = str(row["state"])
        muted = ", silenced" if row.get("silence") else ""
        text = f"{row['rule']} {state} for {seconds(float(row.get('for_s') or 0))}{muted}"
        _line("Alert", click.style(printable(text), fg=health.STATE_COLORS.get(state)))
    if rows is not None and not rows:
        if last is None:
            _line("Alert", "none so far")
        else:
            ago = seconds(max(0.0, time.time() - float(last["at_s"])))
            what = "fired" if last["after"] == "firing" else "was over"
            _line("Alert", f"none now; last: {printable(str(last['rule']))} {what} {ago} ago")
