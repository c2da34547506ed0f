"""Producers and consumers for tests: what they do is said by whoever makes them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from engine.constants import ReturnCode
from engine.context import FLContext
from engine.shareable import Shareable, make_reply
from engine.streaming import ConsumerFactory, ObjectConsumer, ObjectProducer, StreamContext, StreamContextKey


class Numbers(ObjectProducer):
    """Makes so many objects with a number each, and keeps what is answered.

    Args:
        count: of objects.
        size: bytes of each.
        timeout: as ``produce`` gives it.
        ends: from the replies to one object to what ``process_replies`` returns.
        makes: instead of an object, by its number.
        wait: one at a time.
    """

    def __init__(
        self,
        count: int,
        *,
        size: int = 10,
        timeout: Any = 10.0,
        ends: Callable[[dict[str, Shareable]], Any] = lambda replies: None,
        makes: Callable[[int], Any] | None = None,
        wait: bool = False,
    ) -> None:
        self.count, self.size, self.timeout = count, size, timeout
        self.ends, self.makes = ends, makes
        self.stop_and_wait = wait
        self.made = 0
        self.replies: list[dict[str, Shareable]] = []
        self.most = 0

    def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        if self.made == self.count:
            return None, 0.0
        number = self.made
        self.made += 1
        self.most = max(self.most, self.made - len(self.replies))
        if self.makes is not None:
            return self.makes(number)
        return Shareable({"number": number, "data": bytes(self.size)}), self.timeout

    def process_replies(
        self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> Any | None:
        self.replies.append(replies)
        return self.ends(replies)

    @property
    def codes(self) -> list[dict[str, str]]:
        """Return codes, by object and target."""
        return [{name: reply.get_return_code() for name, reply in one.items()} for one in self.replies]


class Seen(ObjectConsumer):
    """Keeps the numbers that it saw; ``does`` may say or do more."""

    def __init__(self, does: Callable[[Shareable], Any] | None) -> None:
        self.does = does
        self.numbers: list[int] = []
        self.objects: list[Shareable] = []
        self.rc: str | None = None
        self.ctx: StreamContext = StreamContext()
        self.over = threading.Event()

    def consume(self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext) -> Any:
        self.ctx = stream_ctx
        self.numbers.append(shareable["number"])
        self.objects.append(shareable)
        answer = self.does(shareable) if self.does is not None else None
        return answer if answer is not None else (True, make_reply(ReturnCode.OK))

    def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        self.rc = stream_ctx[StreamContextKey.RC]
        self.over.set()


class Taking(ConsumerFactory):
    """Makes ``Seen`` consumers, and keeps them."""

    def __init__(self, does: Callable[[Shareable], Any] | None = None) -> None:
        self.does = does
        self.made: list[Seen] = []

    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        self.made.append(Seen(self.does))
        return self.made[-1]
