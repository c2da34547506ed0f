"""Starts with resources: granted before, bound to the attempt that was recorded, or given back, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.calls.start import Allotment, Started, start
from engine.components import Components
from engine.constants import EventType
from engine.core import Core
from engine.errors import (
    AlreadyStarted,
    CallTimeout,
    DeployInProgress,
    JobBusy,
    JobUnknown,
    NotDeployed,
    ResourcesLacking,
)
from engine.files import FileLock
from engine.holdings import Grant, Holdings
from engine.resources.spec import ResourceConsumerSpec, ResourceManagerSpec
from events.envelope import Call
from events.errors import FlightlogError

MANAGER, CONSUMER = "resource_manager", "resource_consumer"
#: Refusals that the reference answers with a string; what was allocated is then freed here.
ANSWERED = (AlreadyStarted, JobUnknown, NotDeployed, JobBusy, DeployInProgress)


class Starts:
    """The starts of one engine.

    Args:
        core: the engine's.
        components: told before a launch; among them the resource manager and its consumer.
        holdings: who holds what.
        owner: this engine owns the site; a client's components are not told.
    """

    def __init__(self, core: Core, components: Components, holdings: Holdings, *, owner: bool) -> None:
        self._core = core
        self._components = components
        self._holdings = holdings
        self._owner = owner

    def given(
        self,
        job_id: str,
        job_meta: Mapping[str, Any] | None,
        resources: dict[str, Any] | None,
        token: str | None,
        manager: object | None,
    ) -> Started:
        """Start with what the caller has allocated.

        A refusal that is ``ANSWERED`` frees it here; where another error is raised, the caller does.

        Raises:
            FlightlogError: see ``engine.calls.start.start``.
        """
        call = self._core.call("start_app", job_id, job_meta, resources)
        grant = None
        if resources and manager is not None:
            grant = self._holdings.grant(str(job_id), manager, token or "", resources)
        allotment = Allotment(
            resources=resources or {},
            token=token if resources else None,
            manager=self._components.id_of(manager) if resources else None,
        )
        try:
            return self._start(call, job_id, job_meta, allotment, grant)
        except ANSWERED:
            if grant is not None:
                self._holdings.give_back(grant, "the start was refused")
            raise
        except CallTimeout:
            raise  # it may come yet, and then it holds what it was given
        except BaseException as error:
            if grant is not None:
                self._holdings.leave(grant, _attempt(error))
            raise

    def asked(
        self,
        job_id: str,
        job_meta: Mapping[str, Any] | None,
        requirement: dict[str, Any],
        timeout: float | None = None,
    ) -> Started:
        """Check, allocate, consume and start in one call, as the reference's start command does (7.3).

        ``timeout`` is in seconds; 0: it does not wait for the process.

        Raises:
            ResourcesLacking: the manager has not enough now, or the site has no manager.
            FlightlogError: whatever else stands against the start; nothing is held then.
        """
        call = self._core.call("start_app", job_id, requirement)
        manager = self._components.find(MANAGER)
        if not isinstance(manager, ResourceManagerSpec):
            error = ResourcesLacking("this site has no resource_manager", "name one in local/resources.json")
            raise self._core.refuse(call, "start_app", error, job_id)
        lock = FileLock(self._core.site.workspace.flight / "resources.lock")
        lock.acquire(timeout=None)  # one allocation at a time on this site, whichever engine makes it
        try:
            self._holdings.sync()
            context = self._components.context()
            enough, token = manager.check_resources(requirement, context)
            if not enough:
                error = ResourcesLacking(
                    f"the site lacks {requirement} at this moment", "flightlog status shows who holds what"
                )
                raise self._core.refuse(call, "start_app", error, job_id)
            resources = manager.allocate_resources(requirement, token, context)
            grant = self._holdings.grant(job_id, manager, token, resources) if resources else None
            return self._allocated(call, job_id, job_meta, resources, token, grant, lock.release, timeout)
        finally:
            lock.release()

    def _allocated(
        self,
        call: Call,
        job_id: str,
        job_meta: Mapping[str, Any] | None,
        resources: dict[str, Any],
        token: str,
        grant: Grant | None,
        recorded: Callable[[], None],
        timeout: float | None,
    ) -> Started:
        consumer = self._components.find(CONSUMER)
        try:
            environment: Mapping[str, str] = {}
            if resources and isinstance(consumer, ResourceConsumerSpec):
                environment = consumer.consume(resources)
            allotment = Allotment(
                resources=resources,
                token=token if resources else None,
                manager=MANAGER if resources else None,
                environment=environment,
            )
            return self._start(call, job_id, job_meta, allotment, grant, recorded, timeout)
        except CallTimeout:
            raise  # it may come yet, and then it holds what it was given
        except BaseException as error:
            if grant is not None:
                attempt = _attempt(error)
                self._holdings.leave(grant, attempt)
                # Here we are the caller. What was recorded by a client, the owner frees by the record.
                if attempt is None or self._owner:
                    self._holdings.give_back(grant, "the start failed")
            raise

    def _start(
        self,
        call: Call,
        job_id: str,
        job_meta: Mapping[str, Any] | None,
        allotment: Allotment,
        grant: Grant | None,
        recorded: Callable[[], None] | None = None,
        timeout: float | None = None,
    ) -> Started:
        def before(meta: Mapping[str, Any]) -> None:
            if self._owner:
                context = self._components.job_context(job_id, meta)
                self._components.fire(EventType.BEFORE_JOB_LAUNCH, context, job_id)

        attempt: int | None = None
        try:
            started = start(
                self._core, call, job_id, job_meta, allotment, timeout=timeout, before=before, recorded=recorded
            )
            attempt = started.attempt
        except CallTimeout as error:
            attempt = _attempt(error)
            raise
        finally:
            if grant is not None and attempt is not None:
                self._holdings.bind(grant, attempt)
        return started


def _attempt(error: BaseException) -> int | None:
    """The attempt that an error of a start is about, where one was recorded."""
    return error.context.get("attempt") if isinstance(error, FlightlogError) else None
