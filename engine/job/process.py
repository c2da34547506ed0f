"""The job's process: it says that it has started, takes tasks one after the other, and says that it is over."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

from engine.actors import set_process_actor
from engine.aux.runner import AuxRunner
from engine.cell.cell import FabricCell
from engine.cell.digests import Digests
from engine.cell.journal import RecordJournal
from engine.cell.message import CellChannel, CellReturnCode, Message
from engine.cell.sender import Sender
from engine.comm import ring_of
from engine.constants import ClientStatus, EventType, ExitCode
from engine.core import Core
from engine.ending import on_end
from engine.errors import BadConfig
from engine.job.commands import CHANNEL, Commands
from engine.job.config import load
from engine.job.engine import JobEngine
from engine.job.grant import Grant
from engine.job.kept_errors import KeptErrors
from engine.job.tasks import Tasks
from engine.site import Site
from engine.streaming.joblogs import ERRORS
from engine.streaming.streams import Streams
from events.envelope import Actor
from events.errors import LogUnavailable

log = logging.getLogger("flightlog.job")

NOTICE_TIMEOUT = 2.0
STOP_PATIENCE = 15.0
PAUSE = 0.2  # seconds between two tries to be heard


class JobProcess:
    """One run of a job.

    Args:
        grant: who we are.
    """

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.site = Site.open(join=False, **grant.settings)
        self.fqcn = f"{self.site.name}.{grant.job}"
        set_process_actor(Actor(id=self.fqcn, kind="job", auth="os-uid"))
        self.kept = KeptErrors()
        logging.getLogger().addHandler(self.kept)
        logging.getLogger().addHandler(_error_log(self.site.workspace.run(grant.job)))
        self._told = threading.Event()

    def run(self) -> int:
        """Until the run is over; the exit code."""
        app = self.site.workspace.app(self.grant.job)
        sys.path.append(str(app / "custom"))  # at the end: an app can shadow nothing of ours
        try:
            executors, components = load(app)
        except BadConfig as error:
            log.error("%s", error)
            return self.ends_with(ExitCode.CONFIG_ERROR)
        on_end(self._told_to_end)
        self.core = Core(self.site, rests=True)
        self._await_record()
        job, server = self.grant.job, self.grant.server
        ring = ring_of(self.site.workspace)
        self.engine = JobEngine(self.site.name, job, str(self.site.workspace.root), components, server)
        for executor in executors.values():
            self.engine.hear(executor)
        self.sender = Sender(self.core, self.fqcn, ring)
        self.engine.aux = AuxRunner(self.core, self.engine.new_context, lambda: self.sender, server=server, job=job)
        self.tasks = Tasks(self.grant, self.core, self.engine, executors, self.sender, ring)
        self.cell = FabricCell(
            self.site.servers.fabric_url,
            self.fqcn,
            ring=ring,
            journal=RecordJournal(self.core, Digests(self.site.workspace.flight), job),
            inbox_max=self.site.settings.inbox_max,
            payload_max=self.site.settings.payload_max,
        )
        self.streams = self.engine.streams = Streams(self.core, self.engine.new_context, job, self.fqcn)
        self.streams.open(self.cell, ring, listen=True)
        commands = Commands(self.core, job, self.tasks, self.kept)
        self.cell.register_request_cb(CellChannel.AUX_COMMUNICATION, "*", self.engine.aux.handle)
        self.cell.register_request_cb(CHANNEL, "*", commands.handle)
        self.cell.register_request_cb(CellChannel.SERVER_MAIN, "*", self.tasks.handle)
        return self._live()

    def _live(self) -> int:
        self.cell.start()
        try:
            self.engine.fire_event(EventType.START_RUN, self.engine.new_context())
            self._say(ClientStatus.STARTED)
            if self._told.is_set():
                self.tasks.end()
            self.tasks.run()
            self.engine.fire_event(EventType.END_RUN, self.engine.new_context())
            self._say(ClientStatus.STOPPED)
        finally:
            self.streams.close()
            self.cell.stop()
            self.sender.close()
            self.core.close()
        return int(ExitCode.SUCCESS)

    def ends_with(self, code: ExitCode) -> int:
        """Leave the code where the keeper looks for it: of an exit alone it cannot tell whose words they are."""
        (self.site.workspace.run(self.grant.job) / "_process_rc.txt").write_text(str(int(code)))
        return int(code)

    def _await_record(self) -> None:
        """Follow the log; a record that is away is waited for, and the site's deadline for our start ends that."""
        while True:
            try:
                self.core.view.start()
            except LogUnavailable as error:
                log.warning("waiting: %s", error)
                if self._told.wait(0.5):
                    raise
            else:
                return

    def _say(self, status: ClientStatus) -> None:
        """Tell the engine, until it has taken it in or says no.

        The site's deadline ends a wait for our start that is too long; our end tells itself by the exit.
        """
        until = time.monotonic() + (STOP_PATIENCE if status is ClientStatus.STOPPED else float("inf"))
        while time.monotonic() < until:
            answer = self.cell.send_request(
                CellChannel.CLIENT_MAIN,
                "notify_job_status",
                self.site.name,
                Message(payload=self.grant.sign(int(status))),
                NOTICE_TIMEOUT,
                optional=True,
            )
            if answer.return_code == CellReturnCode.OK:
                if answer.payload != "ok":
                    log.error("the engine did not take in that we are %s: %s", status.text, answer.payload)
                return
            if self._told.is_set():
                return  # an abort waits for nobody: its keeper knows what became of us
            time.sleep(PAUSE)

    def _told_to_end(self) -> None:
        self._told.set()
        if hasattr(self, "tasks"):
            self.tasks.end()


def _error_log(run: Path) -> logging.Handler:
    """Errors of the run, in a file of their own; made with the first."""
    handler = logging.FileHandler(run / ERRORS, mode="w", delay=True)
    handler.setLevel(logging.ERROR)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    return handler
