"""Templates: matching, choosing, filling, the packed form, and what is wrong with a file."""

from __future__ import annotations

import time
import tomllib
from importlib import resources
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walled.core import templates as t
from walled.errors import ConfigError
from walled.payload import Message, Request, request_from

SHIPPED = tomllib.loads(resources.files("walled.templates").joinpath("marketplace.toml").read_text("utf-8"))
MARKET = t.load_plain(SHIPPED, "marketplace.toml")
CONTEXT = {"item": "la bici", "price": "80 €"}

SMALL: dict[str, Any] = {
    "languages": {"en": {"words": ["the", "is", "it"]}, "es": {"words": ["el", "es", "la"]}},
    "intents": {
        "price": {
            "en": {"patterns": ["price", "how + cost~"], "variants": ["{price}.", "{price}!", "See it."]},
            "es": {"patterns": ["precio"], "variants": ["Son {price}.", "Pido {price}."]},
        },
        "hello": {"priority": -1, "en": {"patterns": ["hi", "ok"], "variants": ["Hi."]},
                  "es": {"patterns": ["hola", "ok"], "variants": ["Hola."]}},
        "fallback": {"en": {"variants": ["Later.", "Soon."]}, "es": {"variants": ["Luego.", "Pronto."]}},
    },
}  # fmt: skip
SET = t.load_plain(SMALL, "small.toml")


def ask(*texts: str) -> Request:
    """A chat in which the user says these, with an answer after each but the last."""
    turns = []
    for text in texts:
        turns += [Message("user", text), Message("assistant", "…")]
    return Request(kind="chat", messages=tuple(turns[:-1]))


def text_of(choice: t.Choice | None) -> str:
    assert choice is not None
    return choice.text


@pytest.mark.parametrize(
    ("said", "intent", "language"),
    [
        ("Hola, ¿SIGUE DISPONIBLE?", "availability", "es"),
        ("¿último precio?", "negotiation", "es"),
        ("me la dejas en 50?", "negotiation", "es"),
        ("¿Cuánto cuesta?", "price", "es"),
        ("¿haceis envíos?", "shipping", "es"),
        ("puedo pagar con bizum", "payment", "es"),
        ("¿Dónde quedamos?", "meeting", "es"),
        ("tiene arañazos?", "condition", "es"),
        ("¿qué medidas tiene?", "measures", "es"),
        ("me lo reservas?", "reservation", "es"),
        ("muchas gracias", "thanks", "es"),
        ("esto es una estafa", "complaint", "es"),
        ("¿eres un bot?", "human", "es"),
        ("buenas tardes", "greeting", "es"),
        ("Is it still available?", "availability", "en"),
        ("what's the lowest price?", "negotiation", "en"),
        ("how much is it", "price", "en"),
        ("Do you ship to Spain?", "shipping", "en"),
        ("can I pay by PayPal", "payment", "en"),
        ("where can I pick it up?", "meeting", "en"),
        ("any scratches?", "condition", "en"),
        ("what size is it", "measures", "en"),
        ("can you hold it for me", "reservation", "en"),
        ("thank you!", "thanks", "en"),
        ("it arrived broken, refund please", "complaint", "en"),
        ("are you a bot?", "human", "en"),
        ("good morning", "greeting", "en"),
        ("¿de qué color son las ruedas?", "fallback", "es"),
        ("what colour are the wheels?", "fallback", "en"),
    ],
)
def test_the_shipped_set_understands(said: str, intent: str, language: str) -> None:
    choice = t.choose(MARKET, ask(said), CONTEXT, "s")
    assert choice is not None
    assert (choice.intent, choice.language) == (intent, language)
    assert t.matches(MARKET, ask(said)) == ("" if intent == "fallback" else intent)


def test_every_shipped_intent_has_four_variants_in_each_language_without_a_slot() -> None:
    """So that each can be said without any context, and without repeating itself."""
    assert MARKET.languages == ("en", "es")
    for intent in MARKET.intents:
        for language in MARKET.languages:
            variants = MARKET.variants(intent, language)
            assert len(variants) >= 4, (intent, language)
            assert sum(len(parts) == 1 for parts in variants) >= 2, (intent, language)


def test_no_shipped_text_leads_off_the_platform() -> None:
    for intent in MARKET.intents:
        for language in MARKET.languages:
            for parts in MARKET.variants(intent, language):
                words = set(t.normalised(" ".join(literal for literal, _ in parts)))
                assert not words & {
                    "whatsapp",
                    "telegram",
                    "bizum",
                    "paypal",
                    "iban",
                    "email",
                    "telefono",
                    "phone",
                }
                assert not any(word.isdigit() for word in words)


# --- choosing -----------------------------------------------------------------------------------------

SAID = st.text(max_size=60) | st.sampled_from(["price", "ok", "hola precio", "how does it cost", "¿y?"])
VALUES = st.text(max_size=40) | st.sampled_from(["{price}", "{item}", "}{", "{{x}}", "%s", "\\1", "{0}"])


