"""walled-ctl alerts: rules and where they stand, history, silences, tests on the past, export.

May live here: asking the monitor, showing. May not: states, thresholds, the words of Prometheus.
"""

from __future__ import annotations

import getpass
import time
from typing import Any

import click
import msgspec

from walled.core import prometheus_rules
from walled.core.alert_rules import Rule
from walled.errors import BadRequest
from walled_client.ctl.drawing import NOTHING
from walled_client.ctl.health import STATE_COLORS
from walled_client.ctl.program import VerbGroup
from walled_client.ctl.terminal import EXIT_OK, Terminal, pass_terminal, printable, seconds, table
from walled_client.ctl.values import SPAN, rules

MAX_SERIES = 20
ORDER = ("firing", "clearing", "pending", "unknown", "ok")

_rule = click.argument("rule", shell_complete=rules)


@click.group(
    "alerts", cls=VerbGroup, invoke_without_command=True, epilog="Example: walled-ctl alerts history"
)
@click.pass_context
def alerts_verb(ctx: click.Context) -> int | None:
    """List alert rules and their states; look back, silence, try out, export."""
    return _list(ctx.ensure_object(Terminal)) if ctx.invoked_subcommand is None else None


@alerts_verb.command("list", epilog="Example: walled-ctl alerts list --json")
@pass_terminal
def alerts_list(terminal: Terminal) -> int:
    """List the rules, those that fire first (also without `list`)."""
    return _list(terminal)


def _list(terminal: Terminal) -> int:
    data = terminal.ask_monitor("alerts.list")
    data["alerts"].sort(key=lambda row: (ORDER.index(row["state"]), row["rule"]))

    def show() -> None:
        if not data["alerts"]:
            click.echo("no rules: alerts.enabled is false")
            return
        table(
            ("rule", "state", "for", "severity", "value", "threshold", ""),
            [
                (
                    row["rule"],
                    row["state"],
                    seconds(row["for_s"]) if row["state"] != "unknown" else NOTHING,
                    row["severity"],
                    NOTHING if row["value"] is None else f"{row['value']:.4g}",
                    f"{row['schema'].get('operator', '>')} {row['schema']['fire']:g}",
                    _remarks(row),
                )
                for row in data["alerts"]
            ],
            right=(4,),
            color=lambda cells: None if cells[1] == "ok" else STATE_COLORS.get(cells[1]),
        )

    terminal.emit(data, show)
    return EXIT_OK


def _remarks(row: dict[str, Any]) -> str:
    words = [f"{name}={value}" for name, value in row["labels"].items() if value]
    if row["silence"]:
        left = seconds(max(0.0, row["silence"]["until_s"] - time.time()))
        words.append(f"silenced for {left}: {row['silence']['reason']}")
    if row["inhibited_by"]:
        words.append(f"quiet because of {row['inhibited_by']}")
    return ", ".join(words)


@alerts_verb.command("history", epilog="Example: walled-ctl alerts history --count 5")
@click.option("--count", type=click.IntRange(1), default=20, show_default=True, help="The newest so many.")
@pass_terminal
def alerts_history(terminal: Terminal, count: int) -> int:
    """Show changes of state and what was done about them, oldest first."""
    data = terminal.ask_monitor("alerts.history")
    data["changes"], data["actions"] = data["changes"][-count:], data["actions"][-count:]

    def show() -> None:
        if not data["changes"]:
            click.echo("no rule has changed its state yet")
            return
        _changes(data["changes"])
        if data["actions"]:
            click.echo()
            names = [name for name in data["actions"][0] if not name.endswith("_s")]
            table(
                ("time", *names),
                [
                    (_clock(row.get("at_s", 0.0)), *("" if row[n] is None else row[n] for n in names))
                    for row in data["actions"]
                ],
            )

    terminal.emit(data, show)
    return EXIT_OK


