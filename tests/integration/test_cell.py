"""Cells on a real fabric: what is asked is answered once, and what goes wrong is told, at once and by name."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from engine.cell.cell import HANDLERS, FabricCell
from engine.cell.fabric import Fabric, answers_of, inbox_of, up_of
from engine.cell.message import CellReturnCode, Message, MessageHeaderKey
from engine.errors import AddressTaken, ArgumentInvalid, PayloadInvalid
from engine.server import EmbeddedServer
from engine.workspace import Workspace, host_name
from events.errors import LogUnavailable
from tests.support import until

CHANNEL = "aux_communication"
Handler = Callable[[Message], Any]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, runtime_folder: object) -> Iterator[str]:
    """A fabric of this module's own."""
    server = EmbeddedServer(Workspace.prepare(tmp_path_factory.mktemp("fabric"), "shared"), "fabric")
    server.ensure()
    yield server.url
    server.stop()


@pytest.fixture
def fabric(url: str) -> Iterator[Fabric]:
    """A hand on the fabric beside the cells; the fabric is empty before."""
    hand = Fabric(url)
    hand.client.flushall()
    yield hand
    hand.close()


@contextmanager
def there(url: str, *names: str, **options: Any) -> Iterator[tuple[FabricCell, ...]]:
    """Cells that are there."""
    cells = tuple(FabricCell(url, name, **options).start() for name in names)
    try:
        yield cells
    finally:
        for cell in cells:
            cell.stop()


def handle(cell: FabricCell, handler: Handler, topic: str = "*") -> None:
    cell.register_request_cb(channel=CHANNEL, topic=topic, cb=handler)


def echo(message: Message) -> Message:
    return Message(payload=message.payload)


def ask(cell: FabricCell, target: str, payload: Any = 1, timeout: float = 10.0, **options: Any) -> Message:
    return cell.send_request(
        channel=CHANNEL, topic="t", target=target, request=Message(payload=payload), timeout=timeout, **options
    )


# -- requests --------------------------------------------------------------------------------------


def test_a_request_is_answered_by_the_handler_of_its_topic(fabric: Fabric, url: str) -> None:
    with there(url, "server", "site-1.job") as (server, job):
        handle(server, lambda m: Message({"h": "star"}, "any"))
        handle(server, lambda m: Message({"h": "own"}, [m.payload, m.get_header(MessageHeaderKey.ORIGIN)]), "t")
        answer = ask(job, "server", {"w": b"x" * 5000})
        assert answer.return_code == CellReturnCode.OK
        assert answer.payload == [{"w": b"x" * 5000}, "site-1.job"]
        assert answer.get_header("h") == "own"
        assert answer.get_header(MessageHeaderKey.ORIGIN) == "server"
        other = job.send_request(channel=CHANNEL, topic="z", target="server", request=Message(), timeout=10)
        assert other.payload == "any"


def test_nothing_of_a_request_that_was_answered_is_left_on_the_fabric(fabric: Fabric, url: str) -> None:
    with there(url, "server", "site-1") as (server, site):
        handle(server, echo)
        for number in range(20):
            assert ask(site, "server", number).payload == number
        left = until(lambda: [k for k in fabric.client.keys("ff:*") if b"{" not in k and k != b"ff:cells"] == [], 5)
        assert left
        until(lambda: fabric.client.xlen(inbox_of("server")) == 0, 5)
        until(lambda: fabric.client.xlen(answers_of("site-1", site._token)) == 0, 5)


def test_a_cell_can_ask_itself(fabric: Fabric, url: str) -> None:
    with there(url, "server") as (server,):
        handle(server, echo)
        assert ask(server, "server", "me").payload == "me"


def test_a_broadcast_gives_each_target_its_own_answer_and_one_that_is_down_does_not_hold_the_others(
    fabric: Fabric, url: str
) -> None:
    with there(url, "server", "site-1", "site-2") as (server, *sites):
        for site in sites:
            handle(site, lambda m, site=site: Message(payload=site.get_fqcn()))
        began = time.monotonic()
        answers = server.broadcast_request(
            channel=CHANNEL, topic="t", targets=["site-1", "site-2", "site-3"], request=Message(), timeout=10
        )
        assert time.monotonic() - began < 5
        assert {name: (a.return_code, a.payload) for name, a in answers.items()} == {
            "site-1": ("ok", "site-1"),
            "site-2": ("ok", "site-2"),
            "site-3": ("invalid_target", None),
        }


