"""Sending on the record through a cell of another kind: the engine itself sends, since only it holds that cell."""

from __future__ import annotations

import hashlib
import logging
import time

from engine import codec
from engine.actors import current_call_id
from engine.cell.digests import Digests
from engine.cell.message import CellReturnCode
from engine.cell.outgoing import Outgoing, Sent, message_id
from engine.cell.protocol import Cell, root_of
from engine.core import Core
from engine.jobs import Note
from engine.shareable import Shareable
from events.append import WorkRefused
from events.bodies.base import Body
from events.bodies.messages import AuxFailed, AuxReplied, AuxRequested, AuxSent
from events.envelope import Call
from events.errors import FlightlogError

log = logging.getLogger("flightlog.sender")

LATER = 1.0  # seconds
KEPT = 100  # answers of calls that have an id of their own


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
        self._told: dict[str, Sent] = {}

    def send(self, call: Call, out: Outgoing) -> Sent:
        """Send a message; see ``engine.cell.outgoing.Sends``."""
        jobs = self.core.site.jobs
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
            inside=root_of(out.target) == self.core.site.name,
            transport="cell",
            # The collector judges only once the cell has had its time, and a little more to say so.
            deadline=(out.timeout if out.reply else self.core.site.settings.forget_deadline) + LATER,
            attempts=1,
        )
        noted = jobs.note(call, [requested], out.job)
        if noted.repeated and current_call_id() is not None:  # else: our own append, sent twice over a broken line
            gone = Sent(
                requested.id, CellReturnCode.COMM_ERROR, "this call came before; its outcome is on the record"
            )
            return self._told.get(requested.id, gone)
        began = time.monotonic()
        sent = self._through(requested.id, out)
        try:
            outcome, sent = self._outcome(sent, out, int((time.monotonic() - began) * 1000))
            position = noted.positions[0]
            jobs.note_all(call.at("outcome", cause=position), [Note(outcome, out.job or "", position)])
        except WorkRefused:
            return Sent(requested.id, CellReturnCode.COMM_ERROR, "its time was over before the cell had done with it")
        except FlightlogError as error:
            log.warning("what came of %s could not be recorded: %s", requested.id, error)
        if current_call_id() is not None:  # a call that can be repeated under its id finds its answer again
            self._told[sent.id] = sent
            while len(self._told) > KEPT:
                del self._told[next(iter(self._told))]
        return sent

    def _through(self, message: str, out: Outgoing) -> Sent:
        how = {"channel": out.channel, "topic": out.topic, "secure": out.secure, "optional": out.optional}
        try:
            if not out.reply:
                kept = self.cell.fire_and_forget(targets=out.target, message=out.message, **how)  # type: ignore[arg-type]
                why = (kept or {}).get(out.target, "") if isinstance(kept, dict) else ""
                return Sent(message, str(why) or CellReturnCode.OK, str(why))
            answers = self.cell.broadcast_request(
                targets=[out.target],
                request=out.message,
                timeout=out.timeout,
                **how,  # type: ignore[arg-type]
            )
            answer = next(iter(answers.values()), None)
            if answer is None:
                return Sent(message, CellReturnCode.COMM_ERROR, "the cell gave no answer")
            code = str(answer.headers.get("return_code", CellReturnCode.OK))
            return Sent(message, code, str(answer.headers.get("error", "")), answer)
        except Exception as error:  # a foreign cell fails in any way it likes
            log.exception("the cell could not send")
            return Sent(message, CellReturnCode.COMM_ERROR, f"{type(error).__name__}: {error}"[:500])

    def _outcome(self, sent: Sent, out: Outgoing, ms: int) -> tuple[Body, Sent]:
        """What is recorded, and what the caller is told: the same."""
        if sent.ok and not out.reply:
            return AuxSent(id=sent.id), sent
        size, digest = 0, ""
        if sent.ok and sent.answer is not None and isinstance(sent.answer.payload, Shareable):
            try:
                payload = codec.encode(sent.answer.payload)
                size, digest = len(payload), self.digests.of(hashlib.sha256(payload).digest())
            except FlightlogError as error:
                sent = Sent(sent.id, CellReturnCode.COMM_ERROR, f"the answer cannot be kept: {error.what}"[:500])
        if not sent.ok:
            return AuxFailed(id=sent.id, code=sent.code[:64], why=sent.why[:500] or sent.code[:64]), sent
        return AuxReplied(id=sent.id, code=sent.code, size=size, digest=digest, ms=ms), sent

    def close(self) -> None:
        """The cell is its owner's."""
