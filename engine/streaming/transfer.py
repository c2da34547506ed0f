"""One stream on its way out: objects are made, handed to the io workers by reference, and answered in order."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.aux.codes import reply_of
from engine.cell.outgoing import LONGEST, message_id
from engine.cell.protocol import root_of
from engine.constants import FLContextKey, ReturnCode
from engine.context import FLContext
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, PayloadTooLarge
from engine.shareable import Shareable, make_reply
from engine.streaming.chunk import COMPLETE, Framer, Header, Topic, addressed, sent_context
from engine.streaming.fabric import CONTEXT, END, Reference, lane_to
from engine.streaming.spec import ObjectProducer, StreamContext, StreamContextKey
from engine.streaming.window import Flying, Window
from events.bodies.transfers import TransferClosed, TransferOpened, TransferProgress, TransferResumed
from events.envelope import Call
from events.errors import FlightlogError, LogUnavailable

if TYPE_CHECKING:
    from engine.streaming.streamer import Streamer

log = logging.getLogger("flightlog.stream")

LOOK = 0.1  # seconds of a wait for answers, until the abort signal is looked at again
UNSTICK_AFTER = 0.3  # seconds without an answer, until somebody looks what is in the way
UNKNOWN_AFTER = 6.0  # seconds: a fabric that has just come up knows nobody yet
AGAIN_MOST = 15.0  # seconds between two hand-overs of the same reference, at most
REWRITES = 3  # times that a target may find an object altered
PATIENCE = 5.0  # seconds that a caller waits for a record that is away, for its transfer's end
ROOM = 65_536  # bytes that an object may have beside its payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be streamed; see ``ClientEngine.stream_objects``.

    Attributes:
        call: which call this is of.
        kind: for the record: objects, file, or log.
        file: its name, where it is one.
        job: whose record it goes to; None: the site's.
    """

    call: Call
    channel: str
    topic: str
    ctx: StreamContext
    targets: list[str]
    producer: ObjectProducer
    fl_ctx: FLContext
    secure: bool = False
    optional: bool = False
    kind: str = "objects"
    file: str | None = None
    job: str | None = None


