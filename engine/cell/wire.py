"""A message as bytes: a frame with a header that carriers may read, and a body that may be sealed."""

from __future__ import annotations

import hashlib
import secrets
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from engine import codec
from engine.cell.keys import KeyRing
from engine.cell.message import Message, MessageHeaderKey
from engine.cell.sealing import seal, unseal
from engine.errors import KeyUnknown, PayloadInvalid

MAGIC = b"FLM1"
_LENGTH = struct.Struct(">I")
HEADER_MAX = 1 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What a carrier may know of a message.

    Attributes:
        id: of the request; its answer has the same.
        kind: request or answer.
        sender, target: FQCNs.
        reply: an answer is waited for.
        reply_to: "" for the sender's site, whose collector reads it; else the one cell that waits.
        until: ms since the epoch, by the sender's clock, when its time is over; 0: it does not say.
        key: what an answer must show, so that only a reader of the request can give one.
        code: of an answer.
        size: bytes of the body.
    """

    id: str
    kind: Literal["request", "answer"]
    sender: str
    target: str
    channel: str
    topic: str
    reply: bool = False
    reply_to: str = ""
    until: int = 0
    key: str = ""
    code: str = ""
    sealed: bool = False
    size: int = 0
    sha256: bytes = b""
    headers: dict[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> bytes:
        """What a seal is bound to beside its content."""
        return codec.encode(
            [self.id, self.kind, self.sender, self.target, self.channel, self.topic, self.code, self.until, self.key]
        )


def new_key() -> str:
    """What the answer to a request must show."""
    return secrets.token_hex(16)


def until_of(life: float) -> int:
    """When a message's time is over that begins now, in ms since the epoch."""
    return int((time.time() + life) * 1000)


def key_digest(key: str) -> str:
    """What the record keeps of it."""
    return hashlib.sha256(key.encode()).hexdigest()


def pack(envelope: Envelope, message: Message, ring: KeyRing | None = None) -> tuple[bytes, Envelope]:
    """The bytes of a message, and the envelope as it stands in them.

    Args:
        envelope: with ``sealed`` set where it is to be sealed for its target.
        message: headers and payload.
        ring: the sender's keys.

    Raises:
        PayloadInvalid: something cannot be encoded; names it.
        KeyUnknown: it is to be sealed, and there is no key of the target, or none of our own.
    """
    if envelope.sealed:
        if ring is None:
            raise KeyUnknown(
                f"{envelope.sender} has no keys, so nothing can be sealed", "open it with a workspace that has some"
            )
        plain = codec.encode([message.headers, message.payload])
        body = seal(plain, ring, envelope.target, envelope.context)
        headers: dict[str, Any] = {}
    else:
        body = codec.encode(message.payload)
        headers = message.headers
    final = _with(envelope, size=len(body), sha256=hashlib.sha256(body).digest(), headers=headers)
    header = codec.encode({name: getattr(final, name) for name in Envelope.__slots__})
    if len(header) > HEADER_MAX:
        raise PayloadInvalid(f"the headers take {len(header)} bytes, {HEADER_MAX} are allowed", "send it as payload")
    return b"".join((MAGIC, _LENGTH.pack(len(header)), header, body)), final


def envelope_of(frame: bytes) -> Envelope:
    """The envelope of a frame.

    Raises:
        PayloadInvalid: these bytes are no frame.
    """
    if frame[:4] != MAGIC or len(frame) < 8:
        raise PayloadInvalid("these bytes are no message", "whoever wrote them is no cell of ours")
    (length,) = _LENGTH.unpack_from(frame, 4)
    if length > HEADER_MAX or len(frame) < 8 + length:
        raise PayloadInvalid("the message is cut short")
    given = codec.decode(frame[8 : 8 + length])
    if not isinstance(given, dict) or set(given) != set(Envelope.__slots__):
        raise PayloadInvalid("the message's header has other fields than ours")
    for name, kind in _KINDS.items():
        if type(given[name]) is not kind:
            raise PayloadInvalid(f"the message's header has a wrong {name}")
    return Envelope(**given)


def unpack(frame: bytes, envelope: Envelope, ring: KeyRing | None = None) -> Message:
    """The message in a frame, checked against its envelope, opened where it is sealed.

    Raises:
        PayloadInvalid: it was altered on its way, or cannot be decoded.
        KeyUnknown, SealBroken: it is sealed, and not by its sender for us.
    """
    (length,) = _LENGTH.unpack_from(frame, 4)
    body = memoryview(frame)[8 + length :]
    if len(body) != envelope.size or hashlib.sha256(body).digest() != envelope.sha256:
        raise PayloadInvalid("the message was altered on its way: its digest differs")
    if not envelope.sealed:
        message = Message(envelope.headers, codec.decode(body))
    else:
        if ring is None:
            raise KeyUnknown("a sealed message came, and there are no keys to open it", "flightlog keys trust FILE")
        content = codec.decode(unseal(bytes(body), ring, envelope.sender, envelope.context))
        if not isinstance(content, list) or len(content) != 2 or not isinstance(content[0], dict):
            raise PayloadInvalid("the sealed message holds something else than headers and a payload")
        message = Message(content[0], content[1])
    message.headers |= {
        MessageHeaderKey.ORIGIN: envelope.sender,
        MessageHeaderKey.DESTINATION: envelope.target,
        MessageHeaderKey.CHANNEL: envelope.channel,
        MessageHeaderKey.TOPIC: envelope.topic,
        MessageHeaderKey.REQUEST_ID: envelope.id,
        MessageHeaderKey.SECURE: envelope.sealed,
    }
    if envelope.kind == "answer":
        message.headers[MessageHeaderKey.RETURN_CODE] = envelope.code
    return message


_KINDS: dict[str, type] = {
    **dict.fromkeys(("id", "kind", "sender", "target", "channel", "topic", "reply_to", "key", "code"), str),
    **dict.fromkeys(("reply", "sealed"), bool),
    "size": int,
    "until": int,
    "sha256": bytes,
    "headers": dict,
}


def _with(envelope: Envelope, **changed: Any) -> Envelope:
    return Envelope(**{name: getattr(envelope, name) for name in Envelope.__slots__} | changed)
