"""The only door to LMDB: one environment per directory and process, opened, watched, reopened, closed.

May live here: opening with every option set as DESIGN demands, sharing, fork, detecting replaced files,
classifying LMDB's errors. May not: records, eviction, policy (cache.py, core/).

Traps this module holds shut (each has a test in tests/adapters/):
- LMDB forbids opening a file twice in one process -> `acquire` shares one Environment per directory;
- an environment must not be used across fork, and a child that touches its parent's reader slot breaks the
  parent (MDB_BAD_RSLOT) -> before a fork every environment is closed, after it each side reopens its own;
- closing unmaps memory another thread may be copying from -> whoever reads or closes holds `lock`;
- writemap dies by SIGBUS on a full disk -> off; metasync off loses at most the last commit;
- pages past the end of a truncated file are SIGBUS -> a file shorter than LMDB says is never opened;
- the lock file is mapped for writing and sparse: on a full disk its first use is SIGBUS, in the daemon and in
  every client that takes a reader's slot -> all of it is allocated before it is mapped;
- a file replaced underneath would be read for ever -> `verify` compares device, inode and size;
- a read-only open needs write permission on the lock file -> data 0640, lock 0660.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
DIRECTORY_MODE: Final = 0o750
DATA_MODE: Final = 0o640
LOCK_MODE: Final = 0o660
MAX_READERS: Final = 1024
"""Reader slots, one per process; fixed by whoever opens first, so it is not a setting."""
LOCK_BYTES: Final = 65_664
"""Of a new lock file: what LMDB makes of MAX_READERS on 64-bit Linux."""
FORK_WAIT_S: Final = 1.0
CHECK_READERS_S: Final = 1.0
"""With a full reader table, dead readers are looked for this often: it costs a system call per reader."""

ANSWERS: Final = b"answers"
EXPIRY: Final = b"expiry"
TEMPLATES: Final = b"templates"
META: Final = b"meta"
DATABASES: Final = (ANSWERS, EXPIRY, TEMPLATES, META)

StoreError: Final = (lmdb.Error, OSError)
"""Whatever can go wrong with the file; callers catch exactly this."""
MapFull: Final = lmdb.MapFullError
ReadersFull: Final = lmdb.ReadersFullError
Transaction = Any  # lmdb.Transaction; its stub is generic in a way that fits no caller of ours
Reading = tuple[Callable[..., Transaction], Any]
"""lmdb's own bound `begin`, and the handle of `answers`."""
_HEALABLE: Final = (lmdb.MapResizedError, lmdb.BadRslotError)
_REOPEN: Final = (*_HEALABLE, lmdb.PanicError, lmdb.InvalidError)
_DAMAGE: Final = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
)


class Pages(NamedTuple):
    """Where the file's pages are."""

    page_bytes: int = 0
    total: int = 0
    free: int = 0
    live: int = 0
    """Of answers and expiry."""
    map_bytes: int = 0
    readers: int = 0
    entries: int = 0


