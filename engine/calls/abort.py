"""abort_app: end an app, from every live state, while launching too, and with Redis down."""

from __future__ import annotations

import time
from collections.abc import Sequence

from engine.actors import current_reason
from engine.core import Core
from engine.decide import Abort
from engine.errors import ArgumentInvalid, JobUnknown, NotLive
from engine.fold import JobState
from engine.ids import check_job_id, new_call_id
from engine.orders import signal_keepers, write_order
from engine.refusals import standing
from engine.workspace import Workspace
from events.bodies.app import AppLost
from events.bodies.base import Body
from events.bodies.job import Origin
from events.envelope import Actor, Call
from events.errors import FlightlogError, LogUnavailable, RecordFull
from events.spool import Spool


def abort(
    core: Core,
    job_id: str,
    *,
    origin: Origin = "user",
    grace: float | None = None,
    timeout: float | None = None,
) -> JobState:
    """Abort a job's app (reference 2.4) and wait a moment for its end.

    With the record away the order goes to the workspace's spool and to the keepers at once; it
    enters the record before anything else when that is back.

    Args:
        core: the engine's.
        job_id: which job.
        origin: who is behind it; a user's abort goes over a heartbeat's.
        grace: seconds between the polite signal and the kill.
        timeout: seconds to wait for the end; 0: not at all.

    Returns:
        The job's state, which may still be ``aborting``.

    Raises:
        JobIdInvalid, ArgumentInvalid: bad input.
        JobUnknown, NotStarted, AlreadyStopped: there is nothing to abort.
    """
    method = "abort_app"
    settings = core.site.settings
    seconds = settings.grace if grace is None else grace
    call = core.call(method, job_id, origin, seconds)
    core.guarded(call, method, job_id, lambda: _checked(job_id, seconds))
    command = Abort(origin=origin, grace=float(seconds), reason=current_reason())
    try:
        recorded = core.command(call, job_id, command)
    except (LogUnavailable, RecordFull):
        spool_abort(core.site.workspace, job_id, call=call, origin=origin, grace=seconds, through=core.view.position)
        return core.view.get(job_id) or JobState()
    wait = settings.abort_timeout if timeout is None else timeout
    if recorded is None or wait <= 0:
        return core.site.jobs.load(job_id).state
    attempt = recorded.state.attempt
    version = recorded.version
    state = core.view.wait(job_id, version, lambda s: s.attempt != attempt or not s.live, wait)
    return state or core.site.jobs.load(job_id).state


def spool_abort(
    workspace: Workspace,
    job_id: str,
    *,
    call: Call | None = None,
    actor: Actor | None = None,
    origin: Origin = "user",
    grace: float,
    through: str | None = None,
) -> list[int]:
    """Order an app's end without the record: spool, order file, and a signal to whoever keeps it.

    Args:
        workspace: of the site.
        job_id: whose app.
        call: the call that could not be recorded, or None for a new one of ``actor``.
        actor: who asks, where there is no call.
        origin: who is behind it.
        grace: seconds between the polite signal and the kill.
        through: position up to which starts are meant, where it is known.

    Returns:
        Pids of the keepers that were told.
    """
    if call is None:
        assert actor is not None  # noqa: S101 - a caller's slip, not an input
        call = Call(call_id=new_call_id(), actor=actor)
    now = time.time_ns() // 1_000_000
    order = {"through": through, "before_ms": now, "grace": grace}
    Spool(workspace.spool).put(
        f"{now}-{call.call_id}",
        {
            **order,
            "job": job_id,
            "origin": origin,
            "reason": current_reason(),
            "call_id": call.call_id,
            "arguments": call.arguments,
            "actor": call.actor.model_dump(mode="json"),
        },
    )
    return order_end(workspace, job_id, through=through, before_ms=now, grace=grace)


def order_end(workspace: Workspace, job_id: str, *, through: str | None, before_ms: int, grace: float) -> list[int]:
    """Write an order for a job's app and tell whoever keeps it; the pids that were told."""
    write_order(workspace, job_id, through=through, before_ms=before_ms, grace=grace)
    told: list[int] = []
    for attempt in workspace.job(job_id).iterdir():
        if attempt.is_dir() and not (attempt / "exit.json").exists():
            told += signal_keepers(attempt)
    return told


def declare_lost(core: Core, job_id: str, reason: str) -> JobState:
    """An operator says that nobody will ever see this app's end; the job is closed without a code.

    Raises:
        JobUnknown, NotLive: the job has no live app.
    """
    method = "abort_app"
    call = core.call(method, job_id, "lost")
    core.guarded(call, method, job_id, lambda: check_job_id(job_id))
    loaded = core.site.jobs.load(job_id)
    if not loaded.state.live:
        error: FlightlogError = (
            NotLive(f"{job_id} {standing(loaded.state)}", f"flightlog show {job_id}")
            if loaded.known
            else JobUnknown(f"job {job_id} is not on this site's record", "flightlog list")
        )
        raise core.refuse(call, method, error, job_id, loaded.state, loaded.revision)

    def decide(state: JobState) -> Sequence[Body]:
        lost = AppLost(attempt=state.attempt, reason=reason[:500], declared_by=call.actor.id)
        return [lost] if state.live else []

    recorded = core.site.jobs.transact(call, job_id, decide)
    # Should it be there after all, it must not run on unseen, nor be launched late.
    order_end(core.site.workspace, job_id, through=core.view.position, before_ms=0, grace=core.site.settings.grace)
    return recorded.state if recorded is not None else core.site.jobs.load(job_id).state


def _checked(job_id: str, grace: float) -> None:
    check_job_id(job_id)
    if not isinstance(grace, int | float) or not 0 <= grace <= 86_400:
        raise ArgumentInvalid(f"grace is {grace!r}", "give seconds from 0 to 86400", field="grace")
