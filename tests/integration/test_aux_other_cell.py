"""Another transport: whatever keeps to the cell's protocol is a cell, and whatever it does has one true outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.cell.message import CellReturnCode, Message
from engine.cell.outcomes import ENDS
from engine.client import LocalArguments, LocalClient
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.shareable import Shareable
from tests.integration.test_aux import AUX, Since, asked, topic
from tests.integration.test_aux_sending import SEEN, agrees, outcome
from tests.support import QUICK, SITE, check_record, kill, processes_with, ready, until


class MemoryCell:
    """A cell whose network is this object: ``answer`` is the server."""

    def __init__(self) -> None:
        self.handlers: dict[tuple[str, str], Callable[[Message], Message | None]] = {}
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.answer: Callable[[Message], Any] = lambda request: Message(payload=Shareable({"b": 2}))
        self.refuses = ""

    def get_fqcn(self) -> str:
        return SITE

    def register_request_cb(self, channel: str, topic: str, cb: Callable[[Message], Message | None]) -> None:
        self.handlers[(channel, topic)] = cb

    def send_request(
        self,
        channel: str,
        topic: str,
        target: str,
        request: Message,
        timeout: float,
        secure: bool = False,
        optional: bool = False,
    ) -> Message:
        return self.broadcast_request(channel, topic, [target], request, timeout, secure, optional)[target]

    def broadcast_request(
        self,
        channel: str,
        topic: str,
        targets: Sequence[str],
        request: Message,
        timeout: float,
        secure: bool = False,
        optional: bool = False,
    ) -> Any:
        told = {"channel": channel, "topic": topic, "targets": list(targets), "timeout": timeout}
        self.sent.append(("request", {**told, "secure": secure, "optional": optional, "request": request}))
        answer = self.answer(request)
        return dict.fromkeys(targets, answer) if isinstance(answer, Message) else answer

    def fire_and_forget(
        self,
        channel: str,
        topic: str,
        targets: str | Sequence[str],
        message: Message,
        secure: bool = False,
        optional: bool = False,
    ) -> dict[str, str]:
        self.sent.append(("message", {"topic": topic, "targets": targets, "secure": secure, "message": message}))
        return {"server": self.refuses}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, runtime_folder: Path) -> Iterator[ClientEngine]:
    """An engine of the reference's constructor, which has no cell."""
    folder = tmp_path_factory.mktemp("other") / "ws"
    client = LocalClient(client_name=SITE)
    engine = ClientEngine(client, LocalArguments(str(folder)), None, 2, **{**QUICK, "cell_wait": 0.2})
    try:
        yield ready(engine)
        check_record(engine.site.jobs.store)
    finally:
        engine.close()
        for _ in range(50):
            left = processes_with(str(folder))
            if not left:
                break
            for pid in left:
                kill(pid)


@pytest.fixture
def cell(plain: ClientEngine) -> MemoryCell:
    """A new cell for the engine."""
    found = MemoryCell()
    plain.initialize_comm(found)
    return found


@pytest.fixture
def since(plain: ClientEngine, cell: MemoryCell) -> Since:
    return Since(plain)


def send(engine: ClientEngine, name: str, timeout: float = 5.0, **options: Any) -> Shareable:
    return engine.send_aux_request(name, Shareable({"a": 1}), timeout, engine.new_context(), **options)


def test_an_engine_without_a_cell_waits_a_moment_and_then_says_so(tmp_path: Path, workspace: Path) -> None:
    engine = ClientEngine(
        LocalClient(client_name=SITE), LocalArguments(str(workspace)), None, 1, **{**QUICK, "cell_wait": 0.2}
    )
    try:
        since = Since(engine)
        assert engine.get_cell() is None
        assert engine.cell is None
        reply = send(engine, "t")
        assert reply.get_return_code() == ReturnCode.COMMUNICATION_ERROR
        assert "CELL_MISSING" in reply.get_header("__why__")
        assert [b["code"] for b in since.bodies("CallRefused")] == ["CELL_MISSING"]
        assert since.of("AuxRequested") == []
        name = "registered before there is a cell"
        engine.register_aux_message_handler(name, lambda topic, request, fl_ctx: Shareable({"early": 1}))
        found = MemoryCell()
        replies: list[Shareable] = []
        engine.initialize_comm(found)
        threading.Thread(target=lambda: replies.append(send(engine, "t"))).start()
        until(lambda: replies, 10)
        assert replies[0]["b"] == 2
        reply_message = found.handlers[(AUX, "*")](Message({"topic": name}, asked()))
        assert reply_message is not None
        assert reply_message.payload["early"] == 1
    finally:
        engine.close()


def test_requests_go_through_the_given_cell_and_are_recorded_as_such(
    plain: ClientEngine, cell: MemoryCell, since: Since
) -> None:
    name = topic()
    assert plain.get_cell() is cell
    reply = send(plain, name, secure=True, optional=True)
    assert reply["b"] == 2
    ((kind, told),) = cell.sent
    assert (kind, told["channel"], told["topic"], told["targets"]) == ("request", AUX, name, ["server"])
    assert (told["timeout"], told["secure"], told["optional"]) == (5.0, True, True)
    assert told["request"].payload["a"] == 1
    assert told["request"].payload.get_peer_prop("__identity_name__") == SITE
    (requested,) = since.bodies("AuxRequested")
    assert (requested["transport"], requested["secure"], requested["optional"]) == ("cell", True, True)
    assert agrees(since, name, reply) == ("AuxReplied", "ok")
    assert since.of("SendStarted") == []
    assert plain.site.jobs.store.client.keys("*:out:*") == []


