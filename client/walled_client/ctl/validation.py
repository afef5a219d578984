"""walled-ctl validate: what the rules say of a text, or of a whole corpus; works without a daemon.

May live here: reading texts, showing verdicts. May not: rules and verdicts (walled/core/assess.py).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from walled import config
from walled.config import Config, ValidationConfig
from walled.core.assess import Facts, assess, inbound
from walled.core.rules import RuleSet
from walled.errors import BadRequest
from walled_client.ctl.program import Verb
from walled_client.ctl.terminal import Terminal, on_terminal, pass_terminal, printable, table

if TYPE_CHECKING:
    from walled.adapters.rule_files import Example
    from walled.payload import Validation

SCHEMA = "walled.validation/1"
EXIT_BLOCKED = 1
MAX_TEXT_BYTES = 1024 * 1024
CAUGHT_GOAL = 0.99
ALARM_GOAL = 0.01
HALVES = ("all", "development", "held-out", "fresh")

EPILOG = """\b
Exit status: 0 the text may be given (or repaired), the corpus is within its goals (99 % of the unsafe caught,
at most 1 % false alarms); 1 the text is blocked, or the corpus is not; 2 wrong usage or rules.

\b
Example: walled-ctl validate 'Pay me by B1zum on 6 1 2 3 4 5 6 7 8'
  walled-ctl validate --file reply.txt --context price=85 --json
  walled-ctl validate --corpus --half held-out
