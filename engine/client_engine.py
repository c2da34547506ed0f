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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from engine import actors
from engine.aux.dispatch import AuxHandler
from engine.aux.runner import AuxRunner
from engine.calls.abort import abort, declare_lost
from engine.calls.delete import delete
from engine.calls.deploy import deploy
from engine.calls.notify import notify
from engine.calls.share import share_log
from engine.calls.start import Started
from engine.cell.message import Message
from engine.cell.protocol import Cell
from engine.children import Child, pool_child
from engine.client import Arguments, FederatedClient, LocalArguments, LocalClient
from engine.comm import Comm
from engine.component import FLComponent
from engine.components import Components, kind_of
from engine.constants import ClientStatus, EventType
from engine.context import FLContext, FLContextManager
from engine.core import Core
from engine.errors import (
    AlreadyStarted,
    AlreadyStopped,
    ArgumentInvalid,
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
    ScopeDenied,
    SignatureBad,
)
from engine.federation.member import Member
from engine.files import FileLock, write_json
from engine.holdings import Holdings
from engine.ids import check_site_name
from engine.jobtalk import ClientRunInfo, JobTalk
from engine.orders import start_ticks
from engine.owner import own
from engine.reactor import Reactor
from engine.shareable import Shareable
from engine.site import Site
from engine.site_components import load_components
from engine.starting import Starts
from engine.streaming.files import CHANNEL as FILES
from engine.streaming.files import CHUNK, FileFactory
from engine.streaming.files import TOPIC as FILE
from engine.streaming.incoming import Callback
from engine.streaming.joblogs import JobLogs
from engine.streaming.sending import Files, SentFile
from engine.streaming.spec import ConsumerFactory, ObjectProducer, StreamContext
from engine.workspace import host_name, known_site
from events.bodies.site import (
    AgentSet,
    EngineClosed,
    EngineOpened,
    RestartRequested,
    ShutdownRequested,
)
from events.envelope import Actor, iso
from events.errors import FlightlogError, LogUnavailable

log = logging.getLogger("flightlog.engine")

ERROR = "NVFLARE_ERROR: "


