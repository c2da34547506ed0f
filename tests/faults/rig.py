"""A site that runs as processes of its own, so that any of them can be killed, and the tools to do it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from engine.client_engine import ClientEngine
from engine.files import read_json
from engine.fold import JobState
from engine.jobs import Jobs
from engine.owner import owner_of
from engine.server import EmbeddedServer
from engine.site import Site
from engine.workspace import Workspace
from events.envelope import Event
from events.errors import FlightlogError, LogUnavailable
from tests.support import QUICK, SITE, check_record, in_state, kill, opened, until, zip_of

SETTLE = 30.0  # seconds after the last restart within which all must be well


class Rig:
    """A site under ``flightlog up`` in a process of its own, looked at from this one as a client."""

    def __init__(self, workspace: Path, tmp: Path) -> None:
        self.root = workspace
        self.tmp = tmp
        self.faults = tmp / "faults"
        self.faults.mkdir(exist_ok=True)
        self.workspace = Workspace.prepare(workspace, SITE)
        self.up: subprocess.Popen[bytes] | None = None
        self.log = (tmp / "up.log").open("ab")

    # -- the site's processes ------------------------------------------------------------------

    def start(self, workers: int = 2, pool: str = "own", **settings: Any) -> None:
        """``flightlog up``; returns when it owns the site."""
        if self.log.closed:
            self.log = (self.tmp / "up.log").open("ab")
        env = {name: value for name, value in os.environ.items() if not name.startswith("FLIGHTLOG_")}
        env["FLIGHTLOG_RUNTIME_DIR"] = os.environ["FLIGHTLOG_RUNTIME_DIR"]
        env["FLIGHTLOG_FAULTS"] = str(self.faults)
        env |= {f"FLIGHTLOG_{name.upper()}": str(value) for name, value in {**QUICK, **settings}.items()}
        command = [sys.executable, "-P", "-m", "engine.cli", "up", "--site", SITE]
        command += ["-w", str(self.root), "--workers", str(workers), "--pool", pool]
        self.up = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=env, start_new_session=True
        )
        until(lambda: owner_of(self.workspace), 60, f"the site does not come up: {self.said()}")
        if pool == "own":
            until(self._workers_there, 60, f"no workers: {self.said()}")

    def _workers_there(self) -> bool:
        """Both kinds of workers have come up: what is asked of them next does not wait for that."""
        try:
            with redis.Redis.from_url(self.server("fabric").url) as client:
                return all(client.scard(f"rq:workers:{SITE}-{kind}") for kind in ("work", "io"))
        except redis.RedisError:
            return False

    def said(self) -> str:
        """The end of what ``up`` and the pool printed."""
        pool = self.workspace.flight / "pool.log"
        texts = [(self.tmp / "up.log").read_text(errors="replace")]
        texts += [pool.read_text(errors="replace")] if pool.exists() else []
        return "\n".join(text[-3000:] for text in texts)

    def worker(self, *prefix: str) -> subprocess.Popen[bytes]:
        """One worker of its own, outside the pool; ``prefix`` may name a wrapper."""
        env = {**os.environ, "FLIGHTLOG_FAULTS": str(self.faults)}
        env |= {f"FLIGHTLOG_{name.upper()}": str(value) for name, value in QUICK.items()}
        command = [*prefix, sys.executable, "-P", "-m", "workers", "worker", "--workspace", str(self.root)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=env)

    def pool_pid(self) -> int:
        """The pool's parent, which hosts the caretaker."""
        with self.looking() as jobs:
            return int(until(lambda: self._pool(jobs), 20, "no pool"))

    def _pool(self, jobs: Jobs) -> int | None:
        from engine.orders import start_ticks
        from events.read import read_back

        for event in read_back(jobs.store):
            if event.type == "PoolStarted":
                pid = int(event.body["pid"])
                return pid if start_ticks(pid) is not None else None
        return None

    def pool_gone(self) -> bool:
        """No process of the pool lives."""
        with self.looking() as jobs:
            return self._pool(jobs) is None

    def server(self, role: str) -> EmbeddedServer:
        """One of the site's embedded servers."""
        return EmbeddedServer(self.workspace, role)  # type: ignore[arg-type]

    def kill_up(self) -> None:
        """``kill -9`` the engine."""
        assert self.up is not None
        kill(self.up.pid)
        self.up.wait()

    def kill_server(self, role: str) -> int:
        """``kill -9`` a server; its pid."""
        pid = until(self.server(role).pid, 10)
        kill(pid)
        return pid

    def stop(self) -> None:
        """End in order what still runs."""
        if self.up is not None and self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            try:
                self.up.wait(20)
            except subprocess.TimeoutExpired:
                kill(self.up.pid)
                self.up.wait()
        self.log.close()

    # -- faults ------------------------------------------------------------------------------

    def fault(self, place: str, action: str) -> None:
        """The next process that passes a place is killed or stopped."""
        (self.faults / f"{place}.pid").unlink(missing_ok=True)
        beside = self.faults / f".{place}"
        beside.write_text(action)
        beside.rename(self.faults / place)  # whoever passes reads all of it

    def resume(self, place: str) -> None:
        """A process that a fault stopped goes on."""
        kill(self.struck(place), signal.SIGCONT)

    def struck(self, place: str, seconds: float = 60) -> int:
        """Wait until a fault has struck; the pid it struck."""
        path = self.faults / f"{place}.pid"
        until(lambda: path.exists() and path.read_text(), seconds, f"nobody passed {place}: {self.said()}")
        return int(path.read_text())

    # -- looking and asking ------------------------------------------------------------------

    @contextmanager
    def looking(self) -> Iterator[Jobs]:
        """The record, for reading; waits while a server is away."""
        site = until(self._open, 20, "the record does not come back")
        try:
            yield site.jobs
        finally:
            site.close()

    def _open(self) -> Site | None:
        try:
            return Site.open(workspace=self.root)
        except (FlightlogError, OSError):
            return None

    @contextmanager
    def client(self, **options: Any) -> Iterator[ClientEngine]:
        """An engine beside the one that is up."""
        with opened(self.root, **options) as engine:
            yield engine

    def deploy(self, job: str, *command: str, **config: Any) -> None:
        """Deploy an app and wait for it."""
        data = zip_of(self.tmp / f"app-{job}-{time.time_ns()}", *command, **config)
        with self.client() as engine:
            assert engine.deploy_app("app", job, {}, SITE, data) == ""

    def ask_deploy(self, job: str, *command: str, **config: Any) -> None:
        """Ask for a deploy without waiting."""
        from engine.calls.deploy import deploy

        data = zip_of(self.tmp / f"app-{job}-{time.time_ns()}", *command, **config)
        with self.client() as engine:
            deploy(engine.core, "app", job, {}, SITE, data, timeout=0)

    def start_app(self, job: str) -> None:
        """Start and wait for the process."""
        with self.client() as engine:
            assert engine.start_app(job, {}) == "Start the client app..."

    def ask_start(self, job: str) -> None:
        """Ask for a start without waiting."""
        from engine.calls.start import Allotment, start

        with self.client() as engine:
            start(engine.core, engine.core.call("start_app", job), job, None, Allotment(), timeout=0)

    def in_state(self, job: str, *states: str, seconds: float = SETTLE) -> JobState:
        """Wait until a job is in a state."""
        with self.looking() as jobs:
            return in_state(_Patient(jobs), job, *states, seconds=seconds)  # type: ignore[arg-type]

    def identity(self, job: str, attempt: int = 1) -> dict[str, Any]:
        """Who keeps an attempt."""
        path = self.workspace.attempt(job, attempt) / "identity.json"
        return until(lambda: read_json(path), 20, f"no identity of {job}")

    def check(self) -> list[Event]:
        """What always holds, once nothing is under way any more."""
        with self.looking() as jobs:
            until(lambda: _quiet(jobs), SETTLE, "open work stays")
            return check_record(jobs.store)


