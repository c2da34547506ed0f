"""Commands that bring a site up, or a part of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from typing import Annotated, Any, Literal

import typer

from engine.children import Child, api_child, sealer_child
from engine.cli.common import site_command, where
from engine.cli.output import err, out, text
from engine.cli.standing import held
from engine.client_engine import ClientEngine
from engine.ending import told_to_end
from engine.errors import ArgumentInvalid, EngineDown
from engine.logs import set_up
from engine.overview import page_of
from engine.owner import owner_of
from engine.settings import settings
from engine.site import Site
from engine.status.sockets import listen
from engine.workspace import Workspace, known_site

#: Set for the process that comes up in the background, and for nobody after it.
DETACHED = "_FLIGHTLOG_DETACHED"
PANEL = "Site"
PAGE_PATIENCE = 10.0  # seconds


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (up, api, pool, worker):
        site_command(app, PANEL)(function)


def up(
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    pool: Annotated[str | None, typer.Option(help="own, or elsewhere: a pool run by itself.")] = None,
    federation: Annotated[
        str | None, typer.Option(envvar="FLIGHTLOG_FEDERATION", help="Address of the server to join.")
    ] = None,
    api: Annotated[bool | None, typer.Option("--api/--no-api", help="Serve the status API and its pages.")] = None,
    api_host: Annotated[str | None, typer.Option(help="Address of the API; 127.0.0.1 if left out.")] = None,
    api_port: Annotated[
        int | None, typer.Option(help="Its port; if left out: 8787, or the next that is free.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(help="Events that stay in Redis; older ones, once sealed, are on disk only.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="In the background.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the site, while a command has it.")] = 30,
) -> int:
    """Bring the site up: engine, workers, caretaker, servers. Ctrl-C ends them; apps run on."""
    chosen = where()
    name = chosen.site or known_site(chosen.folder)
    if not name:
        raise ArgumentInvalid(
            "--site is missing, and the workspace is new", "flightlog up --site site-1", field="--site"
        )
    serving = None if api is None else "on" if api else "off"
    given: dict[str, Any] = {"pool": pool, "api": serving, "api_host": api_host, "api_port": api_port, "keep": keep}
    known = settings(workers=workers, record_url=chosen.record_url, fabric_url=chosen.fabric_url, **given)
    if workers is not None and workers < 1:
        raise ArgumentInvalid(f"--workers is {workers}", "give at least 1", field="--workers")
    workspace = Workspace.prepare(chosen.folder, name)
    _await_free(workspace, timeout)
    if known.api == "on" and "api_port" in known.model_fields_set:
        listen(known.api_host, known.api_port, exactly=True).close()  # whoever names a port is told at once
    if os.environ.pop(DETACHED, "") != "yes" and detach:
        return _detached(workspace, timeout)
    stop = told_to_end()
    with ClientEngine.open(
        site=name,
        workspace=chosen.folder,
        record_url=chosen.record_url,
        fabric_url=chosen.fabric_url,
        workers=5 if workers is None else workers,
        federation=federation,
        purpose="up",
        **given,
    ) as engine:
        if engine.role != "owner":
            raise held(workspace)  # another was faster
        live = engine.get_all_job_ids()
        err.print(f"[bold]{text(name)}[/] is up, workspace {text(workspace.root)}.")
        if live:
            err.print(f"Taken back: {text(', '.join(live))}.")
        served = _serve(engine, stop)
        sealed = sealer_child(engine.site) if known.seal == "on" else None
        if sealed is not None:
            sealed.start()
        err.print("Ctrl-C ends it; running apps go on.")
        stop.wait()
        if sealed is not None:
            sealed.stop()
        if served is not None:
            served.stop()
        live = engine.get_all_job_ids()
    if live:
        err.print(
            f"These apps keep running: {text(', '.join(live))}. "
            "The next `flightlog up` takes them back and records their ends."
        )
    return 0


def _serve(engine: ClientEngine, stop: threading.Event) -> Child | None:
    """Start the status API beside the engine, and say where its page is."""
    site = engine.site
    if site.settings.api == "off":
        return None
    child = api_child(site)
    child.start()
    if page := _await_page(site.workspace, child.process, stop):
        err.print(f"Its page: [bold]{text(page)}[/]")
    else:
        err.print(f"[yellow]Its page is not served.[/] {text(site.workspace.flight / 'api.log')} says why.")
    return child


def _await_page(
    workspace: Workspace, process: subprocess.Popen[bytes] | None, stop: threading.Event | None = None
) -> str | None:
    """The page's address, once somebody serves it; None where nobody will."""
    until = time.monotonic() + PAGE_PATIENCE
    while time.monotonic() < until and not (stop is not None and stop.is_set()):
        if page := page_of(workspace):
            return page
        if process is not None and process.poll() is not None:
            return None
        time.sleep(0.05)
    return None


