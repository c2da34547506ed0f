"""The whole federation on one machine: a server here, and each site with its own workspace, record and workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import baselines
import evidence
import fedavg
import models
import report

from engine.archive import pack
from engine.cli.output import out, text
from engine.egress import egress, totals
from engine.errors import ArgumentInvalid, EngineDown
from engine.federation.server import FederationServer
from engine.files import FileLock
from engine.overview import page_of
from engine.owner import owner_of
from engine.site import Site
from engine.workspace import Workspace, known_site
from events.read import read

HERE = Path(__file__).resolve().parent
JOB = "breast-cancer"
PAGE_PATIENCE = 10.0  # seconds for the pages, without which the demo goes on
PATIENCE = 60.0  # seconds for the sites to come up, and for the job's processes


def run(folder: Path, sites: int, rounds: int) -> int:
    """Train, and show it; the exit code.

    Raises:
        EngineDown: a site of an earlier demo is still up there.
    """
    _clear(folder)
    names = [f"site-{number + 1}" for number in range(sites)]
    began = time.monotonic()
    out.print(
        f"[bold]A server and {sites} sites[/] come up in {text(_short(folder))}, each with a record of its own."
    )
    with FederationServer(folder / "server") as server, _sites(folder, names, server.fabric_url):
        streamed = models.Models(folder / "server" / "models")
        server.register_stream_processing(models.CHANNEL, models.TOPIC, streamed)
        server.wait_for_sites(sites, PATIENCE)
        _say_pages(folder, names)
        refused = {site: why for site, why in server.deploy(JOB, HERE.name, {}, pack(HERE / "app")).items() if why}
        if refused:
            raise EngineDown(f"the app was not deployed: {refused}", f"look at {folder}/*/up.log")
        try:
            job = server.run(JOB, {}, timeout=PATIENCE)
            out.print(f"The app is deployed and runs on {text(', '.join(job.sites))}.\n")
            with report.LiveRounds(rounds, baselines.accuracy) as live:
                result = fedavg.FedAvg(rounds, live.add).run(job)
            job.end()
        except BaseException:  # Ctrl-C too: nothing is to go on that nobody looks at
            server.abort(JOB, reason="the demo was interrupted")
            raise
        out.print("\n[bold]Who did how well:[/]")
        report.results(baselines.baselines(job.sites, rounds), baselines.accuracy(result.weights))
        out.print("\n[bold]Models that the sites streamed to the server:[/]")
        report.streamed(streamed.kept.values(), _short(streamed.folder))
        out.print("\n[bold]What each site sent out, by its own record:[/]")
        report.sent({name: _sent(folder / name) for name in names})
        out.print("\n[bold]Is it the true record?[/] The server has witnessed what each site signed.")
        told = evidence.show(folder / names[0], JOB)
        _let_look()
    out.print(f"\nAll of it took {time.monotonic() - began:.0f} s. [bold]Try next:[/]")
    place = f"-w {_short(folder)}/site-1"
    for command in (
        *(f"why {JOB} {place}", f"egress --job {JOB} {place}", f"transfers {place}"),
        *(f"verify {place}", f"bundle {JOB} {place}"),
    ):
        out.print(f"  {text(_program())} {text(command)}")
    out.print(f"[bold]Look back[/] on it in a browser: {text(_program())} api {place}")
    return 0 if told else 1


def _say_pages(folder: Path, names: list[str]) -> None:
    """Where each site can be watched, as it happens."""
    until = time.monotonic() + PAGE_PATIENCE
    pages: dict[str, str] = {}
    while len(pages) < len(names) and time.monotonic() < until:
        for name in names:
            if (page := page_of(Workspace(folder / name, name))) is not None:
                pages[name] = page
        time.sleep(0.05)
    for name, page in sorted(pages.items()):
        out.print(f"[bold]Watch {text(name)}:[/] {text(page)}jobs/{JOB}")


def _let_look() -> None:
    """Where somebody sits at the terminal, the pages stay until they have looked."""
    if sys.stdin.isatty() and out.is_terminal:
        out.print("\nThe sites stay up, and so do their pages. [bold]Enter[/] ends them.")
        sys.stdin.readline()


def _clear(folder: Path) -> None:
    """An earlier demo makes way, if it is one, and over."""
    if not folder.exists():
        return
    places = sorted(folder.iterdir())
    if any(not place.is_dir() or not known_site(place) for place in places):
        raise ArgumentInvalid(
            f"{folder} holds something else than a demo",
            "name another: flightlog demo -w FOLDER",
            field="--workspace",
        )
    for place in places:
        workspace = Workspace(place, known_site(place))
        if owner_of(workspace) is not None:
            raise EngineDown(f"a site of an earlier demo is up in {place}", f"flightlog down -w {place}")
        if any(_held(lock) for lock in workspace.jobs.glob("*/*/lock")):
            raise EngineDown(f"an app of an earlier demo still runs in {place}", f"flightlog abort {JOB} -w {place}")
    shutil.rmtree(folder)


def _held(path: Path) -> bool:
    """Whether a keeper lives: it holds its attempt's lock."""
    lock = FileLock(path)
    free = lock.acquire()
    lock.release()
    return not free


@contextmanager
def _sites(folder: Path, names: list[str], fabric_url: str) -> Iterator[None]:
    """Bring the sites up, as anybody would, and down again."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLIGHTLOG_") or name in ("FLIGHTLOG_RUNTIME_DIR",)
    }
    env |= {"FLIGHTLOG_FABRIC_URL": fabric_url}
    processes = []
    try:
        for name in names:
            place = folder / name
            place.mkdir(parents=True)
            with (place / "up.log").open("wb") as log:
                command = [sys.executable, "-P", "-m", "engine.cli", "up", "--site", name, "-w", str(place)]
                command += ["--workers", "2", "--federation", "server"]
                processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def _sent(workspace: Path) -> list[dict[str, Any]]:
    site = Site.open(workspace=workspace)
    try:
        return totals(egress(read(site.jobs.store), site.name))
    finally:
        site.close()


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _program() -> str:
    """How to call us again from here."""
    beside = Path(sys.executable).parent / "flightlog"
    return _short(beside) if shutil.which("flightlog") is None and beside.exists() else "flightlog"
