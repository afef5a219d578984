"""Names -> places to run."""

from __future__ import annotations

from tests.core.broker_world import config_of
from walled.core.lanes import place
from walled.core.routes import Route, Target, resolve, routes

CONFIG = config_of(
    default_model="shop",
    backend=["a", "b"],
    backends={"a": {"kind": "scripted"}, "b": {"kind": "scripted"}},
    ladder={"mode": "hybrid"},
    routes={
        "shop": {"targets": ["a/big", "b/big", "b/org/small:1b"]},
        "plain": {"targets": ["b/small"], "mode": "ai_only"},
    },
)
CONFIGURED = routes(CONFIG)
ALIASES = {"nick": "big", "default": "other"}


def resolved(name: str) -> Route:
    return resolve(name, CONFIGURED, ALIASES, CONFIG)


def test_a_route_is_its_targets_in_order_with_a_mode_of_its_own_or_the_daemons() -> None:
    assert resolved("shop").targets == (Target("big", "a"), Target("big", "b"), Target("org/small:1b", "b"))
    assert resolved("shop").mode == "hybrid"
    assert resolved("plain").mode == "ai_only"


def test_what_falls_back_is_another_model_not_another_backend() -> None:
    shop = resolved("shop")
    assert [shop.fallback(target) for target in shop.targets] == [False, False, True]


def test_a_plain_name_and_an_alias_are_the_model_wherever_it_is_served() -> None:
    assert resolved("big") == Route((Target("big"),), "hybrid")
    assert resolved("nick") == resolved("big")
    assert resolved("nobody knows") == Route((Target("nobody knows"),), "hybrid")


def test_default_is_the_configured_route() -> None:
    assert resolved("default") == resolved("shop")
    other = config_of()
    assert resolve("default", {}, ALIASES, other).targets == (Target("other"),)


def test_places_have_lanes_of_their_own() -> None:
    assert Target("m").lane == place("m") == "m"
    assert Target("m", "b").lane == place("m", "b") != "m"


def test_a_request_may_ask_for_a_mode() -> None:
    assert resolved("plain").mode_for("") == "ai_only"
    assert resolved("plain").mode_for("auto") == "auto"