def _await_free(workspace: Workspace, timeout: float) -> None:
    """Wait while a command has the site; one that is up is not waited for."""
    until = time.monotonic() + timeout
    while (owner := owner_of(workspace)) is not None:
        if owner["purpose"] == "up" or time.monotonic() > until:
            raise held(workspace)
        time.sleep(0.1)


def _detached(workspace: Workspace, timeout: float) -> int:
    command = [sys.executable, "-P", "-m", "engine.cli", *sys.argv[1:]]
    env = {**os.environ, DETACHED: "yes"}  # however the option was written: what comes up does not detach again
    with (workspace.flight / "up.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )
    until = time.monotonic() + timeout
    while time.monotonic() < until and process.poll() is None:
        owner = owner_of(workspace)
        if owner is not None and owner["pid"] == process.pid:
            out.print(f"{text(workspace.site)} is up as process {process.pid}. To end it: flightlog down")
            if "--no-api" not in command and settings().api == "on" and (page := _await_page(workspace, process)):
                out.print(f"Its page: {text(page)}")
            process.returncode = 0  # it outlives us on purpose
            return 0
        time.sleep(0.05)
    if process.poll() is None:
        process.terminate()
        process.wait(20)
    last = (workspace.flight / "up.log").read_text(errors="replace").splitlines()[-5:]
    raise EngineDown("the site did not come up: " + " | ".join(last), f"look at {workspace.flight / 'up.log'}")


def api(
    api_host: Annotated[str | None, typer.Option(help="Address; 127.0.0.1 if left out.")] = None,
    api_port: Annotated[int | None, typer.Option(help="Port; if left out: 8787, or the next that is free.")] = None,
) -> int:
    """Serve the status API and its pages by itself, until Ctrl-C; `flightlog up` does it, too."""
    from engine.status.server import serve

    set_up(logging.WARNING)
    chosen = where()
    site = Site.open(
        workspace=chosen.folder,
        record_url=chosen.record_url,
        fabric_url=chosen.fabric_url,
        api_host=api_host,
        api_port=api_port,
    )
    exactly = "api_port" in site.settings.model_fields_set
    return serve(site, exactly=exactly, said=lambda url: err.print(f"The page of {text(site.name)}: [bold]{url}[/]"))


def pool(
    launcher: Annotated[
        bool, typer.Option("--launcher", help="Only launch apps, and look after them; see FLIGHTLOG_LAUNCHER.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
) -> int:
    """Run a worker pool by itself, until Ctrl-C; for a site that is up with --pool elsewhere."""
    given = ["--launcher"] if launcher else []
    return _child("pool", given, workers=workers)


def worker(
    queue: Annotated[
        Literal["work", "io", "launch"], typer.Option(help="work: deploys and launches; io: messages.")
    ] = "work",
    burst: Annotated[bool, typer.Option("--burst", help="End when the queue is empty.")] = False,
) -> int:
    """Run one more worker for the site, here, until Ctrl-C."""
    return _child("worker", ["--queue", queue, *(["--burst"] if burst else [])])


def _child(what: str, given: list[str], **options: int | None) -> int:
    """Become one of the workers' commands, with our settings: whoever ends us ends it."""
    chosen = where()
    workspace = Workspace.find(chosen.folder)
    command = [sys.executable, "-P", "-m", "workers", what, "--workspace", str(workspace.root), *given]
    known = settings(record_url=chosen.record_url, fabric_url=chosen.fabric_url, **options)
    env = {**os.environ, **known.environment()}
    env |= {"FLIGHTLOG_WORKSPACE": str(workspace.root), "FLIGHTLOG_SITE": workspace.site}
    sys.stdout.flush()
    os.execve(sys.executable, command, env)  # noqa: S606 - our own command
