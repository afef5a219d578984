"""The real children, with one thing added: SIGUSR1 puts the working loop into `while True`.

The handler runs where the loop runs, so the interpreter stays alive (its I/O threads beat on) and the loop
does not. No process of walled itself has such a handler: there SIGUSR1 ends it.
"""

from __future__ import annotations

import signal
import sys

from walled import child


def spin(number: int, frame: object) -> None:
    while True:
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, spin)
    child.leave(child.run(sys.argv[1:]))
