"""docs/templates.md: its example is a valid file that does what the page says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from walled.core import templates as t
from walled.payload import Message, Request

PAGE = (Path(__file__).parent.parent / "docs/templates.md").read_text("utf-8")
(EXAMPLE,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.M | re.S)
SET = t.load_plain(tomllib.loads(EXAMPLE), "docs/templates.md")


def say(text: str, context: dict[str, str]) -> t.Choice | None:
    return t.choose(SET, Request(kind="chat", messages=(Message("user", text),)), context, "s")


def test_the_example_answers() -> None:
    hours = {"hours": "9 to 5"}
    for text in ("Opening hours?", "when does it open", "opening, but when?"):
        choice = say(text, hours)
        assert choice is not None
        assert choice.intent == "opening_hours"
        assert "9 to 5" in choice.text
    assert say("¿Cuándo abrís?", {}) == ("Lo miro y te digo el horario por aquí.", "opening_hours", "es")
    fallback = say("is it you", {})
    assert fallback is not None
    assert fallback.intent == t.FALLBACK


def test_the_limits_stated_are_the_real_ones() -> None:
    assert f"{t.MAX_LOOKED_CHARS:,}\ncharacters" in PAGE or f"first {t.MAX_LOOKED_CHARS:,}" in PAGE
    assert f"at most {t.MAX_WORDS} words, a pattern at most {t.MAX_PHRASES} phrases" in PAGE
    assert f"at least {t.MIN_PREFIX_CHARS} letters" in PAGE
