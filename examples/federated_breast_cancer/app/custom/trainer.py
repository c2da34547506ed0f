"""What a site does when the server gives it a task."""

from __future__ import annotations

from typing import Any

import handover
import model

from engine.constants import ReturnCode
from engine.context import FLContext
from engine.job.executor import Executor
from engine.job.metrics import metrics
from engine.shareable import Shareable, make_reply


class Trainer(Executor):
    """Trains on the site's own rows and sends weights back, never a row.

    Args:
        epochs: steps over all rows per round.
        lr: the learning rate.
        data: the id of the component that has the rows.
    """

    def __init__(self, epochs: int = 5, lr: float = 0.1, data: str = "data") -> None:
        super().__init__()
        self._epochs, self._lr, self._data = epochs, lr, data
        #: What this site came to in its last round, before the others' were mixed in.
        self._mine: dict[str, Any] = {}

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Any) -> Shareable:
        """Do a task.

        Args:
            task_name: ``train`` or ``validate``.
            shareable: ``round``, ``weights`` (empty to train from the model's start), ``site_index`` and ``sites``.
            fl_ctx: knows the site, the job, and the engine with its components.
            abort_signal: is looked at between epochs.

        Returns:
            To ``train``: the new ``weights``, the number of ``samples`` that they come from, and their ``loss`` and
            ``accuracy`` on rows of the site that they were not trained on. To ``validate``: the ``accuracy`` of the
            given weights on these rows, and how many ``samples`` they are; the site's own model goes to the server
            as a stream beside it.
        """
        if task_name not in ("train", "validate"):
            return make_reply(ReturnCode.TASK_UNKNOWN)
        try:
            share = fl_ctx.get_engine().get_component(self._data).share(shareable["site_index"], shareable["sites"])
            features = share.x.shape[1]
            fresh = task_name == "train" and not shareable["weights"]
            weights = model.start(features) if fresh else model.checked(shareable["weights"], features)
            number = int(shareable["round"])
        except (KeyError, TypeError, ValueError) as error:
            self.log_error(fl_ctx, f"{task_name}: {type(error).__name__}: {error}")
            return make_reply(ReturnCode.BAD_TASK_DATA)
        if task_name == "validate":
            if self._mine:
                handover.hand_over(self._mine, number, fl_ctx)
            accuracy = model.accuracy(weights, share.x_valid, share.y_valid)
            return Shareable({"accuracy": accuracy, "samples": len(share.y_valid)})

        for _ in range(self._epochs):
            if abort_signal.triggered:
                return make_reply(ReturnCode.TASK_ABORTED)
            weights = model.step(weights, share.x, share.y, self._lr)
        self._mine = weights
        loss = model.loss(weights, share.x_valid, share.y_valid)
        accuracy = model.accuracy(weights, share.x_valid, share.y_valid)
        metrics(round=number, loss=loss, accuracy=accuracy)
        return Shareable({"weights": weights, "samples": share.samples, "loss": loss, "accuracy": accuracy})
