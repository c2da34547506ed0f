"""What comes in over the fabric: references are read, and each stream's objects consumed on a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any

from engine.cell.keys import KeyRing
from engine.cell.message import CODE, CellReturnCode, Message, failed
from engine.cell.wire import Envelope, envelope_of, unpack
from engine.constants import ReturnCode
from engine.errors import ArgumentInvalid, KeyUnknown, PayloadInvalid, SealBroken
from engine.shareable import Shareable
from engine.streaming.chunk import COMPLETE, SHARED, Header, Topic, answer_frame
from engine.streaming.fabric import ALIVE_MS, CONTEXT, END, Reference, StreamFabric
from engine.streaming.incoming import Arrival, Missing
from engine.streaming.journal import Journal
from engine.streaming.session import PRODUCER_LOST, Sessions
from events.errors import FlightlogError, LogUnavailable

log = logging.getLogger("flightlog.stream")

STREAMS = 512  # that are taken in at the same time
MOST = 64  # references of one look
LOOK = 0.2  # seconds
PATIENCE = 1.5  # times the stall after which a stream is over with which a fabric went
IDLE = 1.0  # seconds without an object, until somebody looks whether the producer lives


class Intake:
    """Takes in the streams for one address.

    Args:
        fabric: a connection.
        sessions: who consumes them.
        ring: keys, for sealed ones.
        journal: records what is refused.
        listening: whether the address is ours.
    """

    def __init__(
        self,
        fabric: StreamFabric,
        sessions: Sessions,
        ring: KeyRing | None = None,
        journal: Journal | None = None,
        listening: Any = None,
    ) -> None:
        self.fabric = fabric
        self.sessions = sessions
        self.ring = ring
        self.journal = journal
        self._listening = listening or (lambda: True)
        self._threads: dict[str, _Stream] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._read, name="stream-read", daemon=True)

    def start(self) -> None:
        """Read from now on; a fabric that is away is waited for."""
        self._reader.start()

    def stop(self) -> None:
        """End all streams, and read no more."""
        self._stop.set()
        if self._reader.is_alive():
            self._reader.join(2)
        with self._lock:
            left = list(self._threads.values())
        self.sessions.close()
        for stream in left:
            stream.put(None)
        for stream in left:
            stream.join(2)
        self.fabric.close()

    def _read(self) -> None:
        away = False
        while not self._stop.is_set():
            try:
                if not self._listening():
                    self._stop.wait(LOOK)
                    continue
                for reference in self.fabric.read(self.sessions.own, LOOK, MOST):
                    self._give(reference)
                away = False
            except LogUnavailable as error:
                if not away:
                    log.warning("streams wait: %s", error)
                away = True
                self._stop.wait(LOOK)
            except Exception:
                log.exception("a reference could not be taken in")
                self._stop.wait(LOOK)

    def _give(self, reference: Reference) -> None:
        """To the thread of its stream."""
        with self._lock:
            stream = self._threads.get(reference.tx)
            if stream is None and reference.field.startswith(END) and self.sessions.get(reference.tx) is None:
                stream = None  # over before it began; its notice goes with it
            elif stream is None:
                if len(self._threads) >= STREAMS:
                    log.error("%d streams come in; %s is refused", STREAMS, reference.tx)
                    _Stream(self, reference.tx).refuse(reference.field)
                    return
                stream = self._threads[reference.tx] = _Stream(self, reference.tx)
                stream.start()
            if stream is not None:
                stream.put(reference)
                return
        self.fabric.take_end(reference.tx, reference.field)

    def forget(self, stream: _Stream) -> bool:
        """A stream's thread ends, unless something has come for it just now."""
        with self._lock:
            if not stream.empty():
                return False
            self._threads.pop(stream.tx, None)
            return True


