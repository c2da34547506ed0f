"""Streams over another transport, by the reference's protocol: both ends of it, through a cell that loops back."""

from __future__ import annotations

from typing import Any

import pytest

from engine.cell.message import CellChannel, Message, MessageHeaderKey
from engine.client_engine import ClientEngine
from engine.constants import ReturnCode
from engine.egress import egress
from engine.errors import ArgumentInvalid, CallTimeout
from engine.shareable import Shareable, make_reply
from engine.streaming.chunk import Header, Topic
from events.read import read
from tests.integration.streams import Numbers, Taking
from tests.integration.test_aux import Since
from tests.integration.test_aux_other_cell import MemoryCell, plain
from tests.support import SITE, until

__all__ = ["plain"]  # a fixture
_topics = iter(range(10**6))


class Looped(MemoryCell):
    """What is sent comes back in, as from somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.topics: list[str] = []
        self.answer = self._loop

    def _loop(self, request: Message) -> Any:
        topic = self.sent[-1][1]["topic"]
        self.topics.append(topic)
        message = Message({**request.headers, MessageHeaderKey.TOPIC: topic}, request.payload)
        return self.handlers[(CellChannel.AUX_COMMUNICATION, "*")](message)

    def fire_and_forget(
        self, channel: str, topic: str, targets: Any, message: Message, *more: Any, **rest: Any
    ) -> Any:
        self.sent.append(("message", {"topic": topic}))
        self._loop(message)
        return {}


@pytest.fixture
def cell(plain: ClientEngine) -> Looped:
    made = Looped()
    plain.initialize_comm(made)
    return made


@pytest.fixture
def since(plain: ClientEngine) -> Since:
    return Since(plain)


def taking(engine: ClientEngine, does: Any = None, **more: Any) -> tuple[str, Taking]:
    topic, factory = f"topic-{next(_topics)}", Taking(does)
    engine.register_stream_processing("c", topic, factory, **more)
    return topic, factory


def stream(engine: ClientEngine, topic: str, producer: Any, *targets: str) -> tuple[str, Any]:
    return engine.stream_objects("c", topic, {"a": 1}, list(targets or ("server",)), producer, engine.new_context())


def test_objects_are_aux_requests_with_the_references_headers(
    plain: ClientEngine, cell: Looped, since: Since
) -> None:
    topic, factory = taking(plain, lambda o: (True, Shareable({"echo": o["number"]})))
    producer = Numbers(5)
    assert stream(plain, topic, producer) == (ReturnCode.OK, None)
    assert factory.made[0].numbers == [0, 1, 2, 3, 4]
    assert [one["server"]["echo"] for one in producer.replies] == [0, 1, 2, 3, 4]
    assert producer.most == 1
    assert cell.topics == [Topic.REQUEST] * 5 + [Topic.ABORT]
    first = cell.sent[0][1]["request"].payload
    assert (first.get_header(Header.SEQ), first.get_header(Header.CTX)["a"]) == (0, 1)
    assert (first.get_header(Header.CHANNEL), first.get_header(Header.TOPIC)) == ("c", topic)
    assert factory.made[0].rc == ReturnCode.TASK_ABORTED
    (closed,) = [e for e in since.of("TransferClosed") if e.body["direction"] == "out"]
    assert (closed.body["code"], closed.body["objects"], closed.body["acknowledged"]) == ("OK", 5, {"server": 5})
    rows = [r for r in egress(read(plain.site.jobs.store), SITE) if r["ms"] >= int(closed.ms) - 5000]
    assert [r["topic"] for r in rows if r["topic"] in (topic, Topic.REQUEST, Topic.ABORT)] == [topic]


def test_several_targets_are_asked_at_the_same_time_and_one_that_fails_is_named(
    plain: ClientEngine, cell: Looped
) -> None:
    topic, _ = taking(plain)
    whole = cell.answer
    cell.answer = lambda request: Message(payload=make_reply(ReturnCode.OK))
    producer = Numbers(3)
    assert stream(plain, topic, producer, "server", "site-2") == (ReturnCode.OK, None)
    assert producer.codes == [{"server": "OK", "site-2": "OK"}] * 3
    cell.answer = whole


def test_a_consumer_that_has_enough_gives_its_result(plain: ClientEngine, cell: Looped) -> None:
    topic, _ = taking(
        plain, lambda o: (o["number"] < 2, make_reply(ReturnCode.OK)), stream_done_cb=lambda ctx, fl_ctx: "kept"
    )
    producer = Numbers(10, ends=lambda r: r["server"].get_header(Header.END_RESULT))
    assert stream(plain, topic, producer) == (ReturnCode.OK, "kept")


def test_a_target_that_does_not_answer_is_told_to_the_producer(plain: ClientEngine, cell: Looped) -> None:
    cell.answer = lambda request: Message({MessageHeaderKey.RETURN_CODE: "timeout"})
    producer = Numbers(3, ends=lambda r: False)
    assert stream(plain, "t", producer) == (ReturnCode.ERROR, False)
    assert producer.codes == [{"server": ReturnCode.TIMEOUT}]


def test_a_producer_that_makes_no_object_ends_it_and_the_consumer_is_told(plain: ClientEngine, cell: Looped) -> None:
    topic, factory = taking(plain)
    made = [(Shareable({"number": 0}), 5.0), (Shareable({"number": 1}), 5)]
    with pytest.raises(ArgumentInvalid, match="must be float"):
        stream(plain, topic, Numbers(2, makes=lambda n: made[n]))
    until(factory.made[0].over.is_set)


def test_a_notice_without_an_id_is_bad_and_one_for_an_unknown_stream_is_not(
    plain: ClientEngine, cell: Looped
) -> None:
    for headers, code in (({}, ReturnCode.BAD_REQUEST_DATA), ({Header.TX_ID: "x"}, ReturnCode.OK)):
        notice = make_reply(ReturnCode.TASK_ABORTED, headers)
        reply = plain.send_aux_request(Topic.ABORT, notice, 5.0, plain.new_context())
        assert reply.get_return_code() == code


def test_the_topics_of_streams_are_nobody_elses(plain: ClientEngine, cell: Looped) -> None:
    with pytest.raises(ArgumentInvalid, match="already registered"):
        plain.register_aux_message_handler(Topic.REQUEST, lambda topic, request, fl_ctx: Shareable())


def test_the_same_call_again_streams_nothing_and_says_what_came_of_the_first(
    plain: ClientEngine, cell: Looped
) -> None:
    topic, factory = taking(plain)
    for count in (3, 0):
        producer = Numbers(3)
        with plain.acting_as("anna", call_id="0190aaaa-0000-7000-8000-000000000001"):
            assert stream(plain, topic, producer) == (ReturnCode.OK, None)
        assert producer.made == count
    assert len(factory.made) == 1


def test_the_same_call_again_while_it_is_under_way_is_told_so(plain: ClientEngine, cell: Looped) -> None:
    topic, _ = taking(plain)
    call_id = "0190aaaa-0000-7000-8000-000000000002"

    def again(number: int) -> Any:
        with plain.acting_as("anna", call_id=call_id), pytest.raises(CallTimeout, match="is under way"):
            stream(plain, topic, Numbers(1))
        return Shareable({"number": number}), 5.0

    with plain.acting_as("anna", call_id=call_id):
        stream(plain, topic, Numbers(1, makes=again))
