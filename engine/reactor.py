"""The reactor: in the engine that owns the site, it turns what was recorded into component events.

It goes by a durable cursor, at least once across deaths. Settling (freeing resources, JOB_COMPLETED)
goes by open work, so it is done once that it is recorded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import cast

from engine.components import Components
from engine.constants import EventType
from engine.core import Core
from engine.holdings import Holdings
from engine.jobs import Loaded
from events.bodies.app import JobSettled
from events.envelope import Event
from events.errors import FlightlogError, LogUnavailable
from events.follow import follow
from events.read import at, last_position
from events.subjects import job_of

log = logging.getLogger("flightlog.reactor")

LAUNCHED = "AppSpawned"
ENDS = frozenset(("AppFinished", "AppFailed", "AppAborted", "AppLost", "LaunchFailed", "LaunchExpired"))
CURSOR = "reactor"
SAVE_EVERY = 1.0  # seconds between two saves of a cursor that has passed nothing of interest
#: Seconds to let more events come where nothing was to be done: messages are many, and not for us.
PAUSE = 0.02


class Reactor:
    """Follows the log for the components.

    Args:
        core: the engine's.
        components: told of launches and ends.
        holdings: what jobs hold.
        also: told of every event, after the components; it may raise ``FlightlogError``.
    """

    def __init__(
        self,
        core: Core,
        components: Components,
        holdings: Holdings,
        also: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._also = also
        self._core = core
        self._components = components
        self._holdings = holdings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reactor", daemon=True)
        self._position = "0-0"

    def start(self) -> None:
        """Follow from the cursor, on a thread that first settles what is unsettled."""
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
        unsettled, saved = True, time.monotonic()
        for batch in follow(store, self._position, self._stop):
            try:
                if unsettled:
                    self._settle_all()
                    unsettled = False
                reacted = [self._react(event) for event in batch]
                if batch:
                    self._position = batch[-1].position
                if any(reacted) or time.monotonic() - saved > SAVE_EVERY:
                    saved = time.monotonic()
                    store.command("SET", store.keys.cursor(CURSOR), self._position)
                elif batch:
                    self._stop.wait(PAUSE)
            except LogUnavailable:
                unsettled = True  # what was missed is found as open work
            except FlightlogError:
                log.exception("an event could not be reacted to")
                unsettled = True
        try:
            store.command("SET", store.keys.cursor(CURSOR), self._position)
        except LogUnavailable as error:
            log.debug("the cursor stays where it was: %s", error)  # what was reacted to is on the record
        store.client.close()

    def _react(self, event: Event) -> bool:
        """React to an event; whether there was anything to do."""
        job = job_of(event.subject)
        if job is None:
            return False
        if event.type == LAUNCHED:
            self._tell(EventType.AFTER_JOB_LAUNCH, job)
        elif event.type in ENDS:
            self._settle(job, int(event.body["attempt"]), event.type, event.position)
        else:
            self._also(event)
            return False
        self._also(event)
        return True

    def _tell(self, what: str, job: str) -> None:
        self._components.fire(what, self._components.job_context(job), job)

    def _settle_all(self) -> None:
        for _, work in self._core.site.jobs.open_work():
            if work["kind"] == "settle":
                cause = work["position"]
                event = next(iter(at(self._core.site.jobs.store, [cause])), None)
                if event is not None:
                    self._settle(work["job"], int(work["number"]), event.type, cause)

    def _settle(self, job: str, attempt: int, how: str, cause: str) -> None:
        jobs = self._core.site.jobs
        if not jobs.work(f"settle_{job}_{attempt}"):
            return
        loaded: Loaded = jobs.load(job)
        freed = self._holdings.free(job, attempt, loaded.state)
        ran = not how.startswith("Launch")
        if ran:
            self._tell(EventType.JOB_COMPLETED, job)
        call = self._core.site.system_call(
            "settled",
            call_id=f"settle:{job}:{attempt}",
            cause=cause,
            correlation=loaded.state.get("correlation"),
            role="reactor",
        )
        jobs.note(call, [JobSettled(attempt=attempt, freed=freed, completed_fired=ran)], job)
