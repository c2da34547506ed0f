"""What the server is sent of jobs' logs, where the site has decided so: by a setting for all, or job by job."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, Literal

from engine.constants import ReservedKey
from engine.core import Core
from engine.errors import StreamerDown
from engine.fold import JobState
from engine.streaming.files import FileKey
from engine.streaming.logs import CHANNEL, TOPIC, LogKey, LogProducer
from engine.streaming.spec import StreamContext
from engine.streaming.streams import Streams
from events.envelope import Event
from events.errors import FlightlogError
from events.subjects import job_of

log = logging.getLogger("flightlog.stream")

Sharing = Literal["off", "errors", "live"]
ERRORS = "error_log.txt"
ENDS = frozenset(("AppFinished", "AppFailed", "AppAborted", "AppLost"))
PATIENCE = 5.0


class _Live:
    """A log that is being sent."""

    def __init__(self) -> None:
        self.over, self.stop = threading.Event(), threading.Event()


class JobLogs:
    """Sends logs of jobs, in the engine that owns the site.

    Args:
        core: of the engine.
        streams: its streams.
        contexts: makes a context.
        server: where they go.
    """

    def __init__(self, core: Core, streams: Streams, contexts: Any, server: str) -> None:
        self._core = core
        self._streams = streams
        self._contexts = contexts
        self._server = server
        self._live: dict[tuple[str, int], _Live] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def sharing(self, state: JobState) -> Sharing:
        """What the server is sent of a job's log."""
        decided: Sharing = state.get("log_sharing") or self._core.site.settings.stream_logs  # type: ignore[assignment]
        return decided

    def start(self) -> None:
        """Go on with the logs of jobs that run."""
        for job, state in self._core.view.live():
            self._begin(job, state)

    def see(self, event: Event) -> None:
        """React to an event of the log."""
        job = job_of(event.subject)
        if job is None:
            return
        if event.type in ("AppSpawned", "LogSharingSet"):
            state = self._core.site.jobs.load(job).state
            live = self._live.get((job, state.attempt))
            if live is not None and self.sharing(state) != "live":
                live.stop.set()
            elif state.live:
                self._begin(job, state)
        elif event.type in ENDS:
            self._end(job, int(event.body["attempt"]))

    def stop(self) -> None:
        """Break off; the next engine goes on with jobs that run."""
        with self._lock:
            live, threads = list(self._live.values()), list(self._threads)
        for one in live:
            one.stop.set()
        for thread in threads:
            thread.join(PATIENCE)

    def _begin(self, job: str, state: JobState) -> None:
        """Send a running job's output as it grows, where that was decided."""
        attempt = state.attempt
        if self.sharing(state) != "live" or not state.spawned:
            return
        with self._lock:
            if (job, attempt) in self._live:
                return
            live = self._live[(job, attempt)] = _Live()
        path = self._core.site.workspace.attempt(job, attempt) / "log.txt"
        self._run(job, attempt, path, live)

    def _end(self, job: str, attempt: int) -> None:
        """A job ended: its output is sent to the end, and its error log after it."""
        with self._lock:
            live = self._live.get((job, attempt))
        sharing = self.sharing(self._core.site.jobs.load(job).state)
        if live is not None:
            live.over.set()
        elif sharing == "live":  # it ended before it was seen to run, or while no engine was there
            self._whole(job, attempt, self._core.site.workspace.attempt(job, attempt) / "log.txt")
        errors = self._core.site.workspace.run(job) / ERRORS
        if sharing != "off" and errors.is_file():
            self._whole(job, attempt, errors)

    def _whole(self, job: str, attempt: int, path: Path) -> None:
        """Send a log that nobody writes to any more; of what the server has, nothing goes twice."""
        whole = _Live()
        whole.over.set()
        self._run(job, attempt, path, whole)

    def _run(self, job: str, attempt: int, path: Path, live: _Live) -> None:
        def send() -> None:
            try:
                self._send(job, attempt, path, live)
            finally:
                with self._lock:
                    self._live = {key: one for key, one in self._live.items() if one is not live}
                    self._threads.remove(threading.current_thread())

        thread = threading.Thread(target=send, name=f"log-{job}", daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _send(self, job: str, attempt: int, path: Path, live: _Live) -> None:
        producer = LogProducer(path, live.over, live.stop)
        ctx = StreamContext(
            {FileKey.NAME: path.name, LogKey.JOB: job, LogKey.ATTEMPT: attempt, ReservedKey.RUN_NUM: job}
        )
        how = {"optional": True, "method": "stream_log", "kind": "log", "file": path.name}
        # Sealed wherever the server has a key here: a log is the last thing that others should read.
        secure = self._streams.trusts(self._server)
        try:
            self._streams.stream(
                CHANNEL, TOPIC, ctx, [self._server], producer, self._contexts(), secure=secure, **how
            )
        except StreamerDown:
            log.debug("the log of %s is gone on with by the next engine", job)
        except (FlightlogError, OSError) as error:
            log.warning("the log of %s is not sent: %s", job, error)
        finally:
            producer.close()
