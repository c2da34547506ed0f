"""Resources that jobs hold: granted with a start, freed exactly once, taken hold of again on open.

The record is the truth (``StartRequested`` says what an attempt was given, ``JobSettled`` that it is
over); a manager in memory is its cache, brought up to date before each allocation.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any, Literal

from engine.components import Components
from engine.core import Core
from engine.fold import JobState
from engine.lifecycle import LIVE
from events.bodies.app import ResourcesFreed, ResourcesRestored
from events.read import at

log = logging.getLogger("flightlog.resources")

Freed = Literal["yes", "nothing", "caller", "unknown"]
CONCLUDES = 30.0  # seconds within which a start call that is under way is sure to end


@dataclass(eq=False)
class Grant:
    """What a start call brought along, until it is known what became of the start.

    The token stays in memory: it is a secret.
    """

    job_id: str
    manager: Any
    token: str
    resources: dict[str, Any]


class Holdings:
    """Who holds what, in this engine.

    Args:
        core: the engine's.
        components: where the managers are found, by the id that the record names.
    """

    def __init__(self, core: Core, components: Components) -> None:
        self._core = core
        self._find = components.find
        self._context = components.context
        self._open: list[Grant] = []
        self._held: dict[tuple[str, int], Grant] = {}
        self._returned: set[tuple[str, int]] = set()
        self._changed = threading.Condition()

    # -- a start call ------------------------------------------------------------------------

    def grant(self, job_id: str, manager: object, token: str, resources: dict[str, Any]) -> Grant:
        """A start call is under way with these; until it concludes, nobody frees for this job."""
        grant = Grant(job_id, manager, token, resources)
        with self._changed:
            self._open.append(grant)
        return grant

    def bind(self, grant: Grant, attempt: int) -> None:
        """The attempt was recorded and holds them; its end frees them."""
        self._conclude(grant, attempt, returned=False)

    def give_back(self, grant: Grant, why: str) -> None:
        """The start was refused: free them now."""
        self._conclude(grant, None, returned=False)
        known = self._core.site.jobs.load(grant.job_id).known
        self._free(grant, None, why, grant.job_id if known else None)

    def leave(self, grant: Grant, attempt: int | None) -> None:
        """The start raised: the caller frees them, as the reference's caller is used to."""
        self._conclude(grant, attempt, returned=True)

    def _conclude(self, grant: Grant, attempt: int | None, *, returned: bool) -> None:
        with self._changed:
            if grant in self._open:
                self._open.remove(grant)
            if attempt is not None and returned:
                self._returned.add((grant.job_id, attempt))
            elif attempt is not None:
                self._held[grant.job_id, attempt] = grant
            self._changed.notify_all()

    # -- an attempt's end --------------------------------------------------------------------

    def free(self, job_id: str, attempt: int, state: JobState) -> Freed:
        """Give back what an attempt held, once; by the record where this engine did not grant it."""
        key = (job_id, attempt)
        with self._changed:
            self._changed.wait_for(lambda: all(g.job_id != job_id for g in self._open), CONCLUDES)
            held = self._held.pop(key, None)
            if key in self._returned:
                self._returned.discard(key)
                return "caller"
        if held is not None:
            self._free(held, attempt, "the attempt ended", job_id)
            return "yes"
        if not state.resources or state.attempt != attempt:
            return "nothing"
        manager = self._find(state.get("manager", ""))
        if manager is None:
            return "unknown"
        grant = Grant(job_id, manager, self._digest(state), state.resources)
        self._free(grant, attempt, "the attempt ended", job_id)
        return "yes"

    def _free(self, grant: Grant, attempt: int | None, why: str, job_id: str | None) -> None:
        """Free, and record that; a manager that raises is recorded too and does not stop us."""
        try:
            grant.manager.free_resources(grant.resources, grant.token, self._context())
        except Exception as error:
            log.exception("the resource manager could not free %s", grant.resources)
            why = f"{why}; the manager raised {type(error).__name__}: {error}"[:500]
        freed = ResourcesFreed(attempt=attempt, resources=grant.resources, why=why)
        self._core.site.jobs.note(self._core.site.system_call("freed", role="engine"), [freed], job_id)

    # -- the record is the truth -------------------------------------------------------------

    def sync(self, *, opening: bool = False) -> None:
        """Take hold of what live attempts have by the record and this engine does not know of.

        Args:
            opening: the site was opened anew: what is taken hold of is recorded.
        """
        live: set[tuple[str, int]] = set()
        jobs = self._core.site.jobs
        for name in LIVE:
            for job_id, loaded in jobs.load_many(jobs.ids(state=name.value, limit=100_000)):
                state = loaded.state
                if not state.resources:
                    continue
                live.add((job_id, state.attempt))
                self._restore(job_id, state, opening)
        with self._changed:
            over = [key for key in self._held if key not in live]
        for key in over:
            if not jobs.work(f"settle_{key[0]}_{key[1]}"):  # settled by the engine that owns the site
                with self._changed:
                    grant = self._held.pop(key, None)
                if grant is not None:
                    grant.manager.free_resources(grant.resources, grant.token, self._context())

    def _restore(self, job_id: str, state: JobState, opening: bool) -> None:
        with self._changed:
            known = (job_id, state.attempt) in self._held or any(g.job_id == job_id for g in self._open)
        manager: Any = self._find(state.get("manager", ""))
        if known:
            return
        if not hasattr(manager, "restore_resources"):
            log.warning("%s holds %s, but its manager %r is not here", job_id, state.resources, state["manager"])
            return
        grant = Grant(job_id, manager, self._digest(state), state.resources)
        manager.restore_resources(grant.resources, grant.token, self._context())
        self._conclude(grant, state.attempt, returned=False)
        if opening:
            restored = ResourcesRestored(attempt=state.attempt, resources=grant.resources)
            self._core.site.jobs.note(self._core.site.system_call("restored", role="engine"), [restored], job_id)

    def _digest(self, state: JobState) -> str:
        """Stands for the token of a start that this engine did not make."""
        request = at(self._core.site.jobs.store, [state["start_position"]])
        return str(request[0].body["resource_token_digest"] or "") if request else ""
