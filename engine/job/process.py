"""The job's process: it says that it has started, takes tasks one after the other, and says that it is over."""

from __future__ import annotations

import logging
import logging.config
import queue
import signal as os_signal
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from engine import codec
from engine.actors import set_process_actor
from engine.aux.runner import AuxRunner
from engine.cell.cell import FabricCell
from engine.cell.digests import Digests
from engine.cell.journal import RecordJournal
from engine.cell.message import CellChannel, CellReturnCode, Message, MessageHeaderKey, failed
from engine.cell.outgoing import Outgoing
from engine.cell.sender import Sender
from engine.comm import ring_of
from engine.constants import ClientStatus, EventType, ExitCode, FLContextKey, ReservedKey, ReturnCode
from engine.core import Core
from engine.errors import BadConfig
from engine.fold import JobState
from engine.job.config import load
from engine.job.engine import JobEngine
from engine.job.executor import Executor
from engine.job.grant import Grant
from engine.job.kept_errors import KeptErrors
from engine.job.signal import Signal
from engine.jobtalk import CommandTopic
from engine.shareable import Shareable, make_reply
from engine.site import Site
from engine.tasking import TASK_ID, TASK_NAME, TaskTopic
from events.bodies.base import Body
from events.bodies.messages import TaskDone, TaskReceived, TaskStarted
from events.envelope import Actor, Call
from events.errors import FlightlogError, LogUnavailable

log = logging.getLogger("flightlog.job")

QUEUED = 16  # tasks that wait while one runs
NOTICE_TIMEOUT = 2.0
RESULT_TIMEOUT = 30.0
RESULT_TRIES = 5


@dataclass
class Task:
    """A task that was taken in."""

    id: str
    name: str
    data: Shareable
    abort: Signal = field(default_factory=Signal)
    began: float | None = None


