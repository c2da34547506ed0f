"""What users of streams write: a producer at one end, a factory of consumers at the other (reference 5.1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

from engine.context import FLContext
from engine.shareable import Shareable


class StreamContextKey:
    """Names in a stream's context that belong to the engine."""

    CHANNEL: Final = "__channel__"
    TOPIC: Final = "__topic__"
    #: The return code with which the stream ended; set before ``finalize``.
    RC: Final = "__RC__"
    #: At the receiver: a function ``(rc, fl_ctx)`` that ends the stream from its side.
    END_STREAM: Final = "__end_stream__"
    #: The transfer's id, as on the record.
    TX_ID: Final = "__tx_id__"
    #: At a receiver that goes on after a death: how many objects the producer knows to be taken in.
    ANSWERED: Final = "__answered__"
    #: FQCN of the sender.
    SENDER: Final = "__sender__"


class StreamContext(dict[str, Any]):
    """What both ends know of a stream: the sender's values, and those of ``StreamContextKey``.

    The sender's go to the receiver with the first object, so they are of types that a ``Shareable`` may hold.
    Afterwards each end has its own.
    """


class ObjectProducer(ABC):
    """Makes the objects of one stream."""

    #: True: the next object is made only once the replies to the one before have been processed. May change on the
    #: way: it is looked at before each ``produce``.
    stop_and_wait: bool = False
    #: Bytes that the whole will have, where that is known; for whoever watches.
    total_bytes: int | None = None

    @abstractmethod
    def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        """The next object.

        Returns:
            The object, and the seconds within which each target is to reply to it; ``(None, 0.0)`` ends the stream.
            What it raises ends the stream too, and is raised by ``stream_objects``.
        """

    @abstractmethod
    def process_replies(
        self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> Any | None:
        """The replies to one object: once for each, in the order in which they were produced.

        With several objects under way (``stop_and_wait`` is False), later ones may have been made already.

        Args:
            replies: target -> its reply. A target that failed has a reply with the return code that says how, for
                this object and all that follow: it gets none of them any more.
            stream_ctx: of the stream.
            fl_ctx: of the call.

        Returns:
            None to go on. Anything else ends the stream, and is its result: a true value is a success.
        """


class ObjectConsumer(ABC):
    """Takes in the objects of one stream, on a thread of its own, in order, each once."""

    @abstractmethod
    def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable | None]:
        """Take in an object.

        Returns:
            Whether more is wanted (False ends the stream with the reply's return code), and the reply to the
            producer; None is a reply with the code OK.
        """

    def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:  # noqa: B027 - optional
        """The stream is over; ``stream_ctx[StreamContextKey.RC]`` says how. Does nothing by default."""

    def resume(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> int | None:
        """The process that consumed this stream died; say how many of its objects are safe, so that it can go on.

        Asked of a new consumer before its first ``consume``, which then gets the object of that number (from 0).

        Returns:
            The number of objects that need not come again; None where what was consumed died with the process, which
            ends the stream.
        """
        return None


class ConsumerFactory(ABC):
    """Makes a consumer for each stream that comes in."""

    @abstractmethod
    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        """A consumer for a new stream; never one that another stream still has."""

    def return_consumer(  # noqa: B027 - optional
        self, consumer: ObjectConsumer, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> None:
        """A stream is over, and its consumer free. Does nothing by default."""
