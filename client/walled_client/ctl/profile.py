"""walled-ctl profile: where the time of one process goes.

May live here: choosing the process, showing. May not: sampling (profiling.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from walled.errors import BadRequest, Unavailable
from walled_client import profiling
from walled_client.ctl.drawing import percent
from walled_client.ctl.program import Verb
from walled_client.ctl.terminal import EXIT_OK, Terminal, pass_terminal, printable, table
from walled_client.ctl.values import SPAN

TOP = 20


def _roles(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(r) for r in ("broker", "monitor", "supervisor", "worker") if r.startswith(begun)]


@click.command(
    "profile", cls=Verb, epilog="Example: walled-ctl profile worker 0 --for 10s --output worker.svg"
)
@click.argument(
    "role", type=click.Choice(["broker", "monitor", "supervisor", "worker"]), shell_complete=_roles
)
@click.argument("slot", type=click.IntRange(0, 10_000), required=False)
@click.option(
    "--for", "for_s", type=SPAN, default="5s", show_default=True, help="How long to look, at most 10m."
)
@click.option(
    "--rate", type=click.IntRange(1, 1000), default=100, show_default=True, help="Samples a second."
)
@click.option(
    "--output", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="FILE",
    help="Write FILE instead: .svg a flame graph, .json for speedscope.app, else collapsed stacks.",
)  # fmt: skip
@click.option("--native", is_flag=True, help="Functions of C and C++ too, such as those of llama.cpp.")
@click.option("--stacks", is_flag=True, help="Only show what every thread is doing now.")
@pass_terminal
def profile_verb(
    terminal: Terminal,
    role: str,
    slot: int | None,
    for_s: float,
    rate: int,
    output: Path | None,
    native: bool,
    stacks: bool,
) -> int:
    """Sample one process with py-spy and show the functions that took its time.

    Needs the extra: pip install 'walled[profile]'. The process goes on undisturbed. Only functions and files
    are shown, never values. Waiting is left out: an idle process has nothing to show.
    """
    if for_s > 600:
        raise click.UsageError("--for: at most 10m")
    if role == "worker" and slot is None:
        raise click.UsageError("which worker? walled-ctl profile worker 0; walled-ctl workers lists them")
    profiling.program()
    pid = _pid(terminal.ask_daemon("status"), role, slot)
    name = f"worker {slot}" if role == "worker" else role
    data: dict[str, Any] = {"schema": "walled.profile/1", "ok": True, "process": name, "pid": pid}
    if stacks:
        data["stacks"] = profiling.stacks(pid)
        terminal.emit(data, lambda: click.echo(printable(data["stacks"].rstrip())))
        return EXIT_OK
    terminal.note(f"looking at {name} (pid {pid}) for {for_s:g} s")
    if output is not None:
        form: profiling.Format = {".svg": "flamegraph", ".json": "speedscope"}.get(output.suffix, "raw")  # type: ignore[assignment]
        profiling.record(pid, for_s, rate, output, form, native)
        data |= {"output": str(output), "format": form}
        terminal.emit(data, lambda: click.echo(f"{output}: {form}"))
        return EXIT_OK
    rows, samples = profiling.hottest(pid, for_s, rate, native)
    data |= {"samples": samples, "functions": [row._asdict() for row in rows]}

    def show() -> None:
        if not samples:
            click.echo(f"{name} was idle")
            return
        table(
            ("own", "total", "function"),
            [(percent(row.own), percent(row.total), row.function) for row in rows[:TOP]],
            right=(0, 1),
        )
        click.secho(f"busy in {percent(min(1.0, samples / (for_s * rate)))} of {for_s:g} s", dim=True)

    terminal.emit(data, show)
    return EXIT_OK


def _pid(status: dict[str, Any], role: str, slot: int | None) -> int:
    tree = status.get("tree") or {}
    if role == "supervisor":
        found = [tree.get("supervisor") or {}]
    else:
        children = tree.get("children") or ()
        found = [c for c in children if c.get("role") == role and (role != "worker" or c.get("slot") == slot)]
        if not found:
            raise BadRequest(f"there is no worker {slot}; walled-ctl workers lists them")
    pids = [int(one.get("pid") or 0) for one in found if one.get("pid")]
    if not pids:
        raise Unavailable(f"{role} does not run at this moment; walled-ctl status shows why")
    return pids[0]
