"""Streams held back: what is forbidden never leaves, not even in halves, however it is cut into chunks."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rule_bench import rule_set
from walled.core.assess import findings
from walled.core.holdback import STEP_CHARS, Holdback

PHRASES = (
    "llámame al 612 34 56 78",
    "seis cero cero, doce, treinta y cuatro, cincuenta y seis",
    "hazme un b i z u m",
    "w.h.a.t.s.a.p.p",
    "joe (at) mail (dot) com",
)
WINDOW = 80
RULES = rule_set({
    "phone": {"detect": ["phone"]},
    "words": {"patterns": ["bizum", "whatsapp"], "deniable": True},
    "mail": {"address": ["[a-z]+@[a-z]+[.]com"]},
}, denials={"before": [r"\bno acepto\b"]})  # fmt: skip
PROSE = st.lists(
    st.sampled_from(
        [
            "la",
            "bici",
            "está",
            "como",
            "nueva",
            ".",
            "y",
            "tiene",
            "dos",
            "candados",
            ",",
            "muy",
            "buena",
            "!",
            "sí",
        ]
    ),
    max_size=120,
)


def forbidden(text: str) -> bool:
    return bool(findings(RULES, text))


def played(text: str, cuts: list[int], window: int = WINDOW) -> tuple[str, Holdback]:
    """What has left after a text came in the pieces given, before its end was known."""
    guard = Holdback(forbidden, window)
    left, at = "", 0
    for size in [*cuts, len(text)]:
        left += guard.feed(text[at : at + size])
        at += size
        if guard.blocked:
            break
    return left, guard


@settings(max_examples=150, deadline=None)
@given(PROSE, PROSE, st.sampled_from(PHRASES), st.lists(st.integers(1, 90), max_size=60))
def test_nothing_of_a_forbidden_phrase_leaves(
    before: list[str], after: list[str], phrase: str, cuts: list[int]
) -> None:
    lead = " ".join(before)
    text = f"{lead} {phrase} {' '.join(after)}"
    left, guard = played(text, cuts)
    assert text.startswith(left)
    assert len(left) <= len(lead) + 1, "not a single character of the phrase"
    assert not guard.blocked or forbidden(text)


@settings(max_examples=100, deadline=None)
@given(PROSE, st.lists(st.integers(1, 90), max_size=60), st.integers(0, 200))
def test_all_of_an_allowed_text_leaves_in_order(words: list[str], cuts: list[int], window: int) -> None:
    text = " ".join(words)
    left, guard = played(text, cuts, window)
    assert not guard.blocked
    assert left + guard.rest() == text
    assert len(left) <= max(0, len(text) - window)


def test_a_stream_does_not_wait_longer_than_its_window() -> None:
    text = "la bici está como nueva y tiene dos candados, muy buena. " * 20
    left, _ = played(text, [1] * len(text))
    assert len(text) - len(left) < WINDOW + STEP_CHARS


def test_a_denial_is_not_cut_off_from_what_it_denies() -> None:
    text = "Mira. No acepto bizum, ni ahora ni luego, la bici se paga por la app. " * 30
    left, guard = played(text, [7] * 400)
    assert not guard.blocked
    assert left + guard.rest() == text


def test_a_find_stops_the_stream_after_another_window() -> None:
    guard = Holdback(forbidden, WINDOW)
    assert guard.feed("Hazme un bizum ya. " + "x" * 40) == ""
    assert not guard.blocked, "a denial may follow"
    guard.feed("y " * STEP_CHARS)
    guard.feed("y " * WINDOW)
    assert guard.blocked
    assert guard.feed("more") == ""
    assert guard.left == 0


def test_a_long_stream_costs_no_more_per_character() -> None:
    looked = []

    def check(text: str) -> bool:
        looked.append(len(text))
        return False

    guard = Holdback(check, WINDOW)
    for _ in range(4000):
        guard.feed("word and more. ")
    assert max(looked) < 3000
