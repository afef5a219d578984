"""Jobs as tasks of one event loop in a thread of its own: what every adapter on a network needs.

May live here: the thread, the loop, submit, cancel, close, and the one ending of each job. May not: any
library of any backend, any notion of time limits (core/jobs.py judges silence, the worker keeps deadlines).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from walled.adapters.backend import BackendInfo, Done, Emit, Failed, Job
from walled.adapters.logs import safe_traceback
from walled.errors import Cancelled, InternalError, WalledError

JOIN_S = 5.0

_log = logging.getLogger("walled.backend")

Work = Coroutine[Any, Any, None]


class LoopThread:
    """The half of a Backend that does not know its protocol. `run` makes one job's answer, on the loop;
    `release` frees what `start`'s coroutine opened, after all jobs have ended."""

    def __init__(
        self, name: str, run: Callable[[Job], Coroutine[Any, Any, Done]], release: Callable[[], Work]
    ) -> None:
        self._name = name
        self._run = run
        self._release = release
        self.emit: Emit = _nobody
        self._lock = threading.Lock()
        """Guards _loop against a submit while it closes."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: dict[int, asyncio.Task[Done]] = {}

    def start(self, emit: Emit, opening: Coroutine[Any, Any, BackendInfo]) -> BackendInfo:
        """Run the loop, and `opening` on it. When that raises, all is closed and can be started again."""
        self.emit = emit
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(loop,), name=self._name, daemon=True)
        self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(opening, loop).result()
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> None:
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._begin, job)
                return
        self.emit(Failed(job.job_id, Cancelled("the backend is closing")))

    def cancel(self, job_id: int) -> None:
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel, job_id)

    def close(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        thread, self._thread = self._thread, None
        if loop is None or thread is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._end_all(), loop)
        try:
            closing.result(timeout=JOIN_S)
        except TimeoutError:
            _log.error("%s: connections did not close within %g s", self._name, JOIN_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    # --- in the loop's thread ---

    def _begin(self, job: Job) -> None:
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks[job.job_id] = task
        # A task that is cancelled before its first step never runs a line of its own: only this sees its end.
        task.add_done_callback(lambda done: self._ended(job.job_id, done))

    def _cancel(self, job_id: int) -> None:
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()

    def _ended(self, job_id: int, task: asyncio.Task[Done]) -> None:
        """The one place where a job's ending is emitted: after its slot and connection are free."""
        del self._tasks[job_id]
        if task.cancelled():
            self.emit(Failed(job_id, Cancelled("cancelled")))
            return
        error = task.exception()
        if error is None:
            self.emit(task.result())
        elif isinstance(error, WalledError):
            self.emit(Failed(job_id, error))
        else:
            _log.error("%s job: %s", self._name, safe_traceback(error))
            text = f"the {self._name} adapter failed: {type(error).__name__}"
            self.emit(Failed(job_id, InternalError(text)))

    async def _end_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._release()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """The thread: run the loop until it is stopped, then end what is left of it."""
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_cancel_rest())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _cancel_rest() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _nobody(event: object) -> None:
    """Stands for `emit` until `start` brings one."""