def test_L9_a_broadcast_with_a_target_that_is_none_sends_nothing_at_all(fabric: Fabric, url: str) -> None:
    heard: list[Any] = []
    with there(url, "server", "site-1") as (server, site):
        handle(site, lambda m: (heard.append(m.payload), Message())[1])
        with pytest.raises(ArgumentInvalid):
            server.broadcast_request(
                channel=CHANNEL, topic="t", targets=["site-1", "no address!"], request=Message(payload=1), timeout=1
            )
        assert ask(server, "site-1", 2).return_code == CellReturnCode.OK
        assert heard == [2], "a broadcast that was refused has reached one of its targets"
        assert server._waiting == {}


def test_each_target_may_be_asked_something_of_its_own(fabric: Fabric, url: str) -> None:
    with there(url, "server", "site-1", "site-2") as (server, *sites):
        for site in sites:
            handle(site, echo)
        asked = {"site-1": Message(payload=1), "site-2": Message(payload=2)}
        answers = server.ask_each(CHANNEL, "t", asked, 10)
        assert {name: answer.payload for name, answer in answers.items()} == {"site-1": 1, "site-2": 2}


def test_fire_and_forget_arrives_once_and_leaves_nothing(fabric: Fabric, url: str) -> None:
    heard: list[Any] = []
    with there(url, "server", "site-1") as (server, site):
        handle(server, lambda m: heard.append(m.payload))
        sent = site.fire_and_forget(
            channel=CHANNEL, topic="t", targets=["server", "gone"], message=Message(payload=7)
        )
        assert sent == {"server": "", "gone": "invalid_target"}
        until(lambda: heard, 5)
        assert ask(site, "server").return_code == CellReturnCode.PROCESS_EXCEPTION  # an answer was expected here
        assert heard == [7, 1]
        until(lambda: [k for k in fabric.client.keys("ff:*") if b"{" not in k and k != b"ff:cells"] == [], 5)


# -- who is there ----------------------------------------------------------------------------------


def test_a_target_that_never_was_is_told_at_once_and_so_is_one_that_is_gone(fabric: Fabric, url: str) -> None:
    with there(url, "site-1") as (site,):
        began = time.monotonic()
        assert ask(site, "server").return_code == CellReturnCode.INVALID_TARGET
        with there(url, "server"):
            pass
        gone = ask(site, "server")
        assert gone.return_code == CellReturnCode.TARGET_UNREACHABLE
        assert "server" in gone.get_header(MessageHeaderKey.ERROR)
        assert time.monotonic() - began < 4, "it is known at once"


def test_an_inbox_that_is_full_answers_at_once(fabric: Fabric, url: str) -> None:
    fabric.announce("server", "nobody-reads", {})
    with there(url, "site-1", inbox_max=2) as (site,):
        sent = [
            site.fire_and_forget(channel=CHANNEL, topic="t", targets="server", message=Message(payload=n))
            for n in range(4)
        ]
        assert [s["server"] for s in sent] == ["", "", "service_unavailable", "service_unavailable"]
        began = time.monotonic()
        assert ask(site, "server").return_code == CellReturnCode.SERVICE_UNAVAILABLE
        assert time.monotonic() - began < 5
        assert fabric.client.xlen(inbox_of("server")) == 2
        payloads = [k for k in fabric.client.keys("ff:*") if b"{" not in k and k != b"ff:cells"]
        assert len(payloads) == 2, "what was not taken is not kept"


