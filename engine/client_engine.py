"""``ClientEngine``: the reference's API, on the record.

A façade: each call's life is in ``engine.calls``; here errors become the strings and exceptions that the
reference's callers know (reference 1.2).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from engine import actors
from engine.calls.abort import abort, declare_lost
from engine.calls.delete import delete
from engine.calls.deploy import deploy
from engine.calls.notify import notify
from engine.calls.start import Allotment, Started, start
from engine.children import PoolChild
from engine.client import Arguments, FederatedClient, LocalArguments, LocalClient
from engine.component import FLComponent, dispatch
from engine.constants import ClientStatus, EventType, FLContextKey, ProcessType, ReservedKey
from engine.context import FLContext, FLContextManager
from engine.core import Core
from engine.errors import (
    AlreadyStarted,
    AlreadyStopped,
    ArgumentInvalid,
    ArgumentTypeInvalid,
    ByocDenied,
    CallTimeout,
    DeployInProgress,
    EngineDown,
    JobBusy,
    JobLive,
    JobUnknown,
    NotDeployed,
    NotStarted,
    NoWorker,
    ResourcesLacking,
    ScopeDenied,
    SignatureBad,
)
from engine.files import FileLock, read_json, write_json
from engine.holdings import Grant, Holdings
from engine.ids import check_site_name
from engine.orders import start_ticks
from engine.reactor import Reactor
from engine.resources.spec import ResourceConsumerSpec, ResourceManagerSpec
from engine.site import Site
from engine.site_components import load_components
from engine.workspace import host_name, known_site
from events.bodies.base import Body
from events.bodies.site import (
    AgentSet,
    ComponentAdded,
    EngineClosed,
    EngineOpened,
    FLEventFired,
    FLHandlerFailed,
    RestartRequested,
    ShutdownRequested,
)
from events.envelope import Actor, Call, iso
from events.errors import FlightlogError, LogUnavailable

log = logging.getLogger("flightlog.engine")

ERROR = "NVFLARE_ERROR: "
MANAGER, CONSUMER = "resource_manager", "resource_consumer"


class ClientEngine:
    """The engine of a client parent.

    Args:
        client: see ``engine.client.FederatedClient`` for what is read of it.
        args: ``args.workspace`` is the site's folder.
        rank: recorded with the opening.
        workers: size of the pool that this engine supervises.
        options: further settings (``engine.settings``), for instance ``pool="elsewhere"``.

    Raises:
        ArgumentInvalid: a setting makes no sense (``workers must >= 1``).
        EngineDown, ServerUnsafe: a server cannot be used.
    """

    def __init__(
        self, client: FederatedClient, args: Arguments, rank: object, workers: int = 5, **options: Any
    ) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise ArgumentInvalid(
                f"workers must >= 1, and is {workers!r}", "give a number of at least 1", field="workers"
            )
        self.client = client
        self.args = args
        self.rank = rank
        self.client_name = client.client_name
        self.admin_agent: object = None
        self.logger = log
        self._components_lock = threading.Lock()
        site = Site.open(
            create=True,
            workspace=Path(args.workspace),
            site=client.client_name,
            workers=workers,
            **options,
        )
        self._core = Core(site)
        self._owner = FileLock(site.workspace.flight / "owner.lock")
        self.role: Literal["owner", "client"] = "owner" if self._owner.acquire() else "client"
        self.fl_components = [c for c in client.components.values() if isinstance(c, FLComponent)]
        self.fl_ctx_mgr = self._context_manager()
        self._holdings = Holdings(self._core, self.client.components.get, self._context)
        self._reactor = Reactor(self._core, self._holdings, self._launched, self._completed)
        self._pool: PoolChild | None = None
        self._opened = False
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self._opened = True

    @classmethod
    def open(
        cls,
        *,
        site: str | None = None,
        workspace: Path | str,
        components: dict[str, Any] | None = None,
        workers: int = 2,
        **options: Any,
    ) -> Self:
        """An engine for a site without a server of its own.

        Args:
            site: the site's name; a workspace remembers it.
            workspace: its folder, made where it is missing.
            components: id -> object, for instance a ``resource_manager``; beside those that the
                site's ``local/resources.json`` names.
            workers: size of its pool.
            options: further settings, see ``engine.settings``.
        """
        name = check_site_name(site or known_site(Path(workspace).resolve()))
        known = {**load_components(Path(workspace)), **(components or {})}
        client = LocalClient(client_name=name, components=known)
        return cls(client, LocalArguments(str(workspace)), None, workers, **options)

    def _open(self) -> None:
        site = self._core.site
        opened = EngineOpened(
            role=self.role,
            host=host_name(),
            pid=os.getpid(),
            rank=None if self.rank is None else str(self.rank)[:100],
            release=version("flightlog"),
        )
        site.jobs.note(self._core.call("open"), [opened])
        self._core.view.start()
        if self.role != "owner":
            return
        owner = {
            "pid": os.getpid(),
            "ticks": start_ticks(os.getpid()),
            "since": iso(time.time_ns() // 10**6),
        }
        write_json(site.workspace.flight / "owner.json", owner)
        self._holdings.sync(opening=True)
        self._reactor.start()
        self._sweep()
        if site.settings.pool == "own":
            self._pool = PoolChild(site)
            self._pool.start()

    def _sweep(self) -> None:
        """Blobs that no intent needs any more."""
        keep = {
            state.get("next_sha256", "")
            for _, loaded in self._core.site.jobs.load_many(
                [work["job"] for _, work in self._core.site.jobs.open_work() if work["kind"] == "deploy"]
            )
            for state in [loaded.state]
        }
        self._core.site.blobs.sweep(keep, older_than=3600, now=time.time())

    # -- context, components, events ---------------------------------------------------------

    def _context_manager(self) -> FLContextManager:
        args = getattr(self.client, "client_args", None) or {}
        return FLContextManager(
            engine=self,
            identity_name=self.client_name,
            job_id="",
            public_stickers={
                ReservedKey.FQSN: args.get("fqsn", self.client_name),
                ReservedKey.IS_LEAF: args.get("is_leaf", True),
            },
            private_stickers={
                FLContextKey.FED_CLIENT: self.client,
                FLContextKey.SECURE_MODE: getattr(self.client, "secure_train", False),
                FLContextKey.WORKSPACE_ROOT: str(self.args.workspace),
                FLContextKey.PROCESS_TYPE: ProcessType.CLIENT_PARENT,
            },
        )

    def _context(self) -> FLContext:
        return self.fl_ctx_mgr.new_context()

    def new_context(self) -> FLContext:
        """A context with the site's sticky properties."""
        self._core.read("new_context")
        return self._context()

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Call all components in order, on this thread; what a handler raises is logged and recorded."""
        self._core.call("fire_event")
        self._fire(event_type, fl_ctx)

    def _fire(self, event_type: str, fl_ctx: FLContext, job: str | None = None) -> None:
        with self._components_lock:
            components = list(self.fl_components)
        failures = dispatch(event_type, components, fl_ctx)
        bodies: list[Body] = [FLEventFired(event=str(event_type), job=job, handlers=len(components))]
        bodies += [
            FLHandlerFailed(event=str(event_type), handler=name, error=f"{type(e).__name__}: {e}"[:500])
            for name, e in failures
        ]
        try:
            self._core.site.jobs.note(self._core.call("fire_event", event_type).at("fired"), bodies)
        except LogUnavailable:
            self._core.read("fire_event", str(event_type))  # kept in memory until the record is back

    def add_component(self, component_id: str, component: object) -> None:
        """Add a component; an FLComponent receives events from now on.

        Raises:
            ArgumentTypeInvalid: the id is no string. ArgumentInvalid: the id is taken.
        """
        call = self._core.call("add_component", component_id)
        with self._components_lock:
            if not isinstance(component_id, str):
                raise self._core.refuse(
                    call,
                    "add_component",
                    ArgumentTypeInvalid(
                        f"component id must be str but got {type(component_id).__name__}",
                        "give a string",
                        field="component_id",
                    ),
                )
            if component_id in self.client.components:
                raise self._core.refuse(
                    call,
                    "add_component",
                    ArgumentInvalid(
                        f"duplicate component id {component_id[:80]}", "use another id", field="component_id"
                    ),
                )
            added = ComponentAdded(component_id=component_id, kind=_kind(component))
            self._core.site.jobs.note(call, [added])
            self.client.components[component_id] = component
            if isinstance(component, FLComponent):
                self.fl_components.append(component)

    def get_component(self, component_id: str) -> object | None:
        """A component by its id, or None."""
        self._core.read("get_component")
        return self.client.components.get(component_id)

    def set_agent(self, admin_agent: object) -> None:
        """Set the admin agent."""
        self._core.site.jobs.note(self._core.call("set_agent"), [AgentSet(kind=_kind(admin_agent))])
        self.admin_agent = admin_agent

    # -- reads -------------------------------------------------------------------------------

    def get_client_name(self) -> str:
        """The site's name."""
        self._core.read("get_client_name")
        return self.client_name

    def get_all_job_ids(self) -> list[str]:
        """Ids of the jobs with a live app."""
        self._core.read("get_all_job_ids")
        return [job for job, _ in self._core.view.live()]

    def get_engine_status(self) -> dict[str, Any]:
        """``{"client_name", "running_jobs": [{"app_name", "job_id", "status"}]}``, JSON throughout."""
        self._core.read("get_engine_status")
        return {
            "client_name": self.client_name,
            "running_jobs": [
                {"app_name": state.get("app", ""), "job_id": job, "status": state.client_status}
                for job, state in self._core.view.live()
            ],
        }

    # -- a job's life --------------------------------------------------------------------------

    def deploy_app(
        self, app_name: str, job_id: str, job_meta: dict[str, Any], client_name: str, app_data: bytes
    ) -> str:
        """Put an app in place (reference 3).

        Returns:
            "" when it is in place, ``NVFLARE_ERROR: ...`` when the site or the job's state refused it.

        Raises:
            JobIdInvalid, ArgumentInvalid, BadArchive, BadConfig, CommandNotFound: bad input.
            DeployFailedError, DiskFull, LogUnavailable: it could not be done; the old app is untouched.
        """
        try:
            deploy(self._core, app_name, job_id, job_meta, client_name, app_data)
        except (ScopeDenied, SignatureBad, ByocDenied) as error:
            return ERROR + error.what
        except (JobLive, JobBusy, DeployInProgress, NoWorker, CallTimeout) as error:
            return ERROR + str(error)
        return ""

    def start_app(
        self,
        job_id: str,
        job_meta: Mapping[str, Any] | None,
        allocated_resource: dict[str, Any] | None = None,
        token: str | None = None,
        resource_manager: object | None = None,
    ) -> str:
        """Start the app of a job (reference 2.2).

        A start that is answered with a string that says no frees the resources here; where it raises,
        the caller does, as the reference's caller is used to. Either way they are freed once.

        Returns:
            ``Start the client app...``, ``Client app already started.``, or ``NVFLARE_ERROR: ...``.

        Raises:
            StillRegistered, MetaDiffers, NoWorker, LaunchFailedError (all RuntimeError): refused or failed.
            JobIdInvalid, ArgumentInvalid: bad input.
        """
        call = self._core.call("start_app", job_id, job_meta, allocated_resource)
        grant = None
        if allocated_resource and resource_manager is not None:
            grant = self._holdings.grant(str(job_id), resource_manager, token or "", allocated_resource)
        allotment = Allotment(
            resources=allocated_resource or {},
            token=token if allocated_resource else None,
            manager=self._component_id(resource_manager) if allocated_resource else None,
        )
        try:
            self._start(call, job_id, job_meta, allotment, grant)
        except (AlreadyStarted, JobUnknown, NotDeployed, JobBusy, DeployInProgress) as error:
            if grant is not None:
                self._holdings.give_back(grant, "the start was refused")
            return _refused_start(error)
        except CallTimeout as error:
            return ERROR + str(error)  # it may come yet, and then it holds what it was given
        except BaseException as error:
            if grant is not None:
                self._holdings.leave(grant, _attempt(error))
            raise
        return "Start the client app..."

    def _start(
        self,
        call: Call,
        job_id: str,
        job_meta: Mapping[str, Any] | None,
        allotment: Allotment,
        grant: Grant | None,
        recorded: Callable[[], None] | None = None,
    ) -> Started:
        def before(meta: Mapping[str, Any]) -> None:
            self._before_launch(job_id, meta)

        attempt: int | None = None
        try:
            started = start(self._core, call, job_id, job_meta, allotment, before=before, recorded=recorded)
            attempt = started.attempt
        except CallTimeout as error:
            attempt = _attempt(error)
            raise
        finally:
            if grant is not None and attempt is not None:
                self._holdings.bind(grant, attempt)
        return started

    def start_with_resources(
        self, job_id: str, job_meta: Mapping[str, Any] | None, requirement: dict[str, Any]
    ) -> Started:
        """Check, allocate, consume and start in one call, as the reference's start command does (7.3).

        Raises:
            ResourcesLacking: the manager has not enough now, or the site has no manager.
            FlightlogError: whatever else stands against the start, as ``engine.calls.start`` raises it.
        """
        call = self._core.call("start_app", job_id, requirement)
        manager = self.client.components.get(MANAGER)
        if not isinstance(manager, ResourceManagerSpec):
            error = ResourcesLacking("this site has no resource_manager", "name one in local/resources.json")
            raise self._core.refuse(call, "start_app", error, job_id)
        lock = FileLock(self._core.site.workspace.flight / "resources.lock")
        lock.acquire(timeout=None)  # one allocation at a time on this site, whichever engine makes it
        try:
            self._holdings.sync()
            context = self._context()
            enough, token = manager.check_resources(requirement, context)
            if not enough:
                error = ResourcesLacking(
                    f"the site lacks {requirement} at this moment", "flightlog status shows who holds what"
                )
                raise self._core.refuse(call, "start_app", error, job_id)
            resources = manager.allocate_resources(requirement, token, context)
            return self._start_allocated(call, job_id, job_meta, manager, token, resources, lock.release)
        finally:
            lock.release()

    def _start_allocated(
        self,
        call: Call,
        job_id: str,
        job_meta: Mapping[str, Any] | None,
        manager: ResourceManagerSpec,
        token: str,
        resources: dict[str, Any],
        recorded: Callable[[], None],
    ) -> Started:
        grant = self._holdings.grant(job_id, manager, token, resources) if resources else None
        consumer = self.client.components.get(CONSUMER)
        try:
            environment = (
                consumer.consume(resources) if resources and isinstance(consumer, ResourceConsumerSpec) else {}
            )
            allotment = Allotment(resources=resources, token=token, manager=MANAGER, environment=environment)
            return self._start(call, job_id, job_meta, allotment, grant, recorded)
        except CallTimeout:
            raise  # it may come yet, and then it holds what it was given
        except BaseException as error:
            if grant is not None:  # here we are the caller
                self._holdings.leave(grant, _attempt(error))
                self._holdings.give_back(grant, "the start failed")
            raise

    def _component_id(self, component: object | None) -> str | None:
        if component is None:
            return None
        for name, known in self.client.components.items():
            if known is component:
                return name
        return _kind(component)

    def notify_job_status(self, job_id: str, job_status: object) -> None:
        """A job says that it is started (2) or stopped (3); what makes no sense is recorded and ignored."""
        with contextlib.suppress(FlightlogError):
            try:
                notify(self._core, job_id, job_status)
            except LogUnavailable as error:
                log.warning("a status of %s could not be recorded: %s", job_id, error)

    def abort_app(self, job_id: str, heartbeat_cleanup: bool = False) -> str:
        """End a job's app (reference 2.4). Returns when it is gone, or after a moment: the record knows.

        Args:
            job_id: which job.
            heartbeat_cleanup: the server's heartbeat asks; a user's abort goes over it. Does not wait.

        Returns:
            One of the reference's strings, or ``NVFLARE_ERROR: JOB_UNKNOWN: ...``.

        Raises:
            JobIdInvalid: bad input.
        """
        try:
            abort(
                self._core,
                job_id,
                origin="heartbeat" if heartbeat_cleanup else "user",
                timeout=0 if heartbeat_cleanup else None,
            )
        except NotStarted:
            return "Client app has not started."
        except AlreadyStopped:
            return "Client app already stopped."
        except JobUnknown as error:
            return ERROR + str(error)
        return "Abort signal has been sent to the client App."

    def declare_lost(self, job_id: str, reason: str) -> None:
        """Close an app whose end nobody will ever see (``flightlog abort --lost``).

        Raises:
            JobUnknown, NotLive: there is no live app.
        """
        declare_lost(self._core, job_id, reason)

    def delete_run(self, job_id: str) -> str:
        """Remove a job's run folder.

        Returns:
            ``Delete run folder: <path>.``, or ``NVFLARE_ERROR: ...`` when it was refused.

        Raises:
            JobIdInvalid: bad input. DeleteFailedError: it cannot be removed.
        """
        try:
            delete(self._core, job_id)
        except (JobUnknown, JobLive, JobBusy, CallTimeout) as error:
            return ERROR + str(error)
        return f"Delete run folder: {self._core.site.workspace.run(job_id)}."

    # -- the reactor's side ----------------------------------------------------------------------

    def _before_launch(self, job_id: str, job_meta: Mapping[str, Any]) -> None:
        if self.role == "owner":  # a client's components are not the site's
            self._fire(EventType.BEFORE_JOB_LAUNCH, self._job_context(job_id, job_meta), job_id)

    def _launched(self, job_id: str) -> None:
        self._fire(EventType.AFTER_JOB_LAUNCH, self._job_context(job_id), job_id)

    def _completed(self, job_id: str) -> None:
        self._fire(EventType.JOB_COMPLETED, self._job_context(job_id), job_id)

    def _job_context(self, job_id: str, job_meta: Mapping[str, Any] | None = None) -> FLContext:
        context = self._context()
        meta = job_meta or read_json(self._core.site.workspace.run(job_id) / "meta.json") or {}
        context.set_prop(FLContextKey.JOB_META, dict(meta), private=True, sticky=False)
        context.set_prop(FLContextKey.CURRENT_JOB_ID, job_id, private=True, sticky=False)
        context.set_prop(FLContextKey.CLIENT_NAME, self.client_name, private=True, sticky=False)
        return context

    # -- the end -----------------------------------------------------------------------------------

    def shutdown(self) -> str:
        """Shut the client down; running jobs go on (reference 1.3)."""
        return self._leave("shutdown", "Shutdown the client...")

    def restart(self) -> str:
        """Have the client restarted by whoever watches it; running jobs go on."""
        return self._leave("restart", "Restart the client...")

    def _leave(self, kind: str, answer: str) -> str:
        call = self._core.call(kind)
        live = [job for job, _ in self._core.view.live()]
        cls = ShutdownRequested if kind == "shutdown" else RestartRequested
        self._core.site.jobs.note(call, [cls(live_jobs=live)])
        if self.role == "owner":
            self._fire(EventType.SYSTEM_END, self._context())
        threading.Thread(target=self._leave_client, args=(kind,), name=kind).start()
        return answer

    def _leave_client(self, kind: str) -> None:
        (Path(self.args.workspace) / f"{kind}.fl").touch()
        communicator = getattr(self.client, "communicator", None)
        if communicator is not None:
            communicator.heartbeat_done = True
        close = getattr(self.client, "close", None)
        try:
            if close is not None:
                close()
            else:
                self.close()
        except Exception:
            log.exception("the client did not close in order; it is stopped all the same")
        finally:
            self.client.status = int(ClientStatus.STOPPED)  # type: ignore[attr-defined]

    @contextmanager
    def acting_as(
        self, actor: Actor | str, *, reason: str | None = None, call_id: str | None = None
    ) -> Iterator[Self]:
        """Within the block, calls of this thread are of this actor, for this reason (``engine.actors``)."""
        with actors.acting_as(actor, reason=reason, call_id=call_id):
            yield self

    @property
    def site(self) -> Site:
        """The opened site."""
        return self._core.site

    @property
    def core(self) -> Core:
        """What the calls work with; for ``engine.cli`` and others that want errors instead of strings."""
        return self._core

    def close(self) -> None:
        """End the pool and let go of the site; running jobs go on, and the next engine takes them back."""
        if self._core.closed:
            return
        if self._pool is not None:
            self._pool.stop()
        self._reactor.stop()
        if self._opened:
            with contextlib.suppress(FlightlogError):
                closed = EngineClosed(role=self.role, pid=os.getpid())
                self._core.site.jobs.note(self._core.call("close"), [closed])
        self._core.close()
        self._owner.release()
        self._core.site.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refused_start(error: FlightlogError) -> str:
    """The reference's answer to a start that its table has a string for."""
    if isinstance(error, AlreadyStarted):
        return "Client app already started."
    if isinstance(error, JobUnknown | NotDeployed):
        return ERROR + "Client app does not exist. Please deploy it before starting client."
    return ERROR + str(error)


def _attempt(error: BaseException) -> int | None:
    """The attempt that an error of a start is about, where one was recorded."""
    return error.context.get("attempt") if isinstance(error, FlightlogError) else None


def _kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


__all__ = ["ClientEngine", "EngineDown"]
