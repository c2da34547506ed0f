"""One job, now: asked more often than anything else, so it goes the shortest way.

One round trip on the loop, and no parameters to look at: a request that has any takes the described route, and so
does what this one cannot answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from engine import present
from engine.ids import check_job_id
from engine.jobs import settled
from engine.status import reads
from engine.status.desk import Desk
from engine.status.problems import Json
from engine.status.routes.common import desk_of
from events.subjects import job_subject

PATH = "/v1/jobs/{job_id}"
PATIENCE = 5.0  # seconds


class Quick(Route):
    """The route; what has a query is not its own."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is for it."""
        if scope["method"] != "GET" or scope.get("query_string"):
            return Match.NONE, {}
        found, child = super().matches(scope)
        return found, {**child, "route": self}


async def job(request: Request) -> Response:
    """A job as it is; see ``engine.status.routes.jobs.job``."""
    desk, job_id = desk_of(request), check_job_id(request.path_params["job_id"])
    shown = await _shown(desk, job_id)
    if shown is None:
        shown = await run_in_threadpool(reads.job_now, desk, job_id)
    return Json(shown, headers={"ETag": f'"{shown["revision"]}"'})


async def _shown(desk: Desk, job_id: str) -> dict[str, Any] | None:
    """The job in one round trip; None where that does not settle it."""
    keys = desk.store.keys
    try:
        async with desk.loop_client.pipeline(transaction=False) as pipe:
            pipe.hget(keys.heads, job_subject(job_id))
            pipe.hgetall(keys.job(job_id))
            pipe.llen(keys.index(job_id))
            pipe.hgetall(desk.names.attempts(job_id))
            async with asyncio.timeout(PATIENCE):
                head, fields, indexed, attempts = await pipe.execute()
    except (redis.RedisError, TimeoutError):
        return None  # asked the other way, which says what is wrong
    loaded = settled(head, fields, indexed)
    if loaded is None:
        return None
    loaded.state.seen_with(desk.store.vault)
    shown = present.job(job_id, loaded, desk.site.workspace)
    return {**shown, "attempts": reads.in_order(desk, attempts)}


ROUTE = Quick(PATH, job, methods=["GET"], include_in_schema=False)