class Transfer:
    """One stream.

    Args:
        streamer: of the process.
        order: what is to be streamed.
    """

    def __init__(self, streamer: Streamer, order: Order) -> None:
        self.tx = message_id(order.call)
        self._streamer = streamer
        self._order = order
        self._fabric = streamer.fabric
        self._settings = streamer.core.site.settings
        self._names = order.targets
        self._framer = Framer.new(self.tx, streamer.fqcn, streamer.ring, secure=order.secure)
        self._began = time.monotonic()
        #: Seconds that the producer took: no target's time runs while nobody looks for its answers.
        self._absent = 0.0
        self._window = Window(order.targets, self._settings.stream_window, self._settings.stream_stall, self._clock())
        self._whole = hashlib.sha256()
        #: The stream's context, for a receiver that comes back without a memory.
        self._context: dict[str, bytes] = {}
        self._again_at = dict.fromkeys(order.targets, 0.0)
        self._again_after = dict.fromkeys(order.targets, 1.0)
        self._holders: dict[str, str] = {}
        self._away = False
        #: Since when the fabric is there.
        self._came_up = self._clock()
        self._unsaid = True
        self._said = 0
        self._aborted = False
        #: Fields of objects that everybody has; removed with the next that is laid down.
        self._done: list[str] = []
        self._ended = threading.Lock()
        #: Held while something is handed over; once it is over, nothing is.
        self._gate = threading.Lock()
        self._over = False
        self._code = ""

    def _clock(self) -> float:
        """Seconds of attention: they stand still while the producer is at work."""
        return time.monotonic() - self._absent

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """The producer is at work."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._absent += time.monotonic() - began

    # -- its life ------------------------------------------------------------------------------------

    def run(self) -> tuple[str, Any]:
        """Until it is over; the return code, and what the producer made of it."""
        order = self._order
        order.ctx[StreamContextKey.CHANNEL], order.ctx[StreamContextKey.TOPIC] = order.channel, order.topic
        order.ctx[StreamContextKey.TX_ID] = self.tx
        self._prepare()
        self._streamer.journal.opened(self._opened(), order.call, order.job)
        self._streamer.enter(self)
        try:
            code, why, result = self._run()
        except BaseException as error:
            code = ReturnCode.EXECUTION_EXCEPTION if isinstance(error, Exception) else ReturnCode.TASK_ABORTED
            self.end(code, f"{type(error).__name__}: {error}"[:500])
            raise
        self.end(code, why)
        # Shut down meanwhile, it has another end on the record; the caller is told the same.
        return (code, result) if self._code == code else (self._code, None)

    def _prepare(self) -> None:
        """What cannot be told to the targets is said before anything is on the record."""
        self._context = self._context_frames()

    def _run(self) -> tuple[str, str, Any]:
        over = False
        while True:
            if self._told_to_end():
                return ReturnCode.TASK_ABORTED, "it was aborted", None
            answers: list[bytes] = []
            if not over and self._window.room(self._streamer.share(), one=bool(self._order.producer.stop_and_wait)):
                flying = self._produced()
                over = flying is None
                if self._told_to_end():
                    return ReturnCode.TASK_ABORTED, "it was aborted", None
                if flying is not None:
                    answers = self._hand_over(flying)
            elif over and not self._window.flying:
                return ReturnCode.OK, "", None
            elif self._window.flying:
                answers = self._reachable(lambda: self._fabric.answers(self.tx, LOOK), [])
            self._take(answers)
            if (ended := self._processed()) is not None:
                return ended
            self._look_after()

    def _processed(self) -> tuple[str, str, Any] | None:
        """Have the producer process what everybody has answered; how the stream ends, where it does."""
        for flying in list(self._window.complete()):
            self._done += flying.frames
            with self._attending():
                result = self._order.producer.process_replies(flying.replies, self._order.ctx, self._order.fl_ctx)
            if result is not None:
                code = ReturnCode.OK if result else ReturnCode.ERROR
                code = ReturnCode.TASK_ABORTED if self._aborted else code
                return code, "" if result else self._why_failed("the producer ended it"), result
        failed = next(iter(self._window.targets.values())).failed
        if failed is not None and not self._window.alive and not self._window.flying:
            return failed[0], self._why_failed(failed[1]), None
        return None

    def _told_to_end(self) -> bool:
        signal = self._order.fl_ctx.get_prop(FLContextKey.RUN_ABORT_SIGNAL)
        if self._streamer.down.is_set() or self._over or (signal is not None and signal.triggered):
            self._aborted = True
        return self._aborted

    def _why_failed(self, otherwise: str) -> str:
        failed = [f"{t.name}: {t.failed[1]}" for t in self._window.targets.values() if t.failed]
        return "; ".join(failed)[:500] or otherwise

    # -- objects -------------------------------------------------------------------------------------

    def _produced(self) -> Flying | None:
        """The next object, ready to go; None: there is none.

        Raises:
            ArgumentInvalid: the producer returned something else than an object and a float.
            PayloadInvalid, PayloadTooLarge: the object cannot be sent.
        """
        one = self._made()
        return None if one is None else self._framed(*one)

    def _made(self) -> tuple[Shareable, float] | None:
        """What the producer made, as it is to be sent, and its timeout."""
        with self._attending():
            made = self._order.producer.produce(self._order.ctx, self._order.fl_ctx)
        if not isinstance(made, tuple) or len(made) != 2:
            raise ArgumentTypeInvalid(
                f"produce must return (object, timeout) but got {type(made).__name__}", field="produce"
            )
        obj, timeout = made
        if obj is None:
            return None
        _check_object(obj, timeout)
        seq = self._window.made
        ctx = self._order.ctx if seq == 0 else None
        return addressed(obj, self.tx, seq, self._order.channel, self._order.topic, ctx), timeout

    def _framed(self, one: Shareable, timeout: float) -> Flying:
        seq = self._window.made
        frames, size, sha256 = self._framer.frames(seq, one, self._window.alive or self._names)
        largest = max(map(len, frames.values()), default=0)
        if largest > self._settings.payload_max + ROOM:
            raise PayloadTooLarge(
                f"object {seq} has {size} bytes, {self._settings.payload_max} are allowed", "make smaller ones"
            )
        self._whole.update(sha256)
        return Flying(seq, frames, size, timeout, self._clock())

    def _hand_over(self, flying: Flying) -> list[bytes]:
        """Record it as under way, and hand it over; where the fabric is away it waits here."""
        self._window.add(flying)
        alive = self._window.alive
        frames = flying.frames
        if self._unsaid and self._context:
            frames = {**self._context, **frames}
        references = {target: self._references(target, [flying]) for target in alive}
        if not references or self._away:
            return []

        def put() -> list[bytes]:
            with self._gate:
                if self._over:
                    return []
                done, self._done = self._done, []
                answers, ring = self._fabric.put(self.tx, frames, references, done)
                self._unsaid = False
            self._ring(ring)
            return answers

        found: list[bytes] = self._reachable(put, [])
        return found

    def _references(self, target: str, waiting: Sequence[Flying]) -> list[Reference]:
        first = self._window.first(target)
        number = first.seq if first is not None else 0
        return [Reference(self.tx, self._framer.field(flying.seq, target), number) for flying in waiting]

    def _ring(self, targets: Sequence[str]) -> None:
        for target in targets:
            self._streamer.core.site.bells.ring_lane(lane_to(target))

    def _take(self, answers: Sequence[bytes]) -> None:
        now = self._clock()
        for frame in answers:
            try:
                target, seq, message = self._framer.answer(frame)
            except FlightlogError as error:
                self._streamer.journal.refused("?", self.tx, error.code, f"an answer: {error.what}")
                continue
            if message.get_header("again"):
                self._rewrite(target, seq)
                continue
            reply = reply_of(message.return_code, str(message.get_header("error", "")), message)
            if self._window.take(target, seq, reply, now):
                self._again_after[target] = 1.0

    def _rewrite(self, target: str, seq: int) -> None:
        """A target found an object altered: it is laid down anew."""
        flying = self._window.flying.get(seq)
        if flying is None or target not in self._window.alive:
            return
        flying.rewrites[target] += 1
        if flying.rewrites[target] > REWRITES:
            self._give_up(target, ReturnCode.COMMUNICATION_ERROR, f"object {seq} arrives altered, time and again")
            return
        self._refer(target, [flying], frames=True)

    # -- what goes wrong -------------------------------------------------------------------------------

    def _reachable(self, act: Callable[[], Any], otherwise: Any) -> Any:
        """Do something with the fabric; where it is away, that is remembered and all goes on."""
        try:
            return act()
        except LogUnavailable as error:
            if not self._away:
                log.warning("transfer %s waits: %s", self.tx, error)
                self._away = True
            self._streamer.down.wait(LOOK)
            return otherwise

    def _look_after(self) -> None:
        """Give up targets that take too long, and bring on its way what got stuck."""
        now = self._clock()
        if any(self._window.overdue(now)):
            # It may have answered, while the producer was at work.
            while answers := self._reachable(partial(self._fabric.answers, self.tx, 0.001), []):
                self._take(answers)
            now = self._clock()
        for target, why in list(self._window.overdue(now)):
            self._give_up(target, ReturnCode.TIMEOUT, why)
        if self._away:
            self._back()
            return
        for target in self._window.alive:
            first = self._window.first(target)
            if first is None:
                continue
            since = max(first.sent, self._window.targets[target].moved, self._again_at[target])
            if now - since > UNSTICK_AFTER:
                self._reachable(partial(self._unstick, target, first), None)

    def _back(self) -> None:
        """Where the fabric answers again, all that is under way is handed over anew: it held nothing durable."""
        try:
            for target in self._window.alive:
                self._refer(target, self._window.unanswered(target), frames=True)
        except LogUnavailable:
            self._streamer.down.wait(LOOK)
            return
        self._away, self._came_up = False, self._clock()
        at = min((f.seq for f in self._window.flying.values()), default=self._window.made)
        self._resumed(at, "the fabric was away")

    def _unstick(self, target: str, first: Flying) -> None:
        """No answer for a while: look where it hangs."""
        now = self._clock()
        field = self._framer.field(first.seq, target)
        there, holder = self._fabric.look(self.tx, field, target)
        known = self._holders.setdefault(target, holder)
        waiting = self._window.unanswered(target)
        heard_of = holder or known or self._window.targets[target].acknowledged
        if not heard_of and now - self._came_up > UNKNOWN_AFTER and not self._fabric.known(target):
            self._give_up(target, ReturnCode.COMMUNICATION_ERROR, f"nobody was ever at {target}")
            self._window.targets[target].left = 0  # nobody could take it
            return
        if not there:
            self._refer(target, waiting, frames=True)
            self._resumed(first.seq, "the fabric had lost it")
        elif holder and known != holder:
            self._holders[target] = holder
            self._refer(target, waiting)
            if known:
                self._resumed(first.seq, f"{target} is another process now")
        elif holder and now - max(first.sent, self._again_at[target]) > self._again_after[target]:
            # The reference itself may be lost, with a line that broke as it was read. A second one does no harm.
            self._again_after[target] = min(AGAIN_MOST, self._again_after[target] * 2)
            self._refer(target, waiting)
        else:
            _, ring = self._fabric.put(self.tx, {}, {target: []})
            self._ring(ring)
            return
        self._again_at[target] = now

    def _refer(self, target: str, waiting: Sequence[Flying], *, frames: bool = False) -> None:
        """Hand objects over to a target once more."""
        laid: dict[str, bytes] = {}
        if frames:
            laid = dict(self._context)
            for flying in waiting:
                field = self._framer.field(flying.seq, target)
                laid[field] = flying.frames[field]
        with self._gate:
            if self._over:
                return
            answers, ring = self._fabric.put(self.tx, laid, {target: self._references(target, waiting)})
            self._unsaid = self._unsaid and not frames
        self._ring(ring)
        self._take(answers)

    def _give_up(self, target: str, code: str, why: str) -> None:
        log.log(
            logging.DEBUG if self._order.optional else logging.ERROR,
            "transfer %s: %s failed: %s",
            self.tx,
            target,
            why,
        )
        self._window.fail(target, code, why)

    # -- on the record -----------------------------------------------------------------------------------

    def _context_frames(self) -> dict[str, bytes]:
        """The stream's context, for a receiver that comes back without a memory."""
        context = make_reply(ReturnCode.OK, {Header.CTX: sent_context(self._order.ctx)})
        context.set_header(Header.CHANNEL, self._order.channel)
        context.set_header(Header.TOPIC, self._order.topic)
        # Where it is sealed, nothing lies under the plain name; that it is there says that the stream is open.
        return {CONTEXT: b"", **self._framer.frames(CONTEXT, context, self._names)[0]}

    def tell_end(self, why: str) -> bool:
        """Tell the targets that it is over, and remove what is left; False where that is to be tried again."""
        try:
            self._tell_end([name for name, target in self._window.targets.items() if target.left], why)
        except LogUnavailable as error:
            log.warning("the targets of %s cannot be told yet that it is over: %s", self.tx, error)
            return False
        except FlightlogError as error:
            log.warning("the targets of %s could not be told that it is over: %s", self.tx, error)
        return True

    def _tell_end(self, targets: list[str], why: str) -> None:
        """Leave nothing on the fabric but the notice that it is over, for each target that got an object."""
        self._fabric.forget(self.tx, self._names)
        if targets:
            frames = self._framer.frames(END, self._notice(why), targets, Topic.ABORT)[0]
            self._fabric.tell_end(self.tx, {f"{END}:{n}": frames[self._framer.field(END, n)] for n in targets})

    def _notice(self, why: str) -> Shareable:
        return make_reply(ReturnCode.TASK_ABORTED, {Header.TX_ID: self.tx, Header.WHY: why or COMPLETE})

    def _opened(self) -> TransferOpened:
        return TransferOpened(
            id=self.tx,
            direction="out",
            channel=self._order.channel,
            topic=self._order.topic,
            sender=self._streamer.fqcn,
            targets=self._names,
            secure=self._framer.secure,
            optional=self._order.optional,
            inside=all(root_of(name) == self._streamer.core.site.name for name in self._names),
            window=1 if self._order.producer.stop_and_wait else self._settings.stream_window,
            stall=self._settings.stream_stall,
            kind=self._order.kind,
            file=self._order.file,
            process=self._streamer.core.site.process,
        )

    @property
    def over(self) -> bool:
        """Nothing of it leaves any more."""
        return self._over

    def counts(self) -> str:
        """How far it is, for whoever closes it where we cannot."""
        window = self._window
        return json.dumps(
            {"objects": window.made, "bytes": window.bytes, "left": {n: t.left for n, t in window.targets.items()}}
        )

    def progress(self) -> None:
        """Record how far it is, where that has changed."""
        answered = self._window.answered
        if answered != self._said:
            self._said = answered
            body = TransferProgress(
                id=self.tx,
                direction="out",
                objects=answered,
                bytes=self._window.answered_bytes,
                total=_size(self._order.producer.total_bytes),
            )
            self._streamer.journal.note(body, self._order.job)

    def _resumed(self, at: int, why: str) -> None:
        self._streamer.journal.note(TransferResumed(id=self.tx, direction="out", at=at, why=why), self._order.job)

    def end(self, code: str, why: str) -> None:
        """Tell the targets, leave nothing behind, and record it."""
        if not self._ended.acquire(blocking=False):
            return
        with self._gate:
            self._over, self._code = True, code
        self._streamer.hush()
        if not self.tell_end(why):
            self._streamer.tell_later(self, why)
        window = self._window
        body = TransferClosed(
            id=self.tx,
            direction="out",
            code=code,
            why=why,
            objects=window.made,
            bytes=window.bytes,
            ms=int((time.monotonic() - self._began) * 1000),
            codes={n: t.failed[0] if t.failed else ReturnCode.OK for n, t in window.targets.items()},
            acknowledged={n: t.acknowledged for n, t in window.targets.items()},
            left={n: t.left for n, t in window.targets.items()},
            digest=self._streamer.digests.of(self._whole.digest()),
        )
        until = time.monotonic() + PATIENCE
        while not self._streamer.journal.closed(body, self._order.job):
            if time.monotonic() > until:
                self._streamer.close_later(body, self._order.job)
                break
            time.sleep(LOOK)
        self._streamer.leave(self)
        if code != ReturnCode.OK:
            level = logging.DEBUG if self._order.optional else logging.ERROR
            log.log(
                level,
                "transfer %s of %s:%s ended: %s (%s)",
                self.tx,
                self._order.channel,
                self._order.topic,
                code,
                why,
            )


def _size(told: object) -> int | None:
    """What a producer says of the whole; None where that is no size."""
    return told if isinstance(told, int) and not isinstance(told, bool) and told >= 0 else None


def _check_object(obj: object, timeout: object) -> None:
    if not isinstance(obj, Shareable):
        raise ArgumentTypeInvalid(
            f"produce must make a Shareable but made a {type(obj).__name__}",
            "return (Shareable, seconds)",
            field="produce",
        )
    if not isinstance(timeout, float):
        raise ArgumentTypeInvalid(
            f"the timeout of produce must be float but got {type(timeout).__name__}", "5.0, not 5", field="timeout"
        )
    if not 0 < timeout <= LONGEST:
        raise ArgumentInvalid(f"the timeout of produce is {timeout}", f"seconds, up to {LONGEST}", field="timeout")
