"""An object on its way: the protocol's headers (reference 5.2), and the frame that carries it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from engine import codec
from engine.aux.codes import WHY
from engine.cell.keys import KeyRing
from engine.cell.message import CellReturnCode, Message
from engine.cell.wire import Envelope, envelope_of, new_key, pack, unpack
from engine.errors import PayloadInvalid
from engine.shareable import Shareable, make_copy, make_reply
from engine.streaming.spec import StreamContext, StreamContextKey

CHANNEL: Final = "stream"
#: What a frame says as its target where several targets read the same one.
SHARED: Final = "*"

#: Why a stream is over whose producer came to its end.
COMPLETE: Final = "it is complete"

_NUMBER = re.compile(r"[0-9]{1,15}")
_TX = re.compile(r"[0-9a-f]{32}")


class Topic:
    """What a frame or an aux message of a stream is; the reference's names."""

    REQUEST: Final = "ObjectStreamer.Request"
    ABORT: Final = "ObjectStreamer.Abort"


class Header:
    """Headers of an object's ``Shareable`` and of its reply; the reference's names."""

    TX_ID: Final = "ObjectStreamer.TX_ID"
    SEQ: Final = "ObjectStreamer.SEQ"
    TOPIC: Final = "ObjectStreamer.TOPIC"
    CHANNEL: Final = "ObjectStreamer.CHANNEL"
    CTX: Final = "ObjectStreamer.CTX"
    END_RESULT: Final = "ObjectStreamer.END_RESULT"
    #: Why a stream is over; ours.
    WHY: Final = "ObjectStreamer.WHY"


def failure(code: str, why: str) -> Shareable:
    """A reply that says why not."""
    return make_reply(code, {WHY: why})


def is_tx(text: object) -> bool:
    """Whether this is a transfer's id."""
    return isinstance(text, str) and _TX.fullmatch(text) is not None


def sent_context(ctx: StreamContext) -> dict[str, Any]:
    """What of a context goes to the receiver."""
    own = (StreamContextKey.RC, StreamContextKey.END_STREAM, StreamContextKey.TX_ID, StreamContextKey.SENDER)
    return {name: value for name, value in ctx.items() if name not in own}


def addressed(
    obj: Shareable, tx: str, seq: int, channel: str, topic: str, ctx: StreamContext | None = None
) -> Shareable:
    """An object with the protocol's headers; the producer's own is left as it is.

    Args:
        obj: the producer's.
        tx: the transfer's id.
        seq: the object's number, from 0.
        channel: of the consumer.
        topic: likewise.
        ctx: the stream's, for the first object.
    """
    one = make_copy(obj)
    for name, value in (
        (Header.TX_ID, tx),
        (Header.SEQ, seq),
        (Header.CHANNEL, channel),
        (Header.TOPIC, topic),
    ):
        one.set_header(name, value)
    if ctx is not None:
        one.set_header(Header.CTX, sent_context(ctx))
    return one


@dataclass(frozen=True, slots=True)
class Framer:
    """Makes the frames of one transfer, and opens the answers to them.

    Attributes:
        tx: the transfer's id.
        sender: FQCN.
        ring: keys, where it is sealed.
        secure: seal each frame for its target.
        key: what an answer must show.
    """

    tx: str
    sender: str
    ring: KeyRing | None
    secure: bool
    key: str

    @classmethod
    def new(cls, tx: str, sender: str, ring: KeyRing | None, *, secure: bool) -> Framer:
        """For a new transfer."""
        return cls(tx, sender, ring, secure, new_key())

    def frames(
        self, name: int | str, obj: Shareable, targets: list[str], topic: str = Topic.REQUEST
    ) -> tuple[dict[str, bytes], int, bytes]:
        """An object as frames, by the field under which they lie; the bytes of its payload, and their SHA-256.

        One frame for all targets, or one for each where it is sealed.

        Raises:
            PayloadInvalid: it cannot be encoded. KeyUnknown: a target has no key.
        """
        message = Message(payload=obj)
        if not self.secure:
            frame, envelope = pack(self._envelope(name, SHARED, topic), message)
            return {str(name): frame}, envelope.size, envelope.sha256
        plain = codec.encode(obj)
        frames = {
            f"{name}:{target}": pack(self._envelope(name, target, topic), message, self.ring)[0] for target in targets
        }
        return frames, len(plain), hashlib.sha256(plain).digest()

    def field(self, name: int | str, target: str) -> str:
        """Where a target finds its frame."""
        return f"{name}:{target}" if self.secure else str(name)

    def _envelope(self, name: int | str, target: str, topic: str) -> Envelope:
        return Envelope(
            id=f"{self.tx}.{name}",
            kind="request",
            sender=self.sender,
            target=target,
            channel=CHANNEL,
            topic=topic,
            reply=True,
            key=self.key,
            sealed=self.secure,
        )

    def answer(self, frame: bytes) -> tuple[str, int, Message]:
        """Who answered to which object, and what.

        Raises:
            PayloadInvalid: it is no answer to one of ours. KeyUnknown, SealBroken: it is not by who it says.
        """
        envelope = envelope_of(frame)
        tx, _, seq = envelope.id.partition(".")
        if (envelope.kind, tx, envelope.key) != ("answer", self.tx, self.key) or not _NUMBER.fullmatch(seq):
            raise PayloadInvalid("an answer to something else")
        if self.secure and not envelope.sealed and envelope.code == CellReturnCode.OK:
            raise PayloadInvalid("the answer to a sealed object came unsealed")
        return envelope.sender, int(seq), unpack(frame, envelope, self.ring)


def answer_frame(request: Envelope, own: str, reply: Message, ring: KeyRing | None, *, opened: bool = True) -> bytes:
    """The answer to an object, sealed where the object was and could be opened."""
    code = reply.return_code
    envelope = Envelope(
        id=request.id,
        kind="answer",
        sender=own,
        target=request.sender,
        channel=request.channel,
        topic=request.topic,
        key=request.key,
        code=code,
        sealed=request.sealed and opened,
    )
    if request.sealed and not opened:
        reply = Message({"return_code": code})
    return pack(envelope, reply, ring)[0]
