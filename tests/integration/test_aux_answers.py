"""Answers from whoever can write to the fabric: the collector takes one, the right one, and nothing stops it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engine.cell.fabric import Fabric, answers_of, inbox_of
from engine.cell.message import Message
from engine.cell.wire import Envelope, envelope_of, pack
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.shareable import Shareable
from tests.integration.test_aux import Since, shared, since, topic
from tests.integration.test_aux_sending import agrees, outcome, send
from tests.support import SITE, until

__all__ = ["shared", "since"]  # fixtures


class ByHand:
    """The server's address, without a cell: a test reads what comes and writes what it likes as an answer."""

    def __init__(self, engine: ClientEngine) -> None:
        self.fabric = Fabric(engine.site.servers.fabric_url)
        self.fabric.client.delete(inbox_of("server"))
        self.fabric.announce("server", "by hand", {"once": True})
        self.fabric.client.pexpire("ff:{server}:up", 60_000)

    def take(self) -> Envelope:
        """The one request that waits."""
        ((entry, fields),) = until(lambda: self.fabric.client.xrange(inbox_of("server")), 10)
        frame = self.fabric.client.get(b"ff:" + fields[b"i"])
        self.fabric.client.xdel(inbox_of("server"), entry)
        return envelope_of(frame)

    def answer(
        self, request: Envelope, payload: Any, times: int = 1, frame: bytes | None = None, **entry: Any
    ) -> None:
        """Write an answer, and tell of it so often in one go; parts of the entry may be anything."""
        made = Envelope(
            id=request.id, kind="answer", sender="server", target=request.sender, channel=request.channel,
            topic=request.topic, key=request.key, code="ok",
        )  # fmt: skip
        packed, final = pack(made, Message(payload=payload))
        told = {
            "i": request.id, "k": request.key, "c": "ok", "s": final.size, "d": final.sha256.hex(), "f": "server",
            **entry,
        }  # fmt: skip
        pipe = self.fabric.client.pipeline(transaction=True)
        if frame != b"":
            pipe.set(f"ff:{request.id}:r", packed if frame is None else frame, px=30_000)
        for _ in range(times):
            pipe.xadd(answers_of(SITE), told)
        pipe.execute()

    def close(self) -> None:
        self.fabric.client.delete(inbox_of("server"), "ff:{server}:up")
        self.fabric.close()


@pytest.fixture
def hand(shared: ClientEngine) -> Iterator[ByHand]:
    found = ByHand(shared)
    yield found
    found.close()


class Asking:
    """A request that is under way on a thread of its own."""

    def __init__(self, engine: ClientEngine, name: str, timeout: float) -> None:
        self._got: list[Shareable] = []
        self._thread = threading.Thread(target=lambda: self._got.append(send(engine, name, timeout=timeout)))
        self._thread.start()

    def reply(self) -> Shareable:
        self._thread.join(30)
        (found,) = self._got
        return found


def test_an_answer_by_hand_is_taken(shared: ClientEngine, hand: ByHand, since: Since) -> None:
    name = topic()
    asking = Asking(shared, name, 10)
    hand.answer(hand.take(), Shareable({"b": 2}))
    reply = asking.reply()
    assert reply["b"] == 2
    assert agrees(since, name, reply) == ("AuxReplied", "ok")


def test_L4_an_answer_that_is_told_twice_in_one_go_is_an_answer(
    shared: ClientEngine, hand: ByHand, since: Since
) -> None:
    # A connection that breaks between a write and its reply makes the sender write again.
    for _ in range(10):
        name = topic()
        asking = Asking(shared, name, 10)
        hand.answer(hand.take(), Shareable({"b": 2}), times=3)
        reply = asking.reply()
        assert reply.get("b") == 2, f"the second one took the answer away: {reply}"
        assert agrees(since, name, reply) == ("AuxReplied", "ok")


@pytest.mark.parametrize(
    "entry",
    [{"k": "x" * 32}, {"k": ""}, {"f": "site-2"}, {"f": ""}],
    ids=["another key", "no key", "another sender", "no sender"],
)
def test_a_forged_answer_is_refused_and_recorded_and_the_request_goes_on_waiting_for_its_own(
    shared: ClientEngine, hand: ByHand, since: Since, entry: dict[str, Any]
) -> None:
    name = topic()
    asking = Asking(shared, name, 10)
    request = hand.take()
    hand.answer(request, Shareable({"b": "forged"}), **entry)
    refused = until(lambda: since.bodies("MessageRefused"), 5)
    assert [(b["id"], b["code"]) for b in refused] == [(request.id, "FORGED_ANSWER")]
    hand.answer(request, Shareable({"b": "real"}))
    reply = asking.reply()
    assert reply["b"] == "real"
    assert agrees(since, name, reply) == ("AuxReplied", "ok")