class ClientEngine:
    """The engine of a client parent.

    Args:
        client: see ``engine.client.FederatedClient`` for what is read of it.
        args: ``args.workspace`` is the site's folder.
        rank: recorded with the opening.
        workers: size of the pool that this engine supervises.
        purpose: what people are told who ask who owns the site.
        goes_on: with files whose engine died over them; one that lives only for a command does not.
        may_own: become the site's owner where it has none; else it is a client in any case.
        options: further settings (``engine.settings``), for instance ``pool="elsewhere"``.

    Raises:
        ArgumentInvalid: a setting makes no sense (``workers must >= 1``).
        EngineDown, ServerUnsafe: a server cannot be used.
    """

    def __init__(
        self,
        client: FederatedClient,
        args: Arguments,
        rank: object,
        workers: int = 5,
        *,
        purpose: str = "engine",
        goes_on: bool = True,
        may_own: bool = True,
        **options: Any,
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
        site = Site.open(
            create=True,
            workspace=Path(args.workspace),
            site=client.client_name,
            workers=workers,
            **options,
        )
        self._core = Core(site)
        self._owner = FileLock(site.workspace.flight / "owner.lock")
        self.role: Literal["owner", "client"] = "owner" if may_own and own(self._owner) else "client"
        self._components = Components(self._core, client, self)
        self._holdings = Holdings(self._core, self._components)
        self._starts = Starts(self._core, self._components, self._holdings, owner=self.role == "owner")
        server = self._core.site.settings.federation or "server"
        self._comm = Comm(self._core, self._components, server)
        self._talk = JobTalk(self._core, self._comm)
        self._files = Files(self._core, self._comm.streams, self._components.context)
        self._logs = JobLogs(self._core, self._comm.streams, self._components.context, server)
        self._reactor = Reactor(self._core, self._components, self._holdings, also=self._logs.see)
        self._member: Member | None = None
        self._pool: Child | None = None
        self._opened = False
        self._purpose = purpose
        self._goes_on = goes_on
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
            options: ``purpose``, and further settings (``engine.settings``).
        """
        name = check_site_name(site or known_site(Path(workspace).resolve()))
        known = {**load_components(Path(workspace)), **(components or {})}
        client = LocalClient(client_name=name, components=known)
        engine = cls(client, LocalArguments(str(workspace)), None, workers, **options)
        try:
            engine._join()
        except BaseException:
            engine.close()
            raise
        return engine

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
            "purpose": self._purpose,
            "network": site.settings.network,
            "record_url": site.settings.record_url,
            "fabric_url": site.settings.fabric_url,
        }
        write_json(site.workspace.flight / "owner.json", owner)
        self._holdings.sync(opening=True)
        self._reactor.start()
        self._sweep()
        if site.settings.pool == "own":
            self._pool = pool_child(site)
            self._pool.start()

    def _join(self) -> None:
        """Have the built-in cell; the owner takes in what comes, and joins the federation that the settings name."""
        cell = self._comm.open_own(listen=self.role == "owner")
        server = self._core.site.settings.federation
        if server and self.role == "owner":
            self._member = Member(self, cell, server)
            self._member.start()
        if self.role == "owner":
            if self._goes_on:
                self._files.resume()
            self._logs.start()

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

    def new_context(self) -> FLContext:
        """A context with the site's sticky properties."""
        self._core.read("new_context")
        return self._components.context()

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Call all components in order, on this thread; what a handler raises is logged and recorded."""
        self._core.call("fire_event")
        self._components.fire(event_type, fl_ctx)

    @property
    def fl_components(self) -> list[FLComponent]:
        """The components that are told of events, in that order."""
        return self._components.handlers

    @property
    def fl_ctx_mgr(self) -> FLContextManager:
        """Makes the contexts."""
        return self._components.contexts

    def add_component(self, component_id: str, component: object) -> None:
        """Add a component; an FLComponent is told of events from now on.

        Raises:
            ArgumentTypeInvalid: the id is no string. ArgumentInvalid: the id is taken.
        """
        self._components.add(component_id, component)

    def get_component(self, component_id: str) -> object | None:
        """A component by its id, or None."""
        self._core.read("get_component")
        return self.client.components.get(component_id)

    def set_agent(self, admin_agent: object) -> None:
        """Set the admin agent."""
        self._core.site.jobs.note(self._core.call("set_agent"), [AgentSet(kind=kind_of(admin_agent))])
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

        A start that is refused with a string frees the resources here; where it raises, the caller
        does, as the reference's caller is used to. Either way they are freed once. A start whose outcome
        is not known yet (``CALL_TIMEOUT``) keeps them until its attempt has ended.

        Returns:
            ``Start the client app...``, ``Client app already started.``, or ``NVFLARE_ERROR: ...``.

        Raises:
            StillRegistered, MetaDiffers, NoWorker, LaunchFailedError (all RuntimeError): refused or failed.
            JobIdInvalid, ArgumentInvalid: bad input.
        """
        try:
            self._starts.given(job_id, job_meta, allocated_resource, token, resource_manager)
        except AlreadyStarted:
            return "Client app already started."
        except (JobUnknown, NotDeployed):
            return ERROR + "Client app does not exist. Please deploy it before starting client."
        except (JobBusy, DeployInProgress, CallTimeout) as error:
            return ERROR + str(error)
        return "Start the client app..."

    def start_with_resources(
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
        return self._starts.asked(job_id, job_meta, requirement, timeout)

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

    # -- messages ------------------------------------------------------------------------------------

    def initialize_comm(self, cell: Cell) -> None:
        """Send and take in through this cell from now on (reference 1.2); again with another one: through that.

        Raises:
            ArgumentTypeInvalid: it is no cell.
        """
        self._comm.attach(cell)

    def get_cell(self) -> Cell | None:
        """The cell, or None before there is one."""
        return self._comm.cell

    @property
    def cell(self) -> Cell | None:
        """The cell; writing it is ``initialize_comm``, as the reference's client does."""
        return self._comm.cell

    @cell.setter
    def cell(self, cell: Cell) -> None:
        self._comm.attach(cell)

    @property
    def aux_runner(self) -> AuxRunner:
        """Handlers by topic, and requests to the server."""
        return self._comm.aux

    def register_aux_message_handler(self, topic: str, message_handle_func: AuxHandler) -> None:
        """Have ``f(topic=, request=, fl_ctx=) -> Shareable`` answer aux requests on a topic (reference 4.1).

        Raises:
            ArgumentTypeInvalid: the topic is no string, or the function cannot be called.
            ArgumentInvalid: the topic is empty or taken, or the function None.
        """
        self._comm.aux.register(topic, message_handle_func)

    def send_aux_request(
        self,
        topic: str,
        request: Shareable,
        timeout: float,
        fl_ctx: FLContext,
        optional: bool = False,
        secure: bool = False,
    ) -> Shareable:
        """Send a request to the server and wait for its reply (reference 4.3).

        Args:
            topic: of the server's handler.
            request: what is sent; its headers get the topic and our public properties.
            timeout: seconds; 0 returns once the intent is durable.
            fl_ctx: whose public properties the server sees.
            optional: a failure is logged as a detail only.
            secure: seal it, so that only the server can read it.

        Returns:
            The reply. A failure is a reply whose return code says so, never an empty success.
        """
        return self._comm.aux.send(topic, request, timeout, fl_ctx, optional=optional, secure=secure)

    def fire_and_forget_aux_request(
        self, topic: str, request: Shareable, fl_ctx: FLContext, optional: bool = False, secure: bool = False
    ) -> Shareable:
        """Send a message to the server that expects no answer; returns once the intent is durable."""
        method = "fire_and_forget_aux_request"
        return self._comm.aux.send(topic, request, 0.0, fl_ctx, optional=optional, secure=secure, method=method)

    def send_to_job(
        self, job_id: str, channel: str, topic: str, msg: Message, timeout: float, optional: bool = False
    ) -> Message:
        """Ask a job's process (reference 1.2), whatever state the live job is in.

        Returns:
            Its answer; where there is none, a message whose RETURN_CODE says why.

        Raises:
            JobIdInvalid, ArgumentInvalid: bad input.
        """
        return self._comm.to_job("send_to_job", job_id, channel, topic, msg, timeout, optional=optional)

    def abort_task(self, job_id: str) -> str:
        """Have a job give up its current task; the job goes on.

        Returns:
            One of the reference's strings, or ``NVFLARE_ERROR: ...`` where no process took it in.

        Raises:
            JobIdInvalid: bad input.
        """
        return self._talk.abort_task(job_id)

    def get_current_run_info(self, job_id: str) -> ClientRunInfo:
        """What a job does now, as its process says, else as the record does."""
        return self._talk.run_info(job_id)

    def get_errors(self, job_id: str) -> dict[str, Any] | None:
        """What a job's process has logged as errors, or None where nobody answers."""
        return self._talk.errors(job_id)

    def reset_errors(self, job_id: str) -> None:
        """Have a job's process forget its errors."""
        self._talk.reset_errors(job_id)

    def configure_job_log(self, job_id: str, config: str | dict[str, Any]) -> str | None:
        """Change the logging of a job's process: a level, or a whole ``logging.config`` dictionary.

        Returns:
            None where it was done, else what kept it from being done.
        """
        return self._talk.configure_log(job_id, config)

    # -- streams -------------------------------------------------------------------------------------

    def stream_objects(
        self,
        channel: str,
        topic: str,
        stream_ctx: StreamContext | dict[str, Any] | None,
        targets: Sequence[str],
        producer: ObjectProducer,
        fl_ctx: FLContext,
        optional: bool = False,
        secure: bool = False,
    ) -> tuple[str, Any]:
        """Stream a producer's objects to targets, in order, and wait for the end (reference 5.3).

        Args:
            channel: of the targets' consumers.
            topic: likewise.
            stream_ctx: goes to them with the first object; None: an empty one.
            targets: addresses: ``server``, other sites, jobs. The slowest sets the pace.
            producer: makes the objects.
            fl_ctx: its abort signal ends the stream.
            optional: a failure is logged as a detail only.
            secure: seal each object, so that only its target can read it.

        Returns:
            A return code, and what ``process_replies`` returned; ``("OK", None)`` where the producer came to its end.

        Raises:
            ArgumentTypeInvalid, ArgumentInvalid: bad input, or the producer made something that is no object.
            PayloadInvalid, PayloadTooLarge: it made one that cannot be sent.
            KeyUnknown: a target has no key. StreamerDown: after ``shutdown_streamer``.
            LogUnavailable: the record is away, so nothing was sent.
            Exception: what the producer raised.
        """
        return self._comm.streams.stream(
            channel, topic, stream_ctx, targets, producer, fl_ctx, optional=optional, secure=secure
        )

    def register_stream_processing(
        self,
        channel: str,
        topic: str,
        factory: ConsumerFactory,
        stream_done_cb: Callback | None = None,
        consumed_cb: Callback | None = None,
        **cb_kwargs: Any,
    ) -> None:
        """Have a factory's consumers take in the streams of a channel and topic (reference 5.4).

        Args:
            channel: ``*`` is any.
            topic: likewise.
            factory: gives each stream a consumer of its own.
            stream_done_cb: ``f(stream_ctx, fl_ctx, **cb_kwargs)`` at the end; the producer is told what it returns.
            consumed_cb: the same, after each object.
            cb_kwargs: for both.

        Raises:
            ArgumentTypeInvalid, ArgumentInvalid: bad input, or the channel and topic have a factory already.
        """
        self._comm.streams.register(channel, topic, factory, stream_done_cb, consumed_cb, **cb_kwargs)

    def send_file(
        self,
        path: Path | str,
        targets: list[str],
        *,
        job: str | None = None,
        chunk: int = CHUNK,
        secure: bool = False,
        optional: bool = False,
    ) -> SentFile:
        """Send a file of any size, and wait until it is whole at each target.

        Where this process dies over it, the site's next engine goes on; a second call with the same file goes on
        with what the targets have, too.

        Args:
            path: of a regular file.
            targets: addresses that take in files (``receive_files``).
            job: whose record it goes to; None: the site's.
            chunk: bytes of one object.
            secure: seal it, so that only the targets can read it.
            optional: a failure is logged as a detail only.

        Raises:
            ArgumentInvalid, HostError: bad input, or the file cannot be read.
            KeyUnknown: a target has no key. LogUnavailable: the record is away, so nothing was sent.
        """
        return self._files.send(path, targets, job=job, chunk=chunk, secure=secure, optional=optional)

    def receive_files(self, folder: Path | str) -> None:
        """Take in files that others send, into a folder with a folder for each sender.

        Raises:
            ArgumentInvalid: it is no folder, or files are taken in already.
        """
        self._comm.streams.register(FILES, FILE, FileFactory(folder))

    def share_log(self, job_id: str, what: Literal["off", "errors", "live"]) -> None:
        """Decide what the server is sent of a job's log; without a decision the setting ``stream_logs`` counts.

        Args:
            job_id: of which job.
            what: nothing; the error log when the job ends; that, and its output as it grows.

        Raises:
            JobIdInvalid, ArgumentInvalid: bad input. JobUnknown: the record does not know the job.
        """
        share_log(self._core, job_id, what)

    def shutdown_streamer(self) -> None:
        """End all streams that go out, and take on no more."""
        self._comm.streams.shutdown()

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
            self._components.fire(EventType.SYSTEM_END, self._components.context())
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
        self._logs.stop()
        if self._member is not None:
            self._member.stop()
        self._comm.close()
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


__all__ = ["ClientEngine", "EngineDown"]
