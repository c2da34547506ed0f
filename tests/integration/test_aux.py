"""Aux messages that come in: the engine's cell, handlers by topic, each row of what a request is answered with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.cell.cell import FabricCell
from engine.cell.message import CellReturnCode, Message, MessageHeaderKey
from engine.client_engine import ClientEngine
from engine.constants import ReservedKey, ReturnCode
from engine.context import FLContext
from engine.shareable import Shareable
from events.envelope import Actor, Event
from events.read import last_position, read
from tests.support import SITE, check_record, kill, opened, processes_with, ready, until

AUX = "aux_communication"
_numbers = iter(range(10**6))


def topic() -> str:
    """One that no other test uses."""
    return f"topic-{next(_numbers)}"


def acting(engine: ClientEngine) -> Any:
    """As somebody of whom nobody else is: refusals of one actor are counted together where they are many."""
    return engine.acting_as(Actor(id=f"tester-{next(_numbers)}", kind="service"))


@contextmanager
def site_at(folder: Path, **options: Any) -> Iterator[ClientEngine]:
    """An engine for several tests, of which nothing runs on."""
    try:
        with opened(folder, **options) as engine:
            yield engine if options.get("pool") == "elsewhere" else ready(engine)
    finally:
        for _ in range(50):
            left = processes_with(str(folder))
            if not left:
                break
            for pid in left:
                kill(pid)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[ClientEngine]:
    """One engine for the tests of a module; what they recorded is consistent in the end."""
    with site_at(tmp_path_factory.mktemp("aux") / "ws") as engine:
        yield engine
        check_record(engine.site.jobs.store)


class Since:
    """What an engine has recorded since a moment."""

    def __init__(self, engine: ClientEngine) -> None:
        self.store = engine.site.jobs.store
        self.start = last_position(self.store)

    def all(self) -> list[Event]:
        return list(read(self.store, after=self.start))

    def of(self, *types: str) -> list[Event]:
        return [event for event in self.all() if event.type in types]

    def bodies(self, *types: str) -> list[dict[str, Any]]:
        return [event.body for event in self.of(*types)]


@pytest.fixture
def since(shared: ClientEngine) -> Since:
    return Since(shared)


@pytest.fixture
def server(shared: ClientEngine) -> Iterator[FabricCell]:
    """A peer: the server's cell."""
    cell = FabricCell(shared.site.servers.fabric_url, "server").start()
    yield cell
    cell.stop()


def asked(values: dict[str, Any] | None = None, props: Any = ()) -> Shareable:
    """A request as a peer makes it: with its properties, unless they are None."""
    request = Shareable(values or {})
    if props is not None:
        request.set_header(ReservedKey.PEER_PROPS, {"__identity_name__": "server"} if props == () else props)
    return request


def ask(server: FabricCell, name: str, payload: Any, timeout: float = 10.0) -> Message:
    return server.send_request(
        channel=AUX, topic=name, target=SITE, request=Message(payload=payload), timeout=timeout
    )


# -- the cell ---------------------------------------------------------------------------------------


def test_an_engine_that_was_opened_has_a_cell_at_its_own_address(shared: ClientEngine) -> None:
    cell = shared.get_cell()
    assert isinstance(cell, FabricCell)
    assert cell is shared.cell
    assert cell.get_fqcn() == SITE
    first = next(e for e in read(shared.site.jobs.store) if e.type == "CellAttached")
    assert first.body == {"fqcn": SITE, "kind": "engine.cell.cell.FabricCell"}


def test_the_same_cell_again_is_recorded_and_registers_nothing_anew(shared: ClientEngine, since: Since) -> None:
    cell: Any = shared.get_cell()
    before = dict(cell.intake.handlers)
    shared.initialize_comm(cell)
    shared.cell = cell
    assert cell.intake.handlers == before
    assert shared.get_cell() is cell
    assert [b["fqcn"] for b in since.bodies("CellAttached")] == [SITE, SITE]


class NoCell:
    """It lacks most of what a cell has."""

    def get_fqcn(self) -> str:
        return SITE


@pytest.mark.parametrize(
    "given", [None, "site-1", NoCell(), 7, FabricCell], ids=["None", "text", "partly", "7", "class"]
)
@pytest.mark.parametrize("how", ["initialize_comm", "cell"])
def test_L9_what_is_no_cell_is_refused_recorded_and_changes_nothing(
    shared: ClientEngine, since: Since, given: Any, how: str
) -> None:
    before = shared.get_cell()
    give = shared.initialize_comm if how == "initialize_comm" else lambda cell: setattr(shared, "cell", cell)
    with acting(shared), pytest.raises(TypeError, match="no cell"):
        give(given)
    assert shared.get_cell() is before
    (refused,) = since.bodies("CallRefused")
    assert (refused["method"], refused["code"]) == ("initialize_comm", "ARGUMENT_INVALID")
    assert since.of("CellAttached") == []