class Environment:
    """One directory's environment as all readers and writers of this process share it.

    `reading` is None while nothing is open. Use it, and the memory it hands out, only while holding `lock`.
    Whoever needs both locks takes `write_lock` first.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = threading.Lock()
        self.write_lock = threading.Lock()
        self.reading: Reading | None = None
        self.answers: Any = None
        self.expiry: Any = None
        self.meta: Any = None
        self.templates: Any = None
        self.generation = 0
        """Goes up with every opening: what was remembered from the last one may be void."""
        self.problem = ""
        """Why nothing is open, for people; "" when all is well."""
        self.damaged = False
        """The last failed opening said that the file itself is broken."""
        self.users = 0
        self._env: lmdb.Environment | None = None
        self._abandoned: lmdb.Environment | None = None
        self._handles: tuple[Any, ...] = ()
        self._map_bytes = 0
        self._writable = False
        self._seen: tuple[int, int, int] | None = None
        self._failed = False
        self._readers_checked_s = -CHECK_READERS_S

    # --- opening and closing -------------------------------------------------------------------------

    def open(self) -> bool:
        """Make sure it is open, unless the last try failed and `verify` has not been called since."""
        if self.reading is not None:
            return True
        if self._failed:
            return False
        with self.lock:
            if self.reading is None:
                try:
                    self._open()
                    self.problem = ""
                except StoreError as exc:
                    self._failed = True
                    self._close()
                    self.damaged = is_damage(exc)
                    self.problem = f"{self.directory}: {_describe(exc)}"
        return self.reading is not None

    def make_writable(self, map_bytes: int) -> bool:
        """Have it opened for writing with a map of that size from now on; whether that succeeded."""
        with self.write_lock, self.lock:
            self._close()
            self._map_bytes = map_bytes
            self._writable = True
            self._failed = False
        return self.open()

    def _open(self) -> None:
        if self._writable:
            self.directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            self._allocate_lock()
        else:
            # LMDB would create a missing lock file, owned by the wrong user.
            os.stat(self.directory / LOCK_FILE)
            os.stat(self.directory / DATA_FILE)
        env = lmdb.open(
            os.fspath(self.directory),
            map_size=self._map_bytes,  # 0 adopts the writer's
            readonly=not self._writable,
            create=False,
            mode=0o750,  # LMDB takes the execute bits off
            metasync=False,
            writemap=False,
            readahead=False,
            max_readers=MAX_READERS,
            max_dbs=len(DATABASES),
            max_spare_txns=1,
        )
        self._env = env
        if self._writable:
            self._set_modes()
        else:
            self._refuse_truncated(env)
        handles = {name: env.open_db(name, create=self._writable) for name in DATABASES}
        self.answers, self.expiry, self.meta = handles[ANSWERS], handles[EXPIRY], handles[META]
        self.templates = handles[TEMPLATES]
        self._handles = tuple(handles.values())
        if self._writable:
            self.extend()
        self._seen = self._identity()
        self.generation += 1
        self.reading = (env.begin, self.answers)

    def _allocate_lock(self) -> None:
        """Give the lock file its disk space, or raise OSError; the size of one that is in use stays.

        Closing it again would free this process's POSIX locks on it, so it must not be open here yet.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.directory / LOCK_FILE, flags, LOCK_MODE)
        try:
            os.posix_fallocate(fd, 0, os.fstat(fd).st_size or LOCK_BYTES)
        finally:
            os.close(fd)

    def _set_modes(self) -> None:
        """Undo the umask. Somebody else's files are left as they are: that somebody set them."""
        for name, mode in ((DATA_FILE, DATA_MODE), (LOCK_FILE, LOCK_MODE)):
            path = self.directory / name
            if os.stat(path).st_mode & 0o777 != mode:
                with contextlib.suppress(PermissionError):
                    os.chmod(path, mode)

    def _refuse_truncated(self, env: lmdb.Environment) -> None:
        wanted_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        size_bytes = os.stat(self.directory / DATA_FILE).st_size
        if size_bytes < wanted_bytes:
            raise OSError(errno.EIO, f"{DATA_FILE} is {size_bytes} bytes long and must be {wanted_bytes}")

    def extend(self) -> None:
        """Lengthen the file to what LMDB says it is.

        A page taken and given back within one transaction is never written, so an intact file can be short
        of its last pages; readers could not tell it from a truncated one. Call it after a commit.
        """
        env = self._env
        if env is None:
            return
        path = self.directory / DATA_FILE
        wanted_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if os.stat(path).st_size >= wanted_bytes:
            self._note_growth()
            return
        with env.begin(write=True):  # nobody else can lengthen the file meanwhile
            wanted_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            if os.stat(path).st_size < wanted_bytes:
                os.truncate(path, wanted_bytes)
        self._note_growth()

    def _note_growth(self) -> None:
        """Remember the size after a commit of ours, as long as it is still the same file."""
        identity, seen = self._identity(), self._seen
        if identity is not None and seen is not None and identity[:2] == seen[:2]:
            self._seen = max(identity, seen)

    def _close(self) -> None:
        """Close; the caller holds `lock`."""
        self.reading = None
        self.answers = self.expiry = self.meta = self.templates = None
        env, self._env = self._env, None
        self._seen = None
        if env is not None:
            env.close()

    def unmap(self) -> None:
        """Give the map's memory back; the next use opens it again. Hold `write_lock`."""
        with self.lock:
            self._close()

    def abandon(self) -> None:
        """Forget what is open without closing it, and the locks: all of it is the parent's of a fork."""
        self.lock = threading.Lock()
        self.write_lock = threading.Lock()
        # Kept for ever: collecting it would free the parent's reader slot. LMDB then refuses to open the file
        # a second time, so this process has no cache, which is better than breaking the parent's.
        self._abandoned, self._env = self._env, None
        self._close()

    # --- watching -----------------------------------------------------------------------------------

    def verify(self) -> None:
        """See whether the files are still those that are open; reopen when not; for at most once a second."""
        self._failed = False
        if self.reading is not None:
            identity, seen = self._identity(), self._seen
            if identity is None or seen is None or identity[:2] != seen[:2] or identity[2] < seen[2]:
                with self.lock:
                    self._close()
            else:
                self._seen = identity
        self.open()

    def failed(self, exc: BaseException) -> None:
        """Note an error of a transaction; closes when only reopening helps. Not while holding `lock`."""
        self.problem = f"{self.directory}: {_describe(exc)}"
        if isinstance(exc, _REOPEN):
            with self.lock:
                self._close()
            self._failed = not self.healable(exc)
        elif isinstance(exc, ReadersFull):
            clock_s = time.monotonic()
            if clock_s - self._readers_checked_s >= CHECK_READERS_S:
                self._readers_checked_s = clock_s
                self.reader_check()

    @staticmethod
    def healable(exc: BaseException) -> bool:
        """Whether reopening at once can make the same read succeed."""
        return isinstance(exc, _HEALABLE)

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.directory / DATA_FILE)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size

    def reader_check(self) -> int:
        """Free the slots of dead readers; how many there were."""
        with self.lock:
            if self._env is None:
                return 0
            try:
                return self._env.reader_check()
            except StoreError:
                return 0

    def pages(self) -> Pages:
        """The file's pages, and the readers' slots taken."""
        with self.lock:
            env = self._env
            if env is None:
                return Pages()
            info, main = env.info(), env.stat()
            with env.begin() as txn:
                used = {handle: _pages(txn.stat(handle)) for handle in self._handles}
                entries = txn.stat(self.answers)["entries"]
            total = info["last_pgno"] + 1
            slots = env.readers().splitlines()[1:]  # below a heading, or below nothing: "(no active readers)"
        live = used[self.answers] + used[self.expiry]
        return Pages(
            page_bytes=main["psize"],
            total=total,
            free=max(0, total - 2 - _pages(main) - sum(used.values())),
            live=live,
            map_bytes=info["map_size"],
            readers=len(slots),
            entries=entries,
        )

    # --- transactions ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading_txn(self) -> Iterator[Transaction]:
        """A short read transaction on `answers`; the memory it hands out ends with it."""
        with self.lock:
            if self._env is None:
                raise lmdb.Error("the cache is not open")
            txn = self._env.begin(self.answers, None, False, True)
            try:
                yield txn
            finally:
                txn.abort()

    @contextlib.contextmanager
    def writing_txn(self) -> Iterator[Transaction]:
        """A write transaction: committed at the end, aborted by an exception. Hold `write_lock`."""
        env = self._env
        if env is None:
            raise lmdb.Error("the cache is not open")
        self._refuse_shrunk()
        with env.begin(write=True) as txn:
            yield txn

    def _refuse_shrunk(self) -> None:
        """Never write to a file that somebody has cut: its missing pages are SIGBUS, in every worker in turn.

        It is set aside, so that the next opening makes a new one, and everybody else notices within a second.
        """
        identity, seen = self._identity(), self._seen
        if identity is None or seen is None or identity[:2] != seen[:2] or identity[2] >= seen[2]:
            return
        for name in (DATA_FILE, LOCK_FILE):
            path = self.directory / name
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"{name}.bad-{int(time.time())}-shrunk"))
        with self.lock:
            self._close()
        raise OSError(errno.EIO, f"{DATA_FILE} has shrunk from {seen[2]} to {identity[2]} bytes; set aside")


