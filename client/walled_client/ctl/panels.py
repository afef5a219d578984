"""The screen of `walled-ctl top` as lines of styled text, for any width.

May live here: layout, words, what is shown when nothing is known. May not: a terminal, textual, clocks.

Below WIDE columns one column of panels, else two. A style is one of STYLES; who draws knows the color.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from walled.core.health import INDICATORS
from walled_client.ctl.drawing import BLOCKS, bar, clipped, percent, rate, span, sparkline
from walled_client.ctl.terminal import printable, seconds, size
from walled_client.picture import PHASES, Picture

STYLES = ("", "dim", "bold", "good", "warn", "bad", "head")
WIDE = 132
GAP = 2
SILENT_S = 3.0
"""News comes once a second; after so long without any the reader is told."""
GRADES = {"healthy": "good", "degraded": "warn", "unhealthy": "bad"}
STATES = {"firing": "bad", "clearing": "warn", "pending": "warn"}
MAX_EVENTS = 8

Span = tuple[str, str]
"""(text, style)."""
Line = list[Span]


class View(NamedTuple):
    """What the reader of the screen has chosen, and how fresh it is."""

    explain: bool = False
    silent_s: float = 0.0
    """Since the monitor was heard last."""
    paused: bool = False
    steps: str = BLOCKS
    events: Sequence[str] = ()
    """What happened, the newest last."""


def screen(picture: Picture, width: int, view: View) -> list[Line]:
    """All lines; none is longer than `width`."""
    header = _header(picture, width, view)
    body = _body(picture, width, view)
    if view.silent_s >= SILENT_S:
        # What was known last must not look like what is known now.
        body = [[(text, "dim") for text, _ in line] for line in body]
    return [header, *body]


def _body(picture: Picture, width: int, view: View) -> list[Line]:
    wide = width >= WIDE
    left_width = (width - GAP) // 2 if wide else width
    right_width = width - GAP - left_width if wide else width
    left = _panels(picture, left_width, view, (_health, _alerts, _traffic, _latency))
    right = _panels(
        picture, right_width, view, (_workers, _backends, _machine, *((_events,) if wide else ()))
    )
    if not wide:
        return left + right
    lines: list[Line] = []
    for place in range(max(len(left), len(right))):
        one = left[place] if place < len(left) else []
        other = right[place] if place < len(right) else []
        lines.append([*one, (" " * (left_width - length(one) + GAP), ""), *other])
    return lines


def length(line: Line) -> int:
    return sum(len(text) for text, _ in line)


def plain(line: Line) -> str:
    return "".join(text for text, _ in line).rstrip()


_Panel = Callable[[Picture, int, View], tuple[Line, list[Line]]]
"""-> what stands in the rule above, and the lines below it."""


def _panels(picture: Picture, width: int, view: View, panels: Iterable[_Panel]) -> list[Line]:
    lines: list[Line] = []
    for panel in panels:
        title, body = panel(picture, width, view)
        rule = "─" if view.steps == BLOCKS else "-"
        head = _fitted([(f"{rule}{rule} ", "head"), *title, (" ", "")], width)
        lines.append([*head, (rule * (width - length(head)), "head")])
        lines += [_fitted(line, width) for line in body]
    return lines


def _fitted(line: Line, width: int) -> Line:
    """The line cut at the width."""
    left, found = width, []
    for text, style in line:
        if left <= 0:
            break
        text = printable(text)
        if len(text) > left:
            text = clipped(text, left)
        found.append((text, style))
        left -= len(text)
    return found


# --- panels --------------------------------------------------------------------------------------------


def _header(picture: Picture, width: int, view: View) -> Line:
    daemon, silent = picture.daemon, view.silent_s >= SILENT_S
    left: Line = [(f"walled {daemon.get('version', '')}" if daemon else "walled", "bold")]
    if daemon is not None:
        state = str(daemon.get("state", "?"))
        uptime = (daemon.get("tree") or {}).get("supervisor", {}).get("uptime_s") or daemon.get("uptime_s")
        left += [("  ", ""), (state, "good" if state == "ready" else "warn")]
        left.append((f"  up {seconds(float(uptime or 0))}", ""))
    elif not silent:
        left.append(("  the broker does not answer", "bad"))
    if silent and daemon is None:
        left.append((f"  no daemon answers for {view.silent_s:.0f} s; below is what was known last", "bad"))
    elif silent:
        left.append(
            (f"  no news of the monitor for {view.silent_s:.0f} s; below is what was known last", "bad")
        )
    elif view.paused:
        left.append(("  paused", "warn"))
    clock = time.strftime("%H:%M:%S", time.localtime(picture.time_s)) if picture.time_s else ""
    left = _fitted(left, max(0, width - len(clock) - 1))
    return [*left, (" " * max(0, width - length(left) - len(clock)), ""), (clock, "dim")]


def _health(picture: Picture, width: int, view: View) -> tuple[Line, list[Line]]:
    judged = picture.health
    if "score" not in judged:
        return [("health ", "head")], [[("not known: the monitor does not answer", "warn")]]
    score, grade = float(judged["score"]), str(judged["grade"])
    style = GRADES.get(grade, "")
    title: Line = [
        ("health ", "head"),
        (f"{score:.0f} ", style),
        (bar(score / 100, min(20, width // 4), view.steps), style),
        (f" {grade}", style),
    ]
    if judged.get("cap_reason"):
        title.append((f", at most {judged['cap']}", "dim"))
    rows = judged.get("deductions") or ()
    if not rows:
        return title, [[(f"      all {len(INDICATORS)} indicators are well", "dim")]]
    lines: list[Line] = []
    for row in rows:
        points = float(row["points"])
        lines.append(
            [
                (f"{-points:>5.1f} ", "warn" if points else "dim"),
                (f"{row['indicator']}: ", "bold"),
                (row["symptom"], ""),
            ]
        )
        if view.explain:
            lines += [
                [(f"      {name:<7} ", "dim"), (row[name], "")] for name in ("impact", "cause", "action")
            ]
    return title, lines


def _alerts(picture: Picture, width: int, view: View) -> tuple[Line, list[Line]]:
    rows = picture.firing()
    if not rows:
        known = len(picture.alerts)
        words = f"      none of {known} rules fires" if known else "      no rules"
        return [("alerts", "head")], [[(words, "dim")]]
    lines: list[Line] = []
    for row in rows:
        state, schema = str(row["state"]), row.get("schema") or {}
        value = row.get("value")
        words = (
            f"{value:.3g} {schema.get('operator', '>')} {schema.get('fire', 0):g}"
            if value is not None
            else ""
        )
        muted = " silenced" if row.get("silence") else ""
        lines.append([
            (f"{row['rule']:<20} ", STATES.get(state, "") if not muted else "dim"),
            (f"{state:<8}{seconds(float(row.get('for_s') or 0)):>9}  ", ""),
            (f"{row.get('severity', ''):<10}", ""),
            (f"{words}{muted}", "dim"),
        ])  # fmt: skip
    firing = sum(row["state"] == "firing" for row in rows)
    title: Line = [("alerts ", "head"), (f"{firing} firing", "bad" if firing else "warn")]
    return title, lines


_NUMBER = 9


def _meter(
    name: str, number: str, picture: Picture, line: str, width: int, view: View, style: str = ""
) -> Line:
    drawn = sparkline(list(picture.series.get(line) or ()), max(0, width - 18 - _NUMBER), view.steps)
    return [(f"{name:<16}", ""), (f"{number:>{_NUMBER}}", style or "bold"), ("  ", ""), (drawn, "good")]


def _traffic(picture: Picture, width: int, view: View) -> tuple[Line, list[Line]]:
    failing, depth = picture.error_ratio, picture.depth
    flight = picture.value("walled_requests_in_flight")
    busy = f"{rate(flight)}/{picture.slots}" if picture.slots else rate(flight)
    classes = picture.by("walled_queue_depth", "class")
    by_class = ", ".join(f"{name} {rate(count)}" for name, count in classes.items())
    lines = [
        _meter("requests/s", rate(picture.requests_per_s), picture, "requests", width, view),
        _meter("tokens/s", rate(picture.tokens_per_s), picture, "tokens", width, view),
        _meter("running", busy, picture, "in flight", width, view),
        _meter("waiting", rate(depth), picture, "depth", width, view, "warn" if depth else ""),
        _meter("failed", percent(failing), picture, "errors", width, view, "bad" if failing else ""),
        _meter("cache hits", percent(picture.hit_ratio), picture, "hits", width, view),
    ]
    if by_class:
        words = f"{'':16}{by_class}; the oldest for {span(picture.oldest_s)}"
        lines.insert(4, [(words, "" if depth else "dim")])
    return [("requests", "head")], lines


def _latency(picture: Picture, width: int, view: View) -> tuple[Line, list[Line]]:
    names = "".join(f"{name:>{_NUMBER}}" for name in ("p50", "p95", "p99"))
    # The names stand above their columns, which begin after 16 characters; the rule has taken 3.
    title: Line = [(f"{'last minute':<13}{names}", "head")]
    if width >= 70:
        title.append(("  p95 was", "head"))
    lines: list[Line] = []
    for phase in PHASES:
        found = picture.quantiles.get(phase) or {}
        numbers = "".join(f"{span(found.get(q)):>{_NUMBER}}" for q in ("0.5", "0.95", "0.99"))
        drawn = sparkline(list(picture.series.get(phase) or ()), max(0, width - 18 - 3 * _NUMBER), view.steps)
        lines.append([(f"{phase:<16}", ""), (numbers, "bold"), ("  ", ""), (drawn, "good")])
    return title, lines


def _workers(picture: Picture, width: int, view: View) -> tuple[Line, list[Line]]:
    title: Line = [("processes", "head")]
    daemon = picture.daemon or {}
    workers = {row.get("worker"): row for row in daemon.get("workers") or ()}
    children = (daemon.get("tree") or {}).get("children") or ()
    by_pid = {row["pid"]: row for row in picture.processes}
    cpu = {
        (row["labels"]["role"], row["labels"]["worker"]): row["value"]
        for row in picture.families.get("walled_process_cpu_ratio", ())
    }
    if not children:
        return title, [[("      not known: the broker does not answer", "warn")]]
    lines: list[Line] = [
        [
            (
                f"{'':<11}{'pid':>8} {'state':<9}{'cpu':>6}{'memory':>10}  {'busy':>6}{'served':>8}  backend",
                "dim",
            )
        ]
    ]
    supervisor = (daemon.get("tree") or {}).get("supervisor") or {}
    rows = [{"role": "supervisor", "pid": supervisor.get("pid"), "phase": ""}, *children]
    for row in rows:
        role, slot = str(row.get("role")), row.get("slot")
        name, worker = (f"worker {slot}", workers.get(slot)) if role == "worker" else (role, None)
        phase = str(row.get("phase", ""))
        uss = (by_pid.get(row.get("pid")) or {}).get("uss_bytes")
        used = percent(cpu.get((role, str(slot) if role == "worker" else "")))
        style = "bad" if phase == "failed" else "" if phase in ("ready", "") else "warn"
        busy = f"{worker.get('in_flight', 0)}/{worker.get('slots', '?')}" if worker else ""
        text = (
            f"{name:<11}{row.get('pid') or '-':>8} {phase:<9}{used:>6}{size(uss) if uss else '-':>10}"
            f"  {busy:>6}{worker.get('served', '') if worker else '':>8}  "
        )
        about = str(worker.get("backend", "")) if worker else str(row.get("detail") or "")
        if row.get("restarts"):
            about += f"  {row['restarts']} restarts"
        lines.append([(text, style), (about.strip(), style or "dim")])
    return title, lines


_BREAKERS = (("closed", ""), ("half open", "warn"), ("open", "bad"))


def _backends(picture: Picture, width: int, view: View) -> tuple[Line, list[Line]]:
    live, limits = picture.by("walled_workers_live", "backend"), picture.by("walled_backend_limit", "backend")
    breakers = picture.by("walled_breaker_state", "backend")
    lines: list[Line] = []
    for name in sorted({*live, *breakers}):
        state, style = _BREAKERS[min(2, max(0, int(breakers.get(name, 0))))]
        alive = live.get(name, 0.0)
        lines.append(
            [
                (f"{clipped(name, 19):<20}", ""),
                (f"{rate(alive):>3} live", "bad" if alive < 1 else "bold"),
                (f"  at once {rate(limits.get(name)):>4}", "dim"),
                (f"  breaker {state}", style or "dim"),
            ]
        )
    return [("backends", "head")], lines or [[("      no backend has told of itself yet", "dim")]]


def _machine(picture: Picture, width: int, view: View) -> tuple[Line, list[Line]]:
    short = max(8, min(30, width // 3))

    def gauge(name: str, share: float | None, about: str = "", warn: float = 2.0) -> Line:
        style = "" if share is None or share < warn else "warn" if share < 0.95 else "bad"
        drawn = bar(share, short, view.steps) if share is not None else " " * short
        return [
            (f"{name:<12}", ""),
            (f"{percent(share):>6}  ", style or "bold"),
            (drawn, style or "good"),
            (f"  {about}", "dim"),
        ]

    total = picture.value("walled_system_memory_total_bytes")
    memory = picture.value("walled_system_memory_used_ratio")
    lines = [
        gauge("processors", picture.value("walled_system_cpu_ratio"), warn=0.8),
        gauge("memory", memory, f"of {size(total)}" if total else "", warn=0.8),
    ]
    for row in picture.families.get("walled_gpu_utilization_ratio", ()):
        used = picture.value("walled_gpu_memory_used_bytes", **row["labels"]) or 0.0
        lines.append(gauge(f"gpu {row['labels'].get('gpu', '')}", row["value"], f"{size(used)} in use"))
    entries, used_bytes = picture.value("walled_cache_entries"), picture.value("walled_cache_used_bytes")
    room = picture.value("walled_cache_map_bytes")
    if entries is None:
        lines.append(gauge("cache", None, "no worker has told of it yet"))
    else:
        share = used_bytes / room if used_bytes is not None and room else None
        of = f" of {size(room)}" if room else ""
        lines.append(gauge("cache", share, f"{rate(entries)} answers, {size(used_bytes or 0)}{of}"))
    return [("machine and cache", "head")], lines


def _events(picture: Picture, width: int, view: View) -> tuple[Line, list[Line]]:
    shown = list(view.events)[-MAX_EVENTS:]
    if not shown:
        return [("events", "head")], [[("      nothing has happened yet", "dim")]]
    return [("events", "head")], [[(text, "")] for text in shown]


def described(topic: str, body: Mapping[str, Any]) -> str:
    """An event in one line."""
    at_s = body.get("time_s")
    clock = time.strftime("%H:%M:%S", time.localtime(at_s)) if isinstance(at_s, int | float) else " " * 8
    if topic == "event.alert":
        return f"{clock} {body.get('rule')} {body.get('before')} -> {body.get('after')}"
    if topic.startswith("event.process_"):
        return f"{clock} {body.get('process')} {'began' if topic.endswith('born') else 'ended'}"
    if topic == "event.remedy":
        return f"{clock} remedy {body.get('remedy')} {'on' if body.get('on', True) else 'off'}"
    if topic == "event.epoch":
        return f"{clock} the monitor was replaced"
    if topic == "event.gap":
        return f"{clock} {body.get('lost')} publications of {body.get('topic')} were lost"
    hidden = ("epoch", "seq", "time_s", "at_s")
    words = " ".join(f"{key}={value}" for key, value in body.items() if key not in hidden)
    return f"{clock} {topic.partition('.')[2]} {words}"
