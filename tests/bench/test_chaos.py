"""A short chaos campaign with real processes, and proof that its books notice what they should."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from walled_bench import chaos, faults, questions
from walled_bench.command import bench
from walled_bench.figures import failing
from walled_bench.ledger import GRACE_S, Book, Stalls
from walled_client.results import Answer, Reply

SECONDS = 14.0
BY_THE_CLOCK = ("recovery", "hung process", "past their deadline", "quiet end")
"""How fast it recovers is a figure of a quiet machine; that it does is tested here."""


@pytest.fixture(scope="module")
def outcome() -> chaos.Outcome:
    return chaos.campaign(SECONDS, seed=7)


@pytest.mark.process
def test_some_seconds_of_chaos_breach_no_promise(outcome: chaos.Outcome) -> None:
    missed = failing(chaos.figures(outcome))
    assert [each.name for each in missed if not any(words in each.name for words in BY_THE_CLOCK)] == []
    assert max(struck.recovery_s for struck in outcome.struck) < chaos.RECOVERY_LIMIT_S
    assert outcome.exit_status == 0
    # The checks above were made on something.
    assert len(outcome.struck) >= 4
    assert sum(book.begun for book in outcome.books) > 200
    assert outcome.witness.finals > 20
    kinds = {book.kind for book in outcome.books if book.begun}
    assert kinds >= {"plain", "streamed", "slow reader", "cacheable", "withdrawn", "in threads"}
    assert kinds >= {"other processes"}


@pytest.mark.process
def test_the_ledger_is_a_table_with_every_kind_of_call_and_fault(outcome: chaos.Outcome) -> None:
    lines = list(chaos.tables(outcome))
    begun = sum(book.begun for book in outcome.books)
    together = next(line for line in lines if line.startswith("together"))
    assert together.split()[1] == str(begun)
    for struck in outcome.struck:
        assert any(line.startswith(struck.kind) for line in lines)


@pytest.mark.process
def test_a_breach_is_an_exit_status_and_the_seed_is_told(
    outcome: chaos.Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []

    def campaign(seconds: float, seed: int, say: Any) -> chaos.Outcome:
        asked.append((seconds, seed))
        return outcome._replace(orphans=1)

    monkeypatch.setattr(chaos, "campaign", campaign)
    output = tmp_path / "chaos.json"
    done = CliRunner().invoke(
        bench, ["chaos", "--output", str(output)], env={"CHAOS_S": "33", "CHAOS_SEED": "77"}
    )
    assert asked == [(33.0, 77)]
    assert done.exit_code == 1
    assert "CHAOS_SEED=77 CHAOS_S=33 make chaos" in done.output
    assert "does not hold: chaos: processes left by a dead supervisor or after the end: 1" in done.output
    assert "processes left" in output.read_text()


BREACHES: list[tuple[str, Any]] = [
    ("exactly one ending", lambda o: o._replace(deaf=(1, 0, 0))),
    ("exactly one ending", lambda o: o._replace(deaf=(0, 1, 0))),
    ("wrong or truncated", lambda o: o._replace(deaf=(0, 0, 1))),
    ("wrong records", lambda o: o._replace(wrong_records=1)),
    ("ends of the daemon", lambda o: o._replace(ended_by_itself=[78])),
    ("client processes broken", lambda o: o._replace(outsiders_broken=1)),
    ("quiet end", lambda o: o._replace(calm_failures=1)),
    ("growth of a broker", lambda o: o._replace(growth={"broker": [9.0, 9.0]})),
    ("USS of a worker", lambda o: o._replace(peaks={"worker": 121.0})),
    ("recovery, longest", lambda o: o._replace(struck=[chaos.Struck("x", chaos.RECOVERY_LIMIT_S)])),
]


@pytest.mark.process
@pytest.mark.parametrize(("name", "breach"), BREACHES, ids=[name for name, _ in BREACHES])
def test_every_breach_is_a_goal_that_does_not_hold(outcome: chaos.Outcome, name: str, breach: Any) -> None:
    assert any(name in each.name for each in failing(chaos.figures(breach(outcome))))


# --- the plan --------------------------------------------------------------------------------------


def test_a_seed_is_a_plan_and_every_kind_of_fault_comes_before_any_comes_again() -> None:
    first = list(itertools.islice(faults.plan(5), 60))
    assert first == list(itertools.islice(faults.plan(5), 60))
    assert first != list(itertools.islice(faults.plan(6), 60))
    assert {planned.kind for planned in first[: len(faults.KINDS)]} == set(faults.KINDS)


# --- the books -------------------------------------------------------------------------------------

TOKENS = 12
WHOLE = questions.echo(questions.last_turn(3), TOKENS)


def reply(text: str = WHOLE, **fields: Any) -> Reply:
    return Reply(Answer(text=text, model=fields.pop("model", "main")), **fields)


@pytest.mark.parametrize(
    "good",
    [
        reply(),
        reply(source="cache"),
        reply(source="stale", degraded=True),
        reply(source="fallback_model", model="spare", degraded=True),
        reply(source="template", text=questions.template(3), model="", degraded=True),
    ],
    ids=lambda good: good.source,
)
def test_an_honest_answer_is_fine(good: Reply) -> None:
    book = Book("plain", "main", TOKENS)
    book.reply(good, 3, book.begin(), 1.0)
    assert (book.wrong, book.unmarked, book.open, book.problems) == (0, 0, 0, [])


@pytest.mark.parametrize(
    ("bad", "wrong", "unmarked"),
    [
        (reply(text=WHOLE[:-1]), 1, 0),
        (reply(text=questions.echo(questions.last_turn(4), TOKENS), source="cache"), 1, 0),
        (reply(source="template", text=questions.template(4), degraded=True), 1, 0),
        (reply(source="stale"), 0, 1),
        (reply(model="spare"), 0, 1),
        (reply(source="template", text=questions.template(3)), 0, 1),
        (reply(degraded=True), 0, 1),
    ],
)
def test_a_lie_is_noticed(bad: Reply, wrong: int, unmarked: int) -> None:
    book = Book("plain", "main", TOKENS)
    book.reply(bad, 3, book.begin(), 1.0)
    assert (book.wrong, book.unmarked) == (wrong, unmarked)
    assert book.problems


def test_chunks_that_do_not_join_to_the_reply_are_noticed() -> None:
    book = Book("streamed", "main", TOKENS)
    book.reply(reply(), 3, book.begin(), 1.0, text=WHOLE[:-2])
    assert book.wrong == 1


def test_a_late_call_is_late_unless_the_machine_stood_still() -> None:
    stalls = Stalls()
    book = Book("plain", "main", TOKENS)
    book.stalls = stalls
    began_s = time.monotonic() - 1.0 - GRACE_S - 0.5
    stalls._found = [(began_s - 5.0, began_s - 1.0)]
    book.begun += 1
    book.coded("deadline_exceeded", began_s, 1.0)
    assert book.hung == 1, "the stall was over before"
    stalls._found.append((began_s + 0.2, began_s + 0.2 + 1.0))
    book.begun += 1
    book.coded("deadline_exceeded", began_s, 1.0)
    assert book.hung == 1
