"""Observing: questions to the monitor about health, alerts and history, and orders about rules.

May live here: asking one question and returning its map. May not: the stream (subscriber.py), printing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from walled.errors import DaemonUnavailable, DeadlineExceeded
from walled_client import presence
from walled_client.discovery import find, place_of
from walled_client.wire import Wire


class Observer:
    """A connection to the monitor, for any number of threads. It goes on working when the monitor is
    replaced."""

    def __init__(
        self,
        run_dir: str | Path | None = None,
        endpoint: str | None = None,
        *,
        deadline_s: float = 5.0,
        connect_timeout_s: float = 3.0,
    ) -> None:
        """`endpoint`: a client socket, whose directory holds the monitor's socket too. A daemon that has
        certainly ended is known at once; else a monitor, which may be restarting, is waited for."""
        place = find(place_of(run_dir, endpoint))
        self._wire = Wire(
            place.monitor, connect_timeout_s, lambda: presence.gone(place.run_dir, place.monitor)
        )
        self._peer = place.monitor.removeprefix("ipc://")
        self._deadline_s = deadline_s

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """The reply's map. Raises the monitor's refusal, or DaemonUnavailable when none comes in time."""
        try:
            return self._wire.ask({"op": op, **fields}, self._deadline_s)
        except DeadlineExceeded:
            raise DaemonUnavailable(
                f"the monitor at {self._peer} did not answer {op} within {self._deadline_s:g} s"
            ) from None
        except DaemonUnavailable as exc:
            raise DaemonUnavailable(
                f"no monitor answers at {self._peer}; start the daemon with `walled`, or check the "
                "run directory",
                retry_after_s=exc.retry_after_s,
            ) from None

    def health(self) -> dict[str, Any]:
        """Score, grade, every deduction with symptom, impact, cause and action; leak verdicts."""
        return self.ask("health")

    def dashboard(self) -> dict[str, Any]:
        """Everything a person looks at first, in one map."""
        return self.ask("dashboard")

    def stats(self, window_s: float = 60.0, model: str = "") -> dict[str, Any]:
        """How requests fared in the last `window_s` seconds."""
        return self.ask("stats", window_s=window_s, model=model)

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

    def test_alert(
        self, rule: str, since_s: float = 600.0, series: str = "", schema: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """The changes of state the rule would have made on the history, at most 7 days back.

        `series`: looking at this one alone; `schema`: of a rule that is not there yet, or other values of one
        that is. Nobody is told, and nothing is changed.
        """
        found: list[dict[str, Any]] = self.ask(
            "alerts.test", rule=rule, since_s=since_s, series=series, schema=schema
        )["changes"]
        return found

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
