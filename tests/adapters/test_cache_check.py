"""The check at start: what is condemned, what is not, and that the daemon then starts cold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
from cache_actors import NOW_S, key_of, record

from walled.adapters import cache_check, cache_env
from walled.adapters.cache import CacheReader, CacheWriter
from walled.adapters.cache_check import VetResult, vet
from walled.core.record import pack_record

pytestmark = pytest.mark.process

MIB = 1 << 20
TIMEOUT_S = 30.0


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a hundred records, closed."""
    writer = CacheWriter(tmp_path, max_bytes=8 * MIB, max_entries=1000)
    assert writer.put_many([record(key_of("r", number)) for number in range(100)], NOW_S) == 100
    writer.close()
    return tmp_path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def starts_cold(directory: Path) -> bool:
    """Whether a worker can write and a client read as if nothing had been there."""
    writer = CacheWriter(directory, max_bytes=8 * MIB, max_entries=1000)
    try:
        return (
            writer.stats().entries == 0
            and writer.put_many([record(key_of("r", 1))], NOW_S) == 1
            and writer.get(key_of("r", 1), NOW_S) is not None
        )
    finally:
        writer.close()


def child_script(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have `vet` run this instead of the scan."""
    real = subprocess.run

    def run(command: list[str], **options: object) -> object:
        assert command[1] == "-m"
        return real([sys.executable, "-c", script], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(cache_check.subprocess, "run", run)


def test_a_sound_cache_is_left_as_it_is(cache: Path) -> None:
    assert vet(cache, TIMEOUT_S) == VetResult("sound", entries=100)
    reader = CacheReader(cache)
    assert all(reader.get(key_of("r", number), NOW_S) for number in range(100))


def test_no_cache_is_fine(tmp_path: Path) -> None:
    assert vet(tmp_path, TIMEOUT_S).status == "missing"
    assert vet(tmp_path / "nowhere", TIMEOUT_S).status == "missing"
    (tmp_path / "data.mdb").touch()
    assert vet(tmp_path, TIMEOUT_S).status == "missing"
    assert starts_cold(tmp_path)


def test_a_truncated_file_is_set_aside(cache: Path) -> None:
    os.truncate(cache / "data.mdb", (cache / "data.mdb").stat().st_size // 2 // 4096 * 4096)
    found = vet(cache, TIMEOUT_S)
    assert found.status == "set_aside"
    assert found.detail
    assert names(cache) == sorted(Path(name).name for name in found.moved)
    assert [name.partition(".bad-")[0] for name in names(cache)] == ["data.mdb", "lock.mdb"]
    assert starts_cold(cache)


@pytest.mark.parametrize("junk", [b"not a database" * 1000, bytes(40960), b"\0"])
def test_something_that_is_no_cache_is_set_aside(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(junk)
    assert vet(tmp_path, TIMEOUT_S).status == "set_aside"
    assert starts_cold(tmp_path)


def test_a_broken_page_is_set_aside(cache: Path) -> None:
    data = bytearray((cache / "data.mdb").read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 + 10] ^= 0x0F  # the flags: leaf, branch, overflow
    (cache / "data.mdb").write_bytes(data)
    assert vet(cache, TIMEOUT_S).status == "set_aside"
    assert starts_cold(cache)


def test_damaged_records_in_a_sound_file_are_removed(cache: Path) -> None:
    data = bytearray((cache / "data.mdb").read_bytes())
    for number in (3, 4, 5):
        data[data.index(pack_record(record(key_of("r", number)))) + 500] ^= 1
    (cache / "data.mdb").write_bytes(data)
    assert vet(cache, TIMEOUT_S) == VetResult("sound", entries=100, removed=3)
    assert vet(cache, TIMEOUT_S) == VetResult("sound", entries=97)


def test_a_file_somebody_writes_meanwhile_is_judged_under_the_write_lock(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A walk over a file that changes sees nonsense; only what is still wrong under the lock is damage."""
    real = cache_env.structural_problems
    walks = []

    def first_walk_sees_a_commit(directory: Path) -> list[str]:
        walks.append(directory)
        return ["page 7 is in two places"] if len(walks) == 1 else real(directory)

    monkeypatch.setattr(cache_env, "structural_problems", first_walk_sees_a_commit)
    report: dict[str, object] = {}
    cache_check._scan(cache, report)
    assert len(walks) == 2
    assert report["entries"] == 100
    assert capsys.readouterr().out == "suspect\n"


@pytest.mark.parametrize("number", cache_check.CRASHES)
def test_a_child_that_crashes_condemns_the_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    child_script(
        monkeypatch,
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"os.kill(os.getpid(), {number.value})",
    )
    found = vet(cache, TIMEOUT_S)
    assert found.status == "set_aside"
    assert number.name in found.detail
    assert starts_cold(cache)


@pytest.mark.parametrize(
    "script",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)",
        "raise RuntimeError('no verdict')",
        "raise SystemExit(75)",
        "import signal; signal.pause()",
    ],
)
def test_a_child_that_could_not_tell_condemns_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    child_script(monkeypatch, script)
    found = vet(cache, 1.0)
    assert found.status == "unknown"
    assert found.detail
    assert names(cache) == ["data.mdb", "lock.mdb"]
    assert CacheReader(cache).get(key_of("r", 1), NOW_S) is not None


def test_a_child_that_hangs_on_a_suspect_file_condemns_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_script(monkeypatch, "import signal; print('suspect', flush=True); signal.pause()")
    assert vet(cache, 1.0).status == "set_aside"


def test_running_out_of_time_is_no_verdict(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "walled.adapters.cache_check", str(cache), "0.0001"],
        capture_output=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert b'"partial": true' in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_the_daemon_may_not_read_is_no_damage(cache: Path) -> None:
    script = (
        "import os, sys\n"
        "from lmdb import verify\n"
        "from walled.adapters import cache_check, cache_env, cache_order\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(cache_check.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(cache), "10"], capture_output=True, check=False, timeout=TIMEOUT_S
    )
    assert done.returncode == cache_check.NO_VERDICT_EXIT
    assert b"ermission denied" in done.stdout


def test_condemned_files_do_not_pile_up(cache: Path) -> None:
    for _ in range(4):
        (cache / "data.mdb").write_bytes(b"junk" * 5000)
        (cache / "lock.mdb").touch()
        assert vet(cache, TIMEOUT_S).status == "set_aside"
    assert len(names(cache)) == 2 * cache_check.KEEP_BAD


def test_a_reader_of_a_condemned_file_moves_to_the_new_one(cache: Path) -> None:
    reader = CacheReader(cache)
    assert reader.get(key_of("r", 2), NOW_S) is not None
    cache_check._set_aside(cache, "for the test")
    assert reader.get(key_of("r", 2), NOW_S + 1) is None
    assert starts_cold(cache)
    assert reader.get(key_of("r", 1), NOW_S + 2) is not None


def test_the_supervisor_does_not_get_lmdb_by_importing_the_check() -> None:
    script = "import sys, walled.adapters.cache_check; sys.exit('lmdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=TIMEOUT_S).returncode == 0
    assert lmdb.__name__ in sys.modules, "the test above would see it"
