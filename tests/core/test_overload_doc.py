"""docs/reliability.md, Overload: its numbers are the code's, and the tests it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from walled.core import admission, codel, dispatch, jobs, limit
from walled.sections import BackendBase, BrokerConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text("utf-8")
TEXT = " ".join(PAGE.split("\n## Overload\n")[1].split("\n## ")[0].split())
BROKER = BrokerConfig()
COUNTS = {2: "two", 3: "three", 5: "fifth", 0.25: "a quarter", 0.5: "half", 0.8: "four fifths"}


@pytest.mark.parametrize(
    "said",
    [
        f"more than {COUNTS[codel.TARGET]} of what an answer takes",
        f"for as long as {COUNTS[codel.INTERVAL]} answers",
        f"`queue_patience` ({BROKER.queue_patience:g}) times what an answer takes",
        f"for {COUNTS[codel.SHARE]} of the time its caller gave",
        f"after {COUNTS[codel.CALL]} of it, it goes before",
        f"wait for at most {COUNTS[codel.ADMIT]} of its patience",
        f"more than twice as long, and what they lost is worth {COUNTS[limit.SHARE]} of an answer",
        "one fifth less is handed over",
        "again ten minutes later",
        f"At most {admission.MOST_DISPLACED} small requests",
        f"Every {COUNTS[dispatch.AGED_EVERY]} start goes to",
        f"`age_step_s` ({BROKER.age_step_s:g} s)",
        f"`client_backlog_bytes` ({BROKER.client_backlog_bytes // 2**20} MiB)",
        f"merged to at most {jobs.MERGE_CHARS:,} characters",
    ],
)
def test_its_numbers_are_those_of_the_code(said: str) -> None:
    assert said in TEXT
    assert limit.TOLERANCE == 2
    assert pytest.approx(1 - 1 / 5) == limit.CUT
    assert limit.EFFECT < 1 / 2
    assert limit.PROBE_S == 600
    assert BackendBase().adaptive_limit


def test_the_tests_it_names_are_there() -> None:
    named = re.findall(r"`pytest (\S+)(?: -k (\w+))?`", TEXT)
    assert len(named) > 5
    for path, word in named:
        assert re.search(rf"def test_\w*{word}", (ROOT / path).read_text("utf-8")), (path, word)
