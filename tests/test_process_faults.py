"""Faults of whole processes: killed, stopped, spinning, poisoned, out of descriptors, without a directory.

What is promised each time: callers get an answer or a typed error, what hangs is replaced within 5 s, and the
rest serves on.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from walled_client import Client

from tests.calling import Callers
from tests.daemon_process import ROOT, Daemon, ended, running, write_config
from walled import errors
from walled.adapters import descriptors

pytestmark = pytest.mark.process

SPINNING = (sys.executable, "-m", "tests.spinning_daemon")
REPLACED_S = 5.0
SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client")])}
    with running(write_config(tmp_path), command=SPINNING, environment=environment) as found:
        found.complete(4)
        yield found


def hit(daemon: Daemon, name: str, fault: signal.Signals) -> tuple[int, float]:
    """Do it to a child; its pid and when."""
    pid = daemon.children()[name]
    os.kill(pid, fault)
    return pid, time.monotonic()


FAULTS = [signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR1]


@pytest.mark.parametrize("fault", FAULTS, ids=["killed", "stopped", "spinning"])
def test_a_child_that_works_no_more_is_replaced_within_five_seconds_and_every_call_is_answered(
    daemon: Daemon, fault: signal.Signals
) -> None:
    callers = Callers(daemon.run_dir)
    callers.more(10)
    old = {}
    for names in (("worker 0", "monitor"), ("broker",)):
        for name in names:
            old[name], since_s = hit(daemon, name, fault)
        waiting = set(names)
        while waiting:
            waiting.discard(daemon.until(r"supervisor: ([\w ]+) ready \(pid", 10)[1])
        assert time.monotonic() - since_s <= REPLACED_S
        callers.more(10)
    assert set(callers.end()) == {"answered"}
    assert all(ended(pid, 0) for pid in old.values())
    assert not old.items() & daemon.children().items()
    assert daemon.stop() == 0


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGUSR1], ids=["stopped", "spinning"])
def test_without_its_supervisor_the_daemon_answers_on(daemon: Daemon, fault: signal.Signals) -> None:
    """Longer than a child may be silent: when it looks again it must not take its own absence for theirs."""
    before = daemon.children()
    callers = Callers(daemon.run_dir)
    callers.more(5)
    daemon.signal(fault)
    until_s = time.monotonic() + 5.0
    while time.monotonic() < until_s:
        callers.more(20)
    if fault is signal.SIGSTOP:
        daemon.signal(signal.SIGCONT)
        daemon.until("the supervisor itself was stopped or starved")
        callers.more(50)
        assert not daemon.look_for("killing it|died", 1.0)
        assert daemon.children() == before
    assert set(callers.end()) == {"answered"}
    if fault is signal.SIGUSR1:
        # What systemd's watchdog does: nobody survives it.
        daemon.signal(signal.SIGKILL)
        assert all(ended(pid, 5.0) for pid in before.values())


# --- poison and crash loops ------------------------------------------------------------------------

TWO_MODELS = """
backend = ["good", "bad"]
[daemon]
run_dir = "{dir}/run"
allow_scripted = true
[cache]
path = "{dir}/cache"
[templates]
builtin = false
[supervisor]
restart_intensity = 3
restart_period_s = 4.0
backoff_initial_s = 0.05
backoff_max_s = 0.1
[backends.good]
kind = "scripted"
model = "sound"
[backends.bad]
kind = "scripted"
model = "poisoned"
"""


def test_a_poisonous_request_runs_twice_at_most_and_a_crash_loop_costs_only_its_own_model(
    tmp_path: Path,
) -> None:
    path = tmp_path / "walled.toml"
    path.write_text(TWO_MODELS.format(dir=tmp_path))
    with running(path) as daemon, Client(run_dir=daemon.run_dir, cache=False) as client:
        daemon.complete(4)
        callers = Callers(daemon.run_dir, model="sound")
        with pytest.raises(errors.WalledError):
            client.chat("take this\n!crash", model="poisoned", deadline_s=10)
        daemon.until(r"worker 1 ready")
        deaths = [line for line in daemon.lines if "died: killed by SIGKILL" in line]
        assert len(deaths) <= 2, "the third worker would have been the third victim of one request"
        for _ in range(3):
            with pytest.raises(errors.WalledError):
                client.chat("take this\n!crash", model="poisoned", deadline_s=2)
            if daemon.look_for("worker 1 .*given up", 0.0):
                break
        else:
            daemon.until("worker 1 .*given up")
        callers.more(20)
        rows = {row["slot"]: row for row in workers(daemon)}
        assert rows[0]["phase"] == "ready"
        daemon.until("worker 1 is tried again in 4 s")
        daemon.until("worker 1 ready")
        assert client.chat("well again?", model="poisoned", deadline_s=10).text
        assert set(callers.end()) == {"answered"}
        assert daemon.stop() == 0


def test_a_crash_loop_of_one_model_opens_its_breaker_and_leaves_the_rest_serving(tmp_path: Path) -> None:
    path = tmp_path / "walled.toml"
    text = TWO_MODELS.format(dir=tmp_path).replace("restart_intensity = 3", "restart_intensity = 100")
    path.write_text(text + "\n[ladder]\nbreaker_failures = 3\nbreaker_open_s = 3.0\n")
    with running(path) as daemon, Client(run_dir=daemon.run_dir, cache=False, retries=0) as client:
        daemon.complete(4)
        callers = Callers(daemon.run_dir, model="sound")
        until_s = time.monotonic() + 30.0
        while breaker(client, "bad") != "open":
            assert time.monotonic() < until_s, "a model whose worker dies at every request stays in use"
            with suppress(errors.WalledError):
                client.chat("take this\n!crash", model="poisoned", deadline_s=2)
        daemon.until("worker 1 ready")
        began_s = time.monotonic()
        with pytest.raises(errors.WalledError) as refused:
            client.chat("innocent", model="poisoned", deadline_s=10)
        assert time.monotonic() - began_s < 1.0, "refused at once, for none is sent while it is open"
        assert refused.value.retry_after_s
        assert breaker(client, "good") == "closed"
        callers.more(20)
        until_s = time.monotonic() + 20.0
        while True:
            assert time.monotonic() < until_s, "the probe of an open breaker never comes"
            with suppress(errors.WalledError):
                assert client.chat("well again?", model="poisoned", deadline_s=2).text
                break
        while breaker(client, "bad") != "closed":
            assert time.monotonic() < until_s, "it answers, and its breaker is said to be open"
        assert set(callers.end()) == {"answered"}
        assert daemon.stop() == 0


def breaker(client: Client, backend: str) -> str:
    """As the monitor has it; a new monitor, and the first second of a life, know of none."""
    series = client.dashboard()["metrics"].get("walled_breaker_state", [])
    states = {row["labels"]["backend"]: row["value"] for row in series}
    return {0.0: "closed", 1.0: "half open", 2.0: "open"}[states.get(backend, 0.0)]


def workers(daemon: Daemon) -> list[dict[str, object]]:
    tree = daemon.control("status")["tree"]
    return [row for row in tree["children"] if row["role"] == "worker"]


# --- descriptors -----------------------------------------------------------------------------------


def test_every_process_takes_as_many_descriptors_as_it_may_have(daemon: Daemon) -> None:
    for pid in daemon.children().values():
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard


def test_a_broker_short_of_descriptors_keeps_new_clients_out_and_serves_the_others(daemon: Daemon) -> None:
    """libzmq aborts at an `accept` without a descriptor: it must not come to that."""
    pid = daemon.children()["broker"]
    with Client(run_dir=daemon.run_dir, cache=False) as client:
        assert client.chat("first", deadline_s=10).text
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 8, HARD))
        daemon.until("file descriptors are short", 5)
        began_s = time.monotonic()
        with Client(run_dir=daemon.run_dir, cache=False) as late, pytest.raises(errors.DaemonUnavailable):
            late.chat("anybody?", deadline_s=10)
        assert time.monotonic() - began_s < 3.0
        for _ in range(20):
            assert client.chat("who was here is served", deadline_s=10).text
        before_s = psutil.Process(pid).cpu_times()
        assert not daemon.look_for("died", 1.0)
        after_s = psutil.Process(pid).cpu_times()
        assert (after_s.user + after_s.system) - (before_s.user + before_s.system) < 0.5, "it spins"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (SOFT, HARD))
        daemon.until("no longer short", 5)
        with Client(run_dir=daemon.run_dir, cache=False) as late:
            assert late.chat("and now?", deadline_s=10).text
    assert daemon.children()["broker"] == pid


def test_a_worker_without_descriptors_answers_on(daemon: Daemon) -> None:
    with Client(run_dir=daemon.run_dir) as client:
        assert client.chat("first", temperature=0, deadline_s=10).text
        for name, pid in daemon.children().items():
            if name.startswith("worker"):
                used = len(os.listdir(f"/proc/{pid}/fd"))
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, HARD))
        for number in range(30):
            assert client.chat(f"question {number}", temperature=0, deadline_s=10).text
    assert not daemon.look_for("died", 0.1)


def test_a_client_without_descriptors_gets_a_typed_error_and_lives() -> None:
    """libzmq would end the caller's process."""
    program = (
        "import os, resource\n"
        "from walled_client import Client\n"
        "from walled.errors import WalledError\n"
        "n = len(os.listdir('/proc/self/fd'))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (n + 2, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "try:\n"
        "    with Client(run_dir='/nonexistent', cache=False) as client: client.chat('x', deadline_s=1)\n"
        "except WalledError as exc:\n"
        "    print(exc.code)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client")])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "daemon_unavailable"), done.stderr


