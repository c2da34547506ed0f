"""Commands: the engine's calls, with the caller as their actor."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from engine.actors import acting_as
from engine.calls.abort import abort, spool_abort
from engine.calls.delete import delete
from engine.calls.delete import failure as delete_failure
from engine.calls.deploy import UNDER_WAY, deploy
from engine.calls.deploy import failure as deploy_failure
from engine.calls.start import Allotment, start
from engine.calls.start import failure as start_failure
from engine.client_engine import ClientEngine
from engine.errors import ArgumentInvalid, JobUnknown, NotLive, PayloadTooLarge
from engine.fold import JobState
from engine.ids import check_job_id
from engine.jobtalk import TASK_ABORTED
from engine.lifecycle import State
from engine.network import on_network
from engine.status import reads
from engine.status.desk import Desk
from engine.status.problems import Json
from engine.status.routes.common import JobId, caller_of, desk_of, problems, strict
from engine.status.shapes import AbortBody, Job, ReasonBody, StartBody, TaskAnswer
from events.envelope import Event
from events.errors import FlightlogError, RevisionConflict
from events.subjects import job_of

WAIT_MOST = 60.0  # seconds
WAIT = 10.0
_PREFER = re.compile(r'(?:^|[,;\s])wait(?:\s*=\s*"?([0-9]{1,9})"?)?(?:$|[,;\s])', re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]{8,128}")
_ETAG = re.compile(r'(?:W/)?"?([0-9]{1,15})"?')

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", max_length=200, description="8 to 128 characters: the call id, which names one call"
    ),
]
Match = Annotated[str | None, Header(alias="If-Match", max_length=40, description="the revision that was seen")]
Prefer = Annotated[
    str | None, Header(max_length=100, description="`wait`, or `wait=SECONDS`: for the outcome", examples=["wait=10"])
]

router = APIRouter(
    dependencies=[Depends(strict)],
    responses={
        200: {"model": Job, "description": "the outcome"},
        202: {"description": "on the record, and under way"},
        **problems(404, 409, 412, 501, 504, 507),
    },
    tags=["commands"],
)


def _wait(prefer: str | None) -> float:
    """Seconds that the caller prefers to wait; 0: not at all."""
    found = _PREFER.search(prefer or "")
    if not found:
        return 0.0
    return min(WAIT_MOST, float(found[1]) if found[1] else WAIT)


def _call_id(key: str | None) -> str | None:
    if key is not None and not _KEY.fullmatch(key):
        raise ArgumentInvalid(
            f"Idempotency-Key is {key[:80]!r}",
            "8 to 128 visible characters, a UUID for instance",
            field="Idempotency-Key",
        )
    return key


def _revision(match: str | None) -> int | None:
    if match is None or match.strip() == "*":
        return None
    found = _ETAG.fullmatch(match.strip())
    if not found:
        raise ArgumentInvalid(f"If-Match is {match!r}", 'the revision, as in "5"', field="If-Match")
    return int(found[1])


@dataclass(frozen=True)
class Headers:
    """What a command's headers say."""

    key: str | None
    match: str | None
    prefer: str | None


@dataclass(frozen=True)
class Command:
    """A command: how it is recorded, when it is over, and what went wrong then, if anything."""

    record: Callable[[ClientEngine], Any]
    over: Callable[[JobState], bool]
    failure: Callable[[str, JobState], FlightlogError | None] = lambda job, state: None


