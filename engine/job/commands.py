"""What the engine of the site asks its job's process (``engine.jobtalk`` is the other side)."""

from __future__ import annotations

import logging
import logging.config
from typing import Any

from engine.cell.message import CellChannel, CellReturnCode, Message, MessageHeaderKey, failed
from engine.core import Core
from engine.fold import JobState
from engine.job.kept_errors import KeptErrors
from engine.job.tasks import Tasks
from engine.jobtalk import CommandTopic

CHANNEL = CellChannel.CLIENT_COMMAND


class Commands:
    """Answers the engine.

    Args:
        core: the process's.
        job: the job's id.
        tasks: to give up, and to count.
        kept: the errors that were logged.
    """

    def __init__(self, core: Core, job: str, tasks: Tasks, kept: KeptErrors) -> None:
        self._core = core
        self._job = job
        self._tasks = tasks
        self._kept = kept

    def handle(self, request: Message) -> Message:
        """A command, sealed with the site's own key, which nobody else on the fabric has."""
        site = self._core.site.name
        sealed = request.get_header(MessageHeaderKey.SECURE)
        if not sealed or request.get_header(MessageHeaderKey.ORIGIN) != site:
            return failed(CellReturnCode.UNAUTHENTICATED, f"commands come from {site} alone, sealed")
        topic = request.get_header(MessageHeaderKey.TOPIC)
        if topic == CommandTopic.ABORT_TASK:
            self._tasks.abort("engine")
            return Message(payload="")
        if topic == CommandTopic.SHOW_STATS:
            return Message(payload=self._stats())
        if topic == CommandTopic.SHOW_ERRORS:
            return Message(payload={"job_id": self._job, "errors": self._kept.all()})
        if topic == CommandTopic.RESET_ERRORS:
            self._kept.reset()
            return Message(payload="")
        if topic == CommandTopic.CONFIGURE_LOG:
            return Message(payload=self._configure_log(request.payload))
        return failed(CellReturnCode.INVALID_REQUEST, f"there is no command {topic!r}")

    def _stats(self) -> dict[str, Any]:
        state = self._core.view.get(self._job) or JobState()
        return {
            "job_id": self._job,
            **self._tasks.stats(),
            "messages_sent": int(state.get("messages_out") or 0),
            "messages_received": int(state.get("messages_in") or 0),
        }

    def _configure_log(self, config: Any) -> str:
        """Change the logging; what kept it from being done, or ""."""
        try:
            if isinstance(config, dict):
                logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **config})
                logging.getLogger().addHandler(self._kept)
            else:
                logging.getLogger().setLevel(str(config).upper())
        except (ValueError, TypeError, AttributeError, ImportError) as error:
            return f"{type(error).__name__}: {error}"[:500]
        return ""
