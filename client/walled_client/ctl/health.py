"""walled-ctl health: the score, and every point taken off it explained; what to do next.

May live here: showing a judgement, choosing the next action. May not: judging (walled/core/health.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from walled_client.ctl.program import Verb
from walled_client.ctl.terminal import EXIT_DEGRADED, EXIT_OK, Terminal, pass_terminal, printable

COLORS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}
STATE_COLORS = {"firing": "red", "clearing": "yellow", "pending": "yellow", "ok": "green"}
EXPLAINED = ("symptom", "impact", "cause", "action")


@click.command("health", cls=Verb, epilog="Example: walled-ctl health --explain")
@click.option("--explain", is_flag=True, help="Say of each deduction what it means and what to do.")
@pass_terminal
def health_verb(terminal: Terminal, explain: bool) -> int:
    """Show the health score, 0 to 100, and what takes points off it. Exit code 4 below 80."""
    data = terminal.ask_monitor("health")

    def show() -> None:
        click.echo(headline(data))
        for row in data.get("deductions") or ():
            if not explain:
                click.echo(f"{-float(row['points']):>6.1f}  {row['indicator']}: {printable(row['symptom'])}")
                continue
            click.echo(f"\n{-float(row['points']):>6.1f}  " + click.style(row["indicator"], bold=True))
            for name in EXPLAINED:
                click.echo(f"        {name:<8} {printable(row[name])}")
        if explain:
            _leaks(data.get("leaks") or {})

    terminal.emit(data, show)
    return EXIT_OK if data.get("grade") == "healthy" else EXIT_DEGRADED


def headline(data: Mapping[str, Any]) -> str:
    """Grade and score, and what caps it."""
    grade = str(data.get("grade", "?"))
    text = click.style(f"{grade} {data.get('score', '?')}", fg=COLORS.get(grade)) + " of 100"
    if data.get("cap_reason"):
        text += f" (at most {data.get('cap')}: {printable(str(data['cap_reason']))})"
    return text


def _leaks(leaks: Mapping[str, Any]) -> None:
    if leaks:
        click.echo("\nmemory that only grows, by process:")
    for name, report in leaks.items():
        slope = report.get("mb_per_h")
        grown = f" {slope:+.1f} MB an hour;" if isinstance(slope, int | float) else ""
        why = printable(str(report.get("why", "")))
        click.echo(f"  {name:<12} {report.get('verdict', '?')}:{grown} {why}".rstrip(" :"))


def next_action(
    status: Mapping[str, Any] | None, health: Mapping[str, Any] | None, alerts: Iterable[Mapping[str, Any]]
) -> str:
    """The one thing to do now; "" when nothing is to be done. What is down comes before what hurts."""
    if status is None:
        return "look into the log of the daemon: its broker does not answer"
    children = (status.get("tree") or {}).get("children") or ()
    failed = [child for child in children if child.get("phase") == "failed"]
    if failed:
        one = failed[0]
        name = f"{one.get('role')} {one.get('slot')}" if one.get("role") == "worker" else str(one.get("role"))
        again = f"walled-ctl workers restart {one.get('slot')}" if one.get("role") == "worker" else ""
        why = f" ({one.get('detail')})" if one.get("detail") else ""
        return f"{name} was given up{why}: see the log" + (f", then {again}" if again else "")
    if status.get("state") == "draining":
        return "wait: the daemon drains and stops"
    if status.get("state") == "starting":
        return "wait: no worker is ready yet; walled-ctl workers"
    if health is None:
        return "wait: the monitor does not answer; it is being restarted, or the log says why not"
    deductions = health.get("deductions") or ()
    if deductions and float(deductions[0].get("points", 0)) >= 1:
        return str(deductions[0].get("action", ""))
    for row in alerts:
        if row.get("state") == "firing":
            return f"walled-ctl alerts history; {(row.get('schema') or {}).get('runbook') or row.get('rule')}"
    return ""
