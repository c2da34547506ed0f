"""The base of what an app brings along to run tasks."""

from __future__ import annotations

from engine.component import FLComponent
from engine.context import FLContext
from engine.job.signal import Signal
from engine.shareable import Shareable


class Executor(FLComponent):
    """Runs tasks. The app's config says which (``executors``)."""

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Run one task, on the job's main thread.

        Args:
            task_name: which of the tasks that the config gives to this executor.
            shareable: what the server sent along.
            fl_ctx: a context of this run; ``fl_ctx.get_engine()`` has components, aux messages and more.
            abort_signal: look at ``abort_signal.triggered`` now and then, and return soon once it is set.

        Returns:
            The result. Its return code says how it went; what is raised instead becomes EXECUTION_EXCEPTION.
        """
        raise NotImplementedError
