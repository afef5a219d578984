"""The real supervisor with the children of quick_clock_child.py."""

from __future__ import annotations

import sys
from pathlib import Path

from walled import config, supervisor

if __name__ == "__main__":
    path = Path(sys.argv[2])
    children = (sys.executable, str(Path(__file__).with_name("quick_clock_child.py")))
    sys.exit(supervisor.run(path, config.load(path), child_command=children))
