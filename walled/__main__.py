"""The command `walled`: read the configuration, be the daemon, say how it ended by the exit status.

May live here: arguments, exit statuses. May not: anything a daemon does (supervisor.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

import walled
from walled import config as configuration
from walled.adapters import template_files
from walled.adapters.detect import rules_are_right
from walled.errors import BOOT_ERROR_EXIT, BootError, ConfigError

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_ALREADY_RUNNING = 3

EPILOG = f"""\b
Exit status:
  {EXIT_STOPPED}   stopped as asked (SIGTERM, SIGINT, walled-ctl stop), or --check found no error
  {EXIT_FAILED}   the broker, or every worker, died too often to be started again
  {EXIT_CONFIG}   error in the configuration or the arguments; nothing was started
  {EXIT_ALREADY_RUNNING}   another daemon runs on the same run directory
  {BOOT_ERROR_EXIT}  cannot start and a second try would end the same (a GGUF that is none, a missing package)

\b
Signals: SIGTERM and SIGINT drain and stop, a second one stops at once; SIGHUP reads the file again.

\b
Example:
  walled --config /etc/walled/config.toml
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 110})
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE",
    help="TOML file (see config.example.toml). Without it: defaults, with an Ollama found on "
    "127.0.0.1:11434 or else the built-in model.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Check the configuration, start nothing.")
@click.version_option(walled.__version__, prog_name="walled", message="%(prog)s %(version)s")
def main(config_path: Path | None, check: bool) -> None:
    """Run the walled daemon in the foreground: it stands in front of a language model and keeps answering."""
    try:
        config = configuration.load(config_path)
        template_files.load(config)
        rules_are_right(config)
    except ConfigError as exc:
        _fail(exc.message, EXIT_CONFIG)
    if check:
        click.echo(f"{config_path or 'defaults'}: no error found", err=True)
        sys.exit(EXIT_STOPPED)
    from walled import supervisor
    from walled.adapters.runlock import AlreadyRunning

    try:
        sys.exit(supervisor.run(config_path, config))
    except AlreadyRunning as exc:
        _fail(exc.message, EXIT_ALREADY_RUNNING)
    except BootError as exc:
        _fail(exc.message, BOOT_ERROR_EXIT)


def _fail(message: str, status: int) -> None:
    for line in message.splitlines():
        click.echo(f"walled: {line}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
