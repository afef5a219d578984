"""walled-ctl models, workers, queue, reload, stop.

May live here: asking the control socket and showing its maps. May not: computing anything from them.
"""

from __future__ import annotations

import os
import select
from typing import Any

import click

from walled.errors import DeadlineExceeded, Unavailable
from walled_client.ctl.program import Verb, VerbGroup
from walled_client.ctl.terminal import (
    EXIT_OK,
    Terminal,
    pass_terminal,
    seconds,
    size,
    table,
)


@click.command("models", cls=Verb, epilog="Example: walled-ctl models")
@pass_terminal
def models_verb(terminal: Terminal) -> None:
    """List the models that requests can name."""
    data = terminal.ask_daemon("models.list")
    terminal.emit(data, lambda: _show_models(data))


def _show_models(data: dict[str, Any]) -> None:
    table(
        ("model", "backend", "kind", "context", "workers", "slots", "can", "aliases"),
        [
            (
                model.get("name", "?"),
                model.get("backend", ""),
                model.get("kind", ""),
                model.get("context_tokens") or "",
                _count(model.get("workers")),
                model.get("slots", ""),
                " ".join(model.get("capabilities") or ()),
                " ".join(model.get("aliases") or ()),
            )
            for model in data.get("models") or ()
        ],
    )


def _count(value: Any) -> Any:
    return len(value) if isinstance(value, (list, tuple)) else value


def _show_workers(data: dict[str, Any]) -> None:
    table(
        ("worker", "pid", "backend", "state", "slots", "busy", "served", "beat", "loaded"),
        [
            (
                worker.get("worker", "?"),
                worker.get("pid", ""),
                worker.get("backend", ""),
                worker.get("state", ""),
                worker.get("slots", ""),
                worker.get("in_flight", ""),
                worker.get("served", ""),
                seconds(float(worker.get("heartbeat_age_s") or 0)),
                " ".join(worker.get("loaded") or ()),
            )
            for worker in data.get("workers") or ()
        ],
    )


@click.group(
    "workers", cls=VerbGroup, invoke_without_command=True, epilog="Example: walled-ctl workers restart 1"
)
@click.pass_context
def workers_verb(ctx: click.Context) -> None:
    """List workers; restart or drain one."""
    if ctx.invoked_subcommand is None:
        _list_workers(ctx.ensure_object(Terminal))


def _list_workers(terminal: Terminal) -> None:
    data = terminal.ask_daemon("workers.list")
    terminal.emit(data, lambda: _show_workers(data))


@workers_verb.command("list", epilog="Example: walled-ctl workers list")
@pass_terminal
def workers_list(terminal: Terminal) -> None:
    """List the workers (also without `list`)."""
    _list_workers(terminal)


@workers_verb.command("restart", epilog="Example: walled-ctl workers restart 1")
@click.argument("worker", type=click.IntRange(0, 10_000))
@pass_terminal
def workers_restart(terminal: Terminal, worker: int) -> None:
    """Let a worker finish what it runs, then replace its process."""
    _order(terminal, "workers.restart", f"worker {worker} will be restarted", worker=worker)


@workers_verb.command("drain", epilog="Example: walled-ctl workers drain 1")
@click.argument("worker", type=click.IntRange(0, 10_000))
@pass_terminal
def workers_drain(terminal: Terminal, worker: int) -> None:
    """Give a worker nothing new."""
    _order(terminal, "workers.drain", f"worker {worker} is given nothing new", worker=worker)


@click.group(
    "queue", cls=VerbGroup, invoke_without_command=True, epilog="Example: walled-ctl queue cancel 5f3a..."
)
@click.pass_context
def queue_verb(ctx: click.Context) -> None:
    """List waiting and running requests; cancel one."""
    if ctx.invoked_subcommand is None:
        _list_queue(ctx.ensure_object(Terminal))


