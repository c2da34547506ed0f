"""The consumer's side, row by row of the reference's table 5.4, and what ours does where that has defects."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine.aux.codes import WHY
from engine.constants import ReturnCode
from engine.context import FLContext
from engine.errors import ArgumentInvalid
from engine.shareable import Shareable, make_reply
from engine.streaming import ConsumerFactory, ObjectConsumer, StreamContext, StreamContextKey
from engine.streaming.chunk import Header
from engine.streaming.incoming import Arrival, Missing, Registered, Session
from engine.streaming.session import Sessions
from events.bodies.transfers import OfTransfer, TransferClosed, TransferOpened, TransferResumed
from events.errors import LogUnavailable

TX = "a" * 32
SENDER = "site-1"


class Listed:
    """A journal in memory."""

    def __init__(self) -> None:
        self.bodies: list[OfTransfer] = []
        self.refusals: list[tuple[str, str]] = []
        self.away = False

    def opened(self, body: TransferOpened, call: Any = None, job: Any = None) -> None:
        if self.away:
            raise LogUnavailable("the record is away")
        self.bodies.append(body)

    def note(self, body: OfTransfer, job: Any = None) -> None:
        self.bodies.append(body)

    def closed(self, body: TransferClosed, job: Any = None) -> bool:
        self.bodies.append(body)
        return True

    def refused(self, sender: str, tx: str, code: str, why: str) -> None:
        self.refusals.append((code, why))

    @property
    def ends(self) -> list[tuple[str, int]]:
        return [(body.code, body.objects) for body in self.bodies if isinstance(body, TransferClosed)]


class Consumer(ObjectConsumer):
    """Does with each object what the object says."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        self.seen: list[Any] = []
        self.rc: str | None = None

    def consume(self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self.factory.order.append("consume")
        self.seen.append(shareable.get("number"))
        how = shareable.get("how", "go on")
        if how == "raise":
            raise ValueError("the model is not ours")
        if how == "nonsense":
            return "yes"
        if how == "end":
            return False, make_reply(shareable.get("rc", ReturnCode.OK))
        return True, Shareable({"echo": shareable.get("number")}) if how == "echo" else None

    def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.factory.order.append("finalize")
        self.rc = stream_ctx[StreamContextKey.RC]
        if self.factory.how == "finalize raises":
            raise RuntimeError("no room")

    def resume(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> int | None:
        return self.factory.safe


class Factory(ConsumerFactory):
    def __init__(self, how: str = "", safe: int | None = None) -> None:
        self.how, self.safe = how, safe
        self.made: list[Consumer] = []
        self.order: list[str] = []

    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        if self.how == "raises":
            raise RuntimeError("no consumer today")
        if self.how == "none":
            return None
        if self.how == "wrong":
            return object()
        if self.how == "same" and self.made:
            return self.made[0]
        self.made.append(Consumer(self))
        return self.made[-1]

    def return_consumer(self, consumer: ObjectConsumer, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.order.append("return")


class Receiver:
    """Sessions with a factory, and a short way to give them objects."""

    def __init__(self, factory: Factory | None = None, **kwargs: Any) -> None:
        self.factory = factory or Factory()
        self.journal = Listed()
        self.done: list[dict[str, Any]] = []
        self.consumed = 0
        self.sessions = Sessions("server", FLContext, process="h:1:2", journal=self.journal)
        self.sessions.register("c", "t", self.factory, self._done, self._consumed, kwargs)

    def _done(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> Any:
        self.factory.order.append("done")
        self.done.append({"rc": stream_ctx[StreamContextKey.RC], **kwargs})
        if self.factory.how == "done raises":
            raise RuntimeError("nobody listens")
        return "the result"

    def _consumed(self, stream_ctx: StreamContext, fl_ctx: FLContext, **kwargs: Any) -> None:
        self.consumed += 1
        if self.factory.how == "consumed raises":
            raise RuntimeError("enough")

    def give(
        self, seq: Any, *, first: int | None = None, sender: str = SENDER, secure: bool = False, **given: Any
    ) -> Shareable:
        """One object; headers as the protocol has them, unless ``given`` says otherwise."""
        headers = {
            Header.TX_ID: TX,
            Header.SEQ: seq,
            Header.CHANNEL: "c",
            Header.TOPIC: "t",
            Header.CTX: {"a": 1} if seq == 0 else None,
        }
        headers |= given.pop("headers", {})
        obj = Shareable({"number": seq, **given})
        for name, value in headers.items():
            if value is not None:
                obj.set_header(name, value)
        context = None if first is None else lambda: {"a": 1}
        return self.sessions.take(Arrival(obj, sender, 10, b"d", secure, context=context, first=first))

    @property
    def seen(self) -> list[Any]:
        return [number for consumer in self.factory.made for number in consumer.seen]


def said(reply: Shareable) -> tuple[str, str]:
    return reply.get_return_code(), str(reply.get_header(WHY, ""))


# -- the rows of the table ------------------------------------------------------------------------------------


def test_without_a_transfer_id_an_object_is_bad() -> None:
    receiver = Receiver()
    assert receiver.give(0, headers={Header.TX_ID: None}).get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert not receiver.factory.made


@pytest.mark.parametrize("missing", [Header.TOPIC, Header.CHANNEL, Header.SEQ])
def test_without_topic_channel_or_number_an_object_ends_its_stream(missing: str) -> None:
    receiver = Receiver()
    receiver.give(0)
    assert receiver.give(1, headers={missing: None}).get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert receiver.done == [{"rc": ReturnCode.BAD_REQUEST_DATA}]
    assert receiver.sessions.count == 0


def test_when_the_run_is_over_a_stream_ends_as_aborted() -> None:
    receiver = Receiver()
    receiver.give(0)
    receiver.sessions.aborted.set()
    assert receiver.give(1).get_return_code() == ReturnCode.TASK_ABORTED
    assert receiver.done == [{"rc": ReturnCode.TASK_ABORTED}]


def test_where_nobody_takes_it_in_the_stream_is_left_as_it_is() -> None:
    receiver = Receiver()
    receiver.give(0)
    code, why = said(receiver.give(1, headers={Header.TOPIC: "other"}))
    assert (code, "c:other" in why) == (ReturnCode.EXECUTION_EXCEPTION, True)
    assert receiver.sessions.count == 1


@pytest.mark.parametrize(("channel", "topic"), [("c", "*"), ("*", "t"), ("*", "*")])
def test_a_wildcard_takes_in_what_has_nobody_of_its_own(channel: str, topic: str) -> None:
    sessions, factory = Sessions("server", FLContext), Factory()
    sessions.register(channel, topic, factory)
    receiver = Receiver()
    receiver.sessions, receiver.factory = sessions, factory
    assert receiver.give(0).get_return_code() == ReturnCode.OK
    assert receiver.seen == [0]


def test_a_first_object_that_comes_twice_is_consumed_once_and_hangs_nobody() -> None:
    receiver = Receiver()
    assert receiver.give(0, how="echo")["echo"] == 0
    again: list[Shareable] = []
    thread = threading.Thread(target=lambda: again.append(receiver.give(0, how="echo")), daemon=True)
    thread.start()
    thread.join(5)
    assert again[0]["echo"] == 0
    assert receiver.seen == [0]
    assert receiver.give(1).get_return_code() == ReturnCode.OK  # and the process lives on


@pytest.mark.parametrize("seq", [-1, True, "0", 1.0])
def test_a_number_that_is_none_is_bad(seq: Any) -> None:
    receiver = Receiver()
    receiver.give(0)
    assert receiver.give(seq).get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert receiver.seen == [0]


def test_a_stream_that_nobody_knows_begins_with_its_first_object() -> None:
    receiver = Receiver()
    code, why = said(receiver.give(3))
    assert (code, why) == (ReturnCode.BAD_REQUEST_DATA, "a stream begins with object 0, not 3")
    assert receiver.sessions.count == 0
    assert receiver.give(0).get_return_code() == ReturnCode.OK


@pytest.mark.parametrize("context", [{}, "text", 7])
def test_a_first_object_without_a_context_is_bad(context: Any) -> None:
    receiver = Receiver()
    assert receiver.give(0, headers={Header.CTX: context}).get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert not receiver.factory.made
    assert receiver.sessions.count == 0


@pytest.mark.parametrize(
    ("how", "words"),
    [("raises", "no consumer today"), ("none", "NoneType"), ("wrong", "object, not an ObjectConsumer")],
)
def test_a_factory_that_gives_no_consumer_is_said_so(how: str, words: str) -> None:
    receiver = Receiver(Factory(how))
    code, why = said(receiver.give(0))
    assert (code, words in why) == (ReturnCode.EXECUTION_EXCEPTION, True)
    assert said(receiver.give(0)) == (code, why)  # the same, where that reply got lost
    assert receiver.give(1).get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert receiver.journal.ends == [(ReturnCode.EXECUTION_EXCEPTION, 0)]


def test_a_factory_that_gives_one_consumer_to_two_streams_is_refused_the_second() -> None:
    receiver = Receiver(Factory("same"))
    receiver.give(0)
    code, why = said(receiver.give(0, headers={Header.TX_ID: "b" * 32}))
    assert (code, "another stream still has" in why) == (ReturnCode.EXECUTION_EXCEPTION, True)
    assert receiver.give(1).get_return_code() == ReturnCode.OK


@pytest.mark.parametrize(("factory", "given"), [(Factory(), {"how": "raise"}), (Factory("consumed raises"), {})])
def test_a_consumer_or_its_callback_that_raises_ends_the_stream(factory: Factory, given: dict[str, Any]) -> None:
    receiver = Receiver(factory)
    code, why = said(receiver.give(0, **given))
    assert (code, bool(why)) == (ReturnCode.EXECUTION_EXCEPTION, True)
    assert receiver.done == [{"rc": ReturnCode.EXECUTION_EXCEPTION}]


def test_a_consumer_that_returns_nonsense_ends_the_stream() -> None:
    receiver = Receiver()
    code, why = said(receiver.give(0, how="nonsense"))
    assert (code, "must return (bool, Shareable or None)" in why) == (ReturnCode.EXECUTION_EXCEPTION, True)


@pytest.mark.parametrize("rc", [ReturnCode.OK, ReturnCode.ERROR])
def test_a_consumer_that_has_enough_ends_the_stream_with_its_replys_code(rc: ReturnCode) -> None:
    receiver = Receiver(colour="red")
    receiver.give(0)
    reply = receiver.give(1, how="end", rc=str(rc))
    assert reply.get_return_code() == rc
    assert reply.get_header(Header.END_RESULT) == "the result"
    assert receiver.done == [{"rc": rc, "colour": "red"}]
    assert receiver.journal.ends == [(rc, 2)]


def test_a_consumer_without_a_reply_says_ok_and_goes_on() -> None:
    receiver = Receiver()
    assert receiver.give(0).get_return_code() == ReturnCode.OK
    assert (receiver.done, receiver.consumed) == ([], 1)


def test_at_the_end_consumer_callback_and_factory_are_told_in_this_order() -> None:
    receiver = Receiver()
    receiver.give(0, how="end")
    assert receiver.factory.order == ["consume", "finalize", "done", "return"]


def test_a_consumer_that_cannot_finalize_makes_it_an_exception_and_all_are_told() -> None:
    receiver = Receiver(Factory("finalize raises"))
    receiver.give(0, how="end")
    assert receiver.done == [{"rc": ReturnCode.EXECUTION_EXCEPTION}]
    assert receiver.factory.order[-1] == "return"


def test_a_callback_that_raises_at_the_end_is_logged_and_the_factory_gets_its_consumer() -> None:
    receiver = Receiver(Factory("done raises"))
    reply = receiver.give(0, how="end")
    assert (reply.get_return_code(), reply.get_header(Header.END_RESULT)) == (ReturnCode.OK, None)
    assert receiver.factory.order[-1] == "return"


def test_a_notice_that_it_is_over_ends_a_stream_as_aborted_and_an_unknown_one_is_no_error() -> None:
    receiver = Receiver()
    receiver.give(0)
    receiver.sessions.end("b" * 32, ReturnCode.TASK_ABORTED, "it is complete")
    receiver.sessions.end(TX, ReturnCode.TASK_ABORTED, "it is complete", complete=True)
    assert receiver.done == [{"rc": ReturnCode.TASK_ABORTED}]  # what the reference's consumers are told
    assert receiver.journal.ends == [(ReturnCode.OK, 1)]  # and what happened


# -- what the reference does not do -----------------------------------------------------------------------------


def test_what_comes_twice_is_consumed_once_and_answered_alike() -> None:
    receiver = Receiver()
    first = [receiver.give(seq, how="echo") for seq in range(5)]
    assert [receiver.give(seq, how="echo") for seq in (2, 4, 0)] == [first[2], first[4], first[0]]
    assert receiver.seen == [0, 1, 2, 3, 4]


def test_a_gap_is_noticed() -> None:
    receiver = Receiver()
    receiver.give(0)
    assert said(receiver.give(2)) == (ReturnCode.BAD_REQUEST_DATA, "object 1 is missing before 2")
    assert receiver.give(1).get_return_code() == ReturnCode.OK
    assert receiver.seen == [0, 1]


def test_a_gap_is_waited_for_where_what_is_missing_comes_again() -> None:
    receiver = Receiver()
    receiver.give(0, first=0)
    with pytest.raises(Missing):
        receiver.give(2, first=0)
    receiver.give(1, first=1)
    receiver.give(2, first=1)
    assert receiver.seen == [0, 1, 2]


def test_an_object_for_a_stream_that_is_over_is_bad() -> None:
    receiver = Receiver()
    receiver.give(0, how="end")
    assert said(receiver.give(1)) == (ReturnCode.BAD_REQUEST_DATA, "the stream is over")


def test_nobody_else_puts_an_object_into_a_stream() -> None:
    receiver = Receiver()
    receiver.give(0)
    code, why = said(receiver.give(1, sender="site-9"))
    assert (code, why) == (ReturnCode.BAD_REQUEST_DATA, "the stream is site-1's")
    assert receiver.journal.refusals


def test_what_is_not_sealed_has_no_place_in_a_sealed_stream() -> None:
    receiver = Receiver()
    receiver.give(0, secure=True)
    assert receiver.give(1, secure=False).get_return_code() == ReturnCode.BAD_REQUEST_DATA
    assert receiver.give(1, secure=True).get_return_code() == ReturnCode.OK
    assert receiver.seen == [0, 1]


def test_what_went_back_to_the_sender_is_counted() -> None:
    receiver = Receiver()
    receiver.give(0, how="echo")
    receiver.give(1, how="end")
    (closed,) = [body for body in receiver.journal.bodies if isinstance(body, TransferClosed)]
    assert closed.left[SENDER] > 50


def test_what_is_kept_of_replies_is_bounded() -> None:
    session = Session(TX, SENDER, StreamContext(), Registered(Factory(), None, None, {}))
    for number in range(1000):
        session.remember(number, make_reply(ReturnCode.OK), 2**20)
    assert len(session.replies) == 16
    session.forget()
    assert list(session.replies) == [999]


def test_a_consumer_that_cannot_go_on_is_finalized_and_given_back() -> None:
    receiver = Receiver(Factory(safe=None))
    receiver.give(5, first=5)
    assert receiver.factory.order == ["finalize", "done", "return"]


def test_a_stream_that_the_next_process_can_go_on_with_stays_open_on_the_record() -> None:
    receiver = Receiver(Factory(safe=1))
    receiver.give(0, first=0)
    receiver.sessions.close()
    assert receiver.factory.order[-3:] == ["finalize", "done", "return"]
    assert receiver.journal.ends == []


def test_a_consumer_that_hangs_is_left_to_itself_when_all_is_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.streaming.session.PATIENCE", 0.2)
    receiver, go, began = Receiver(), threading.Event(), threading.Event()

    def hang(*given: Any) -> Any:
        began.set()
        go.wait(20)
        return True, None

    receiver.give(0)
    receiver.factory.made[0].consume = hang  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: receiver.give(1), daemon=True)
    thread.start()
    began.wait(5)
    receiver.sessions.close()
    go.set()
    thread.join(5)
    assert receiver.journal.ends == [(ReturnCode.TASK_ABORTED, 1)]


def test_a_consumer_can_end_its_stream_from_elsewhere() -> None:
    receiver = Receiver()
    receiver.give(0)
    session = receiver.sessions.get(TX)
    assert session is not None
    session.ctx[StreamContextKey.END_STREAM](ReturnCode.TIMEOUT, FLContext())
    assert receiver.done == [{"rc": ReturnCode.TIMEOUT}]


def test_a_stream_whose_begin_cannot_be_recorded_does_not_begin() -> None:
    receiver = Receiver()
    receiver.journal.away = True
    with pytest.raises(LogUnavailable):
        receiver.give(0)
    assert (receiver.factory.made, receiver.sessions.count) == ([], 0)
    receiver.journal.away = False
    assert receiver.give(0).get_return_code() == ReturnCode.OK


def test_a_new_process_goes_on_where_its_consumer_is_safe() -> None:
    receiver = Receiver(Factory(safe=7))
    assert receiver.give(5, first=5).get_return_code() == ReturnCode.OK
    receiver.give(6, first=5)
    receiver.give(7, first=5)
    assert receiver.seen == [7]  # 5 and 6 were safe already
    assert [b.at for b in receiver.journal.bodies if isinstance(b, TransferResumed)] == [7]


def test_a_stream_of_which_nothing_was_answered_begins_with_its_first_object_whatever_comes_before() -> None:
    receiver = Receiver(Factory(safe=None))
    with pytest.raises(Missing):
        receiver.give(1, first=0)
    receiver.give(0, first=0)
    receiver.give(1, first=0)
    assert receiver.seen == [0, 1]


@pytest.mark.parametrize("safe", [None, 3])
def test_a_consumer_that_lost_what_it_had_ends_the_stream_and_says_why(safe: int | None) -> None:
    receiver = Receiver(Factory(safe=safe))
    code, why = said(receiver.give(5, first=5))
    assert (code, "the consumer cannot go on" in why) == (ReturnCode.EXECUTION_EXCEPTION, True)
    assert receiver.journal.ends == [("CONSUMER_LOST", 0)]


def test_a_stream_that_goes_on_waits_for_a_factory_that_is_about_to_come() -> None:
    receiver = Receiver()
    receiver.sessions = Sessions("server", FLContext)
    for seq in (5, 0):
        with pytest.raises(Missing):
            receiver.give(seq, first=seq)
    assert receiver.give(0).get_return_code() == ReturnCode.EXECUTION_EXCEPTION  # where nothing comes again


def test_all_that_is_open_ends_with_the_process() -> None:
    receiver = Receiver()
    receiver.give(0)
    receiver.give(0, headers={Header.TX_ID: "b" * 32})
    receiver.sessions.close()
    assert [end["rc"] for end in receiver.done] == [ReturnCode.TASK_ABORTED] * 2
    assert receiver.sessions.count == 0


# -- registration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", "t", Factory()), "channel"),
        (("c", "", Factory()), "topic"),
        ((7, "t", Factory()), "channel"),
        (("c", None, Factory()), "topic"),
        (("c", "t", object()), "factory"),
        (("c", "t", None), "factory"),
        (("c", "t", Factory(), 7), "stream_done_cb"),
        (("c", "t", Factory(), None, "no"), "consumed_cb"),
    ],
)
def test_a_registration_that_makes_no_sense_is_refused(arguments: tuple[Any, ...], field: str) -> None:
    with pytest.raises(ArgumentInvalid) as raised:
        Sessions("server", FLContext).register(*arguments)
    assert raised.value.context["field"] == field


def test_a_second_factory_for_the_same_is_refused_with_the_name_of_the_first() -> None:
    receiver = Receiver()
    with pytest.raises(ArgumentInvalid, match="c:t has a factory already: Factory"):
        receiver.sessions.register("c", "t", Factory())