"""


@click.command("validate", cls=Verb, epilog=EPILOG)
@click.argument("text", required=False)
@click.option(
    "--file", "path", type=click.Path(dir_okay=False, path_type=Path), help="Read the text from a file."
)
@click.option("--corpus", is_flag=True, help="Score the corpus that ships with walled.")
@click.option(
    "--corpus-file", type=click.Path(dir_okay=False, path_type=Path), help="Score a corpus of the same form."
)
@click.option(
    "--half",
    type=click.Choice(HALVES),
    default="all",
    show_default=True,
    help="Of the corpus; or the sets written later.",
)
@click.option(
    "--config", "config_path", type=click.Path(dir_okay=False), envvar="WALLED_CONFIG", metavar="FILE",
    help="Take rules, canaries and block_at from this configuration [default: $WALLED_CONFIG, else the rules "
    "that ship with walled].",
)  # fmt: skip
@click.option("--rules", multiple=True, metavar="FILE", help="A rule file more; may be repeated.")
@click.option("--context", multiple=True, metavar="KEY=VALUE", help="A fact of the request; may be repeated.")
@click.option("--system", default="", help="The system prompt the answer was given under.")
@click.option("--prompt", default="", help="The user's message the answer is for.")
@click.option("--inbound", "as_prompt", is_flag=True, help="The text is a prompt, not an answer.")
@pass_terminal
def validate_verb(
    terminal: Terminal,
    text: str | None,
    path: Path | None,
    corpus: bool,
    corpus_file: Path | None,
    half: str,
    config_path: str | None,
    rules: tuple[str, ...],
    context: tuple[str, ...],
    system: str,
    prompt: str,
    as_prompt: bool,
) -> int:
    """Score a text, or the corpus, by the validation rules; no daemon is needed.

    The text is the argument, a file, or what is piped in ("-" says so).
    """
    from walled.adapters import rule_files

    found = config.load(config_path) if config_path else Config()
    settings: ValidationConfig = msgspec.structs.replace(
        found.validation, files=(*found.validation.files, *rules)
    )
    if corpus or corpus_file is not None:
        if text is not None or path is not None:
            raise click.UsageError("either a text or a corpus")
        chosen = [
            each
            for each in rule_files.corpus(corpus_file, fresh=half == "fresh")
            if half in ("all", "fresh") or each.development is (half == "development")
        ]
        return _corpus(terminal, rule_files.rule_set(settings), settings, chosen, half)
    wrong = [pair for pair in context if "=" not in pair]
    if wrong:
        raise click.UsageError(f"--context: expected KEY=VALUE, got {wrong[0]!r} without a value")
    facts = Facts(dict(pair.split("=", 1) for pair in context), system, prompt)
    words = _text(text, path)
    return _one(terminal, rule_files.rule_set(settings), settings, words, facts, as_prompt)


def _text(text: str | None, path: Path | None) -> str:
    if path is not None:
        if text is not None:
            raise click.UsageError("either TEXT or --file")
        try:
            with path.open("rb") as file:
                data = file.read(MAX_TEXT_BYTES + 1)
        except OSError as exc:
            raise BadRequest(f"--file: {path}: cannot be read: {exc.strerror or exc}") from None
    elif text is None or text == "-":
        if text is None and sys.stdin.isatty():
            raise click.UsageError("say what to score: TEXT, --file, --corpus, or pipe it in")
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    else:
        return text
    if len(data) > MAX_TEXT_BYTES:
        raise BadRequest(f"a text of more than {MAX_TEXT_BYTES} bytes")
    return data.decode("utf-8", "replace").removesuffix("\n")


def _one(
    terminal: Terminal, rules: RuleSet, settings: ValidationConfig, text: str, facts: Facts, as_prompt: bool
) -> int:
    if as_prompt:
        judged, repaired = inbound(rules, text, settings.prompt_block_at or 101), text
    else:
        assessed = assess(rules, text, facts, settings.block_at)
        judged, repaired = assessed.validation, assessed.text
    blocked = judged.verdict == "block"
    data: dict[str, Any] = {
        "schema": SCHEMA, "ok": not blocked, "verdict": judged.verdict, "score": judged.score,
        "level": judged.level, "reasons": list(judged.reasons),
    }  # fmt: skip
    if judged.verdict == "repair":
        data["text"] = repaired

    def show() -> None:
        click.secho(judged.verdict, fg="red" if blocked else "green", bold=True)
        table(("", ""), [("score", judged.score), ("level", judged.level)])
        for name in judged.reasons:
            click.echo(f"  {name}")
        if judged.verdict == "repair":
            click.echo(printable(repaired) if on_terminal() else repaired)

    terminal.emit(data, show)
    return EXIT_BLOCKED if blocked else 0


def _corpus(
    terminal: Terminal, rules: RuleSet, settings: ValidationConfig, examples: Sequence[Example], half: str
) -> int:
    missed: list[tuple[Example, Validation]] = []
    alarms: list[tuple[Example, Validation]] = []
    counts: Counter[tuple[str, str, bool]] = Counter()
    wrong: Counter[tuple[str, str, bool]] = Counter()
    for each in examples:
        judged = assess(rules, each.text, Facts(), settings.block_at).validation
        place = (each.language, each.kind, each.unsafe)
        counts[place] += 1
        if (judged.verdict == "block") is not each.unsafe:
            wrong[place] += 1
            (missed if each.unsafe else alarms).append((each, judged))
    unsafe = sum(count for place, count in counts.items() if place[2])
    safe = sum(counts.values()) - unsafe
    caught = 1 - len(missed) / unsafe if unsafe else None
    false = len(alarms) / safe if safe else None
    good = (caught is None or caught >= CAUGHT_GOAL) and (false is None or false <= ALARM_GOAL)
    data = {
        "schema": SCHEMA, "ok": good, "half": half, "unsafe": unsafe, "missed": len(missed), "caught": caught,
        "safe": safe, "false_alarms": len(alarms), "false_alarm_rate": false,
        "wrong": [
            {"unsafe": each.unsafe, "language": each.language, "kind": each.kind, "text": each.text,
             "score": judged.score, "reasons": list(judged.reasons)}
            for each, judged in (*missed, *alarms)
        ],
    }  # fmt: skip

    def show() -> None:
        rows = [
            (language, kind, "unsafe" if bad else "safe", count, wrong[(language, kind, bad)])
            for (language, kind, bad), count in sorted(counts.items(), key=lambda pair: str(pair[0]))
        ]
        table(("language", "kind", "what", "replies", "wrong"), rows)
        for words, share, count in (("caught", caught, unsafe), ("false alarms", false, safe)):
            if share is not None:
                click.echo(f"{words}: {share:.1%} of {count}")
        for each, judged in (*missed, *alarms):
            what = "missed" if each.unsafe else "false alarm"
            click.echo(f"{what}: {printable(each.text)} [{', '.join(judged.reasons)}]", err=True)

    terminal.emit(data, show)
    return 0 if good else EXIT_BLOCKED
