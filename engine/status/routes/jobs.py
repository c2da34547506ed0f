"""Jobs: lists, one job now or as it was, its output, its numbers."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from engine.errors import ArgumentInvalid
from engine.lifecycle import State
from engine.status import outputs, reads
from engine.status.jobs_list import SORTS, JobFilter, jobs_page
from engine.status.params import decoded, one_of, span
from engine.status.problems import Json
from engine.status.routes.common import (
    DEFAULT_LIMIT,
    At,
    Cursor,
    JobId,
    Limit,
    desk_of,
    problems,
    strict,
)
from engine.status.shapes import Job, JobPage, Rounds, SitePage, Usage
from engine.times import moment_ms

router = APIRouter(dependencies=[Depends(strict)], responses=problems(404, 409))
STATES = [state.value for state in State]

Time = Annotated[str | None, Query(max_length=40, examples=["2026-11-24T03:00:00Z", "2h"])]
AttemptNumber = Annotated[int | None, Query(ge=1, le=1_000_000, description="the last, if left out")]


@router.get("/v1/sites", response_model=SitePage, tags=["site"], summary="The sites of this server")
def sites(request: Request) -> Response:
    """One, today: the site that this server was started for."""
    return Json(reads.sites(desk_of(request)))


@router.get("/v1/jobs", response_model=JobPage, tags=["jobs"], summary="List jobs")
def jobs(
    request: Request,
    state: Annotated[list[str] | None, Query(description="one or more states", examples=[["running"]])] = None,
    app: Annotated[str | None, Query(max_length=200, description="name of the app")] = None,
    actor: Annotated[str | None, Query(max_length=200, description="who asked something of it")] = None,
    prefix: Annotated[str | None, Query(max_length=128, description="how the id begins")] = None,
    since: Time = None,
    until: Time = None,
    sort: Annotated[str, Query(max_length=20, description=f"one of {', '.join(SORTS)}")] = "",
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Response:
    """Jobs, the last changed first; `since` and `until` bound the last change of state.

    With `prefix` they come by id, with `app` or `actor` by creation, unless `sort` says otherwise. A page is short
    where few of many fit; `next` goes on.
    """
    desk = desk_of(request)
    if sort:
        one_of([sort], SORTS, "sort")
    now = desk.store.now_ms() if since or until else 0
    low = moment_ms(since, "since", now) if since else None
    high = moment_ms(until, "until", now) if until else None
    span(low, high, ("since", "until"))
    asked = JobFilter(
        states=one_of(state, STATES, "state"),
        app=app,
        actor=actor,
        prefix=prefix,
        since=low,
        until=high,
        sort=sort,
        limit=limit,
        after=decoded(cursor, str, (int, float), str),
    )
    return Json(jobs_page(desk, asked))


@router.get("/v1/jobs/{job_id}", response_model=Job, tags=["jobs"], summary="Show a job")
def job(request: Request, job_id: JobId, at: At = None) -> Response:
    """A job: state, since when, who asked and why, what it waits for, until when, what may be asked of it now.

    With `at`, the job as it was then, with the event that made it so. The `ETag` is the revision, for `If-Match`.
    """
    desk = desk_of(request)
    shown = reads.job_now(desk, job_id) if at is None else reads.job_then(desk, job_id, at)
    return Json(shown, headers={"ETag": f'"{shown["revision"]}"'} if at is None else None)


@router.get(
    "/v1/jobs/{job_id}/log",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "the output"},
        206: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "the range"},
        **problems(416),
    },
    tags=["jobs"],
    summary="Read an app's output",
)
async def job_log(
    request: Request,
    job_id: JobId,
    attempt: AttemptNumber = None,
    lines: Annotated[int | None, Query(ge=1, le=10_000, description="only the last lines")] = None,
    offset: Annotated[int, Query(ge=0, le=2**53, description="bytes to pass over")] = 0,
    follow: Annotated[bool, Query(description="as it grows, until the app ends")] = False,
    range_: Annotated[str | None, Header(alias="Range", max_length=100, examples=["bytes=0-1023"])] = None,
) -> Response:
    """The output of the app, as text; a range of its bytes with `Range`."""
    if lines is not None and (offset or range_ or follow):
        raise ArgumentInvalid("lines goes with neither offset nor follow nor Range", "leave one out", field="lines")
    desk = desk_of(request)
    output = await asyncio.to_thread(outputs.log_of, desk, job_id, attempt)
    if lines is not None:
        text = await asyncio.to_thread(outputs.last_lines, output, lines)
        return Response(text, media_type=outputs.TEXT)
    if follow:
        return StreamingResponse(outputs.follow(desk, output, offset), media_type=outputs.TEXT)
    part = outputs.ranged(output, range_)
    size = part[2] if part else outputs.size_of(output)
    first, last = part[:2] if part else (min(offset, size), size)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(last - first)}
    if part:
        headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
    return StreamingResponse(outputs.piece(output, first, last), 206 if part else 200, headers, outputs.TEXT)


@router.get("/v1/jobs/{job_id}/metrics", response_model=Rounds, tags=["jobs"], summary="Read an app's metrics")
def job_metrics(
    request: Request,
    job_id: JobId,
    limit: Annotated[int, Query(ge=1, le=10_000, description="the last so many")] = 1000,
) -> Response:
    """The rows that the app wrote into `metrics.jsonl` of its run folder, the oldest first."""
    return Json(outputs.metrics(desk_of(request), job_id, limit))


@router.get("/v1/jobs/{job_id}/usage", response_model=Usage, tags=["jobs"], summary="What an app's processes used")
def job_usage(
    request: Request,
    job_id: JobId,
    attempt: AttemptNumber = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="the last so many")] = 1000,
) -> Response:
    """Processors, memory and GPU memory of the app's process tree, sampled every few seconds."""
    return Json(outputs.usage(desk_of(request), job_id, attempt, limit))
