"""The engine's side of the network: its cell, its aux runner, and what it asks of a job's process."""

from __future__ import annotations

import logging
from typing import Any

from engine.aux.runner import AuxRunner
from engine.calls.notice import TOPIC, Notices
from engine.cell.cell import FabricCell
from engine.cell.digests import Digests
from engine.cell.direct import DirectSender
from engine.cell.journal import RecordJournal
from engine.cell.keys import KeyRing
from engine.cell.message import CellChannel, CellReturnCode, Message, failed
from engine.cell.outgoing import Outgoing, Sends, Sent, check_timeout
from engine.cell.protocol import Cell, check_cell, check_name
from engine.cell.sender import Sender
from engine.components import Components, kind_of
from engine.core import Core
from engine.errors import ArgumentTypeInvalid, JobUnknown, NotLive
from engine.fold import JobState
from engine.ids import check_job_id
from engine.streaming.streams import Streams
from engine.workspace import Workspace
from events.bodies.messages import CellAttached
from events.envelope import Call
from events.errors import FlightlogError

log = logging.getLogger("flightlog.engine")


def ring_of(workspace: Workspace) -> KeyRing:
    """A site's keys."""
    return KeyRing(workspace.root / "startup", workspace.site)


class Comm:
    """What an engine sends and takes in.

    Args:
        core: the engine's.
        components: for contexts.
        server: address that aux requests go to.
    """

    def __init__(self, core: Core, components: Components, server: str = "server") -> None:
        self._core = core
        self.ring = ring_of(core.site.workspace)
        self.cell: Cell | None = None
        self._sender: Sends | None = None
        self._own: FabricCell | None = None
        self.notices = Notices(core)
        self.streams = Streams(core, components.context)
        self.aux = AuxRunner(core, components.context, lambda: self._sender, server=server)
        self.streams.hear(self.aux)

    # -- the cell ------------------------------------------------------------------------------------

    def open_own(self, *, listen: bool) -> FabricCell:
        """Have the built-in cell, at the site's name; ``listen``: take in what comes for it."""
        settings = self._core.site.settings
        self._own = FabricCell(
            self._core.site.servers.fabric_url,
            self._core.site.name,
            ring=self.ring,
            journal=RecordJournal(self._core, Digests(self._core.site.workspace.flight)),
            inbox_max=settings.inbox_max,
            payload_max=settings.payload_max,
        )
        self.attach(self._own)
        self.streams.open(self._own, self.ring, listen=listen)
        if listen:
            self._own.start()
        return self._own

    def attach(self, cell: Any) -> None:
        """Use a cell: aux messages that come in are handled, and requests go out through it.

        Raises:
            ArgumentTypeInvalid: it is no cell.
        """
        method = "initialize_comm"
        call = self._core.call(method, kind_of(cell))
        found: Cell = self._core.guarded(call, method, None, lambda: check_cell(cell))
        attached = CellAttached(fqcn=str(found.get_fqcn())[:600], kind=kind_of(cell)[:200])
        self._core.site.jobs.note(call, [attached])
        if found is not self.cell:
            found.register_request_cb(channel=CellChannel.AUX_COMMUNICATION, topic="*", cb=self.aux.handle)
            found.register_request_cb(channel=CellChannel.CLIENT_MAIN, topic=TOPIC, cb=self.notices.handle)
            if not isinstance(found, FabricCell):
                self.streams.through(self.aux, str(found.get_fqcn()), self.ring)
            was, self._sender = self._sender, self._sender_for(found)
            self.cell = found
            if was is not None:
                was.close()

    def _sender_for(self, cell: Cell) -> Sends:
        if isinstance(cell, FabricCell):
            return Sender(self._core, cell.get_fqcn(), cell.ring)
        return DirectSender(self._core, cell)

    def close(self) -> None:
        """Be gone from the fabric."""
        self.streams.close()
        if self._own is not None:
            self._own.stop()
        if self._sender is not None:
            self._sender.close()

    # -- jobs ----------------------------------------------------------------------------------------

    def to_job(
        self,
        method: str,
        job_id: str,
        channel: str,
        topic: str,
        message: Message,
        timeout: float,
        *,
        optional: bool = False,
        call: Call | None = None,
    ) -> Message:
        """Ask a job's process; what stands against it is recorded and told by the answer's return code.

        Raises:
            JobIdInvalid, ArgumentInvalid: bad input.
        """
        call = call or self._core.call(method, job_id, str(channel)[:200], str(topic)[:200])
        self._core.guarded(call, method, job_id, lambda: _checked(job_id, channel, topic, message, timeout))
        state = self.state_of(job_id)
        if not state.live:
            state = self.latest(job_id)  # nobody is refused for what was not seen yet
        if not state.live:
            error = NotLive(
                f"{job_id} is {state.state.value}: it has no process to ask",
                "flightlog list shows the jobs that have",
            )
            if not state:
                error = JobUnknown(f"{job_id} is not on the record", "flightlog list shows the jobs that are")  # type: ignore[assignment]
            refused = self._core.refuse(call, method, error, job_id, state)
            return failed(CellReturnCode.TARGET_UNREACHABLE, str(refused))
        sent = self._send(
            call,
            method,
            job_id,
            Outgoing(
                channel=channel,
                topic=topic,
                target=f"{self._core.site.name}.{job_id}",
                message=message,
                timeout=timeout,
                job=job_id,
                reply=timeout > 0,
                # With the site's own key: nobody else on the fabric can pass as this engine.
                secure=channel == CellChannel.CLIENT_COMMAND and isinstance(self.cell, FabricCell),
                optional=optional,
            ),
        )
        return sent.as_message()

    def _send(self, call: Call, method: str, job_id: str, out: Outgoing) -> Sent:
        try:
            return self.aux.found_sender().send(call, out)
        except FlightlogError as error:
            refused = self._core.refuse(call, method, error, job_id)
            return Sent("", CellReturnCode.COMM_ERROR, str(refused))

    def state_of(self, job_id: str) -> JobState:
        """A job's state, as last seen; looked up where nothing was seen of it."""
        return self._core.view.get(job_id) or self._core.site.jobs.load(job_id).state

    def latest(self, job_id: str) -> JobState:
        """A job's state with everything that is on the record by now; as last seen where the record is away."""
        return self._core.view.latest(job_id) or JobState()


def _checked(job_id: object, channel: object, topic: object, message: object, timeout: object) -> None:
    check_job_id(job_id)
    check_name("channel", channel)
    check_name("topic", topic)
    check_timeout(timeout)
    if not isinstance(message, Message):
        raise ArgumentTypeInvalid(
            f"msg must be Message but got {type(message).__name__}", "give a Message", field="msg"
        )
