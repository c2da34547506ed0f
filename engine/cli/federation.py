"""Commands about a federation: the server peer, what left the site, and the demo."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from engine.cli.common import reading, site_command, where
from engine.cli.jobs import read_app
from engine.cli.output import Format, err, lines, out, print_json, text
from engine.egress import BLIND, totals
from engine.egress import egress as egress_rows
from engine.errors import ArgumentInvalid, DeployFailedError, JobUnknown, SiteUnknown
from engine.federation.server import FederationServer
from engine.ids import check_job_id
from engine.settings import settings
from engine.times import moment_ms
from events.read import read

PANEL = "Federation"
EXAMPLE = "federated_breast_cancer"
INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (server, egress, demo):
        site_command(app, PANEL)(function)


def server(
    name: Annotated[str, typer.Option(help="Its address.")] = "server",
    secure: Annotated[bool, typer.Option("--secure", help="Seal what goes to sites; needs their keys.")] = False,
    controller: Annotated[
        str | None, typer.Option(help="FILE.py:Class whose run(job) is the workflow; with --app.")
    ] = None,
    args: Annotated[str, typer.Option(help="JSON: the controller's arguments.")] = "{}",
    app: Annotated[Path | None, typer.Option(help="App that the sites are to deploy and start.")] = None,
    job: Annotated[str, typer.Option(help="Id of the job.")] = "job-1",
    sites: Annotated[int, typer.Option(min=1, help="Sites to wait for, before the job starts.")] = 1,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for them.")] = 300,
    witness: Annotated[
        str, typer.Option(help="HOST:PORT under which sites on other machines reach its witness.")
    ] = "127.0.0.1:0",
) -> int:
    """Run a server for sites to join; with --app and --controller, run one job and end."""
    if (controller is None) != (app is None):
        raise ArgumentInvalid("--app and --controller go together", "give both, or none", field="--app")
    check_job_id(job)
    workflow = _controller(controller, args) if controller else None
    packed = read_app(app) if app is not None else b""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _serve(name, secure, workflow, packed, app.name if app else "", job, sites, timeout, witness)
    except KeyboardInterrupt:
        return 0 if workflow is None else INTERRUPTED


def _serve(
    name: str,
    secure: bool,
    workflow: Any,
    app: bytes,
    app_name: str,
    job: str,
    sites: int,
    timeout: float,
    witness: str,
) -> int:
    chosen = where()
    url = chosen.fabric_url or ""
    with FederationServer(chosen.folder, name=name, fabric_url=url, secure=secure, witness=witness) as peer:
        peer.receive_files(chosen.folder / "received")
        peer.receive_logs(chosen.folder / "logs")
        err.print(f"[bold]{text(name)}[/] is there. Sites join it with:")
        err.print(
            f"  FLIGHTLOG_FEDERATION={text(name)} FLIGHTLOG_FABRIC_URL={text(peer.fabric_url)} "
            "flightlog up --site NAME -w FOLDER",
            soft_wrap=True,  # to be copied
        )
        if workflow is None:
            threading.Event().wait()
        joined = peer.wait_for_sites(sites, timeout)
        err.print(f"Joined: {text(', '.join(joined))}.")
        refused = {site: why for site, why in peer.deploy(job, app_name, {}, app).items() if why}
        if refused:
            raise DeployFailedError(f"the app was not deployed: {refused}", "look at these sites: flightlog why JOB")
        running = peer.run(job, {})
        try:
            result = workflow.run(running)
        finally:
            for site in running.end():
                err.print(f"[yellow]The process on {text(site)} has not ended yet.[/]")
        if chosen.how is not Format.TABLE:
            print_json({"job": job, "sites": joined, "result": str(result)})
        else:
            out.print(text(str(result)))
    return 0


def egress(
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only since a time (RFC 3339), or for so long (30m, 2h, 7d).")
    ] = None,
    total: Annotated[bool, typer.Option("--totals", help="Sums by target, topic and job.")] = False,
) -> int:
    """List what left the site through Flightlog, by target, topic and job, from the log alone.

    Not seen: what an app sends through sockets of its own. The column `network` says whether its run had the network
    at all; `flightlog start --network none` starts one that has not.
    """
    with reading() as (jobs, _):
        if job is not None and not jobs.load(check_job_id(job)).known:
            raise JobUnknown(f"job {job} is not on this site's record", "flightlog list")
        first = moment_ms(since, "--since", jobs.store.now_ms()) if since else 0
        rows = list(egress_rows(read(jobs.store), jobs.store.site, job=job, since=first))
    shown: list[dict[str, Any]] = totals(rows) if total else rows
    how = where().how
    if how is Format.JSON:
        print_json(shown)
    elif how is Format.JSONL:
        lines(shown)
    elif total:
        _table(shown, ("target", "topic", "job", "messages", "bytes", "not_sent"))
        err.print(f"[dim]{text(BLIND)}[/]")
    else:
        _table(shown, ("time", "target", "topic", "job", "size", "digest", "sealed", "network", "outcome"))
        err.print(f"[dim]{text(BLIND)}[/]")
    return 0


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), justify="right" if column in ("size", "bytes", "messages") else "left")
    for row in rows:
        table.add_row(*(text(_cell(column, row[column])) for column in columns))
    out.print(table)


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column == "digest":
        return f"{value[:12]}…"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def demo(
    sites: Annotated[int, typer.Option(min=1, max=10, help="Sites that train together.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, max=200, help="Rounds of federated averaging.")] = 10,
) -> int:
    """Train one model on several sites of this machine, live, and show what each of them sent out."""
    chosen = where()
    settings(fabric_url=chosen.fabric_url)
    folder = Path.cwd() / "flightlog-demo" if chosen.workspace is None else chosen.folder
    module = _load(_example() / "demo.py", "flightlog_demo")
    code: int = module.run(folder, sites, rounds)
    return code


def _example() -> Path:
    here = Path(__file__).resolve().parent.parent
    for folder in (here.parent / "examples" / EXAMPLE, here / "examples" / EXAMPLE):
        if folder.is_dir():
            break
    else:
        raise SiteUnknown("the example is not installed", "run it from a checkout: make demo")
    if importlib.util.find_spec("sklearn") is None:
        raise ArgumentInvalid(
            "the example needs scikit-learn, which is not installed", "pip install 'flightlog[examples]'"
        )
    return folder


def _controller(given: str, args: str) -> Any:
    """The workflow that FILE.py:Class names."""
    path, _, name = given.rpartition(":")
    try:
        arguments = json.loads(args)
        if not isinstance(arguments, dict):
            raise ValueError("no object")  # noqa: TRY004 - told below with the rest
    except ValueError as error:
        raise ArgumentInvalid(
            f"--args is no JSON object: {error}", "--args '{\"rounds\": 5}'", field="--args"
        ) from error
    if not path or not Path(path).is_file():
        raise ArgumentInvalid(f"--controller is {given!r}", "FILE.py:Class", field="--controller")
    found = getattr(_load(Path(path), "flightlog_controller"), name, None)
    if found is None:
        raise ArgumentInvalid(f"{path} has no {name}", "FILE.py:Class", field="--controller")
    try:
        return found(**arguments)
    except TypeError as error:
        raise ArgumentInvalid(
            f"{name} does not take these arguments: {error}", "correct --args", field="--args"
        ) from error


def _load(path: Path, name: str) -> ModuleType:
    """A module from a file; what lies beside it can be imported from it."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ArgumentInvalid(f"{path} is no Python file", "FILE.py:Class", field="--controller")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody's own file fails in any way it likes
        raise ArgumentInvalid(
            f"{path} does not load: {type(error).__name__}: {error}", "correct it", field="--controller"
        ) from error
    return module
