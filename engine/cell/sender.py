"""Sending on the record: payload, intent, bell; then the outcome that the record has.

A worker puts the message into its receiver's inbox (``workers.aux``), the collector closes it with the answer
(``workers.collector``). The caller learns of it from the log, as everybody does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from engine.actors import current_call_id
from engine.cell.cell import open_answer
from engine.cell.digests import Digests
from engine.cell.fabric import Fabric
from engine.cell.keys import KeyRing
from engine.cell.message import CellReturnCode, Message, cell_code
from engine.cell.outcomes import find_outcome
from engine.cell.outgoing import Outgoing, Sent, message_id
from engine.cell.protocol import root_of
from engine.cell.wire import Envelope, envelope_of, key_digest, new_key, pack, until_of
from engine.core import Core
from engine.errors import PayloadTooLarge
from engine.jobs import Note
from events.append import Appended, Request, WorkRefused
from events.bodies.messages import AuxFailed, AuxReplied, AuxReplyLost, AuxRequested
from events.envelope import Call, Event
from events.errors import FlightlogError, LogUnavailable
from events.read import at
from events.together import Together

GRACE = 1.0  # seconds for an answer that somebody has in hand

log = logging.getLogger("flightlog.sender")


class _Asked(NamedTuple):
    """A payload, and the intent that is recorded once it is kept."""

    id: str
    frame: bytes
    life: float
    request: Request


class Sender:
    """Sends messages of one address.

    Args:
        core: of the engine, or of a job's process.
        fqcn: the address that the messages come from.
        ring: its keys, for sealed ones.
    """

    def __init__(self, core: Core, fqcn: str, ring: KeyRing | None = None) -> None:
        self.core = core
        self.fqcn = fqcn
        self.ring = ring
        self.fabric = Fabric(core.site.servers.fabric_url)
        self.digests = Digests(core.site.workspace.flight)
        self._together: Together[_Asked, Appended] = Together(self._record_each)

    def send(self, call: Call, out: Outgoing) -> Sent:
        """Send a message; see ``engine.cell.outgoing.Sends``."""
        settings = self.core.site.settings
        envelope = Envelope(
            id=message_id(call),
            kind="request",
            sender=self.fqcn,
            target=out.target,
            channel=out.channel,
            topic=out.topic,
            reply=out.reply,
            until=until_of(self._within(out)),
            key=new_key(),
            sealed=out.secure,
        )
        frame, envelope = pack(envelope, out.message, self.ring)
        if len(frame) > settings.payload_max:
            raise PayloadTooLarge(
                f"the message has {len(frame)} bytes, {settings.payload_max} are allowed", "send less, or stream it"
            )
        known = self.core.site.jobs.log.known(call) if current_call_id() is not None else None
        if known is not None:
            return self._again(envelope, known.positions[0], out)
        began = time.monotonic()
        # A call that can be repeated under its id finds the answer again, for as long as it lives.
        fetch = self.fabric.fetch_each if current_call_id() is None else None
        expected = self.core.outcomes.expect(envelope.id, fetch) if out.reply else None
        try:
            position = self._record(call, envelope, frame, out)
            if expected is None:
                return Sent(envelope.id, CellReturnCode.OK)
            outcome = expected.wait(out.timeout - (time.monotonic() - began))
            if outcome is None:
                outcome = self._overdue(call, envelope, position, out.job)
                if outcome is not None and outcome.type == AuxReplied.name():
                    expected.wait(GRACE)  # whoever fetched the answer is about to hand it over
            return self._told(call, envelope, outcome, expected.frame, out)
        finally:
            if expected is not None:
                self.core.outcomes.forget(envelope.id)

    def _record(self, call: Call, envelope: Envelope, frame: bytes, out: Outgoing) -> str:
        """Payload first, then the intent, then the bell; the position of the intent."""
        within = self._within(out)
        requested = AuxRequested(
            id=envelope.id,
            channel=envelope.channel,
            topic=envelope.topic,
            target=envelope.target,
            size=envelope.size,
            digest=self.digests.of(envelope.sha256),
            reply=envelope.reply,
            reply_key=key_digest(envelope.key),
            secure=envelope.sealed,
            optional=out.optional,
            inside=root_of(out.target) == self.core.site.name,
            transport="lane",
            deadline=within,
            attempts=self.core.site.settings.attempts,
        )
        request = self.core.site.jobs.note_request(call, [requested], out.job)
        noted = self._together(_Asked(envelope.id, frame, within, request))
        if noted.ring:
            try:
                self.core.site.bells.ring_lane(f"aux:{envelope.target}")
            except LogUnavailable as error:
                log.warning("the bell for %s could not be rung, the collector will: %s", envelope.target, error)
        return noted.positions[0]

    def _record_each(self, asked: Sequence[_Asked]) -> list[Appended | Exception]:
        """Payloads of several callers in one round trip, then their intents in another."""
        self.fabric.put_each([(one.id, one.frame, one.life) for one in asked])
        appended = self.core.site.jobs.log.append_each([one.request for one in asked])
        self.fabric.drop([one.id for one, told in zip(asked, appended, strict=True) if isinstance(told, Exception)])
        return appended

    def _within(self, out: Outgoing) -> float:
        """Seconds within which it is to be sent and answered."""
        return out.timeout if out.reply else self.core.site.settings.forget_deadline

    def _again(self, envelope: Envelope, position: str, out: Outgoing) -> Sent:
        """This very call came before: wait for what came of it, and read its answer again while it is there."""
        if not out.reply:
            return Sent(envelope.id, CellReturnCode.OK)
        store = self.core.site.jobs.store
        until = time.monotonic() + out.timeout
        while (outcome := find_outcome(store, envelope.id, position)) is None:
            if time.monotonic() > until:
                return Sent(envelope.id, CellReturnCode.TIMEOUT, "what came of the first call is not known yet")
            time.sleep(0.05)
        body = outcome.body
        if outcome.type != "AuxReplied":
            return Sent(envelope.id, cell_code(body.get("code", CellReturnCode.COMM_ERROR)), body.get("why", ""))
        frame = self.fabric.look(f"{envelope.id}:r")
        (intent,) = at(store, [position])
        try:
            key = envelope_of(frame).key if frame is not None else ""
        except FlightlogError:
            key = ""
        if frame is None or key_digest(key) != intent.body["reply_key"]:
            return Sent(envelope.id, CellReturnCode.COMM_ERROR, "it was answered, and the answer is gone by now")
        answer = open_answer(frame, replace(envelope, key=key), self.ring)
        return Sent(envelope.id, answer.return_code, str(answer.get_header("error", "")), answer)

    def _overdue(self, call: Call, envelope: Envelope, position: str, job: str | None) -> Event | None:
        """The time is over: record that, unless another outcome came first; None: the record is away."""
        failed = AuxFailed(id=envelope.id, code=CellReturnCode.TIMEOUT, why="no answer came in time")
        jobs = self.core.site.jobs
        try:
            try:
                jobs.note_all(call.at("overdue", cause=position), [Note(failed, job or "", position)])
                self.fabric.drop([envelope.id])  # a payload goes with its outcome
            except WorkRefused:
                log.debug("%s has another outcome", envelope.id)
            return find_outcome(jobs.store, envelope.id, position)
        except FlightlogError as error:
            log.warning("what came of %s is not known yet: %s", envelope.id, error)
            return None

    def _told(
        self, call: Call, envelope: Envelope, outcome: Event | None, frame: bytes | None, out: Outgoing
    ) -> Sent:
        if outcome is None:
            return Sent(envelope.id, CellReturnCode.TIMEOUT, "no answer came in time, and the record is away")
        body = outcome.body
        if outcome.type != "AuxReplied":
            code = body.get("code", CellReturnCode.COMM_ERROR)
            sent = Sent(envelope.id, cell_code(code), body.get("why", ""))
        else:
            sent = self._answer(call, envelope, body, frame, out.job)
        if not sent.ok:
            level = logging.DEBUG if out.optional else logging.ERROR
            log.log(level, "%s to %s: %s (%s)", envelope.topic, envelope.target, sent.code, sent.why)
        return sent

    def _answer(
        self, call: Call, envelope: Envelope, body: dict[str, object], frame: bytes | None, job: str | None
    ) -> Sent:
        """Open an answer that the record says is there; it may have been fetched along with others."""
        try:
            if frame is None:
                take = self.fabric.fetch if current_call_id() is None else self.fabric.look
                frame = take(f"{envelope.id}:r")
            answer = open_answer(frame, envelope, self.ring)
        except LogUnavailable as error:
            answer = Message({"return_code": CellReturnCode.COMM_ERROR, "error": error.what})
        code, why = answer.return_code, str(answer.get_header("error", ""))
        if code != body["code"]:  # it was recorded as something else: say so, or caller and record would disagree
            try:
                lost = AuxReplyLost(id=envelope.id, code=code, why=why[:500])
                self.core.site.jobs.note(call.at("lost"), [lost], job)
            except FlightlogError as error:
                log.warning("that an answer was lost could not be recorded: %s", error)
        return Sent(envelope.id, code, why, answer)

    def close(self) -> None:
        """Let go of the fabric."""
        self.fabric.close()
