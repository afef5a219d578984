"""walled/link.py: the supervisor's messages come back as they went, and nothing else is understood.

May live here: bytes of link messages. The pipe itself is tests/adapters/test_process.py's.
"""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled import config, link
from walled.errors import ProtocolError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
plain = st.dictionaries(text, st.integers(0, 9) | text | st.lists(text, max_size=3), max_size=3)

messages = st.one_of(
    st.builds(
        link.Spawn,
        role=st.sampled_from(["broker", "worker", "monitor"]),
        slot=st.integers(0, 64),
        backend=text,
        token=st.binary(max_size=64),
        config=plain,
        supervisor_pid=st.integers(1, 2**22),
        incarnation=st.integers(1, 1000),
    ),
    st.builds(
        link.Order,
        op=st.sampled_from(["drain", "stop", "reconfigure", "tree"]),
        deadline_s=st.floats(0, 1e6),
        config=plain,
        tree=plain,
    ),
    st.builds(
        link.Status,
        phase=st.sampled_from(["starting", "loading", "ready", "draining", "stopping"]),
        detail=text,
        answered=st.booleans(),
    ),
    st.builds(
        link.Ask,
        op=st.sampled_from(["worker.restart", "worker.drained", "reload", "stop"]),
        worker=st.integers(-1, 64),
    ),
)


@given(messages)
def test_messages_come_back(message: link.Message) -> None:
    packed = link.pack(message)
    assert link.unpack(packed) == message
    assert msgpack.unpackb(packed, strict_map_key=True)["type"] == type(message).__name__.lower()


def test_the_largest_sensible_configuration_fits() -> None:
    """Every model name and every backend at once, far beyond any real file, must pass the pipe."""
    hosts = [f"http://host{number}:11434" for number in range(32)]
    many = config.from_plain(
        {
            "backends": {f"backend-{number}": {"kind": "ollama", "hosts": hosts} for number in range(20)},
            "models": {f"model-with-a-long-name-{number}": {"ttl_s": 60.0} for number in range(500)},
        }
    )
    spawn = link.Spawn("worker", 3, "ollama", b"t" * 32, config.to_plain(many), 4711, 1)
    packed = link.pack(spawn)
    again = link.unpack(packed)
    assert isinstance(again, link.Spawn)
    assert config.from_plain(again.config) == many


def test_an_oversized_message_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ProtocolError) as caught:
        link.pack(link.Status("ready", "x" * link.MAX_LINK_BYTES))
    assert caught.value.reason == "link"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\x80",
        msgpack.packb({"type": "farewell"}),
        msgpack.packb({"type": "status"}),
        msgpack.packb({"type": "status", "phase": "dancing"}),
        msgpack.packb({"type": "order", "op": 1}),
        msgpack.packb({"type": "status", "phase": "ready"})[:-1],
        b"\x82\xa4type\xa6status\xa5phase\xa2\xff\xfe",
        b"\x83\xa4type\xa6status\xa5phase\xa5ready\xa6detail\xa2\xff\xfe",
        b"\x91" * 100_000,
    ],
)
def test_foreign_packets_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        link.unpack(data)
    assert caught.value.reason == "link"


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: b"\x82\xa4type\xa6status" + tail))
def test_no_bytes_at_all_hurt(data: bytes) -> None:
    found: Any = None
    try:
        found = link.unpack(data)
    except ProtocolError as exc:
        found = exc.reason
    assert found == "link" or isinstance(found, link.Status)
