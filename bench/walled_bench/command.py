"""The commands: `bench core`, `bench kills`, `bench overload`, `bench chaos`.

May live here: arguments, what runs in which order, exit statuses. May not: measuring.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from walled_bench import machine
from walled_bench.figures import Figure, failing, save, show

EXIT_GOAL_MISSED = 1

EPILOG = """\b
Exit status: 0 when everything was measured, whatever the figures say: on a busy machine a missed time is
not a defect, and `holds` says it. 1 with --strict when a goal does not hold, or when a bench itself failed.

\b
Example:
  walled-ctl bench core --only hits --only misses
"""


@click.group(
    short_help="Measure this machine with a daemon of its own.", context_settings={"max_content_width": 110}
)
def bench() -> None:
    """Measure this machine with a daemon of its own; a running one is not touched."""


def _parts() -> dict[str, Callable[[bool], list[Figure]]]:
    from walled_bench import conversations, hits, kills, misses, starts, streams

    return {
        "hits": hits.measure,
        "misses": misses.measure,
        "streams": streams.measure,
        "starts": starts.measure,
        "conversations": conversations.measure,
        "kills": kills.measure,
    }


@bench.command(epilog=EPILOG, short_help="The core figures; writes build/figures/core.json.")
@click.option("--quick", is_flag=True, help="A smoke run of seconds: shows that it works, not how fast.")
@click.option("--strict", is_flag=True, help="Exit 1 when a goal does not hold.")
@click.option("--only", multiple=True, help="Only this part; may be repeated. Parts: " + ", ".join(_parts()))
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/figures/core.json"), show_default=True,
    help="Where the figures go as JSON.",
)  # fmt: skip
def core(quick: bool, strict: bool, only: tuple[str, ...], output: Path) -> None:
    """The core figures: cache hit, miss path, streaming, start, memory, conversations, kills."""
    parts = _parts()
    for name in only:
        if name not in parts:
            raise click.BadParameter(f"{name}: not a part; known: {', '.join(parts)}", param_hint="--only")
    _head()
    figures: list[Figure] = []
    began_s = time.monotonic()
    for name in only or parts:
        found = parts[name](quick)
        show(found, click.echo, head=not figures)
        figures += found
    _finish(figures, began_s, output, strict)


@bench.command(
    short_help="Random SIGKILLs under load.",
    epilog="\b\nExample:\n  walled-ctl bench kills --count 20 --seed 7",
)
@click.option("--count", type=click.IntRange(1, 10_000), default=200, show_default=True, help="SIGKILLs.")
@click.option("--seed", type=int, default=1, show_default=True, help="Draws the victims and the moments.")
@click.option(
    "--strict/--no-strict", default=True, show_default=True, help="Exit 1 when a goal does not hold."
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/figures/kills.json"), show_default=True,
    help="Where the figures go as JSON.",
)  # fmt: skip
def kills(count: int, seed: int, strict: bool, output: Path) -> None:
    """Kill workers, broker and monitor at random under load, and check every answer."""
    from walled_bench import kills as campaigns

    _head()
    began_s = time.monotonic()
    outcome = campaigns.campaign(count, seed)
    figures = campaigns.figures(outcome)
    show(figures, click.echo)
    endings = ", ".join(f"{name} {number}" for name, number in outcome.ledger.endings.most_common())
    click.echo(f"endings    {endings}")
    for problem in outcome.ledger.problems:
        click.echo(f"problem    {problem}", err=True)
    _finish(figures, began_s, output, strict)


@bench.command(
    short_help="Half to four times the capacity; writes build/figures/overload.json.",
    epilog="\b\nExample:\n  walled-ctl bench overload --quick",
)
@click.option("--quick", is_flag=True, help="A smoke run of seconds: shows that it works, not how well.")
@click.option("--strict", is_flag=True, help="Exit 1 when a goal does not hold.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/figures/overload.json"),
    show_default=True, help="Where the figures go as JSON.",
)  # fmt: skip
def overload(quick: bool, strict: bool, output: Path) -> None:
    """Overload: goodput, refusals and memory, beside the same load without walled."""
    from walled_bench import overload as loads

    _head()
    began_s = time.monotonic()
    figures = loads.measure(quick)
    show(figures, click.echo)
    _finish(figures, began_s, output, strict)


@bench.command(
    short_help="Every kind of fault at random under load; writes build/figures/chaos.json.",
    epilog="""\b
Exit status: 0 when every goal holds, 1 when one does not (unless --no-strict).

