"""A daemon of one's own, started and stopped for a demonstration: real processes, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from walled_client import Client, demo
from walled_client.starting import OwnDaemon

from walled.errors import DaemonUnavailable, Unavailable

pytestmark = pytest.mark.process

SCRIPTED = """
backend = "s"
daemon.allow_scripted = true
[backends.s]
kind = "scripted"
"""


@pytest.fixture
def config(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration without a model; directories made from here on are below run_dir."""
    temporary = run_dir / "t"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    path = run_dir / "c.toml"
    path.write_text(SCRIPTED)
    return path


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ready_means_it_answers_and_nothing_is_left(config: Path, run_dir: Path) -> None:
    with OwnDaemon(config, timeout_s=60) as daemon:
        with Client(endpoint=daemon.endpoint) as client:
            assert client.chat("hello", max_tokens=2).text
            pids = [child["pid"] for child in client.status()["tree"]["children"]]
        assert len(pids) == 3
        endpoint = daemon.endpoint
    assert daemon.status == 0
    assert list((run_dir / "t").iterdir()) == []
    assert not [pid for pid in pids if alive(pid)]
    with Client(endpoint=endpoint, connect_timeout_s=0.1) as client, pytest.raises(DaemonUnavailable):
        client.chat("hello")


def test_a_daemon_that_cannot_start_says_why(config: Path, run_dir: Path) -> None:
    config.write_text("nonsense = 1")
    with pytest.raises(Unavailable, match=r"(?s)status 2.*nonsense"):
        OwnDaemon(config, timeout_s=60).start()
    assert list((run_dir / "t").iterdir()) == []


def test_a_daemon_that_is_not_ready_in_time_is_stopped(config: Path, run_dir: Path) -> None:
    config.write_text(SCRIPTED + "load_s = 100.0\n[supervisor]\nstop_timeout_s = 0.5\n")
    with pytest.raises(Unavailable, match="not ready within 1 s"):
        OwnDaemon(config, timeout_s=1).start()
    assert list((run_dir / "t").iterdir()) == []


def test_it_dies_with_its_owner(config: Path) -> None:
    """SIGKILL the owner: the kernel ends the daemon, and its children follow it."""
    code = (
        "import sys, pathlib, signal\n"
        "from walled_client.starting import OwnDaemon\n"
        "from walled_client import Client\n"
        "daemon = OwnDaemon(pathlib.Path(sys.argv[1]))\n"
        "daemon.start()\n"
        "tree = Client(endpoint=daemon.endpoint).status()['tree']\n"
        "print(tree['supervisor']['pid'], *[c['pid'] for c in tree['children']], flush=True)\n"
        "signal.pause()\n"
    )
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here / 'client'}", "TMPDIR": tempfile.gettempdir()}
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(config)], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert owner.stdout is not None
    sentinels = [os.pidfd_open(int(pid)) for pid in owner.stdout.readline().split()]
    assert len(sentinels) == 4
    owner.send_signal(signal.SIGKILL)
    owner.wait(10)
    owner.stdout.close()
    import select

    for sentinel in sentinels:
        assert select.select([sentinel], [], [], 10)[0], "a process outlived the owner"
        os.close(sentinel)


def run_demo(*args: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", "from walled_client.ctl import main; main()", "demo", *args],
        env={**os.environ, "PYTHONPATH": f"{here}:{here / 'client'}", "TMPDIR": tempfile.gettempdir()},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def test_the_demo_answers_everything_and_leaves_with_0(config: Path) -> None:
    done = run_demo("--start", "--config", str(config))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[source ") == len(demo.QUESTIONS)
    assert done.stdout.count("[source cache") == 1
    for question in demo.QUESTIONS:
        assert question.text in done.stdout
    assert "4 of 4" in done.stdout


def test_the_demo_as_json(config: Path) -> None:
    done = run_demo("--start", "--config", str(config), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["schema"], found["ok"]) == ("walled.demo/1", True)
    assert [answer["reply"]["source"] for answer in found["answers"]] == ["model", "model", "cache", "model"]


def test_the_demo_fails_when_the_repeated_question_is_not_a_hit(config: Path) -> None:
    config.write_text(SCRIPTED + "[cache]\nenabled = false\n")
    done = run_demo("--start", "--config", str(config))
    assert done.returncode == 1
    assert "NOT ANSWERED" in done.stdout
    assert "3 of 4" in done.stdout


def test_the_demo_without_a_daemon(config: Path) -> None:
    done = run_demo()
    assert done.returncode == 1
    assert "0 of 4" in done.stdout
