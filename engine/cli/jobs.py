"""Commands that ask something of a job."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import present
from engine.archive import pack
from engine.calls.abort import abort as abort_call
from engine.calls.abort import spool_abort
from engine.calls.delete import delete as delete_call
from engine.calls.deploy import deploy as deploy_call
from engine.calls.start import Allotment, network_of
from engine.calls.start import start as start_call
from engine.cli.common import acting, reading, site_command, where
from engine.cli.looking import PANEL, WELL, JobArg, Timeout, folder_of, tell_now, unknown
from engine.cli.output import Format, err, lines, out, print_json, text
from engine.client_engine import ClientEngine
from engine.errors import ArgumentInvalid, BadArchive, CallTimeout, EngineDown
from engine.fold import JobState
from engine.hints import LAST_LINES, hint
from engine.ids import check_job_id
from engine.jobs import Jobs
from engine.jobtalk import TASK_ABORTED
from engine.network import on_network
from engine.tail import follow_file, last_lines
from engine.workspace import Workspace, known_site
from events.bodies.app import Network as NetworkName
from events.errors import LogUnavailable, RecordFull

Reason = Annotated[str | None, typer.Option(help="Why; it is recorded with your name.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the outcome, or only for the record.")]
AppArg = Annotated[Path, typer.Argument(metavar="APP", help="Folder or zip of the app.")]
Network = Annotated[
    NetworkName | None,
    typer.Option(help="none: the app gets no network but a loopback. The site's setting if left out."),
]


def read_app(path: Path) -> bytes:
    """The bytes of an app: a zip as it is, a folder zipped."""
    if path.is_dir():
        return pack(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadArchive(
            f"APP is {str(path)!r}: {error.strerror}", "name a folder or a zip of an app", field="APP"
        ) from error


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (run, deploy, start, abort, delete):
        site_command(app, PANEL)(function)


def run(
    app: AppArg,
    job: Annotated[str | None, typer.Option(help="Id for the job; made up if left out.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show its output live and wait for its end.")
    ] = False,
    meta: Annotated[Path | None, typer.Option(help="JSON file with the job's metadata.")] = None,
    resources: Annotated[str | None, typer.Option(help="JSON: what it needs.")] = None,
    network: Network = None,
    reason: Reason = None,
    timeout: Timeout = None,
) -> int:
    """Deploy an app and start it; with --follow, wait for its end and exit with its code."""
    name = app.resolve().stem
    job_id = check_job_id(_made_up(name) if job is None else job)
    data = read_app(app)
    given = _meta(meta)
    if not known_site(where().folder):
        err.print(f"There is no site yet: one is made in {text(where().folder.resolve())}.")
    with acting(create=True, workers=2) as engine, on_network(network):
        network_of(engine.core, engine.core.call("start_app", job_id), job_id)  # what is refused deploys nothing
        deploy_call(engine.core, name, job_id, given, engine.client_name, data, timeout=timeout or 30)
        state = _start(engine, job_id, resources, timeout or 30)
        alone = engine.role == "owner"
        if not follow and not alone:
            _say_started(job_id, state)
            return 0
        if where().how is Format.TABLE:
            err.print(f"[bold]{text(job_id)}[/] runs as process {state.get('pid')}.")
            if alone and not follow:
                err.print("The site is not up, so this command watches it to its end.")
        return _to_the_end(engine, job_id, state.attempt, live=follow, timeout=timeout)


def _to_the_end(engine: ClientEngine, job_id: str, attempt: int, *, live: bool, timeout: float | None) -> int:
    log = engine.site.workspace.attempt(job_id, attempt) / "log.txt"

    until = None if timeout is None else time.monotonic() + timeout

    def over() -> bool:
        state = engine.core.view.get(job_id) or JobState()
        if until is not None and state.live and time.monotonic() > until:
            raise CallTimeout(f"{job_id} runs on after {timeout:g} s", f"flightlog wait {job_id}, or abort {job_id}")
        return state.attempt != attempt or not state.live

    shown = where().how is Format.TABLE and live
    try:
        for piece in follow_file(log, over):
            if shown:
                typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        err.print(f"\n{text(job_id)} runs on. To end it: flightlog abort {text(job_id)}")
        return 130
    return _ending(engine.site.jobs, engine.site.workspace, job_id, attempt)


def _ending(jobs: Jobs, workspace: Workspace, job_id: str, attempt: int) -> int:
    loaded = jobs.load(job_id)
    state = loaded.state
    code = app_code(state)
    if where().how is not Format.TABLE:
        print_json(present.job(job_id, loaded, workspace))
        return code
    out.print(
        f"[bold]{text(job_id)}[/] {text(state.state.value)}: exit code {state.get('exit_code') or '-'}"
        + (f", signal {state['signal']}" if state.get("signal") else "")
        + (f", {float(state['duration']):.1f} s" if state.get("duration") else "")
    )
    if code:
        _failure(workspace, job_id, attempt, state, code)
    return code


def _failure(workspace: Workspace, job_id: str, attempt: int, state: JobState, code: int) -> None:
    tail = last_lines(workspace.attempt(job_id, attempt) / "log.txt", LAST_LINES)
    if tail:
        err.print("[bold]Its last lines:[/]")
        for line in tail:
            err.print("  " + text(line))
    why = state.told("error")
    if why:
        err.print(f"[bold]Why:[/] {text(why)}")
    err.print(f"[bold]Hint:[/] {text(hint(code, why, tail))}. The story: flightlog why {text(job_id)}")


def app_code(state: JobState) -> int:
    """The exit code of a command that stands for an app: the app's own, 128 + a signal, or 1."""
    if state.get("exit_code"):
        return int(state["exit_code"]) & 0xFF
    if state.get("signal"):
        return 128 + int(state["signal"])
    return 0 if state.state in WELL else 1


