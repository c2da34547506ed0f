"""Deciding what the server is sent of a job's log."""

from __future__ import annotations

from typing import get_args

from engine.actors import current_reason
from engine.core import Core
from engine.errors import ArgumentInvalid, JobUnknown
from engine.ids import check_job_id
from engine.streaming.joblogs import Sharing
from events.bodies.transfers import LogSharingSet


def share_log(core: Core, job_id: str, what: str) -> None:
    """See ``ClientEngine.share_log``."""
    method = "share_log"
    call = core.call(method, job_id, str(what)[:100])

    def check() -> None:
        check_job_id(job_id)
        if what not in get_args(Sharing):
            raise ArgumentInvalid(f"what is {str(what)[:40]!r}", "off, errors or live", field="what")
        if not core.site.jobs.load(job_id).known:
            raise JobUnknown(f"{job_id} is not on the record", "flightlog list shows the jobs that are")

    core.guarded(call, method, job_id, check)
    core.site.jobs.note(call, [LogSharingSet(what=what, reason=current_reason())], job_id)
