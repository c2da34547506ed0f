"""What an engine asks of a job's process: its tasks, its errors, its logging (reference 2.1)."""

from __future__ import annotations

import json
from typing import Any

from engine.cell.message import CellChannel, CellReturnCode, Message
from engine.comm import Comm
from engine.constants import ClientStatus
from engine.core import Core
from engine.errors import ArgumentInvalid
from engine.ids import check_job_id
from events.bodies.messages import ErrorsReset, JobLogConfigured, TaskAbortRequested
from events.envelope import digest_of

ERROR = "NVFLARE_ERROR: "
TASK_ABORTED = "Abort signal has been sent to the current task."


class CommandTopic:
    """Topics on which a job's process answers its engine."""

    ABORT_TASK = "abort_task"
    SHOW_STATS = "show_stats"
    SHOW_ERRORS = "show_errors"
    RESET_ERRORS = "reset_errors"
    CONFIGURE_LOG = "configure_job_log"


class ClientRunInfo(dict[str, Any]):
    """What a job does: ``job_id``, ``current_task_name``, ``start_time`` (ms; None between tasks), and counters."""

    @property
    def job_id(self) -> str:
        """Which job."""
        return str(self.get("job_id", ""))

    @property
    def current_task_name(self) -> str:
        """The task that runs now, or ""."""
        return str(self.get("current_task_name", ""))

    @property
    def start_time(self) -> int | None:
        """Since when, in ms since the epoch; None between tasks."""
        value = self.get("start_time")
        return None if value is None else int(value)


class JobTalk:
    """Questions and orders to jobs' processes.

    Args:
        core: the engine's.
        comm: carries them.
    """

    def __init__(self, core: Core, comm: Comm) -> None:
        self._core = core
        self._comm = comm

    def abort_task(self, job_id: str) -> str:
        """See ``ClientEngine.abort_task``."""
        from engine.actors import current_reason

        method = "abort_task"
        call = self._core.call(method, job_id)
        self._core.guarded(call, method, job_id, lambda: check_job_id(job_id))
        state = self._comm.latest(job_id)
        if state and not state.live and state.client_status == ClientStatus.NOT_STARTED.text:
            return "Client app has not started."
        if state.client_status == ClientStatus.STARTING.text:
            return "Client app is starting, please wait for started before abort_task."
        if state.live:
            self._core.site.jobs.note(call.at("abort-task"), [TaskAbortRequested(reason=current_reason())], job_id)
        answer = self._ask(method, job_id, CommandTopic.ABORT_TASK, call=call)
        if answer.return_code != CellReturnCode.OK:
            return ERROR + str(answer.get_header("error", answer.return_code))
        return TASK_ABORTED

    def run_info(self, job_id: str) -> ClientRunInfo:
        """See ``ClientEngine.get_current_run_info``."""
        answer = self._ask("get_current_run_info", job_id, CommandTopic.SHOW_STATS)
        if answer.return_code == CellReturnCode.OK and isinstance(answer.payload, dict):
            return ClientRunInfo(answer.payload)
        state = self._comm.state_of(job_id)
        if not state:
            return ClientRunInfo(error=str(answer.get_header("error", "")))
        return ClientRunInfo(
            job_id=job_id,
            current_task_name=state.get("task", ""),
            start_time=int(state["task_since"]) if state.get("task_since") else None,
            tasks=int(state.get("tasks") or 0),
            tasks_done=int(state.get("tasks_done") or 0),
            messages_sent=int(state.get("messages_out") or 0),
            error=str(answer.get_header("error", "")),
        )

    def errors(self, job_id: str) -> dict[str, Any] | None:
        """See ``ClientEngine.get_errors``."""
        answer = self._ask("get_errors", job_id, CommandTopic.SHOW_ERRORS)
        return answer.payload if answer.return_code == CellReturnCode.OK else None

    def reset_errors(self, job_id: str) -> None:
        """See ``ClientEngine.reset_errors``."""
        method = "reset_errors"
        call = self._core.call(method, job_id)
        self._core.guarded(call, method, job_id, lambda: check_job_id(job_id))
        if self._comm.state_of(job_id).live:
            self._core.site.jobs.note(call.at("reset"), [ErrorsReset()], job_id)
        self._ask(method, job_id, CommandTopic.RESET_ERRORS, call=call)

    def configure_log(self, job_id: str, config: str | dict[str, Any]) -> str | None:
        """See ``ClientEngine.configure_job_log``."""
        method = "configure_job_log"
        call = self._core.call(method, job_id, config)
        self._core.guarded(call, method, job_id, lambda: _check_config(job_id, config))
        if self._comm.state_of(job_id).live:
            said = config[:100] if isinstance(config, str) else f"sha256 {digest_of(config)}"
            self._core.site.jobs.note(call.at("log"), [JobLogConfigured(config=said)], job_id)
        answer = self._ask(method, job_id, CommandTopic.CONFIGURE_LOG, config, call=call)
        if answer.return_code != CellReturnCode.OK:
            return str(answer.get_header("error", answer.return_code))
        return str(answer.payload) if answer.payload else None

    def _ask(self, method: str, job_id: str, topic: str, payload: Any = None, call: Any = None) -> Message:
        timeout = self._core.site.settings.job_query_timeout
        channel = CellChannel.CLIENT_COMMAND
        return self._comm.to_job(
            method, job_id, channel, topic, Message(payload=payload), timeout, optional=True, call=call
        )


def _check_config(job_id: object, config: object) -> None:
    check_job_id(job_id)
    if isinstance(config, str) and config:
        return
    if isinstance(config, dict):
        try:
            json.dumps(config)
        except (TypeError, ValueError) as error:
            raise ArgumentInvalid(f"config cannot be sent: {error}", "give plain values", field="config") from error
        return
    raise ArgumentInvalid(
        f"config is a {type(config).__name__}", "give a level (DEBUG, INFO, ...) or a dictionary", field="config"
    )
