"""walled-ctl as a user runs it: output, exit codes, JSON, a terminal or none. The daemon is a fake."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from walled_client.ctl import program as program_module
from walled_client.ctl.program import main, program
from walled_client.ctl.terminal import printable, seconds, size

from tests.client.fake_broker import FakeBroker, Peer, echo
from tests.client.test_local_cache import META, store
from walled import protocol
from walled.adapters.cache import CacheWriter
from walled.errors import DaemonUnavailable
from walled.protocol import ErrorHeader

WORKER = {
    "worker": 0, "pid": 41, "backend": "b", "kind": "scripted", "state": "ready", "slots": 4,
    "in_flight": 1, "served": 9, "models": ["m"], "loaded": ["m"], "heartbeat_age_s": 0.2,
}  # fmt: skip
MODEL = {
    "name": "m", "backend": "b", "kind": "scripted", "digest": "d", "capabilities": ["chat", "embed"],
    "context_tokens": 1024, "workers": 1, "slots": 4, "aliases": ["default"],
}  # fmt: skip
REPLIES: dict[str, dict[str, Any]] = {
    "status": {
        "schema": "walled.status/1", "ok": True, "version": "9.9", "pid": 40, "uptime_s": 4000,
        "state": "ready", "in_flight": 1, "workers": [WORKER], "models": [MODEL],
        "counters": {"requests": 12},
        "queue": {"depth": 3, "bytes": 2048, "by_class": {"interactive": 1, "normal": 2, "batch": 0}},
        "tree": {"supervisor": {"pid": 39}, "children": [{"role": "worker", "slot": 0, "pid": 41,
                                                          "phase": "ready", "restarts": 2, "detail": "b"}]},
    },
    "workers.list": {"schema": "walled.workers/1", "ok": True, "workers": [WORKER]},
    "models.list": {"schema": "walled.models/1", "ok": True, "default": "m", "models": [MODEL]},
    "queue.list": {
        "schema": "walled.queue/1", "ok": True,
        "queued": [{"request": "ff01", "model": "m", "class": "normal", "age_s": 1.5, "deadline_s": 20.0,
                    "position": 0, "eta_s": 0.5, "bytes": 300}],
        "running": [{"request": "ff02", "model": "m", "worker": 0, "age_s": 0.4, "waiters": 2,
                     "streaming": True}],
    },
}  # fmt: skip


def control(peer: Peer) -> None:
    """The control socket of a healthy daemon; worker 99 does not exist."""
    if peer.message.type != protocol.CONTROL:
        return
    request = protocol.unpack_control(peer.message.payload)
    if request.worker == 99:
        reply: dict[str, Any] = {
            "schema": "walled.ack/1", "ok": False, "error": {"code": "bad_request", "message": "no worker 99"}
        }  # fmt: skip
    else:
        done = {"schema": "walled.ack/1", "ok": True, "worker": request.worker, "request": request.request}
        reply = REPLIES.get(request.op, done)
    peer.send(protocol.CONTROL, None, protocol.pack_map(reply))


def both(peer: Peer) -> None:
    """The client socket answers requests and models.list."""
    echo(peer)
    control(peer)


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[FakeBroker]:
    """A fake daemon with both sockets; yields the client one."""
    ctl = FakeBroker(run_dir, control)
    ctl.endpoint = f"ipc://{run_dir}/control.sock"
    client = FakeBroker(run_dir, both)
    with ctl, client:
        yield client


def run(*args: str, text: str | None = None) -> Result:
    """Run walled-ctl without a terminal."""

    @click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def whole() -> None:
        main(list(args))

    return CliRunner().invoke(whole, [], input=text)


def data(result: Result) -> dict[str, Any]:
    """The one JSON object on stdout."""
    lines = result.stdout.splitlines()
    assert len(lines) == 1, result.output
    found: dict[str, Any] = json.loads(lines[0])
    return found


# --- asking ----------------------------------------------------------------------------------------


def test_ask_prints_the_answer_and_nothing_else_on_stdout(daemon: FakeBroker) -> None:
    result = run("ask", "is it sold?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "is it sold?\n", "")


def test_ask_reads_standard_input(daemon: FakeBroker) -> None:
    assert run("ask", "-", text="from a pipe\n").stdout == "from a pipe\n"
    assert run("ask", text="also from a pipe\n").stdout == "also from a pipe\n"


def test_an_empty_question_is_wrong_usage(daemon: FakeBroker) -> None:
    for result in (run("ask", ""), run("ask", " \n"), run("ask", "-", text="\n")):
        assert (result.exit_code, result.stdout) == (2, "")
        assert "the question is empty" in result.stderr


def test_output_that_cannot_be_written_is_an_error_without_a_traceback(daemon: FakeBroker) -> None:
    for args in (["status"], ["--json", "status"], ["ask", "q"]):
        with open("/dev/full", "w") as full:
            ended = subprocess.run(
                [sys.executable, "-c", "from walled_client.ctl.program import main; main()", *args],
                stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=20,
                check=False,
            )  # fmt: skip
        assert ended.returncode == 1
        assert ended.stderr.splitlines() == ["walled-ctl: standard output: No space left on device"]


def test_ask_streams_when_told_to(daemon: FakeBroker) -> None:
    result = run("ask", "one two", "--stream")
    assert (result.exit_code, result.stdout) == (0, "one two\n")
    assert protocol.decode_header(protocol.RequestHeader, daemon.next(protocol.REQUEST).header).stream


def test_ask_passes_its_options_on(daemon: FakeBroker) -> None:
    from walled.payload import unpack_request

    result = run("--timeout", "7", "ask", "q", "--system", "s", "--model", "m", "--temperature", "0",
                 "--max-tokens", "5", "--cache", "refresh", "--namespace", "n")  # fmt: skip
    assert result.exit_code == 0
    message = daemon.next(protocol.REQUEST)
    header = protocol.decode_header(protocol.RequestHeader, message.header)
    assert (header.model, header.cache, header.namespace) == ("m", "refresh", "n")
    assert 6900 <= header.deadline_ms <= 7000
    request = unpack_request(message.payload)
    assert [m.role for m in request.messages] == ["system", "user"]
    assert (request.options.temperature, request.options.max_tokens) == (0.0, 5)


@pytest.mark.parametrize("args", [("--json", "ask", "q"), ("ask", "q", "--json"), ("ask", "--json", "q")])
def test_ask_as_json(daemon: FakeBroker, args: tuple[str, ...]) -> None:
    found = data(run(*args))
    assert (found["schema"], found["ok"], found["text"], found["source"]) == (
        "walled.ask/1",
        True,
        "q",
        "model",
    )
    assert {"phases", "usage", "elapsed_ms", "model", "degraded"} <= found.keys()


def test_a_degraded_answer_has_its_own_exit_code(daemon: FakeBroker) -> None:
    daemon.behaviour = lambda peer: peer.final("old news", source="stale", degraded=True)
    result = run("ask", "q")
    assert (result.exit_code, result.stdout) == (4, "old news\n")


def test_chat_without_a_terminal_takes_a_line_a_turn(daemon: FakeBroker) -> None:
    result = run("chat", "--system", "s", text="one\n\n/system other\n/nonsense\ntwo\n/exit\nthree\n")
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    assert "no such command" in result.stderr
    found = data(run("chat", "--json", text="one\ntwo\n"))
    assert found["schema"] == "walled.chat/1"
    assert [turn["question"] for turn in found["turns"]] == ["one", "two"]


# --- the daemon's state ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "schema", "words"),
    [
        (
            ("status",),
            "walled.status/1",
            [
                "9.9",
                "ready",
                "up 1 h 6 min",
                "3 waiting",
                "interactive 1, normal 2",
                "worker 0",
                "9 served",
                "2 restarts",
                "12 since",
                "m (default)",
                "wait: the monitor",
            ],
        ),
        (("models",), "walled.models/1", ["1024", "chat embed", "default"]),
        (("workers",), "walled.workers/1", ["41", "200 ms"]),
        (("workers", "list"), "walled.workers/1", ["41"]),
        (("queue",), "walled.queue/1", ["ff01", "ff02", "1.5 s", "300 B"]),
        (("queue", "list"), "walled.queue/1", ["ff01"]),
        (("workers", "restart", "1"), "walled.ack/1", ["worker 1"]),
        (("workers", "drain", "1"), "walled.ack/1", ["worker 1"]),
        (("queue", "cancel", "ff01"), "walled.ack/1", ["ff01"]),
        (("reload",), "walled.ack/1", ["configuration"]),
        (("stop",), "walled.ack/1", ["stops"]),
    ],
)
def test_verbs_show_what_the_daemon_says(
    daemon: FakeBroker, args: tuple[str, ...], schema: str, words: list[str]
) -> None:
    result = run(*args)
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.stdout
    assert result.stderr == ""
    found = run(*args, "--json")
    assert data(found)["schema"] == schema
    assert found.exit_code == 0


def test_a_daemon_that_is_not_ready(daemon: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REPLIES, "status", {**REPLIES["status"], "state": "draining"})
    result = run("status")
    assert result.exit_code == 4
    assert "draining" in result.stdout


def test_a_refusal_is_an_error_on_stderr(daemon: FakeBroker) -> None:
    result = run("workers", "restart", "99")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no worker 99" in result.stderr


# --- errors ----------------------------------------------------------------------------------------


def test_no_daemon_is_exit_code_3(run_dir: Path) -> None:
    for args in (("ask", "q"), ("status",), ("chat",)):
        result = run("--timeout", "0.2", *args, text="x\n")
        assert (result.exit_code, result.stdout) == (3, ""), args
        assert str(run_dir) in result.stderr
    found = run("status", "--json", "--timeout", "0.2")
    assert found.exit_code == 3
    assert data(found)["schema"] == "walled.error/1"
    assert data(found)["error"]["code"] == "daemon_unavailable"
    assert found.stderr == ""


def test_a_refused_request_says_when_to_try_again(daemon: FakeBroker) -> None:
    daemon.behaviour = lambda peer: peer.send(
        protocol.BUSY, ErrorHeader("overloaded", "queue \x1b[31mfull", True, 1.5)
    )
    result = run("ask", "q")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "try again in 1.5 s" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("ask", "q", "--nonsense"),
        ("ask", "q", "--temperature", "-1"),
        ("--timeout", "0", "status"),
        ("cache", "purge", "--yes"),
        ("cache", "purge", "--all", "--namespace", "n", "--yes"),
        ("cache", "purge", "--key", "zz", "--yes"),
        ("cache", "purge", "--all"),
        ("demo", "--config", __file__),
        ("workers", "restart", "one"),
        ("config", "check", "--config", "/nonexistent.toml"),
    ],
)
def test_wrong_usage_is_exit_code_2(run_dir: Path, args: tuple[str, ...]) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr


def test_help_everywhere_has_an_example() -> None:
    def commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield (*path, name)
            if isinstance(command, click.Group):
                yield from commands(command, (*path, name))

    found = [path for path in commands(program, ()) if path[0] in program.verbs]
    assert len(found) >= 20
    for path in found:
        result = run(*path, "--help")
        assert result.exit_code == 0
        assert "Example: walled-ctl" in result.stdout, path
        assert "--json" in result.stdout, path
    assert "Exit codes" in run("--help").stdout
    assert run("--version").stdout.startswith("walled-ctl ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("walled-ctl ", {"top", "health", "alerts", "ask"}),
        ("walled-ctl check ", {"server", "queue", "memory"}),
        ("walled-ctl alerts ", {"silence", "export"}),
        ("walled-ctl alerts silence me", {"memory"}),
        ("walled-ctl history walled_queue_d", {"walled_queue_depth"}),
        ("walled-ctl profile ", {"worker", "broker"}),
    ],
)
def test_shells_complete_verbs_and_names(words: str, expected: set[str]) -> None:
    complete = ShellComplete(program, {}, "walled-ctl", "_WALLED_CTL_COMPLETE")
    *before, begun = words.split(" ")
    assert expected <= {item.value for item in complete.get_completions(before[1:], begun)}


def test_verbs_of_other_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("bench")
    def bench() -> None:
        click.echo("from elsewhere")

    class Entry:
        name = "bench"

        def load(self) -> click.Command:
            return bench

    def entry_points(group: str, name: str = "bench") -> list[Entry]:
        assert group == "walled_ctl.commands"
        return [Entry()] if name == "bench" else []

    monkeypatch.setattr(program_module.importlib.metadata, "entry_points", entry_points)
    assert "bench" in run("--help").stdout
    assert run("bench").stdout == "from elsewhere\n"
    assert run("nonsense").exit_code == 2


def test_what_an_extra_is_missing_for_says_how_to_get_it(
    daemon: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from walled_client import profiling
    from walled_client.ctl import top

    monkeypatch.setattr(top, "on_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setitem(sys.modules, "textual.app", None)
    monkeypatch.delitem(sys.modules, "walled_client.ctl.screen", raising=False)
    monkeypatch.setattr(profiling.shutil, "which", lambda _: None)
    monkeypatch.setattr(profiling.sys, "executable", "/nowhere/python")
    for args, extra in ((("top",), "top"), (("profile", "broker"), "profile")):
        result = run(*args)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"pip install 'walled[{extra}]'" in result.stderr


# --- without a daemon ------------------------------------------------------------------------------


def test_config_check_and_show(run_dir: Path) -> None:
    good, bad = run_dir / "good.toml", run_dir / "bad.toml"
    good.write_text('daemon.log_level = "debug"\n[models."a.b"]\nttl_s = 5.0\n')
    bad.write_text("[brokr]\nqueue_max_requests = 1\n[cache]\nttl_s = 'x'\n")
    result = run("config", "check", "--config", str(good))
    assert (result.exit_code, result.stdout) == (0, f"{good}: ok\n")
    assert data(run("config", "check", "--config", str(good), "--json"))["schema"] == "walled.config_check/1"
    result = run("config", "check", "--config", str(bad))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean `broker`" in result.stderr
    assert data(run("config", "show", "--json"))["config"]["cache"]["ttl_s"] == 3600.0


def test_config_show_is_toml_that_means_the_same(run_dir: Path) -> None:
    from walled import config

    path, again = run_dir / "c.toml", run_dir / "again.toml"
    path.write_text('daemon.log_level = "debug"\n[models."a.b"]\nttl_s = 5.0\n')
    again.write_text(run("config", "show", "--config", str(path)).stdout)
    assert config.load(again) == config.load(path)


@pytest.fixture
def stocked(run_dir: Path) -> str:
    """A cache with three answers; the key of one."""
    writer = CacheWriter(run_dir / "cache", max_bytes=1 << 22, max_entries=100)
    writer.put_meta([META])
    key = store(writer, "q", "stored answer")
    store(writer, "p", "other answer")
    store(writer, "r", "third", namespace="shop")
    writer.close()
    return key.hex()


def test_cache_stats(stocked: str, run_dir: Path) -> None:
    result = run("cache", "stats")
    assert result.exit_code == 0
    assert str(run_dir / "cache") in result.stdout
    found = data(run("cache", "stats", "--json"))
    assert (found["schema"], found["entries"], found["ok"]) == ("walled.cache_stats/1", 3, True)
    missing = run("cache", "stats", "--json", "--cache-dir", str(run_dir / "none"))
    assert (missing.exit_code, data(missing)["ok"]) == (1, False)


def test_cache_get_by_question_and_by_key(stocked: str) -> None:
    assert run("cache", "get", "q", "--temperature", "0").stdout == "stored answer\n"
    assert run("cache", "get", stocked).stdout == "stored answer\n"
    found = data(run("cache", "get", stocked, "--json"))
    assert (found["schema"], found["key"], found["state"]) == ("walled.cache_record/1", stocked, "fresh")
    for args in (("q",), ("00" * 32,), ("q", "--temperature", "0", "--model", "none")):
        result = run("cache", "get", *args)
        assert (result.exit_code, result.stdout) == (1, "")


def test_cache_purge(stocked: str, run_dir: Path) -> None:
    assert data(run("cache", "purge", "--namespace", "shop", "--yes", "--json"))["removed"] == 1
    assert run("cache", "purge", "--key", stocked, "--yes").stdout == "1 removed\n"
    assert run("cache", "purge", "--key", stocked, "--yes").stdout == "0 removed\n"
    assert run("cache", "get", "p", "--temperature", "0").exit_code == 0
    assert run("cache", "purge", "--all", "--yes").stdout == "1 removed\n"
    assert data(run("cache", "stats", "--json"))["entries"] == 0
    result = run("cache", "purge", "--all", "--yes", "--cache-dir", str(run_dir / "none"))
    assert result.exit_code == 1
    assert not (run_dir / "none").exists()


# --- on a terminal ---------------------------------------------------------------------------------


class OnTerminal:
    """walled-ctl in a process of its own, on a pseudo-terminal."""

    def __init__(self, *args: str, **environment: str) -> None:
        self._master, slave = pty.openpty()
        here = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import os; os.login_tty(0); from walled_client.ctl import main; main()",
             *args],
            stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "PYTHONPATH": f"{here}:{here / 'client'}", "TERM": "xterm", **environment},
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def expect(self, words: str, timeout_s: float = 20.0) -> None:
        until_s = time.monotonic() + timeout_s
        while words not in self.text:
            left_s = until_s - time.monotonic()
            assert left_s > 0, f"{words!r} not in {self.text[-3000:]!r}"
            if select.select([self._master], [], [], left_s)[0]:
                try:
                    self.text += os.read(self._master, 4096).decode(errors="replace")
                except OSError:
                    assert words in self.text, self.text

    def type(self, text: str) -> None:
        self.text = ""
        os.write(self._master, text.encode())

    def end(self) -> int:
        try:
            while True:
                self.text += os.read(self._master, 4096).decode(errors="replace")
        except OSError:
            pass  # the other side is closed
        os.close(self._master)
        return self._process.wait(20)


def test_ask_on_a_terminal_streams_dims_and_disarms(daemon: FakeBroker) -> None:
    def evil(peer: Peer) -> None:
        peer.partial(0, "safe\x1b]0;pwned\x07")
        peer.final("safe\x1b]0;pwned\x07")

    daemon.behaviour = evil
    on = OnTerminal("ask", "q")
    assert on.end() == 0
    assert "safe]0;pwned" in on.text
    assert "\x1b[2m[source model" in on.text
    plain = OnTerminal("ask", "q", NO_COLOR="1")
    assert plain.end() == 0
    assert "[source model" in plain.text
    assert "\x1b" not in plain.text


def test_chat_on_a_terminal(daemon: FakeBroker) -> None:
    on = OnTerminal("chat", NO_COLOR="1")
    on.expect("> ")
    on.type("hello\n")
    on.expect("ms]\r\n> ")
    on.type("/help\n")
    on.expect("cancels it.\r\n> ")
    on.type("/model other\n")
    on.expect("model: other\r\n> ")
    held: list[Peer] = []
    daemon.behaviour = lambda peer: held.append(peer) if peer.message.type == protocol.REQUEST else None
    on.type("slow\n")
    daemon.next(protocol.REQUEST)
    daemon.next(protocol.REQUEST)
    on.type("\x03")
    on.expect("cancelled\r\n> ")
    assert daemon.next(protocol.CANCEL)
    daemon.behaviour = lambda peer: peer.send(protocol.ERROR, ErrorHeader("backend_error", "broken"))
    on.type("fails\n")
    on.expect("broken\r\n> ")
    on.type("\x04")
    assert on.end() == 0


def test_purge_asks_on_a_terminal(stocked: str) -> None:
    on = OnTerminal("cache", "purge", "--all")
    on.expect("[y/N]")
    on.type("n\n")
    assert on.end() == 130
    on = OnTerminal("cache", "purge", "--all")
    on.expect("[y/N]")
    on.type("y\n")
    assert on.end() == 0
    assert "3 removed" in on.text


# --- small things ----------------------------------------------------------------------------------


def test_durations_sizes_and_harmless_text() -> None:
    assert [seconds(s) for s in (0.0123, 4.25, 200, 7300, 90_000, 200_000)] == [
        "12 ms", "4.2 s", "3 min", "2 h 1 min", "25 h 0 min", "2 d 7 h",
    ]  # fmt: skip
    assert [size(b) for b in (12, 2048, 5 << 20, 3 << 30)] == ["12 B", "2.0 KiB", "5.0 MiB", "3.0 GiB"]
    assert printable("a\x1b[1mb\x9bc\td\n\x00é") == "a[1mbc\td\né"
    assert DaemonUnavailable.code == "daemon_unavailable"
