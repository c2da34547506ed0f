"""What every call of an engine works with: the site, its view of the jobs, who is asking, and refusals."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from engine.actors import current_actor, current_call_id, expected_revision
from engine.cell.digests import Digests
from engine.cell.outcomes import Outcomes
from engine.decide import Accepted, Command, Decision, Refused, Repeated, decide
from engine.errors import EngineDown
from engine.fold import JobState
from engine.foreign import plain
from engine.ids import new_call_id
from engine.jobs import Recorded
from engine.logs import about
from engine.observed import Observed
from engine.projection import Conditions
from engine.refusals import refusal
from engine.site import Site
from engine.view import View
from events.append import WorkRefused
from events.bodies.base import Body
from events.bodies.job import CallRefused
from events.envelope import Call, digest_of
from events.errors import FlightlogError, LogUnavailable, RecordFull, RevisionConflict

log = logging.getLogger("flightlog.engine")

REFUSALS_PER_SECOND = 10


class Core:
    """One engine's hold on a site.

    Args:
        site: opened.
        rests: nobody here asks for what was seen a moment ago: events may come in bunches (``View``).
        folded: seconds of one actor's reads in one event.
    """

    def __init__(self, site: Site, *, rests: bool = False, folded: int = 1) -> None:
        self.site = site
        self.outcomes = Outcomes()
        self.view = View(
            site.jobs, site.follower_store(), also=self.outcomes.take, busy=self.outcomes.busy if rests else None
        )
        self.outcomes.hurry = self.view.hurry
        self.observed = Observed(site.jobs, folded)
        self.closed = False
        self._digests = Digests(site.workspace.flight)
        self._refusals: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def call(self, method: str, *arguments: Any) -> Call:
        """A new call of the current actor, or the one that ``acting_as`` names.

        Raises:
            EngineDown: the engine is closed.
        """
        if self.closed:
            raise EngineDown("this engine is closed", "open another: ClientEngine.open(...)")
        return Call(
            call_id=current_call_id() or new_call_id(),
            actor=current_actor(),
            # Keyed: what names a person must not be found by trying, not even once its key is gone.
            arguments=self._digests.of(digest_of(method, *arguments).encode())[:16],
        )

    def read(self, method: str, result: str = "ok") -> None:
        """Count a read."""
        self.observed.saw(method, current_actor(), result)

    def command(self, call: Call, job_id: str, command: Command) -> Recorded | None:
        """Decide and record, or refuse and record that.

        Returns:
            What was recorded of an accepted command. None where there is nothing to wait for anew: it
            is under way already, or this very call came before.

        Raises:
            FlightlogError: the refusal, with the position at which it was recorded.
            CallIdReused: the call id came before with other arguments.
            RevisionConflict: the job is not at the revision that the caller has seen.
        """
        with about(call.call_id, call.correlation or ""):
            return self._command(call, job_id, command)

    def _command(self, call: Call, job_id: str, command: Command) -> Recorded | None:
        if current_call_id() is not None and self.site.jobs.log.known(call) is not None:
            return None
        last: list[tuple[Decision, JobState]] = []

        def choose(state: JobState) -> Sequence[Body]:
            decision = decide(state, command)
            last.append((decision, state))
            if isinstance(decision, Accepted):
                return decision.bodies
            return [decision.body] if isinstance(decision, Repeated) else []

        expected = expected_revision()
        try:
            recorded = self.site.jobs.transact(call, job_id, choose, revision=expected)
        except RecordFull as full:
            raise self.refuse(call, command.method, full, job_id) from full
        except RevisionConflict as conflict:
            if expected is None:
                raise
            now = self.site.jobs.load(job_id)
            raise self.refuse(call, command.method, conflict, job_id, now.state, now.revision) from conflict
        decision, state = last[-1]
        if isinstance(decision, Refused):
            if current_call_id() is not None and self.site.jobs.log.known(call) is not None:
                return None  # this very call came in at the same moment, and was faster
            revision = self.site.jobs.load(job_id).revision
            error = refusal(decision, job_id, state)
            raise self.refuse(call, command.method, error, job_id, state, revision)
        return None if isinstance(decision, Repeated) else recorded

    def refuse(
        self,
        call: Call,
        method: str,
        error: FlightlogError,
        job_id: object = None,
        state: JobState | None = None,
        revision: int | None = None,
    ) -> FlightlogError:
        """Record a refusal and give the error back, with its position in it.

        More than ten a second of one actor are folded into counts, so that nobody fills the log
        with nonsense.
        """
        known = bool(state)
        body = CallRefused(
            method=method,
            code=error.code,
            message=plain(error.what),
            job=None if known or job_id is None else plain(str(job_id)),
            state=state.state.value if state is not None and known else None,
            revision=revision if known else None,
        )
        if self.too_many(call.actor.id):
            self.observed.saw(method, call.actor, f"refused:{error.code}")
            return error
        try:
            noted = self.site.jobs.note(call.at("refused"), [body], str(job_id) if known else None)
            error.recorded = noted.positions[0]
        except FlightlogError as unrecorded:
            log.warning("a refusal could not be recorded: %s", unrecorded)
            self.observed.saw(method, call.actor, f"refused:{error.code}")
        return error

    def too_many(self, actor: str) -> bool:
        """Whether an actor is refused more often than is recorded one by one."""
        now = time.monotonic()
        with self._lock:
            recent = self._refusals.setdefault(actor, deque())
            while recent and now - recent[0] > 1.0:
                recent.popleft()
            if len(recent) >= REFUSALS_PER_SECOND:
                return True
            recent.append(now)
            return False

    def guarded(self, call: Call, method: str, job_id: object, check: Callable[[], Any]) -> Any:
        """Run a check of arguments; what it raises is recorded as a refusal first.

        Raises:
            FlightlogError: from the check.
        """
        try:
            return check()
        except LogUnavailable:
            raise
        except FlightlogError as error:
            raise self.refuse(call, method, error, job_id) from error

    def ring(self, kind: str, work_id: str) -> None:
        """Ring the bell; where the fabric is away, the reconciler will."""
        try:
            self.site.bells.ring(kind, work_id)
        except LogUnavailable as error:
            log.warning("the bell for %s could not be rung: %s", work_id, error)

    def withdraw(
        self,
        call: Call,
        job_id: str,
        bodies: Callable[[JobState], Sequence[Body]],
        conditions: Conditions,
    ) -> bool:
        """Take back an intent that nobody has claimed; False where somebody has."""
        try:
            recorded = self.site.jobs.transact(call.at("withdrawn"), job_id, bodies, conditions=conditions)
        except WorkRefused:
            return False
        return recorded is not None

    def close(self) -> None:
        """Stop following and record what was counted."""
        self.closed = True
        self.observed.close()
        self.view.stop()