class _Patient:
    """Jobs that are read through an outage."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.store = jobs.store

    def load(self, job: str) -> Any:
        def look() -> Any:
            try:
                return self._jobs.load(job)
            except LogUnavailable:
                return None

        return until(look, 20, "the record is away")


def _quiet(jobs: Jobs) -> bool:
    try:
        return not [work for _, work in jobs.open_work(messages=True) if work["kind"] not in ("app",)]
    except LogUnavailable:
        return False


def counting_app(runs: Path, *then: str) -> tuple[str, ...]:
    """A command that notes that it ran, once, and then does something."""
    script = f'echo "$FLIGHTLOG_ATTEMPT" >> {runs}; ' + "; ".join(then)
    return ("sh", "-c", script)


def runs_of(path: Path) -> list[str]:
    """Which attempts ran, in order."""
    return path.read_text().split() if path.exists() else []


def types(events: list[Event], job: str) -> list[str]:
    """Types of a job's events."""
    return [event.type for event in events if event.subject == f"job/{job}"]


def one(events: list[Event], job: str, type_: str) -> dict[str, Any]:
    """The body of the one event of a type."""
    found = [event.body for event in events if event.subject == f"job/{job}" and event.type == type_]
    assert len(found) == 1, f"{len(found)} {type_} of {job}: {json.dumps(found)}"
    return found[0]
