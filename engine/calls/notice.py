"""A job's own process says where it stands: taken in only where its run key proves that it is the one."""

from __future__ import annotations

import logging

from engine.actors import acting_as
from engine.app_config import parse_config
from engine.archive import CONFIG
from engine.calls.notify import notify
from engine.cell.message import CellReturnCode, Message, MessageHeaderKey, failed
from engine.core import Core
from engine.errors import ArgumentInvalid, NotAuthorised
from engine.files import read_plain
from engine.fold import JobState
from engine.ids import check_job_id
from engine.job.grant import signed_by
from events.envelope import Actor
from events.errors import FlightlogError, LogUnavailable

log = logging.getLogger("flightlog.engine")

TOPIC = "notify_job_status"


class Notices:
    """Takes in what jobs' processes say.

    Args:
        core: the engine's.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def handle(self, message: Message) -> Message:
        """A notice from the cell. Answers "ok", or why it was refused; another code means: say it again."""
        said = message.payload
        origin = str(message.get_header(MessageHeaderKey.ORIGIN, ""))
        stranger = Actor(id=origin[:200] or "?", kind="job", auth="none", via="cell")
        try:
            job, attempt, status, signature = _read(said)
        except FlightlogError as error:
            with acting_as(stranger):
                self._core.refuse(self._core.call(TOPIC), TOPIC, error)
            return Message(payload=str(error))
        state = self._core.site.jobs.load(job).state
        if state.live and not state.spawned and state.attempt == attempt:
            return failed(CellReturnCode.SERVICE_UNAVAILABLE, "the record of the spawn is not there yet")
        actor = Actor(id=f"{self._core.site.name}.{job}", kind="job", auth="signed", via="cell")
        if state.attempt != attempt or not signed_by(state.get("run_key", ""), job, attempt, status, signature):
            with acting_as(stranger):
                forged = NotAuthorised(
                    f"{origin[:100]!r} says that {job} is at status {status}, and its run's key did not sign that",
                    "only the job's own process can say so",
                )
                refused = self._core.refuse(self._core.call(TOPIC, job, status), TOPIC, forged, job, state)
            return Message(payload=str(refused))
        try:
            with acting_as(actor):
                notify(self._core, job, status, proven=True)
        except LogUnavailable as error:
            return failed(CellReturnCode.SERVICE_UNAVAILABLE, error.what)
        except FlightlogError as error:
            return Message(payload=str(error))
        return Message(payload="ok")


def check_unsigned(core: Core, job_id: str, state: JobState) -> None:
    """A notice that nobody signed is for jobs without a run key only.

    Raises:
        NotAuthorised: this job's process signs what it says.
    """
    if state.get("run_key") or (state.live and not state.spawned and _signs(core, job_id)):
        raise NotAuthorised(
            f"the process of {job_id} signs what it says of itself, and this is not signed",
            "only the job's own process can say so",
        )


def _signs(core: Core, job_id: str) -> bool:
    """Whether the app in place will have a run key, before the record of its spawn says so."""
    try:
        return bool(parse_config(read_plain(core.site.workspace.app(job_id) / CONFIG)).executors)
    except (OSError, FlightlogError):
        return False


def _read(said: object) -> tuple[str, int, int, str]:
    if not isinstance(said, dict):
        raise ArgumentInvalid(f"the notice is a {type(said).__name__}", "give job, attempt, status, signature")
    job = check_job_id(said.get("job"))
    attempt, status, signature = said.get("attempt"), said.get("status"), said.get("signature")
    if type(attempt) is not int or type(status) is not int or not isinstance(signature, str):
        raise ArgumentInvalid("the notice lacks attempt, status or signature", "give all of them")
    return job, attempt, status, signature
