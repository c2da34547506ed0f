"""Streams of objects: of any size, in order, each taken in once; with windows, resumption, and a record of what left.

``spec`` what users write; ``chunk`` an object on its way; ``fabric`` where it travels; ``window`` and ``sender`` the
producer's side; ``session`` and ``intake`` the consumer's; ``files`` and ``logs`` what is built on top.
"""

from engine.streaming.spec import (
    ConsumerFactory,
    ObjectConsumer,
    ObjectProducer,
    StreamContext,
    StreamContextKey,
)

__all__ = ["ConsumerFactory", "ObjectConsumer", "ObjectProducer", "StreamContext", "StreamContextKey"]
