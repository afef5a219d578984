"""Files the configuration names: small, UTF-8, TOML. What is wrong is said with the key that named the file.

May live here: reading and parsing within a cap. May not: what a file means (template_files.py,
rule_files.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from walled.errors import ConfigError

MAX_FILE_BYTES: Final = 1024 * 1024


def read(path: Path, key: str) -> dict[str, Any]:
    """The tables of a file. `key`: of the configuration. Raises ConfigError."""
    import tomllib  # most processes import this module and read no file

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{key}: {path}: cannot be read: {exc.strerror or exc}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{key}: {path}: more than {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{key}: {path}: not UTF-8: {exc}") from None
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{key}: {path}: not valid TOML: {exc}") from None
