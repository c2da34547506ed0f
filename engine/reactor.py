"""The reactor: in the engine that owns the site, it turns what was recorded into component events.

It goes by a durable cursor, at least once across deaths. Settling (freeing resources, JOB_COMPLETED)
goes by open work, so it is done once that it is recorded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import cast

from engine.core import Core
from engine.holdings import Holdings
from engine.jobs import Loaded
from events.bodies.app import JobSettled
from events.envelope import Event
from events.errors import FlightlogError, LogUnavailable
from events.follow import follow
from events.read import last_position
from events.subjects import job_of

log = logging.getLogger("flightlog.reactor")

Fire = Callable[[str, str, bool], None]  # what happened, job id, was it a completed run

LAUNCHED = "AppSpawned"
ENDS = frozenset(("AppFinished", "AppFailed", "AppAborted", "AppLost", "LaunchFailed", "LaunchExpired"))
CURSOR = "reactor"


class Reactor:
    """Follows the log for the components.

    Args:
        core: the engine's.
        holdings: what jobs hold.
        launched: called with a job's id when its process is there.
        completed: called with a job's id when a run of it has ended.
    """

    def __init__(
        self,
        core: Core,
        holdings: Holdings,
        launched: Callable[[str], None],
        completed: Callable[[str], None],
    ) -> None:
        self._core = core
        self._holdings = holdings
        self._launched = launched
        self._completed = completed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reactor", daemon=True)
        self._position = "0-0"

    def start(self) -> None:
        """Settle what is unsettled, then follow from the cursor."""
        store = self._core.site.jobs.store
        known = cast("str | None", store.command("GET", store.keys.cursor(CURSOR)))
        self._position = known or last_position(store)
        self._thread.start()

    def stop(self) -> None:
        """End following."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        store = self._core.site.follower_store()
        unsettled = True
        for batch in follow(store, self._position, self._stop):
            try:
                if unsettled:
                    self._settle_all()
                    unsettled = False
                for event in batch:
                    self._react(event)
                if batch:
                    store.command("SET", store.keys.cursor(CURSOR), batch[-1].position)
            except LogUnavailable:
                unsettled = True  # what was missed is found as open work
            except FlightlogError:
                log.exception("an event could not be reacted to")
                unsettled = True
        store.client.close()

    def _react(self, event: Event) -> None:
        job = job_of(event.subject)
        if job is None:
            return
        if event.type == LAUNCHED:
            self._launched(job)
        elif event.type in ENDS:
            self._settle(job, int(event.body["attempt"]), event.type, event.position)

    def _settle_all(self) -> None:
        for _, work in self._core.site.jobs.open_work():
            if work["kind"] == "settle":
                cause = work["position"]
                event = next(iter(self._events_at(cause)), None)
                if event is not None:
                    self._settle(work["job"], int(work["number"]), event.type, cause)

    def _events_at(self, position: str) -> list[Event]:
        from events.read import at

        return at(self._core.site.jobs.store, [position])

    def _settle(self, job: str, attempt: int, how: str, cause: str) -> None:
        jobs = self._core.site.jobs
        if not jobs.work(f"settle_{job}_{attempt}"):
            return
        loaded: Loaded = jobs.load(job)
        freed = self._holdings.free(job, attempt, loaded.state)
        ran = not how.startswith("Launch")
        if ran:
            self._completed(job)
        call = self._core.site.system_call(
            "settled",
            call_id=f"settle:{job}:{attempt}",
            cause=cause,
            correlation=loaded.state.get("correlation"),
            role="reactor",
        )
        jobs.note(call, [JobSettled(attempt=attempt, freed=freed, completed_fired=ran)], job)
