"""The run directory: who may have it, who has it, what is in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon_process import ROOT
from walled.adapters.runlock import AlreadyRunning, Manifest, RunLock, read_manifest
from walled.config import endpoints
from walled.errors import BootError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_directory_is_made_and_closed_to_others(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "run"
    lock = RunLock.take(directory)
    assert mode(directory) == 0o750
    assert mode(directory / "walled.lock") & 0o007 == 0
    assert (directory / "walled.lock").read_text() == f"{os.getpid()}\n"
    lock.release()


def test_a_second_one_is_told_who_holds_it(tmp_path: Path) -> None:
    lock = RunLock.take(tmp_path)
    with pytest.raises(AlreadyRunning, match=rf"pid {os.getpid()}\).*walled-ctl stop"):
        RunLock.take(tmp_path)
    assert (tmp_path / "walled.lock").read_text() == f"{os.getpid()}\n", "the loser wrote nothing"
    lock.release()
    RunLock.take(tmp_path).release()


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from walled.adapters.runlock import RunLock; "
        "lock = RunLock.take(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    RunLock.take(tmp_path).release()


def test_the_lock_is_not_inherited(tmp_path: Path) -> None:
    lock = RunLock.take(tmp_path)
    heir = subprocess.Popen(
        [sys.executable, "-c", "import sys; print('here', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    )
    with heir:
        assert heir.stdout is not None
        assert heir.stdout.readline() == b"here\n"
        lock.release()
        RunLock.take(tmp_path).release()


def test_what_is_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BootError, match="not a directory"):
        RunLock.take(tmp_path / "file")
    with pytest.raises(BootError, match="cannot be made"):
        RunLock.take(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "walled.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(BootError, match=r"walled\.lock"):
        RunLock.take(tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_directory_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(BootError, match="chmod o-w"):
        RunLock.take(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory somebody else's")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, 12345, -1)
    with pytest.raises(BootError, match="belongs to uid 12345"):
        RunLock.take(directory)


def test_the_manifest_goes_round_and_is_replaced_whole(tmp_path: Path) -> None:
    lock = RunLock.take(tmp_path)
    for pid in (1, 2):
        manifest = Manifest("0.1.0", pid, "/var/cache/walled", endpoints(tmp_path))
        lock.write_manifest(manifest)
        assert read_manifest(tmp_path) == manifest
    assert mode(tmp_path / "walled.json") & 0o007 == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["walled.json", "walled.lock"]
    lock.release()


@pytest.mark.parametrize("text", [None, "", "{", '{"pid": 1}', "[]"])
def test_a_manifest_that_cannot_be_read_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "walled.json").write_text(text)
    assert read_manifest(tmp_path) is None


def test_dead_sockets_are_removed_and_nothing_else(tmp_path: Path) -> None:
    lock = RunLock.take(tmp_path)
    for name in ("client.sock", "metrics.sock", "other.sock"):
        (tmp_path / name).touch()
    lock.remove_sockets(endpoints(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.sock", "walled.lock"]
    lock.release()


def test_a_manifest_that_cannot_be_written_is_a_boot_error(tmp_path: Path) -> None:
    lock = RunLock.take(tmp_path)
    (tmp_path / "walled.json").mkdir()
    with pytest.raises(BootError, match="cannot be written"):
        lock.write_manifest(Manifest("0.1.0", 1, "/c", endpoints(tmp_path)))
    lock.release()
