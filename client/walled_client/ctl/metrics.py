"""walled-ctl metrics, history and events: what the monitor counts, what it was, what happens.

May live here: choosing and showing series and events. May not: what they mean.
"""

from __future__ import annotations

import csv
import fnmatch
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import click

from walled.core.registry import series_key
from walled.errors import BadRequest
from walled_client.ctl import following
from walled_client.ctl.drawing import blocks, span, sparkline, squeezed
from walled_client.ctl.following import count_option, until_interrupted
from walled_client.ctl.program import Verb
from walled_client.ctl.terminal import EXIT_OK, Terminal, columns, pass_terminal, printable, table
from walled_client.ctl.values import SPAN, metrics

FOLLOWED = ("event.", "alert.")


@click.command(
    "metrics", cls=Verb, epilog="Example: walled-ctl metrics 'walled_request*' --label model=llama"
)
@click.argument("names", nargs=-1, metavar="[list|follow] [NAME]...", shell_complete=metrics)
@click.option(
    "--metric", "more", multiple=True, metavar="NAME", help="The same as NAME.", shell_complete=metrics
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only series with this label.")
@click.option("--follow", is_flag=True, help="Go on: a line for every series that changes.")
@count_option
@pass_terminal
@until_interrupted
def metrics_verb(
    terminal: Terminal,
    names: tuple[str, ...],
    more: tuple[str, ...],
    labels: tuple[str, ...],
    follow: bool,
    count: int | None,
) -> int:
    """List the metrics, or show those whose NAME matches (* and ? stand for anything).

    Without a NAME: every metric, how many series it has and what it means. With one: its series and their
    values, of histograms how often and how long. `follow` (or --follow) prints what changes, as it changes.
    """
    if names and names[0] in ("list", "follow"):
        follow, names = follow or names[0] == "follow", names[1:]
    patterns, wanted = [*names, *more], _labels(labels)
    if follow:
        return _follow(terminal, patterns, wanted, count)
    with terminal.observer() as observer:
        families = observer.ask("metrics.list")["metrics"]
        chosen = [f for f in families if not patterns or _matches(f["name"], patterns)]
        if patterns and not chosen:
            raise BadRequest(f"no metric is named {' or '.join(patterns)}; walled-ctl metrics lists them")
        values = observer.ask("metrics.values", names=[f["name"] for f in chosen])["metrics"]
    by_name = {family["name"]: family for family in values}
    rows = [{**family, **_chosen(by_name[family["name"]], wanted)} for family in chosen]
    data = {"schema": "walled.metric_values/1", "ok": True, "metrics": rows}

    def show() -> None:
        if not patterns and not wanted:
            table(
                ("metric", "type", "series", "meaning"),
                [(f["name"], f["type"], len(f["series"]), f["help"]) for f in rows],
            )
            return
        for family in rows:
            for row in family["series"]:
                click.echo(_text(family["name"], row))
            if family.get("quantiles") and not wanted:
                click.secho(f"# all series, last minute: {_quantiles(family['quantiles'])}", dim=True)

    terminal.emit(data, show)
    return EXIT_OK


def _labels(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    wrong = [name for name, mark, _ in pairs if not mark or not name]
    if wrong:
        raise click.UsageError(f"--label: expected KEY=VALUE, got {wrong[0]!r} without a value")
    return {name: value for name, _, value in pairs}


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _chosen(family: Mapping[str, Any], wanted: Mapping[str, str]) -> dict[str, Any]:
    rows = [row for row in family["series"] if wanted.items() <= row["labels"].items()]
    return {"series": rows, **({"quantiles": family["quantiles"]} if "quantiles" in family else {})}


def _text(name: str, row: Mapping[str, Any]) -> str:
    text = f"{printable(series_key(name, row['labels']))} {row['value']:.15g}"
    if "sum" in row and row["value"]:
        text += f"  mean {span(row['sum'] / row['value'])}"
    return text


def _quantiles(found: Mapping[str, float]) -> str:
    return ", ".join(f"p{float(q) * 100:g} {span(value)}" for q, value in found.items())


def _follow(terminal: Terminal, patterns: list[str], wanted: Mapping[str, str], count: int | None) -> int:
    seen: dict[str, float] = {}
    lines = 0
    for topic, body in following.messages(terminal, ("metric.walled_",)):
        name = topic.removeprefix("metric.")
        if patterns and not _matches(name, patterns):
            continue
        for row in _chosen(body, wanted)["series"]:
            key = series_key(name, row["labels"])
            if seen.get(key) == row["value"]:
                continue
            seen[key] = row["value"]
            data = {"schema": "walled.metric/1", "ok": True, "time_s": body["time_s"], "name": name, **row}
            terminal.emit(data, lambda row=row, name=name, at_s=body["time_s"]: click.echo(  # type: ignore[misc]
                f"{_clock(at_s)} {_text(name, row)}"
            ))  # fmt: skip
            lines += 1
            if count is not None and lines >= count:
                return EXIT_OK
    return EXIT_OK


def _clock(time_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_s))


@click.command(
    "history", cls=Verb, epilog="Example: walled-ctl history walled_request_duration_seconds --since 1h"
)
@click.argument("metric", shell_complete=metrics)
@click.option("--since", type=SPAN, default="10m", show_default=True, help="How far back, at most 7d.")
@click.option("--table", "as_table", is_flag=True, help="A line for every value.")
@click.option("--csv", "as_csv", is_flag=True, help="series,time_s,value for a spreadsheet.")
@pass_terminal
def history_verb(terminal: Terminal, metric: str, since: float, as_table: bool, as_csv: bool) -> int:
    """Show what a metric, or one of its series, was: a sparkline for each series.

    Steps of 1 s for 10 minutes, 10 s for 6 hours, 5 minutes for 7 days. Of counters the growth per second.
    """
    with terminal.observer() as observer:
        data = observer.ask("history", metric=metric, since_s=since)
        kinds = {row["name"]: row["type"] for row in observer.ask("metrics.list")["metrics"]}
    counter = kinds.get(metric.partition("{")[0]) == "counter"

    def show() -> None:
        if as_csv:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(("series", "time_s", "value"))
            writer.writerows(
                (name, at_s, value) for name, points in data["series"].items() for at_s, value in points
            )
            return
        for name, points in data["series"].items():
            shown = list(_growth(points)) if counter else [(at_s, value) for at_s, value in points]
            click.secho(printable(name) + (" (growth per second)" if counter else ""), dim=True)
            if as_table:
                table(
                    ("time", "value"), [(_clock(at_s), f"{value:.6g}") for at_s, value in shown], right=(1,)
                )
            else:
                _line(shown)

    terminal.emit(data, show)
    return EXIT_OK


def _growth(points: list[list[float]]) -> Iterator[tuple[float, float]]:
    """Of a counter; where it fell it began anew."""
    for (before_s, before), (at_s, value) in pairwise(points):
        yield at_s, (value - before if value >= before else value) / (at_s - before_s)


def _line(points: list[tuple[float, float]]) -> None:
    if not points:
        click.echo("nothing was measured in this time")
        return
    values = [value for _, value in points]
    width = max(20, min(columns() - 1, 120))
    click.echo(sparkline(squeezed(values, width), min(width, len(values)), blocks()))
    mean = sum(values) / len(values)
    click.echo(
        f"{_clock(points[0][0])} to {_clock(points[-1][0])}: least {min(values):.4g}, "
        f"mean {mean:.4g}, most {max(values):.4g}, last {values[-1]:.4g}"
    )


@click.command("events", cls=Verb, epilog="Example: walled-ctl events --json")
@count_option
@pass_terminal
@until_interrupted
def events_verb(terminal: Terminal, count: int | None) -> int:
    """Print what happens, as it happens: processes that come and go, alerts, gaps of the stream itself.

    The last event of each kind comes first. Never a word of a prompt or an answer.
    """
    for number, (topic, body) in enumerate(following.messages(terminal, FOLLOWED), 1):
        data = {"schema": "walled.event/1", "ok": True, "topic": topic, **_plain(body)}
        terminal.emit(data, lambda topic=topic, body=body: _event(topic, body))  # type: ignore[misc]
        if count is not None and number >= count:
            return EXIT_OK
    return EXIT_OK


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "seq"}


def _event(topic: str, body: Mapping[str, Any]) -> None:
    at_s = body.get("time_s")
    hidden = ("epoch", "seq", "time_s", "at_s")
    words = [f"{key}={_word(value)}" for key, value in body.items() if key not in hidden]
    click.echo(printable(f"{_clock(at_s if at_s is not None else time.time())} {topic} {' '.join(words)}"))


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return repr(text) if " " in text else text
