"""The consumer's side: who consumes which stream, and what is said of each object (reference 5.4)."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from engine import codec
from engine.aux.codes import WHY
from engine.cell.protocol import check_name, root_of
from engine.constants import ReturnCode
from engine.context import FLContext
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid
from engine.shareable import Shareable, make_reply
from engine.streaming.chunk import Header, failure, is_tx
from engine.streaming.incoming import Arrival, Callback, Missing, Registered, Session
from engine.streaming.journal import Journal
from engine.streaming.spec import ConsumerFactory, ObjectConsumer, StreamContext, StreamContextKey
from events.bodies.transfers import TransferClosed, TransferOpened, TransferProgress, TransferResumed
from events.errors import FlightlogError

log = logging.getLogger("flightlog.stream")

KEPT_ENDS = 1000  # streams that are over
SAID_EVERY = 1.0
PATIENCE = 5.0  # seconds that a consumer has to return, when all is shut down
REGISTER_WITHIN = 5.0  # seconds after the start within which a stream waits for its factory
CONSUMER_LOST = "CONSUMER_LOST"
PRODUCER_LOST = "PRODUCER_LOST"


class _Ended(NamedTuple):
    code: str
    why: str
    result: Any = None


class Sessions:
    """All streams that come into a process.

    Args:
        own: FQCN.
        contexts: makes a context for each object.
        process: who we are, for the record: host:pid:start ticks.
        journal: records them, where there is a record.
        digest: keyed digest of a whole, where there is a record.
        stall: seconds without an object after which a producer gives a stream up.
    """

    def __init__(
        self,
        own: str,
        contexts: Callable[[], FLContext],
        *,
        process: str = "",
        journal: Journal | None = None,
        digest: Callable[[bytes], str] | None = None,
        stall: float = 60.0,
    ) -> None:
        self.own = own
        self._contexts = contexts
        self._process = process
        self._journal = journal
        self._digest = digest
        self.stall = stall
        self._registry: dict[tuple[str, str], Registered] = {}
        self._open: dict[str, Session] = {}
        self._ended: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()
        self._since = time.monotonic()
        #: Streams that were left open for the next process.
        self._left: set[str] = set()
        #: The run is over: nothing more is taken in.
        self.aborted = threading.Event()

    # -- registration ------------------------------------------------------------------------------

    def register(
        self,
        channel: str,
        topic: str,
        factory: ConsumerFactory,
        stream_done_cb: Callback | None = None,
        consumed_cb: Callback | None = None,
        cb_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Have a factory's consumers take in the streams of a channel and topic; ``*`` is any.

        Raises:
            ArgumentTypeInvalid, ArgumentInvalid: an argument, or the channel and topic have a factory.
        """
        check_name("channel", channel)
        check_name("topic", topic)
        if not isinstance(factory, ConsumerFactory):
            raise ArgumentTypeInvalid(
                f"factory must be ConsumerFactory but got {type(factory).__name__}", "derive from it", field="factory"
            )
        for name, callback in (("stream_done_cb", stream_done_cb), ("consumed_cb", consumed_cb)):
            if callback is not None and not callable(callback):
                raise ArgumentTypeInvalid(
                    f"{name} must be callable but got {type(callback).__name__}", "give a function", field=name
                )
        with self._lock:
            known = self._registry.get((channel, topic))
            if known is not None:
                raise ArgumentInvalid(
                    f"{channel}:{topic} has a factory already: {type(known.factory).__name__}",
                    "use another topic",
                    field="topic",
                )
            self._registry[(channel, topic)] = Registered(factory, stream_done_cb, consumed_cb, dict(cb_kwargs or {}))

    def _found(self, channel: str, topic: str) -> Registered | None:
        keys = ((channel, topic), (channel, "*"), ("*", topic), ("*", "*"))
        with self._lock:
            return next((self._registry[key] for key in keys if key in self._registry), None)

    @property
    def count(self) -> int:
        """Streams that are open."""
        with self._lock:
            return len(self._open)

    def get(self, tx: str) -> Session | None:
        """An open stream."""
        with self._lock:
            return self._open.get(tx)

    # -- objects -----------------------------------------------------------------------------------

    def take(self, arrival: Arrival) -> Shareable:
        """Have an object consumed, and give the reply.

        Raises:
            FlightlogError: that a stream begins cannot be recorded, so it does not; it is to come again.
            Missing: so are this object, and one before it.
        """
        obj = arrival.obj
        tx = obj.get_header(Header.TX_ID)
        channel, topic, seq = (obj.get_header(n) for n in (Header.CHANNEL, Header.TOPIC, Header.SEQ))
        if not isinstance(tx, str) or not tx:
            return self._bad(arrival, "?", f"{Header.TX_ID} is missing")
        if not all(isinstance(text, str) and text for text in (channel, topic)) or not _is_number(seq):
            self.end(tx, ReturnCode.BAD_REQUEST_DATA, "an object without topic, channel or number came")
            return self._bad(arrival, tx, "topic, channel or number is missing")
        if self.aborted.is_set():
            if arrival.first is not None and (tx in self._left or self._goes_on(tx)):
                raise Missing  # the next process takes it in
            self.end(tx, ReturnCode.TASK_ABORTED, "the run is over")
            return make_reply(ReturnCode.TASK_ABORTED)
        registered = self._found(channel, topic)
        waits = arrival.first is not None and time.monotonic() - self._since < REGISTER_WITHIN
        if registered is None and waits:
            raise Missing  # we have just come up, and who consumes it is about to say so
        if registered is None:
            log.error("nobody takes in streams of %s:%s", channel[:100], topic[:100])
            return failure(ReturnCode.EXECUTION_EXCEPTION, f"nobody takes in streams of {channel}:{topic}"[:300])
        session, fresh = self._session(tx, arrival, registered)
        with session.lock:
            if fresh and (refusal := self._begin(session, arrival, seq)) is not None:
                with self._lock:
                    self._open.pop(tx, None)
                return refusal
            return self._taken(session, arrival, seq)

    def _session(self, tx: str, arrival: Arrival, registered: Registered) -> tuple[Session, bool]:
        """The stream's session, and whether it is a new one; its lock is held where it is."""
        with self._lock:
            known = self._open.get(tx) or self._ended.get(tx)
            if known is not None:
                return known, False
            session = Session(tx, arrival.sender, StreamContext(), registered, secure=arrival.secure)
            session.lock.acquire()  # nobody gets it before it has a consumer
            self._open[tx] = session
        return session, True

    def _begin(self, session: Session, arrival: Arrival, seq: int) -> Shareable | None:
        """Give a new stream its consumer; a reply that says why not, where there is none."""
        try:
            return self._begun(session, arrival, seq)
        except BaseException:
            with self._lock:
                self._open.pop(session.tx, None)
            raise
        finally:
            session.lock.release()

    def _begun(self, session: Session, arrival: Arrival, seq: int) -> Shareable | None:
        obj, tx = arrival.obj, session.tx
        if seq > 0 and arrival.first == 0:
            raise Missing  # nothing of it was ever answered: it begins with its first object, which is on its way
        given = obj.get_header(Header.CTX) if seq == 0 else arrival.context() if arrival.context else None
        if not isinstance(given, dict) or not given:
            why = "the first object has no context" if seq == 0 else f"a stream begins with object 0, not {seq}"
            return self._bad(arrival, tx, why)
        if seq < 0:
            return self._bad(arrival, tx, f"there is no object {seq}")
        fl_ctx = self._contexts()
        session.ctx.update(given)
        session.ctx |= {
            StreamContextKey.CHANNEL: obj.get_header(Header.CHANNEL),
            StreamContextKey.TOPIC: obj.get_header(Header.TOPIC),
            StreamContextKey.TX_ID: tx,
            StreamContextKey.SENDER: arrival.sender,
            StreamContextKey.END_STREAM: lambda rc, fl_ctx: self.end(tx, str(rc), "the consumer ended it"),
        }
        if seq > 0:
            session.ctx[StreamContextKey.ANSWERED] = arrival.first or 0
        if self._journal is not None:
            self._journal.opened(self._opened(session))
        why, code = self._give_consumer(session, fl_ctx), ReturnCode.EXECUTION_EXCEPTION.value
        if not why and seq > 0 and (why := self._gone_on(session, arrival, fl_ctx)):
            code = CONSUMER_LOST
        if not why:
            return None
        session.next = seq + 1
        session.remember(seq, failure(ReturnCode.EXECUTION_EXCEPTION, why))
        self._end(session, code, why)
        return session.replies[seq][0]

    def _give_consumer(self, session: Session, fl_ctx: FLContext) -> str:
        """A consumer for a new stream; why there is none, or ""."""
        try:
            consumer = session.registered.factory.get_consumer(session.ctx, fl_ctx)
        except Exception as error:
            log.exception("a stream of %s has no consumer", session.sender)
            return f"{type(error).__name__}: {error}"[:300]
        if why := self._unfit(consumer):
            return why
        session.consumer = consumer
        return ""

    def _gone_on(self, session: Session, arrival: Arrival, fl_ctx: FLContext) -> str:
        """Go on with a stream of a process that is gone; why that cannot be, or ""."""
        assert session.consumer is not None  # noqa: S101 - it was just given
        try:
            at = session.consumer.resume(session.ctx, fl_ctx)
        except Exception as error:
            log.exception("the consumer of %s could not say what is safe", session.tx)
            return f"{type(error).__name__}: {error}"[:300]
        if at is None or not _is_number(at) or at < (arrival.first or 0):
            return "the process that consumed it died, and the consumer cannot go on"
        session.next, session.from_start = at, False
        if self._journal is not None:
            why = "its consumer is another process now"
            self._journal.note(TransferResumed(id=session.tx, direction="in", at=at, why=why))
        return ""

    def _unfit(self, consumer: object) -> str:
        """Why what a factory made cannot consume a stream, or ""."""
        if not isinstance(consumer, ObjectConsumer):
            return f"the factory made a {type(consumer).__name__}, not an ObjectConsumer"
        with self._lock:
            if any(consumer is other.consumer for other in self._open.values()):
                return "the factory gave a consumer that another stream still has"
        return ""

    def _taken(self, session: Session, arrival: Arrival, seq: int) -> Shareable:
        if seq < 0:
            return self._bad(arrival, session.tx, f"there is no object {seq}")
        if seq < session.next:  # it came again: its first reply got lost
            return session.replies[seq][0] if seq in session.replies else make_reply(ReturnCode.OK)
        if session.over or session.consumer is None:
            return self._bad(arrival, session.tx, "the stream is over")
        if arrival.sender != session.sender:
            return self._bad(arrival, session.tx, f"the stream is {session.sender}'s")
        if arrival.secure != session.secure:
            return self._bad(arrival, session.tx, "some of its objects are sealed, and this one is not like them")
        if seq > session.next and arrival.first is not None:
            raise Missing
        if seq > session.next:
            return self._bad(arrival, session.tx, f"object {session.next} is missing before {seq}")
        session.moved = time.monotonic()
        more, reply = self._consumed(session, arrival.obj)
        session.next += 1
        session.consumed += 1
        session.bytes += arrival.size
        session.whole.update(arrival.sha256)
        ended = None
        if not more and not session.over:
            ended = self._told(session, reply.get_return_code(), str(reply.get_header(WHY, "")))
            if ended.result is not None:
                reply.set_header(Header.END_RESULT, ended.result)
        session.remember(seq, reply, self._size(reply))
        if ended is not None:
            self._close(session, ended.code, ended.why)
        self._progress(session)
        return reply

    def _size(self, reply: Shareable) -> int:
        """Bytes of a reply; one that cannot be sent has none."""
        try:
            return len(codec.encode(reply))
        except FlightlogError:
            return 0

    def _consumed(self, session: Session, obj: Shareable) -> tuple[bool, Shareable]:
        fl_ctx = self._contexts()
        assert session.consumer is not None  # noqa: S101 - looked at before
        try:
            answer = session.consumer.consume(obj, session.ctx, fl_ctx)
            if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Shareable | None):
                raise TypeError(f"consume must return (bool, Shareable or None) but got {answer!r:.100}")
            if session.registered.consumed is not None:
                session.registered.consumed(session.ctx, fl_ctx, **session.registered.kwargs)
        except Exception as error:
            log.exception("the consumer of %s raised", session.tx)
            return False, failure(ReturnCode.EXECUTION_EXCEPTION, f"{type(error).__name__}: {error}"[:300])
        more, reply = answer
        return bool(more) and not session.over, reply if reply is not None else make_reply(ReturnCode.OK)

    # -- the end -----------------------------------------------------------------------------------

    def end(self, tx: str, code: str, why: str, *, complete: bool = False) -> None:
        """End a stream from here; nothing happens where it is over.

        Args:
            tx: the transfer's id.
            code: what the consumer is told.
            why: in words.
            complete: the producer came to its end. The consumer is told TASK_ABORTED all the same, as the
                reference's are, where it did not end the stream itself; the record says OK.
        """
        session = self.get(tx)
        if session is not None:
            with session.lock:
                self._end(session, code, why, complete=complete)

    def _end(self, session: Session, code: str, why: str, *, complete: bool = False) -> None:
        if not session.over:
            ended = self._told(session, code, why)
            done = complete and ended.code == ReturnCode.TASK_ABORTED
            self._close(session, ReturnCode.OK if done else ended.code, ended.why)

    def _told(self, session: Session, code: str, why: str) -> _Ended:
        """Consumer, callback and factory are told, in this order; what the callback made of it."""
        session.over = True
        fl_ctx, result = self._contexts(), None
        session.ctx[StreamContextKey.RC] = code
        consumer, registered = session.consumer, session.registered
        if consumer is None:
            return _Ended(code, why)
        try:
            consumer.finalize(session.ctx, fl_ctx)
        except Exception as error:
            log.exception("the consumer of %s could not finalize", session.tx)
            code = session.ctx[StreamContextKey.RC] = ReturnCode.EXECUTION_EXCEPTION.value
            why = f"{type(error).__name__}: {error}"[:300]
        try:
            if registered.done is not None:
                result = registered.done(session.ctx, fl_ctx, **registered.kwargs)
        except Exception:
            log.exception("the callback for the end of %s raised", session.tx)
        try:
            registered.factory.return_consumer(consumer, session.ctx, fl_ctx)
        except Exception:
            log.exception("the factory did not take back the consumer of %s", session.tx)
        return _Ended(code, why, result)

    def _close(self, session: Session, code: str, why: str) -> None:
        with self._lock:
            self._open.pop(session.tx, None)
            self._ended[session.tx] = session
            while len(self._ended) > KEPT_ENDS:
                self._ended.popitem(last=False)
        if self._journal is not None:
            digest = self._digest(session.whole.digest()) if self._digest and session.from_start else None
            body = TransferClosed(
                id=session.tx,
                direction="in",
                code=code[:64],
                why=why[:500],
                objects=session.consumed,
                bytes=session.bytes,
                ms=int((time.monotonic() - session.began) * 1000),
                left={session.sender: session.replied},
                at_least=not session.from_start,
                digest=digest,
            )
            self._journal.closed(body)
        session.forget()

    def _goes_on(self, tx: str) -> bool:
        """Whether another process can go on with a stream: its consumer says what is safe."""
        session = self.get(tx)
        consumer = session.consumer if session is not None else None
        return consumer is not None and type(consumer).resume is not ObjectConsumer.resume

    def close(self, why: str = "the receiver was shut down") -> None:
        """End all streams; those that the next process can go on with stay open on the record.

        A consumer that hangs is left to itself.
        """
        self.aborted.set()
        with self._lock:
            left = list(self._open.values())
        for session in left:
            goes_on = self._goes_on(session.tx)
            held = session.lock.acquire(timeout=PATIENCE)
            try:
                if session.over:
                    continue
                if not held:
                    session.over = True
                    self._close(session, ReturnCode.TASK_ABORTED, f"{why}, and the consumer did not return")
                elif goes_on:
                    self._told(session, ReturnCode.TASK_ABORTED, why)
                    with self._lock:
                        self._open.pop(session.tx, None)
                        self._left.add(session.tx)
                    session.forget()
                else:
                    self._end(session, ReturnCode.TASK_ABORTED, why)
            finally:
                if held:
                    session.lock.release()

    # -- on the record -------------------------------------------------------------------------------

    def _opened(self, session: Session) -> TransferOpened:
        ctx = session.ctx
        return TransferOpened(
            id=session.tx if is_tx(session.tx) else session.tx[:64],
            direction="in",
            channel=ctx[StreamContextKey.CHANNEL][:500],
            topic=ctx[StreamContextKey.TOPIC][:500],
            sender=session.sender[:500],
            targets=[self.own],
            secure=session.secure,
            inside=root_of(session.sender) == root_of(self.own),
            window=1,
            stall=self.stall,
            process=self._process,
        )

    def _progress(self, session: Session) -> None:
        now = time.monotonic()
        if self._journal is None or session.over or now - session.said < SAID_EVERY:
            return
        if session.said == 0.0:  # the first second says nothing that its opening did not
            session.said = now
            return
        session.said = now
        body = TransferProgress(id=session.tx, direction="in", objects=session.consumed, bytes=session.bytes)
        self._journal.note(body)

    def _bad(self, arrival: Arrival, tx: str, why: str) -> Shareable:
        """Refuse an object, in words, and on the record."""
        log.error("an object of stream %s from %s was refused: %s", tx[:64], arrival.sender[:100], why)
        if self._journal is not None:
            self._journal.refused(arrival.sender, tx, ReturnCode.BAD_REQUEST_DATA, why)
        return failure(ReturnCode.BAD_REQUEST_DATA, why)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
