"""Aux requests that go out: what the caller reads and what the record says are the same, and there is one outcome."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest

from engine.cell.cell import FabricCell
from engine.cell.fabric import Fabric, inbox_of
from engine.cell.message import CellReturnCode, Message
from engine.cell.outcomes import ENDS, Outcomes
from engine.cell.wire import envelope_of
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.shareable import Shareable
from tests.integration.test_aux import AUX, Since, server, shared, since, topic
from tests.support import SITE, until

__all__ = ["server", "shared", "since"]  # fixtures
#: What a recorded code of a message is to the caller; everything else is an ERROR.
SEEN = {
    "ok": ReturnCode.OK,
    "timeout": ReturnCode.TIMEOUT,
    "comm_error": ReturnCode.COMMUNICATION_ERROR,
    "PAYLOAD_LOST": ReturnCode.COMMUNICATION_ERROR,
    "process_exception": ReturnCode.EXECUTION_EXCEPTION,
    "abort_run": "abort_run",
    "invalid_request": "invalid_request",
    "invalid_session": "invalid_session",
    "authentication_error": "unauthenticated",
    "service_unavailable": ReturnCode.SERVICE_UNAVAILABLE,
}


def send(engine: ClientEngine, name: str, request: Any = None, timeout: Any = 10.0, **options: Any) -> Shareable:
    request = Shareable({"a": 1}) if request is None else request
    return engine.send_aux_request(name, request, timeout, engine.new_context(), **options)


def answering(server: FabricCell, name: str, reply: Any) -> None:
    """Have the server answer requests of a topic: with a message, or what a function makes of the request."""
    server.register_request_cb(channel=AUX, topic=name, cb=reply if callable(reply) else lambda m: reply)


def outcome(since: Since, name: str) -> tuple[str, str]:
    """Type and code of the one outcome of the one request of a topic; of a lost answer, the loss."""
    (requested,) = [b for b in since.bodies("AuxRequested") if b["topic"] == name]
    message = requested["id"]
    found = until(lambda: [e for e in since.of(*ENDS) if e.body["id"] == message], 20, "there is no outcome")
    assert len(found) == 1, f"two outcomes: {found}"
    lost = [e for e in since.of("AuxReplyLost") if e.body["id"] == message]
    last = (lost or found)[-1]
    return last.type, last.body.get("code", "comm_error" if last.type == "AuxOutcomeUnknown" else "ok")


def agrees(since: Since, name: str, reply: Shareable) -> tuple[str, str]:
    """The outcome, which the caller was told too; a failure always with words."""
    kind, code = outcome(since, name)
    assert reply.get_return_code() == SEEN.get(code, ReturnCode.ERROR), (kind, code, reply)
    if code != "ok":
        assert reply.get_header("__why__"), "a failure without a word"
    return kind, code


# -- there and back (reference 4.3) ---------------------------------------------------------------------


def test_a_request_gets_the_servers_reply_and_the_record_has_its_whole_way(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name, seen = topic(), []
    reply = Shareable({"model": b"abc"})
    reply.set_peer_props({"__identity_name__": "server", "round": 3})
    answering(server, name, lambda m: (seen.append(m.payload), Message(payload=reply))[1])
    context = shared.new_context()
    context.set_prop("color", "red", private=False, sticky=False)
    context.set_prop("hush", "hush", private=True, sticky=False)
    context.set_prop("thing", object(), private=False, sticky=False)
    request = Shareable({"w": [1, 2]})
    got = shared.send_aux_request(name, request, 10.0, context)
    assert type(got) is Shareable
    assert (got["model"], got.get_return_code()) == (b"abc", ReturnCode.OK)
    assert got.get_peer_prop("round") == 3
    assert seen[0]["w"] == [1, 2]
    assert seen[0].get_header("__topic__") == name
    props = seen[0].get_peer_props()
    assert (props["color"], props["__identity_name__"]) == ("red", SITE)
    assert "hush" not in props
    assert "thing" not in props
    assert request.get_header("__topic__") == name, "the request itself is marked, as callers know it"
    assert [e.type for e in since.of("AuxRequested", "SendStarted", *ENDS)] == [
        "AuxRequested",
        "SendStarted",
        "AuxReplied",
    ]
    (requested,) = since.bodies("AuxRequested")
    assert (requested["target"], requested["channel"], requested["reply"]) == ("server", AUX, True)
    assert requested["size"] > 0
    assert outcome(since, name) == ("AuxReplied", "ok")
    replied = since.of("AuxReplied")[0].rest()
    intent = since.of("AuxRequested")[0]
    assert (replied["cause"], replied["correlation"]) == (intent.position, intent.rest()["correlation"])


def test_L6_no_word_of_a_message_is_on_the_record_and_its_digest_is_keyed(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name = topic()
    answering(server, name, lambda m: Message({"note": "confidential reply"}, Shareable({"b": "secret answer"})))
    send(shared, name, Shareable({"a": "secret question"}))
    agrees(since, name, Shareable())
    raw = " ".join(event.raw for event in since.all())
    for word in ("secret question", "secret answer", "confidential reply"):
        assert word not in raw
    client = since.store.client
    for key in client.scan_iter(match=f"{since.store.keys.prefix}*"):
        assert "secret" not in repr(client.dump(key) if client.type(key) != "stream" else client.xrange(key))


def test_L9_a_message_for_which_there_is_no_room_is_refused_on_the_record(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name, heard = topic(), []
    answering(server, name, lambda m: (heard.append(m.payload), Message(payload=Shareable()))[1])
    since.store.client.set(since.store.keys.full, "disk is 97% full", px=20_000)
    try:
        reply = send(shared, name)
        assert shared.fire_and_forget_aux_request(name, Shareable(), shared.new_context()) is not None
    finally:
        since.store.client.delete(since.store.keys.full)
    assert reply.get_return_code() == ReturnCode.COMMUNICATION_ERROR
    assert "disk is 97% full" in reply.get_header("__why__")
    assert heard == []
    told = [(body["method"], body["code"]) for body in since.bodies("CallRefused")]
    assert told == [("send_aux_request", "RECORD_FULL"), ("fire_and_forget_aux_request", "RECORD_FULL")]
    assert since.bodies("AuxRequested") == []
    assert send(shared, name).get_return_code() == ReturnCode.OK


def test_equal_messages_have_equal_digests_and_the_digest_is_not_the_bare_hash(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name = topic()
    frames: list[bytes] = []
    fetch = server.fabric.accept

    def accept(fqcn: str, entries: Any) -> Any:
        found = fetch(fqcn, entries)
        frames.extend(f for f in found if f)
        return found

    server.fabric.accept = accept  # type: ignore[method-assign]
    answering(server, name, Message(payload=Shareable()))
    context = shared.new_context()
    for _ in range(2):
        shared.send_aux_request(name, Shareable({"a": 1}), 10.0, context)
    one, other = since.bodies("AuxRequested")
    assert one["digest"] == other["digest"]
    body_hash = envelope_of(frames[0]).sha256
    assert one["digest"] not in (body_hash.hex(), hashlib.sha256(body_hash).hexdigest())


# -- failures (reference 4.4) ------------------------------------------------------------------------------

CODES = sorted(str(code) for code in CellReturnCode if code != CellReturnCode.OK)


@pytest.mark.parametrize("code", [*CODES, "a_code_of_nobodys"])
def test_what_the_servers_cell_says_is_what_the_caller_reads_and_what_is_recorded(
    shared: ClientEngine, server: FabricCell, since: Since, code: str
) -> None:
    name = topic()
    answering(server, name, Message({"return_code": code, "error": "because"}))
    reply = send(shared, name, timeout=20.0)
    assert reply.get_return_code() == SEEN.get(code, ReturnCode.ERROR)
    kind, recorded = agrees(since, name, reply)
    assert kind == "AuxReplied"
    assert recorded in (code, "comm_error") or code == "a_code_of_nobodys"
    assert "because" in reply.get_header("__why__")


@pytest.mark.parametrize("payload", [None, "text", {"a": 1}, 7], ids=str)
def test_an_answer_that_is_no_shareable_is_an_error_with_words(
    shared: ClientEngine, server: FabricCell, since: Since, payload: Any
) -> None:
    name = topic()
    answering(server, name, Message(payload=payload))
    reply = send(shared, name)
    assert reply.get_return_code() == ReturnCode.ERROR
    assert "not a Shareable" in reply.get_header("__why__")
    outcome(since, name)


def test_a_server_that_never_was_and_one_that_is_gone_are_told_at_once_and_recorded(
    shared: ClientEngine, since: Since
) -> None:
    fabric = Fabric(shared.site.servers.fabric_url)
    fabric.client.delete("ff:cells", "ff:{server}:up")
    for code in ("invalid_target", "target_unreachable"):
        name = topic()
        began = time.monotonic()
        reply = send(shared, name, timeout=20.0)
        assert time.monotonic() - began < 10
        assert reply.get_return_code() == ReturnCode.ERROR
        assert agrees(since, name, reply) == ("AuxFailed", code)
        fabric.announce("server", "it is here", {})
        fabric.withdraw("server", "it is here")
    fabric.close()


def test_an_answer_that_does_not_come_is_a_timeout_and_the_late_one_is_dropped_and_counted(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name, asked, go = topic(), threading.Event(), threading.Event()
    answering(server, name, lambda m: (asked.set(), go.wait(20), Message(payload=Shareable({"late": 1})))[2])
    began = time.monotonic()
    reply = send(shared, name, timeout=3.0)
    assert 2.9 < time.monotonic() - began < 6.5
    assert asked.is_set()
    assert (reply.get_return_code(), "late" in reply) == (ReturnCode.TIMEOUT, False)
    assert agrees(since, name, reply) == ("AuxFailed", "timeout")
    go.set()
    (requested,) = since.bodies("AuxRequested")
    until(lambda: [b for b in since.bodies("RepliesDropped") if b["last"] == requested["id"]], 10)
    assert outcome(since, name) == ("AuxFailed", "timeout")
    fabric = Fabric(shared.site.servers.fabric_url)
    assert not fabric.client.exists(f"ff:{requested['id']}:r")
    fabric.close()


def test_an_answer_that_is_being_handed_over_as_the_time_ends_is_read(
    shared: ClientEngine, server: FabricCell, since: Since, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, fetched = topic(), Outcomes._fetched

    def slow(self: Outcomes, wanted: Any) -> dict[str, bytes]:
        found = fetched(self, wanted)
        if wanted:  # whoever has fetched it is not scheduled until its caller's time is over
            time.sleep(max(0.0, began + 3.3 - time.monotonic()))
        return found

    monkeypatch.setattr(Outcomes, "_fetched", slow)
    answering(server, name, Message(payload=Shareable({"there": 1})))
    began = time.monotonic()
    reply = send(shared, name, timeout=3.0)
    assert time.monotonic() - began > 3.2, "handed over after its time"
    assert (reply.get_return_code(), reply.get("there")) == (ReturnCode.OK, 1)
    assert agrees(since, name, reply) == ("AuxReplied", "ok")


def test_a_server_whose_inbox_is_full_is_unavailable(shared: ClientEngine, since: Since) -> None:
    fabric = Fabric(shared.site.servers.fabric_url)
    fabric.announce("server", "nobody reads", {})
    fabric.client.pexpire("ff:{server}:up", 60_000)
    pipe = fabric.client.pipeline(transaction=False)
    for number in range(shared.site.settings.inbox_max):
        pipe.xadd(inbox_of("server"), {"i": f"x{number}"})
    pipe.execute()
    name = topic()
    try:
        reply = send(shared, name)
        assert reply.get_return_code() == ReturnCode.SERVICE_UNAVAILABLE
        assert agrees(since, name, reply) == ("AuxFailed", "service_unavailable")
    finally:
        fabric.client.delete(inbox_of("server"), "ff:{server}:up")
        fabric.close()


# -- without an answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["timeout=0", "timeout=0.0", "fire_and_forget"])
def test_what_expects_no_answer_returns_an_empty_success_and_arrives_once(
    shared: ClientEngine, server: FabricCell, since: Since, how: str
) -> None:
    name, heard = topic(), []
    answering(server, name, lambda m: heard.append((m.payload["a"], m.payload.get_header("__topic__"))))
    if how == "fire_and_forget":
        reply = shared.fire_and_forget_aux_request(name, Shareable({"a": 1}), shared.new_context())
    else:
        reply = send(shared, name, timeout=0 if how == "timeout=0" else 0.0)
    assert reply == Shareable()
    assert reply.get_return_code() == ReturnCode.OK
    assert agrees(since, name, reply) == ("AuxSent", "ok")
    until(lambda: heard, 5)
    assert heard == [(1, name)]
    (requested,) = since.bodies("AuxRequested")
    assert requested["reply"] is False


def test_what_expects_no_answer_and_cannot_arrive_has_a_recorded_failure(shared: ClientEngine, since: Since) -> None:
    fabric = Fabric(shared.site.servers.fabric_url)
    fabric.client.delete("ff:cells", "ff:{server}:up")
    name = topic()
    shared.fire_and_forget_aux_request(name, Shareable({"a": 1}), shared.new_context())
    assert outcome(since, name) == ("AuxFailed", "invalid_target")
    (requested,) = since.bodies("AuxRequested")
    until(lambda: not fabric.client.exists(f"ff:{requested['id']}"), 5, "its payload is kept")
    fabric.close()


def test_messages_to_one_target_arrive_in_the_order_in_which_they_were_sent(
    shared: ClientEngine, server: FabricCell
) -> None:
    name = topic()
    order: list[str] = []
    accept = server.fabric.accept

    def noted(fqcn: str, entries: Any) -> Any:
        order.extend(entry.decode() for _, entry in entries)
        return accept(fqcn, entries)

    server.fabric.accept = noted  # type: ignore[method-assign]
    answering(server, name, lambda m: None)
    since = Since(shared)
    for _ in range(60):
        shared.fire_and_forget_aux_request(name, Shareable(), shared.new_context())
    until(lambda: len(order) >= 60, 10)
    assert order == [b["id"] for b in since.bodies("AuxRequested")]


# -- optional ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optional", [True, False])
def test_optional_changes_how_loud_a_failure_is_logged_and_is_recorded_and_nothing_else(
    shared: ClientEngine, server: FabricCell, since: Since, optional: bool, caplog: pytest.LogCaptureFixture
) -> None:
    name = topic()
    answering(server, name, Message({"return_code": "process_exception", "error": "because"}))
    with caplog.at_level(logging.DEBUG, "flightlog"):
        reply = send(shared, name, optional=optional)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    levels = {r.levelno for r in caplog.records if r.name == "flightlog.sender" and name in r.getMessage()}
    assert levels == {logging.DEBUG if optional else logging.ERROR}
    assert [b["optional"] for b in since.bodies("AuxRequested")] == [optional]
    assert agrees(since, name, reply) == ("AuxReplied", "process_exception")


# -- once ---------------------------------------------------------------------------------------------------------


def test_L4_the_same_call_again_is_sent_once_and_has_one_outcome(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name, heard = topic(), []
    answering(server, name, lambda m: (heard.append(1), Message(payload=Shareable({"n": len(heard)})))[1])
    for _ in range(3):
        with shared.acting_as("somebody", call_id=f"call-{name}"):
            assert send(shared, name).get_return_code() == ReturnCode.OK
    assert heard == [1]
    outcome(since, name)


def test_a_request_never_has_two_outcomes_whatever_comes_first_answer_or_deadline(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name, draw = topic(), random.Random(5)
    delays = [draw.uniform(0.0, 0.5) for _ in range(40)]

    def slowly(message: Message) -> Message:
        time.sleep(delays[message.payload["n"]])
        return Message(payload=Shareable({"n": message.payload["n"]}))

    answering(server, name, slowly)
    replies: dict[int, Shareable] = {}

    def one(number: int) -> None:
        replies[number] = send(shared, name, Shareable({"n": number}), timeout=0.25)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(delays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    requested = {b["id"] for b in since.bodies("AuxRequested")}
    assert len(requested) == len(delays)

    def ends() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for event in since.of(*ENDS):
            found.setdefault(event.body["id"], []).append(event.body.get("code", "?"))
        return found

    until(lambda: ends().keys() == requested, 10)
    assert {len(codes) for codes in ends().values()} == {1}
    told = Counter(reply.get_return_code() for reply in replies.values())
    lost = len(since.of("AuxReplyLost"))
    recorded = Counter(SEEN.get(codes[0], ReturnCode.ERROR) for codes in ends().values())
    assert lost == 0
    assert told == recorded, "caller and record disagree"
    assert all(reply["n"] == n for n, reply in replies.items() if reply.get_return_code() == ReturnCode.OK)