async def _carry_out(request: Request, job: str, reason: str | None, headers: Headers, command: Command) -> Response:
    """Have it recorded, as the caller, and wait for the outcome where that is preferred: the job, as it is then.

    What is not over in time goes on: nobody withdraws it.
    """
    desk, wait = desk_of(request), _wait(headers.prefer)
    actor, call_id, revision = caller_of(request).actor, _call_id(headers.key), _revision(headers.match)

    def record() -> None:
        with acting_as(actor, reason=reason, call_id=call_id, revision=revision):
            command.record(desk.engine)

    await run_in_threadpool(record)
    state = await _outcome(desk, job, command.over, wait) if wait else None
    if state is not None and (error := command.failure(job, state)) is not None:
        error.recorded = state.get("position")
        raise error
    shown = await run_in_threadpool(reads.job_now, desk, job)
    answer = {"Location": f"/v1/jobs/{job}", "ETag": f'"{shown["revision"]}"'}
    if wait:
        answer["Preference-Applied"] = "wait"
    return Json(shown, 202 if state is None else 200, answer)


async def _outcome(desk: Desk, job: str, over: Callable[[JobState], bool], wait: float) -> JobState | None:
    """The job's state once something is over; None where that takes longer. Nobody's thread waits."""
    loaded = await run_in_threadpool(desk.site.jobs.load, job)
    if over(loaded.state):
        return loaded.state
    try:
        async with asyncio.timeout(wait), aclosing(desk.hub.watch(loaded.last, _of(job))) as events:
            async for _ in events:
                loaded = await run_in_threadpool(desk.site.jobs.load, job)
                if over(loaded.state):
                    return loaded.state
    except TimeoutError:
        return None
    return None


def _of(job: str) -> Callable[[Event], bool]:
    return lambda event: job_of(event.subject) == job


