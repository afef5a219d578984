"""systemd/walled.service against the rules it must keep and the statuses the command has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.daemon_process import ROOT
from walled import __main__ as command
from walled import config as configuration
from walled.errors import BOOT_ERROR_EXIT

UNIT = ROOT / "systemd" / "walled.service"


def settings() -> dict[str, str]:
    lines = UNIT.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_says_what_the_daemon_needs() -> None:
    unit = settings()
    expected = {
        "Type": "notify",
        "NotifyAccess": "main",
        "KillMode": "mixed",
        "Group": "walled",
        "RuntimeDirectory": "walled",
        "RuntimeDirectoryMode": "0750",
        "RuntimeDirectoryPreserve": "yes",
        "CacheDirectory": "walled",
        "ExecReload": "/bin/kill -HUP $MAINPID",
    }
    assert {name: unit.get(name) for name in expected} == expected
    assert int(unit["WatchdogSec"]) > 0


def test_what_broke_walled_is_not_in_it() -> None:
    unit = settings()
    assert "PrivateUsers" not in unit
    assert "~" not in unit["SystemCallFilter"]
    assert "@resources" not in unit["SystemCallFilter"]


def test_no_restart_after_a_status_that_repetition_cannot_cure() -> None:
    wanted = {command.EXIT_CONFIG, command.EXIT_ALREADY_RUNNING, BOOT_ERROR_EXIT}
    assert {int(word) for word in settings()["RestartPreventExitStatus"].split()} == wanted


def test_the_time_to_stop_is_enough_for_a_drain() -> None:
    config = configuration.from_plain({})
    needed_s = config.daemon.drain_timeout_s + 2 * config.supervisor.stop_timeout_s
    assert int(settings()["TimeoutStopSec"]) > needed_s


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    unit = tmp_path / "walled.service"
    unit.write_text(UNIT.read_text().replace("/opt/walled/bin/walled", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
