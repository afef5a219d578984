"""The command tree: the group, options that every verb takes, verbs of other distributions.

May live here: how verbs are found and run. May not: the verbs.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import click

import walled
from walled.errors import WalledError
from walled_client.ctl.terminal import EXIT_FAILED, EXIT_INTERRUPTED, Terminal, fail, use_color

EPILOG = """\b
Exit codes:
  0  done
  1  failed, or refused by the daemon
  2  wrong usage or configuration
  3  the daemon cannot be reached
  4  answered, but degraded; or the daemon is not ready
  130  interrupted

\b
Shell completion (bash; zsh and fish alike):
  eval "$(_WALLED_CTL_COMPLETE=bash_source walled-ctl)"
"""


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(Terminal), name, value)

    return callback


def global_options() -> list[click.Option]:
    """Accepted before and after the verb."""
    return [
        click.Option(
            ["--run-dir"],
            metavar="DIR",
            expose_value=False,
            callback=_set("run_dir"),
            help="Run directory of the daemon [default: $WALLED_RUN_DIR or the daemon's own rule].",
        ),
        click.Option(
            ["--endpoint"],
            metavar="URL",
            expose_value=False,
            callback=_set("endpoint"),
            help="Client socket of the daemon, instead of --run-dir (ipc:///path/client.sock).",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_set("json"),
            help="Print one JSON object that names its schema.",
        ),
        click.Option(
            ["--timeout"],
            type=click.FloatRange(0, 86400, min_open=True),
            metavar="SECONDS",
            expose_value=False,
            callback=_set("timeout_s"),
            help="Longest time to wait for the daemon [default: 30].",
        ),
    ]


class Verb(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options()


class VerbGroup(click.Group):
    """A group of verbs (`workers restart`), itself a verb when nothing follows."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options()


class Program(click.Group):
    """walled-ctl. Built-in verbs are imported when used; others come from entry points."""

    ENTRY_POINTS = "walled_ctl.commands"

    def __init__(self, verbs: dict[str, str], **kwargs: Any) -> None:
        super().__init__(name="walled-ctl", **kwargs)
        self.params += global_options()
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        added = [entry.name for entry in importlib.metadata.entry_points(group=self.ENTRY_POINTS)]
        return [*self.verbs, *sorted(set(added) - self.verbs.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = self.verbs.get(cmd_name)
        if module is not None:
            home = importlib.import_module(f"walled_client.ctl.{module}")
            found = getattr(home, f"{cmd_name}_verb")
            assert isinstance(found, click.Command)
            return found
        for entry in importlib.metadata.entry_points(group=self.ENTRY_POINTS, name=cmd_name):
            command = entry.load()
            if isinstance(command, click.Command):
                return command
        return None


program = Program(
    {
        "ask": "asking", "chat": "asking", "status": "status", "models": "daemon", "workers": "daemon",
        "queue": "daemon", "cache": "cache", "config": "config", "reload": "daemon", "stop": "daemon",
        "demo": "demo", "validate": "validation", "health": "health", "alerts": "alerts",
        "stat": "stat", "latency": "stat",
        "metrics": "metrics", "history": "metrics", "events": "metrics", "check": "check",
        "profile": "profile", "top": "top",
    },
    help="Talk to a walled daemon and look after it.\n\nExample: walled-ctl ask 'Is it still for sale?'",
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"walled-ctl {walled.__version__}")
        ctx.exit()


program.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Show the version and leave.",
    )
)


def main(args: list[str] | None = None) -> None:
    """Run walled-ctl and leave with its exit code."""
    terminal = Terminal()
    try:
        code = program.main(
            args, prog_name="walled-ctl", obj=terminal, standalone_mode=False, color=use_color()
        )
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except WalledError as exc:
        fail(exc, terminal)
    except BrokenPipeError:
        sys.stdout = None  # the reader left; flushing at exit would complain
        sys.exit(0)
    except OSError as exc:
        sys.stdout = None  # a full disk, say; what is left in its buffer cannot be written either
        click.echo(f"walled-ctl: {exc.filename or 'standard output'}: {exc.strerror or exc}", err=True)
        sys.exit(EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else 0)
