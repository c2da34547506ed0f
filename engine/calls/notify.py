"""notify_job_status: a job says that it runs, or that its work is over."""

from __future__ import annotations

from engine.constants import ClientStatus
from engine.core import Core
from engine.decide import Command, NotifyStarted, NotifyStopped
from engine.errors import ArgumentInvalid, NotAuthorised
from engine.ids import check_job_id


def notify(core: Core, job_id: str, job_status: object, *, proven: bool = False) -> None:
    """Take in a job's status (reference 1.2); what makes no sense is refused and recorded.

    Args:
        core: the engine's.
        job_id: which job.
        job_status: ``ClientStatus.STARTED`` or ``STOPPED``.
        proven: the run's key has signed it.

    Raises:
        JobIdInvalid, ArgumentInvalid: bad input.
        NotAuthorised: the job's process signs what it says, and this is not signed.
        JobUnknown, NotLive, Backwards: refused.
    """
    method = "notify_job_status"
    call = core.call(method, job_id, repr(job_status))
    command = core.guarded(call, method, job_id, lambda: _command(core, job_id, job_status, call.actor.id))
    if not proven:
        from engine.calls.notice import check_unsigned

        loaded = core.site.jobs.load(job_id)
        try:
            check_unsigned(core, job_id, loaded.state)
        except NotAuthorised as error:
            raise core.refuse(call, method, error, job_id, loaded.state, loaded.revision) from error
    core.command(call, job_id, command)


def _command(core: Core, job_id: str, job_status: object, by: str) -> Command:
    check_job_id(job_id)
    if job_status == ClientStatus.STARTED and not isinstance(job_status, bool):
        return NotifyStarted(by=by)
    if job_status == ClientStatus.STOPPED:
        return NotifyStopped(by=by, ends_within=core.site.settings.finishing_deadline)
    raise ArgumentInvalid(
        f"job_status is {str(job_status)[:80]!r}",
        f"give {int(ClientStatus.STARTED)} (started) or {int(ClientStatus.STOPPED)} (stopped)",
        field="job_status",
    )
