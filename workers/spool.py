"""Draining the spool: orders that were given while the record was away enter it before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.decide import Abort, Accepted, Refused, decide
from engine.fold import JobState
from engine.orders import covers
from engine.site import Site
from events.bodies.base import Body
from events.bodies.job import CallRefused, CallRepeated
from events.bodies.site import SpoolDrained
from events.envelope import Actor, Call


def drain(site: Site) -> int:
    """Record what waits in the spool, oldest first; how many orders that were."""
    count = 0
    for path, order in site.spool.waiting():
        _record(site, order)
        path.unlink(missing_ok=True)
        count += 1
    if count:
        site.jobs.note(site.system_call("drained", role="spool"), [SpoolDrained(orders=count)])
    return count


def _record(site: Site, order: dict[str, Any]) -> None:
    """Decide a spooled abort again, as the job stands now: what is over is refused."""
    call = Call(
        call_id=order["call_id"],
        actor=Actor.model_validate(order["actor"]),
        step="intent",
        arguments=order["arguments"],
    )
    job = order["job"]
    command = Abort(origin=order["origin"], grace=order["grace"], reason=order["reason"])

    def refused(state: JobState, code: str) -> CallRefused:
        return CallRefused(
            method="abort_app",
            code=code,
            message="given while the record was away",
            state=state.state.value,
            job=None if state else job,
        )

    def choose(state: JobState) -> Sequence[Body]:
        decision = decide(state, command)
        if isinstance(decision, Accepted):
            if covers(order, state.get("start_position", "0-0")):
                return decision.bodies
            return [refused(state, "ALREADY_STOPPED")]
        if isinstance(decision, Refused):
            return [refused(state, decision.code)]
        return [CallRepeated(method="abort_app", state=state.state.value)]

    if site.jobs.load(job).known:
        site.jobs.transact(call, job, choose)
    else:
        site.jobs.note(call, [refused(JobState(), "JOB_UNKNOWN")])
