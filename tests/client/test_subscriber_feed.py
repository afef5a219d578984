"""What a subscriber makes of the numbers on messages: gaps, repetitions, new epochs, callbacks that raise."""

from __future__ import annotations

from typing import Any

from walled_client.subscriber import _Feed

from walled.protocol import pack_map


def parts(topic: str, seq: int, epoch: str = "a") -> list[bytes]:
    return [topic.encode(), pack_map({"epoch": epoch, "seq": seq})]


def topics(feed: _Feed, *messages: list[bytes]) -> list[str]:
    return [message.topic for one in messages for message in feed.take(one)]


def test_gaps_are_reported_and_repetitions_left_out() -> None:
    feed = _Feed({})
    assert topics(feed, parts("t", 4), parts("t", 4), parts("u", 1), parts("t", 7)) == [
        "t",
        "u",
        "event.gap",
        "t",
    ]
    assert feed.lost == 2


def test_a_new_epoch_begins_anew() -> None:
    feed = _Feed({})
    assert topics(feed, parts("t", 4), parts("t", 1, "b"), parts("t", 2, "b")) == [
        "t",
        "event.epoch",
        "t",
        "t",
    ]
    assert feed.lost == 0


def test_a_callback_that_raises_and_junk_are_counted() -> None:
    def fails(body: dict[str, Any]) -> None:
        raise RuntimeError

    feed = _Feed({"slow": fails})
    assert topics(feed, parts("alert.slow", 1), [b"t"], [b"\xff", b""], [b"t", b"\x80"]) == ["alert.slow"]
    assert (feed.callback_failures, feed.refused) == (1, 3)
