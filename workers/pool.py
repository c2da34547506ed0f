"""The pool: N workers, started anew when they die; in their parent caretaker, reconciler and collector."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from typing import Protocol

from engine.ending import told_to_end
from engine.errors import ArgumentInvalid
from engine.site import Site
from engine.workspace import host_name
from events.bodies.base import Body
from events.bodies.site import PoolStarted, PoolStopped, ServerAdopted, WorkerDied
from events.errors import FlightlogError
from workers.caretaker import Caretaker
from workers.collector import Collector
from workers.here import set_site
from workers.reconciler import Reconciler
from workers.usage import Sampler

log = logging.getLogger("flightlog.pool")

SUPERVISE_EVERY = 0.2  # seconds
QUICK_DEATH = 2.0  # a worker that lives shorter is started anew only after a pause


class Duty(Protocol):
    """Something that the pool's parent sees to."""

    def __init__(self, site: Site) -> None: ...

    def run(self, stop: threading.Event) -> None:
        """See to it until ``stop``."""


class Pool:
    """A site's workers on this host.

    Args:
        site: an opened site; ``site.settings.workers`` is the size.
        until_eof: end when standard input does, which is when the engine that started us is gone.
        launcher: launch apps and look after them, and nothing else; the other pools of the site then do the rest.
    """

    def __init__(self, site: Site, *, until_eof: bool = False, launcher: bool = False) -> None:
        self.site = site
        self.stop = threading.Event()
        self._workers: dict[int, tuple[subprocess.Popen[bytes], float, str]] = {}
        apart = site.settings.launcher == "elsewhere"
        if launcher and not apart:
            raise ArgumentInvalid(
                "a launcher of its own serves a queue that nobody rings for",
                "FLIGHTLOG_LAUNCHER=elsewhere for engine, pools and launcher",
                field="launcher",
            )
        io = max(1, site.settings.workers // 3)
        #: Kind of worker -> how many: the size is the total, and each kind has at least one.
        self._wanted = {"io": io, "work": max(1, site.settings.workers - io)}
        #: What this process does beside: who looks after apps has them as processes of its own host or container.
        self._duties: list[type[Duty]] = [Caretaker, Sampler, Reconciler, Collector]
        if launcher:
            self._wanted, self._duties = {"launch": site.settings.workers}, [Caretaker, Sampler]
        elif apart:
            self._duties = [Reconciler, Collector]
        self._not_before = 0.0
        if until_eof:
            threading.Thread(target=self._await_eof, name="until-eof", daemon=True).start()

    def run(self) -> int:
        """Run until told to end; apps keep running."""
        told_to_end(self.stop)
        set_site(self.site)
        self._note("started", PoolStarted(host=host_name(), pid=os.getpid(), workers=sum(self._wanted.values())))
        duties = [
            threading.Thread(target=duty(self.site).run, args=(self.stop,), name=duty.__name__.lower())
            for duty in self._duties
        ]
        for duty in duties:
            duty.start()
        servers_looked_at = 0.0
        while not self.stop.is_set():
            self._supervise()
            if time.monotonic() - servers_looked_at > 1.0:
                servers_looked_at = time.monotonic()
                self._servers()
            self.stop.wait(SUPERVISE_EVERY)
        for process, *_ in self._workers.values():
            process.terminate()
        for process, *_ in self._workers.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for duty in duties:
            duty.join(10)
        self._note("stopped", PoolStopped(host=host_name(), pid=os.getpid()))
        self.site.close()
        return 0

    def _await_eof(self) -> None:
        while os.read(0, 4096):
            pass
        self.stop.set()

    def _supervise(self) -> None:
        now = time.monotonic()
        for pid, (process, since, _) in list(self._workers.items()):
            code = process.poll()
            if code is None:
                continue
            del self._workers[pid]
            if now - since < QUICK_DEATH:
                self._not_before = now + 1.0
            self._note(f"died:{pid}", WorkerDied(worker=f"{host_name()}:{pid}", returncode=code))
        running = [kind for _, _, kind in self._workers.values()]
        for kind, count in self._wanted.items():
            for _ in range(count - running.count(kind) if now >= self._not_before else 0):
                process = self._start(kind)
                self._workers[process.pid] = (process, now, kind)

    def _start(self, kind: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "workers", "worker", "--queue", kind),
                *("--parent", str(os.getpid())),
                *("--workspace", str(self.site.workspace.root)),
            ],
            env={**os.environ, **self.site.settings.environment()},
            stdin=subprocess.DEVNULL,
        )

    def _servers(self) -> None:
        """Start an embedded server that died again, and say so."""
        try:
            for role, pid in self.site.servers.ensure():
                self._note(f"server:{role}:{pid}", ServerAdopted(server=role, pid=pid, started=True))
        except FlightlogError as error:
            log.warning("%s", error)

    def _note(self, step: str, body: Body) -> None:
        try:
            self.site.jobs.note(self.site.system_call(step, role="pool"), [body])
        except FlightlogError as error:
            log.warning("%s could not be recorded: %s", body.name(), error)