# -- handlers (reference 4.1) ------------------------------------------------------------------------


def nothing(topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
    return Shareable()


@pytest.mark.parametrize(
    ("name", "handler", "kind", "says"),
    [
        (7, nothing, TypeError, "topic"),
        (None, nothing, TypeError, "topic"),
        (b"topic", nothing, TypeError, "topic"),
        ("", nothing, ValueError, "topic"),
        ("t" * 201, nothing, ValueError, "topic"),
        ("a\nb", nothing, ValueError, "topic"),
        ("\ud800", nothing, ValueError, "topic"),
        ("fresh", None, ValueError, "not specified"),
        ("fresh", "text", TypeError, "callable"),
        ("fresh", 7, TypeError, "callable"),
        (7, None, TypeError, "topic"),
        ("", None, ValueError, "topic"),
    ],
)
def test_L9_a_handler_that_cannot_be_registered_is_refused_recorded_and_changes_nothing(
    shared: ClientEngine, since: Since, name: Any, handler: Any, kind: type[Exception], says: str
) -> None:
    before = dict(shared.aux_runner._handlers)
    with acting(shared), pytest.raises(kind, match=says) as caught:
        shared.register_aux_message_handler(name, handler)
    if kind is ValueError:
        assert not isinstance(caught.value, TypeError)
    assert shared.aux_runner._handlers == before
    (refused,) = since.bodies("CallRefused")
    assert (refused["method"], refused["code"]) == ("register_aux_message_handler", "ARGUMENT_INVALID")
    assert since.of("HandlerRegistered") == []


def test_L9_a_topic_has_one_handler_for_ever(shared: ClientEngine, server: FabricCell, since: Since) -> None:
    name = topic()
    shared.register_aux_message_handler(name, lambda topic, request, fl_ctx: Shareable({"who": "first"}))
    with acting(shared), pytest.raises(ValueError, match=f"handler already registered for topic {name}"):
        shared.register_aux_message_handler(name, nothing)
    assert ask(server, name, asked()).payload["who"] == "first"
    assert [b["topic"] for b in since.bodies("HandlerRegistered")] == [name]
    assert len(since.of("CallRefused")) == 1


def test_of_many_who_register_a_topic_at_once_one_succeeds(shared: ClientEngine, since: Since) -> None:
    name, outcomes, gate = topic(), [], threading.Barrier(6)

    def register() -> None:
        gate.wait(10)
        try:
            shared.register_aux_message_handler(name, nothing)
            outcomes.append("ok")
        except ValueError:
            outcomes.append("refused")

    threads = [threading.Thread(target=register) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["ok", *["refused"] * 5]
    assert len(since.of("HandlerRegistered")) == 1


# -- dispatch (reference 4.2) --------------------------------------------------------------------------


def test_a_request_reaches_its_handler_with_topic_request_and_the_peers_context(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name, seen = topic(), {}

    def handler(topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        peer = fl_ctx.get_peer_context()
        seen.update(topic=topic, request=dict(request), engine=fl_ctx.get_engine(), peer=peer)
        fl_ctx.set_prop("public_word", "hello", private=False, sticky=False)
        fl_ctx.set_prop("private_word", "hush", private=True, sticky=False)
        return Shareable({"sum": request["a"] + 1})

    shared.register_aux_message_handler(name, handler)
    answer = ask(server, name, asked({"a": 1}, {"__identity_name__": "server", "color": "red"}))
    assert answer.return_code == CellReturnCode.OK
    reply = answer.payload
    assert isinstance(reply, Shareable)
    assert (reply["sum"], reply.get_return_code()) == (2, ReturnCode.OK)
    assert (seen["topic"], seen["engine"]) == (name, shared)
    assert seen["request"]["a"] == 1
    assert seen["peer"].get_prop("color") == "red"
    assert seen["peer"].get_identity_name() == "server"
    assert reply.get_peer_prop("__identity_name__") == SITE
    assert reply.get_peer_prop("public_word") == "hello"
    assert reply.get_peer_prop("private_word") is None
    received, handled = since.of("AuxReceived", "AuxHandled")
    assert (received.type, handled.type) == ("AuxReceived", "AuxHandled"), "before its handler, and after"
    assert received.body["id"] == handled.body["id"]
    assert (received.body["topic"], received.body["sender"], received.body["reply"]) == (name, "server", True)
    assert (handled.body["code"], handled.body["target"]) == ("ok", "server")
    actor = received.rest()["actor"]
    assert (actor["id"], actor["kind"], actor["auth"], actor["via"]) == ("server", "server", "none", "cell")


@pytest.mark.parametrize("payload", [None, "text", 7, [1], {"a": 1}, b"bytes"], ids=str)
def test_a_payload_that_is_no_shareable_is_bad_request_data(
    shared: ClientEngine, server: FabricCell, payload: Any
) -> None:
    answer = ask(server, topic(), payload)
    assert answer.return_code == CellReturnCode.OK
    assert answer.payload.get_return_code() == ReturnCode.BAD_REQUEST_DATA


@pytest.mark.parametrize("props", [(), None, "no dict"])
def test_a_topic_that_nobody_handles_is_unknown_whatever_the_peers_context(
    shared: ClientEngine, server: FabricCell, props: Any
) -> None:
    assert ask(server, topic(), asked(props=props)).payload.get_return_code() == ReturnCode.TOPIC_UNKNOWN


@pytest.mark.parametrize(
    ("props", "code"),
    [
        (None, ReturnCode.MISSING_PEER_CONTEXT),
        ("text", ReturnCode.BAD_PEER_CONTEXT),
        ([1], ReturnCode.BAD_PEER_CONTEXT),
        (0, ReturnCode.BAD_PEER_CONTEXT),
        ({1: "a name that is no string"}, ReturnCode.BAD_PEER_CONTEXT),
    ],
)
def test_a_peers_context_that_is_missing_or_none_keeps_the_handler_from_being_called(
    shared: ClientEngine, server: FabricCell, props: Any, code: str
) -> None:
    name, called = topic(), []
    shared.register_aux_message_handler(name, lambda **given: (called.append(1), Shareable())[1])
    answer = ask(server, name, asked(props=props))
    assert called == []
    assert answer.return_code == CellReturnCode.OK, answer.headers
    assert answer.payload.get_return_code() == code


def test_a_handler_that_raises_is_a_handler_exception_and_the_next_request_is_handled(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name = topic()

    def handler(topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        if request.get("raise"):
            raise RuntimeError("boom")
        return Shareable({"fine": True})

    shared.register_aux_message_handler(name, handler)
    answer = ask(server, name, asked({"raise": True}))
    assert answer.return_code == CellReturnCode.OK
    assert answer.payload.get_return_code() == ReturnCode.HANDLER_EXCEPTION
    assert ask(server, name, asked()).payload["fine"]
    assert len(since.of("AuxHandled")) == 2


@pytest.mark.parametrize(
    "given", [None, "text", {"a": 1}, 7, Message()], ids=["None", "text", "dict", "7", "Message"]
)
def test_a_handler_that_returns_no_shareable_is_a_process_exception(
    shared: ClientEngine, server: FabricCell, since: Since, given: Any
) -> None:
    name = topic()
    shared.register_aux_message_handler(name, lambda topic, request, fl_ctx: given)
    request = asked()
    request.add_cookie("a", 1)
    answer = ask(server, name, request)
    assert answer.return_code == CellReturnCode.PROCESS_EXCEPTION
    assert "Shareable" in answer.get_header(MessageHeaderKey.ERROR)
    assert [b["code"] for b in since.bodies("AuxHandled")] == ["process_exception"]


@pytest.mark.parametrize("cookies", [{}, {"round": 3, "deep": {"a": [1]}}], ids=["none", "some"])
def test_the_cookies_of_a_request_come_back_with_the_reply(
    shared: ClientEngine, server: FabricCell, cookies: dict[str, Any]
) -> None:
    name = topic()
    shared.register_aux_message_handler(name, nothing)
    request = asked()
    for key, value in cookies.items():
        request.add_cookie(key, value)
    assert (ask(server, name, request).payload.get_cookie_jar() or {}) == cookies


def test_a_reply_that_cannot_be_sent_is_told_and_recorded_as_what_it_was(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name = topic()
    shared.register_aux_message_handler(name, lambda topic, request, fl_ctx: Shareable({"odd": object()}))
    answer = ask(server, name, asked())
    assert answer.return_code == CellReturnCode.PROCESS_EXCEPTION
    assert [b["code"] for b in since.bodies("AuxHandled")] == ["process_exception"]


def test_a_message_that_expects_no_answer_is_handled_and_recorded(
    shared: ClientEngine, server: FabricCell, since: Since
) -> None:
    name, seen = topic(), []
    shared.register_aux_message_handler(name, lambda topic, request, fl_ctx: (seen.append(1), Shareable())[1])
    sent = server.fire_and_forget(channel=AUX, topic=name, targets=SITE, message=Message(payload=asked()))
    assert sent == {SITE: ""}
    until(lambda: since.of("AuxHandled"), 5)
    assert seen == [1]
    assert [b["reply"] for b in since.bodies("AuxReceived", "AuxHandled")] == [False, False]


def test_a_handler_that_hangs_keeps_no_other_topic_from_being_answered(
    shared: ClientEngine, server: FabricCell
) -> None:
    stuck, fine, go = topic(), topic(), threading.Event()
    shared.register_aux_message_handler(stuck, lambda topic, request, fl_ctx: (go.wait(20), Shareable())[1])
    shared.register_aux_message_handler(fine, nothing)
    try:
        assert ask(server, stuck, asked(), timeout=0.3).return_code == CellReturnCode.TIMEOUT
        assert ask(server, fine, asked()).return_code == CellReturnCode.OK
    finally:
        go.set()
