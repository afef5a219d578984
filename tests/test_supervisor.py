"""The supervisor with real processes: real signals, real deaths, real pipes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon_process import ROOT, Daemon, ended, running, write_config
from walled.adapters.runlock import read_manifest

pytestmark = pytest.mark.process

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_daemon.py")))
STAND_IN_PATH = {"PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def stand_in(config: Path, **environment: str) -> Iterator[Daemon]:
    with running(config, command=STAND_IN, environment={**STAND_IN_PATH, **environment}) as daemon:
        yield daemon


# --- the real daemon -------------------------------------------------------------------------------


def test_ready_stop_and_what_is_left(tmp_path: Path) -> None:
    with running(write_config(tmp_path)) as daemon:
        children = daemon.complete(4)
        ready = [line for line in daemon.lines if " ready: model" in line]
        assert ready == [f"walled 0.1.0 ready: model scripted (s, scripted), sockets in {daemon.run_dir}"]
        assert set(children) == {"broker", "monitor", "worker 0", "worker 1"}
        tree = daemon.control("status")["tree"]
        assert {(c["role"], c["pid"]) for c in tree["children"]} >= {("broker", children["broker"])}
        assert daemon.stop() == 0
        assert all(ended(pid, 0) for pid in children.values())
        kept = ["alerts.state", "monitor.state", "walled.json", "walled.lock"]
        assert sorted(path.name for path in daemon.run_dir.iterdir()) == kept
        manifest = read_manifest(daemon.run_dir)
        assert manifest is not None
        assert manifest.cache_dir == str(tmp_path / "cache")
        assert manifest.pid == daemon.pid


def test_run_directory_and_its_files_are_closed_to_others(tmp_path: Path) -> None:
    with running(write_config(tmp_path)) as daemon:
        daemon.ready()
        for path in [daemon.run_dir, *daemon.run_dir.iterdir()]:
            assert path.stat().st_mode & 0o007 == 0, path


def test_ctrl_c_stops_too(tmp_path: Path) -> None:
    with running(write_config(tmp_path, backend="workers = 1")) as daemon:
        daemon.ready().signal(signal.SIGINT)
        assert daemon.wait() == 0


def test_every_killed_child_comes_back_and_the_daemon_serves_on(tmp_path: Path) -> None:
    with running(write_config(tmp_path, backend="workers = 1")) as daemon:
        before = daemon.complete(3)
        for name, pid in before.items():
            os.kill(pid, signal.SIGKILL)
            daemon.until(rf"{name} \(pid {pid}\) died: killed by SIGKILL; starting it again at once")
            new = daemon.until(rf"supervisor: {name} ready \(pid (\d+)\)")[1]
            assert int(new) != pid
        assert daemon.control("workers.list")["ok"]
        tree = daemon.control("status")["tree"]["children"]
        assert daemon.stop() == 0
    assert len(tree) == 3


def test_no_child_survives_the_supervisor(tmp_path: Path) -> None:
    with running(write_config(tmp_path)) as daemon:
        children = daemon.complete(4)
        daemon.signal(signal.SIGKILL)
        assert [name for name, pid in children.items() if not ended(pid, 2.0)] == []


def test_a_daemon_starts_where_one_was_killed(tmp_path: Path) -> None:
    config = write_config(tmp_path, backend="workers = 1")
    with running(config) as first:
        first.ready().signal(signal.SIGKILL)
        first.process.wait()
        with running(config) as second:
            second.ready()
            assert second.control("workers.list")["ok"]
            assert second.stop() == 0


def test_a_second_daemon_is_refused_and_the_first_not_harmed(tmp_path: Path) -> None:
    config = write_config(tmp_path, backend="workers = 1")
    with running(config) as first:
        first.ready()
        with running(config) as second:
            assert second.wait() == 3
            assert second.lines[-1].startswith("walled: ")
            assert f"(pid {first.pid})" in second.lines[-1]
        assert first.control("workers.list")["ok"]
        assert first.stop() == 0


def test_a_hung_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    config = write_config(tmp_path, supervisor="hang_timeout_s = 1.0", backend="workers = 1")
    with running(config) as daemon:
        worker = daemon.complete(3)["worker 0"]
        os.kill(worker, signal.SIGSTOP)
        daemon.until(rf"worker 0 \(pid {worker}\) silent for \d+\.\d s; killing it")
        daemon.until(r"supervisor: worker 0 ready")
        assert daemon.stop() == 0


def test_a_supervisor_that_was_stopped_blames_nobody(tmp_path: Path) -> None:
    config = write_config(tmp_path, supervisor="hang_timeout_s = 2.0", backend="workers = 1")
    with running(config) as daemon:
        before = daemon.complete(3)
        daemon.signal(signal.SIGSTOP)
        assert daemon.look_for("killing it", 2.5) is None
        daemon.signal(signal.SIGCONT)
        daemon.until("the supervisor itself was stopped or starved")
        assert daemon.look_for("killing it", 1.2) is None
        assert daemon.children() == before
        assert daemon.stop() == 0


def test_reload_adds_and_removes_workers_and_refuses_nonsense(tmp_path: Path) -> None:
    with running(write_config(tmp_path, backend="workers = 1")) as daemon:
        before = daemon.complete(3)
        write_config(tmp_path, backend="workers = 2")
        daemon.signal(signal.SIGHUP)
        daemon.until("reload finished")
        assert set(daemon.children()) == {*before, "worker 1"}

        write_config(tmp_path, backend="workers = 2\ntoken_s = -1.0")
        daemon.signal(signal.SIGHUP)
        daemon.until("reload refused, nothing has changed: .*token_s")

        write_config(tmp_path, daemon='log_format = "json"', backend="workers = 1")
        daemon.signal(signal.SIGHUP)
        daemon.until("daemon.log_format has changed; it takes effect at the next start")
        daemon.until("reload finished")
        assert set(daemon.children()) == set(before)
        assert daemon.children()["broker"] == before["broker"]
        assert daemon.stop() == 0


def test_an_operators_restart_puts_a_new_worker_before_the_old_one_goes(tmp_path: Path) -> None:
    with running(write_config(tmp_path, backend="workers = 1")) as daemon:
        old = daemon.complete(3)["worker 0"]
        assert daemon.control("workers.restart", 0)["ok"]
        new = int(daemon.until(r"supervisor: worker 0 ready \(pid (\d+)\)")[1])
        assert new != old
        daemon.until(rf"worker 0 \(pid {old}, replaced\): exit status 0")
        assert daemon.children()["worker 0"] == new
        assert daemon.stop() == 0


def test_an_operator_can_stop_the_daemon(tmp_path: Path) -> None:
    with running(write_config(tmp_path, backend="workers = 1")) as daemon:
        assert daemon.ready().control("stop")["ok"]
        assert daemon.wait() == 0


def test_sd_notify_tells_ready_after_a_worker_answered_then_reload_then_stop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        told: list[str] = []

        def until(word: str) -> str:
            while not any(word in text.split("\n") for text in told):
                told.append(manager.recv(4096).decode())
            return told[-1]

        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with running(write_config(tmp_path, backend="load_s = 0.5"), environment=environment) as daemon:
            text = until("READY=1")
            assert f"MAINPID={daemon.pid}" in text
            assert "STATUS=ready: model scripted" in text
            daemon.until("worker 0 is ready")
            until("WATCHDOG=1")
            told.clear()
            daemon.signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in until("RELOADING=1")
            until("READY=1")
            daemon.signal(signal.SIGTERM)
            until("STOPPING=1")
            assert daemon.wait() == 0


# --- misbehaving children --------------------------------------------------------------------------


def test_a_boot_error_halts_the_daemon(tmp_path: Path) -> None:
    with stand_in(write_config(tmp_path, backend='text = "boot error"'), STAND_IN_BROKER="mute") as daemon:
        assert daemon.wait() == 78
        assert daemon.lines[-1] == "walled: worker 0: no such model file"


def test_a_server_that_is_not_there_yet_is_tried_again(tmp_path: Path) -> None:
    with stand_in(write_config(tmp_path, backend='text = "later"')) as daemon:
        daemon.until(r"worker 0 .* died: exit status 1 \(nobody listens there\); starting it again at once")
        daemon.until("supervisor: worker 0 ready")
        assert daemon.stop() == 0


def test_a_defect_is_logged_without_what_it_choked_on(tmp_path: Path) -> None:
    with stand_in(write_config(tmp_path, backend='text = "defect"')) as daemon:
        daemon.until(r"worker 0: ends by a defect: ValueError at .*stand_in_child.py:\d+ worker")
        daemon.stop()
        assert "secret" not in "\n".join(daemon.lines)


def test_garbage_on_the_link_costs_only_its_sender(tmp_path: Path) -> None:
    with stand_in(write_config(tmp_path, backend='text = "garbage"')) as daemon:
        daemon.until(r"worker 0 .* sent something that is not a message; killing it")
        daemon.until("supervisor: worker 0 ready")
        assert daemon.stop() == 0


def test_a_child_deaf_to_stop_is_killed(tmp_path: Path) -> None:
    config = write_config(tmp_path, supervisor="start_timeout_s = 60.0", backend='text = "stubborn"')
    config.write_text(config.read_text().replace("stop_timeout_s = 3.0", "stop_timeout_s = 0.5"))
    with stand_in(config) as daemon:
        daemon.until("supervisor: worker 0 ready")
        daemon.signal(signal.SIGTERM)
        daemon.until(r"worker 0 .* has not stopped in time; killing it")
        assert daemon.wait() == 0


def test_a_second_sigterm_does_not_wait_for_requests(tmp_path: Path) -> None:
    with stand_in(write_config(tmp_path), STAND_IN_BROKER="busy") as daemon:
        daemon.ready().signal(signal.SIGTERM)
        daemon.until("draining: requests in flight have 30 s")
        assert daemon.look_for("ends:", 0.5) is None, "a request is still in flight"
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(5.0) == 0
        assert "ends: stopped at once" in daemon.lines[-1]


def test_a_drain_ends_with_its_time(tmp_path: Path) -> None:
    with stand_in(write_config(tmp_path, daemon="drain_timeout_s = 0.2"), STAND_IN_BROKER="busy") as daemon:
        daemon.ready().signal(signal.SIGTERM)
        daemon.until("drain: time is up")
        assert daemon.wait() == 0


def test_asks_of_the_broker_are_heard(tmp_path: Path) -> None:
    with stand_in(write_config(tmp_path), STAND_IN_BROKER="stop") as daemon:
        assert daemon.wait() == 0


@pytest.mark.parametrize("born", [1, 2, 4])
def test_a_supervisor_killed_while_it_starts_leaves_nobody(tmp_path: Path, born: int) -> None:
    """Killed at the first sign of the first, second, last child, long before they know their parent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as witness:
        witness.bind(str(tmp_path / "witness"))
        witness.settimeout(20)
        with stand_in(write_config(tmp_path), STAND_IN_WITNESS=str(tmp_path / "witness")) as daemon:
            pids = [int(witness.recv(32)) for _ in range(born)]
            daemon.signal(signal.SIGKILL)
            daemon.process.wait()
            witness.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                while len(pids) < 4:  # those that were on their way
                    pids.append(int(witness.recv(32)))
            assert [pid for pid in pids if not ended(pid, 2.0)] == []


