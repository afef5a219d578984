"""Hosts, models and starts of the Ollama adapter against fake servers that are the real one on the wire."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import pytest

from tests.adapters.ollama_rig import ALL, Make, Rig, chat
from tests.fakes.ollama_records import Model
from tests.fakes.ollama_server import FakeOllama, Turn
from walled import errors
from walled.adapters import ollama_hosts, upstream
from walled.errors import BackendUnavailable, BootError
from walled.payload import Options, Request

# --- the pool and the model's one option set ---------------------------------------------------------


def test_connections_are_reused_and_bounded(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig(slots=2)
    for _ in range(10):
        rig.ask()
    assert len({asked.connection for asked in fake_ollama.jobs()}) <= 2


def test_never_more_in_flight_than_slots(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig(slots=2)
    turns = [Turn(hold_at=0) for _ in range(5)]
    fake_ollama.play(*turns)
    jobs = [rig.submit(chat()) for _ in range(5)]
    assert turns[0].started.wait(10)
    assert turns[1].started.wait(10)
    for turn in turns:
        turn.release()
    for job in jobs:
        rig.seen.done(job)
    assert fake_ollama.peak == 2


def test_requests_never_change_what_reloads_a_model(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig(
        context_tokens=2048, load_options={"num_thread": 2}, models={"ours": "demo", "vec": "embed"}
    )
    assert [model.name for model in rig.info.models] == ["ours", "vec"]
    rig.ask(chat(), "ours")
    rig.ask(chat(options=Options(temperature=1.0, top_k=3, max_tokens=9, seed=1)), "ours")
    rig.ask(Request(kind="generate", prompt="hello"), "ours")
    rig.ask(Request(kind="embed", input=("a",)), "vec")
    assert fake_ollama.reloads == 0
    for asked in fake_ollama.jobs() + fake_ollama.probes():
        assert asked.body["options"]["num_ctx"] == 2048
        assert asked.body["options"]["num_thread"] == 2


def test_settings_are_part_of_the_digest(make_rig: Make) -> None:
    infos = [
        make_rig(),
        make_rig(context_tokens=512),
        make_rig(context_tokens=1024),
        make_rig(context_tokens=9999),
    ]
    digests = {rig.info.models[0].digest for rig in infos}
    assert len(digests) == 4
    windows = [rig.info.models[0].context_tokens for rig in infos]
    assert windows == [0, 512, 1024, 4096]


def test_a_reload_that_somebody_else_caused_is_told(
    fake_ollama: FakeOllama, make_rig: Make, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    rig.ask()
    fake_ollama.play(Turn(load_ns=260_000_000))
    assert rig.ask().timings.load_ms == 260.0
    assert "loaded demo:latest again" in caplog.text


def test_keep_alive_for_ever(fake_ollama: FakeOllama, make_rig: Make) -> None:
    make_rig(keep_alive_s=-5.0).ask()
    assert fake_ollama.jobs()[0].body["keep_alive"] == -1


# --- health, models, several hosts -------------------------------------------------------------------


def test_an_idle_host_is_proved_again_with_what_is_left_of_keep_alive(
    fake_ollama: FakeOllama, make_rig: Make
) -> None:
    rig = make_rig(probe_interval_s=0.1, keep_alive_s=100.0)
    rig.ask()
    fake_ollama.wait_for(lambda: len(fake_ollama.probes()) >= 3)
    later = fake_ollama.probes()[1:]
    assert all(98.0 < asked.body["keep_alive"] < 100.0 for asked in later)


def test_an_unloaded_model_is_not_loaded_by_a_proof(fake_ollama: FakeOllama, make_rig: Make) -> None:
    make_rig(probe_interval_s=0.05)
    fake_ollama.loaded.clear()
    before = len(fake_ollama.probes())
    fake_ollama.wait_for(lambda: len([asked for asked in fake_ollama.asked if asked.path == "/api/ps"]) >= 5)
    assert len(fake_ollama.probes()) <= before + 1  # one may have been under way


def test_a_request_takes_the_slot_of_a_proof(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig(slots=1, probe_interval_s=0.1)
    rig.ask()
    proof = Turn(hold_at=0)
    fake_ollama.probe_turns.append(proof)
    assert proof.started.wait(10)
    assert rig.ask().answer.text == "Hello, you."
    assert proof.gone.wait(10)
    assert rig.served() is rig.info, "nothing to announce"


def test_a_dead_server_and_its_return(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig()
    fake_ollama.stop()
    error = rig.fail()
    assert (error.code, error.retryable) == ("backend_unavailable", True)
    down = rig.until(lambda info: info.slots == 0)
    assert [model.name for model in down.models][:1] == ["demo"], "unavailable, not unknown"
    proofs = len(fake_ollama.probes())
    fake_ollama.start()
    rig.until(lambda info: info.slots == 2)
    assert len(fake_ollama.probes()) > proofs, "proved before it gets requests"
    assert rig.ask().answer.text == "Hello, you."


def test_a_host_that_lists_but_does_not_generate_is_down(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig()
    fake_ollama.probe_turns.extend(Turn(status=500, error="no memory") for _ in range(2))
    fake_ollama.play(Turn(raw=b""))
    rig.fail()
    rig.until(lambda info: info.slots == 0)
    rig.until(lambda info: info.slots == 2)
    assert not fake_ollama.probe_turns


def test_models_that_come_and_go_are_announced(fake_ollama: FakeOllama, make_rig: Make) -> None:
    rig = make_rig()
    fake_ollama.models["new:latest"] = Model(weights="new")
    rig.until(lambda info: "new" in [model.name for model in info.models])
    fake_ollama.models["demo:latest"] = Model(weights="better")
    changed = Model(weights="better").digest
    rig.until(lambda info: info.models[0].digest == changed)
    del fake_ollama.models["new:latest"]
    rig.until(lambda info: "new" not in [model.name for model in info.models])


def test_remote_models_are_served_only_when_named(fake_ollama: FakeOllama, make_rig: Make) -> None:
    fake_ollama.models["far:latest"] = Model(weights="far", remote_host="https://ollama.com:443")
    info = make_rig().info
    assert "far" not in [model.name for model in info.models]
    info = make_rig(models={"far": "far"}).info
    assert [model.name for model in info.models] == ["far"]


def test_two_hosts_share_the_load(fake_ollama: FakeOllama, make_rig: Make, cleanup: ExitStack) -> None:
    second = cleanup.enter_context(FakeOllama({"demo:latest": ALL}))
    rig = make_rig(slots=4, hosts=(fake_ollama.url, second.url))
    fake_ollama.wait_for(lambda: bool(fake_ollama.probes()))
    rig.until(lambda info: info.slots == 4)
    turns = [Turn(hold_at=0) for _ in range(4)]
    fake_ollama.play(*turns[:2])
    second.play(*turns[2:])
    jobs = [rig.submit(chat()) for _ in range(4)]
    assert all(turn.started.wait(10) for turn in turns)
    for turn in turns:
        turn.release()
    for job in jobs:
        rig.seen.done(job)
    assert (len(fake_ollama.jobs()), len(second.jobs())) == (2, 2)


def both_up(make_rig: Make, fake_ollama: FakeOllama, second: FakeOllama, **config: Any) -> Rig:
    rig = make_rig(slots=2, hosts=(fake_ollama.url, second.url), **config)
    rig.until(lambda info: info.slots == 2)
    return rig


def test_a_session_stays_on_its_host(fake_ollama: FakeOllama, make_rig: Make, cleanup: ExitStack) -> None:
    second = cleanup.enter_context(FakeOllama({"demo:latest": ALL}))
    rig = both_up(make_rig, fake_ollama, second)
    for _ in range(6):
        rig.seen.done(rig.submit(chat(), session="s1"))
    assert sorted((len(fake_ollama.jobs()), len(second.jobs()))) == [0, 6]


def test_a_host_that_fails_is_asked_once_and_the_next_job_goes_to_another(
    fake_ollama: FakeOllama, make_rig: Make, cleanup: ExitStack
) -> None:
    second = cleanup.enter_context(FakeOllama({"demo:latest": ALL}))
    rig = both_up(make_rig, fake_ollama, second)
    hosts = (fake_ollama, second)
    for turn, code in [
        (Turn(status=500, error="llama runner process has terminated"), "backend_error"),
        (Turn(status=503, error="server busy"), "backend_overloaded"),
        (Turn(end="cut"), "truncated"),
    ]:
        fake_ollama.script = second.script = lambda asked, turn=turn: turn  # type: ignore[misc]
        asked = [len(host.jobs()) for host in hosts]
        assert rig.fail().code == code
        after = [len(host.jobs()) for host in hosts]
        assert sum(after) == sum(asked) + 1, "whether to ask again is the broker's to decide"
        failed = 0 if after[0] > asked[0] else 1
        fake_ollama.script = second.script = lambda asked: Turn()
        assert rig.ask().answer.text == "Hello, you."
        assert len(hosts[1 - failed].jobs()) == asked[1 - failed] + 1, "not where it just failed"


def test_a_host_nobody_can_connect_to_was_not_asked_so_another_is(
    fake_ollama: FakeOllama, make_rig: Make, cleanup: ExitStack
) -> None:
    second = cleanup.enter_context(FakeOllama({"demo:latest": ALL}))
    rig = both_up(make_rig, fake_ollama, second, health_interval_s=60.0)
    fake_ollama.stop()
    for _ in range(3):
        assert rig.ask().answer.text == "Hello, you."
    assert len(second.jobs()) == 3


def test_a_host_that_hangs_is_left_out_when_its_job_is_given_up(
    fake_ollama: FakeOllama, make_rig: Make, cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama_hosts, "HANG_S", 0.0)
    second = cleanup.enter_context(FakeOllama({"demo:latest": ALL}))
    rig = both_up(make_rig, fake_ollama, second)
    hosts = (fake_ollama, second)
    turn, proof = Turn(hold_at=0), Turn(hold_at=0)
    fake_ollama.script = second.script = lambda asked: turn
    job = rig.submit(chat())
    assert turn.started.wait(10)
    hung = fake_ollama if fake_ollama.jobs() else second
    other = hosts[1 - hosts.index(hung)]
    hung.probe_turns.append(proof)
    other.script = lambda asked: Turn()
    rig.backend.cancel(job)
    assert rig.seen.error(job).code == "cancelled"
    assert proof.started.wait(10), "it is to be proved"
    for _ in range(3):
        assert rig.ask().answer.text == "Hello, you."
    assert (len(hung.jobs()), len(other.jobs())) == (1, 3)


def test_other_weights_under_the_same_name_are_not_mixed(
    fake_ollama: FakeOllama, make_rig: Make, cleanup: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    second = cleanup.enter_context(FakeOllama({"demo:latest": Model(weights="other")}))
    rig = both_up(make_rig, fake_ollama, second)
    for _ in range(4):
        rig.ask()
    assert second.jobs() == [] or fake_ollama.jobs() == []
    assert "another demo:latest" in caplog.text


def test_pull_when_the_configuration_allows(
    fake_ollama: FakeOllama, make_rig: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fake_ollama.pullable = True
    rig = make_rig(models={"small": "tiny:1b"}, pull=True)
    assert rig.ask(model="small").answer.model == "tiny:1b"
    assert [asked.body["model"] for asked in fake_ollama.asked if asked.path == "/api/pull"] == ["tiny:1b"]
    assert "pulling tiny:1b" in caplog.text


def test_a_pull_runs_beside_the_models_that_are_there(fake_ollama: FakeOllama, make_rig: Make) -> None:
    fake_ollama.pullable = True
    rig = make_rig(models={"ours": "demo", "small": "tiny:1b"}, pull=True)
    assert rig.ask(model="ours").answer.text == "Hello, you."
    rig.until(lambda info: "small" in [model.name for model in info.models])
    assert rig.ask(model="small").answer.text == "Hello, you."


# --- starts that fail --------------------------------------------------------------------------------


def test_a_missing_model_halts_the_start_and_says_what_to_do(make_rig: Make) -> None:
    with pytest.raises(BootError, match=r"none of the configured models \(nope\).*ollama pull"):
        make_rig(started=False, models={"x": "nope"}).start()


def test_a_failed_pull_may_succeed_later(make_rig: Make) -> None:
    with pytest.raises(BackendUnavailable, match="file does not exist"):
        make_rig(started=False, models={"x": "nope"}, pull=True).start()


def test_a_server_without_models(fake_ollama: FakeOllama, make_rig: Make) -> None:
    fake_ollama.models.clear()
    with pytest.raises(BootError, match="has no models"):
        make_rig(started=False).start()


def test_nobody_there(make_rig: Make) -> None:
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        make_rig(started=False, hosts=("http://127.0.0.1:9",)).start()


def test_one_host_of_two_is_enough(make_rig: Make, fake_ollama: FakeOllama) -> None:
    info = make_rig(hosts=("http://127.0.0.1:9", fake_ollama.url)).info
    assert info.slots == 1


@pytest.mark.parametrize("host", ["http://[bad", "http://127.0.0.1:99999999"])
def test_an_address_that_is_none(make_rig: Make, host: str) -> None:
    with pytest.raises(BootError, match="not the address of a server"):
        make_rig(started=False, hosts=(host,)).start()


def test_sampling_among_load_options(make_rig: Make) -> None:
    with pytest.raises(BootError, match=r"temperature cannot be set there.*default_options"):
        make_rig(started=False, load_options={"temperature": 1.0}).start()


def test_every_typed_error_is_one_of_the_tables() -> None:
    """The adapters' own subclasses travel under their parents' codes."""
    assert errors.BY_CODE[upstream.Unreached.code] is BackendUnavailable
    assert errors.BY_CODE[upstream.SlowConnect.code] is errors.BackendTimeout
