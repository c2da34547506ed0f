"""Sending on the record through a cell of another kind: the engine itself sends, since only it holds that cell."""

from __future__ import annotations

import hashlib
import logging

from engine import codec
from engine.cell.digests import Digests
from engine.cell.message import CellReturnCode
from engine.cell.outgoing import Outgoing, Sent, message_id
from engine.cell.protocol import Cell
from engine.core import Core
from engine.jobs import Note
from engine.shareable import Shareable
from events.append import WorkRefused
from events.bodies.base import Body
from events.bodies.messages import AuxFailed, AuxReplied, AuxRequested, AuxSent
from events.envelope import Call
from events.errors import FlightlogError

log = logging.getLogger("flightlog.sender")


class DirectSender:
    """Sends through a cell that only this process has.

    A send that this process dies over has an unknown outcome: the collector says so at its deadline, and nobody
    sends it again.

    Args:
        core: of the engine.
        cell: any that keeps to ``engine.cell.protocol.Cell``.
    """

    def __init__(self, core: Core, cell: Cell) -> None:
        self.core = core
        self.cell = cell
        self.digests = Digests(core.site.workspace.flight)

    def send(self, call: Call, out: Outgoing) -> Sent:
        """Send a message; see ``engine.cell.outgoing.Sends``."""
        payload = codec.encode(out.message.payload)
        requested = AuxRequested(
            id=message_id(call),
            channel=out.channel,
            topic=out.topic,
            target=out.target,
            size=len(payload),
            digest=self.digests.of(hashlib.sha256(payload).digest()),
            reply=out.reply,
            reply_key="",
            secure=out.secure,
            optional=out.optional,
            transport="cell",
            deadline=out.timeout if out.reply else self.core.site.settings.forget_deadline,
            attempts=1,
        )
        jobs = self.core.site.jobs
        position = jobs.note(call, [requested], out.job).positions[0]
        sent = self._through(requested.id, out)
        try:
            outcome = self._outcome(sent, out)
            jobs.note_all(call.at("outcome", cause=position), [Note(outcome, out.job or "", position)])
        except WorkRefused:
            return Sent(requested.id, CellReturnCode.TIMEOUT, "its time was over before the cell had done with it")
        except FlightlogError as error:
            log.warning("what came of %s could not be recorded: %s", requested.id, error)
        return sent

    def _through(self, message: str, out: Outgoing) -> Sent:
        how = {"channel": out.channel, "topic": out.topic, "secure": out.secure, "optional": out.optional}
        try:
            if not out.reply:
                self.cell.fire_and_forget(targets=out.target, message=out.message, **how)  # type: ignore[arg-type]
                return Sent(message, CellReturnCode.OK)
            answers = self.cell.broadcast_request(
                targets=[out.target],
                request=out.message,
                timeout=out.timeout,
                **how,  # type: ignore[arg-type]
            )
        except Exception as error:  # a foreign cell fails in any way it likes
            log.exception("the cell could not send")
            return Sent(message, CellReturnCode.COMM_ERROR, f"{type(error).__name__}: {error}"[:500])
        answer = next(iter(answers.values()), None)
        if answer is None:
            return Sent(message, CellReturnCode.COMM_ERROR, "the cell gave no answer")
        code = str(answer.headers.get("return_code", CellReturnCode.OK))
        return Sent(message, code, str(answer.headers.get("error", "")), answer)

    def _outcome(self, sent: Sent, out: Outgoing) -> Body:
        if not sent.ok:
            return AuxFailed(id=sent.id, code=sent.code, why=sent.why or sent.code)
        if not out.reply:
            return AuxSent(id=sent.id)
        size, digest = 0, ""
        if sent.answer is not None and isinstance(sent.answer.payload, Shareable):
            payload = codec.encode(sent.answer.payload)
            size, digest = len(payload), self.digests.of(hashlib.sha256(payload).digest())
        return AuxReplied(id=sent.id, code=sent.code, size=size, digest=digest, ms=0)

    def close(self) -> None:
        """The cell is its owner's."""
