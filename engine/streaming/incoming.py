"""What is known of a stream that comes in."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.shareable import Shareable
from engine.streaming.spec import ConsumerFactory, ObjectConsumer, StreamContext

KEPT_REPLIES = 256  # of one stream, for objects that come again
KEPT_BYTES = 16 * 2**20

#: Called as ``cb(stream_ctx, fl_ctx, **kwargs)``.
Callback = Callable[..., Any]


class Registered(NamedTuple):
    """Who takes in the streams of a channel and topic."""

    factory: ConsumerFactory
    done: Callback | None
    consumed: Callback | None
    kwargs: dict[str, Any]


class Arrival(NamedTuple):
    """An object that came in.

    Attributes:
        obj: the object, with the protocol's headers.
        sender: FQCN.
        size: bytes of its payload.
        sha256: of them.
        context: the stream's, for a process that does not know it; None: it cannot be had.
        first: the first that we had not answered when this was sent; None: that is not told, and nothing that is
            not answered comes again by itself.
    """

    obj: Shareable
    sender: str
    size: int = 0
    sha256: bytes = b""
    secure: bool = False
    context: Callable[[], dict[str, Any] | None] | None = None
    first: int | None = None


class Missing(Exception):
    """An object came before one that is missing; both come again."""


@dataclass(eq=False)
class Session:
    """One stream that comes in."""

    tx: str
    sender: str
    ctx: StreamContext
    registered: Registered
    consumer: ObjectConsumer | None = None
    secure: bool = False
    next: int = 0
    consumed: int = 0
    bytes: int = 0
    replies: OrderedDict[int, tuple[Shareable, int]] = field(default_factory=OrderedDict)
    #: Bytes of all replies, which leave the site; and of those that are kept.
    replied: int = 0
    kept: int = 0
    whole: Any = field(default_factory=hashlib.sha256)
    began: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    said: float = 0.0
    over: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    #: Digests are of all objects: none came before this process.
    from_start: bool = True

    def remember(self, seq: int, reply: Shareable, size: int = 0) -> None:
        """A reply, for an object that comes again because it got lost."""
        self.replies[seq] = reply, size
        self.replied += size
        self.kept += size
        while len(self.replies) > 1 and (len(self.replies) > KEPT_REPLIES or self.kept > KEPT_BYTES):
            self.kept -= self.replies.popitem(last=False)[1][1]

    def forget(self) -> None:
        """It is over: keep only what is needed to say so again."""
        self.consumer = None
        self.ctx = StreamContext()
        while len(self.replies) > 1:
            self.replies.popitem(last=False)