\b
Example:
  walled-ctl bench chaos --seconds 60 --seed 7""",
)
@click.option(
    "--seconds",
    type=click.FloatRange(5, 86400),
    default=300.0,
    show_default=True,
    envvar="CHAOS_S",
    show_envvar=True,
    help="How long, the quiet end included.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    envvar="CHAOS_SEED",
    show_envvar=True,
    help="Draws the faults and the load; a new one each time unless given. It is printed.",
)
@click.option(
    "--strict/--no-strict", default=True, show_default=True, help="Exit 1 when a goal does not hold."
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/figures/chaos.json"), show_default=True,
    help="Where the figures go as JSON.",
)  # fmt: skip
def chaos(seconds: float, seed: int | None, strict: bool, output: Path) -> None:
    """Kill, stop, poison, damage and flood a daemon under load, and keep the books of every request."""
    from walled_bench import chaos as campaigns

    if seed is None:
        seed = int.from_bytes(os.urandom(3), "little")
    _head()
    again = f"CHAOS_SEED={seed} CHAOS_S={seconds:g} make chaos"
    click.echo(f"{'seed':<10} {seed}; the same again: {again}\n")
    began_s = time.monotonic()
    outcome = campaigns.campaign(seconds, seed, lambda line: click.echo(line, err=True))
    figures = campaigns.figures(outcome)
    for line in campaigns.tables(outcome):
        click.echo(line)
    show(figures, click.echo)
    for problem in campaigns.problems(outcome):
        click.echo(f"problem    {problem}", err=True)
    click.echo(f"{'seed':<10} {seed}; the same again: {again}")
    _finish(figures, began_s, output, strict)


@bench.command(
    short_help="What the live screen costs; writes build/figures/views.json.",
    epilog="\b\nExample:\n  walled-ctl bench views",
)
@click.option("--quick", is_flag=True, help="A smoke run of seconds: shows that it works, not how much.")
@click.option("--strict", is_flag=True, help="Exit 1 when a goal does not hold.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/figures/views.json"), show_default=True,
    help="Where the figures go as JSON.",
)  # fmt: skip
def views(quick: bool, strict: bool, output: Path) -> None:
    """Processor time of `walled-ctl top` and `stat` on a terminal, beside a daemon under load."""
    from walled_bench import views as costs

    _head()
    began_s = time.monotonic()
    figures = costs.measure(quick)
    show(figures, click.echo)
    _finish(figures, began_s, output, strict)


@bench.command(
    short_help="What judging an answer costs; writes build/figures/validation.json.",
    epilog="\b\nExample:\n  walled-ctl bench validation --quick",
)
@click.option("--quick", is_flag=True, help="A smoke run of seconds: shows that it works, not how fast.")
@click.option("--strict", is_flag=True, help="Exit 1 when a goal does not hold.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/figures/validation.json"),
    show_default=True, help="Where the figures go as JSON.",
)  # fmt: skip
def validation(quick: bool, strict: bool, output: Path) -> None:
    """Judging answers: time of a reply, of a streamed token, of hostile patterns; the corpus."""
    from walled_bench import validation as judging

    _head()
    began_s = time.monotonic()
    figures = judging.measure(quick)
    show(figures, click.echo)
    _finish(figures, began_s, output, strict)


@bench.command(
    short_help="What the monitor costs and how right it is; writes build/figures/monitor.json.",
    epilog="\b\nExample:\n  walled-ctl bench monitor --quick",
)
@click.option("--quick", is_flag=True, help="A smoke run of seconds: shows that it works, not how well.")
@click.option("--strict", is_flag=True, help="Exit 1 when a goal does not hold.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/figures/monitor.json"),
    show_default=True, help="Where the figures go as JSON.",
)  # fmt: skip
def monitor(quick: bool, strict: bool, output: Path) -> None:
    """The monitor: quantiles, the stream's cost, hits that are told, leak verdicts, history."""
    from walled_bench import monitor as monitors

    _head()
    began_s = time.monotonic()
    figures = monitors.measure(quick)
    show(figures, click.echo)
    _finish(figures, began_s, output, strict)


def _head() -> None:
    for name, value in machine.facts():
        click.echo(f"{name:<10} {value}")
    click.echo(f"{'load':<10} {machine.load()} before")


def _finish(figures: list[Figure], began_s: float, output: Path, strict: bool) -> None:
    click.echo(f"{'load':<10} {machine.load()} after, {time.monotonic() - began_s:.0f} s")
    save(figures, output)
    missed = failing(figures)
    judged = sum(each.holds is not None for each in figures)
    click.echo(f"{judged - len(missed)} of {judged} goals hold; written to {output}", err=True)
    for each in missed:
        click.echo(f"does not hold: {each.name}: {each.value} {each.unit}, goal {each.goal}", err=True)
    if strict and missed:
        sys.exit(EXIT_GOAL_MISSED)
