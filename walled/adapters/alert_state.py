"""The file that keeps alerts over a restart of the monitor.

May live here: reading, writing so that a crash leaves the old or the new content. May not: what is in it.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_BYTES = 4 * 1024 * 1024


def load(path: Path) -> bytes | None:
    """The content; None when there is none. Raises OSError, ValueError for one that is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return data


def save(path: Path, data: bytes) -> None:
    """Replace the content whole. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
    fresh.replace(path)
