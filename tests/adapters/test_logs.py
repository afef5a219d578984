"""Log lines: their form, their size, and that nobody who does not read them can stop the daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.daemon_process import ROOT
from walled.adapters.logs import MAX_LINE_BYTES, safe_traceback
from walled.errors import BootError

SAY = "import logging, sys; from walled.adapters import logs; logs.set_up('worker 2', 'info', sys.argv[1]); "


def said(style: str, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SAY + code, style],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr


def test_text() -> None:
    line = said("text", "logging.warning('it is %d', 3); logging.debug('hidden')")
    stamp, rest = line.split(" ", 1)
    assert rest == "warning worker 2: it is 3\n"
    assert len(stamp) == len("2026-11-24T03:00:00.000Z")


def test_json_is_one_object_a_line_however_long() -> None:
    lines = said("json", r"logging.error('two\nlines'); logging.info('\U0001F600' * 5000)").splitlines()
    first, second = map(json.loads, lines)
    assert (first["level"], first["process"], first["message"]) == ("error", "worker 2", "two\nlines")
    assert second["message"].endswith("...")
    assert all(len(line) <= MAX_LINE_BYTES for line in lines)


def test_the_level_can_change() -> None:
    assert (
        said("text", "logs.set_level('error'); logging.warning('no'); logging.error('yes')").count("\n") == 1
    )


def test_a_reader_that_does_not_read_stops_nobody() -> None:
    reader, writer = os.pipe()
    code = SAY + "[logging.info('x' * 1000) for _ in range(1000)]; sys.exit(9)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, "text"], cwd=ROOT, stderr=writer, timeout=30, check=False
        )
    finally:
        os.close(writer)
        os.close(reader)
    assert done.returncode == 9


def test_a_reader_that_is_gone_stops_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", SAY + "logging.error('x'); sys.exit(9)", "text"],
            cwd=ROOT, stderr=writer, timeout=30, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.returncode == 9


@pytest.mark.parametrize(
    ("error", "shown"),
    [(ValueError("the prompt"), False), (KeyError("the prompt"), False), (BootError("the prompt"), True)],
)
def test_a_traceback_quotes_only_our_own_errors(error: Exception, shown: bool) -> None:
    secret = "the local"
    try:
        raise error
    except Exception as exc:
        text = safe_traceback(exc)
    assert ("the prompt" in text) is shown
    assert secret not in text
    assert "test_logs.py:" in text
    assert "\n" not in text