@given(st.lists(SAID, min_size=1, max_size=5), st.dictionaries(st.sampled_from(["price", "item"]), VALUES),
       st.text(max_size=10))  # fmt: skip
def test_choosing_is_reproducible_also_after_packing(
    said: list[str], context: dict[str, str], session: str
) -> None:
    copy = t.unpack(SET.pack())
    assert copy is not None
    first = t.choose(SET, ask(*said), context, session)
    assert (
        first == t.choose(SET, ask(*said), context, session) == t.choose(copy, ask(*said), context, session)
    )


@given(SAID, st.dictionaries(st.sampled_from(["price", "item"]), VALUES), st.text(max_size=10))
def test_values_are_text_and_no_slot_stays_open(said: str, context: dict[str, str], session: str) -> None:
    """Whatever is chosen is a variant with the values put in as they are, each slot once."""
    choice = t.choose(SET, ask(said), context, session)
    assert choice is not None
    possible = set()
    for parts in SET.variants(choice.intent, choice.language):
        slots = [slot for _, slot in parts if slot]
        if all(context.get(slot, "").strip() for slot in slots):
            possible.add("".join(literal + context.get(slot, "").strip() for literal, slot in parts))
    assert choice.text in possible


@given(st.text(min_size=1, max_size=10), st.sampled_from(["price", "precio", "zzz", "hola"]),
       st.sampled_from([{}, {"price": "80"}]), st.integers(2, 12), st.integers(0, 3))  # fmt: skip
def test_a_bot_does_not_repeat_itself(
    session: str, said: str, context: dict[str, str], turns: int, kept: int
) -> None:
    """Also when the client sends only the newest turns of a long conversation."""
    history: list[Message] = []
    last = ""
    for _ in range(turns):
        history.append(Message("user", said))
        choice = t.choose(SET, Request(kind="chat", messages=tuple(history)), context, session)
        assert choice is not None
        eligible = {"".join(x + context.get(y, "") for x, y in parts)
                    for parts in SET.variants(choice.intent, choice.language)
                    if all(y in context for _, y in parts if y)}  # fmt: skip
        if len(eligible) > 1:
            assert choice.text != last
        last = choice.text
        history.append(Message("assistant", last))
        if kept:
            history = history[-2 * kept :]


def test_a_conversation_goes_through_all_variants() -> None:
    texts = [text_of(t.choose(SET, ask(*["zzz the"] * n), {}, "s")) for n in range(1, 5)]
    assert set(texts) == {"Later.", "Soon."}
    starts = {text_of(t.choose(MARKET, ask("hello"), {}, f"session {n}")) for n in range(50)}
    assert len(starts) >= 3


def test_a_fact_is_stated_when_the_context_has_it() -> None:
    for session in "abcdef":
        assert "80" in text_of(
            t.choose(MARKET, ask("¿cuánto cuesta?"), {"item": "x", "price": "80"}, session)
        )


def test_a_missing_or_blank_slot_makes_a_variant_ineligible() -> None:
    for context in ({}, {"price": "  "}, {"item": "x"}):
        assert text_of(t.choose(SET, ask("the price"), context, "s")) == "See it."
        # No Spanish variant without the price: the fallback, in Spanish.
        assert t.choose(SET, ask("precio"), context, "s") in (
            ("Luego.", "fallback", "es"), ("Pronto.", "fallback", "es"),
        )  # fmt: skip


def test_the_language_of_an_ambiguous_message_is_that_of_the_conversation() -> None:
    assert text_of(t.choose(SET, ask("es la mesa", "ok"), {}, "s")) == "Hola."
    assert text_of(t.choose(SET, ask("it is the table", "ok"), {}, "s")) == "Hi."
    assert text_of(t.choose(SET, ask("ok"), {}, "s")) == "Hi."
    assert text_of(t.choose(SET.with_rules(t.Rules(), "es"), ask("ok"), {}, "s")) == "Hola."


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "embed", "input": ["price"]},
        {"kind": "generate", "prompt": "price", "format": "json"},
        {"kind": "generate", "prompt": "price", "images": [b"x"]},
        {"kind": "chat", "messages": [{"role": "user", "content": "price"}], "format": "json"},
        {"kind": "chat", "messages": [{"role": "user", "content": "price"}], "tools": [{"type": "function"}]},
        {"kind": "chat", "messages": [{"role": "user", "content": "price", "images": [b"x"]}]},
        {
            "kind": "chat",
            "messages": [{"role": "user", "content": "price"}, {"role": "tool", "content": "4"}],
        },
        {"kind": "chat", "messages": [{"role": "system", "content": "price"}]},
    ],
)
def test_what_no_template_may_answer(fields: dict[str, Any]) -> None:
    request = request_from(fields)
    assert t.choose(SET, request, {"price": "1"}, "s") is None
    assert t.matches(SET, request) == ""