def deploy(
    job: JobArg,
    app: AppArg,
    meta: Annotated[Path | None, typer.Option(help="JSON file with the job's metadata.")] = None,
    reason: Reason = None,
    wait: Wait = True,
    timeout: Timeout = None,
) -> int:
    """Put an app in place for a job."""
    data = read_app(app)
    given = _meta(meta)
    with acting(create=True) as engine:
        patience = (timeout or 30) if wait else 0
        deploy_call(engine.core, app.resolve().stem, job, given, engine.client_name, data, timeout=patience)
        return tell_now(engine, job)


def start(
    job: JobArg,
    meta: Annotated[Path | None, typer.Option(help="JSON file with the job's metadata, to be compared.")] = None,
    resources: Annotated[str | None, typer.Option(help="JSON: what it needs, for the resource manager.")] = None,
    network: Network = None,
    reason: Reason = None,
    wait: Wait = True,
    timeout: Timeout = None,
) -> int:
    """Start the app of a job."""
    with acting() as engine, on_network(network):
        state = _start(engine, job, resources, (timeout or 30) if wait else 0, _meta(meta) if meta else None)
        if where().how is Format.TABLE:
            _say_started(job, state)
            if engine.role == "owner" and state.spawned:
                err.print("The site is not up: the app runs on, and the next `flightlog up` records its end.")
            elif engine.role == "owner":
                err.print("The site is not up: the next `flightlog up` launches it, if that is before its deadline.")
        else:
            tell_now(engine, job)
        return 0


def _start(
    engine: ClientEngine, job: str, resources: str | None, patience: float, meta: dict[str, Any] | None = None
) -> JobState:
    needed = _json(resources, "--resources") if resources else None
    if needed:
        return engine.start_with_resources(job, meta, needed).state
    call = engine.core.call("start_app", job, meta)
    return start_call(engine.core, call, job, meta, Allotment(), timeout=patience).state