@pytest.mark.parametrize(
    "entry",
    [
        {"s": "²"},
        {"s": "-1"},
        {"s": ""},
        {"s": "9" * 40},
        {"d": "x"},
        {"d": "AB" * 32},
        {"c": "no code"},
        {"c": b"\xff"},
    ],
    ids=["superscript", "negative", "no size", "huge", "no digest", "upper case", "no code", "no text"],
)
def test_an_answer_that_cannot_be_read_does_not_stop_the_collector(
    shared: ClientEngine, hand: ByHand, since: Since, entry: dict[str, Any]
) -> None:
    name, after = topic(), topic()
    asking = Asking(shared, name, 20)
    request = hand.take()
    hand.answer(request, Shareable({"b": "odd"}), **entry)
    try:
        later = Asking(shared, after, 8)
        hand.answer(hand.take(), Shareable({"b": 2}))
        assert later.reply().get("b") == 2, "the collector takes no answers any more"
        hand.answer(request, Shareable({"b": "real"}))
        reply = asking.reply()
        assert reply["b"] == "real"
        assert agrees(since, name, reply) == ("AuxReplied", "ok")
    finally:
        hand.fabric.client.delete(answers_of(SITE))


def test_entries_that_are_no_answers_do_not_stop_the_collector(
    shared: ClientEngine, hand: ByHand, since: Since
) -> None:
    for fields in ({"x": "y"}, {"i": ""}, {"i": b"\xff\xfe"}, {"i": "x" * 5000}, {"i": "a" * 32, "k": "b"}):
        hand.fabric.client.xadd(answers_of(SITE), fields)  # type: ignore[arg-type]
    name = topic()
    asking = Asking(shared, name, 10)
    hand.answer(hand.take(), Shareable({"b": 2}))
    assert asking.reply()["b"] == 2
    dropped = until(lambda: sum(b["count"] for b in since.bodies("RepliesDropped")) >= 5, 5)
    assert dropped
    assert all(len(event.raw) < 3000 for event in since.of("RepliesDropped"))


@pytest.mark.parametrize("what", ["gone", "garbage", "of another"])
def test_an_answer_whose_bytes_are_lost_or_spoiled_is_a_failure_to_the_caller_and_on_the_record(
    shared: ClientEngine, hand: ByHand, since: Since, what: str
) -> None:
    name = topic()
    asking = Asking(shared, name, 10)
    request = hand.take()
    other, _ = pack(
        Envelope(id=request.id, kind="answer", sender="server", target=SITE, channel="c", topic="t", key="z" * 32),
        Message(payload=Shareable({"b": "forged"})),
    )
    hand.answer(request, Shareable({"b": 2}), frame={"gone": b"", "garbage": b"\xff" * 50, "of another": other}[what])
    reply = asking.reply()
    assert "b" not in reply
    assert reply.get_return_code() == {"of another": "unauthenticated"}.get(what, ReturnCode.COMMUNICATION_ERROR)
    kind, _ = agrees(since, name, reply)
    assert kind == "AuxReplyLost"


def test_an_answer_to_what_expects_none_is_dropped(shared: ClientEngine, hand: ByHand, since: Since) -> None:
    name = topic()
    send(shared, name, timeout=0)
    request = hand.take()
    assert request.reply is False
    hand.answer(request, Shareable({"b": 2}))
    until(lambda: since.bodies("RepliesDropped"), 5)
    assert outcome(since, name) == ("AuxSent", "ok")


def test_a_flood_of_forged_answers_neither_floods_the_record_nor_keeps_the_real_one_away(
    shared: ClientEngine, hand: ByHand, since: Since
) -> None:
    name = topic()
    asking = Asking(shared, name, 20)
    request = hand.take()
    hand.answer(request, Shareable({"b": "forged"}), times=600, k="x" * 32)
    until(lambda: hand.fabric.client.xlen(answers_of(SITE)) == 0, 10)
    hand.answer(request, Shareable({"b": "real"}))
    assert asking.reply()["b"] == "real"
    assert len(since.of("MessageRefused")) <= 60