class _Stream(threading.Thread):
    """The thread of one stream."""

    def __init__(self, intake: Intake, tx: str) -> None:
        super().__init__(name=f"stream-{tx[:8]}", daemon=True)
        self.tx = tx
        self._intake = intake
        self._sessions = intake.sessions
        self._fabric = intake.fabric
        self._queue: queue.SimpleQueue[Reference | None] = queue.SimpleQueue()
        self._answers: list[bytes] = []
        self._missing_since: float | None = None

    def put(self, reference: Reference | None) -> None:
        """An object, or a notice, of the stream is there; None: end."""
        self._queue.put(reference)

    def empty(self) -> bool:
        """Nothing waits."""
        return self._queue.empty()

    def run(self) -> None:
        """Until the stream is over, and nothing of it waits."""
        while True:
            try:
                busy = self._answers or self._sessions.get(self.tx) is None
                reference = self._queue.get(timeout=0.0 if busy else IDLE)
                if reference is None:
                    return
                self._missing_since = None
                self._take(reference.field, reference.first)
            except queue.Empty:
                if self._answers:
                    self._flush()
                elif self._sessions.get(self.tx) is not None:
                    self._look()
                elif self._intake.forget(self):
                    return
            except Exception:
                log.exception("an object of stream %s could not be taken in", self.tx)

    def refuse(self, field: str) -> None:
        """Too many streams come in."""
        frame = self._fabric.fetch(self.tx, field)
        try:
            envelope = envelope_of(frame or b"")
        except FlightlogError:
            return
        busy = failed(CellReturnCode.SERVICE_UNAVAILABLE, "too many streams come in")
        self._fabric.fetch(self.tx, "", [self._packed(envelope, busy, opened=False)])

    def _flush(self) -> None:
        """Answers that no further object waits for."""
        answers, self._answers = self._answers, []
        try:
            self._fabric.fetch(self.tx, "", answers)
        except LogUnavailable as error:
            log.debug("answers got lost, and will be asked for: %s", error)

    def _take(self, field: str, first: int) -> None:
        name, _, whom = field.partition(":")
        if name == END:
            self._flush()
            self._over(field)
            return
        if whom and whom != self._sessions.own:
            return
        answers, self._answers = self._answers, []
        try:
            frame = self._fabric.fetch(self.tx, field, answers)
        except LogUnavailable as error:
            log.debug("an object got lost, and will come again: %s", error)
            return
        if frame is None:
            return  # its stream is over, or the fabric is another by now: then it comes again
        answer = self._answer(field, frame, first)
        if answer is not None:
            self._answers.append(answer)

    def _answer(self, field: str, frame: bytes, first: int) -> bytes | None:
        """What is said to an object; None: nothing, and it comes again."""
        try:
            envelope = envelope_of(frame)
        except FlightlogError as error:
            return self._altered(None, field, error)
        tx, _, number = envelope.id.partition(".")
        session = self._sessions.get(self.tx)
        if envelope.sealed != (":" in field) or (session is not None and session.secure != envelope.sealed):
            self._noted(envelope, "an object that is not sealed as its stream is")
            return None  # no answer: the object itself may be on its way still
        if tx != self.tx or field.partition(":")[0] != number or not _is_for(envelope, self._sessions.own):
            return self._refused(
                envelope, CellReturnCode.INVALID_TARGET, "an object of another stream, or for another"
            )
        try:
            message = unpack(frame, envelope, self._intake.ring)
        except (KeyUnknown, SealBroken) as error:
            return self._refused(envelope, CellReturnCode.AUTHENTICATION_ERROR, f"{error.code}: {error.what}")
        except (PayloadInvalid, ArgumentInvalid) as error:
            return self._altered(envelope, field, error)
        obj = message.payload
        if not isinstance(obj, Shareable) or (obj.get_header(Header.TX_ID), str(obj.get_header(Header.SEQ))) != (
            tx,
            number,
        ):
            return self._refused(envelope, CellReturnCode.INVALID_REQUEST, "its headers and its frame differ")
        arrival = Arrival(
            obj,
            envelope.sender,
            envelope.size,
            envelope.sha256,
            envelope.sealed,
            context=lambda: self._context(envelope),
            first=first,
        )
        try:
            reply = self._sessions.take(arrival)
        except Missing:
            return None
        except FlightlogError as error:
            log.warning("an object of %s waits: %s", self.tx, error)
            return None
        return self._packed(envelope, Message({"return_code": CellReturnCode.OK}, reply))

    def _packed(self, envelope: Envelope, answer: Message, *, opened: bool = True) -> bytes:
        own, ring = self._sessions.own, self._intake.ring
        try:
            return answer_frame(envelope, own, answer, ring, opened=opened)
        except FlightlogError as error:  # a reply that cannot be encoded, or a key that went
            log.error("the reply to an object of %s cannot be sent: %s", self.tx, error)
            self._sessions.end(self.tx, ReturnCode.EXECUTION_EXCEPTION, f"the reply cannot be sent: {error.what}")
            return answer_frame(
                envelope, own, failed(CellReturnCode.PROCESS_EXCEPTION, error.what), ring, opened=opened
            )

    def _context(self, envelope: Envelope) -> dict[str, Any] | None:
        """The stream's context, where we do not know the stream: its first object went to a process that is gone."""
        field = f"{CONTEXT}:{self._sessions.own}" if envelope.sealed else CONTEXT
        frame = self._fabric.fetch(self.tx, field)
        if frame is None:
            return None
        found = envelope_of(frame)
        if found.id != f"{self.tx}.{CONTEXT}" or found.sender != envelope.sender or found.sealed != envelope.sealed:
            return None
        obj = unpack(frame, found, self._intake.ring).payload
        context = obj.get_header(Header.CTX) if isinstance(obj, Shareable) else None
        if not isinstance(context, dict):
            return None
        return context or {Header.TX_ID: self.tx}

    def _altered(self, envelope: Envelope | None, field: str, error: FlightlogError) -> bytes | None:
        """An object that was altered on its way: it is asked for again."""
        log.error("object %s of stream %s: %s", field, self.tx, error)
        if self._intake.journal is not None:
            sender = envelope.sender if envelope is not None else "?"
            self._intake.journal.refused(sender, self.tx, error.code, f"object {field}: {error.what}")
        if envelope is None:
            self._fabric.drop(self.tx, field)  # missing, it is laid down anew
            return None
        again = Message({"return_code": CellReturnCode.INVALID_REQUEST, "again": True, "error": error.what})
        return answer_frame(_unsealed(envelope), self._sessions.own, again, None)

    def _noted(self, envelope: Envelope, why: str) -> None:
        """Something was put between the objects: it is recorded, and nobody answers it."""
        log.error("stream %s: %s", self.tx, why)
        if self._intake.journal is not None:
            self._intake.journal.refused(envelope.sender, self.tx, CellReturnCode.AUTHENTICATION_ERROR, why)

    def _refused(self, envelope: Envelope, code: str, why: str) -> bytes | None:
        log.error("an object of stream %s was refused: %s", self.tx, why)
        if self._intake.journal is not None:
            self._intake.journal.refused(envelope.sender, self.tx, code, why)
        code = code if CODE.fullmatch(code) else CellReturnCode.INVALID_REQUEST
        return self._packed(envelope, failed(code, why), opened=False)

    # -- the end ---------------------------------------------------------------------------------------

    def _over(self, field: str) -> None:
        """Somebody says that the stream is over: its producer, or the collector of a site whose engine died."""
        session = self._sessions.get(self.tx)
        frame = self._fabric.take_end(self.tx, field)
        if session is None or frame is None:
            return
        try:
            envelope = envelope_of(frame)
            if envelope.id != f"{self.tx}.{END}" or envelope.topic != Topic.ABORT:
                return
            if envelope.sender != session.sender or (session.secure and not envelope.sealed):
                raise PayloadInvalid("a notice that the stream is over came from somebody else")
            notice = unpack(frame, envelope, self._intake.ring).payload
        except FlightlogError as error:
            log.error("a notice for stream %s was refused: %s", self.tx, error)
            if self._intake.journal is not None:
                self._intake.journal.refused("?", self.tx, error.code, error.what)
            return
        why = str(notice.get_header(Header.WHY, "")) if isinstance(notice, Shareable) else ""
        self._sessions.end(self.tx, ReturnCode.TASK_ABORTED, why, complete=why == COMPLETE)

    def _look(self) -> None:
        """Nothing has come for a while: whether the producer lives."""
        try:
            if self._fabric.producer_lives(self.tx):
                self._missing_since = None
                return
        except LogUnavailable:
            self._missing_since = None  # the fabric is away, which says nothing of the producer
            session = self._sessions.get(self.tx)
            if session is not None and time.monotonic() - session.moved > self._sessions.stall * PATIENCE:
                # By now it has given us up.
                self._sessions.end(self.tx, PRODUCER_LOST, "the fabric has been away for too long")
            return
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since > ALIVE_MS / 1000:
            self._sessions.end(self.tx, PRODUCER_LOST, "its producer is gone")


def _is_for(envelope: Envelope, own: str) -> bool:
    return (
        envelope.kind == "request"
        and envelope.target in (own, SHARED)
        and (envelope.target != SHARED or not envelope.sealed)
    )


def _unsealed(envelope: Envelope) -> Envelope:
    """For an answer that asks for an object again: it tells nothing, so it needs no seal."""
    from dataclasses import replace

    return replace(envelope, sealed=False)
