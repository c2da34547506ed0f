"""Commands that look at jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine import present
from engine.cli.asking import ask
from engine.cli.common import acting, reading, site_command, where
from engine.cli.output import Format, fields, out, rows, text
from engine.errors import ArgumentInvalid, CallTimeout, EngineDown, JobUnknown, SiteUnknown
from engine.ids import check_job_id
from engine.lifecycle import State
from engine.readmodels.moments import Moments
from engine.tail import follow_file, last_lines
from engine.workspace import Workspace

if TYPE_CHECKING:
    from engine.client_engine import ClientEngine

PANEL = "Jobs"
WELL = (State.FINISHED, State.DEPLOYED, State.DELETED)

Timeout = Annotated[float | None, typer.Option(min=0, help="Seconds to wait at most.")]
JobArg = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]
Attempt = Annotated[int | None, typer.Option(min=1, help="Which attempt; the last if left out.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (list_, show, wait, logs):
        site_command(app, PANEL, function.__name__.rstrip("_"))(function)


def list_(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="How many to pass over.")] = 0,
    app: Annotated[str | None, typer.Option(help="Only with this app; the site must be up.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only where this one asked for something; as above.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Only ids that begin so; as above.")] = None,
    since: Annotated[str | None, typer.Option(help="Only changed since a time, or for so long; as above.")] = None,
) -> int:
    """List the site's jobs, the last changed first."""
    if state is not None and state not in [s.value for s in State]:
        raise ArgumentInvalid(f"--state is {state!r}", f"one of {', '.join(s.value for s in State)}", field="--state")
    with reading() as (jobs, workspace):
        if app or actor or prefix or since:
            found = _asked(
                folder_of(workspace), limit, offset, state=state, app=app, actor=actor, prefix=prefix, since=since
            )
        else:
            known = jobs.load_many(jobs.ids(state=state, limit=limit, offset=offset))
            found = [present.job(job, loaded, workspace) for job, loaded in known]
        rows(
            found,
            ["job_id", "state", "since", "app", "attempt", "exit_code", "asked_by", "waiting_for"],
            where().how,
            "No job fits."
            if state or app or actor or prefix or since
            else "No jobs yet. Try: flightlog run APP --follow",
        )
    return 0


def _asked(workspace: Workspace, limit: int, offset: int, **given: str | None) -> list[dict[str, Any]]:
    """Jobs by what only read models know: the API's process feeds them."""
    found: list[dict[str, Any]] = []
    cursor = None
    while len(found) < limit + offset:
        page = ask(workspace, "/v1/jobs", limit=min(500, limit + offset), cursor=cursor, **given)
        if page is None:
            raise EngineDown(
                "these filters need the site's API, which nobody serves", "flightlog up, or flightlog api"
            )
        found += page["items"]
        cursor = page["next"]
        if cursor is None:
            break
    return found[offset : offset + limit]


def show(
    job: JobArg,
    at: Annotated[str | None, typer.Option(help="As it was: at a version, a position or a time.")] = None,
) -> int:
    """Show a job: state, who, why, what it waits for, until when, how it ended."""
    with reading() as (jobs, workspace):
        loaded = jobs.load(check_job_id(job))
        if not loaded.known:
            raise unknown(job)
        if at is not None:
            moments = Moments(jobs.store)
            loaded = moments.at_version(job, moments.resolve(job, at))
        shown = present.job(job, loaded, workspace if at is None else None)
        if where().how is Format.TABLE:
            shown["refused"] = [f"{command} ({no['code']})" for command, no in shown["refused"].items()]
        fields(shown, where().how)
    return 0


def wait(
    job: JobArg,
    timeout: Timeout = None,
) -> int:
    """Wait until nothing is under way for a job; exit code 0 when it went well."""
    until = None if timeout is None else time.monotonic() + timeout
    with acting() as engine:
        if not engine.site.jobs.load(check_job_id(job)).known:
            raise unknown(job)
        while True:
            left = 3600.0 if until is None else until - time.monotonic()
            state = engine.core.view.wait(job, 0, lambda s: s.at_rest, max(0.0, left))
            if state is not None:
                tell_now(engine, job)
                return 0 if state.state in WELL else 1
            if until is not None:
                loaded = engine.site.jobs.load(job)
                raise CallTimeout(
                    f"{job} is {loaded.state.state} after {timeout:g} s, waiting for "
                    f"{present.waiting_for(loaded.state, engine.site.workspace)}",
                    f"flightlog why {job}",
                )


def logs(
    job: JobArg,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="As it grows, until the app ends.")] = False,
    lines_: Annotated[int | None, typer.Option("--lines", "-n", min=0, help="Only the last lines.")] = None,
    attempt: Attempt = None,
) -> int:
    """Print an app's output."""
    with reading() as (jobs, here):
        loaded = jobs.load(check_job_id(job))
        if not loaded.known:
            raise unknown(job)
        workspace = folder_of(here)
        number = attempt or loaded.state.attempt
        path = workspace.attempt(job, number) / "log.txt"
        if not follow and not path.exists():
            raise JobUnknown(f"{job} has no output of attempt {number}", f"flightlog show {job}")
        if lines_ is not None and not follow:
            for line in last_lines(path, lines_):
                typer.echo(line)
            return 0

        def over() -> bool:
            now = jobs.load(job).state
            return not follow or now.attempt != number or not now.live

        try:
            for piece in follow_file(path, over, 0.2):
                typer.echo(piece, nl=False)
        except KeyboardInterrupt:
            return 130
    return 0


def tell_now(engine: ClientEngine, job: str) -> int:
    """Say where a job is now, after something was asked of it."""
    loaded = engine.site.jobs.load(job)
    if where().how is Format.TABLE:
        state = loaded.state
        out.print(
            f"[bold]{text(job)}[/] is {text(state.state.value)}."
            + (f" Waiting for {text(state['waiting_for'])}." if state.get("waiting_for") else "")
        )
    else:
        fields(present.job(job, loaded, engine.site.workspace), where().how)
    return 0


def folder_of(workspace: Workspace | None) -> Workspace:
    """The workspace; only there are an app's files."""
    if workspace is None:
        raise SiteUnknown(
            "an app's files are in its site's workspace, and a URL does not lead there",
            "run this on the site's host, with --workspace",
        )
    return workspace


def unknown(job: str) -> JobUnknown:
    """The error about a job that nobody has heard of."""
    return JobUnknown(f"job {job} is not on this site's record", "flightlog list shows the jobs of this site")