def test_a_prompt_is_a_message() -> None:
    request = request_from({"kind": "generate", "prompt": "the price?"})
    assert t.choose(SET, request, {}, "s") == ("See it.", "price", "en")


# --- matching -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("PRICE", True), ("the pricé, please", True), ("priceless", False), ("pri ce", False),
        ("how does it cost", True), ("costs how?", True), ("cost", False), ("how", False), ("how cos", False),
    ],
)  # fmt: skip
def test_phrases_prefixes_and_both_of(text: str, hit: bool) -> None:
    assert (t.matches(SET, ask(text)) == "price") is hit


def test_only_the_beginning_of_a_long_message_is_looked_at() -> None:
    assert t.matches(SET, ask("x " * 999 + "price")) == ""
    assert t.matches(SET, ask("x " * 900 + "price")) == "price"


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=3000))
def test_any_text_is_taken(text: str) -> None:
    t.choose(MARKET, ask(text), CONTEXT, text[:20])


@pytest.mark.parametrize(
    "text", ["aaa " * 100_000, "cuanto cuanto " * 50_000, "\ufdfa" * 50_000, "a" * 500_000]
)
def test_no_text_takes_long(text: str) -> None:
    started_s = time.process_time()
    t.choose(MARKET, ask(text), CONTEXT, "s")
    assert time.process_time() - started_s < 0.1


# --- bytes and plain values -----------------------------------------------------------------------------


def test_rules_travel_with_the_set() -> None:
    rules = t.Rules(mode="hybrid", hybrid_intents=("price",), stale=False, route_modes={"shop": "ai_only"})
    copy = t.unpack(SET.with_rules(rules, "es").pack())
    assert copy is not None
    assert (copy.rules, copy.language, copy.intents) == (rules, "es", SET.intents)


def test_damaged_bytes_are_no_set() -> None:
    packed = SET.pack()
    assert t.unpack(b"") is None
    assert t.unpack(packed[:-1]) is None
    for at in range(0, len(packed), 7):
        assert t.unpack(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :]) is None


def test_an_intent_of_the_same_name_replaces_the_whole() -> None:
    new = t.load_plain({"intents": {"price": {"en": {"patterns": ["price"], "variants": ["No."]}}}}, "f", SET)
    assert text_of(t.choose(new, ask("price"), {"price": "1"}, "")) == "No."
    assert new.variants("price", "es") == ()
    assert text_of(t.choose(new, ask("hola"), {}, "")) == "Hola."


def one(block: dict[str, Any]) -> dict[str, Any]:
    return {"intents": {"a": {"en": block}}}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"intent": {}}, "intent: unknown key; valid here: intents, languages"),
        ({"intents": []}, "intents: expected a table"),
        ({"intents": {"A b": {"en": {"patterns": ["x"], "variants": ["x"]}}}}, "intents.A b: a name is"),
        ({"intents": {"a": {}}}, "intents.a: no language"),
        ({"intents": {"a": {"priority": "1", "en": {}}}}, "intents.a.priority"),
        ({"intents": {"a": {"english": {}}}}, "intents.a.english: unknown key"),
        (one({"variants": ["x"]}), "intents.a.en.patterns: missing"),
        (one({"patterns": ["x"]}), "intents.a.en.variants: missing"),
        (one({"patterns": [], "variants": ["x"]}), "intents.a.en.patterns: empty"),
        (one({"patterns": ["x"], "variants": []}), "intents.a.en.variants: empty"),
        (one({"patterns": [1], "variants": ["x"]}), "intents.a.en.patterns: expected a list"),
        (one({"patterns": ["x", "?"], "variants": ["x"]}), "intents.a.en.patterns[1]: a phrase"),
        (one({"patterns": ["x~"], "variants": ["x"]}), "patterns[0]: `x~`: `~` needs"),
        (one({"patterns": ["a " * 9], "variants": ["x"]}), "9 words; at most 8"),
        (one({"patterns": ["x"], "variants": ["{a"]}), "intents.a.en.variants[0]: a slot is"),
        (one({"patterns": ["x"], "variants": ["a}"]}), "variants[0]: a `}` without"),
        (one({"patterns": ["x"], "variants": ["{a.b}"]}), "variants[0]: a slot is"),
        (one({"pattern": ["x"], "variants": ["x"]}), "intents.a.en.pattern: unknown key"),
        ({"intents": {"fallback": {"en": {"patterns": ["x"], "variants": ["x"]}}}}, "it has none"),
        ({"languages": {"en": {"word": ["x"]}}}, "languages.en.word: unknown key"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_intent_and_key(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        t.load_plain(data, "my.toml")
    assert any(line.startswith("my.toml: ") and problem in line for line in caught.value.message.splitlines())


def test_doubled_braces_are_braces() -> None:
    assert t.parts_of("{{a}} {b}") == (("{a} ", "b"), ("", ""))
