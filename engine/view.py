"""The engine's own fold: one follower of the log keeps it, getters read it, callers wait on it.

It answers with Redis down too, as of the last event that was seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from engine.fold import Illegal, JobState, apply, fact_of
from engine.jobs import Jobs
from engine.lifecycle import BUSY, LIVE
from events.envelope import Event
from events.errors import LogUnavailable
from events.follow import follow
from events.read import last_position
from events.store import Store
from events.subjects import job_of

log = logging.getLogger("flightlog.view")

REST = 0.02  # seconds


class View:
    """States of the jobs that are not at rest, and of those that were seen to change.

    Args:
        jobs: for loading a state that was not seen from its start.
        store: with a connection of its own, for following.
        also: told of every batch of events that is seen.
        busy: whether somebody waits for what ``also`` is told; where it is given, and nobody does, events are let
            come in bunches. A job's process is one of many that follow, and each message is some events.
    """

    def __init__(
        self,
        jobs: Jobs,
        store: Store,
        also: Callable[[Sequence[Event]], None] | None = None,
        busy: Callable[[], bool] | None = None,
    ) -> None:
        self._busy = busy
        self._also = also
        self._waiting = 0
        self._hurried = threading.Event()
        self._jobs = jobs
        self._store = store
        self._states: dict[str, tuple[JobState, int]] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)
        self.position = "0-0"
        #: True while the record does not answer the follower.
        self.away = False

    def start(self) -> None:
        """Load what is not at rest, then follow."""
        self.position = last_position(self._jobs.store)
        for state in LIVE + BUSY:
            ids = self._jobs.ids(state=state.value, limit=100_000)
            for job, loaded in self._jobs.load_many(ids):
                self._states[job] = (loaded.state, loaded.version)
        self._thread.start()

    def stop(self) -> None:
        """End following."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2)
        self._store.client.close()

    def get(self, job_id: str) -> JobState | None:
        """A job's state as last seen; None where nothing was seen of it."""
        with self._changed:
            known = self._states.get(job_id)
            return known[0] if known else None

    def latest(self, job_id: str) -> JobState | None:
        """A job's state as the record has it now, for a decision; as last seen where the record is away."""
        self._look(job_id)
        return self.get(job_id)

    def live(self) -> list[tuple[str, JobState]]:
        """Jobs with an app that is being launched, runs, or is about to end."""
        with self._changed:
            return [(job, state) for job, (state, _) in self._states.items() if state.live]

    def hurry(self) -> None:
        """Somebody waits for what comes next: no rest now."""
        self._hurried.set()

    def wait(self, job_id: str, version: int, done: Callable[[JobState], bool], timeout: float) -> JobState | None:
        """Wait until a job's state, at ``version`` or later, satisfies ``done``.

        Args:
            job_id: whose state.
            version: the job's version must have come at least this far.
            done: what is waited for.
            timeout: seconds.

        Returns:
            The state, or None where the time was over first.
        """
        with self._changed:
            self._waiting += 1
        self.hurry()
        try:
            return self._wait(job_id, version, done, timeout)
        finally:
            with self._changed:
                self._waiting -= 1

    def _wait(self, job_id: str, version: int, done: Callable[[JobState], bool], timeout: float) -> JobState | None:
        until = time.monotonic() + timeout
        look_at = time.monotonic() + 1.0
        if self.get(job_id) is None:
            self._look(job_id)  # a job at rest that nothing was seen of
        while True:
            with self._changed:
                known = self._states.get(job_id)
                if known and known[1] >= version and done(known[0]):
                    return known[0]
                left = min(until, look_at) - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
            if time.monotonic() >= until:
                return None
            look_at = time.monotonic() + 1.0
            self._look(job_id)

    def _look(self, job_id: str) -> None:
        """The follower may be behind, or its connection gone: look oneself now and then."""
        try:
            loaded = self._jobs.load(job_id)
        except LogUnavailable:
            return
        with self._changed:
            known = self._states.get(job_id)
            if known is None or known[1] < loaded.version:
                self._states[job_id] = (loaded.state, loaded.version)
                self._changed.notify_all()

    def _run(self) -> None:
        def lost(error: LogUnavailable) -> None:
            self.away = True

        for batch in follow(self._store, self.position, self._stop, on_loss=lost):
            if batch and self._also is not None:
                self._also(batch)
            for event in batch:
                self.away = False
                try:
                    self._take(event)
                except LogUnavailable:
                    self._states.pop(job_of(event.subject) or "", None)
                self.position = event.position
            if batch:
                with self._changed:
                    self._changed.notify_all()
                self._rest()

    def _rest(self) -> None:
        """Let more events come, where nobody waits for one."""
        if self._busy is None:
            return
        self._hurried.clear()
        if not self._waiting and not self._busy():
            self._hurried.wait(REST)

    def _take(self, event: Event) -> None:
        job = job_of(event.subject)
        if job is None:
            return
        with self._changed:
            known = self._states.get(job)
        if known is not None and event.version <= known[1]:
            return
        if known is not None and event.version == known[1] + 1:
            try:
                state, version = apply(known[0], fact_of(event)), event.version
            except Illegal:
                log.warning("event %s cannot come in state %s", event.position, known[0].state)
                return
        elif event.version == 1:
            state, version = apply(JobState().seen_with(event.vault), fact_of(event)), 1
        else:
            loaded = self._jobs.load(job)
            state, version = loaded.state, loaded.version
        with self._changed:
            self._states[job] = (state, version)
