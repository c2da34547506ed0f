"""abort_app: end an app, from every live state, while launching too, and with Redis down."""

from __future__ import annotations

import time

from engine.actors import current_reason
from engine.core import Core
from engine.decide import Abort
from engine.errors import ArgumentInvalid
from engine.fold import JobState
from engine.ids import check_job_id, new_call_id
from engine.orders import signal_keepers, write_order
from engine.workspace import Workspace
from events.bodies.job import Origin
from events.envelope import Actor, Call
from events.errors import LogUnavailable
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
    except LogUnavailable:
        spool_abort(
            core.site.workspace, job_id, call=call, origin=origin, grace=seconds, through=core.view.position
        )
        return core.view.get(job_id) or JobState()
    wait = settings.abort_timeout if timeout is None else timeout
    if recorded is None or wait <= 0:
        return core.site.jobs.load(job_id).state
    attempt = recorded.state.attempt
    version = recorded.appended.heads.get(f"job/{job_id}", (0, 0))[0]
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
    told: list[int] = []
    folder = workspace.job(job_id)
    write_order(workspace, job_id, through=through, before_ms=now, grace=grace)
    for attempt in folder.iterdir():
        if attempt.is_dir() and not (attempt / "exit.json").exists():
            told += signal_keepers(attempt)
    return told


def _checked(job_id: str, grace: float) -> None:
    check_job_id(job_id)
    if not isinstance(grace, int | float) or not 0 <= grace <= 86_400:
        raise ArgumentInvalid(f"grace is {grace!r}", "give seconds from 0 to 86400", field="grace")