@router.put(
    "/v1/jobs/{job_id}/app",
    status_code=202,
    response_model=Job,
    summary="Deploy an app",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_app(
    request: Request,
    job_id: JobId,
    name: Annotated[str | None, Query(max_length=200, description="of the app; the job's id if left out")] = None,
    meta: Annotated[str, Query(max_length=16_384, description="JSON object: the job's metadata")] = "{}",
    reason: Annotated[str | None, Query(max_length=500)] = None,
    key: Key = None,
    match: Match = None,
    prefer: Prefer = None,
) -> Response:
    """Put an app in place for a job: the body is the zip of its folder."""
    data = await _body(request, desk_of(request).site.settings.api_body_max)

    def record(engine: ClientEngine) -> None:
        deploy(engine.core, name or job_id, job_id, _object(meta, "meta"), engine.client_name, data, timeout=0)

    command = Command(record, lambda state: state.state not in UNDER_WAY, deploy_failure)
    return await _carry_out(request, check_job_id(job_id), reason, Headers(key, match, prefer), command)


@router.post("/v1/jobs/{job_id}/start", status_code=202, response_model=Job, summary="Start a job's app")
async def start_(
    request: Request,
    job_id: JobId,
    body: StartBody | None = None,
    key: Key = None,
    match: Match = None,
    prefer: Prefer = None,
) -> Response:
    """Launch the app that is in place."""
    asked = body or StartBody()

    def record(engine: ClientEngine) -> None:
        with on_network(asked.network) if asked.network else nullcontext():
            if asked.resources:
                engine.start_with_resources(job_id, asked.meta, asked.resources, 0)
            else:
                call = engine.core.call("start_app", job_id, asked.meta)
                start(engine.core, call, job_id, asked.meta, Allotment(), timeout=0)

    command = Command(record, lambda state: state.spawned or not state.live, start_failure)
    return await _carry_out(request, check_job_id(job_id), asked.reason, Headers(key, match, prefer), command)


@router.post("/v1/jobs/{job_id}/abort", status_code=202, response_model=Job, summary="Abort a job's app")
async def abort_(
    request: Request,
    job_id: JobId,
    body: AbortBody | None = None,
    key: Key = None,
    match: Match = None,
    prefer: Prefer = None,
) -> Response:
    """End the app; works while it launches, too. With `lost`, close one whose end nobody will ever see."""
    asked = body or AbortBody()
    if asked.lost and asked.grace is not None:
        raise ArgumentInvalid("lost goes without grace", "leave one of them out", field="lost")

    desk = desk_of(request)

    def record(engine: ClientEngine) -> None:
        if asked.lost:
            _unchanged(desk, job_id, match)
            engine.declare_lost(job_id, asked.reason or "declared lost by an operator")
        else:
            abort(engine.core, job_id, grace=asked.grace, timeout=0)

    check_job_id(job_id)
    if not asked.lost and not await run_in_threadpool(desk.record_answers):
        return await run_in_threadpool(_spooled, request, job_id, asked)
    command = Command(record, lambda state: not state.live)
    return await _carry_out(request, job_id, asked.reason, Headers(key, match, prefer), command)


def _spooled(request: Request, job: str, asked: AbortBody) -> Response:
    """With the record away the order goes to disk and to the keepers; it enters the record when that is back."""
    site = desk_of(request).site
    if not site.workspace.job(job).exists():
        raise JobUnknown(f"job {job} has nothing in this workspace, and the record is away", "flightlog up")
    grace = site.settings.grace if asked.grace is None else asked.grace
    with acting_as(caller_of(request).actor, reason=asked.reason) as actor:
        told = spool_abort(site.workspace, job, actor=actor, grace=grace)
    said = {"job_id": job, "spooled": True, "keepers_told": len(told)}
    return Json(said, 202, {"Location": f"/v1/jobs/{job}"})


@router.post("/v1/jobs/{job_id}/abort-task", response_model=TaskAnswer, summary="Abort a job's current task")
def abort_task(
    request: Request, job_id: JobId, body: ReasonBody | None = None, key: Key = None, match: Match = None
) -> Response:
    """Have the job's process give up what it does; the job goes on."""
    desk, asked = desk_of(request), body or ReasonBody()
    reads.known_job(desk, job_id)
    _unchanged(desk, job_id, match)
    with acting_as(caller_of(request).actor, reason=asked.reason, call_id=_call_id(key)):
        answer = desk.engine.abort_task(job_id)
    if answer != TASK_ABORTED:
        raise NotLive(answer, f"flightlog show {job_id}", job=job_id)
    return Json({"answer": answer})


@router.post("/v1/jobs/{job_id}/delete", status_code=202, response_model=Job, summary="Delete a job's run folder")
async def delete_(
    request: Request,
    job_id: JobId,
    body: ReasonBody | None = None,
    key: Key = None,
    match: Match = None,
    prefer: Prefer = None,
) -> Response:
    """Remove the run folder and the app's output; the record stays."""

    def record(engine: ClientEngine) -> None:
        delete(engine.core, job_id, timeout=0)

    command = Command(record, lambda state: state.state is not State.DELETING, delete_failure)
    reason = (body or ReasonBody()).reason
    return await _carry_out(request, check_job_id(job_id), reason, Headers(key, match, prefer), command)


def _unchanged(desk: Desk, job: str, match: str | None) -> None:
    """For calls that do not transition by themselves: the job is still at the revision that was seen."""
    expected, loaded = _revision(match), desk.site.jobs.load(job)
    if expected is not None and loaded.revision != expected:
        raise RevisionConflict(
            f"{job} is at revision {loaded.revision}, and {expected} was expected",
            f"look at it again: flightlog show {job}",
            state=loaded.state.state.value,
            revision=loaded.revision,
        )


async def _body(request: Request, most: int) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: it has more bytes than the API takes. ArgumentInvalid: it is empty.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise PayloadTooLarge(
                f"the body has more than {most} bytes", "raise FLIGHTLOG_API_BODY_MAX", field="body"
            )
        parts.append(part)
    if not size:
        raise ArgumentInvalid("the body is empty", "send the zip of the app's folder", field="body")
    return b"".join(parts)


def _object(given: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise ArgumentInvalid(f"{field} is not JSON: {error}", "give a JSON object", field=field) from error
    if not isinstance(value, dict):
        raise ArgumentInvalid(f"{field} is no JSON object", "give one, {} for instance", field=field)
    return value
