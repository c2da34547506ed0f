"""Streams of one process, out and in: what an engine, and a job's process, have of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from engine.aux.runner import AuxRunner
from engine.cell.cell import FabricCell
from engine.cell.digests import Digests
from engine.cell.keys import KeyRing
from engine.cell.protocol import root_of
from engine.context import FLContext
from engine.core import Core
from engine.errors import CellMissing, StreamerDown
from engine.streaming.by_aux import ByAux
from engine.streaming.chunk import Topic
from engine.streaming.fabric import StreamFabric
from engine.streaming.incoming import Callback
from engine.streaming.intake import Intake
from engine.streaming.journal import RecordJournal
from engine.streaming.session import Sessions
from engine.streaming.spec import ConsumerFactory, ObjectProducer, StreamContext
from engine.streaming.streamer import Streamer
from events.bodies.messages import HandlerRegistered


class Streams:
    """Out and in, on the record.

    Args:
        core: of the process.
        contexts: makes a context for each object that comes in.
        job: whose record they are on; None: the site's.
        own: FQCN; the site's name where it is not given.
    """

    def __init__(
        self, core: Core, contexts: Callable[[], FLContext], job: str | None = None, own: str | None = None
    ) -> None:
        self._core = core
        self._job = job
        site = core.site
        journal = RecordJournal(core, job)
        self.sessions = Sessions(
            own or site.name,
            contexts,
            process=site.process,
            journal=journal,
            digest=Digests(site.workspace.flight).of,
            stall=site.settings.stream_stall,
        )
        self._journal = journal
        self._streamer: Streamer | None = None
        self._intake: Intake | None = None
        self._lock = threading.Lock()
        self.down = False

    def open(self, cell: FabricCell, ring: KeyRing, *, listen: bool) -> None:
        """Stream through the fabric from now on; ``listen``: take in what comes for the cell's address."""
        self._streamer = Streamer(self._core, cell.get_fqcn(), ring, self._job)
        if listen:
            fabric = StreamFabric(cell.fabric.url, self._core.site.name)
            self._intake = Intake(fabric, self.sessions, ring, self._journal, lambda: cell.listening)
            self._intake.start()

    def through(self, aux: AuxRunner, fqcn: str, ring: KeyRing) -> None:
        """Stream by aux requests from now on: the cell is of another transport."""
        self._streamer = Streamer(self._core, fqcn, ring, self._job, aux)

    def hear(self, aux: AuxRunner) -> None:
        """Take in what comes by the reference's protocol, through whatever cell."""
        by_aux = ByAux(self.sessions)
        aux.own(Topic.REQUEST, by_aux.take)
        aux.own(Topic.ABORT, by_aux.end)

    def stream(
        self,
        channel: str,
        topic: str,
        stream_ctx: StreamContext | dict[str, Any] | None,
        targets: Sequence[str],
        producer: ObjectProducer,
        fl_ctx: FLContext,
        **how: Any,
    ) -> tuple[str, Any]:
        """See ``ClientEngine.stream_objects``."""
        return self._found().stream(channel, topic, stream_ctx, targets, producer, fl_ctx, **how)

    def register(
        self,
        channel: str,
        topic: str,
        factory: ConsumerFactory,
        stream_done_cb: Callback | None = None,
        consumed_cb: Callback | None = None,
        **cb_kwargs: Any,
    ) -> None:
        """See ``ClientEngine.register_stream_processing``."""
        method = "register_stream_processing"
        call = self._core.call(method, str(channel)[:500], str(topic)[:500])
        with self._lock:
            self._core.guarded(
                call,
                method,
                self._job,
                lambda: self.sessions.register(channel, topic, factory, stream_done_cb, consumed_cb, cb_kwargs),
            )
            kind = f"{type(factory).__module__}.{type(factory).__qualname__}"
            registered = HandlerRegistered(topic=f"stream {channel}:{topic}"[:500], handler=kind[:200])
            self._core.site.jobs.note(call, [registered], self._job)

    def trusts(self, target: str) -> bool:
        """Whether a target has a key here, so that streams to it can be sealed."""
        ring = self._found().ring
        return ring is not None and ring.trusts(root_of(target))

    def _found(self) -> Streamer:
        until = time.monotonic() + self._core.site.settings.cell_wait
        while self._streamer is None:
            if self.down:
                raise StreamerDown("the streamer is shut down", "open another engine")
            if time.monotonic() >= until:
                raise CellMissing("the engine has no cell to stream through", "open it with ClientEngine.open(...)")
            time.sleep(0.05)
        return self._streamer

    def wait_down(self, seconds: float) -> bool:
        """Sleep, but wake when all is shut down; whether it is."""
        return self._found().down.wait(seconds)

    def shutdown(self) -> None:
        """End all streams, and take on no more."""
        self.down = True
        if self._streamer is not None:
            self._streamer.shutdown()

    def close(self) -> None:
        """The same, and take none in."""
        self.shutdown()
        if self._intake is not None:
            self._intake.stop()
