"""The server's side of the models that sites stream: each is put together from its arrays, and kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.constants import ReturnCode
from engine.context import FLContext
from engine.shareable import Shareable, make_reply
from engine.streaming import ConsumerFactory, ObjectConsumer, StreamContext, StreamContextKey

CHANNEL, TOPIC = "breast_cancer", "model"  # as the app's ``handover`` has them


class Model(NamedTuple):
    """A model that came whole."""

    site: str
    arrays: int
    numbers: int
    path: Path


class ModelConsumer(ObjectConsumer):
    """Collects the arrays of one model.

    Args:
        models: where it goes when it is whole.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._arrays: dict[str, Any] = {}

    def consume(
        self, shareable: Shareable, stream_ctx: StreamContext, fl_ctx: FLContext
    ) -> tuple[bool, Shareable | None]:
        """Keep an array; with the last the stream is over."""
        self._arrays[shareable["name"]] = np.asarray(shareable["array"])
        return not shareable["last"], make_reply(ReturnCode.OK)

    def finalize(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> None:
        """A model that did not come whole is dropped."""
        if stream_ctx[StreamContextKey.RC] == ReturnCode.OK and len(self._arrays) == stream_ctx["arrays"]:
            self._models.keep(stream_ctx[StreamContextKey.SENDER].partition(".")[0], self._arrays)


class Models(ConsumerFactory):
    """The models of all sites, as files ``<site>.npz``.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str, Model] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def get_consumer(self, stream_ctx: StreamContext, fl_ctx: FLContext) -> ObjectConsumer:
        """One for each stream: sites send at the same time."""
        return ModelConsumer(self)

    def keep(self, site: str, arrays: dict[str, Any]) -> None:
        """Put a model into its file."""
        path = self.folder / f"{site}.npz"
        np.savez(path, **arrays)
        self.kept[site] = Model(site, len(arrays), sum(array.size for array in arrays.values()), path)
