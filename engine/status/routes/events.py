"""Events: in pages, and as they come."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from engine.ids import check_job_id
from engine.status.events_list import EventFilter, events_page
from engine.status.params import one_of, position, span
from engine.status.problems import Json
from engine.status.routes.common import DEFAULT_LIMIT, JobId, Limit, desk_of, problems, strict
from engine.status.routes.jobs import Time
from engine.status.shapes import POSITION, EventPage
from engine.times import moment_ms
from events.bodies import BODIES

router = APIRouter(dependencies=[Depends(strict)], responses=problems(404))

#: One server-sent event, as a reader's library gives it.
FRAME = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "the position", "examples": [POSITION]},
        "event": {"type": "string", "description": "none for an event of the record; `record`, `reset`"},
        "data": {"type": "string", "description": "the event as JSON"},
        "retry": {"type": "integer"},
    },
}

Types = Annotated[list[str] | None, Query(alias="type", description="one or more types", examples=[["AppFailed"]])]
Actor = Annotated[str | None, Query(max_length=200, description="id of who acted")]
Correlation = Annotated[str | None, Query(max_length=100, description="id of the first call, or of this one")]
Text = Annotated[str | None, Query(alias="q", max_length=200, description="text within the event")]
Reads = Annotated[bool, Query(description="folded reads too")]
Direction = Annotated[Literal["asc", "desc"], Query(description="oldest first, or newest first")]
Position = Annotated[
    str | None, Query(max_length=40, description="a position: events beyond it, in that order", examples=[POSITION])
]


def _asked(
    request: Request,
    job: str | None,
    types: list[str] | None,
    actor: str | None,
    correlation: str | None,
    text: str | None,
    reads: bool,
    since: str | None,
    until: str | None,
    order: str,
    cursor: str | None,
    limit: int,
) -> EventFilter:
    now = desk_of(request).store.now_ms() if since or until else 0
    low = moment_ms(since, "since", now) if since else None
    high = moment_ms(until, "until", now) if until else None
    span(low, high, ("since", "until"))
    return EventFilter(
        job=check_job_id(job) if job is not None else None,
        types=one_of(types, BODIES, "type"),
        actor=actor,
        correlation=correlation,
        text=text,
        reads=reads,
        since=low,
        until=high,
        cursor=position(cursor, "cursor"),
        down=order == "desc",
        limit=limit,
    )


@router.get("/v1/events", response_model=EventPage, tags=["events"], summary="List events")
def events(
    request: Request,
    job: Annotated[str | None, Query(max_length=200, description="only of this job")] = None,
    type_: Types = None,
    actor: Actor = None,
    correlation: Correlation = None,
    q: Text = None,
    reads: Reads = False,
    since: Time = None,
    until: Time = None,
    order: Direction = "asc",
    cursor: Position = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """Events of the site, in both directions: `next` goes on, `previous` with the other `order` goes back."""
    asked = _asked(request, job, type_, actor, correlation, q, reads, since, until, order, cursor, limit)
    return Json(events_page(desk_of(request), asked))


@router.get("/v1/jobs/{job_id}/events", response_model=EventPage, tags=["events"], summary="List a job's events")
def job_events(
    request: Request,
    job_id: JobId,
    type_: Types = None,
    actor: Actor = None,
    correlation: Correlation = None,
    q: Text = None,
    reads: Reads = False,
    since: Time = None,
    until: Time = None,
    order: Direction = "asc",
    cursor: Position = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """Events of one job, in both directions. For an id that never became a job: the calls that were refused."""
    asked = _asked(request, job_id, type_, actor, correlation, q, reads, since, until, order, cursor, limit)
    return Json(events_page(desk_of(request), asked))


@router.get(
    "/v1/events/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": FRAME}}, "description": "server-sent events"}},
    tags=["events"],
    summary="Watch events",
)
async def stream(
    request: Request,
    job: Annotated[str | None, Query(max_length=200, description="only of this job")] = None,
    type_: Types = None,
    actor: Actor = None,
    correlation: Correlation = None,
    q: Text = None,
    reads: Reads = False,
    after: Position = None,
    limit: Annotated[int | None, Query(ge=1, le=100_000, description="end after so many")] = None,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:
    """Events as server-sent events. The id is the position: `Last-Event-ID`, or `after`, goes on there without a gap.

    Without either, from now on. An event `record` says when the record goes away and comes back; `reset`, that the
    position given is not on this log.
    """
    desk = desk_of(request)
    asked = EventFilter(
        job=check_job_id(job) if job is not None else None,
        types=one_of(type_, BODIES, "type"),
        actor=actor,
        correlation=correlation,
        text=q,
        reads=reads,
    )
    start = position(last_event_id, "Last-Event-ID") or position(after, "after")
    if start is None:
        start = await desk.hub.now()
    return StreamingResponse(
        desk.hub.watch(start, asked.wanted, limit),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
