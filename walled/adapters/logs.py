"""Log lines on stderr, as text or JSON. No line ever holds a prompt or an answer.

May live here: formats, the handler, tracebacks made safe. May not: what is worth a line.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
import traceback

from walled.errors import WalledError

MAX_LINE_BYTES = 4000
"""Less than PIPE_BUF: a pipe that polls writable takes a line of this size whole, without blocking."""


class _StderrHandler(logging.Handler):
    """Writes a line to stderr if it can be taken now; a reader that does not read never stops the daemon."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poller = select.poll()
        self._poller.register(fd, select.POLLOUT)
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record).encode("utf-8", "replace")
        if len(line) > MAX_LINE_BYTES:
            line = line[:MAX_LINE_BYTES] + b"..."
        try:
            ready = self._poller.poll(0)
            if ready and ready[0][1] & select.POLLOUT:
                os.write(self._fd, line + b"\n")
            else:
                self.dropped += 1
        except OSError:
            self.dropped += 1


class _TextFormat(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        return f"{_stamp(record)} {record.levelname.lower():7} {self._process}: {record.getMessage()}"


class _JsonFormat(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "message": record.getMessage(),
        }
        line = json.dumps(fields)
        if len(line) > MAX_LINE_BYTES:  # a cut line would not be JSON; one character is at most 12 of it
            line = json.dumps({**fields, "message": record.getMessage()[:300] + "..."})
        return line


def _stamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def set_up(process: str, level: str, style: str) -> None:
    """Send the log of this process to stderr. `process` as in its title: "worker 2"."""
    handler = _StderrHandler(sys.__stderr__.fileno() if sys.__stderr__ else 2)
    handler.setFormatter(_JsonFormat(process) if style == "json" else _TextFormat(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    logging.raiseExceptions = False


def set_level(level: str) -> None:
    """Change the level at run time."""
    logging.getLogger().setLevel(level.upper())


def safe_traceback(exc: BaseException) -> str:
    """Where and what, on one line, without locals.

    The message of a foreign exception is left out: it may quote the text it choked on.
    """
    frames = traceback.extract_tb(exc.__traceback__)[-12:]
    path = " > ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in frames)
    says = f": {exc}" if isinstance(exc, WalledError | OSError | ImportError) else ""
    return f"{type(exc).__name__}{says} at {path}"