def test_a_door_is_shut_before_the_last_descriptor_and_opened_later(tmp_path: Path) -> None:
    socket_file = tmp_path / "client.sock"
    socket_file.touch()
    stale = tmp_path / "client.sock.shut"
    stale.touch()
    door = descriptors.Door(f"ipc://{socket_file}")
    assert not stale.exists(), "a dead process's"
    assert not door.look()
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors.taken() + 8, HARD))
    try:
        assert door.look()
        assert door.shut
        assert not socket_file.exists()
        assert not door.look()
        assert not descriptors.available(16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, HARD))
    assert door.look()
    assert not door.shut
    assert socket_file.exists()
    assert descriptors.available(16)


# --- the run directory -----------------------------------------------------------------------------


def test_a_deleted_run_directory_comes_back_and_nobody_connected_notices(daemon: Daemon) -> None:
    callers = Callers(daemon.run_dir)
    callers.more(5)
    pids = daemon.children()
    shutil.rmtree(daemon.run_dir)
    began_s = time.monotonic()
    # A new client meanwhile: a typed error at once, or an answer if the daemon was quicker to notice.
    with Client(run_dir=daemon.run_dir, cache=False) as early, suppress(errors.DaemonUnavailable):
        early.chat("anybody?", deadline_s=10)
    assert time.monotonic() - began_s < 3.0
    daemon.until("the run directory .* was deleted; made again", 5)
    with Client(run_dir=daemon.run_dir, cache=False) as late:
        assert late.chat("and now?", deadline_s=10).text
    assert daemon.control("status")["ok"]
    callers.more(5)
    assert set(callers.end()) == {"answered"}
    assert daemon.children() == pids, "nobody was restarted for it"
    assert re.search(r'"cache_dir"', (daemon.run_dir / "walled.json").read_text())
    assert daemon.stop() == 0


def test_a_daemon_whose_place_was_taken_leaves_it_to_the_other(daemon: Daemon) -> None:
    daemon.signal(signal.SIGSTOP)
    shutil.rmtree(daemon.run_dir)
    with running(daemon.config) as other:
        other.ready()
        daemon.signal(signal.SIGCONT)
        assert daemon.wait() == 78
        assert "already" in "\n".join(daemon.lines)
        with Client(run_dir=other.run_dir, cache=False) as client:
            assert client.chat("still here?", deadline_s=10).text
        assert other.stop() == 0


# --- walled-ctl stop --wait ------------------------------------------------------------------------


def test_stop_can_wait_for_the_end(daemon: Daemon) -> None:
    program = "import sys; from walled_client.ctl import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client")])}
    done = subprocess.run(
        [sys.executable, "-c", program, "stop", "--wait", "--run-dir", str(daemon.run_dir)],
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "has stopped" in done.stdout
    assert ended(daemon.pid, 0)
