"""Control: an operator's line to the daemon, over its control socket.

May live here: asking one operation and returning its map. May not: printing, deciding what the map means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from walled.protocol import ControlRequest
from walled_client.discovery import find, place_of
from walled_client.wire import Wire


class Control:
    """A connection to the control socket; the operations are listed in docs/protocol.md, section Control."""

    def __init__(
        self,
        run_dir: str | Path | None = None,
        endpoint: str | None = None,
        *,
        connect_timeout_s: float = 1.0,
    ) -> None:
        """`endpoint`: a client socket, whose directory holds the control socket too."""
        self._wire = Wire(find(place_of(run_dir, endpoint)).control, connect_timeout_s)

    def ask(self, op: str, *, worker: int = -1, request: str = "", deadline_s: float = 5.0) -> dict[str, Any]:
        """The reply's map; raises the daemon's refusal, or DaemonUnavailable."""
        return self._wire.ask(ControlRequest(op, worker, request), deadline_s)

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