def _changes(changes: list[dict[str, Any]]) -> None:
    table(
        ("time", "rule", "before", "after", "value"),
        [
            (
                _clock(change["at_s"]),
                change["rule"],
                change["before"],
                change["after"],
                NOTHING if change["value"] is None else f"{change['value']:.4g}",
            )
            for change in changes
        ],
        right=(4,),
        color=lambda cells: STATE_COLORS.get(cells[3]),
    )


def _clock(time_s: float) -> str:
    form = "%H:%M:%S" if time.time() - time_s < 12 * 3600 else "%Y-%m-%d %H:%M:%S"
    return time.strftime(form, time.localtime(time_s))


@alerts_verb.command(
    "silence", epilog="Example: walled-ctl alerts silence memory --reason 'loading a model' --for 2h"
)
@_rule
@click.option("--reason", required=True, help="For those who wonder later.")
@click.option("--for", "for_s", type=SPAN, required=True, help="How long: 30s, 10m, 2h, at most 30d.")
@pass_terminal
def alerts_silence(terminal: Terminal, rule: str, reason: str, for_s: float) -> int:
    """Tell nobody of a rule for a time. It goes on being judged, and remedies are carried out."""
    data = terminal.ask_monitor("alerts.silence", rule=rule, reason=reason, for_s=for_s, by=_user())
    terminal.emit(data, lambda: click.echo(f"{rule} is silenced for {seconds(for_s)}"))
    return EXIT_OK


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""


@alerts_verb.command("unsilence", epilog="Example: walled-ctl alerts unsilence memory")
@_rule
@pass_terminal
def alerts_unsilence(terminal: Terminal, rule: str) -> int:
    """End a silence before its time."""
    data = terminal.ask_monitor("alerts.unsilence", rule=rule)
    terminal.emit(data, lambda: click.echo(f"{rule} is heard again"))
    return EXIT_OK


@alerts_verb.command("test", epilog="Example: walled-ctl alerts test memory --since 6h")
@_rule
@click.option("--since", type=SPAN, default="1h", show_default=True, help="How far back, at most 7d.")
@click.option("--series", default="", help="One series of the history [default: all of the rule's metric].")
@pass_terminal
def alerts_test(terminal: Terminal, rule: str, since: float, series: str) -> int:
    """Replay the history: which states would this rule have gone through? Nobody is told."""
    with terminal.observer() as observer:
        found = {row["rule"]: row for row in observer.alerts()}
        if rule not in found:
            raise BadRequest(f"no rule {rule!r}; there are {', '.join(sorted(found))}")
        schema = found[rule]["schema"]
        changes = {series or schema["metric"]: observer.test_alert(rule, since, series)}
    data = {"schema": "walled.alert_replay/1", "ok": True, "rule": rule, "since_s": since, "changes": changes}

    def show() -> None:
        for name, rows in changes.items():
            click.secho(name, dim=True)
            if rows:
                _changes(rows)
            else:
                click.echo("no change of state")

    terminal.emit(data, show)
    return EXIT_OK


@alerts_verb.command("export", epilog="Example: walled-ctl alerts export > walled.rules.yml")
@pass_terminal
def alerts_export(terminal: Terminal) -> int:
    """Print the rules as a rule file for Prometheus.

    Rules that Prometheus cannot express are left out, with a comment that says why.
    """
    with terminal.observer() as observer:
        rules_now = [_rule_of(row) for row in observer.alerts()]
        kinds = {row["name"]: row["type"] for row in observer.ask("metrics.list")["metrics"]}
    groups, left_out = prometheus_rules.groups(rules_now, kinds)
    data = {"schema": "walled.alert_export/1", "ok": True, "groups": groups, "left_out": left_out}
    terminal.emit(data, lambda: click.echo(prometheus_rules.text(groups, left_out), nl=False))
    for name, why in left_out.items():
        terminal.note(f"{printable(name)} is left out: {why}")
    return EXIT_OK


def _rule_of(row: dict[str, Any]) -> Rule:
    return msgspec.convert({**row["schema"], "name": row["rule"]}, Rule)
