"""delete_run: remove a job's run folder."""

from __future__ import annotations

from engine.actors import current_reason
from engine.core import Core
from engine.decide import Delete
from engine.errors import CallTimeout, DeleteFailedError
from engine.fold import JobState
from engine.ids import check_job_id
from engine.lifecycle import State
from engine.refusals import clock
from events.errors import FlightlogError


def delete(core: Core, job_id: str, *, timeout: float | None = None) -> JobState:
    """Delete a job's run folder and wait for the outcome.

    Args:
        core: the engine's.
        job_id: which job.
        timeout: seconds to wait; 0: not at all.

    Returns:
        The job's state.

    Raises:
        JobIdInvalid: bad input.
        JobUnknown, JobLive, JobBusy: refused.
        CallTimeout: the outcome is not known yet.
        DeleteFailedError: it was given up.
    """
    method = "delete_run"
    call = core.call(method, job_id)
    core.guarded(call, method, job_id, lambda: check_job_id(job_id))
    settings = core.site.settings
    recorded = core.command(
        call,
        job_id,
        Delete(reason=current_reason(), deadline=settings.claim_deadline, attempts=settings.attempts),
    )
    wait = settings.delete_timeout if timeout is None else timeout
    if recorded is None or wait <= 0:
        return core.site.jobs.load(job_id).state
    version = recorded.version
    state = core.view.wait(job_id, version, lambda s: s.state is not State.DELETING, wait)
    if state is None:
        raise CallTimeout(
            f"the delete of {job_id} is pending until {clock(recorded.state['deadline'])}",
            f"flightlog wait {job_id}",
        )
    if (error := failure(job_id, state)) is not None:
        raise error
    return state


def failure(job_id: str, state: JobState) -> FlightlogError | None:
    """The error of a delete that is over; None where it went well."""
    if state.state is not State.DELETE_FAILED:
        return None
    return DeleteFailedError(
        f"the run folder of {job_id} could not be removed: {state['error']}", f"flightlog why {job_id}"
    )
