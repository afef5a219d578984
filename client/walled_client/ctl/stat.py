"""walled-ctl stat and latency: numbers in lines and columns.

May live here: which numbers, in which columns. May not: arithmetic over the stream (picture.py).
"""

from __future__ import annotations

from typing import Any

import click

from walled_client.ctl import following
from walled_client.ctl.drawing import bar, blocks, percent, rate, span
from walled_client.ctl.following import count_option, until_interrupted
from walled_client.ctl.program import Verb
from walled_client.ctl.terminal import Terminal, on_terminal, pass_terminal, table
from walled_client.ctl.values import SPAN
from walled_client.picture import Picture

HEADINGS_EVERY = 20
COLUMNS = (
    ("req/s", 6), ("tok/s", 6), ("err", 6), ("hit", 5), ("wait", 5), ("oldest", 7), ("busy", 7),
    ("p50", 7), ("p95", 7), ("p99", 7), ("cpu", 5), ("mem", 5), ("health", 6),
)  # fmt: skip
"""Of `stat`, with their widths: 100 characters."""


@click.command("stat", cls=Verb, epilog="Example: walled-ctl stat --count 10")
@count_option
@pass_terminal
@until_interrupted
def stat_verb(terminal: Terminal, count: int | None) -> int | None:
    """Print a line of numbers a second, like vmstat; one line when piped without --count.

    Rates are over the last 5 seconds, times of the last minute. hit: answers that cost no generation; wait:
    requests in the queue; busy: requests at workers, of their slots; cpu, mem: of the machine.
    """
    left = count if count is not None else None if on_terminal() else 1
    for line, picture in enumerate(following.pictures(terminal)):
        if line == 0:
            continue  # there is no rate before the second one
        numbers = sample(picture)
        if not terminal.json and (line - 1) % HEADINGS_EVERY == 0 and (line == 1 or on_terminal()):
            # Into a pipe goes nothing but numbers.
            headings = " ".join(name.rjust(width) for name, width in COLUMNS)
            click.secho(headings, dim=True, err=not on_terminal())
        terminal.emit(numbers, lambda numbers=numbers: _line(numbers))  # type: ignore[misc]
        if left is not None and line >= left:
            return 0
    return 0


def sample(picture: Picture) -> dict[str, Any]:
    """The numbers of one line."""
    times = picture.quantiles.get("request") or {}
    return {
        "schema": "walled.stat/1",
        "ok": True,
        "time_s": picture.time_s,
        "requests_per_s": picture.requests_per_s,
        "tokens_per_s": picture.tokens_per_s,
        "error_ratio": picture.error_ratio,
        "hit_ratio": picture.hit_ratio,
        "queue_depth": picture.depth,
        "queue_oldest_s": picture.oldest_s,
        "in_flight": picture.value("walled_requests_in_flight"),
        "slots": picture.slots,
        "p50_s": times.get("0.5"),
        "p95_s": times.get("0.95"),
        "p99_s": times.get("0.99"),
        "cpu_ratio": picture.value("walled_system_cpu_ratio"),
        "memory_ratio": picture.value("walled_system_memory_used_ratio"),
        "health": picture.health.get("score"),
        "grade": picture.health.get("grade"),
    }


def _line(found: dict[str, Any]) -> None:
    cells = (
        rate(found["requests_per_s"]), rate(found["tokens_per_s"]), percent(found["error_ratio"]),
        percent(found["hit_ratio"]), rate(found["queue_depth"]), span(found["queue_oldest_s"]),
        f"{rate(found['in_flight'])}/{found['slots']}",
        span(found["p50_s"]), span(found["p95_s"]), span(found["p99_s"]),
        percent(found["cpu_ratio"]), percent(found["memory_ratio"]), rate(found["health"]),
    )  # fmt: skip
    click.echo(" ".join(cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True)))


@click.command("latency", cls=Verb, epilog="Example: walled-ctl latency --since 10m --phase decode")
@click.option("--since", type=SPAN, default="1m", show_default=True, help="How far back, at most 6h.")
@click.option("--model", default="", help="Only of this model.")
@click.option("--phase", default="request", show_default=True, help="Whose histogram is drawn.")
@pass_terminal
def latency_verb(terminal: Terminal, since: float, model: str, phase: str) -> int:
    """Show where time goes: each phase's p50, p95 and p99, and a histogram of one.

    request: from arrival to the end; queue: wait for a worker; first_token: from arrival to the first token;
    load, prefill, decode: phases of the backend; per_output_token: decoding of one token.
    """
    found = terminal.ask_monitor("stats", window_s=since, model=model)
    phases = found["phases"]
    if phase not in phases:
        raise click.UsageError(f"--phase: {phase!r} is none of {', '.join(phases)}")
    shown = ("window_s", "requests", "phases", "bounds_s")
    data = {"schema": "walled.latency/1", "ok": True, "model": model, **{key: found[key] for key in shown}}

    def show() -> None:
        quantiles = ("p50_s", "p95_s", "p99_s")
        table(
            ("phase", "seen", "p50", "p95", "p99"),
            [(name, times["count"], *(span(times[q]) for q in quantiles)) for name, times in phases.items()],
            right=(1, 2, 3, 4),
        )
        click.echo()
        _histogram(phase, phases[phase]["buckets"], found["bounds_s"])

    terminal.emit(data, show)
    return 0


def _histogram(phase: str, counts: list[int], bounds_s: list[float]) -> None:
    total = sum(counts)
    if not total:
        click.echo(f"{phase}: nothing was seen in this time")
        return
    click.secho(f"{phase}: {total} seen", dim=True)
    seen = [place for place, count in enumerate(counts) if count]
    steps, highest = blocks(), max(counts)
    for place in range(seen[0], seen[-1] + 1):
        count = counts[place]
        bound = f"<= {span(bounds_s[place])}" if place < len(bounds_s) else f"> {span(bounds_s[-1])}"
        drawn = bar(count / highest, 40, steps).rstrip("· ") or (steps[0] if count else "")
        click.echo(f"{bound:>10}  {count:>7}  {percent(count / total):>6}  {drawn}".rstrip())
