"""A message on its way out, and what came of it: what every sender takes and gives."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from engine.cell.message import CellReturnCode, Message
from engine.cell.protocol import check_fqcn, check_name
from engine.errors import ArgumentInvalid, ArgumentTypeInvalid
from events.envelope import Call

LONGEST = 30 * 86_400  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What is to be sent.

    Attributes:
        channel, topic: of the receiver.
        target: its FQCN.
        message: headers and payload.
        timeout: seconds for sending and answering.
        job: whose record it goes to; None: the site's.
        reply: False: no answer is expected.
        secure: seal it for the receiver.
        optional: a failure is logged as a detail only.
    """

    channel: str
    topic: str
    target: str
    message: Message
    timeout: float
    job: str | None = None
    reply: bool = True
    secure: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        check_name("channel", self.channel)
        check_name("topic", self.topic)
        check_fqcn(self.target)


class Sent(NamedTuple):
    """What came of a message: the cell's return code, words for it, and the answer where there is one."""

    id: str
    code: str
    why: str = ""
    answer: Message | None = None

    @property
    def ok(self) -> bool:
        """It was answered, or, where no answer is expected, taken on."""
        return self.code == CellReturnCode.OK

    def as_message(self) -> Message:
        """The answer, or a message whose return code says what happened."""
        if self.answer is not None:
            return self.answer
        return Message({"return_code": self.code, "error": self.why})


class Sends(Protocol):
    """Sends on the record."""

    def send(self, call: Call, out: Outgoing) -> Sent:
        """Send a message, and wait for its answer where one is expected.

        Args:
            call: which call this is of; the same again waits for what came of the first.
            out: the message.

        Raises:
            ArgumentInvalid, PayloadInvalid, PayloadTooLarge, KeyUnknown: it cannot be sent at all.
            LogUnavailable: the record or the fabric is away; nothing was sent.
        """

    def close(self) -> None:
        """Let go of connections."""


def message_id(call: Call) -> str:
    """A message's id: its call's, as 32 hex digits."""
    plain = call.call_id.replace("-", "").lower()
    if call.step == "intent" and re.fullmatch(r"[0-9a-f]{32}", plain):
        return plain
    return hashlib.sha256(f"{call.call_id}:{call.step}".encode()).hexdigest()[:32]


def check_timeout(timeout: object) -> float:
    """Seconds to wait; zero: do not.

    Raises:
        ArgumentTypeInvalid: no number. ArgumentInvalid: negative, NaN, or longer than 30 days.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise ArgumentTypeInvalid(
            f"timeout must be a number but got {type(timeout).__name__}",
            "give seconds; 0 does not wait",
            field="timeout",
        )
    if not 0 <= timeout <= LONGEST:  # NaN is neither
        raise ArgumentInvalid(
            f"timeout is {str(timeout)[:40]}", f"give seconds, from 0 to {LONGEST} (30 days)", field="timeout"
        )
    return float(timeout)
