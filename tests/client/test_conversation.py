"""Conversations: what is remembered, what is sent, what fits the budget."""

from __future__ import annotations

import asyncio

import pytest
from walled_client import AsyncClient, AsyncConversation, Client, Conversation, Reply
from walled_client.conversation import History, context_tokens

from tests.client.fake_broker import FakeBroker, Peer
from walled import protocol
from walled.errors import BackendError
from walled.payload import Answer, Usage, unpack_request
from walled.protocol import ErrorHeader, RequestHeader

MODELS = {
    "schema": "walled.models/1",
    "ok": True,
    "default": "small",
    "models": [
        {"name": "small", "context_tokens": 100, "aliases": ["default", "s"]},
        {"name": "big", "context_tokens": 4000, "aliases": []},
        {"name": "unknown", "context_tokens": 0},
    ],
}


def with_models(peer: Peer) -> None:
    """Answers models.list, and every request with "re: " and its text; "fail" fails."""
    if peer.message.type == protocol.CONTROL:
        peer.send(protocol.CONTROL, None, protocol.pack_map(MODELS))
    elif peer.message.type == protocol.REQUEST:
        text = peer.prompt()
        if text == "fail":
            peer.send(protocol.ERROR, ErrorHeader("backend_error", "no"))
            return
        if peer.header().stream:
            peer.partial(0, "re: ")
            peer.partial(1, text)
        peer.final(f"re: {text}", partials=2)


def sent(broker: FakeBroker) -> tuple[RequestHeader, list[tuple[str, str]]]:
    message = broker.next(protocol.REQUEST)
    turns = unpack_request(message.payload).messages
    return protocol.decode_header(RequestHeader, message.header), [(t.role, t.content) for t in turns]


def test_a_conversation_remembers_in_one_session(broker: FakeBroker) -> None:
    broker.behaviour = with_models
    with Client(endpoint=broker.endpoint) as client:
        talk = Conversation(client, system="be brief", model="big", temperature=0)
        assert talk.say("one").text == "re: one"
        with talk.stream("two") as stream:
            assert "".join(str(chunk) for chunk in stream) == "re: two"
        talk.say("three", max_tokens=5)
    header, first = sent(broker)
    assert first == [("system", "be brief"), ("user", "one")]
    assert (header.session, header.model, header.deterministic) == (talk.session, "big", True)
    assert len(talk.session) >= 16
    _, second = sent(broker)
    assert second == [*first, ("assistant", "re: one"), ("user", "two")]
    header, third = sent(broker)
    assert third == [*second, ("assistant", "re: two"), ("user", "three")]
    assert header.session == talk.session


def test_two_conversations_have_two_sessions(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint) as client:
        assert Conversation(client).session != Conversation(client).session
        assert Conversation(client, session="mine").session == "mine"


def test_errors_and_abandoned_streams_leave_the_history_as_it_was(broker: FakeBroker) -> None:
    broker.behaviour = with_models
    with Client(endpoint=broker.endpoint) as client:
        talk = Conversation(client, model="big")
        talk.say("one")
        before = list(talk.history.turns)
        with pytest.raises(BackendError):
            talk.say("fail")
        with pytest.raises(BackendError):
            talk.stream("fail").finish()
        with talk.stream("left") as stream:
            next(stream)
        assert list(stream) == []
        assert talk.history.turns == before
        talk.say("two")
        assert [turn["content"] for turn in talk.history.turns] == ["one", "re: one", "two", "re: two"]
        talk.clear()
        assert talk.history.turns == []


def test_the_models_window_is_the_budget(broker: FakeBroker) -> None:
    broker.behaviour = with_models
    with Client(endpoint=broker.endpoint) as client:
        talk = Conversation(client, system="S" * 40)
        for n in range(12):
            talk.say(f"question {n:02} {'x' * 40}")
        assert talk.history.budget_tokens == 100
        assert talk.history.dropped > 0
        *_, (_, last) = [sent(broker) for _ in range(12)]
        assert last[0] == ("system", "S" * 40)
        assert last[1][0] == "user", "a window begins with a question"
        assert last[-1] == ("user", f"question 11 {'x' * 40}")
        assert len(last) < 10
        talk.use_model("big")
        talk.say("more room" * 10)
        assert talk.history.budget_tokens == 4000


def test_without_a_daemon_to_ask_the_call_itself_says_so(run_dir: object) -> None:
    from walled.errors import DaemonUnavailable

    with Client(str(run_dir), connect_timeout_s=0.05) as client:
        talk = Conversation(client)
        for text in ("short", "long " * 500):
            with pytest.raises(DaemonUnavailable):
                talk.say(text)
        assert talk.history.turns == []


def test_the_async_twin(broker: FakeBroker) -> None:
    broker.behaviour = with_models

    async def run() -> AsyncConversation:
        async with AsyncClient(endpoint=broker.endpoint) as client:
            talk = AsyncConversation(client, system="s", model="big")
            assert (await talk.say("one")).text == "re: one"
            async with await talk.stream("two") as stream:
                assert [chunk.text async for chunk in stream] == ["re: ", "two"]
                assert stream.reply.text == "re: two"
            with pytest.raises(BackendError):
                await talk.say("fail")
            async with await talk.stream("left") as stream:
                await anext(stream)
            assert (await (await talk.stream("three")).finish()).text == "re: three"
            return talk

    talk = asyncio.run(run())
    assert [turn["content"] for turn in talk.history.turns] == [
        "one", "re: one", "two", "re: two", "three", "re: three",
    ]  # fmt: skip


# --- the history by itself -------------------------------------------------------------------------


def reply(text: str, prompt_tokens: int = 0) -> Reply:
    return Reply(answer=Answer(text=text, usage=Usage(prompt_tokens=prompt_tokens)))


def test_the_newest_message_is_sent_even_if_it_alone_is_over_the_budget() -> None:
    history = History("system", 20)
    history.keep(history.window("a", None), reply("b"))
    assert history.window("x" * 1000, None) == [{"role": "user", "content": "x" * 1000}]
    assert len(history.turns) == 2, "looking at the window drops nothing"


def test_dropping_leaves_room_so_that_the_prefix_changes_seldom() -> None:
    history = History("", 400)
    starts = []
    for n in range(40):
        window = history.window(f"{n:>40}", None)
        assert history.tokens(window) <= 300
        starts.append(window[0]["content"])
        history.keep(window, reply("y" * 40))
    assert len(set(starts)) < 15


def test_the_models_own_counts_correct_the_estimate() -> None:
    history = History("", 1000)
    window = history.window("x" * 400, None)
    assert history.tokens(window) == 105
    history.keep(window, reply("ok", prompt_tokens=405))
    assert history.tokens(history.window("", None)[:1]) == pytest.approx(405, abs=2)


@pytest.mark.parametrize(
    ("model", "tokens"), [("default", 100), ("s", 100), ("big", 4000), ("unknown", None), ("none", None)]
)
def test_the_window_of_a_model(model: str, tokens: int | None) -> None:
    assert context_tokens(MODELS, model) == tokens
