"""The site: messages, transfers, what left, who works, what waits, the table; and whether it is well."""

from __future__ import annotations

import platform
from importlib.metadata import version as release
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from engine.egress import BLIND, counts
from engine.lifecycle import WORK, State, compiled_commands, compiled_events
from engine.messages import ENDS
from engine.status import auditing, metrics, reads, rows
from engine.status.health import readiness
from engine.status.params import decoded, one_of
from engine.status.problems import Json
from engine.status.routes.common import DEFAULT_LIMIT, Cursor, Limit, desk_of, problems, strict
from engine.status.routes.jobs import Time
from engine.status.shapes import (
    Audit,
    EgressPage,
    EgressTotals,
    Lifecycle,
    MessagePage,
    Queues,
    Ready,
    TransferPage,
    Version,
    Workers,
)
from engine.times import moment_ms

router = APIRouter(dependencies=[Depends(strict)], responses=problems(404))

OfJob = Annotated[str | None, Query(max_length=200, description="only of this job")]
Way = Annotated[Literal["out", "in"] | None, Query(description="out: from this site; in: to it")]
MESSAGE_STATES = ("waiting", "under way", "received", *dict.fromkeys(ENDS.values()))
TABLE = {
    "states": [state.value for state in State],
    "commands": compiled_commands(),
    "events": compiled_events(),
    "work": WORK,
}


@router.get("/v1/messages", response_model=MessagePage, tags=["traffic"], summary="List messages")
def messages(
    request: Request,
    job: OfJob = None,
    direction: Way = None,
    state: Annotated[str | None, Query(max_length=40, description=f"one of {', '.join(MESSAGE_STATES)}")] = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Response:
    """Messages that were sent, or came in, the newest first: the last 50,000 of them."""
    if state is not None:
        one_of([state], MESSAGE_STATES, "state")
    page = rows.rows_page(
        desk_of(request),
        "messages",
        job=job,
        after=decoded(cursor, (int, float), str),
        limit=limit,
        fits=lambda row: direction in (None, row["direction"]) and state in (None, row["state"]),
    )
    return Json(page)


@router.get("/v1/transfers", response_model=TransferPage, tags=["traffic"], summary="List transfers")
def transfers(
    request: Request,
    job: OfJob = None,
    direction: Way = None,
    state: Annotated[Literal["under way", "done", "failed"] | None, Query()] = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Response:
    """Streams and files, the newest first: how far they are, and how they ended."""
    page = rows.rows_page(
        desk_of(request),
        "transfers",
        job=job,
        after=decoded(cursor, (int, float), str),
        limit=limit,
        fits=lambda row: direction in (None, row["direction"]) and state in (None, row["state"]),
    )
    return Json(page)


@router.get("/v1/egress", response_model=EgressPage, tags=["traffic"], summary="List what left the site")
def egress(
    request: Request,
    job: OfJob = None,
    target: Annotated[str | None, Query(max_length=200, description="only to this address")] = None,
    since: Time = None,
    sent: Annotated[bool, Query(description="only what left, or may have")] = False,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Response:
    """What left the site through Flightlog, the newest first: the last 50,000 items. `totals` has the sums of all."""
    desk = desk_of(request)
    low = moment_ms(since, "since", desk.store.now_ms()) if since else 0
    page = rows.rows_page(
        desk,
        "egress",
        job=job,
        after=decoded(cursor, (int, float), str),
        limit=limit,
        fits=lambda row: target in (None, row["target"]) and row["ms"] >= low and (not sent or counts(row)),
    )
    return Json({**page, "note": BLIND})


@router.get("/v1/egress/totals", response_model=EgressTotals, tags=["traffic"], summary="Sums of what left the site")
def egress_totals(
    request: Request,
    job: OfJob = None,
    since: Annotated[str | None, Query(pattern=r"^\d{4}-\d\d-\d\d$", description="first day")] = None,
) -> Response:
    """Bytes and messages by day, target, topic and job, of the whole log; and which apps had the network."""
    desk = desk_of(request)
    if since is not None:
        moment_ms(since, "since", 0)
    return Json({**rows.egress_totals(desk, job=job, since=since), "as_of": desk.as_of(), "note": BLIND})


@router.get("/v1/workers", response_model=Workers, tags=["site"], summary="Who works")
def workers(request: Request) -> Response:
    """Workers of the queues, and who looks after apps, work and answers."""
    return Json(reads.workers(desk_of(request)))


@router.get("/v1/queues", response_model=Queues, tags=["site"], summary="What waits")
def queues(request: Request) -> Response:
    """Queues, lanes and open work: how much, for how long already; and tasks that were refused."""
    return Json(reads.queues(desk_of(request)))


@router.get("/v1/audit", response_model=Audit, tags=["site"], summary="How far the record can be trusted")
def audit(request: Request) -> Response:
    """Last sealed, witnessed, verified and examined, and by whom; losses that were disclosed."""
    told = auditing.audit(desk_of(request), request.app.state.auditor)
    return Json({name: told[name] for name in Audit.model_fields})


@router.get("/v1/lifecycle", response_model=Lifecycle, tags=["site"], summary="The table")
async def lifecycle(request: Request) -> Response:
    """Which command may come in which state, and where each event leads: the table itself, as the code has it."""
    return Json(TABLE)


@router.get("/livez", tags=["health"], summary="Is this process alive?", response_model=dict[str, bool])
async def livez() -> Response:
    """It answers."""
    return Json({"alive": True})


@router.get(
    "/readyz",
    response_model=Ready,
    responses={503: {"model": Ready, "description": "not ready: the checks say why"}},
    tags=["health"],
    summary="Can the site do its work?",
)
def readyz(request: Request) -> Response:
    """Servers reachable and safe, followers not stuck, caretaker and reconciler alive."""
    found = readiness(desk_of(request))
    return Json(found, 200 if found["ready"] else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text"}},
    tags=["health"],
    summary="Metrics for Prometheus",
)
def prometheus(request: Request) -> Response:
    """Counts, gauges and histograms of the site."""
    return Response(metrics.exposition(desk_of(request)), media_type=metrics.MEDIA)


@router.get("/version", response_model=Version, tags=["health"], summary="What runs here")
async def version(request: Request) -> Response:
    """Release, site, Python."""
    desk = desk_of(request)
    return Json(
        {"release": release("flightlog"), "site": desk.site.name, "python": platform.python_version(), "api": "v1"}
    )
