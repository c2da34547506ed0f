"""Sealed messages: the fabric carries ciphertext only, and whoever carries it can neither forge nor repeat it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine import codec
from engine.cell.cell import FabricCell, open_answer
from engine.cell.fabric import Fabric, inbox_of
from engine.cell.keys import KeyRing
from engine.cell.message import CellReturnCode, Message, MessageHeaderKey
from engine.cell.wire import MAGIC, Envelope, envelope_of
from engine.errors import KeyUnknown
from tests.integration.test_cell import CHANNEL, ask, echo, fabric, handle, there, url
from tests.integration.test_cell_forged import Remembers, answers, heard, idle, journal, plant, request
from tests.support import until

__all__ = ["fabric", "journal", "url"]  # fixtures
SECRET = "the weights of a hospital"


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KeyRing]:
    """The server and the asker know each other; the stranger knows the server; the thief says it is the asker."""
    folder: Path = tmp_path_factory.mktemp("rings")
    found = {name: KeyRing(folder / name, name) for name in ("server", "asker", "stranger")}
    found["thief"] = KeyRing(folder / "thief", "asker")
    found["server"].trust(found["asker"].public())
    for name in ("asker", "stranger", "thief"):
        found[name].trust(found["server"].public())
    return found


@pytest.fixture
def sealing(
    fabric: Fabric, url: str, journal: Remembers, rings: dict[str, KeyRing]
) -> Iterator[tuple[FabricCell, FabricCell]]:
    """Asker and server, with keys."""
    with (
        there(url, "asker", ring=rings["asker"]) as (asker,),
        there(url, "server", ring=rings["server"], journal=journal) as (server,),
    ):
        server.heard = []  # type: ignore[attr-defined]
        handle(server, lambda m: (server.heard.append(m), Message({"h": SECRET}, [m.payload, SECRET]))[1])  # type: ignore[attr-defined]
        yield asker, server


def plaintext(fabric: Fabric, text: str = SECRET) -> list[bytes]:
    """Keys of the fabric that hold a text, whatever their type is."""
    found = []
    for key in fabric.client.scan_iter(count=1000):
        raw = fabric.client.dump(key) or b""
        kind = fabric.client.type(key)
        more = fabric.client.get(key) if kind == b"string" else b""
        if kind == b"stream":
            more = repr(fabric.client.xrange(key)).encode()
        if text.encode() in raw + (more or b"") + key:
            found.append(key)
    return found


def test_the_search_for_plaintext_finds_what_is_sent_unsealed(fabric: Fabric) -> None:
    fabric.announce("server", "nobody-reads", {})
    with there(fabric.url, "asker") as (asker,):
        asker.fire_and_forget(channel=CHANNEL, topic="t", targets="server", message=Message(payload=SECRET))
        assert plaintext(fabric)


def test_sealed_requests_and_answers_arrive_and_say_that_they_were_sealed(
    sealing: tuple[FabricCell, FabricCell], journal: Remembers
) -> None:
    asker, server = sealing
    answer = ask(asker, "server", SECRET, secure=True)
    assert answer.payload == [SECRET, SECRET]
    assert answer.get_header("h") == SECRET
    assert answer.get_header(MessageHeaderKey.SECURE) is True
    assert heard(server)[0].get_header(MessageHeaderKey.SECURE) is True
    assert [(e.sealed, a.sealed) for e, a in zip(journal.taken, journal.done, strict=True)] == [(True, True)]
    assert ask(asker, "server", 1).get_header(MessageHeaderKey.SECURE) is False


def test_L6_of_sealed_requests_the_fabric_has_ciphertext_only_forgotten_ones_too(
    fabric: Fabric, rings: dict[str, KeyRing]
) -> None:
    fabric.announce("server", "nobody-reads", {})
    with there(fabric.url, "asker", ring=rings["asker"]) as (asker,):
        message = Message({"h": SECRET}, {"w": SECRET})
        sent = asker.fire_and_forget(channel=CHANNEL, topic="t", targets="server", message=message, secure=True)
        assert sent == {"server": ""}
        asked = asker.send_request(
            channel=CHANNEL, topic="t", target="server", request=message, timeout=0.2, secure=True
        )
        assert asked.return_code == CellReturnCode.TIMEOUT
        assert fabric.client.xlen(inbox_of("server")) == 2
        assert plaintext(fabric) == []


def test_L6_of_a_sealed_answer_the_fabric_has_ciphertext_only(
    fabric: Fabric, sealing: tuple[FabricCell, FabricCell], rings: dict[str, KeyRing]
) -> None:
    envelope, frame = request(SECRET, rings["asker"])
    plant(fabric, envelope.id, frame)
    (entry,) = until(lambda: answers(fabric), 5)
    assert entry["c"] == "ok"
    assert plaintext(fabric) == []
    answer = open_answer(fabric.fetch(f"{envelope.id}:r"), envelope, rings["asker"])
    assert answer.payload == [SECRET, SECRET]


@pytest.mark.parametrize("how", ["raises", "cannot be sent", "a failure with words"])
def test_L6_why_a_sealed_request_failed_is_not_told_in_plain_text(
    fabric: Fabric, sealing: tuple[FabricCell, FabricCell], rings: dict[str, KeyRing], how: str
) -> None:
    def handler(message: Message) -> Message:
        if how == "raises":
            raise ValueError(f"no such row: {message.payload}")
        if how == "cannot be sent":
            return Message(payload={message.payload: object()})
        return Message({"return_code": "process_exception", "error": message.payload}, message.payload)

    handle(sealing[1], handler)
    envelope, frame = request(SECRET, rings["asker"])
    plant(fabric, envelope.id, frame)
    (entry,) = until(lambda: answers(fabric), 5)
    assert entry["c"] == CellReturnCode.PROCESS_EXCEPTION
    assert plaintext(fabric) == []


def test_L4_a_sealed_message_that_a_carrier_delivers_again_under_another_id_is_not_handled_again(
    fabric: Fabric, sealing: tuple[FabricCell, FabricCell], rings: dict[str, KeyRing]
) -> None:
    envelope, frame = request("transfer", rings["asker"], reply=False)
    plant(fabric, envelope.id, frame)
    until(lambda: heard(sealing[1]), 5)
    plant(fabric, "cd" * 16, frame)
    until(lambda: idle(fabric, sealing[1]), 5)
    assert ask(sealing[0], "server", "after", secure=True).return_code == CellReturnCode.OK
    assert [m.payload for m in heard(sealing[1])] == ["transfer", "after"]


@pytest.mark.parametrize("who", ["stranger", "thief"])
def test_a_message_sealed_with_an_unknown_or_a_wrong_key_is_refused_answered_and_journalled(
    fabric: Fabric, sealing: tuple[FabricCell, FabricCell], rings: dict[str, KeyRing], journal: Remembers, who: str
) -> None:
    sender = rings[who].name
    envelope, frame = request(SECRET, rings[who], sender=sender)
    plant(fabric, envelope.id, frame)
    (entry,) = until(lambda: answers(fabric, sender), 5)
    assert entry["c"] == CellReturnCode.AUTHENTICATION_ERROR
    assert heard(sealing[1]) == []
    ((said, code, why),) = journal.no
    assert (said, code) == (sender, "authentication_error")
    assert {"stranger": "KEY_UNKNOWN", "thief": "SEAL_BROKEN"}[who] in why


def test_a_sealed_message_whose_sender_was_changed_is_refused(
    fabric: Fabric, sealing: tuple[FabricCell, FabricCell], rings: dict[str, KeyRing], journal: Remembers
) -> None:
    envelope, frame = request(SECRET, rings["asker"])
    length = int.from_bytes(frame[4:8], "big")
    header = {name: getattr(envelope_of(frame), name) for name in Envelope.__slots__} | {"sender": "asker.admin"}
    raw = codec.encode(header)
    plant(fabric, envelope.id, MAGIC + len(raw).to_bytes(4, "big") + raw + frame[8 + length :])
    until(lambda: journal.no, 5)
    assert heard(sealing[1]) == []
    assert [code for _, code, _ in journal.no] == ["authentication_error"]


def test_an_unsealed_success_to_a_sealed_request_is_not_believed(
    fabric: Fabric, url: str, rings: dict[str, KeyRing]
) -> None:
    with there(url, "asker", ring=rings["asker"]) as (asker,), there(url, "server", ring=rings["server"]) as (cell,):
        handle(cell, echo)
        packed = cell.intake.packed

        def plain(envelope: Envelope, reply: Message) -> tuple[bytes, Envelope]:
            return packed(replace(envelope, sealed=False), reply)

        cell.intake.packed = plain  # type: ignore[method-assign]
        answer = ask(asker, "server", SECRET, secure=True)
        assert (answer.return_code, answer.payload) == (CellReturnCode.AUTHENTICATION_ERROR, None)


def test_L9_nothing_leaves_where_it_cannot_be_sealed(fabric: Fabric, rings: dict[str, KeyRing]) -> None:
    fabric.announce("nobody-knows", "x", {})
    fabric.announce("server", "x", {})
    with there(fabric.url, "asker", ring=rings["asker"]) as (asker,), there(fabric.url, "bare") as (bare,):
        with pytest.raises(KeyUnknown):
            ask(asker, "nobody-knows", SECRET, secure=True)
        with pytest.raises(KeyUnknown):
            ask(bare, "server", SECRET, secure=True)
        assert fabric.client.keys("ff:*:in") == []
        assert plaintext(fabric) == []
