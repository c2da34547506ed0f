"""One job, now: asked more often than anything else, so it goes the shortest way.

One round trip on the loop, right behind the guard: no router, and no parameters to look at. A request that has any
takes the described route (``engine.status.routes.jobs.job``), and so does what this one cannot answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from engine import present
from engine.ids import check_job_id
from engine.jobs import settled
from engine.status import reads
from engine.status.desk import Desk
from engine.status.problems import Json
from events.subjects import job_subject

PREFIX = "/v1/jobs/"
PATIENCE = 5.0  # seconds


class Quick:
    """The layer between the guard and everything else.

    Args:
        app: what comes after it.
        desk: of this process.
    """

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app = app
        self._desk = desk
        #: What the request is counted as.
        self._route = Route(PREFIX + "{job_id}", self, methods=["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or leave it to the routes.

        Raises:
            JobIdInvalid, JobUnknown: answered by the guard.
        """
        if not _is_plain(scope):
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        job_id = check_job_id(scope["path"].removeprefix(PREFIX))
        shown = await self._shown(job_id)
        if shown is None:
            shown = await run_in_threadpool(reads.job_now, self._desk, job_id)
        await Json(shown, headers={"ETag": f'"{shown["revision"]}"'})(scope, receive, send)

    async def _shown(self, job_id: str) -> dict[str, Any] | None:
        """The job in one round trip; None where that does not settle it."""
        desk = self._desk
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


def _is_plain(scope: Scope) -> bool:
    """Whether a request asks for one job, and for nothing beside."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
        return False
    path: str = scope["path"]
    return path.startswith(PREFIX) and len(path) > len(PREFIX) and "/" not in path[len(PREFIX) :]