def test_handlers_answer_what_comes_through_the_given_cell(plain: ClientEngine, cell: MemoryCell) -> None:
    name = topic()
    plain.register_aux_message_handler(name, lambda topic, request, fl_ctx: Shareable({"sum": request["a"] + 1}))
    answer = cell.handlers[(AUX, "*")](Message({"topic": name}, asked({"a": 1})))
    assert answer is not None
    assert (answer.return_code, answer.payload["sum"]) == (CellReturnCode.OK, 2)
    assert answer.payload.get_peer_prop("__identity_name__") == SITE


def test_another_cell_takes_the_place_of_the_first(plain: ClientEngine, cell: MemoryCell) -> None:
    newer = MemoryCell()
    plain.cell = newer
    assert send(plain, topic())["b"] == 2
    assert (len(cell.sent), len(newer.sent)) == (0, 1)
    assert (AUX, "*") in newer.handlers


@pytest.mark.parametrize("code", [*sorted(str(c) for c in CellReturnCode if c != "ok"), "a_code_of_nobodys"])
def test_a_failure_of_the_given_cell_is_the_callers_and_the_records(
    plain: ClientEngine, cell: MemoryCell, since: Since, code: str
) -> None:
    name = topic()
    cell.answer = lambda request: Message({"return_code": code, "error": "because"})
    reply = send(plain, name)
    assert reply.get_return_code() == SEEN.get(code, ReturnCode.ERROR)
    assert agrees(since, name, reply) == ("AuxFailed", code)


def boom(request: Message) -> Message:
    raise RuntimeError("the network is on fire")


GARBAGE: dict[str, Any] = {
    "raises": boom,
    "None": lambda request: None,
    "nobody": lambda request: {},
    "a list": lambda request: [Message()],
    "None of the target": lambda request: {"server": None},
    "text of the target": lambda request: {"server": "text"},
    "another target": lambda request: {"site-9": Message({"return_code": "comm_error", "error": "odd"})},
}


@pytest.mark.parametrize("what", GARBAGE)
def test_a_cell_that_raises_or_answers_garbage_is_a_communication_error_at_once(
    plain: ClientEngine, cell: MemoryCell, since: Since, what: str
) -> None:
    name = topic()
    cell.answer = GARBAGE[what]
    reply = send(plain, name)
    assert reply.get_return_code() == ReturnCode.COMMUNICATION_ERROR
    assert agrees(since, name, reply) == ("AuxFailed", "comm_error")


def test_an_answer_that_has_something_that_we_could_never_have_received_has_an_outcome_that_agrees(
    plain: ClientEngine, cell: MemoryCell, since: Since
) -> None:
    name = topic()
    cell.answer = lambda request: Message(payload=Shareable({"odd": object()}))
    agrees(since, name, send(plain, name))


@pytest.mark.parametrize("payload", [None, "text", {"a": 1}], ids=str)
def test_an_answer_that_is_no_shareable_is_an_error(
    plain: ClientEngine, cell: MemoryCell, since: Since, payload: Any
) -> None:
    name = topic()
    cell.answer = lambda request: Message(payload=payload)
    assert send(plain, name).get_return_code() == ReturnCode.ERROR
    outcome(since, name)


def test_what_expects_no_answer_goes_out_at_once(plain: ClientEngine, cell: MemoryCell, since: Since) -> None:
    name = topic()
    reply = plain.fire_and_forget_aux_request(name, Shareable({"a": 1}), plain.new_context(), secure=True)
    assert reply == Shareable()
    ((kind, told),) = cell.sent
    assert (kind, told["topic"], told["targets"], told["secure"]) == ("message", name, "server", True)
    assert agrees(since, name, reply) == ("AuxSent", "ok")


def test_what_the_cell_says_could_not_leave_is_not_recorded_as_sent(
    plain: ClientEngine, cell: MemoryCell, since: Since
) -> None:
    name = topic()
    cell.refuses = "target_unreachable"
    plain.fire_and_forget_aux_request(name, Shareable({"a": 1}), plain.new_context())
    assert outcome(since, name) == ("AuxFailed", "target_unreachable")


def test_L4_the_same_call_again_is_sent_once(plain: ClientEngine, cell: MemoryCell, since: Since) -> None:
    name = topic()
    for _ in range(3):
        with plain.acting_as("somebody", call_id=f"call-{name}"):
            reply = send(plain, name)
            assert reply.get_return_code() == ReturnCode.OK, reply
    assert len(cell.sent) == 1, "it went out again"
    assert len(since.of("AuxRequested")) == len(since.of(*ENDS)) == 1


def test_a_cell_that_overstays_its_time_leaves_one_outcome_and_the_caller_hears_of_no_success(
    plain: ClientEngine, cell: MemoryCell, since: Since
) -> None:
    name, go = topic(), threading.Event()
    cell.answer = lambda request: (go.wait(10), Message(payload=Shareable({"b": 2})))[1]
    replies: list[Shareable] = []
    asking = threading.Thread(target=lambda: replies.append(send(plain, name, timeout=0.3)))
    asking.start()
    until(lambda: since.of("AuxRequested"), 5)
    closed = outcome(since, name)  # the collector closes what is overdue
    go.set()
    asking.join(10)
    assert replies[0].get_return_code() != ReturnCode.OK
    assert "b" not in replies[0]
    assert outcome(since, name) == closed
    assert closed[0] in ("AuxOutcomeUnknown", "AuxFailed")


def test_L9_what_cannot_be_encoded_does_not_reach_the_cell(
    plain: ClientEngine, cell: MemoryCell, since: Since
) -> None:
    reply = plain.send_aux_request(topic(), Shareable({"odd": object()}), 5.0, plain.new_context())
    assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert cell.sent == []
    assert [b["code"] for b in since.bodies("CallRefused")] == ["PAYLOAD_INVALID"]
    assert since.of("AuxRequested") == []
