"""Where the daemon is: its sockets and its cache, by the run directory's manifest or the daemon's own rules.

May live here: reading the manifest, nothing else.

The daemon writes `walled.json` into its run directory and leaves it there when it stops, so that clients
find the cache with the daemon dead.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from walled.config import default_cache_dir, default_run_dir, endpoints

MANIFEST = "walled.json"
NO_CACHE = "no-cache"
"""Stands for the cache of a daemon that has none; nothing is ever there."""


class _Manifest(msgspec.Struct, frozen=True):
    cache_dir: str | None = None
    """Empty: the daemon runs without a cache, and one that a former daemon left must not be read."""
    endpoints: dict[str, str] = {}


class Place(msgspec.Struct, frozen=True):
    """Where a client finds what it needs."""

    client: str
    """Endpoint of the client socket."""
    control: str
    monitor: str
    """The monitor's socket for questions."""
    metrics: str
    """Where the monitor publishes."""
    tell: str
    """Where clients tell it what they counted."""
    cache_dir: Path
    run_dir: Path


def find(run_dir: str | Path | None = None) -> Place:
    """The place of a run directory; None is the default one. Never fails: a daemon may start later."""
    directory = Path(run_dir).absolute() if run_dir else default_run_dir()
    usual = endpoints(directory)
    manifest = _Manifest()
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=_Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        pass
    if manifest.cache_dir:
        cache_dir = Path(manifest.cache_dir)
    elif manifest.cache_dir is None and directory == default_run_dir():
        cache_dir = default_cache_dir()
    else:
        # Without its manifest (deleted, not written yet) the usual cache may be that of another daemon.
        cache_dir = directory / NO_CACHE
    return Place(
        client=manifest.endpoints.get("client") or usual.client,
        control=manifest.endpoints.get("control") or usual.control,
        monitor=usual.monitor,
        metrics=usual.metrics,
        tell=usual.tell,
        cache_dir=cache_dir,
        run_dir=directory,
    )


def place_of(run_dir: str | Path | None, endpoint: str | None) -> Path | None:
    """The run directory a client was given, be it through an endpoint that lies in one; None: the default."""
    if run_dir:
        return Path(run_dir).absolute()
    if endpoint and endpoint.startswith("ipc:///"):
        return Path(endpoint.removeprefix("ipc://")).parent
    return None
