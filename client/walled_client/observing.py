"""Observing: questions to the monitor about health, alerts and history, and orders about rules.

May live here: asking one question and returning its map. May not: the stream (subscriber.py), printing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Self

from walled import protocol
from walled.adapters.sockets import Hub, Poller
from walled.config import endpoints
from walled.errors import BadRequest, DaemonUnavailable, WalledError
from walled_client.discovery import find

RETRY_S = 0.02


class Observer:
    """A connection to the monitor. It goes on working when the monitor is replaced."""

    def __init__(self, run_dir: str | Path | None = None, *, deadline_s: float = 5.0) -> None:
        self._hub = Hub()
        self._port = self._hub.dealer(endpoints(find(run_dir).run_dir).monitor)
        self._port.connect()
        self._poller = Poller([self._port])
        self._deadline_s = deadline_s
        self._number = 0

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """The reply's map. Raises the monitor's refusal, or DaemonUnavailable when none comes in time."""
        until_s = time.monotonic() + self._deadline_s
        self._number += 1
        ident = str(self._number).encode()
        payload = protocol.pack_map({"op": op, **fields})
        frames = protocol.frames(protocol.CONTROL, ident, None, payload)
        sent = False
        while (left_s := until_s - time.monotonic()) > 0:
            # Nothing says "connected" but that a send is taken.
            sent = sent or self._port.send(frames)
            self._poller.wait(left_s if sent else min(left_s, RETRY_S))
            for parts in self._port.receive():
                message = protocol.parse(parts)
                if message.request_id == ident:  # an answer that came too late belongs to nobody
                    return _sound(protocol.unpack_map(message.payload))
        raise DaemonUnavailable(f"the monitor did not answer {op} within {self._deadline_s:g} s")

    def health(self) -> dict[str, Any]:
        """Score, grade, every deduction with symptom, impact, cause and action; leak verdicts."""
        return self.ask("health")

    def dashboard(self) -> dict[str, Any]:
        """Everything a person looks at first, in one map."""
        return self.ask("dashboard")

    def alerts(self) -> list[dict[str, Any]]:
        """Every rule and where it stands."""
        rows: list[dict[str, Any]] = self.ask("alerts.list")["alerts"]
        return rows

    def alert_history(self) -> dict[str, Any]:
        """`changes` of states and results of `actions`, the newest last."""
        return self.ask("alerts.history")

    def add_alert(self, rule: str, **schema: Any) -> None:
        """A new rule, or other values for some keys of one that exists (docs/alerts.md)."""
        self.ask("alerts.add", rule=rule, schema=schema)

    def remove_alert(self, rule: str) -> None:
        self.ask("alerts.remove", rule=rule)

    def silence(self, rule: str, reason: str, for_s: float, by: str = "") -> None:
        """Tell nobody of this rule for so long."""
        self.ask("alerts.silence", rule=rule, reason=reason, for_s=for_s, by=by)

    def unsilence(self, rule: str) -> None:
        self.ask("alerts.unsilence", rule=rule)

    def test_alert(self, rule: str, since_s: float = 600.0, series: str = "") -> list[dict[str, Any]]:
        """The changes of state the rule would have made on the history."""
        found: list[dict[str, Any]] = self.ask("alerts.test", rule=rule, since_s=since_s, series=series)[
            "changes"
        ]
        return found

    def close(self) -> None:
        self._hub.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sound(reply: dict[str, Any]) -> dict[str, Any]:
    error = reply.get("error")
    if not isinstance(error, dict):
        return reply
    text = str(error.get("message", ""))
    raise BadRequest(text) if error.get("code") == BadRequest.code else WalledError(text)