def test_a_second_cell_of_an_address_is_refused_while_the_first_lives(
    fabric: Fabric, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cell.cell.UP_MS", 400)  # how long it waits for the address
    with there(url, "site-1", "server") as (site, older):
        handle(older, lambda m: Message(payload="older"))
        newer = FabricCell(url, "server")
        try:
            with pytest.raises(AddressTaken, match=rf"process {os.getpid()} on host"):
                newer.start()
        finally:
            newer.stop()
        assert fabric.holder("server") == older._token, "the refused one withdraws nothing"
        assert ask(site, "server").payload == "older"


def test_a_cell_whose_address_is_taken_over_has_it_back_once_that_is_gone(fabric: Fabric, url: str) -> None:
    with there(url, "site-1", "server") as (site, server):
        handle(server, echo)
        fabric.client.set(up_of("server"), "a stranger", px=6000)
        until(lambda: not server.listening, 5)
        assert server.listening is False
        until(lambda: server.listening, 20)
        assert ask(site, "server").return_code == CellReturnCode.OK


def test_a_cell_that_died_makes_way_at_once(fabric: Fabric, url: str) -> None:
    fabric.announce("server", "of the dead", {"once": True, "host": host_name(), "pid": 2**22 - 1, "ticks": 1})
    began = time.monotonic()
    with there(url, "site-1", "server") as (site, server):
        handle(server, echo)
        assert ask(site, "server").return_code == CellReturnCode.OK
        assert time.monotonic() - began < 3


def test_a_fabric_that_forgot_everything_is_told_again_who_is_there(fabric: Fabric, url: str) -> None:
    with there(url, "site-1", "server") as (site, server):
        handle(server, echo)
        assert ask(site, "server").return_code == CellReturnCode.OK
        fabric.client.flushall()
        until(lambda: ask(site, "server", timeout=1).return_code == CellReturnCode.OK, 10)


# -- time -------------------------------------------------------------------------------------------


def test_a_handler_that_takes_too_long_is_a_timeout_and_its_late_answer_is_dropped_and_counted(
    fabric: Fabric, url: str
) -> None:
    go = threading.Event()
    with there(url, "site-1", "server") as (site, server):
        handle(server, lambda m: (go.wait(20), Message(payload="late"))[1])
        began = time.monotonic()
        answer = ask(site, "server", timeout=0.5)
        assert (answer.return_code, answer.payload) == (CellReturnCode.TIMEOUT, None)
        assert 0.4 < time.monotonic() - began < 5
        assert site.late_answers == 0
        go.set()
        until(lambda: site.late_answers == 1, 5)
        until(lambda: not fabric.client.keys("ff:*:r"), 5, "the late answer's bytes are kept")
        assert ask(site, "server").payload == "late"
        assert site.late_answers == 1


def test_handlers_that_never_return_do_not_keep_others_from_being_handled(fabric: Fabric, url: str) -> None:
    never = threading.Event()
    begun: list[int] = []

    def handler(message: Message) -> Message:
        if message.payload == "stuck":
            begun.append(1)
            never.wait(30)
        return Message(payload="done")

    try:
        with there(url, "site-1", "server") as (site, server):
            handle(server, handler)
            for _ in range(HANDLERS - 1):
                site.fire_and_forget(channel=CHANNEL, topic="t", targets="server", message=Message(payload="stuck"))
            until(lambda: len(begun) == HANDLERS - 1, 10)
            assert [ask(site, "server").payload for _ in range(5)] == ["done"] * 5
            assert site.fire_and_forget(
                channel=CHANNEL, topic="t", targets="server", message=Message(payload="stuck")
            ) == {"server": ""}
            until(lambda: len(begun) == HANDLERS, 10)
            # Now no handler is free; the cell's own requests are answered all the same.
            handle(site, echo)
            assert ask(server, "site-1", "back").payload == "back"
    finally:
        never.set()


def test_a_cell_whose_handlers_are_all_busy_leaves_what_comes_in_its_inbox_and_takes_it_later(
    fabric: Fabric, url: str
) -> None:
    go = threading.Event()
    heard: list[Any] = []
    try:
        with there(url, "site-1", "server") as (site, server):
            handle(server, lambda m: (go.wait(30), heard.append(m.payload))[1])
            for number in range(HANDLERS + 5):
                site.fire_and_forget(channel=CHANNEL, topic="t", targets="server", message=Message(payload=number))
            until(lambda: fabric.client.xlen(inbox_of("server")) == 5, 10)
            go.set()
            until(lambda: sorted(heard) == list(range(HANDLERS + 5)), 10)
    finally:
        go.set()


# -- handlers that fail ------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "text", {"a": 1}, 7, Message], ids=str)
def test_a_handler_that_returns_no_message_is_a_process_exception_that_says_so(
    fabric: Fabric, url: str, given: Any
) -> None:
    with there(url, "site-1", "server") as (site, server):
        handle(server, lambda m: given)
        answer = ask(site, "server")
        assert answer.return_code == CellReturnCode.PROCESS_EXCEPTION
        assert "not a Message" in answer.get_header(MessageHeaderKey.ERROR)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("k"), AssertionError("x"), LogUnavailable("away")])
