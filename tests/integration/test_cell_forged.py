"""Who can write to the fabric can write anything: a cell takes each message once, and only what it says it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engine.cell.cell import FabricCell
from engine.cell.fabric import Fabric, answers_of, inbox_of
from engine.cell.keys import KeyRing
from engine.cell.message import CellReturnCode, Message
from engine.cell.wire import Envelope, new_key, pack
from engine.ids import new_call_id
from events.errors import LogUnavailable
from tests.integration.test_cell import CHANNEL, ask, echo, fabric, handle, there, url
from tests.support import until

__all__ = ["fabric", "url"]  # fixtures
TOKEN = "0123456789abcdef"


class Remembers:
    """A journal that keeps what it is told; it may be away."""

    def __init__(self) -> None:
        self.away = False
        self.taken: list[Envelope] = []
        self.done: list[Envelope] = []
        self.no: list[tuple[str, str, str]] = []

    def received(self, envelope: Envelope) -> bool:
        if self.away:
            raise LogUnavailable("the record server does not answer")
        self.taken.append(envelope)
        return True

    def handled(self, envelope: Envelope, answer: Envelope, ms: int) -> None:
        if self.away:
            raise LogUnavailable("the record server does not answer")
        self.done.append(answer)

    def address(self, fqcn: str, *, ours: bool) -> None:
        raise AssertionError(f"{fqcn} changed hands")

    def refused(self, envelope: Envelope | None, code: str, why: str) -> None:
        self.no.append((envelope.sender if envelope else "?", str(code), why))


@pytest.fixture
def journal() -> Remembers:
    return Remembers()


@pytest.fixture
def server(fabric: Fabric, url: str, journal: Remembers) -> Iterator[FabricCell]:
    """A cell that echoes, with a journal."""
    with there(url, "server", journal=journal) as (cell,):
        cell.heard = []  # type: ignore[attr-defined]
        handle(cell, lambda m: (cell.heard.append(m.payload), echo(m))[1])  # type: ignore[attr-defined]
        yield cell


def heard(cell: FabricCell) -> list[Any]:
    found: list[Any] = cell.heard  # type: ignore[attr-defined]
    return found


def request(payload: Any = 1, ring: KeyRing | None = None, **fields: Any) -> tuple[Envelope, bytes]:
    """A request as somebody else would write it."""
    made = {
        "id": new_call_id().replace("-", ""),
        "kind": "request",
        "sender": "asker",
        "target": "server",
        "channel": CHANNEL,
        "topic": "t",
        "reply": True,
        "reply_to": TOKEN,
        "key": new_key(),
        "sealed": ring is not None,
        **fields,
    }
    frame, envelope = pack(Envelope(**made), Message(payload=payload), ring)
    return envelope, frame


def plant(
    fabric: Fabric, name: str, frame: bytes, *, target: str = "server", life: int = 30_000, times: int = 1
) -> None:
    """Put bytes under an id, and the id into an inbox, without asking anybody."""
    fabric.client.set(f"ff:{name}", frame, px=life)
    for _ in range(times):
        fabric.client.xadd(inbox_of(target), {"i": name})


def answers(fabric: Fabric, asker: str = "asker", token: str = TOKEN) -> list[dict[str, str]]:
    """What was answered to requests that were planted."""
    found = fabric.client.xrange(answers_of(asker, token))
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in found]


def idle(fabric: Fabric, server: FabricCell) -> bool:
    """Everything that was in the inbox has been taken in, and was dealt with."""
    return fabric.client.xlen(inbox_of("server")) == 0 and server._busy == 0


def settled(fabric: Fabric, server: FabricCell) -> None:
    """Whatever was planted so far is through: a later request has been answered, and nothing is being handled."""
    until(lambda: idle(fabric, server), 10)
    with there(fabric.url, "prober") as (prober,):
        assert ask(prober, "server", "probe").return_code == CellReturnCode.OK
    until(lambda: idle(fabric, server), 10)
    heard(server).remove("probe")


# -- once ------------------------------------------------------------------------------------------


def test_L4_a_request_is_handled_once_however_often_it_is_delivered(fabric: Fabric, server: FabricCell) -> None:
    envelope, frame = request("once")
    plant(fabric, envelope.id, frame, times=7)
    until(lambda: answers(fabric), 5)
    plant(fabric, envelope.id, frame, times=3)
    settled(fabric, server)
    assert heard(server) == ["once"]
    assert [a["i"] for a in answers(fabric)] == [envelope.id]


@pytest.mark.parametrize("reply", [True, False])
def test_L4_the_same_bytes_under_another_id_are_not_handled_again(
    fabric: Fabric, server: FabricCell, journal: Remembers, reply: bool
) -> None:
    # The seal is bound to the id in the frame; whoever carries the message chooses the id beside it.
    envelope, frame = request("once", reply=reply)
    plant(fabric, envelope.id, frame)
    until(lambda: heard(server), 5)
    plant(fabric, "ab" * 16, frame)
    settled(fabric, server)
    assert heard(server) == ["once"], "a replay was handled"
    assert journal.no, "a replay left no trace"


def test_L4_two_cells_of_one_address_handle_a_message_once_between_them(fabric: Fabric, url: str) -> None:
    seen: list[Any] = []
    other = FabricCell(url, "server")
    with there(url, "server", "asker") as (one, asker):
        for cell in (one, other):
            handle(cell, lambda m: (seen.append(m.payload), echo(m))[1])
        other._threads[0].start()  # it reads the inbox without asking whose it is
        for number in range(30):
            assert ask(asker, "server", number).payload == number
        assert sorted(seen) == list(range(30))
        other.stop()


# -- what is not what it says ------------------------------------------------------------------------


def test_a_message_for_another_site_is_refused_answered_and_journalled(
    fabric: Fabric, server: FabricCell, journal: Remembers
) -> None:
    envelope, frame = request("for another", target="site-2")
    plant(fabric, envelope.id, frame)
    found = until(lambda: answers(fabric), 5)
    assert found[0]["c"] == CellReturnCode.INVALID_TARGET
    settled(fabric, server)
    assert heard(server) == []
    assert [(s, c) for s, c, _ in journal.no] == [("asker", "invalid_target")]
    assert "site-2" in journal.no[0][2]


def test_an_answer_that_is_put_among_the_requests_is_refused(
    fabric: Fabric, server: FabricCell, journal: Remembers
) -> None:
    envelope, frame = request("an answer", kind="answer", code="ok")
    plant(fabric, envelope.id, frame)
    settled(fabric, server)
    assert heard(server) == []
    assert [c for _, c, _ in journal.no] == ["invalid_target"]


@pytest.mark.parametrize("where", ["body", "garbage", "empty", "cut"])
def test_a_payload_that_was_corrupted_is_refused_and_journalled(
    fabric: Fabric, server: FabricCell, journal: Remembers, where: str
) -> None:
    envelope, frame = request(b"x" * 200)
    spoiled = {"body": frame[:-3] + b"zzz", "garbage": b"\xff" * 90, "empty": b"", "cut": frame[:-9]}[where]
    plant(fabric, envelope.id, spoiled)
    until(lambda: journal.no, 5)
    settled(fabric, server)
    assert heard(server) == []
    assert [code for _, code, _ in journal.no] == ["invalid_request"]
    if where in ("body", "cut"):
        assert [a["c"] for a in answers(fabric)] == ["invalid_request"]


@pytest.mark.parametrize(
    "sender",
    ["", "no address!", "a..b", "server\n", "x" * 700, "é"],
    ids=["empty", "words", "dots", "newline", "long", "accent"],
)
def test_a_sender_that_is_no_address_is_refused_and_journalled(
    fabric: Fabric, server: FabricCell, journal: Remembers, sender: str
) -> None:
    envelope, frame = request("from nobody", sender=sender)
    plant(fabric, envelope.id, frame)
    settled(fabric, server)
    assert heard(server) == [], "it was handled, although nobody can be answered"
    assert [c for _, c, _ in journal.no]


def test_entries_of_the_inbox_that_are_none_do_not_stop_the_cell(fabric: Fabric, server: FabricCell) -> None:
    fabric.client.xadd(inbox_of("server"), {"other": "field"})
    fabric.client.xadd(inbox_of("server"), {"i": b"\xff\xfe"})
    fabric.client.xadd(inbox_of("server"), {"i": ""})
    fabric.client.set("ff:a-list", "x")  # without an end to its life
    fabric.client.xadd(inbox_of("server"), {"i": "a-list"})
    settled(fabric, server)
    assert heard(server) == []


@pytest.mark.parametrize("key", ["inbox", "payload", "seen"])
def test_a_key_of_another_type_in_a_cells_way_does_not_end_it(fabric: Fabric, server: FabricCell, key: str) -> None:
    envelope, frame = request("in its way")
    if key == "inbox":
        until(lambda: idle(fabric, server), 5)
        fabric.client.delete(inbox_of("server"))
        fabric.client.set(inbox_of("server"), "planted", px=400)
    elif key == "payload":
        fabric.client.rpush(f"ff:{envelope.id}", "planted")
        fabric.client.pexpire(f"ff:{envelope.id}", 400)
        fabric.client.xadd(inbox_of("server"), {"i": envelope.id})
    else:
        fabric.client.rpush(f"ff:{{server}}:seen:{envelope.id}", "planted")
        plant(fabric, envelope.id, frame)
    until(lambda: fabric.client.type(inbox_of("server")) != b"string", 5)
    settled(fabric, server)
    assert heard(server) == []


def test_a_forged_answer_is_not_taken_and_the_real_one_is(fabric: Fabric, url: str) -> None:
    go = threading.Event()
    with there(url, "site-1", "server") as (site, server):
        handle(server, lambda m: (go.wait(20), Message(payload="real"))[1])
        got: list[Message] = []
        asking = threading.Thread(target=lambda: got.append(ask(site, "server")))
        asking.start()
        (name,) = until(lambda: list(site._waiting), 5)
        forged = Envelope(
            id=name,
            kind="answer",
            sender="server",
            target="site-1",
            channel=CHANNEL,
            topic="t",
            key="x" * 32,
            code="ok",
        )
        frame, _ = pack(forged, Message(payload="forged"))
        fabric.answer(answers_of("site-1", site._token), frame, 30, {"i": name, "k": "x" * 32, "c": "ok"})
        until(lambda: fabric.client.xlen(answers_of("site-1", site._token)) == 0, 5)
        assert asking.is_alive(), "it took the forged answer for one"
        go.set()
        asking.join(10)
        assert [(m.return_code, m.payload) for m in got] == [("ok", "real")]


def test_answers_bytes_that_are_not_the_answers_are_refused(fabric: Fabric, url: str) -> None:
    with there(url, "site-1", "server") as (site, server):
        original = server.fabric.answer

        def spoil(key: str, frame: bytes, life: float, entry: Any) -> None:
            other, _ = pack(
                Envelope(
                    id=entry["i"], kind="answer", sender="server", target="site-1", channel=CHANNEL, topic="t",
                    key="y" * 32, code="ok",
                ),
                Message(payload="forged"),
            )  # fmt: skip
            original(key, other, life, entry)

        server.fabric.answer = spoil  # type: ignore[method-assign]
        handle(server, echo)
        answer = ask(site, "server")
        assert (answer.return_code, answer.payload) == (CellReturnCode.AUTHENTICATION_ERROR, None)


# -- the journal --------------------------------------------------------------------------------------


def test_L1_a_message_is_journalled_before_its_handler_sees_it_and_before_its_answer_leaves(
    fabric: Fabric, server: FabricCell, journal: Remembers, url: str
) -> None:
    order: list[str] = []
    received, handled, send = journal.received, journal.handled, server.intake.send_answer
    journal.received = lambda e: (order.append("received"), received(e))[1]  # type: ignore[method-assign]
    journal.handled = lambda e, a, ms: (order.append("handled"), handled(e, a, ms))[1]  # type: ignore[method-assign]
    server.intake.send_answer = lambda *given: (order.append("sent"), send(*given))[1]  # type: ignore[method-assign]
    handle(server, lambda m: (order.append("handler"), echo(m))[1])
    with there(url, "asker") as (asker,):
        assert ask(asker, "server").return_code == CellReturnCode.OK
    assert order == ["received", "handler", "handled", "sent"]


def test_L1_with_the_record_away_a_message_is_not_handled_and_its_sender_is_told_at_once(
    fabric: Fabric, server: FabricCell, journal: Remembers, url: str
) -> None:
    journal.away = True
    with there(url, "asker") as (asker,):
        answer = ask(asker, "server", timeout=3)
        assert heard(server) == []
        assert answer.return_code == CellReturnCode.SERVICE_UNAVAILABLE, "nobody said so: the asker waits in vain"
        journal.away = False
        assert ask(asker, "server").return_code == CellReturnCode.OK


def test_a_key_of_another_type_under_an_id_does_not_stop_the_inbox(fabric: Fabric, server: FabricCell) -> None:
    for name in ("planted", "remembered"):
        fabric.client.hset(f"ff:{name}", "a", "b")
        fabric.client.pexpire(f"ff:{name}", 30_000)
        fabric.client.xadd(inbox_of("server"), {"i": name})
    fabric.client.hset("ff:{server}:seen:remembered", "a", "b")
    settled(fabric, server)
    assert heard(server) == []


def test_an_answer_beside_which_something_else_is_planted_is_not_lost_with_it(fabric: Fabric) -> None:
    fabric.put("good:r", b"an answer", 5)
    fabric.client.hset("ff:bad:r", "a", "b")
    assert fabric.fetch_each(["bad:r", "good:r", "gone:r"]) == [None, b"an answer", None]
    with pytest.raises(LogUnavailable, match="refuses"):
        fabric.fetch("bad:r")


def test_L4_a_message_that_is_taken_twice_in_one_go_is_handed_out_once(fabric: Fabric) -> None:
    fabric.put("twice", b"a frame", 5)
    entries = [(fabric.client.xadd(inbox_of("server"), {"i": "twice"}), b"twice") for _ in range(3)]
    assert fabric.accept("server", entries) == [b"a frame", None, None]


def test_a_take_that_is_told_twice_over_a_broken_line_is_answered_the_same(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric.put("once", b"a frame", 5)
    entry = fabric.client.xadd(inbox_of("server"), {"i": "once"})
    monkeypatch.setattr("engine.cell.fabric.secrets.token_hex", lambda size: "the same call")
    assert fabric.accept("server", [(entry, b"once")]) == [b"a frame"]
    assert fabric.accept("server", [(entry, b"once")]) == [b"a frame"]
    monkeypatch.undo()
    assert fabric.accept("server", [(entry, b"once")]) == [None]
