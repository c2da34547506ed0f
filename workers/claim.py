"""Claims: who works on what, until when. A hint for everybody; the fence is the job's lock and the token."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from contextlib import ExitStack
from types import TracebackType

from engine.logs import about
from engine.orders import signal_exact, start_ticks
from engine.projection import Conditions
from engine.site import Site
from engine.workspace import host_name
from events.append import Ops, WorkRefused
from events.bodies.job import WorkClaimed
from events.bodies.site import WorkerKilled
from events.envelope import Call, Event
from events.errors import Fenced, FlightlogError
from events.read import at

log = logging.getLogger("flightlog.worker")


class Claim:
    """Open work that this process holds, renewed by a thread while the block lasts.

    Use ``Claim.take``; then ``with claim:`` around the effect.
    """

    def __init__(self, site: Site, work_id: str, token: str, fields: dict[str, str]) -> None:
        self.site = site
        self.work_id = work_id
        self.token = token
        self.job = fields["job"]
        self.kind = fields["kind"]
        self.number = int(fields["number"])
        self.position = fields["position"]
        self.correlation = fields["correlation"]
        self._stop = threading.Event()
        self._about = ExitStack()
        self._began = 0.0
        self._thread: threading.Thread | None = None

    @classmethod
    def take(cls, site: Site, work_id: str, kind: str) -> Claim | None:
        """Claim work of a kind; None where it is closed, held by another, or for others to end."""
        fields = site.jobs.work(work_id)
        if fields.get("kind") != kind:
            return None
        claim = cls(site, work_id, secrets.token_hex(8), fields)
        try:
            claim._append(int(fields["max"]))
        except WorkRefused:
            return None
        if fields.get("token"):
            end_lapsed(site, work_id, fields)  # first of all: it may hold the job's lock
        return claim

    def _append(self, attempts: int) -> None:
        until = self.site.jobs.store.now_ms() + int(self.site.settings.lease * 1000)
        ops = Ops().claim(self.work_id, token=self.token, worker=self.site.process, until=until, attempts=attempts)
        self.site.jobs.note(
            self.call(f"claim:{until}"),
            [WorkClaimed(work=self.work_id, token=self.token, worker=self.site.process, until=until)],
            self.job,
            ops,
        )

    def call(self, step: str) -> Call:
        """A step of this claim."""
        return self.site.system_call(
            step,
            call_id=f"{self.work_id}:{self.token}",
            cause=self.position,
            correlation=self.correlation,
            role="worker",
        )

    def conditions(self) -> Conditions:
        """An outcome closes this work only with our token."""
        return {self.kind: ("token", self.token)}

    def request(self) -> Event:
        """The intent that this work carries out."""
        return at(self.site.jobs.store, [self.position])[0]

    def check(self) -> None:
        """Raise ``Fenced`` where the work is not ours any more. Asked under the job's lock."""
        if self.site.jobs.work(self.work_id).get("token") != self.token:
            raise Fenced(f"work {self.work_id} is closed or was given to another", work=self.work_id)

    def _renew(self) -> None:
        while not self._stop.wait(self.site.settings.lease / 3):
            try:
                self._append(2**31)
            except FlightlogError:
                return  # lapsed, or the record is away: the check before the effect decides

    def __enter__(self) -> Claim:
        self._thread = threading.Thread(target=self._renew, name="claim", daemon=True)
        self._thread.start()
        self._about.enter_context(about(f"{self.work_id}:{self.token}", self.correlation))
        self._began = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1)
        how = f"ended by {kind.__name__}" if kind else "carried out"
        log.info("%s of %s %s in %.3f s", self.work_id, self.job, how, time.monotonic() - self._began)
        self._about.close()


def end_lapsed(site: Site, work_id: str, fields: dict[str, str]) -> None:
    """End the worker of a lapsed claim, if it is of this host: it must not act late, nor hold the job's lock.

    Args:
        site: the site.
        work_id: which work it had claimed.
        fields: of the work, while the claim was its last.
    """
    end_worker(
        site,
        fields["claimed_by"],
        work_id,
        fields["token"],
        cause=fields["position"],
        correlation=fields["correlation"],
    )


def end_worker(
    site: Site, worker: str, over: str, token: str = "", *, cause: str | None = None, correlation: str | None = None
) -> None:
    """End a worker, if it is of this host and still the same process; nothing where it is us, or gone.

    Args:
        site: the site.
        worker: host:pid:start ticks.
        over: the work or the lane over which it stalls.
        token: of its claim.
        cause: position of what it was to do.
        correlation: of the call that asked for it.
    """
    host, _, rest = worker.partition(":")
    pid, _, ticks = rest.partition(":")
    if host != host_name() or not (ticks.isdigit() and pid.isdigit()) or int(pid) == os.getpid():
        return
    if not signal_exact(int(pid), int(ticks), signal.SIGKILL):
        return
    call = site.system_call(
        "killed", call_id=f"kill:{over}:{token or worker}", cause=cause, correlation=correlation, role="worker"
    )
    site.jobs.note(call, [WorkerKilled(worker=worker, work=over)])
    until = time.monotonic() + 2
    while start_ticks(int(pid)) == int(ticks) and time.monotonic() < until:
        time.sleep(0.005)