def abort(
    job: JobArg,
    grace: Annotated[
        float | None, typer.Option(min=0, help="Seconds between the polite signal and the kill.")
    ] = None,
    lost: Annotated[
        bool, typer.Option("--lost", help="Nobody will ever see its end: close it, with your name.")
    ] = False,
    task: Annotated[bool, typer.Option("--task", help="Only its current task; the job goes on.")] = False,
    reason: Reason = None,
    wait: Wait = True,
    timeout: Timeout = None,
) -> int:
    """End the app of a job; works while it launches, and with the record away too."""
    if task:
        if lost or grace is not None:
            raise ArgumentInvalid(
                "--task goes with neither --lost nor --grace",
                "the task is told at once; its job goes on",
                field="--task",
            )
        return _abort_task(job)
    patience = (30.0 if timeout is None else timeout) if wait else 0.0
    try:
        with acting() as engine:
            if lost:
                engine.declare_lost(job, reason or "declared lost by an operator")
            else:
                state = abort_call(engine.core, job, grace=grace, timeout=patience)
                if wait and state.live:
                    raise CallTimeout(
                        f"{job} is still {state.state}: waiting for {state.get('waiting_for')}",
                        f"flightlog wait {job}",
                    )
            return tell_now(engine, job)
    except (LogUnavailable, RecordFull, EngineDown) as error:
        return _abort_without_record(job, grace, error)


def _abort_task(job: str) -> int:
    with acting() as engine:
        if not engine.site.jobs.load(check_job_id(job)).known:
            raise unknown(job)
        answer = engine.abort_task(job)
    done = answer == TASK_ABORTED
    (out if done else err).print(text(answer))
    return 0 if done else 4


def _abort_without_record(job: str, grace: float | None, error: Exception) -> int:
    from engine.actors import os_actor
    from engine.settings import settings

    workspace = Workspace.find(where().folder)
    if not workspace.job(job).exists():
        raise error
    told = spool_abort(workspace, job, actor=os_actor("cli"), grace=settings().grace if grace is None else grace)
    err.print(
        f"The record is away. The order is on disk and enters it when it is back; "
        f"{len(told)} keeper processes were told now."
    )
    return 0


def delete(
    job: JobArg,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    reason: Reason = None,
    wait: Wait = True,
    timeout: Timeout = None,
) -> int:
    """Remove a job's run folder and its output; the record stays."""
    if dry_run:
        with reading() as (jobs, here):
            if not jobs.load(job).known:
                raise unknown(job)
            workspace = folder_of(here)
            files = [p for p in workspace.run(job).rglob("*") if p.is_file()]
            size = sum(p.stat().st_size for p in files)
            out.print(f"Would remove {text(workspace.run(job))}: {len(files)} files, {size} bytes.")
            return 0
    with acting() as engine:
        delete_call(engine.core, job, timeout=(timeout or 30) if wait else 0)
        return tell_now(engine, job)


def _say_started(job: str, state: JobState) -> None:
    if where().how is Format.TABLE:
        out.print(f"[bold]{text(job)}[/] is {text(state.state.value)} as process {state.get('pid') or '-'}.")
    else:
        lines([{"job_id": job, "state": state.state.value, "pid": int(state["pid"]) if state.get("pid") else None}])


def _meta(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return _json(path.read_text("utf-8"), "--meta")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentInvalid(f"--meta is {str(path)!r}: {error}", "name a JSON file", field="--meta") from error


def _json(given: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(given)
    except json.JSONDecodeError as error:
        raise ArgumentInvalid(f"{option} is not JSON: {error}", "give a JSON object", field=option) from error
    if not isinstance(value, dict):
        raise ArgumentInvalid(
            f"{option} is no JSON object", 'give one, for instance {"num_of_gpus": 1}', field=option
        )
    return value


def _made_up(name: str) -> str:
    """An id from the app's name and the time."""
    return f"{_safe(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() // 10**6 % 1000:03d}"


def _safe(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name).strip("-_")[:80] or "app"
