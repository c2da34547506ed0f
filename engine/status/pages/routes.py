"""The pages: GET shows, POST commands or signs in, and leads back."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from engine.catalogue import error_entries
from engine.errors import ArgumentInvalid, NotIdentified, PathUnknown
from engine.ids import check_job_id
from engine.lifecycle import State
from engine.status.jobs_list import SORTS, JobFilter
from engine.status.pages import views
from engine.status.pages.render import page
from engine.status.params import decoded, one_of
from engine.status.routes import commands
from engine.status.routes.common import caller_of, desk_of
from engine.status.shapes import AbortBody, ReasonBody, StartBody
from engine.status.tokens import cookie_of
from engine.times import moment_ms

router = APIRouter(include_in_schema=False)
DAY = 86_400


def _shown(request: Request, template: str, here: str, stream: str | None = "", **facts: Any) -> Response:
    """A page with what all of them have."""
    site, caller = desk_of(request).site.name, caller_of(request)
    return page(template, site=site, caller=caller, here=here, stream=stream, **facts)


@router.get("/")
def overview(request: Request) -> Response:
    """What needs somebody first, then how the site is."""
    return _shown(request, "overview.html", "overview", **views.overview(desk_of(request)))


@router.get("/jobs")
def jobs(
    request: Request,
    state: Annotated[list[str] | None, Query()] = None,
    app: str | None = None,
    actor: str | None = None,
    prefix: str | None = None,
    since: str | None = None,
    sort: str = "",
    cursor: str | None = None,
) -> Response:
    """The list."""
    desk = desk_of(request)
    asked = JobFilter(
        states=one_of([name for name in state or () if name], [known.value for known in State], "state"),
        app=app or None,
        actor=actor or None,
        prefix=prefix or None,
        since=moment_ms(since, "since", desk.store.now_ms()) if since else None,
        sort=one_of([sort], SORTS, "sort")[0] if sort else "",
        after=decoded(cursor or None, str, (int, float), str),
    )
    given = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    shown = views.jobs(desk, asked)
    more = f"/jobs?{urlencode([*given, ('cursor', shown['next'])])}" if shown["next"] else None
    return _shown(request, "jobs.html", "jobs", more=more, given=request.query_params, **shown)


@router.get("/jobs/{job_id}")
def job(request: Request, job_id: str, at: str | None = None, said: str | None = None) -> Response:
    """A job now, or as it was."""
    shown = views.job(desk_of(request), check_job_id(job_id), at or None)
    stream = f"job={job_id}" if not at else None
    return _shown(request, "job.html", "jobs", stream, said=(said or "")[:300], **shown)


@router.post("/jobs/{job_id}/do")
async def do(request: Request, job_id: str) -> Response:
    """A button."""
    form = parse_qs((await request.body()).decode(errors="replace"), keep_blank_values=True)
    given = {name: values[-1] for name, values in form.items()}
    reason = given.get("reason", "").strip()[:500]
    if not reason:
        raise ArgumentInvalid("the reason is missing", "say why: it is recorded with your name", field="reason")
    command, match = given.get("command", ""), given.get("revision") or None
    body = {"reason": reason}
    if command == "start":
        await commands.start_(request, job_id, StartBody(**body), None, match, "wait=5")
    elif command == "abort":
        await commands.abort_(request, job_id, AbortBody(**body), None, match, "wait=2")
    elif command == "delete":
        await commands.delete_(request, job_id, ReasonBody(**body), None, match, "wait=5")
    elif command == "abort-task":
        await run_in_threadpool(commands.abort_task, request, job_id, ReasonBody(**body), None, match)
    else:
        raise ArgumentInvalid(f"command is {command[:40]!r}", "start, abort, abort-task or delete", field="command")
    said = urlencode({"said": f"{command} of {job_id}: on the record"})
    return RedirectResponse(f"/jobs/{job_id}?{said}", 303)


@router.get("/events")
def events(
    request: Request,
    q: str = "",
    type: str = "",
    actor: str = "",
    job: str = "",
    correlation: str = "",
) -> Response:
    """Search and follow; the script fills the table from the API."""
    desk = desk_of(request)
    given = {"q": q, "type": type, "actor": actor, "job": job, "correlation": correlation}
    stream = urlencode({name: value for name, value in given.items() if value})
    return _shown(request, "events.html", "events", stream, given=given, types=views.known_types(desk))


@router.get("/egress")
def egress(request: Request) -> Response:
    """What Flightlog sent out."""
    return _shown(request, "egress.html", "egress", **views.egress(desk_of(request)))


@router.get("/workers")
def workers(request: Request) -> Response:
    """Who works, and what waits."""
    return _shown(request, "workers.html", "workers", **views.workers(desk_of(request)))


@router.get("/audit")
def audit(request: Request) -> Response:
    """How far the record is sealed, witnessed, verified and looked at."""
    auditor = request.app.state.auditor
    return _shown(request, "audit.html", "audit", **views.audited(desk_of(request), auditor))


@router.post("/audit/verify")
def verify_now(request: Request) -> Response:
    """A button."""
    request.app.state.auditor.verify(caller_of(request).actor)
    return RedirectResponse("/audit", 303)


@router.get("/lifecycle")
def lifecycle(request: Request) -> Response:
    """The table."""
    return _shown(request, "lifecycle.html", "lifecycle", None, **views.lifecycle())


@router.get("/errors/{code}")
def error(request: Request, code: str) -> Response:
    """What a code means, and what to do."""
    entry = error_entries().get(code)
    if entry is None:
        raise PathUnknown(f"there is no error {code[:60]!r}", "docs/errors has them all")
    return _shown(request, "code.html", "", None, entry=entry)


@router.get("/login")
def login(request: Request) -> Response:
    """Sign in with a token."""
    return _shown(request, "login.html", "", None)


@router.post("/login")
async def signed_in(request: Request) -> Response:
    """The token goes into a cookie that scripts cannot read and other sites cannot send."""
    form = parse_qs((await request.body()).decode(errors="replace"))
    token = form.get("token", [""])[-1].strip()
    if desk_of(request).tokens.caller(token) is None:
        raise NotIdentified("the token is nobody's", "flightlog token add NAME, on the site's host")
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        cookie_of(desk_of(request).site.name), token, max_age=30 * DAY, httponly=True, samesite="strict", path="/"
    )
    return answer


@router.post("/logout")
async def signed_out(request: Request) -> Response:
    """Forget the token."""
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(cookie_of(desk_of(request).site.name), path="/")
    return answer
