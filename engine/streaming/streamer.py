"""The streams of one process that go out: they are checked, begun, and said to live."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

from engine.actors import current_call_id
from engine.aux.runner import AuxRunner
from engine.cell.digests import Digests
from engine.cell.keys import KeyRing
from engine.cell.outgoing import message_id
from engine.cell.protocol import check_fqcn, check_name, root_of
from engine.constants import FLContextKey, ReservedKey, ReturnCode
from engine.context import FLContext
from engine.core import Core
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid, CallTimeout, StreamerDown
from engine.streaming.by_aux import AuxTransfer
from engine.streaming.fabric import StreamFabric
from engine.streaming.journal import RecordJournal
from engine.streaming.spec import ObjectProducer, StreamContext
from engine.streaming.transfer import LOOK, PATIENCE, Order, Transfer
from events.bodies.transfers import TransferClosed
from events.errors import FlightlogError, LogUnavailable
from events.read import read_back

log = logging.getLogger("flightlog.stream")

SAID_EVERY = 1.0  # seconds between two signs of life


class Streamer:
    """Streams of one process.

    Args:
        core: of the process.
        fqcn: the address that they come from.
        ring: its keys.
        job: whose record they are on; None: the site's, or that of the job which the context names.
        aux: where the cell is of another transport, what sends their objects.
    """

    def __init__(
        self, core: Core, fqcn: str, ring: KeyRing | None, job: str | None = None, aux: AuxRunner | None = None
    ) -> None:
        self._aux = aux
        self.core = core
        self.fqcn = fqcn
        self.ring = ring
        self.fabric = StreamFabric(core.site.servers.fabric_url, core.site.name)
        self.digests = Digests(core.site.workspace.flight)
        self.journal = RecordJournal(core, job)
        self._job = job
        self._lock = threading.Lock()
        self._active: dict[str, Transfer] = {}
        #: Held while signs of life are given.
        self._signs = threading.Lock()
        self._unclosed: list[tuple[TransferClosed, str | None]] = []
        self._untold: list[tuple[Transfer, str]] = []
        self._said: threading.Thread | None = None
        self.down = threading.Event()

    # -- the API -----------------------------------------------------------------------------------

    def stream(
        self,
        channel: str,
        topic: str,
        stream_ctx: StreamContext | dict[str, Any] | None,
        targets: Sequence[str],
        producer: ObjectProducer,
        fl_ctx: FLContext,
        *,
        optional: bool = False,
        secure: bool = False,
        method: str = "stream_objects",
        kind: str = "objects",
        file: str | None = None,
    ) -> tuple[str, Any]:
        """See ``ClientEngine.stream_objects``."""
        call = self.core.call(method, str(channel)[:500], str(topic)[:500], str(targets)[:500])
        ctx, chosen = self.core.guarded(
            call,
            method,
            self._job,
            lambda: self._checked(channel, topic, stream_ctx, targets, producer, fl_ctx, secure=bool(secure)),
        )
        if current_call_id() is not None and (known := self.core.site.jobs.log.known(call)) is not None:
            return self._again(message_id(call), known.positions[0])
        order = Order(
            call=call,
            channel=channel,
            topic=topic,
            ctx=ctx,
            targets=chosen,
            producer=producer,
            fl_ctx=fl_ctx,
            secure=bool(secure),
            optional=bool(optional),
            kind=kind,
            file=file,
            job=self._job or self._job_of(fl_ctx, ctx),
        )
        return self._transfer(order).run()

    def _again(self, tx: str, position: str) -> tuple[str, Any]:
        """This very call came before: what came of it. The producer is not asked again."""
        first = int(position.partition("-")[2])
        for event in read_back(self.core.site.jobs.store):
            if event.seq <= first:
                break
            if event.type == "TransferClosed" and (event.body["id"], event.body["direction"]) == (tx, "out"):
                return str(event.body["code"]), None
        raise CallTimeout(f"stream {tx} of this call is under way", "flightlog transfers shows it")

    def _transfer(self, order: Order) -> Transfer:
        return Transfer(self, order) if self._aux is None else AuxTransfer(self._aux, self, order)

    def _checked(
        self,
        channel: object,
        topic: object,
        ctx: object,
        targets: object,
        producer: object,
        fl_ctx: object,
        *,
        secure: bool,
    ) -> tuple[StreamContext, list[str]]:
        check_name("channel", channel)
        check_name("topic", topic)
        ctx = StreamContext() if not ctx and ctx in (None, {}) else ctx
        for field, value, kind in (
            ("stream_ctx", ctx, dict),
            ("producer", producer, ObjectProducer),
            ("fl_ctx", fl_ctx, FLContext),
        ):
            if not isinstance(value, kind):
                raise ArgumentTypeInvalid(
                    f"{field} must be {kind.__name__} but got {type(value).__name__}", "give one", field=field
                )
        if self.down.is_set():
            raise StreamerDown("the streamer is shut down", "open another engine")
        chosen = check_targets(targets, self.fqcn)
        if secure:
            for target in chosen:
                if self.ring is not None:
                    self.ring.peer(root_of(target))
        # The caller's own: what this end learns of the stream is written into it, as in the reference.
        return cast("StreamContext", ctx), chosen

    def _job_of(self, fl_ctx: FLContext, ctx: StreamContext) -> str | None:
        """The job that a stream of the site is about, where context or stream says so and the record knows it."""
        named = ctx.get(ReservedKey.RUN_NUM) or fl_ctx.get_prop(FLContextKey.CURRENT_RUN)
        if not isinstance(named, str) or not named:
            return None
        try:
            return named if self.core.site.jobs.load(named).known else None
        except FlightlogError:
            return None

    def shutdown(self) -> None:
        """End all streams, and take on no more."""
        self.down.set()
        with self._lock:
            thread = self._said
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)
        with self._lock:
            hung = list(self._active.values())
        for transfer in hung:  # its producer does not come back
            transfer.end(ReturnCode.TASK_ABORTED, "the streamer was shut down, and the producer did not return")
        self.fabric.close()

    @property
    def active(self) -> int:
        """Streams that are under way."""
        with self._lock:
            return len(self._active)

    def share(self) -> int:
        """Bytes that one of them may have under way."""
        return max(1, self.core.site.settings.stream_window_bytes // max(1, self.active))

    # -- signs of life -------------------------------------------------------------------------------

    def enter(self, transfer: Transfer) -> None:
        """A transfer begins: its receivers are told that its producer lives."""
        with self._lock:
            self._active[transfer.tx] = transfer
            if self._said is None or not self._said.is_alive():
                self._said = threading.Thread(target=self._say, name="streams", daemon=True)
                self._said.start()

    def hush(self) -> None:
        """It is over, and about to be removed from the fabric: no sign of its life comes after this."""
        with self._signs:
            pass  # what is being said now was asked before

    def leave(self, transfer: Transfer) -> None:
        """It is over."""
        with self._lock:
            self._active.pop(transfer.tx, None)

    def close_later(self, body: TransferClosed, job: str | None) -> None:
        """Its end could not be recorded yet."""
        with self._lock:
            self._unclosed.append((body, job))

    def tell_later(self, transfer: Transfer, why: str) -> None:
        """Its targets could not be told yet that it is over."""
        with self._lock:
            self._untold.append((transfer, why))

    def _say(self) -> None:
        until: float | None = None
        while True:
            with self._lock:
                active = dict(self._active)
                unclosed, self._unclosed = self._unclosed, []
                untold, self._untold = self._untold, []
                left = unclosed or untold if until is None or time.monotonic() < until else None
                if self.down.is_set() and not active and not left:
                    return
            try:
                with self._signs:
                    signs = {tx: one.counts() for tx, one in active.items() if not one.over}
                    if signs:
                        self.fabric.lives(signs)
            except LogUnavailable as error:
                log.debug("the fabric is away: %s", error)
            for transfer in active.values():
                try:
                    transfer.progress()
                except Exception:  # one stream's trouble is not the others'
                    log.exception("how far %s is could not be recorded", transfer.tx)
            for transfer, why in untold:
                if not transfer.tell_end(why):
                    self.tell_later(transfer, why)
            for body, job in unclosed:
                if not self.journal.closed(body, job):
                    self.close_later(body, job)
            if self.down.wait(SAID_EVERY):
                until = until or time.monotonic() + PATIENCE
                time.sleep(LOOK)


def check_targets(targets: object, own: str) -> list[str]:
    """Raises ``ArgumentInvalid`` where they are none, doubled, or ourselves."""
    if isinstance(targets, str) or not isinstance(targets, Sequence):
        raise ArgumentTypeInvalid(
            f"targets must be a list of addresses but got {type(targets).__name__}",
            "give ['server']",
            field="targets",
        )
    chosen = [check_fqcn(target) for target in targets]
    if not chosen:
        raise ArgumentInvalid(
            "targets are empty", "name at least one address, for instance ['server']", field="targets"
        )
    doubled = sorted({target for target in chosen if chosen.count(target) > 1})
    if doubled:
        raise ArgumentInvalid(f"targets name {', '.join(doubled)[:200]} twice", "name each once", field="targets")
    if own in chosen:
        raise ArgumentInvalid(f"targets name {own}, which is the sender itself", "name others", field="targets")
    return chosen
