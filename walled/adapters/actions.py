"""What alerts do, outside the monitor's loop: tell a webhook or an Alertmanager, run a program.

May live here: threads, HTTP, programs, their timeouts and limits. May not: when anything is done
(core/alerts.py), remedies that are an order to the supervisor (the monitor's).

Whatever hangs, hangs in one of few threads until its timeout; what does not fit into the queue meanwhile is
counted and not done. No action keeps the monitor waiting.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from walled.core.alerts import HELD, REMEDIES, Notify, RunAction
from walled.sections import AlertsConfig

log = logging.getLogger(__name__)

THREADS = 4
MAX_WAITING = 100
MAX_RESULTS = 200
MINUTE_S = 60.0
LABEL = "WALLED_LABEL_"


class Result(NamedTuple):
    """How one action ended."""

    rule: str
    action: str
    result: str
    """ok, failed, timeout, limited (rate), dropped (the queue is full)."""
    detail: str
    at_s: float
    took_s: float


class Actions:
    """A few threads and a bounded queue."""

    def __init__(self, config: AlertsConfig, remedy: Callable[[str, int], None]) -> None:
        """`remedy` has a remedy carried out: its name, the number of the worker or -1; called in the
        caller's thread."""
        self._config = config
        self._remedy = remedy
        self._jobs: queue.Queue[RunAction | None] = queue.Queue(MAX_WAITING)
        self._begun: dict[str, deque[float]] = {}
        self._lock = threading.Lock()
        self._results: deque[Result] = deque(maxlen=MAX_RESULTS)
        self._counts: Counter[str] = Counter()
        for number in range(THREADS):
            threading.Thread(target=self._work, daemon=True, name=f"action {number}").start()

    def run(self, job: RunAction, now_s: float) -> None:
        """Returns at once, whatever the action is."""
        begun = self._begun.setdefault(job.action, deque())
        while begun and begun[0] <= now_s - MINUTE_S:
            begun.popleft()
        if len(begun) >= self._config.actions_per_minute:
            self._note(job, "limited", "more than alerts.actions_per_minute", 0.0)
            return
        begun.append(now_s)
        if job.action == "log":
            about = job.about
            level = logging.WARNING if about.status == "firing" else logging.INFO
            log.log(level, "alert %s %s: %s", about.rule.name, about.status, about.summary)
            self._note(job, "ok", "", 0.0)
        elif job.action in REMEDIES:
            slot = job.about.labels.get("worker", "")
            worker = int(slot) if slot.isdigit() else -1
            if job.action == "recycle" and worker < 0:
                self._note(job, "failed", "no worker is named", 0.0)
                return
            if job.action not in HELD:  # those are renewed for as long as the alert lasts (judgement.py)
                self._remedy(job.action, worker)
            self._note(job, "ok", "", 0.0)
        else:
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                self._note(job, "dropped", f"{MAX_WAITING} actions wait already", 0.0)

    def reconfigure(self, config: AlertsConfig) -> None:
        self._config = config

    def results(self) -> list[Result]:
        """The newest last."""
        with self._lock:
            return list(self._results)

    def take_counts(self) -> Counter[str]:
        """Results since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return counts

    def close(self) -> None:
        """Threads end after what they do now; they do not keep the process."""
        for _ in range(THREADS):
            with contextlib.suppress(queue.Full):
                self._jobs.put_nowait(None)

    def _note(self, job: RunAction, result: str, detail: str, took_s: float) -> None:
        with self._lock:
            self._counts[result] += 1
            self._results.append(
                Result(job.about.rule.name, job.action, result, detail[:200], time.time(), took_s)
            )

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            began_s = time.monotonic()
            try:
                self._do(job)
                result, detail = "ok", ""
            except (TimeoutError, subprocess.TimeoutExpired):
                result, detail = "timeout", f"more than {self._config.action_timeout_s:g} s"
            except (OSError, http.client.HTTPException, ValueError, _FailedError) as exc:
                result, detail = "failed", f"{type(exc).__name__}: {exc}"
            self._note(job, result, detail, time.monotonic() - began_s)
            if result != "ok":
                log.warning("alert %s: action %s: %s", job.about.rule.name, job.action, detail)

    def _do(self, job: RunAction) -> None:
        kind, _, name = job.action.partition(":")
        if kind == "webhook":
            self._post(self._config.webhooks[name], webhook_payload(job.about, name))
        elif kind == "alertmanager":
            url = self._config.alertmanagers[name].rstrip("/") + "/api/v2/alerts"
            self._post(url, [alertmanager_alert(job.about)])
        elif kind == "exec":
            self._execute(self._config.commands[name], environment(job.about))
        else:
            raise _FailedError(f"no action {job.action}")

    def _post(self, url: str, payload: Any) -> None:
        # http.client follows no redirects and knows no proxies: the alert goes where the configuration says.
        parts = urlsplit(url)
        door = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = door(parts.hostname or "", parts.port, timeout=self._config.action_timeout_s)
        # A timeout of http.client is for one read: a server that drips would be waited for without end.
        watchdog = threading.Timer(self._config.action_timeout_s, _cut, [connection])
        watchdog.daemon = True
        watchdog.start()
        began_s = time.monotonic()
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            body = json.dumps(payload).encode()
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            if time.monotonic() - began_s >= self._config.action_timeout_s:
                raise TimeoutError from None
            raise
        finally:
            watchdog.cancel()
            connection.close()
        if not 200 <= status < 300:
            raise _FailedError(f"the server answered {status}")

    def _execute(self, command: tuple[str, ...], fields: Mapping[str, str]) -> None:
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with subprocess.Popen(
            command,
            env={**keep, **fields},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as child:
            try:
                status = child.wait(self._config.action_timeout_s)
            except subprocess.TimeoutExpired:
                # Its children too: it leads a session of its own.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                raise
        if status != 0:
            raise _FailedError(f"the program ended with {status}")


class _FailedError(Exception):
    pass


def _cut(connection: http.client.HTTPConnection) -> None:
    import socket

    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z")


NEVER = "0001-01-01T00:00:00Z"


def alertmanager_alert(about: Notify) -> dict[str, Any]:
    """As POST /api/v2/alerts takes it."""
    alert = {
        "labels": {"alertname": about.rule.name, "severity": about.rule.severity, **about.labels},
        "annotations": {"summary": about.summary, "runbook": about.rule.runbook},
        "startsAt": _time(about.since_s),
    }
    return alert | ({"endsAt": _time(about.at_s)} if about.status == "resolved" else {})


def webhook_payload(about: Notify, receiver: str) -> dict[str, Any]:
    """Alertmanager's webhook payload, version 4, of one alert."""
    alert = {"status": about.status, **alertmanager_alert(about), "generatorURL": "", "fingerprint": ""}
    alert.setdefault("endsAt", NEVER)
    return {
        "version": "4",
        "groupKey": f"walled:{about.rule.name}",
        "truncatedAlerts": 0,
        "status": about.status,
        "receiver": receiver,
        "groupLabels": {"alertname": about.rule.name},
        "commonLabels": alert["labels"],
        "commonAnnotations": alert["annotations"],
        "externalURL": "",
        "alerts": [alert],
    }


def environment(about: Notify) -> dict[str, str]:
    """What a program is told."""
    labels = {LABEL + name.upper(): value.replace("\0", "") for name, value in about.labels.items()}
    return {
        "WALLED_ALERT": about.rule.name,
        "WALLED_STATUS": about.status,
        "WALLED_SEVERITY": about.rule.severity,
        "WALLED_SUMMARY": about.summary.replace("\0", ""),
        "WALLED_VALUE": "" if about.value is None else f"{about.value:g}",
        **labels,
    }
