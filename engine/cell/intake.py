"""Taking in: a request is checked, recorded, handled and answered, each once."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from engine.cell.fabric import Fabric, answers_of
from engine.cell.keys import KeyRing
from engine.cell.message import CODE, CellReturnCode, Message, failed
from engine.cell.protocol import RequestHandler, check_fqcn, root_of
from engine.cell.wire import Envelope, envelope_of, pack, unpack
from engine.errors import ArgumentInvalid, KeyUnknown, PayloadInvalid, SealBroken
from events.errors import FlightlogError

log = logging.getLogger("flightlog.cell")

SKEW_MS = 60_000  # by how much clocks of two hosts may differ; accept.lua remembers for longer than that
ANSWER_LIFE = 30.0  # seconds that an answer waits to be read, beside fabric.MARGIN_MS


class Journal(Protocol):
    """Records what comes in. Where it cannot, the message is not handled."""

    def received(self, envelope: Envelope) -> bool:
        """A message is about to be handled; False: it was before."""

    def handled(self, envelope: Envelope, answer: Envelope, ms: int) -> None:
        """It was handled, and its answer, if one is expected, is about to leave."""

    def refused(self, envelope: Envelope | None, code: str, why: str) -> None:
        """It was not taken."""

    def address(self, fqcn: str, *, ours: bool) -> None:
        """Another cell has taken over the address, or it is ours again."""


class Intake:
    """What a cell does with requests.

    Args:
        fabric: for answers.
        fqcn: the cell's address.
        ring: keys, for sealed messages.
        journal: records what comes in.
        payload_max: bytes of one answer.
    """

    def __init__(
        self, fabric: Fabric, fqcn: str, ring: KeyRing | None, journal: Journal | None, payload_max: int
    ) -> None:
        self.fabric = fabric
        self.ring = ring
        self.journal = journal
        #: (channel, topic) -> who handles it; the topic may be ``*``.
        self.handlers: dict[tuple[str, str], RequestHandler] = {}
        self._fqcn = fqcn
        self._payload_max = payload_max

    def take(self, message: str, frame: bytes) -> None:
        """Handle a request that was delivered under an id, and answer it."""
        began = time.monotonic()
        envelope: Envelope | None = None
        try:
            envelope = envelope_of(frame)
            if why := self._objection(message, envelope):
                self._refuse(envelope, CellReturnCode.INVALID_TARGET, why)
                return
            request = unpack(frame, envelope, self.ring)
        except (KeyUnknown, SealBroken) as error:
            self._refuse(envelope, CellReturnCode.AUTHENTICATION_ERROR, f"{error.code}: {error.what}")
            return
        except (PayloadInvalid, ArgumentInvalid) as error:
            self._refuse(envelope, CellReturnCode.INVALID_REQUEST, f"{error.code}: {error.what}")
            return
        if self.journal is not None:
            try:
                fresh = self.journal.received(envelope)
            except FlightlogError as error:
                self.send_answer(
                    envelope, *self.packed(envelope, failed(CellReturnCode.SERVICE_UNAVAILABLE, error.what))
                )
                return
            if not fresh:
                self.journal.refused(envelope, CellReturnCode.INVALID_REQUEST, "it was taken before")
                return
        reply = self._call(envelope, request)
        if not envelope.reply:
            self.fabric.drop([envelope.id])  # nobody else will
        frame, answer = self.packed(envelope, reply)
        if self.journal is not None:
            self.journal.handled(envelope, answer, int((time.monotonic() - began) * 1000))
        self.send_answer(envelope, frame, answer)

    def _objection(self, message: str, envelope: Envelope) -> str | None:
        """Why a message is not for us to handle."""
        check_fqcn(envelope.sender)
        if envelope.target != self._fqcn or envelope.kind != "request":
            return f"it is for {envelope.target[:100]!r}"
        if envelope.id != message:
            return f"it was delivered under the id of another: {message[:64]!r}"
        if envelope.until and envelope.until < time.time() * 1000 - SKEW_MS:
            return "its time was over long ago"
        return None

    def _call(self, envelope: Envelope, request: Message) -> Message:
        handler = next(
            (
                self.handlers[key]
                for key in ((envelope.channel, envelope.topic), (envelope.channel, "*"), ("*", "*"))
                if key in self.handlers
            ),
            None,
        )
        if handler is None:
            return failed(CellReturnCode.INVALID_REQUEST, f"nobody handles {envelope.channel}:{envelope.topic}"[:300])
        try:
            reply = handler(request)
        except Exception as error:
            log.exception("the handler of %s:%s raised", envelope.channel, envelope.topic)
            return failed(CellReturnCode.PROCESS_EXCEPTION, f"{type(error).__name__}: {error}"[:500])
        if reply is None and not envelope.reply:
            return Message()
        if not isinstance(reply, Message):
            return failed(
                CellReturnCode.PROCESS_EXCEPTION, f"the handler returned a {type(reply).__name__}, not a Message"
            )
        return reply

    def _refuse(self, envelope: Envelope | None, code: str, why: str) -> None:
        log.error("a message was refused: %s", why)
        if self.journal is not None:
            self.journal.refused(envelope, code, why)
        if envelope is not None and envelope.kind == "request":
            self.send_answer(envelope, *self.packed(envelope, failed(code, why), opened=False))

    def packed(self, envelope: Envelope, reply: Message, *, opened: bool = True) -> tuple[bytes, Envelope]:
        """An answer as bytes: sealed where the request was, so that no carrier learns from a failure either."""

        def answered(message: Message, *, seal: bool) -> tuple[bytes, Envelope]:
            code = message.return_code
            answer = Envelope(
                id=envelope.id,
                kind="answer",
                sender=self._fqcn,
                target=envelope.sender,
                channel=envelope.channel,
                topic=envelope.topic,
                until=envelope.until,
                key=envelope.key,
                code=code if CODE.fullmatch(code) else CellReturnCode.PROCESS_EXCEPTION,
                sealed=seal,
            )
            return pack(answer, message, self.ring)

        seal = envelope.sealed and opened
        if envelope.sealed and not opened:
            return answered(failed(reply.return_code), seal=False)  # the code alone
        try:
            frame, answer = answered(reply, seal=seal)
        except KeyUnknown:  # its key was taken away meanwhile
            return answered(failed(CellReturnCode.AUTHENTICATION_ERROR), seal=False)
        except PayloadInvalid as error:
            why = f"the answer cannot be sent: {error.what}"
            return answered(failed(CellReturnCode.PROCESS_EXCEPTION, why), seal=seal)
        if len(frame) > self._payload_max:
            return answered(failed(CellReturnCode.MSG_TOO_BIG, f"the answer has {len(frame)} bytes"), seal=seal)
        return frame, answer

    def send_answer(self, envelope: Envelope, frame: bytes, answer: Envelope) -> None:
        """Put an answer where the asker reads it; nothing where none is expected."""
        if not envelope.reply:
            return
        try:
            sender = check_fqcn(envelope.sender)
        except ArgumentInvalid:
            return  # there is nobody to tell
        whom = sender if envelope.reply_to else root_of(sender)
        token = envelope.reply_to if len(envelope.reply_to) == 16 and envelope.reply_to.isalnum() else ""
        self.fabric.answer(
            answers_of(whom, token),
            frame,
            ANSWER_LIFE,
            {
                "i": envelope.id,
                "k": envelope.key,
                "c": answer.code,
                "s": answer.size,
                "d": answer.sha256.hex(),
                "f": self._fqcn,
            },
        )