def test_a_handler_that_raises_is_a_process_exception_and_the_next_request_is_handled(
    fabric: Fabric, url: str, error: Exception
) -> None:
    def handler(message: Message) -> Message:
        if message.payload == "raise":
            raise error
        return Message(payload="fine")

    with there(url, "site-1", "server") as (site, server):
        handle(server, handler)
        answer = ask(site, "server", "raise")
        assert answer.return_code == CellReturnCode.PROCESS_EXCEPTION
        assert type(error).__name__ in answer.get_header(MessageHeaderKey.ERROR)
        assert ask(site, "server").payload == "fine"


def test_an_answer_that_cannot_be_sent_is_told_and_so_is_one_that_is_too_big(fabric: Fabric, url: str) -> None:
    with there(url, "site-1") as (site,), there(url, "server", payload_max=2000) as (server,):
        handle(server, lambda m: Message(payload=object() if m.payload == "odd" else b"x" * 3000))
        odd = ask(site, "server", "odd")
        assert (odd.return_code, odd.payload) == (CellReturnCode.PROCESS_EXCEPTION, None)
        assert "object" in odd.get_header(MessageHeaderKey.ERROR)
        assert ask(site, "server", "big").return_code == CellReturnCode.MSG_TOO_BIG


def test_a_request_that_nobody_handles_is_invalid(fabric: Fabric, url: str) -> None:
    with there(url, "site-1", "server") as (site, server):
        server.register_request_cb(channel=CHANNEL, topic="another", cb=echo)
        answer = ask(site, "server")
        assert answer.return_code == CellReturnCode.INVALID_REQUEST
        assert f"{CHANNEL}:t" in answer.get_header(MessageHeaderKey.ERROR)


def test_L9_what_cannot_be_sent_at_all_is_refused_and_leaves_nothing(fabric: Fabric, url: str) -> None:
    with there(url, "site-1", payload_max=1000) as (site,):
        before = set(fabric.client.keys("*"))
        with pytest.raises(PayloadInvalid):
            ask(site, "server", object())
        for target in ("", "a b", "../x", "a.", ".a", "a..b", "a" * 300, "{x}", "a\n"):
            with pytest.raises(ArgumentInvalid, match="address"):
                ask(site, target)
        with pytest.raises(TypeError, match="target"):
            ask(site, 7)  # type: ignore[arg-type]
        assert ask(site, "server", b"x" * 1000).return_code == CellReturnCode.MSG_TOO_BIG
        assert set(fabric.client.keys("*")) == before
        assert site._waiting == {}


@pytest.mark.parametrize(
    ("channel", "topic", "cb", "kind"),
    [
        ("", "t", echo, ValueError),
        ("c", "", echo, ValueError),
        (3, "t", echo, TypeError),
        ("c", None, echo, TypeError),
        ("c", "t" * 201, echo, ValueError),
        ("c", "a\nb", echo, ValueError),
        ("c", "t", "no function", TypeError),
        ("c", "t", None, TypeError),
    ],
)
def test_L9_a_handler_is_registered_for_names_that_are_some_and_can_be_called(
    url: str, channel: Any, topic: Any, cb: Any, kind: type[Exception]
) -> None:
    cell = FabricCell(url, "server")
    with pytest.raises(kind):
        cell.register_request_cb(channel, topic, cb)
    assert cell.intake.handlers == {}


def test_L9_a_cell_has_an_address_that_is_one(url: str) -> None:
    for fqcn in ("", "a b", "a.b.c.d.e", "site-1.", "é"):
        with pytest.raises(ArgumentInvalid):
            FabricCell(url, fqcn)


def test_with_the_fabric_away_a_request_is_a_comm_error_and_the_cell_is_there_again_once_it_is_back(
    tmp_path_factory: pytest.TempPathFactory, runtime_folder: object
) -> None:
    server = EmbeddedServer(Workspace.prepare(tmp_path_factory.mktemp("away"), "away"), "fabric")
    try:
        with there(server.url, "site-1", "server") as (site, other):  # it is not there yet
            handle(other, echo)
            assert ask(site, "server", timeout=1).return_code == CellReturnCode.COMM_ERROR
            server.ensure()
            until(lambda: ask(site, "server", timeout=1).return_code == CellReturnCode.OK, 10)
    finally:
        server.stop()