def _list_queue(terminal: Terminal) -> None:
    data = terminal.ask_daemon("queue.list")
    terminal.emit(data, lambda: _show_queue(data))


@queue_verb.command("list", epilog="Example: walled-ctl queue list")
@pass_terminal
def queue_list(terminal: Terminal) -> None:
    """List the requests (also without `list`)."""
    _list_queue(terminal)


def _show_queue(data: dict[str, Any]) -> None:
    queued, running = data.get("queued") or [], data.get("running") or []
    if not queued and not running:
        click.echo("nothing waits, nothing runs")
        return
    if running:
        table(
            ("running", "model", "worker", "age", "waiters", "streaming"),
            [
                (
                    job.get("request", "?"),
                    job.get("model", ""),
                    job.get("worker", ""),
                    seconds(float(job.get("age_s") or 0)),
                    _count(job.get("waiters")),
                    "yes" if job.get("streaming") else "no",
                )
                for job in running
            ],
        )
    if queued:
        if running:
            click.echo()
        table(
            ("waiting", "model", "class", "age", "position", "eta", "time left", "size"),
            [
                (
                    job.get("request", "?"),
                    job.get("model", ""),
                    job.get("class", ""),
                    seconds(float(job.get("age_s") or 0)),
                    job.get("position", ""),
                    seconds(float(job.get("eta_s") or 0)),
                    seconds(float(job.get("deadline_s") or 0)),
                    size(float(job.get("bytes") or 0)),
                )
                for job in queued
            ],
        )


@queue_verb.command("cancel", epilog="Example: walled-ctl queue cancel 5f3a0c...")
@click.argument("request_id")
@pass_terminal
def queue_cancel(terminal: Terminal, request_id: str) -> None:
    """Cancel a waiting or running request by its id, as `queue` lists it."""
    _order(terminal, "queue.cancel", f"{request_id} cancelled", request=request_id)


@click.command("reload", cls=Verb, epilog="Example: walled-ctl reload")
@pass_terminal
def reload_verb(terminal: Terminal) -> None:
    """Read the configuration again; what can change without losing a request changes."""
    _order(terminal, "reload", "the daemon reads its configuration again")


@click.command("stop", cls=Verb, epilog="Example: walled-ctl stop --wait --timeout 60")
@click.option("--wait", is_flag=True, help="Return only when the daemon has ended, or after --timeout.")
@pass_terminal
def stop_verb(terminal: Terminal, wait: bool) -> int:
    """Stop the daemon: running requests finish, new ones are refused."""
    if not wait:
        _order(terminal, "stop", "the daemon drains and stops")
        return EXIT_OK
    supervisor = _supervisor(terminal.ask_daemon("status"))
    # Opened before the order: a number may be somebody else's a moment after its process has ended.
    try:
        process = os.pidfd_open(supervisor)
    except OSError as exc:
        raise Unavailable(f"the daemon (pid {supervisor}) cannot be waited for: {exc.strerror}") from None
    try:
        data = terminal.ask_daemon("stop")
        if not select.select([process], [], [], terminal.timeout_s)[0]:
            raise DeadlineExceeded(
                f"the daemon (pid {supervisor}) drains but has not ended after {terminal.timeout_s:g} s; "
                "wait longer with --timeout"
            )
    finally:
        os.close(process)
    terminal.emit(data, lambda: click.echo("the daemon has stopped"))
    return EXIT_OK


def _supervisor(status: dict[str, Any]) -> int:
    """The pid of the daemon's first process, which is the last to go."""
    pid = ((status.get("tree") or {}).get("supervisor") or {}).get("pid")
    if not isinstance(pid, int) or pid <= 0:
        raise Unavailable("the daemon does not tell yet which process it is; try again in a second")
    return pid


def _order(terminal: Terminal, op: str, done: str, *, worker: int = -1, request: str = "") -> None:
    data = terminal.ask_daemon(op, worker=worker, request=request)
    terminal.emit(data, lambda: click.echo(done))