class JobProcess:
    """One run of a job.

    Args:
        grant: who we are.
    """

    def __init__(self, grant: Grant) -> None:
        self.grant = grant
        self.site = Site.open(join=False, **grant.settings)
        self.fqcn = f"{self.site.name}.{grant.job}"
        set_process_actor(Actor(id=self.fqcn, kind="job", auth="os-uid"))
        self.kept = KeptErrors()
        logging.getLogger().addHandler(self.kept)
        self._tasks: queue.Queue[Task | None] = queue.Queue()
        self._seen: set[str] = set()
        self._queued: dict[str, Task] = {}
        self._current: Task | None = None
        self._done = 0
        self._over = threading.Event()
        self._lock = threading.Lock()

    def ends_with(self, code: ExitCode) -> int:
        """Leave the code where the keeper looks for it: of an exit alone it cannot tell whose words they are."""
        (self.site.workspace.run(self.grant.job) / "_process_rc.txt").write_text(str(int(code)))
        return int(code)

    def run(self) -> int:
        """Until the run is over; the exit code."""
        app = self.site.workspace.app(self.grant.job)
        sys.path.append(str(app / "custom"))  # at the end: an app can shadow nothing of ours
        try:
            executors, components = load(app)
        except BadConfig as error:
            log.error("%s", error)
            return self.ends_with(ExitCode.CONFIG_ERROR)
        self.executors: dict[str, Executor] = executors
        for number in (os_signal.SIGTERM, os_signal.SIGINT):
            os_signal.signal(number, self._told_to_end)
        self.core = Core(self.site)
        self._await_record()
        self.engine = JobEngine(
            self.site.name, self.grant.job, str(self.site.workspace.root), components, self.grant.server
        )
        for executor in dict.fromkeys(executors.values()):
            self.engine.hear(executor)
        ring = self.ring = ring_of(self.site.workspace)
        self.sender = Sender(self.core, self.fqcn, ring)
        self.engine.aux = AuxRunner(
            self.core, self.engine.new_context, lambda: self.sender, server=self.grant.server, job=self.grant.job
        )
        self.cell = FabricCell(
            self.site.servers.fabric_url,
            self.fqcn,
            ring=ring,
            journal=RecordJournal(self.core, Digests(self.site.workspace.flight), self.grant.job),
            inbox_max=self.site.settings.inbox_max,
            payload_max=self.site.settings.payload_max,
        )
        self.cell.register_request_cb(CellChannel.AUX_COMMUNICATION, "*", self.engine.aux.handle)
        self.cell.register_request_cb(CellChannel.CLIENT_COMMAND, "*", self._command)
        self.cell.register_request_cb(CellChannel.SERVER_MAIN, "*", self._from_server)
        self.cell.start()
        try:
            self.engine.fire_event(EventType.START_RUN, self.engine.new_context())
            self._say(ClientStatus.STARTED)
            self._work()
            self.engine.fire_event(EventType.END_RUN, self.engine.new_context())
            self._say(ClientStatus.STOPPED)
        finally:
            self.cell.stop()
            self.sender.close()
            self.core.close()
        return int(ExitCode.SUCCESS)

    def _await_record(self) -> None:
        """Follow the log; a record that is away is waited for, and the site's deadline for our start ends that."""
        while True:
            try:
                self.core.view.start()
            except LogUnavailable as error:
                log.warning("waiting: %s", error)
                if self._over.wait(0.5):
                    raise
            else:
                return

    # -- what we say of ourselves ------------------------------------------------------------------

    def _say(self, status: ClientStatus) -> None:
        """Tell the engine, until it has taken it in or says no; the site's deadlines end a wait that is too long."""
        while True:
            answer = self.cell.send_request(
                CellChannel.CLIENT_MAIN,
                "notify_job_status",
                self.site.name,
                Message(payload=self.grant.sign(int(status))),
                NOTICE_TIMEOUT,
                optional=True,
            )
            if answer.return_code == CellReturnCode.OK:
                if answer.payload != "ok":
                    log.error("the engine did not take in that we are %s: %s", status.text, answer.payload)
                return
            if status is ClientStatus.STARTED and self._over.is_set():
                return
            time.sleep(0.2)

    # -- tasks -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            with self._lock:
                self._current, task.began = task, time.time()
            # One that was given up while it waited is not begun.
            aborted = make_reply(ReturnCode.TASK_ABORTED)
            result = self._done_with(task, aborted, 0.0) if task.abort.triggered else self._execute(task)
            with self._lock:
                self._current = None
                self._queued.pop(task.id, None)
                self._done += 1
            self._send_result(task, result)

    def _execute(self, task: Task) -> Shareable:
        fl_ctx = self.engine.new_context()
        fl_ctx.set_prop(FLContextKey.RUN_ABORT_SIGNAL, task.abort, private=True, sticky=False)
        began = time.monotonic()
        self._note(task, "started", TaskStarted(task_id=task.id, task=task.name))
        try:
            self.engine.fire_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
            result = self.executors[task.name].execute(task.name, task.data, fl_ctx, task.abort)
            self.engine.fire_event(EventType.AFTER_TASK_EXECUTION, fl_ctx)
        except (Exception, SystemExit):  # an executor does not end the job
            log.exception("task %s failed", task.name)
            result = make_reply(ReturnCode.EXECUTION_EXCEPTION)
        if task.abort.triggered and not (isinstance(result, Shareable) and result.get_return_code() != ReturnCode.OK):
            result = make_reply(ReturnCode.TASK_ABORTED)
        if not _is_result(result):
            log.error("task %s returned a %s without a return code", task.name, type(result).__name__)
            result = make_reply(ReturnCode.EXECUTION_RESULT_ERROR)
        if task.abort.triggered and result.get_return_code() == ReturnCode.OK:
            result = make_reply(ReturnCode.TASK_ABORTED)
        return self._done_with(task, result, time.monotonic() - began)

    def _done_with(self, task: Task, result: Shareable, seconds: float) -> Shareable:
        """Record the end of a task; the result as it can be sent."""
        try:
            size = len(codec.encode(result))
        except FlightlogError as error:
            log.error("the result of task %s cannot be sent: %s", task.name, error)
            result, size = make_reply(ReturnCode.EXECUTION_RESULT_ERROR), 0
        done = TaskDone(
            task_id=task.id,
            task=task.name,
            code=result.get_return_code()[:64],
            size=size,
            ms=int(seconds * 1000),
        )
        self._note(task, "done", done)
        return result

    def _send_result(self, task: Task, result: Shareable) -> None:
        """To the server, on the record; again where it was not taken in, since the receiver takes a task once."""
        for attempt in range(RESULT_TRIES):
            call = self.core.call("task_result", task.id, attempt)
            out = Outgoing(
                channel=CellChannel.SERVER_MAIN,
                topic=TaskTopic.RESULT,
                target=self.grant.server,
                message=Message({TASK_ID: task.id, TASK_NAME: task.name}, result),
                timeout=RESULT_TIMEOUT,
                job=self.grant.job,
            )
            try:
                sent = self.sender.send(call, out)
                if sent.ok:
                    return
                why = f"{sent.code} {sent.why}"
            except FlightlogError as error:
                why = str(error)
            log.warning("the result of task %s was not taken in: %s", task.name, why)
            if self._over.wait(min(2.0**attempt * 0.2, 3.0)):
                return
        log.error("the result of task %s is given up", task.name)

    def _note(self, task: Task, step: str, body: Body) -> None:
        # A task's id is the server's: it may come again in another job, or another run.
        call_id = f"task:{self.grant.job}:{self.grant.attempt}:{task.id}"
        call = Call(call_id=call_id, actor=Actor(id=self.fqcn, kind="job", auth="os-uid"), step=step)
        try:
            self.site.jobs.note(call, [body], self.grant.job)
        except FlightlogError as error:
            log.warning("%s could not be recorded: %s", body.name(), error)

    # -- what comes in -----------------------------------------------------------------------------------

    def _from_server(self, request: Message) -> Message:
        if request.get_header(MessageHeaderKey.ORIGIN) != self.grant.server:
            return failed(CellReturnCode.UNAUTHENTICATED, f"tasks come from {self.grant.server} alone")
        if not request.get_header(MessageHeaderKey.SECURE) and self.ring.trusts(self.grant.server):
            return failed(CellReturnCode.UNAUTHENTICATED, f"{self.grant.server} has a key here: seal it with that")
        topic = request.get_header(MessageHeaderKey.TOPIC)
        if topic == TaskTopic.END_RUN:
            self._end()
            return Message(payload=make_reply(ReturnCode.OK))
        if topic == TaskTopic.ABORT:
            self._abort_task("server", request.get_header(TASK_ID))
            return Message(payload=make_reply(ReturnCode.OK))
        if topic != TaskTopic.ASSIGN:
            return failed(CellReturnCode.INVALID_REQUEST, f"there is no topic {topic!r} for tasks")
        return Message(payload=make_reply(self._take(request)))

    def _take(self, request: Message) -> str:
        """Take a task in; the return code."""
        task_id, name, data = request.get_header(TASK_ID), request.get_header(TASK_NAME), request.payload
        if not isinstance(task_id, str) or not 0 < len(task_id) <= 100:
            return ReturnCode.BAD_TASK_DATA
        if not isinstance(name, str) or not isinstance(data, Shareable):
            return ReturnCode.BAD_TASK_DATA
        if name not in self.executors:
            log.error("nobody executes task %r; the app has %s", name[:100], ", ".join(sorted(self.executors)))
            return ReturnCode.TASK_UNKNOWN
        with self._lock:
            if task_id in self._seen:
                return ReturnCode.OK  # the server did not see our first answer
            if self._over.is_set() or self._tasks.qsize() >= QUEUED:
                return ReturnCode.SERVICE_UNAVAILABLE
            self._seen.add(task_id)
            task = Task(task_id, name, data)
            self._queued[task_id] = task
        size = len(codec.encode(data))
        received = TaskReceived(task_id=task.id, task=name, sender=self.grant.server, size=size)
        self._note(task, "received", received)
        self._tasks.put(task)
        return ReturnCode.OK

    def _command(self, request: Message) -> Message:
        """What the engine of our site asks, sealed with the site's key, which nobody else on the fabric has."""
        sealed = request.get_header(MessageHeaderKey.SECURE)
        if not sealed or request.get_header(MessageHeaderKey.ORIGIN) != self.site.name:
            return failed(CellReturnCode.UNAUTHENTICATED, f"commands come from {self.site.name} alone, sealed")
        topic = request.get_header(MessageHeaderKey.TOPIC)
        if topic == CommandTopic.ABORT_TASK:
            self._abort_task("engine")
            return Message(payload="")
        if topic == CommandTopic.SHOW_STATS:
            return Message(payload=self._stats())
        if topic == CommandTopic.SHOW_ERRORS:
            return Message(payload={"job_id": self.grant.job, "errors": self.kept.all()})
        if topic == CommandTopic.RESET_ERRORS:
            self.kept.reset()
            return Message(payload="")
        if topic == CommandTopic.CONFIGURE_LOG:
            return Message(payload=self._configure_log(request.payload))
        return failed(CellReturnCode.INVALID_REQUEST, f"there is no command {topic!r}")

    def _abort_task(self, by: str, task_id: str | None = None) -> None:
        """Have the current task give up, or the one that is named, also where it waits for its turn."""
        with self._lock:
            task = self._current if task_id is None else self._queued.get(task_id)
        if task is not None:
            log.warning("task %s is to be given up, says the %s", task.name, by)
            task.abort.trigger(by)

    def _stats(self) -> dict[str, Any]:
        state = self.core.view.get(self.grant.job) or JobState()
        with self._lock:
            task, done = self._current, self._done
        return {
            "job_id": self.grant.job,
            "current_task_name": task.name if task else "",
            "start_time": int(task.began * 1000) if task and task.began else None,
            "tasks": len(self._seen),
            "tasks_done": done,
            "messages_sent": int(state.get("messages_out") or 0),
            "messages_received": int(state.get("messages_in") or 0),
        }

    def _configure_log(self, config: Any) -> str:
        try:
            if isinstance(config, dict):
                logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **config})
                logging.getLogger().addHandler(self.kept)
            else:
                logging.getLogger().setLevel(str(config).upper())
        except (ValueError, TypeError, AttributeError, ImportError) as error:
            return f"{type(error).__name__}: {error}"[:500]
        return ""

    # -- the end -------------------------------------------------------------------------------------------

    def _told_to_end(self, number: int, frame: FrameType | None) -> None:
        threading.Thread(target=self._end, name="end", daemon=True).start()

    def _end(self) -> None:
        """Give up the current task, take no more, and leave."""
        self._over.set()
        self._abort_task("end of the run")
        with self._lock:
            waiting = list(self._queued.values())
        for task in waiting:
            task.abort.trigger("end of the run")
        self._tasks.put(None)


def _is_result(result: object) -> bool:
    """Whether a task's result can be sent: a Shareable with headers and a return code of text."""
    return (
        isinstance(result, Shareable)
        and isinstance(result.get(ReservedKey.HEADERS), dict)
        and isinstance(result.get_return_code(), str)
    )
