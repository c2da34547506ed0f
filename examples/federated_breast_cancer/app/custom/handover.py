"""The site's own model as a stream, an array at a time: a model of many gigabytes goes the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.constants import ReturnCode
from engine.context import FLContext
from engine.shareable import Shareable
from engine.streaming import ObjectProducer, StreamContext

CHANNEL, TOPIC = "breast_cancer", "model"
TIMEOUT = 30.0  # seconds that the server may take over one array


class ModelProducer(ObjectProducer):
    """Makes an object of each array.

    Args:
        weights: the arrays by name.
    """

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self._left = list(weights.items())
        self.total_bytes = sum(array.nbytes for array in weights.values())

    def produce(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> tuple[Shareable | None, float]:
        """The next array; after the last, the end."""
        if not self._left:
            return None, 0.0
        name, array = self._left.pop(0)
        return Shareable({"name": name, "array": array, "last": not self._left}), TIMEOUT

    def process_replies(
        self, replies: dict[str, Shareable], stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> bool | None:
        """Go on while the server takes them."""
        taken = all(reply.get_return_code() == ReturnCode.OK for reply in replies.values())
        return None if taken else False


def hand_over(weights: Mapping[str, Any], number: int, fl_ctx: FLContext) -> str:
    """Stream a model to the server; the return code. ``optional``: a server that takes none in is no failure."""
    engine = fl_ctx.get_engine()
    ctx = StreamContext(round=number, arrays=len(weights))
    code, _ = engine.stream_objects(CHANNEL, TOPIC, ctx, ["server"], ModelProducer(weights), fl_ctx, optional=True)
    return str(code)
