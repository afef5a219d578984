"""Actions of alerts: what hangs is given up, what floods is bounded, and both are counted."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from walled.adapters import alert_state
from walled.adapters.actions import MAX_WAITING, THREADS, Actions, alertmanager_alert
from walled.core.alerts import Notify, RunAction
from walled.core.builtin_alerts import BY_NAME
from walled.sections import AlertsConfig


def about(**labels: str) -> Notify:
    return Notify(BY_NAME["errors"], "firing", "it fails", 0.5, labels, 1000.0, 1010.0, False)


def results(actions: Actions, count: int, within_s: float = 10.0) -> list[str]:
    """Results of that many actions; the threads tell of them through the list only."""
    until_s, never = time.monotonic() + within_s, socket.socketpair()
    never[0].settimeout(0.02)
    while len(actions.results()) < count and time.monotonic() < until_s:
        try:
            never[0].recv(1)
        except TimeoutError:
            continue
    for end in never:
        end.close()
    return [result.result for result in actions.results()]


def nobody(_: str, __: int) -> None:
    raise AssertionError("no remedy is asked for")


def test_a_webhook_that_hangs_is_given_up_and_keeps_nobody_waiting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = AlertsConfig(
            webhooks={"hung": f"http://127.0.0.1:{server.getsockname()[1]}/"}, action_timeout_s=0.3
        )
        actions = Actions(config, nobody)
        began_s = time.monotonic()
        actions.run(RunAction("webhook:hung", about()), 0.0)
        assert time.monotonic() - began_s < 0.2
        assert results(actions, 1) == ["timeout"]
        assert actions.take_counts() == {"timeout": 1}
        actions.close()


def test_a_flood_is_bounded_and_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        config = AlertsConfig(webhooks={"hung": url}, action_timeout_s=60.0, actions_per_minute=1000)
        actions = Actions(config, nobody)
        for _ in range(MAX_WAITING + THREADS + 50):
            actions.run(RunAction("webhook:hung", about()), 0.0)
        assert actions.take_counts()["dropped"] >= 50


def test_the_rate_is_limited_by_action_and_comes_back() -> None:
    actions = Actions(AlertsConfig(actions_per_minute=2), nobody)
    for now_s in (0.0, 1.0, 2.0, 61.5):
        actions.run(RunAction("log", about()), now_s)
    assert results(actions, 4) == ["ok", "ok", "limited", "ok"]
    actions.close()


def test_a_program_gets_fields_no_secrets_and_its_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = AlertsConfig(
        commands={"env": ("/bin/sh", "-c", f"env > {out}"), "bad": ("/bin/false",), "none": ("/no/such",)}
    )
    actions = Actions(config, nobody)
    actions.run(RunAction("exec:env", about(model="m; rm -rf /")), 0.0)
    assert results(actions, 1) == ["ok"]
    lines = out.read_text().splitlines()
    assert {"WALLED_ALERT=errors", "WALLED_STATUS=firing", "WALLED_LABEL_MODEL=m; rm -rf /"} <= set(lines)
    assert not any(line.startswith("PYTEST") for line in lines)
    for name in ("bad", "none"):
        actions.run(RunAction(f"exec:{name}", about()), 0.0)
    assert results(actions, 3)[1:] == ["failed", "failed"]
    actions.close()


def test_remedies_name_the_worker_of_the_alert_or_nobody() -> None:
    done: list[tuple[str, int]] = []
    actions = Actions(AlertsConfig(), lambda name, worker: done.append((name, worker)))
    actions.run(RunAction("recycle", about(role="worker", worker="3")), 0.0)
    actions.run(RunAction("recycle", about(role="broker", worker="")), 0.0)
    actions.run(RunAction("trim", about()), 0.0)
    actions.run(RunAction("shed", about()), 0.0)
    assert done == [("recycle", 3), ("trim", -1)], "what stays in force is not said here"
    assert results(actions, 4) == ["ok", "failed", "ok", "ok"]
    actions.close()


def test_an_alertmanager_gets_labels_and_times() -> None:
    alert = alertmanager_alert(about(model="m"))
    assert alert["labels"] == {"alertname": "errors", "severity": "critical", "model": "m"}
    assert alert["startsAt"] == "1970-01-01T00:16:40Z"
    assert "endsAt" not in alert
    assert alertmanager_alert(about()._replace(status="resolved"))["endsAt"] == "1970-01-01T00:16:50Z"


def test_the_state_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "alerts.state"
    assert alert_state.load(path) is None
    alert_state.save(path, b"one")
    alert_state.save(path, b"two")
    assert alert_state.load(path) == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["alerts.state"]
