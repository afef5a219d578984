"""The real supervisor with the children of stand_in_child.py."""

from __future__ import annotations

import sys
from pathlib import Path

from walled import config, supervisor
from walled.errors import BootError

if __name__ == "__main__":
    path = Path(sys.argv[2])
    child = (sys.executable, str(Path(__file__).with_name("stand_in_child.py")))
    try:
        sys.exit(supervisor.run(path, config.load(path), child_command=child))
    except BootError as exc:
        print(f"walled: {exc.message}", file=sys.stderr)
        sys.exit(78)
