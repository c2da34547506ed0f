"""Resources that jobs hold: recorded when they are given, freed exactly once, taken hold of again on open."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Literal

from engine.context import FLContext
from engine.core import Core
from engine.fold import JobState
from events.bodies.app import ResourcesFreed, ResourcesRestored
from events.read import at

log = logging.getLogger("flightlog.resources")

Freed = Literal["yes", "nothing", "unknown"]


class Holdings:
    """Who holds what, in this engine.

    Args:
        core: the engine's.
        find: from a component id to the manager; None where there is none.
        context: makes a context for the manager.
    """

    def __init__(self, core: Core, find: Callable[[str], object | None], context: Callable[[], FLContext]) -> None:
        self._core = core
        self._find = find
        self._context = context
        self._held: dict[tuple[str, int], tuple[object, str, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def hold(self, job_id: str, attempt: int, manager: object, token: str, resources: dict[str, Any]) -> None:
        """Remember what an attempt was given. The token stays in memory: it is a secret."""
        with self._lock:
            self._held[job_id, attempt] = (manager, token, resources)

    def restore(self, job_id: str, state: JobState) -> None:
        """Take hold again of what a live attempt had been given, after the engine was opened anew."""
        resources = state.resources
        if not resources:
            return
        manager = self._find(state.get("manager", ""))
        restore = getattr(manager, "restore_resources", None)
        if restore is None:
            log.warning("%s holds %s, but its manager %r is not here", job_id, resources, state.get("manager"))
            return
        token = self._token_digest(state)
        restore(resources, token, self._context())
        self.hold(job_id, state.attempt, manager, token, resources)
        self._core.site.jobs.note(
            self._core.site.system_call("restored", role="engine"),
            [ResourcesRestored(attempt=state.attempt, resources=resources)],
            job_id,
        )

    def _token_digest(self, state: JobState) -> str:
        request = at(self._core.site.jobs.store, [state["start_position"]])
        return str(request[0].body["resource_token_digest"] or "") if request else ""

    def free(self, job_id: str, attempt: int, state: JobState) -> Freed:
        """Give back what an attempt held; the second time there is nothing to give."""
        with self._lock:
            held = self._held.pop((job_id, attempt), None)
        if held is None:
            return "nothing" if not state.resources or state.attempt != attempt else "unknown"
        manager, token, resources = held
        self.give_back(manager, token, resources, job_id, attempt, "the attempt ended")
        return "yes"

    def give_back(
        self,
        manager: object,
        token: str,
        resources: dict[str, Any],
        job_id: str | None,
        attempt: int | None,
        why: str,
    ) -> None:
        """Free resources and record that; a manager that raises is recorded too and does not stop us."""
        try:
            manager.free_resources(resources, token, self._context())  # type: ignore[attr-defined]
        except Exception as error:
            log.exception("the resource manager could not free %s", resources)
            why = f"{why}; the manager raised {type(error).__name__}: {error}"[:500]
        self._core.site.jobs.note(
            self._core.site.system_call("freed", role="engine"),
            [ResourcesFreed(attempt=attempt, resources=resources, why=why)],
            job_id,
        )