# --- the command -----------------------------------------------------------------------------------


def command(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "walled", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_and_version() -> None:
    shown = command("--help")
    assert shown.returncode == 0
    for status in ("0 ", "1 ", "2 ", "3 ", "78 "):
        assert f"\n    {status}" in shown.stdout
    assert command("--version").stdout == "walled 0.1.0\n"


def test_an_unknown_key_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    config = write_config(tmp_path, supervisor="hang_timeout = 3.0")
    done = command("--config", str(config))
    assert done.returncode == 2
    assert done.stderr == (
        f"walled: {config}: supervisor.hang_timeout: unknown key; did you mean `supervisor.hang_timeout_s`?\n"
    )
    assert not (tmp_path / "run").exists()


def test_check_says_what_is_wrong_or_that_nothing_is(tmp_path: Path) -> None:
    good = command("--config", str(write_config(tmp_path)), "--check")
    assert (good.returncode, good.stdout) == (0, "")
    assert "no error found" in good.stderr
    bad = command("--config", str(tmp_path / "missing.toml"), "--check")
    assert bad.returncode == 2
    assert "cannot be read" in bad.stderr


def test_a_run_directory_that_cannot_be_made_is_a_boot_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    done = command("--config", str(write_config(tmp_path)))
    assert done.returncode == 78
    assert "is not a directory; choose another daemon.run_dir" in done.stderr
    assert (tmp_path / "run").read_text() == "in the way"


def test_a_missing_engine_names_the_extra(tmp_path: Path) -> None:
    hidden = tmp_path / "hide"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'xllamacpp' else find(name, package)\n"
    )
    config = tmp_path / "c.toml"
    config.write_text(f'backend = "embedded"\n[daemon]\nrun_dir = "{tmp_path}/run"\n')
    done = command("--config", str(config), PYTHONPATH=f"{hidden}:{ROOT}")
    assert done.returncode == 78
    assert "pip install 'walled[embedded]'" in done.stderr


def test_a_reload_that_only_a_restart_could_obey_is_refused_whole(tmp_path: Path) -> None:
    config = write_config(tmp_path, backend="workers = 1")
    scripted = config.read_text()
    with stand_in(config) as daemon:
        before = daemon.complete(3)
        config.write_text(
            scripted.replace('backend = "s"', 'backend = "auto"').replace("[backends.s]", "[backends.t]")
        )
        daemon.signal(signal.SIGHUP)
        daemon.until('reload refused, nothing has changed: .*no backend is named "s"')
        assert daemon.children() == before
        assert daemon.stop() == 0


def test_a_configuration_too_large_for_the_links_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with config.open("a") as file:
        file.writelines(f'[models.{"m" * 100}{n}]\nalias_of = "scripted"\n' for n in range(1500))
    done = command("--config", str(config))
    assert done.returncode == 78
    assert "the configuration is too large" in done.stderr
    assert "Traceback" not in done.stderr
