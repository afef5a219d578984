"""The entry point of every child process: `python -m walled.child --fd N ROLE`, run by the supervisor only.

May live here: what is common to all children before and after their role. May not: any role's work.

Everything the child is to know comes over the link, not by arguments or environment: fd and role are there
for `ps`. The role's module is imported before the Spawn is waited for, while the supervisor still looks at
the cache.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from walled import config as configuration
from walled import link as wire
from walled.adapters import descriptors, logs, process
from walled.errors import BOOT_ERROR_EXIT, BootError, WalledError

SPAWN_WAIT_S = 120.0
"""Longest time between birth and Spawn; the supervisor may be looking through a big cache."""

OOM_POINTS = {"worker": 200, "monitor": 100}
"""A worker's death costs one more run of its requests, the broker's every connection: if the kernel must end
somebody for want of memory, then a worker, else the monitor."""

RoleMain = Callable[[wire.Spawn, process.Link], int]


def broker_main() -> RoleMain:
    main: RoleMain = importlib.import_module("walled.broker").main
    return main


def worker_main() -> RoleMain:
    main: RoleMain = importlib.import_module("walled.worker").main
    return main


def monitor_main() -> RoleMain:
    main: RoleMain = importlib.import_module("walled.monitor").main
    return main


ROLES: Mapping[str, Callable[[], RoleMain]] = {
    "broker": broker_main,
    "worker": worker_main,
    "monitor": monitor_main,
}


def run(arguments: Sequence[str], roles: Mapping[str, Callable[[], RoleMain]] = ROLES) -> int:
    """Live one life; returns the exit status. `arguments` are `--fd N ROLE`."""
    process.ignore_signals()
    process.forbid_core_dumps()
    os.umask(0o027)  # nothing a daemon makes is for everybody, not even between its making and its chmod
    descriptors.raise_limit()
    faulthandler.enable()
    if (
        len(arguments) != 3
        or arguments[0] != "--fd"
        or not arguments[1].isdigit()
        or arguments[2] not in roles
    ):
        print("walled.child is started by walled itself; run: walled --config FILE", file=sys.stderr)
        return 2
    link = process.Link.adopt(int(arguments[1]))
    process.die_with_parent()
    if arguments[2] in OOM_POINTS:
        process.volunteer_for_oom(OOM_POINTS[arguments[2]])
    # What modules are made of stays: collections in between find nothing and cost a fifth of the import.
    gc.disable()
    try:
        main: RoleMain | ImportError = roles[arguments[2]]()
    except ImportError as exc:
        main = exc
    gc.freeze()
    gc.enable()
    try:
        spawn = _receive_spawn(link)
        if spawn is None or os.getppid() != spawn.supervisor_pid:
            return 1  # born an orphan
        name = f"worker {spawn.slot}" if spawn.role == "worker" else spawn.role
        process.set_title(f"walled: {name}")
        daemon = configuration.from_plain(spawn.config).daemon
        logs.set_up(name, daemon.log_level, daemon.log_format)
        if isinstance(main, ImportError):
            raise BootError(f"a package is missing: {main}; reinstall walled")
        return main(spawn, link)
    except process.LinkClosed:
        return 1  # the supervisor is dead
    except WalledError as exc:
        # Known trouble in words the operator understands; the supervisor prints them with the exit.
        link.send(wire.Status("stopping", detail=exc.message[:1000]))
        return BOOT_ERROR_EXIT if isinstance(exc, BootError) else 1
    except Exception as exc:
        logging.getLogger(__name__).critical("ends by a defect: %s", logs.safe_traceback(exc))
        link.send(wire.Status("stopping", detail=f"defect: {type(exc).__name__}"))
        return 1


def _receive_spawn(link: process.Link) -> wire.Spawn | None:
    """None when the supervisor says nothing or something else."""
    if not link.wait(SPAWN_WAIT_S):
        return None
    first = link.receive_one()
    return first if isinstance(first, wire.Spawn) else None


def leave(status: int) -> None:
    """End the process now: no thread of a library can hold it back, no destructor can spoil the status."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(run(sys.argv[1:]))
