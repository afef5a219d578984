"""The real supervisor with the children of spinning_child.py; SIGUSR1 puts itself into a loop as well."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.spinning_child import spin
from walled import config, supervisor
from walled.errors import BootError

if __name__ == "__main__":
    path = Path(sys.argv[2])
    signal.signal(signal.SIGUSR1, spin)
    children = (sys.executable, str(Path(__file__).with_name("spinning_child.py")))
    try:
        sys.exit(supervisor.run(path, config.load(path), child_command=children))
    except BootError as exc:
        print(f"walled: {exc.message}", file=sys.stderr)
        sys.exit(78)
