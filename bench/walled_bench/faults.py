"""The faults of the chaos campaign: which come, in which order, and how each is done and undone.

May live here: drawing faults with a seed, doing them to a daemon of our own, undoing them. May not: load,
books, judging what came of it.

The order, the kinds and what each draws for itself follow from the seed alone; moments and victims also
depend on how fast the machine is. A fault that takes the whole daemon away is alone (`alone`); others may
meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from walled_bench.crowd import Crowd
from walled_bench.daemon import Daemon
from walled_bench.ledger import Book

DISK_BYTES = 40 * 1024 * 1024
"""Of the small file system: the cache at its largest, and little more."""
REPLACED_LIMIT_S = 20.0
GROWN_UP_S = 4.0
"""A process of this age has come up, also on a busy machine."""
POLL_S = 0.02
POISON_DEADLINE_S = 12.0
STORM = 25


class Planned(NamedTuple):
    """A fault to come."""

    kind: str
    seed: int
    gap_s: float
    """After the one before."""


class World:
    """What faults are done to."""

    def __init__(self, daemon: Daemon, crowd: Crowd, config: Mapping[str, Any], disk: Path | None) -> None:
        self.daemon = daemon
        self.crowd = crowd
        self.config = config
        self.disk = disk
        """A small file system of its own, None where none could be had."""
        self.orphans = 0
        self.gone_s: list[float] = []
        """From SIGSTOP to the end of the process that was stopped for good."""
        self.replaced_s: list[float] = []
        """From SIGSTOP to another process in its place."""
        self.not_done: Counter[str] = Counter()
        """Faults whose victim was not there just then, or that this machine does not allow."""
        self.poison: Book = crowd.book("poisonous")
        self.storm: Book = crowd.book("failing")
        self.batch: Book = crowd.book("batch flood")
        self.kill_outsider: Callable[[], None] = lambda: None
        self.lost_files = 0
        """Cache files destroyed so far."""

    def took_s(self, began_s: float) -> float:
        """Since then, without the stalls of the machine."""
        now_s = time.monotonic()
        return now_s - began_s - self.crowd.stalls.within(began_s, now_s)

    def victim(self, role: str, draw: random.Random) -> tuple[str, int] | None:
        found = sorted((name, pid) for name, pid in self.daemon.pids().items() if name.startswith(role))
        return draw.choice(found) if found else None


Fault = Callable[[World, random.Random], Coroutine[Any, Any, None]]
ROLES = ("worker", "worker", "broker", "monitor")


# --- processes -------------------------------------------------------------------------------------


async def kill_child(world: World, draw: random.Random) -> None:
    found = world.victim(draw.choice(ROLES), draw)
    if found is None:
        world.not_done["child killed"] += 1
        return
    _signal(found[1], signal.SIGKILL)


async def stop_child(world: World, draw: random.Random) -> None:
    """Stopped for good: the daemon has to find out."""
    found = world.victim(draw.choice(ROLES), draw)
    if found is None:
        world.not_done["child hung"] += 1
        return
    name, pid = found
    if _age_s(pid) < GROWN_UP_S:
        # One that has said nothing yet is given longer (docs/operations.md); that is no hang of one at work.
        world.not_done["child hung"] += 1
        return
    began_s = time.monotonic()
    try:
        sentinel = os.pidfd_open(pid)
    except OSError:
        world.not_done["child hung"] += 1
        return
    try:
        _signal(pid, signal.SIGSTOP)
        while not select.select([sentinel], [], [], 0)[0]:
            if time.monotonic() - began_s > REPLACED_LIMIT_S:
                world.gone_s.append(REPLACED_LIMIT_S)
                _signal(pid, signal.SIGKILL)
                return
            await asyncio.sleep(POLL_S)
    finally:
        os.close(sentinel)
    world.gone_s.append(world.took_s(began_s))
    while world.daemon.pids().get(name, pid) == pid:
        if time.monotonic() - began_s > REPLACED_LIMIT_S:
            break
        await asyncio.sleep(POLL_S)
    world.replaced_s.append(world.took_s(began_s))


async def pause_child(world: World, draw: random.Random) -> None:
    """Stopped, and going on before or after it has been given up."""
    found = world.victim(draw.choice(ROLES), draw)
    seconds = draw.uniform(0.1, 3.5)
    if found is None:
        world.not_done["child paused"] += 1
        return
    _signal(found[1], signal.SIGSTOP)
    await asyncio.sleep(seconds)
    _signal(found[1], signal.SIGCONT)


async def kill_supervisor(world: World, draw: random.Random) -> None:
    """And start it again a moment later, as a service manager does."""
    seconds = draw.uniform(0.0, 1.5)
    world.orphans += len(await asyncio.to_thread(world.daemon.kill))
    await asyncio.sleep(seconds)
    await asyncio.to_thread(world.daemon.start)


async def pause_supervisor(world: World, draw: random.Random) -> None:
    pid = world.daemon.pid
    seconds = draw.uniform(0.5, 6.0)
    _signal(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    _signal(pid, signal.SIGCONT)


async def reload(world: World, draw: random.Random) -> None:
    """Another number of workers, other slots: some are replaced."""
    config = {**world.config, "backends": {**world.config["backends"]}}
    for name in ("left", "right"):
        wanted = {"workers": draw.choice((1, 2)), "slots": draw.choice((6, 8))}
        config["backends"][name] = {**config["backends"][name], **wanted}
    world.daemon.configure(config)
    _signal(world.daemon.pid, signal.SIGHUP)


async def short_of_descriptors(world: World, draw: random.Random) -> None:
    found = world.victim(draw.choice((*ROLES, "supervisor")), draw)
    spare, seconds = draw.randrange(0, 10), draw.uniform(0.5, 3.0)
    if found is None:
        world.not_done["descriptors short"] += 1
        return
    with contextlib.suppress(OSError):
        pid = found[1]
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, hard))
        await asyncio.sleep(seconds)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))


async def delete_run_directory(world: World, draw: random.Random) -> None:
    shutil.rmtree(world.daemon.run_dir, ignore_errors=True)


# --- the disk --------------------------------------------------------------------------------------


async def damage_cache(world: World, draw: random.Random) -> None:
    """Flip bits, cut, replace, delete."""
    how = draw.choice(("flip", "flip", "cut", "replace", "delete"))
    share, flips = draw.random(), draw.randrange(1, 200)
    path = world.daemon.cache_dir / "data.mdb"
    with contextlib.suppress(OSError):
        world.lost_files += 1
        size = path.stat().st_size
        if how == "flip":
            with path.open("r+b") as file:
                for _ in range(flips):
                    file.seek(draw.randrange(size))
                    byte = file.read(1)
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte[0] ^ (1 << draw.randrange(8))]))
        elif how == "cut":
            os.truncate(path, int(size * share))
        elif how == "replace":
            other = path.with_name("other")
            other.write_bytes(os.urandom(1000) * 20)
            other.replace(path)
        else:
            shutil.rmtree(world.daemon.cache_dir)


async def fill_disk(world: World, draw: random.Random) -> None:
    """Not one byte is free on the file system of cache and run directory."""
    seconds = draw.uniform(1.0, 4.0)
    if world.disk is None:
        await _limit_files(world, seconds)
        return
    filler = fill(world.disk)
    await asyncio.sleep(seconds)
    filler.unlink(missing_ok=True)


def fill(disk: Path) -> Path:
    """Write a file until there is not one byte left; which file."""
    filler = disk / "filler"
    for size_bytes in (65536, 64):
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(size_bytes))
    return filler


async def _limit_files(world: World, seconds: float) -> None:
    """Where there is no small file system: no process of the daemon may lengthen a file."""
    pids = list(world.daemon.pids().values())
    for pid in pids:
        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    await asyncio.sleep(seconds)
    for pid in pids:
        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


# --- what is asked ---------------------------------------------------------------------------------


async def poison(world: World, draw: random.Random) -> None:
    """A request that kills, hangs, fills or swells its worker."""
    line = draw.choice(("!crash", "!hang", "!bomb", "!leak 3000000", "!stall", "!slow 1.0"))
    deadline_s = draw.choice((1.0, POISON_DEADLINE_S))
    await world.crowd.directive(world.poison, line, deadline_s)


async def fail(world: World, draw: random.Random) -> None:
    """A backend that fails so often that its breaker must open."""
    line = draw.choice(("!fail backend_error", "!fail_after 3 backend_error", "!fail backend_unavailable"))
    await asyncio.gather(*(world.crowd.directive(world.storm, line, 3.0) for _ in range(STORM)))


async def flood(world: World, draw: random.Random) -> None:
    await world.crowd.flood(world.batch)


async def deaf_client(world: World, draw: random.Random) -> None:
    await world.crowd.be_deaf(f"ipc://{world.daemon.run_dir}/client.sock", draw.uniform(0.5, 3.0))


async def kill_client(world: World, draw: random.Random) -> None:
    world.kill_outsider()


class Kind(NamedTuple):
    weight: int
    alone: bool
    do: Fault


KINDS: Mapping[str, Kind] = {
    "child killed": Kind(6, False, kill_child),
    "child hung": Kind(3, False, stop_child),
    "child paused": Kind(3, False, pause_child),
    "supervisor killed": Kind(2, True, kill_supervisor),
    "supervisor paused": Kind(1, True, pause_supervisor),
    "poisonous request": Kind(4, False, poison),
    "backend fails": Kind(2, False, fail),
    "cache damaged": Kind(3, False, damage_cache),
    "disk full": Kind(2, False, fill_disk),
    "run directory deleted": Kind(1, True, delete_run_directory),
    "reload": Kind(2, True, reload),
    "descriptors short": Kind(2, False, short_of_descriptors),
    "client killed": Kind(2, False, kill_client),
    "deaf client": Kind(1, False, deaf_client),
    "batch flood": Kind(2, False, flood),
}


def plan(seed: int) -> Iterator[Planned]:
    """Faults without end. Every kind comes once before any comes a second time by weight."""
    dice = random.Random(seed)
    first = list(KINDS)
    dice.shuffle(first)
    names, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
    while True:
        kind = first.pop() if first else dice.choices(names, weights)[0]
        yield Planned(kind, dice.randrange(1 << 30), dice.uniform(0.1, 1.5))


# --- the small file system -------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(directory: Path, size_bytes: int = DISK_BYTES) -> Iterator[Path | None]:
    """A tmpfs below the directory; None where mounting is not allowed."""
    place = directory / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0755", "walled-chaos", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def _age_s(pid: int) -> float:
    """Since it was started; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
