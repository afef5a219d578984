"""The run directory: made, locked for the life of the daemon, and the manifest clients read in it.

May live here: the directory's mode and owner, the lock, the manifest file, removing dead sockets. May not:
what the sockets are for.

A second bind on an ipc path silently steals it, so the lock is taken before anything is bound.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

import msgspec

from walled.config import Endpoints
from walled.errors import BootError

LOCK_NAME = "walled.lock"
MANIFEST_NAME = "walled.json"
FULL = (errno.ENOSPC, errno.EDQUOT)


class AlreadyRunning(BootError):
    """Another daemon holds the run directory."""


class Manifest(msgspec.Struct, frozen=True):
    """What a client must know of a daemon that may be dead: above all where its cache is."""

    version: str
    pid: int
    cache_dir: str
    endpoints: Endpoints


class RunLock:
    """A locked run directory. The kernel frees the lock when the process ends, however it ends."""

    def __init__(self, directory: Path, fd: int) -> None:
        self.directory = directory
        self._fd = fd

    @classmethod
    def take(cls, directory: Path) -> RunLock:
        """Make the directory (0750) if need be and lock it.

        Raises AlreadyRunning naming the holder, BootError when the directory cannot be used.
        """
        _prepare(directory)
        path = directory / LOCK_NAME
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as exc:
            raise BootError(f"{path}: cannot be opened: {exc.strerror}; check daemon.run_dir") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_pid(fd)
            os.close(fd)
            raise AlreadyRunning(
                f"{directory}: a walled daemon is running here already"
                f"{f' (pid {holder})' if holder else ''}; stop it (walled-ctl stop) "
                "or choose another daemon.run_dir"
            ) from None
        # On a full disk the lock holds all the same; only whoever meets it is not told whose it is. What is
        # there already may be overwritten even then, so it is not cut before.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, os.pwrite(fd, b"%d\n" % os.getpid(), 0))
        return cls(directory, fd)

    def holds(self) -> bool:
        """Whether the lock file is still the one in the directory: somebody may have deleted either."""
        try:
            found, ours = os.stat(self.directory / LOCK_NAME), os.fstat(self._fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def retake(self) -> None:
        """Make and lock a deleted directory again. Raises as `take`: another daemon may have come."""
        fresh = RunLock.take(self.directory)
        old, self._fd = self._fd, fresh._fd
        os.close(old)

    def write_manifest(self, manifest: Manifest) -> bool:
        """Replace the manifest whole: a reader sees the old one or the new one.

        False on a full disk, which is worth a try later. Raises BootError for what will not pass by itself.
        """
        path = self.directory / MANIFEST_NAME
        temporary = path.with_suffix(".json.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            with os.fdopen(os.open(temporary, flags, 0o640), "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
            temporary.replace(path)
            return True
        except OSError as exc:
            if exc.errno in FULL:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                return False
            raise BootError(f"{path}: cannot be written: {exc.strerror}; check daemon.run_dir") from None

    def remove_sockets(self, endpoints: Endpoints) -> None:
        """Remove what the children bound. The manifest stays: it tells clients where the cache is."""
        for endpoint in msgspec.structs.astuple(endpoints):
            with contextlib.suppress(OSError):
                Path(endpoint.removeprefix("ipc://")).unlink()

    def release(self) -> None:
        """Give the directory free. The lock file stays: removing it would race with the next daemon."""
        os.close(self._fd)


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a run directory, or None when there is none that can be read."""
    try:
        return msgspec.json.decode((directory / MANIFEST_NAME).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def _prepare(directory: Path) -> None:
    """Raises BootError when the directory cannot be made or is not safe to put sockets into."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o750)
        found = directory.stat()
    except OSError as exc:
        raise BootError(f"{directory}: cannot be made: {exc.strerror}; check daemon.run_dir") from None
    if not stat.S_ISDIR(found.st_mode):
        raise BootError(f"{directory}: is not a directory; choose another daemon.run_dir")
    if found.st_uid != os.geteuid():
        raise BootError(
            f"{directory}: belongs to uid {found.st_uid}, not to uid {os.geteuid()} that runs walled; "
            "run walled as its owner or choose another daemon.run_dir"
        )
    if found.st_mode & stat.S_IWOTH:
        raise BootError(
            f"{directory}: everybody may write to it, so anybody could replace the sockets; chmod o-w it"
        )


def _read_pid(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0
