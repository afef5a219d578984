"""Is the cache file sound? Found out by a child that may die of the answer.

May live here: `vet` for the supervisor's start (which must not import LMDB, so neither does the top of this
module), and the child, `python -m walled.adapters.cache_check DIRECTORY SECONDS`. May not: repair.

LMDB trusts its pages: one damaged page number is SIGSEGV, a truncated file SIGBUS, in whoever reads. So
before anything else opens the file a sacrificial child walks its whole structure as plain bytes
(lmdb.verify), then through LMDB, verifies every record, removes damaged ones, and makes a trial commit. A
child that finds damage, crashes, or hangs on a file that looked wrong condemns the files: they are renamed
aside and the daemon starts cold. A child that could not tell (no permission, killed by a person, slow disk)
condemns nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
KEEP_BAD: Final = 2
"""Condemned files kept for inspection; older ones are removed, because each may be as large as the cache."""
SUSPECT: Final = b"suspect"
"""The child's line when the structure looked wrong: a hang after it is the damage, before it a slow disk."""
OK_EXIT: Final = 0
DAMAGE_EXIT: Final = 65  # EX_DATAERR
NO_VERDICT_EXIT: Final = 75  # EX_TEMPFAIL
BUDGET_SHARE: Final = 0.8
"""Of the time given to the child: what it may scan for before it reports how far it came."""
CRASHES: Final = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


class VetResult(NamedTuple):
    """What the check found and did."""

    status: Literal["missing", "sound", "partial", "set_aside", "unknown"]
    """missing: no cache yet. sound: all of it was read. partial: sound as far as time allowed. set_aside: was
    damaged, has been renamed. unknown: the check could not be made; the cache is used as it is."""
    detail: str = ""
    entries: int = 0
    removed: int = 0
    """Damaged records that were removed from an otherwise sound file."""
    moved: tuple[str, ...] = ()
    """New names of condemned files."""


def vet(directory: Path, timeout_s: float) -> VetResult:
    """Check the cache below `directory`, taking at most `timeout_s`; condemn it when it is damaged.

    Never raises for anything the file or the child can do. Blocks: call it before the first child starts.
    """
    try:
        if os.stat(directory / DATA_FILE).st_size == 0:
            return VetResult("missing", "the data file is empty")
    except FileNotFoundError:
        return VetResult("missing")
    except OSError as exc:
        return VetResult("unknown", f"{directory / DATA_FILE}: {exc.strerror}")
    command = [sys.executable, "-m", __spec__.name, os.fspath(directory), str(timeout_s * BUDGET_SHARE)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as exc:
        why = f"reading it did not end within {timeout_s:g} s"
        if SUSPECT in (exc.stdout or b"").splitlines():
            return _set_aside(directory, why)
        return VetResult("unknown", why)
    except OSError as exc:
        return VetResult("unknown", f"the check could not be started: {exc.strerror}")
    if done.returncode < 0 and -done.returncode in CRASHES:
        return _set_aside(directory, f"reading it crashed ({signal.Signals(-done.returncode).name})")
    report = _report(done.stdout)
    if done.returncode == DAMAGE_EXIT:
        return _set_aside(directory, str(report.get("detail", "damaged")))
    if done.returncode != OK_EXIT:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return VetResult("unknown", str(report.get("detail") or last_line or f"status {done.returncode}"))
    return VetResult(
        "partial" if report.get("partial") else "sound",
        str(report.get("detail", "")),
        int(report.get("entries", 0)),
        int(report.get("removed", 0)),
    )


def _report(stdout: bytes) -> dict[str, Any]:
    try:
        found = json.loads(stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def _set_aside(directory: Path, why: str) -> VetResult:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    moved = []
    try:
        # The data file first: without it nobody opens what is left.
        for name in (DATA_FILE, LOCK_FILE):
            target = _free_name(directory / f"{name}.bad-{stamp}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(directory / name, target)
                moved.append(str(target))
    except OSError as exc:
        return VetResult("unknown", f"{why}, and it cannot be renamed: {exc.strerror}", moved=tuple(moved))
    for name in (DATA_FILE, LOCK_FILE):
        for old in sorted(directory.glob(f"{name}.bad-*"))[:-KEEP_BAD]:
            with contextlib.suppress(OSError):
                old.unlink()
    return VetResult("set_aside", why, moved=tuple(moved))


def _free_name(path: Path) -> Path:
    """The name itself, or with a number when two checks fail within a second."""
    number = 1
    found = path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}.{number}")
    return found


# --- the child -------------------------------------------------------------------------------------


class _OutOfTime(Exception):
    """The budget is used up."""


class _Damage(Exception):
    """The file is broken; the message says where."""


def main(arguments: list[str]) -> int:
    """Scan a cache; the exit status is the verdict, the last line of stdout a JSON object about it."""
    directory, budget_s = Path(arguments[0]), float(arguments[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core of this process would hold answers
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, budget_s))
    report: dict[str, Any] = {"entries": 0, "removed": 0, "partial": False, "detail": ""}
    status = OK_EXIT
    try:
        _scan(directory, report)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except _OutOfTime:
        report["partial"] = True
    except _Damage as exc:
        report["detail"] = str(exc)
        status = DAMAGE_EXIT
    except OSError as exc:
        report["detail"] = f"{directory}: {exc.strerror or exc}"
        status = NO_VERDICT_EXIT
    print(json.dumps(report))
    return status


def _alarm(_signum: int, _frame: object) -> None:
    raise _OutOfTime


def _scan(directory: Path, report: dict[str, Any]) -> None:
    from walled.adapters import cache_env, cache_order

    problems = cache_env.structural_problems(directory)
    if problems:
        print(SUSPECT.decode(), flush=True)
    env = cache_env.acquire(directory)
    try:
        if not env.make_writable(map_bytes=0):
            if env.damaged:
                raise _Damage(env.problem)
            raise OSError(env.problem)
        with env.write_lock:
            if problems:
                # Either damage, or somebody wrote meanwhile. With the write lock held nobody does.
                with env.writing_txn():
                    problems = cache_env.structural_problems(directory)
                if problems:
                    raise _Damage(f"{len(problems)} broken invariants, the first: {problems[0]}")
            with env.writing_txn() as txn:
                found = cache_order.scrub(txn, env)
            report["entries"], report["removed"] = found
            with contextlib.suppress(cache_env.MapFull), env.writing_txn() as txn:
                txn.put(b"vetted", str(int(time.time())).encode(), db=env.meta)
    except cache_env.StoreError as exc:
        if cache_env.is_damage(exc):
            raise _Damage(str(exc)) from None
        raise OSError(str(exc)) from None
    finally:
        cache_env.release(env)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