def _pages(stat: Any) -> int:
    return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])


def structural_problems(directory: Path) -> list[str]:
    """What is wrong with the file's pages, walked as plain bytes, so that no damage can crash the walker.

    Only a file that nobody writes can be judged. Not to be called by a process that serves: it reads it all.
    """
    from lmdb import verify

    try:
        problems: list[str] = verify.verify(os.fspath(directory))  # type: ignore[no-untyped-call]
    except verify.VerifyError as exc:
        return [str(exc)]
    except (IndexError, ValueError, OverflowError, MemoryError) as exc:
        return [f"{type(exc).__name__}: {exc}"]  # sizes that no sound file has
    return problems


def is_damage(exc: BaseException) -> bool:
    """Whether an error says that the file itself is broken."""
    return isinstance(exc, _DAMAGE)


def _describe(exc: BaseException) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)


class _Process:
    """The environments of this process, by real path.

    The one piece of module-level state in walled: LMDB's locks belong to the process, so what must not be
    opened twice can only be known per process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Environment] = {}
        self._frozen: list[threading.Lock] = []

    def acquire(self, directory: Path) -> Environment:
        """The environment of a directory, opened or not; give it back with `release`."""
        path = os.path.realpath(directory)
        with self._lock:
            found = self._open.get(path)
            if found is None:
                found = self._open[path] = Environment(Path(path))
            found.users += 1
            return found

    def release(self, env: Environment) -> None:
        """Closes the environment when nobody of this process uses it any more."""
        with self._lock:
            env.users -= 1
            if env.users > 0:
                return
            self._open = {path: other for path, other in self._open.items() if other is not env}
        with env.write_lock, env.lock:
            env._close()

    def before_fork(self) -> None:
        """Close everything, and hold every lock so that nothing is opened until the fork is done.

        The wait is bounded: a signal handler that forks may have interrupted the very holder of a lock.
        """
        self._freeze(self._lock)
        for env in self._open.values():
            if self._freeze(env.write_lock) and self._freeze(env.lock):
                env._close()

    def _freeze(self, lock: threading.Lock) -> bool:
        if lock.acquire(timeout=FORK_WAIT_S):
            self._frozen.append(lock)
            return True
        return False

    def after_fork(self) -> None:
        """Let go; each side reopens at its next read."""
        while self._frozen:
            self._frozen.pop().release()

    def after_fork_in_child(self) -> None:
        """Let go, and never touch what could not be closed in time: it is the parent's."""
        if self._lock not in self._frozen:
            self._lock = threading.Lock()
        for env in self._open.values():
            if env.lock not in self._frozen:
                env.abandon()
        self.after_fork()


_PROCESS = _Process()
os.register_at_fork(
    before=_PROCESS.before_fork,
    after_in_parent=_PROCESS.after_fork,
    after_in_child=_PROCESS.after_fork_in_child,
)
acquire = _PROCESS.acquire
release = _PROCESS.release
